"""Where an object lies in a label image of any size, found in the memory of one chunk."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from napari_hrsam.geometry import Box
from napari_hrsam.storage.labels.arguments import NoSuchLabelError, no_such_label
from napari_hrsam.storage.labels.chunks import Chunk, ChunkGrid, OneLabel, labels_of

MAX_SEARCHED_PX = 2**26
"""Pixels of the finest level that is searched whole at first: 8,192 x 8,192."""

_NOWHERE = Box(0, 0, 0, 0)


def find_label(
    grids: Sequence[ChunkGrid], label: int, plane: tuple[int, ...], changed: Box = _NOWHERE
) -> Box:
    """Find an object of a plane.

    The finest level of at most `MAX_SEARCHED_PX` pixels is searched whole. Level 0 is exact; what
    is found at a coarser one is followed at level 0 across the borders of its box. So a part of an
    object is missed only if no pixel connects it to the others, it is too small to be seen at the
    level that is searched, and the journal knows nothing of it. An object that is not seen there
    is searched for at finer levels.

    Parameters
    ----------
    grids : sequence of ChunkGrid
        The levels, finest first.
    label : int
        Its id.
    plane : tuple of int
        Index over the axes before y and x.
    changed : Box, optional
        What edits of the object changed, in level-0 pixels.

    Returns
    -------
    Box
        In level-0 pixels: the smallest that holds it, or, from a coarser level, a little more.

    Raises
    ------
    LabelsError
        If no pixel has the id, or a chunk cannot be read.
    """
    shape = grids[0].shape_yx
    areas = [math.prod(grid.shape_yx) for grid in grids]
    first = next((n for n, area in enumerate(areas) if area <= MAX_SEARCHED_PX), len(grids) - 1)
    search = _Search(grids, label, plane)
    for level in range(first, -1, -1):
        found = search.at(level, Box.of_shape(grids[level].shape_yx))
        if level == 0:
            break
        if found.area == 0:
            found = search.at(0, changed)
        else:
            found = _at_full_size(found, grids[level].shape_yx, shape).union(changed)
        if found.area:
            return search.followed(found)
    if found.area == 0:
        raise search.nothing(first)
    return found


class _Search:
    """Looks for one object in one plane."""

    def __init__(self, grids: Sequence[ChunkGrid], label: int, plane: tuple[int, ...]) -> None:
        self._grids, self._label, self._plane = grids, label, plane

    def at(self, level: int, box: Box) -> Box:
        """Return the smallest box that holds the object's part in a box of a level."""
        found = _NOWHERE
        for part, chunk in self._chunks(level, box):
            here = self._grids[level].box(part)
            inside = box.intersection(here).shifted(-here.y0, -here.x0)
            found = found.union(self._around(chunk, inside, here))
        return found

    def followed(self, box: Box) -> Box:
        """Enlarge a box of level 0 until the object goes on beyond none of its sides."""
        shape, (height, width) = self._grids[0].shape_yx, self._grids[0].side_yx
        while True:
            y0, x0, y1, x1 = box.y0, box.x0, box.y1, box.x1
            sides = [
                (Box(y0 - 1, x0 - 1, y0, x1 + 1), Box(y0 - height, x0, y0, x1)),
                (Box(y1, x0 - 1, y1 + 1, x1 + 1), Box(y1, x0, y1 + height, x1)),
                (Box(y0 - 1, x0 - 1, y1 + 1, x0), Box(y0, x0 - width, y1, x0)),
                (Box(y0 - 1, x1, y1 + 1, x1 + 1), Box(y0, x1, y1, x1 + width)),
            ]
            beyond = [more for row, more in sides if self.at(0, row.clip(shape)).area]
            larger = _union([box, *beyond]).clip(shape)
            if larger == box:
                return box
            box = larger

    def nothing(self, level: int) -> NoSuchLabelError:
        """Return the error for an object that is not there; it names the ids next to its own."""
        near: set[int] = set()
        for place, chunk in self._chunks(level, Box.of_shape(self._grids[level].shape_yx)):
            shape = self._grids[level].box(place).shape_yx
            near.update(self._nearest(labels_of(chunk, shape, self._grids[level].dtype)))
        return no_such_label(self._label, np.array(sorted(near), self._grids[level].dtype))

    def _nearest(self, values: np.ndarray) -> Iterator[int]:
        for side in (values[(values > 0) & (values < self._label)], values[values > self._label]):
            if side.size:
                yield int(side.max() if side[0] < self._label else side.min())

    def _chunks(self, level: int, box: Box) -> Iterator[tuple[tuple[int, int], Chunk]]:
        grid = self._grids[level]
        for place in grid.places(box):
            chunk = grid.read(self._plane, place)
            if chunk is not None:
                yield place, chunk

    def _around(self, chunk: Chunk, inside: Box, here: Box) -> Box:
        """Return the object's box in a part of a chunk, as a box of the level."""
        if isinstance(chunk, OneLabel):
            if chunk.label != self._label:
                return _NOWHERE
            mask = (
                np.ones(inside.shape_yx, bool) if chunk.mask is None else chunk.mask[inside.slices]
            )
        else:
            assert chunk is not None
            mask = chunk[inside.slices] == self._label
        found = Box.around(mask)
        if found.area == 0:
            return _NOWHERE
        return found.shifted(inside.y0 + here.y0, inside.x0 + here.x0)


def _at_full_size(box: Box, level_yx: tuple[int, int], shape_yx: tuple[int, int]) -> Box:
    """Return a box of a level in level-0 pixels, with one pixel of the level around it."""
    rows, columns = (full / own for full, own in zip(shape_yx, level_yx, strict=True))
    return Box(
        math.floor((box.y0 - 1) * rows),
        math.floor((box.x0 - 1) * columns),
        math.ceil((box.y1 + 1) * rows),
        math.ceil((box.x1 + 1) * columns),
    ).clip(shape_yx)


def _union(boxes: Iterable[Box]) -> Box:
    found = _NOWHERE
    for box in boxes:
        found = found.union(box)
    return found
