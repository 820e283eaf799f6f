"""Window attention on CUDA in one Triton kernel, without gradients.

Rotation, padding tokens, cutting into windows and attention are one launch that reads the projected
tokens where they lie; `attention` says what it computes. One program holds 64 cells of one window
as queries, for one head, and walks over the window's keys; blocks of padding cells do nothing.
"""

from __future__ import annotations

from contextlib import nullcontext
from subprocess import SubprocessError
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.errors import TritonError

# What compiling or running a kernel may raise besides Python's own errors.
ERRORS: tuple[type[Exception], ...] = (TritonError, SubprocessError)

# Cells of a tile; in float32 fewer, for the registers.
_HALF_TILE, _FULL_TILE = 64, 32


@triton.jit  # type: ignore[untyped-decorator]
def _rotated(
    base: tl.tensor,
    pad: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    place: tl.tensor,
    is_real: tl.tensor,
    row: tl.tensor,
    col: tl.tensor,
    DIM: tl.constexpr,
    HAS_PAD: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """Load cells and rotate their channel pairs: even and odd channels (cells, DIM / 2)."""
    pair = tl.arange(0, DIM // 2)
    there = is_real[:, None] & (pair >= 0)[None, :]
    cell = place[:, None] + 2 * pair[None, :]
    even = tl.load(base + cell, mask=there, other=0.0).to(tl.float32)
    odd = tl.load(base + cell + 1, mask=there, other=0.0).to(tl.float32)
    if HAS_PAD:
        even = tl.where(there, even, tl.load(pad + 2 * pair).to(tl.float32)[None, :])
        odd = tl.where(there, odd, tl.load(pad + 2 * pair + 1).to(tl.float32)[None, :])
    of_row = (pair < DIM // 4)[None, :]
    phase = tl.where(of_row, row[:, None], col[:, None]) * (DIM // 4) + (pair % (DIM // 4))[None, :]
    cos, sin = tl.load(cosines + phase), tl.load(sines + phase)
    return even * cos + odd * sin, odd * cos - even * sin


@triton.jit  # type: ignore[untyped-decorator]
def _attend(
    qkv: tl.tensor,
    pad_kv: tl.tensor,
    cosines: tl.tensor,
    sines: tl.tensor,
    out: tl.tensor,
    height: tl.tensor,
    width: tl.tensor,
    windows_down: tl.tensor,
    windows_across: tl.tensor,
    padding: tl.tensor,
    scale: tl.tensor,
    WINDOW: tl.constexpr,
    HEADS: tl.constexpr,
    DIM: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
) -> None:
    """Attend from up to QUERIES cells of one window, for one head."""
    head = tl.program_id(1)
    index = tl.program_id(2)
    across = index % windows_across
    down = (index // windows_across) % windows_down
    sample = (index // (windows_across * windows_down)).to(tl.int64)
    token = 3 * HEADS * DIM
    base = qkv + sample * height * width * token + head * DIM

    cell = tl.program_id(0) * QUERIES + tl.arange(0, QUERIES)
    row, col = down * WINDOW + cell // WINDOW, across * WINDOW + cell % WINDOW
    y, x = row - padding, col - padding
    row = tl.where(cell < WINDOW * WINDOW, row, 0)
    is_query = (cell < WINDOW * WINDOW) & (y >= 0) & (y < height) & (x >= 0) & (x < width)
    if tl.max(is_query.to(tl.int32), axis=0) > 0:
        kind = qkv.dtype.element_ty
        place = (y * width + x) * token
        even, odd = _rotated(base, pad_kv, cosines, sines, place, is_query, row, col, DIM, False)
        even, odd = (even * scale).to(kind), (odd * scale).to(kind)
        channel = tl.arange(0, DIM)
        value_pad = tl.load(pad_kv + (HEADS + head) * DIM + channel)
        best = tl.full((QUERIES,), -float("inf"), tl.float32)
        total = tl.zeros((QUERIES,), tl.float32)
        found = tl.zeros((QUERIES, DIM), tl.float32)
        for first in range(0, WINDOW * WINDOW, KEYS):
            at = first + tl.arange(0, KEYS)
            key_row, key_col = down * WINDOW + at // WINDOW, across * WINDOW + at % WINDOW
            key_y, key_x = key_row - padding, key_col - padding
            is_real = (key_y >= 0) & (key_y < height) & (key_x >= 0) & (key_x < width)
            is_real = is_real & (at < WINDOW * WINDOW)
            # Behind the last cell of the window there is no row of the table.
            key_row = tl.where(at < WINDOW * WINDOW, key_row, 0)
            key_place = (key_y * width + key_x) * token
            key_even, key_odd = _rotated(
                base + HEADS * DIM,
                pad_kv + head * DIM,
                cosines,
                sines,
                key_place,
                is_real,
                key_row,
                key_col,
                DIM,
                True,
            )
            scores = tl.dot(even, tl.trans(key_even.to(kind)), input_precision="ieee")
            scores += tl.dot(odd, tl.trans(key_odd.to(kind)), input_precision="ieee")
            scores = tl.where((at < WINDOW * WINDOW)[None, :], scores, -float("inf"))
            higher = tl.maximum(best, tl.max(scores, axis=1))
            weights = tl.exp2(scores - higher[:, None])
            fade = tl.exp2(best - higher)
            there = is_real[:, None] & (channel >= 0)[None, :]
            value = tl.load(
                base + 2 * HEADS * DIM + key_place[:, None] + channel[None, :],
                mask=there,
                other=0.0,
            )
            value = tl.where(there, value, value_pad[None, :].to(kind))
            total = total * fade + tl.sum(weights, axis=1)
            found = found * fade[:, None]
            found += tl.dot(weights.to(kind), value, input_precision="ieee")
            best = higher
        found = found / total[:, None]
        spot = ((sample * height * width + y * width + x) * HEADS + head) * DIM
        wanted = is_query[:, None] & (channel >= 0)[None, :]
        tl.store(out + spot[:, None] + channel[None, :], found.to(kind), mask=wanted)


def can_attend(qkv: Tensor) -> bool:
    """Whether the kernel takes these tokens: heads of 32, 64 or 128 channels."""
    return qkv.shape[-1] in (32, 64, 128)


def windows(qkv: Tensor, pad_kv: Tensor, freqs: Tensor, window: int, padding: int) -> Tensor:
    """Compute `attention.window_attention` without gradients."""
    batch, height, width, _, heads, dim = qkv.shape
    qkv, pad_kv = qkv.detach().contiguous(), pad_kv.detach().to(qkv.dtype).contiguous()
    down, across = -(-(padding + height) // window), -(-(padding + width) // window)
    out = qkv.new_empty(batch, height, width, heads, dim)
    positions = 0.5 * torch.arange(window * max(down, across), device=qkv.device)
    angles = positions[:, None] * freqs.float()
    # Powers of two are cheaper than those of e.
    scale = 1.4426950408889634 * dim**-0.5
    on_device: Any = torch.cuda.device(qkv.device) if qkv.is_cuda else nullcontext()
    tile = _FULL_TILE if qkv.dtype == torch.float32 else _HALF_TILE
    with on_device:
        _attend[triton.cdiv(window * window, tile), heads, batch * down * across](
            *(
                qkv,
                pad_kv,
                angles.cos(),
                angles.sin(),
                out,
                height,
                width,
                down,
                across,
                padding,
                scale,
            ),
            WINDOW=window,
            HEADS=heads,
            DIM=dim,
            QUERIES=tile,
            KEYS=tile,
            num_warps=4,
        )
    return out
