"""The rotary embedding, written out."""

from __future__ import annotations

import math

import torch


def rotated_by_definition(x: torch.Tensor, row: int, col: int) -> torch.Tensor:
    """Rotate one head (d,) at a cell: y[2k] = x[2k] cos a + x[2k+1] sin a, and so on."""
    dim = len(x)
    half, out = dim // 2, torch.empty_like(x)
    for first, index in ((0, row), (half, col)):
        for k in range(half // 2):
            angle = 0.5 * index * 10000 ** (-2 * k / half)
            a, b = x[first + 2 * k], x[first + 2 * k + 1]
            out[first + 2 * k] = a * math.cos(angle) + b * math.sin(angle)
            out[first + 2 * k + 1] = b * math.cos(angle) - a * math.sin(angle)
    return out
