"""Windowed attention with KV-only padding: the one attention call of the encoders.

A map of H x W tokens is cut into windows of ``window`` x ``window`` cells. A shift is realised by
``window - shift`` padding cells on the top and left, never by rolling, and the remaining cells of
border windows are padding too. All padding cells hold one learned token, which is present in the
keys and values only: a query never meets another query, so leaving the padding out of the queries
changes no number and saves their cost (HRSAM v2, "KV-only padding").

Windows are grouped by their number of real rows and columns, at most three classes each, so that
at most nine plain ``scaled_dot_product_attention`` calls do the work on any device and dtype, and
every gather is a slice.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_hrsam._optional import require
from napari_hrsam.errors import ConfigError, MissingExtraError
from napari_hrsam.modeling.layers import rotary_frequencies, rotary_phases, rotate

if TYPE_CHECKING:
    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

AttentionBackend = Literal["auto", "xformers", "triton", "sdpa", "reference"]
ATTENTION_BACKENDS: tuple[AttentionBackend, ...] = (
    "auto",
    "xformers",
    "triton",
    "sdpa",
    "reference",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Segment:
    """A run of window rows (or columns) that hold the same number of real cells.

    Attributes
    ----------
    first_window, num_windows : int
        Window rows ``first_window .. first_window + num_windows``.
    start, size : int
        The real cells ``start .. start + num_windows * size``, ``size`` in every window.
    """

    first_window: int
    num_windows: int
    start: int
    size: int


def leading_padding(size_hw: tuple[int, int], window: int, shift: int, shift_small: bool) -> int:
    """Count the padding cells on the top and left: ``(window - shift) % window``.

    Parameters
    ----------
    size_hw : tuple of int
        Map size in tokens.
    window, shift : int
        Window side and shift in tokens; 0 is a plain block.
    shift_small : bool
        False leaves a map unshifted that fits in one window (the later code of the authors).
    """
    if not shift_small and max(size_hw) <= window:
        return 0
    return (window - shift) % window


@lru_cache(maxsize=256)
def segments(size: int, window: int, padding: int) -> tuple[Segment, ...]:
    """Split ``size`` real cells behind ``padding`` leading cells into runs of equal windows."""
    counts = []
    for first in range(0, padding + size, window):
        begin = max(first, padding)
        counts.append((begin - padding, min(first + window, padding + size) - begin))
    runs: list[Segment] = []
    for index, (start, count) in enumerate(counts):
        if runs and runs[-1].size == count:
            last = runs.pop()
            runs.append(
                Segment(
                    first_window=last.first_window,
                    num_windows=last.num_windows + 1,
                    start=last.start,
                    size=count,
                )
            )
        else:
            runs.append(Segment(first_window=index, num_windows=1, start=start, size=count))
    return tuple(runs)


@dataclass(frozen=True, kw_only=True, slots=True)
class WindowIndices:
    """Index lists of one map for a block-diagonal attention kernel.

    Attributes
    ----------
    query : (L,) int64
        Tokens in the order of the windows.
    key : (num_windows * window**2,) int64
        Tokens of every cell of every window; L stands for the padding token.
    inverse : (L,) int64
        Puts the attention output back in token order.
    query_lengths, key_lengths : (num_windows,) int64
        Real cells and all cells of each window.
    cell : (num_windows * window**2,) int64
        Row-major position of every cell in the padded grid.
    padded_hw : tuple of int
        Size of the padded grid.
    """

    query: NDArray[np.int64]
    key: NDArray[np.int64]
    inverse: NDArray[np.int64]
    query_lengths: NDArray[np.int64]
    key_lengths: NDArray[np.int64]
    cell: NDArray[np.int64]
    padded_hw: tuple[int, int]


@lru_cache(maxsize=64)
def window_indices(size_hw: tuple[int, int], window: int, padding: int) -> WindowIndices:
    """Index lists of an H x W map cut into windows behind ``padding`` leading cells.

    Parameters
    ----------
    size_hw : tuple of int
        Map size in tokens.
    window : int
        Window side in tokens.
    padding : int
        Leading padding cells, from `leading_padding`.

    Returns
    -------
    WindowIndices
        Read-only numpy arrays; the caller moves them to its device.
    """
    height, width = size_hw
    num_h, num_w = -(-(padding + height) // window), -(-(padding + width) // window)
    padded_hw = (num_h * window, num_w * window)
    grid = np.full(padded_hw, height * width, dtype=np.int64)
    tokens = np.arange(height * width).reshape(height, width)
    grid[padding : padding + height, padding : padding + width] = tokens
    cells = np.arange(grid.size).reshape(padded_hw)

    def by_window(a: NDArray[np.int64]) -> NDArray[np.int64]:
        return a.reshape(num_h, window, num_w, window).transpose(0, 2, 1, 3).reshape(-1)

    key, cell = by_window(grid), by_window(cells)
    real = key < height * width
    lengths = real.reshape(num_h * num_w, -1).sum(1)
    query = key[real]
    arrays = (query, key, np.argsort(query), lengths, np.full_like(lengths, window**2), cell)
    for array in arrays:
        array.setflags(write=False)
    return WindowIndices(
        query=arrays[0],
        key=arrays[1],
        inverse=arrays[2],
        query_lengths=arrays[3],
        key_lengths=arrays[4],
        cell=arrays[5],
        padded_hw=padded_hw,
    )


def window_attention(
    qkv: Tensor,
    pad_kv: Tensor,
    freqs: Tensor,
    *,
    window: int,
    padding: int,
    backend: AttentionBackend = "auto",
) -> Tensor:
    """Attention inside the windows of one map, padding tokens in the keys and values only.

    Parameters
    ----------
    qkv : (B, H, W, 3, heads, d) float
        Projected real tokens.
    pad_kv : (2, heads, d) float
        Projected padding token, key and value.
    freqs : (d / 4,) float
        Rotary frequencies.
    window : int
        Window side in tokens.
    padding : int
        Leading padding cells on the top and left.
    backend : {"auto", "xformers", "triton", "sdpa", "reference"}
        "auto" takes xformers on CUDA when it is installed and agrees with SDPA, else our Triton
        kernel when it does and numbers are of 16 bits, else SDPA. The Triton kernel has no
        gradient: where one is wanted, and for heads it does not take, "triton" is SDPA.

    Returns
    -------
    (B, H, W, heads, d) float

    Raises
    ------
    ConfigError
        If ``backend`` is none of these, or cannot run on this device.
    MissingExtraError
        If the backend's package was asked for and is not installed.

    References
    ----------
    Huang et al., "HRSAM", arXiv 2407.02109 (Flash Swin attention).
    """
    match backend:
        case "auto":
            chosen = _auto_windows(qkv)
        case "xformers":
            chosen = _xformers_windows
        case "triton":
            if not qkv.is_cuda:
                raise ConfigError(
                    f"attention backend 'triton' runs on cuda, got {qkv.device.type}; "
                    "use backend 'sdpa'"
                )
            chosen = _triton_windows
        case "sdpa":
            chosen = _sdpa_windows
        case "reference":
            chosen = _reference_windows
        case _:
            raise ConfigError(
                f"attention backend must be one of {', '.join(ATTENTION_BACKENDS)}, got {backend!r}"
            )
    return chosen(qkv, pad_kv, freqs, window, padding)


def _auto_windows(qkv: Tensor) -> Callable[[Tensor, Tensor, Tensor, int, int], Tensor]:
    if qkv.is_cuda and xformers_ready():
        return _xformers_windows
    is_half = qkv.dtype in (torch.bfloat16, torch.float16)
    if qkv.is_cuda and is_half and not torch.is_grad_enabled() and triton_attention_ready():
        return _triton_windows
    return _sdpa_windows


def _padded(real: Tensor, pad: Tensor, padded_hw: tuple[int, int], padding: int) -> Tensor:
    """Place (B, H, W, heads, d) into a grid filled with the padding token (heads, d)."""
    batch, height, width = real.shape[:3]
    if padding == 0 and padded_hw == (height, width):
        return real
    grid = pad.to(real.dtype).expand(batch, *padded_hw, *pad.shape).clone()
    grid[:, padding : padding + height, padding : padding + width] = real
    return grid


def _rotated(
    qkv: Tensor, pad_kv: Tensor, freqs: Tensor, window: int, padding: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Rotate the queries (B, H, W, ...) and the padded keys, pad the values."""
    height, width = qkv.shape[1:3]
    padded_hw = (
        -(-(padding + height) // window) * window,
        -(-(padding + width) // window) * window,
    )
    query, key, value = qkv.unbind(3)
    phases = rotary_phases(padded_hw, freqs)
    query = rotate(query, phases[padding : padding + height, padding : padding + width])
    key = rotate(_padded(key, pad_kv[0], padded_hw, padding), phases)
    return query, key, _padded(value, pad_kv[1], padded_hw, padding)


def _windows(x: Tensor, rows: Segment, cols: Segment) -> Tensor:
    """Cut (B, n_r s_r, n_c s_c, heads, d) into (B n_r n_c, heads, s_r s_c, d)."""
    batch, _, _, heads, dim = x.shape
    x = x.reshape(batch, rows.num_windows, rows.size, cols.num_windows, cols.size, heads, dim)
    x = x.permute(0, 1, 3, 5, 2, 4, 6)
    return x.reshape(-1, heads, rows.size * cols.size, dim)


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Softmax attention of (windows, heads, n, d); a window holds a few hundred keys at most."""
    if query.dtype == torch.bfloat16 and not query.is_cuda:
        # The fused CPU kernel's bfloat16 backward is much slower than plain products.
        weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
        return weights @ value
    return F.scaled_dot_product_attention(query, key, value)


def _sdpa_windows(qkv: Tensor, pad_kv: Tensor, freqs: Tensor, window: int, padding: int) -> Tensor:
    batch, height, width, _, heads, dim = qkv.shape
    query, key, value = _rotated(qkv, pad_kv, freqs, window, padding)
    bands = []
    for rows in segments(height, window, padding):
        band = []
        for cols in segments(width, window, padding):
            q = query[
                :,
                rows.start : rows.start + rows.num_windows * rows.size,
                cols.start : cols.start + cols.num_windows * cols.size,
            ]
            full_rows = Segment(first_window=0, num_windows=rows.num_windows, start=0, size=window)
            full_cols = Segment(first_window=0, num_windows=cols.num_windows, start=0, size=window)
            top, left = rows.first_window * window, cols.first_window * window
            area = (
                slice(None),
                slice(top, top + rows.num_windows * window),
                slice(left, left + cols.num_windows * window),
            )
            out = _attend(
                _windows(q, rows, cols),
                _windows(key[area], full_rows, full_cols),
                _windows(value[area], full_rows, full_cols),
            )
            out = out.reshape(
                batch, rows.num_windows, cols.num_windows, heads, rows.size, cols.size, dim
            )
            band.append(out.permute(0, 1, 4, 2, 5, 3, 6).reshape(*q.shape))
        bands.append(torch.cat(band, dim=2) if len(band) > 1 else band[0])
    return torch.cat(bands, dim=1) if len(bands) > 1 else bands[0]


def _reference_windows(
    qkv: Tensor, pad_kv: Tensor, freqs: Tensor, window: int, padding: int
) -> Tensor:
    """Version 1 of the authors: padding tokens in the queries too, dense softmax per window."""
    batch, height, width, _, heads, dim = qkv.shape
    query, key, value = _rotated(qkv, pad_kv, freqs, window, padding)
    padded_hw = (key.shape[1], key.shape[2])
    query = _padded(query, torch.zeros_like(pad_kv[0]), padded_hw, padding)
    rows = Segment(first_window=0, num_windows=padded_hw[0] // window, start=0, size=window)
    cols = Segment(first_window=0, num_windows=padded_hw[1] // window, start=0, size=window)
    q, k, v = (_windows(x, rows, cols) for x in (query, key, value))
    weights = torch.softmax(q @ k.transpose(-1, -2) * dim**-0.5, dim=-1)
    out = (weights @ v).reshape(
        batch, rows.num_windows, cols.num_windows, heads, window, window, dim
    )
    out = out.permute(0, 1, 4, 2, 5, 3, 6).reshape(batch, *padded_hw, heads, dim)
    return out[:, padding : padding + height, padding : padding + width]


def _xformers_windows(
    qkv: Tensor, pad_kv: Tensor, freqs: Tensor, window: int, padding: int
) -> Tensor:
    fmha: Any = require("xformers.ops.fmha", extra="cuda")
    batch, height, width, _, heads, dim = qkv.shape
    query, key, value = _rotated(qkv, pad_kv, freqs, window, padding)
    index = window_indices((height, width), window, padding)
    q_index, cell, inverse = (
        torch.from_numpy(a.copy()).to(qkv.device) for a in (index.query, index.cell, index.inverse)
    )
    q = query.reshape(batch, -1, heads, dim)[:, q_index].reshape(1, -1, heads, dim)
    k, v = (
        x.reshape(batch, -1, heads, dim)[:, cell].reshape(1, -1, heads, dim) for x in (key, value)
    )
    bias = fmha.attn_bias.BlockDiagonalMask.from_seqlens(
        index.query_lengths.tolist() * batch, index.key_lengths.tolist() * batch
    )
    out: Tensor = fmha.memory_efficient_attention(q, k, v.to(q.dtype), attn_bias=bias)
    return out.reshape(batch, -1, heads, dim)[:, inverse].reshape(batch, height, width, heads, dim)


def _triton_windows(
    qkv: Tensor, pad_kv: Tensor, freqs: Tensor, window: int, padding: int
) -> Tensor:
    kernel: Any = require("napari_hrsam.modeling.attention_triton", extra="cuda")
    wants_gradient = torch.is_grad_enabled() and (qkv.requires_grad or pad_kv.requires_grad)
    if wants_gradient or not kernel.can_attend(qkv):
        return _sdpa_windows(qkv, pad_kv, freqs, window, padding)
    out: Tensor = kernel.windows(qkv, pad_kv, freqs, window, padding)
    return out


@lru_cache(maxsize=1)
def triton_attention_ready() -> bool:
    """Whether the Triton kernel runs and agrees with SDPA on this machine's GPU.

    The check runs once per process; a wrong or failing kernel is logged and SDPA is used.
    """
    if not torch.cuda.is_available():
        return False
    try:
        kernel: Any = require("napari_hrsam.modeling.attention_triton", extra="cuda")
    except MissingExtraError:
        return False
    generator = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(1, 19, 11, 3, 2, 32, device="cuda", generator=generator)
    pad = torch.randn(2, 2, 32, device="cuda", generator=generator)
    freqs = rotary_frequencies(32).to("cuda")
    expected = _sdpa_windows(qkv, pad, freqs, 8, 4)
    half = torch.bfloat16
    try:
        fast = kernel.windows(qkv.to(half), pad.to(half), freqs, 8, 4)
    except (*kernel.ERRORS, RuntimeError, TypeError, ValueError, OSError) as error:
        logger.warning("Triton is installed but does not run here (%s); using SDPA", error)
        return False
    agrees = bool((fast.float() - expected).norm() <= 2e-2 * expected.norm())
    if not agrees:
        logger.warning("Triton's attention disagrees with SDPA on this machine; using SDPA")
    return agrees


@lru_cache(maxsize=1)
def xformers_ready() -> bool:
    """Whether xformers can be imported and agrees with SDPA on this machine's GPU.

    The check runs once per process; a wrong or failing kernel is logged and SDPA is used.
    """
    if not torch.cuda.is_available():
        return False
    try:
        require("xformers.ops.fmha", extra="cuda")
    except ImportError:
        return False
    generator = torch.Generator("cuda").manual_seed(0)
    qkv = torch.randn(1, 9, 11, 3, 2, 32, device="cuda", generator=generator)
    pad = torch.randn(2, 2, 32, device="cuda", generator=generator)
    freqs = torch.ones(8, device="cuda")
    try:
        fast = _xformers_windows(qkv, pad, freqs, 8, 4)
    # NotImplementedError: none of its kernels takes this GPU or these shapes.
    except (RuntimeError, NotImplementedError, ValueError) as error:
        logger.warning("xformers is installed but does not run here (%s); using SDPA", error)
        return False
    agrees = torch.allclose(fast, _sdpa_windows(qkv, pad, freqs, 8, 4), atol=1e-2)
    if not agrees:
        logger.warning("xformers disagrees with SDPA on this machine; using SDPA")
    return agrees
