"""Cycle scan on CUDA with mamba-ssm's selective scan kernel.

That kernel has no argument for an initial state, and the last state it returns carries no
gradient. Both are made good with tokens, so that the closed form of `selective_scan` stays exact
and trains with the right gradients:

* read-out tokens behind the sequence (delta 0, input 0, C a unit vector each) print the last state
  S, one entry each, as ordinary outputs;
* write-in tokens in front of it (B a unit vector each, a small fixed step) set the state to G.

The cost is two scans of L + N tokens instead of one of R L.
"""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from napari_hrsam._optional import require
from napari_hrsam.errors import MissingExtraError

logger = logging.getLogger(__name__)


def cycle_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor
) -> Tensor:
    """Compute `selective_scan.cycle_scan` with `mamba_ssm`; differentiable.

    Parameters and return value are those of `selective_scan.cycle_scan`.

    Raises
    ------
    MissingExtraError
        If mamba-ssm is not installed.
    """
    from napari_hrsam.modeling.selective_scan import cycle_gain

    kernel: Any = require("mamba_ssm.ops.selective_scan_interface", extra="cuda").selective_scan_fn
    num_states = A.shape[1]
    u, delta, B, C = (x.transpose(1, 2).contiguous() for x in (u, delta, B, C))
    unit = torch.eye(num_states, dtype=B.dtype, device=B.device).expand(len(u), -1, -1)
    none = torch.zeros_like(unit)
    idle = u.new_zeros(*u.shape[:2], num_states)

    def scan(*parts: tuple[Tensor, Tensor, Tensor, Tensor]) -> Tensor:
        inputs, steps, in_maps, out_maps = (torch.cat(x, dim=2) for x in zip(*parts, strict=True))
        out: Tensor = kernel(inputs, steps, A, in_maps, out_maps)
        return out

    last = scan((u, delta, B, C), (idle, idle, none, unit))[..., -num_states:]
    whole = torch.exp(delta.sum(2)[..., None] * A)
    total = gamma.sum(1)
    extra = last * cycle_gain(whole.transpose(1, 2), gamma).transpose(1, 2)
    # Steps small enough that no state decays by more than 1/e while the others are written.
    step = (A.detach().abs().amax(1, keepdim=True) * num_states).clamp(min=1e3).reciprocal()
    age = torch.arange(num_states - 1, -1, -1, dtype=u.dtype, device=u.device)
    writes = extra * torch.exp(-A * step * age) / step
    write_steps = step.expand(len(u), -1, num_states)
    y = scan((writes, write_steps, unit, none), (u * total[:, None], delta, B, C))[..., num_states:]
    return (y + (total * D)[:, None] * u).transpose(1, 2)


@lru_cache(maxsize=1)
def mamba_ready() -> bool:
    """Whether mamba-ssm has its compiled kernel and agrees with torch on this machine's GPU.

    mamba-ssm installs without ``selective_scan_cuda`` by default and then fails when called. The
    check runs once per process; a wrong or failing kernel is logged and torch is used.
    """
    from napari_hrsam.modeling.selective_scan import cycle_scan_torch

    if not torch.cuda.is_available():
        return False
    try:
        require("selective_scan_cuda", extra="cuda")
        require("mamba_ssm.ops.selective_scan_interface", extra="cuda")
    except MissingExtraError:
        return False
    generator = torch.Generator("cuda").manual_seed(0)
    u, delta = torch.rand(2, 1, 40, 8, device="cuda", generator=generator)
    A = -torch.rand(8, 4, device="cuda", generator=generator)
    B, C = torch.rand(2, 1, 40, 4, device="cuda", generator=generator)
    D, gamma = torch.ones(8, device="cuda"), torch.ones(8, 3, device="cuda")
    try:
        fast = cycle_scan(u, delta, A, B, C, D, gamma)
    except (RuntimeError, TypeError, ValueError) as error:
        logger.warning("mamba-ssm is installed but does not run here (%s); using torch", error)
        return False
    agrees = torch.allclose(fast, cycle_scan_torch(u, delta, A, B, C, D, gamma), rtol=1e-3)
    if not agrees:
        logger.warning("mamba-ssm disagrees with torch on this machine; using torch")
    return agrees
