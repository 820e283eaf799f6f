"""Labels region by region: which hold something, and each with the pixels beside it.

The pixels beside it are there so that nothing is cut at a border.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box, Grid
from napari_hrsam.storage.labels.stored import StoredFiles, StoredLabels

Progress = Callable[[int, int], None]

REGION_PX = 1024
"""Side of what is looked at together; a multiple of the chunks, or one chunk that is larger."""


@dataclass(frozen=True, slots=True)
class RegionGrid:
    """How a plane of one level is cut into regions of whole chunks, and which hold something.

    Attributes
    ----------
    domain : Box
        What is looked at, in pixels of the level.
    step_yx : (int, int)
        Height and width of a region; regions begin at multiples of it.
    filled : frozenset of (row, column)
        The regions inside the domain in which chunks are stored.
    """

    domain: Box
    step_yx: tuple[int, int]
    filled: frozenset[tuple[int, int]]

    def box(self, row: int, column: int) -> Box:
        """Return the part of a region inside the domain."""
        return Grid(self.step_yx).box((row, column)).intersection(self.domain)

    def boxes(self) -> Iterator[Box]:
        """Go through the filled regions row by row."""
        return (self.box(*place) for place in sorted(self.filled))

    def places(self, box: Box) -> Iterator[tuple[int, int]]:
        """Return the regions that a box of the level touches inside the domain."""
        return Grid(self.step_yx).places(box.intersection(self.domain))


def region_grid(
    labels: StoredLabels,
    level: int,
    plane: tuple[int, ...],
    box: Box | None = None,
    files: StoredFiles | None = None,
) -> RegionGrid:
    """Cut a plane of a level into regions, and find those that are stored.

    Parameters
    ----------
    labels : StoredLabels
        The label image.
    level : int
        Index of its arrays.
    plane : tuple of int
        All its indices.
    box : Box, optional
        Only what lies in it, in pixels of the level; by default everything.
    files : StoredFiles, optional
        Those of the level, if they were looked up before.
    """
    array = labels.levels[level]
    whole = Box.of_shape(labels.level_shape(level))
    grid = RegionGrid(
        whole if box is None else box.intersection(whole), _step(array.chunks[-2:]), frozenset()
    )
    stored = array.shards or array.chunks
    chunks = Grid((stored[-2], stored[-1]))
    place = tuple(index // side for index, side in zip(plane, stored, strict=False))
    filled: set[tuple[int, int]] = set()
    for chunk in (files or labels.files(level)).of_plane(place, chunks.cover(grid.domain)):
        filled.update(grid.places(chunks.box(chunk)))
    return RegionGrid(grid.domain, grid.step_yx, frozenset(filled))


def _step(chunk_yx: tuple[int, ...]) -> tuple[int, int]:
    """Choose the size of a region: whole chunks, about `REGION_PX` squared in all."""
    height, width = chunk_yx
    # Beside chunks as wide as the image, few rows of them fill a region; and the other way round.
    down = max(1, min(REGION_PX, REGION_PX**2 // width) // height) * height
    across = max(1, min(REGION_PX, REGION_PX**2 // down) // width) * width
    return down, across


@dataclass(frozen=True, slots=True, eq=False)
class Neighbourhood:
    """A region with one row of pixels above it and one column to its left.

    Over all neighbourhoods, every pair of pixels that touch (along a side or a corner) and are not
    both background is there exactly once; what lies outside of the domain is background.

    Attributes
    ----------
    y0, x0 : int
        Where the region begins, in pixels of the level.
    values : (h + 1, w + 1) integer
        ``values[1:, 1:]`` is the region, less rows and columns of background at its sides. At the
        lower and right end of the domain it has one more row or column of background.
    """

    y0: int
    x0: int
    values: NDArray[Any]


@dataclass(frozen=True, slots=True)
class RowDone:
    """All pixels above ``y`` have been seen, with those beside them."""

    y: int


def neighbourhoods(
    labels: StoredLabels,
    plane: tuple[int, ...],
    *,
    box: Box | None = None,
    only: Collection[int] | None = None,
    progress: Progress | None = None,
) -> Iterator[Neighbourhood | RowDone]:
    """Go through level 0 of a plane, row of regions by row of regions; missing chunks are skipped.

    Parameters
    ----------
    labels : StoredLabels
        The label image.
    plane : tuple of int
        All its indices.
    box : Box, optional
        Only what lies in it; the rest is taken for background.
    only : collection of int, optional
        Only these labels; the rest is taken for background.
    progress : callable (done, total), optional
        Counts the regions.

    Yields
    ------
    Neighbourhood or RowDone

    Raises
    ------
    LabelsError
        If a chunk cannot be read.
    """
    grid = region_grid(labels, 0, plane, box)
    if not grid.filled:
        return
    seams = _Seams(grid.domain, labels.dtype)
    wanted = None if only is None else _as_labels(only, labels.dtype)
    places = sorted(_with_neighbours(grid))
    done = 0
    for row, group in groupby(places, key=lambda place: place[0]):
        columns = [column for _, column in group]
        for column in columns:
            region, values = grid.box(row, column), None
            if (row, column) in grid.filled:
                values = labels.read(region, 0, plane)
                if wanted is not None:
                    values = np.where(np.isin(values, wanted), values, values.dtype.type(0))
            found = seams.surrounded(region, values)
            if found is not None:
                yield found
            done += 1
            if progress is not None:
                progress(done, len(places))
        yield RowDone(seams.end_row(grid.box(row, columns[0]).y1))


def _with_neighbours(grid: RegionGrid) -> set[tuple[int, int]]:
    """Add the regions below, to the right and across: their borders are looked at from there."""
    found = {
        (row + down, column + right)
        for row, column in grid.filled
        for down in (0, 1)
        for right in (0, 1)
    }
    return {place for place in found if grid.box(*place).area}


def _as_labels(only: Collection[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    info = np.iinfo(dtype)
    return np.array(sorted(n for n in only if info.min <= n <= info.max and n != 0), dtype)


def _cropped(box: Box, whole: NDArray[Any]) -> Neighbourhood | None:
    """Leave out what is background beside background; most of a region with a small object is."""
    rows = np.flatnonzero(whole.any(axis=1))
    if rows.size == 0:
        return None
    top, bottom = max(0, int(rows[0]) - 1), int(rows[-1]) + 2
    columns = np.flatnonzero(whole[top:bottom].any(axis=0))
    left, right = max(0, int(columns[0]) - 1), int(columns[-1]) + 2
    return Neighbourhood(box.y0 + top, box.x0 + left, whole[top:bottom, left:right])


class _Seams:
    """The last row of the regions above, and the last column of the region to the left."""

    def __init__(self, domain: Box, dtype: np.dtype[Any]) -> None:
        self._domain = domain
        # Two more: the column before the domain, and the one after it.
        self._above = np.zeros(domain.width + 2, dtype)
        self._below = np.zeros_like(self._above)
        self._left = np.zeros(0, dtype)
        self._end_x = -1

    def surrounded(self, box: Box, values: NDArray[Any] | None) -> Neighbourhood | None:
        """Put together a region and what is beside it; None if all of it is background."""
        extra_y, extra_x = box.y1 == self._domain.y1, box.x1 == self._domain.x1
        whole = np.zeros((box.height + 1 + extra_y, box.width + 1 + extra_x), self._above.dtype)
        first = box.x0 - self._domain.x0
        whole[0] = self._above[first : first + whole.shape[1]]
        if self._end_x == box.x0:
            whole[1 : box.height + 1, 0] = self._left
        if values is not None:
            whole[1 : box.height + 1, 1 : box.width + 1] = values
            self._below[first + 1 : first + 1 + box.width] = values[-1]
        self._left = whole[1 : box.height + 1, box.width].copy()
        self._end_x = box.x1
        return _cropped(box, whole)

    def end_row(self, y1: int) -> int:
        """End a row of regions; return the row above which everything has been seen.

        Below a region that holds something another one was looked at, so what comes after a gap
        has background above it.
        """
        self._above, self._below = self._below, self._above
        self._below[:] = 0
        self._end_x = -1
        return y1 + 1 if y1 == self._domain.y1 else y1
