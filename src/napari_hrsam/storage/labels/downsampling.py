"""Coarser levels of a label image: the majority of the labels that are not background.

Background does not vote, so a thin object never vanishes from a coarser level. Of two labels with
the same number of pixels the smaller one wins: the result depends on the labels alone, not on the
order in which they were drawn.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError


@dataclass(frozen=True, slots=True)
class AxisRatio:
    """How the pixels of one axis fall on the pixels of the next coarser level.

    Every fine pixel belongs to exactly one coarse pixel. Where the sizes fit a whole factor (with
    a part of a block at the end, which is a pixel of its own or belongs to the last one), pixel
    ``i`` covers ``factor`` fine pixels from ``i * factor``; else the axis is cut evenly.

    Attributes
    ----------
    fine, coarse : int
        Numbers of pixels, ``fine >= coarse >= 1``.

    Raises
    ------
    LabelsError
        If the coarser level is larger.
    """

    fine: int
    coarse: int

    def __post_init__(self) -> None:
        """Check the sizes."""
        if not 1 <= self.coarse <= self.fine:
            raise LabelsError(
                f"expected levels that shrink from one to the next, got {self.fine} and then "
                f"{self.coarse} pixels along one axis; write the label image again"
            )

    @property
    def factor(self) -> int:
        """Fine pixels per coarse pixel, 0 if that is no whole number."""
        factor = round(self.fine / self.coarse)
        return factor if self.fine // factor <= self.coarse <= -(-self.fine // factor) else 0

    def edges(self, start: int, stop: int) -> NDArray[np.int64]:
        """Return the first fine pixel of each coarse pixel start..stop (one more than pixels)."""
        places = np.arange(start, stop + 1, dtype=np.int64)
        edges = places * self.factor if self.factor else places * self.fine // self.coarse
        return np.where(places == self.coarse, self.fine, edges)

    def covering(self, start: int, stop: int) -> tuple[int, int]:
        """Return the coarse pixels (start, stop) on which the fine pixels start..stop fall."""
        if self.factor:
            first, last = start // self.factor, (stop - 1) // self.factor
        else:
            first = ((start + 1) * self.coarse - 1) // self.fine
            last = (stop * self.coarse - 1) // self.fine
        return min(first, self.coarse - 1), min(last, self.coarse - 1) + 1


def majority(
    labels: NDArray[Any], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[Any]:
    """Take the most frequent label that is not 0 in each block, 0 where there is none.

    Parameters
    ----------
    labels : (H, W) integer
        Fine labels.
    rows, columns : (h + 1,) and (w + 1,) int
        Edges of the blocks, from `AxisRatio.edges`, less the place of ``labels``; rising.

    Returns
    -------
    (h, w), dtype of the labels
    """
    whole = np.ascontiguousarray(labels).view(f"{labels.dtype.byteorder}u{labels.itemsize}")
    height, width = _longest(rows), _longest(columns)
    # One pixel of nothing at the end stands for what a block lacks: it has no vote.
    if not (_even(rows) and _even(columns)):
        padded = np.pad(whole, ((0, 1), (0, 1)))
        whole = padded[np.ix_(_places(rows, height), _places(columns, width))]
    one = whole.dtype.type(1)
    # Less one, background is the highest number, so that the minimum is over the others.
    low = _reduced(np.minimum, whole - one, height, width) + one
    high = _reduced(np.maximum, whole, height, width)
    y, x = np.nonzero((low != high) & (high != 0))
    if y.size:
        blocks = whole.reshape(high.shape[0], height, high.shape[1], width)
        high[y, x] = _most_frequent(blocks[y, :, x].reshape(y.size, -1))
    result: NDArray[Any] = high.view(labels.dtype)
    return result


def occur(
    coarse: NDArray[Any],
    labels: NDArray[Any],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Tell which coarse labels are among the fine ones of their blocks, or next to these.

    That is so whichever of them a program picks, or votes for.

    Parameters
    ----------
    coarse : (h, w) integer
        The coarser level.
    labels, rows, columns
        As in `majority`.

    Returns
    -------
    (h, w) bool
    """
    found = np.zeros(coarse.shape, np.bool_)
    # One pixel around, because programs round the places that they pick in their own ways.
    for y in _shifts(rows, labels.shape[0]):
        for x in _shifts(columns, labels.shape[1]):
            found |= labels[np.ix_(y, x)] == coarse
    return found


def _shifts(edges: NDArray[np.int64], size: int) -> Iterator[NDArray[np.int64]]:
    """Go through the pixels of all blocks, and one before and after them, at the same time."""
    for offset in range(-1, _longest(edges) + 1):
        yield np.clip(np.minimum(edges[:-1] + offset, edges[1:]), 0, size - 1)


def any_set(
    mask: NDArray[np.bool_], rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Tell which blocks hold a True pixel: the `majority` of one object and background.

    Parameters
    ----------
    mask : (H, W) bool
        Where the object is.
    rows, columns : (h + 1,) and (w + 1,) int
        As in `majority`; they start at 0.

    Returns
    -------
    (h, w) bool
    """
    if not (_even(rows) and _even(columns)):
        found = np.logical_or.reduceat(mask, rows[:-1], axis=0)
        return np.asarray(np.logical_or.reduceat(found, columns[:-1], axis=1))
    reduced: NDArray[np.bool_] = _reduced(
        np.logical_or, mask, int(rows[1] - rows[0]), int(columns[1] - columns[0])
    )
    return reduced


def _longest(edges: NDArray[np.int64]) -> int:
    return int(np.diff(edges).max())


def _even(edges: NDArray[np.int64]) -> bool:
    return bool((np.diff(edges) == edges[1] - edges[0]).all())


def _places(edges: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Index of ``length`` pixels per block; -1, the pixel of nothing, for what a block lacks."""
    places = edges[:-1, np.newaxis] + np.arange(length)
    return np.where(places < edges[1:, np.newaxis], places, -1).ravel()


def _reduced(function: np.ufunc, whole: NDArray[Any], height: int, width: int) -> NDArray[Any]:
    """Reduce blocks of height x width with a function such as numpy.maximum."""
    # Rows first: they lie together in memory, which is faster.
    rows = whole[::height].copy()
    for offset in range(1, height):
        function(rows, whole[offset::height], out=rows)
    columns = rows[:, ::width].copy()
    for offset in range(1, width):
        function(columns, rows[:, offset::width], out=columns)
    return columns


def _most_frequent(blocks: NDArray[Any]) -> NDArray[Any]:
    """Return the most frequent number above 0 of each row of (N, K), the smaller one of equals."""
    blocks = np.sort(blocks, axis=1)
    best = np.zeros(len(blocks), blocks.dtype)
    run, longest = np.zeros((2, len(blocks)), np.int64)
    last = best
    for value in blocks.T:
        run = np.where(value == last, run + 1, 1) * (value != 0)
        is_longer = run > longest
        best = np.where(is_longer, value, best)
        longest = np.where(is_longer, run, longest)
        last = value
    return best
