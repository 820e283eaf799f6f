"""Cycle scan: a selective state-space scan over R passes of one sequence, done in one pass.

One pass per channel c and state n (A < 0, delta > 0)::

    h_t = exp(delta_t A) h_{t-1} + delta_t B_t u_t        y_t = sum_n C_t h_t + D u_t

HRSAM repeats the sequence R times with the state carried over and returns
``z_t = sum_r gamma_r y_t^(r)``. The recurrence is linear in the state and the inputs repeat, so
with S the state after the first pass and P = exp(A sum(delta))::

    z_t = sum_n C_t (Gamma s_t + exp(A tau_t) G) + Gamma D u_t
    Gamma = sum_r gamma_r,   G = S * sum_{r>=2} gamma_r (1 + P + ... + P^(r-2))

that is one ordinary scan of Gamma u started from the state G: exact, without a division, and
with P in (0, 1] without overflow. Nothing is approximated, so gradients are exact too.

Shape letters: B batch, L tokens, C channels, N states, R cycles, K chunks of T tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_hrsam._optional import require
from napari_hrsam.errors import ConfigError, MissingExtraError, ShapeError
from napari_hrsam.modeling.configs import SCAN_BACKENDS, ScanBackend

logger = logging.getLogger(__name__)

# Below this many state updates (B L C N) torch needs a few hundredths of a second, less than it
# takes to load the compiled kernel.
_NUMBA_MIN_UPDATES = 4_000_000


def cycle_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor,
    gamma: Tensor,
    *,
    backend: ScanBackend = "auto",
) -> Tensor:
    """Scan a sequence R times with the state carried over, weighted by ``gamma``.

    Parameters
    ----------
    u : (B, L, C) float32 or float64
        Input sequence.
    delta : (B, L, C) float
        Step sizes, >= 0 (softplus already applied).
    A : (C, N) float
        Decay rates, < 0.
    B, C : (B, L, N) float
        Input and output maps, shared by all channels.
    D : (C,) float
        Skip.
    gamma : (C, R) float
        Weight of each pass.
    backend : {"auto", "mamba", "triton", "torch", "numba", "reference"}
        "auto" takes mamba-ssm, else our Triton kernels, on CUDA where they work, numba on the CPU
        for long sequences that need no gradient, else torch. "mamba", "triton" and "numba" compute
        in float32, with gradients. "reference" is the literal sequential loop over R L steps, for
        tests only.

    Returns
    -------
    (B, L, C) float

    Raises
    ------
    ShapeError
        If the shapes do not belong together.
    ConfigError
        If ``backend`` is unknown, or cannot run on this device or dtype.
    MissingExtraError
        If the backend's package is not installed.
    """
    _check_shapes(u, delta, A, B, C, D, gamma)
    inputs = (u, delta, A, B, C, D, gamma)
    match _auto_backend(inputs) if backend == "auto" else backend:
        case "torch":
            return cycle_scan_torch(*inputs)
        case "numba":
            _check_device("numba", inputs, "cpu")
            kernel: Any = require("napari_hrsam.modeling.scan_numba", extra="cpu")
        case "mamba":
            _check_device("mamba", inputs, "cuda")
            kernel = require("napari_hrsam.modeling.scan_mamba", extra="cuda")
        case "triton":
            _check_device("triton", inputs, "cuda")
            kernel = require("napari_hrsam.modeling.scan_triton", extra="cuda")
        case "reference":
            return cycle_scan_reference(*inputs)
        case _:
            raise ConfigError(
                f"scan backend must be one of {', '.join(SCAN_BACKENDS)}, got {backend!r}"
            )
    y: Tensor = kernel.cycle_scan(*inputs)
    return y


def _check_shapes(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor
) -> None:
    # The compiled kernels read memory by these shapes.
    fits = u.ndim == 3 and A.ndim == 2 and gamma.ndim == 2
    if fits:
        batch, length, channels = u.shape
        maps = (batch, length, A.shape[1])
        fits = (
            delta.shape == u.shape
            and A.shape[0] == channels
            and B.shape == C.shape == maps
            and D.shape == (channels,)
            and gamma.shape[0] == channels
        )
    if not fits:
        shapes = [tuple(x.shape) for x in (u, delta, A, B, C, D, gamma)]
        raise ShapeError(
            "u, delta, A, B, C, D, gamma must be (B, L, C), (B, L, C), (C, N), (B, L, N), "
            f"(B, L, N), (C,), (C, R), got {shapes}"
        )


def _check_device(backend: str, inputs: tuple[Tensor, ...], device: str) -> None:
    kinds = {(x.device.type, x.dtype) for x in inputs}
    if kinds != {(device, torch.float32)}:
        found = ", ".join(sorted(f"{dtype} on {where}" for where, dtype in kinds))
        raise ConfigError(
            f"scan backend {backend!r} needs torch.float32 on {device}, got {found}; "
            "use backend 'torch'"
        )


def _auto_backend(inputs: tuple[Tensor, ...]) -> ScanBackend:
    """Choose by device, dtype, need of gradients and size."""
    u, A = inputs[0], inputs[2]
    if any(x.dtype != torch.float32 or x.device != u.device for x in inputs):
        return "torch"
    if u.is_cuda and _mamba_ready():
        return "mamba"
    if u.is_cuda and triton_ready():
        return "triton"
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in inputs)
    is_long = u.numel() * A.shape[1] >= _NUMBA_MIN_UPDATES
    if u.device.type == "cpu" and is_long and not needs_grad and numba_ready():
        return "numba"
    return "torch"


def _mamba_ready() -> bool:
    from napari_hrsam.modeling.scan_mamba import mamba_ready

    return mamba_ready()


@lru_cache(maxsize=1)
def numba_ready() -> bool:
    """Whether the numba kernels can be imported."""
    try:
        require("napari_hrsam.modeling.scan_numba", extra="cpu")
    except MissingExtraError:
        return False
    except RuntimeError as error:
        # numba finds no folder in which it may keep compiled code.
        logger.warning("numba is installed but not usable (%s); using torch", error)
        return False
    return True


@lru_cache(maxsize=1)
def triton_ready() -> bool:
    """Whether the Triton kernels run and agree with torch on this machine's GPU.

    They are compiled when first called, for which Triton needs a C compiler. The check runs once
    per process; wrong or failing kernels are logged and torch is used.
    """
    if not torch.cuda.is_available():
        return False
    try:
        kernels: Any = require("napari_hrsam.modeling.scan_triton", extra="cuda")
    except MissingExtraError:
        return False
    try:
        agrees = _agrees_with_torch(kernels.cycle_scan, torch.device("cuda"))
    except (*kernels.ERRORS, RuntimeError, TypeError, ValueError, OSError) as error:
        logger.warning("Triton is installed but does not run here (%s); using torch", error)
        return False
    if not agrees:
        logger.warning("Triton's scan disagrees with torch on this machine; using torch")
    return agrees


def _agrees_with_torch(scan: Callable[..., Tensor], device: torch.device) -> bool:
    """Compare the values and gradients of a float32 scan with ours, on a few tokens."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator).to(device)

    # Whoever asks may be in inference mode, where nothing can be differentiated.
    with torch.inference_mode(mode=False), torch.enable_grad():
        # Some chunks, the last one cut; more channels than one program's.
        steps, A = 0.1 * random(2, 21, 21), -4 * random(21, 5)
        maps = random(2, 21, 5), random(2, 21, 5)
        inputs = (random(2, 21, 21), steps, A, *maps, random(21), random(21, 3))
        weights = random(2, 21, 21)
        found = []
        for function in (scan, cycle_scan_torch):
            leaves = [x.clone().requires_grad_() for x in inputs]
            y = function(*leaves)
            found.append((y, *torch.autograd.grad((y * weights).sum(), leaves)))
        pairs = zip(*found, strict=True)
        return all(
            bool((ours - theirs).abs().max() <= 1e-4 * theirs.abs().max()) for ours, theirs in pairs
        )


