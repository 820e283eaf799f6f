"""Random fields that look the same from every level and chunk.

A field is a quadratic B-spline over a lattice of hashed numbers. A pixel of level k is the exact
mean of the field over its 2^k x 2^k block, so levels agree; cells smaller than a pixel average
out and are left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box

Wave = tuple[int, int, float]
"""(cell height, cell width, amplitude): a field's cells in level-0 pixels, powers of two."""


def hashed(values: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Scatter 32-bit numbers evenly over the 32-bit numbers."""
    mixed = values ^ (values >> np.uint32(16))
    mixed *= np.uint32(0x7FEB352D)
    mixed ^= mixed >> np.uint32(15)
    mixed *= np.uint32(0x846CA68B)
    mixed ^= mixed >> np.uint32(16)
    return mixed


def lattice(seed: int, rows: NDArray[np.int64], columns: NDArray[np.int64]) -> NDArray[np.float32]:
    """Hash places to (len(rows), len(columns)) numbers in [-1, 1)."""
    start = hashed(np.array([seed], np.uint32))
    by_row = hashed(rows.astype(np.uint32) * np.uint32(0x9E3779B1) + start)
    by_column = columns.astype(np.uint32) * np.uint32(0x85EBCA77)
    numbers = hashed(by_row[:, np.newaxis] ^ by_column)
    return numbers.astype(np.float32) * np.float32(2.0**-31) - np.float32(1)


def field(seed: int, wave: Wave, box: Box, level: int) -> NDArray[np.float32] | None:
    """Evaluate one field over a box of a level.

    Parameters
    ----------
    seed : int
        Another one gives another field.
    wave : (int, int, float)
        Cell height and width in level-0 pixels (powers of two), and amplitude.
    box : Box
        In pixels of the level.
    level : int

    Returns
    -------
    (box.height, box.width) float32 within [-amplitude, amplitude], or None where a cell is
    smaller than a pixel
    """
    height, width, amplitude = wave
    if min(height, width) >> level == 0:
        return None
    rows, row_index, row_weights = _axis(box.y0, box.y1, height >> level)
    columns, column_index, column_weights = _axis(box.x0, box.x1, width >> level)
    values = lattice(seed, rows, columns) * np.float32(amplitude)
    # Whole rows are gathered both times: much faster than columns.
    along_x = _spread(np.ascontiguousarray(values.T), column_index, column_weights)
    return _spread(np.ascontiguousarray(along_x.T), row_index, row_weights)


def fields(
    seed: int, waves: Sequence[Wave], box: Box, level: int
) -> NDArray[np.float32] | np.float32:
    """Sum several fields over a box of a level; 0 where none is coarse enough."""
    total: NDArray[np.float32] | None = None
    for number, wave in enumerate(waves):
        values = field(seed * 64 + number, wave, box, level)
        if values is not None:
            total = values if total is None else np.add(total, values, out=total)
    return np.float32(0) if total is None else total


def _axis(
    start: int, stop: int, cell: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32]]:
    """Lattice places along an axis, the first of each pixel's three, and their weights (N, 3)."""
    pixels = np.arange(start, stop)
    cells = pixels // cell
    first, last = int(cells[0]), int(cells[-1])
    low = (pixels - cells * cell) / cell
    high = low + 1 / cell
    weights = np.empty((len(pixels), 3), np.float32)
    # Integrals of (1 - t)^2 / 2 and t^2 / 2 over the pixel.
    weights[:, 0] = ((1 - low) ** 3 - (1 - high) ** 3) * (cell / 6)
    weights[:, 2] = (high**3 - low**3) * (cell / 6)
    weights[:, 1] = 1 - weights[:, 0] - weights[:, 2]
    return np.arange(first - 1, last + 2), cells - first, weights


def _spread(
    values: NDArray[np.float32], index: NDArray[np.int64], weights: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Interpolate rows of values: (L, M) to (N, M)."""
    total = values[index]
    total *= weights[:, :1]
    for step in (1, 2):
        part = values[index + step]
        part *= weights[:, step : step + 1]
        total += part
    return total
