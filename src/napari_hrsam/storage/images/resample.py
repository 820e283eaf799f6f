"""Averaging and enlarging of (height, width, channels) pixels."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def block_mean(values: NDArray[Any], factor_yx: tuple[int, int]) -> NDArray[Any]:
    """Average (H, W, C) over blocks of whole pixels; blocks at the end may be cut."""
    if factor_yx == (1, 1):
        return values
    height, width = values.shape[:2]
    rows, columns = np.arange(0, height, factor_yx[0]), np.arange(0, width, factor_yx[1])
    sums = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
    heights = np.minimum(factor_yx[0], height - rows).astype(values.dtype)
    widths = np.minimum(factor_yx[1], width - columns).astype(values.dtype)
    mean: NDArray[Any] = sums / (heights[:, np.newaxis] * widths)[..., np.newaxis]
    return mean


def finite_block_mean(values: NDArray[Any], factor: int) -> NDArray[Any]:
    """Average the finite pixels of (H, W, C) over square blocks; NaN where there is none."""
    finite = np.isfinite(values)
    if finite.all():
        return block_mean(values, (factor, factor))
    sums = block_mean(np.where(finite, values, 0), (factor, factor))
    shares = block_mean(finite.astype(values.dtype), (factor, factor))
    mean: NDArray[Any] = np.divide(sums, shares, where=shares > 0, out=np.full_like(sums, np.nan))
    return mean


def area_mean(
    values: NDArray[np.float32], axis: int, edges: NDArray[np.float64]
) -> NDArray[np.float32]:
    """Average along one axis over stretches that need not start or end at whole pixels.

    Parameters
    ----------
    values : (H, W, C) float
    axis : 0 or 1
    edges : (N, 2) float
        Start and end of each stretch in pixel edges of `values`, ends after starts.

    Returns
    -------
    (N, W, C) or (H, N, C) float32
    """
    moved = np.moveaxis(values, axis, 0).astype(np.float64)
    integral = np.concatenate([np.zeros((1, *moved.shape[1:])), np.cumsum(moved, axis=0)])
    whole = np.minimum(np.floor(edges).astype(np.intp), len(moved) - 1)
    part = (edges - whole)[..., np.newaxis, np.newaxis]
    at_edges = integral[whole] + part * moved[whole]
    lengths = (edges[:, 1] - edges[:, 0])[:, np.newaxis, np.newaxis]
    mean = (at_edges[:, 1] - at_edges[:, 0]) / lengths
    return np.moveaxis(mean, 0, axis).astype(np.float32)


def enlarge(
    values: NDArray[np.float32], axis: int, factor: int, start: int, length: int
) -> NDArray[np.float32]:
    """Enlarge ``length`` pixels from ``start`` bilinearly along one axis, clamped at the ends."""
    places = (np.arange(length * factor) + 0.5) / factor - 0.5 + start
    places = np.clip(places, 0, values.shape[axis] - 1)
    low = np.floor(places).astype(np.intp)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    share = (places - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    enlarged: NDArray[np.float32] = (
        np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    )
    return enlarged