def cycle_scan_reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor
) -> Tensor:
    """Compute `cycle_scan` by its definition: R L sequential steps (slow; for tests)."""
    batch, length, channels = u.shape
    state = u.new_zeros(batch, channels, A.shape[1])
    total = torch.zeros_like(u)
    for weight in gamma.unbind(1):
        outputs = []
        for t in range(length):
            decay = torch.exp(delta[:, t, :, None] * A)
            state = decay * state + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
            outputs.append((state * C[:, t, None]).sum(-1) + D * u[:, t])
        total = total + weight * torch.stack(outputs, dim=1)
    return total


def cycle_gain(decay: Tensor, gamma: Tensor) -> Tensor:
    """Sum ``gamma_r (1 + P + ... + P^(r-2))`` over r >= 2, by Horner's rule.

    Parameters
    ----------
    decay : (B, N, C) float
        P, the decay over one whole pass, in (0, 1].
    gamma : (C, R) float

    Returns
    -------
    (B, N, C) float
        G / S: the extra state per unit of the first pass's last state.
    """
    gain, state = torch.zeros_like(decay), torch.zeros_like(decay)
    for weight in gamma.unbind(1):
        gain = gain + weight * state
        state = decay * state + 1.0
    return gain


def chunk_length(length: int) -> int:
    """Tokens per chunk: near the square root, so both loops are short; a power of two."""
    return 1 << max(0, (max(length, 1).bit_length() - 1) // 2)


def cycle_scan_torch(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor
) -> Tensor:
    """Compute `cycle_scan` in one pass, chunked: all chunks advance together, one token a step.

    A first sweep finds the state at the end of every chunk from zero, a short loop carries it
    over the chunks, a second sweep started from the right states writes the outputs. The state
    axis comes before the channels so that the sum over states runs along contiguous vectors.
    """
    length = u.shape[1]
    chunk = chunk_length(length)
    num_chunks = -(-length // chunk)
    spare = num_chunks * chunk - length

    def by_step(x: Tensor) -> Tensor:
        # (B, L, X) -> (T, B, K, X); steps behind the end have delta 0 and leave the state alone.
        x = F.pad(x, (0, 0, 0, spare)).unflatten(1, (num_chunks, chunk))
        return x.permute(2, 0, 1, 3).contiguous()

    total_gamma = gamma.sum(1)
    A_t = A.t().contiguous()  # (N, C)
    step_delta = by_step(delta)
    step_input = by_step(delta * u)
    step_B, step_C = by_step(B).unsqueeze(-1), by_step(C).unsqueeze(-1)  # (T, B, K, N, 1)

    keep = torch.is_grad_enabled()
    decays: list[Tensor] = []
    state = u.new_zeros(u.shape[0], num_chunks, *A_t.shape)
    for t in range(chunk):
        decay = torch.exp(step_delta[t].unsqueeze(-2) * A_t)
        if keep:
            decays.append(decay)
        state = torch.addcmul(step_B[t] * step_input[t].unsqueeze(-2), decay, state)

    chunk_decay = torch.exp(step_delta.sum(0).unsqueeze(-2) * A_t)
    entry = _carry(state, chunk_decay, gamma, total_gamma)
    step_input = step_input * total_gamma
    outputs = []
    for t in range(chunk):
        decay = decays[t] if keep else torch.exp(step_delta[t].unsqueeze(-2) * A_t)
        entry = torch.addcmul(step_B[t] * step_input[t].unsqueeze(-2), decay, entry)
        outputs.append((entry * step_C[t]).sum(-2))
    y = torch.stack(outputs, dim=2).flatten(1, 2)[:, :length]  # (B, K, T, C) -> (B, L, C)
    return y + (total_gamma * D) * u


def _carry(last: Tensor, decay: Tensor, gamma: Tensor, total_gamma: Tensor) -> Tensor:
    """Compute the states that enter each chunk, from the chunks' own last states and decays.

    All are (B, K, N, C); the result belongs to the scan of Gamma u started from G.
    """
    plain, before = [torch.zeros_like(last[:, 0])], [torch.ones_like(decay[:, 0])]
    for k in range(last.shape[1]):
        plain.append(torch.addcmul(last[:, k], decay[:, k], plain[-1]))
        before.append(before[-1] * decay[:, k])
    gain = plain[-1] * cycle_gain(before[-1], gamma)
    entry = total_gamma * torch.stack(plain[:-1], 1)
    return torch.addcmul(entry, torch.stack(before[:-1], 1), gain[:, None])
