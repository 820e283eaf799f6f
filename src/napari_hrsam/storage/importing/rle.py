"""COCO's run lengths, read with checks: the other way round than `export.coco` writes them."""

from __future__ import annotations

from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.importing.runs import MAX_RUNS, RunMask

_MAX_GROUPS = 12
"""Groups of five bits of one number: 60 bits."""


def mask_of(segmentation: dict[Any, Any], offset_yx: tuple[int, int]) -> tuple[RunMask, list[int]]:
    """Return the mask of run lengths, shifted, and the height and width that they are of.

    Raises
    ------
    LabelsError
        If they are none, or do not fit their size.
    """
    try:
        size = [index(side) for side in segmentation["size"]]
        height, width = size
        counts = _counts(segmentation["counts"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise LabelsError(f"run lengths that cannot be read ({error})") from error
    if min(height, width) < 1 or (counts < 0).any() or len(counts) > 2 * MAX_RUNS:
        raise LabelsError(f"run lengths that cannot be: of the size {size}, or negative")
    # A sum that runs over would look like a smaller one.
    if counts.astype(float).sum() > height * width:
        raise LabelsError(f"run lengths of more pixels than their size {size} has")
    edges = np.cumsum(counts)
    starts, stops = edges[:-1:2], edges[1::2]
    return _columns(starts[: len(stops)], stops, height, offset_yx), size


def _columns(
    starts: NDArray[np.int64], stops: NDArray[np.int64], height: int, offset_yx: tuple[int, int]
) -> RunMask:
    """Cut runs over the pixels, column after column, where columns end."""
    kept = starts < stops
    starts, stops = starts[kept], stops[kept]
    first, num = starts // height, (stops - 1) // height - starts // height + 1
    total = int(num.sum())
    if total > MAX_RUNS:
        raise LabelsError(f"run lengths over more columns than {MAX_RUNS:,}")
    run = np.repeat(np.arange(len(num)), num)
    column = np.arange(total) + np.repeat(first - (np.cumsum(num) - num), num)
    begin = np.maximum(starts[run] - column * height, 0)
    end = np.minimum(stops[run] - column * height, height)
    y, x = offset_yx
    return RunMask(column + x, begin + y, end + y, are_columns=True)


def _counts(counts: Any) -> NDArray[np.int64]:
    if isinstance(counts, list):
        numbers = np.asarray(counts)
        if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
            raise ValueError("no whole numbers")
        return numbers.astype(np.int64)
    if not isinstance(counts, str):
        raise TypeError("neither a text nor numbers")
    return uncompressed(counts)


def uncompressed(text: str) -> NDArray[np.int64]:
    """Unpack COCO's text into run lengths; see `export.coco.compressed` for the format.

    Raises
    ------
    ValueError
        If it is no such text.
    """
    groups = np.frombuffer(text.encode("ascii"), np.uint8).astype(np.int64) - 48
    if not len(groups):
        return np.zeros(0, np.int64)
    if groups.min() < 0 or groups.max() > 63 or groups[-1] & 32:
        raise ValueError("a text that is no compressed run lengths")
    ends = np.flatnonzero(groups & 32 == 0)
    begins = np.r_[0, ends[:-1] + 1]
    lengths = ends - begins + 1
    if lengths.max() > _MAX_GROUPS:
        raise ValueError("a number that is too large")
    place = np.arange(len(groups)) - np.repeat(begins, lengths)
    counts = np.add.reduceat((groups & 31) << (5 * place), begins)
    # The highest bit of the last group is the sign.
    counts -= np.where(groups[ends] & 16, np.int64(1) << (5 * lengths), 0)
    # From the fourth on they are told as differences to the one two before.
    for first in (1, 2):
        counts[first::2] = np.cumsum(counts[first::2])
    return counts
