"""Write a change of labels to every level of a label image, in little memory."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.journal import Block
from napari_hrsam.storage.label_downsampling import AxisRatio, majority
from napari_hrsam.storage.label_ome_zarr import LabelLevels, read_labels

logger = logging.getLogger(__name__)

REGION_PX = 3072
"""Side of what is worked on at once; about six arrays of this size are in memory at a time."""


@dataclass(frozen=True, slots=True, eq=False)
class _Window:
    """What was last read or written of one level."""

    plane: tuple[int, ...]
    box: Box
    values: NDArray[Any]


class LevelWriter:
    """Writes changes to every level: whole chunks only, coarser levels derived from finer ones.

    It keeps the part of each level that it touched last, until `forget`: what was just read need
    not be read again to be changed, and what was just written not to derive the next level.

    Parameters
    ----------
    levels : LabelLevels
        The opened arrays.

    Raises
    ------
    LabelsError
        If a level is larger than the one before.
    """

    def __init__(self, levels: LabelLevels) -> None:
        self._levels = levels
        self._ratios = [
            (AxisRatio(fine[0], coarse[0]), AxisRatio(fine[1], coarse[1]))
            for fine, coarse in itertools.pairwise(levels.shapes_yx)
        ]
        self._windows: dict[int, _Window] = {}

    def forget(self) -> None:
        """Let go of the memory; the next change reads anew what others may have written."""
        self._windows.clear()

    def changes(
        self,
        box: Box,
        mask: NDArray[np.bool_],
        label: int,
        plane: tuple[int, ...],
        *,
        overwrite: bool,
    ) -> Iterator[Block]:
        """Go through what a new object changes, region by region.

        Parameters
        ----------
        box, mask, label, plane, overwrite
            As in `PyramidLabels.write`; all checked.

        Raises
        ------
        LabelsError
            If the labels there cannot be read.
        """
        for region in self._regions(0, box):
            current = self._window(0, plane, region)
            part = region.intersection(box)
            inside = part.shifted(-region.y0, -region.x0).slices
            values = current[inside]
            wanted = mask[part.shifted(-box.y0, -box.x0).slices].astype(np.bool_, copy=False)
            changed = wanted & (values != label)
            if not overwrite:
                changed &= values == 0
            if not changed.any():
                continue
            tight = Box.around(changed)
            before = values[tight.slices].copy()
            after = before.copy()
            after[changed[tight.slices]] = label
            yield Block(tight.shifted(part.y0, part.x0), before, after)

    def put(self, plane: tuple[int, ...], blocks: Iterable[Block], *, is_done: bool) -> None:
        """Write the labels after an edit (or before it) at every level; safe to do twice.

        Parameters
        ----------
        plane : tuple of int
            Where the edit is.
        blocks : iterable of Block
            What it changes.
        is_done : bool
            Whether the labels after it are written, or those before it.

        Raises
        ------
        LabelsError
            If a chunk cannot be read or written; the edit may be written in part.
        """
        boxes = []
        for block in blocks:
            boxes.append(block.box)
            values = block.after if is_done else block.before
            changed = block.before != block.after
            for region in self._regions(0, block.box):
                current = self._window(0, plane, region)
                part = region.intersection(block.box)
                inside = part.shifted(-block.box.y0, -block.box.x0).slices
                place = part.shifted(-region.y0, -region.x0).slices
                np.copyto(current[place], values[inside], where=changed[inside])
                self._store(0, plane, region, current)
        for level in range(1, len(self._levels.arrays)):
            boxes = [self._coarser(level, box) for box in boxes]
            self._refresh(level, plane, boxes)

    def _coarser(self, level: int, box: Box) -> Box:
        """Return the pixels of a level on which a box of the level before falls."""
        rows, columns = self._ratios[level - 1]
        y0, y1 = rows.covering(box.y0, box.y1)
        x0, x1 = columns.covering(box.x0, box.x1)
        return Box(y0, x0, y1, x1)

    def _refresh(self, level: int, plane: tuple[int, ...], boxes: Iterable[Box]) -> None:
        """Derive what lies in the boxes of one level from the level before."""
        wanted = Box(0, 0, 0, 0)
        for box in boxes:
            wanted = wanted.union(box)
        for region in self._regions(level, wanted):
            part = Box(0, 0, 0, 0)
            for box in boxes:
                part = part.union(region.intersection(box))
            if part.area == 0:
                continue
            try:
                current = self._window(level, plane, region)
            except LabelsError:
                # A damaged chunk of a coarser level is made anew.
                logger.warning(
                    "deriving a damaged part of level %d of %s", level, self._levels.folder
                )
                part, current = region, np.zeros(region.shape_yx, self._levels.dtype)
            place = part.shifted(-region.y0, -region.x0).slices
            current[place] = self._derived(level, plane, part)
            self._store(level, plane, region, current)

    def _derived(self, level: int, plane: tuple[int, ...], box: Box) -> NDArray[Any]:
        """Compute a part of one level from the level before."""
        rows, columns = self._ratios[level - 1]
        y, x = rows.edges(box.y0, box.y1), columns.edges(box.x0, box.x1)
        source = Box(int(y[0]), int(x[0]), int(y[-1]), int(x[-1]))
        window = self._windows.get(level - 1)
        if window is None or window.plane != plane or window.box.union(source) != window.box:
            values = self._read(level - 1, plane, source)
        else:
            values = window.values[source.shifted(-window.box.y0, -window.box.x0).slices]
        return majority(values, y - y[0], x - x[0])

    def _regions(self, level: int, box: Box) -> Iterator[Box]:
        """Cut the whole chunks that a box touches into regions of at most about `REGION_PX`."""
        array = self._levels.arrays[level]
        height, width = (array.shards or array.chunks)[-2:]
        shape = self._levels.shapes_yx[level]
        step_y, step_x = (max(1, REGION_PX // side) * side for side in (height, width))
        for y0 in range(box.y0 // height * height, box.y1, step_y):
            for x0 in range(box.x0 // width * width, box.x1, step_x):
                y1 = min(y0 + step_y, -(-box.y1 // height) * height)
                x1 = min(x0 + step_x, -(-box.x1 // width) * width)
                yield Box(y0, x0, y1, x1).clip(shape)

    def _window(self, level: int, plane: tuple[int, ...], box: Box) -> NDArray[Any]:
        """Read a region to be changed in place, or take it from memory."""
        window = self._windows.get(level)
        if window is None or (window.plane, window.box) != (plane, box):
            values = self._read(level, plane, box)
            if not values.flags.writeable:
                values = values.copy()
            window = self._windows[level] = _Window(plane, box, values)
        return window.values

    def _store(self, level: int, plane: tuple[int, ...], box: Box, values: NDArray[Any]) -> None:
        array = self._levels.arrays[level]
        place: tuple[int | slice, ...] = (*plane, *box.slices)
        try:
            array[place] = values
        except OSError as error:
            self._windows.clear()
            raise LabelsError(
                f"expected to write the labels at {array.store_path}, got: {error}; "
                "check the space on the disk and the rights of the folder, then do it again"
            ) from error
        self._windows[level] = _Window(plane, box, values)

    def _read(self, level: int, plane: tuple[int, ...], box: Box) -> NDArray[Any]:
        return read_labels(self._levels.arrays[level], (*plane, *box.slices))
