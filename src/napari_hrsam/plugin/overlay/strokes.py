"""What the user painted over a prediction, at the resolution at which it was painted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box

KEEP = 2
"""In strokes: the user did not paint here."""


@dataclass(frozen=True, slots=True, eq=False)
class Strokes:
    """Brush strokes on a grid of square blocks of level-0 pixels, from pixel (0, 0) of the image.

    Attributes
    ----------
    box : Box
        Where they lie, in grid pixels.
    values : (box.height, box.width) uint8
        0 and 1 where pixels were painted so, `KEEP` elsewhere.
    step : int
        Level-0 pixels per grid pixel, a power of 2.
    """

    box: Box
    values: NDArray[np.uint8]
    step: int = 1

    def at(self, step: int) -> Strokes:
        """Return the strokes on a finer or coarser grid; of a coarse pixel any stroke counts."""
        if step == self.step:
            return self
        if step < self.step:
            times = self.step // step
            ends = (end * times for end in (self.box.y0, self.box.x0, self.box.y1, self.box.x1))
            values = self.values.repeat(times, axis=0).repeat(times, axis=1)
            return Strokes(Box(*ends), values, step)
        times = step // self.step
        box = grid_box(self.box, times)
        fine = np.full((box.height * times, box.width * times), KEEP, np.uint8)
        whole = Box(box.y0 * times, box.x0 * times, box.y1 * times, box.x1 * times)
        fine[within(self.box, whole)] = self.values
        blocks = fine.reshape(box.height, times, box.width, times)
        has = [(blocks == value).any(axis=(1, 3)) for value in (0, 1)]
        values = np.where(has[1], 1, np.where(has[0], 0, KEEP)).astype(np.uint8)
        return Strokes(box, values, step)

    def over(self, box0: Box, step: int) -> Strokes:
        """Return the strokes near a box of level-0 pixels on another grid.

        Those far away are left out where the grid is finer: it would be too large for them.
        """
        if step >= self.step:
            return self.at(step)
        common = self.box.intersection(grid_box(box0, self.step))
        near = Strokes(common, self.values[within(common, self.box)], self.step)
        return near.at(step)

    def with_newer(self, newer: Strokes) -> Strokes:
        """Return these strokes with newer ones on top, on the grid of the newer."""
        ends = (newer.box.y0, newer.box.x0, newer.box.y1, newer.box.x1)
        older = self.over(Box(*(end * newer.step for end in ends)), newer.step)
        box = older.box.union(newer.box)
        values = np.full(box.shape_yx, KEEP, np.uint8)
        values[within(older.box, box)] = older.values
        inside = values[within(newer.box, box)]
        inside[newer.values != KEEP] = newer.values[newer.values != KEEP]
        return Strokes(box, values, newer.step)


def grid_box(box: Box, step: int) -> Box:
    """Return the pixels of a grid with ``step`` times larger pixels that a box touches."""
    return Box(box.y0 // step, box.x0 // step, -(-box.y1 // step), -(-box.x1 // step))


def apply_strokes(
    mask: NDArray[np.bool_], box: Box, edits: Strokes | None, step: int = 1
) -> NDArray[np.bool_]:
    """Put the user's strokes on a mask.

    Parameters
    ----------
    mask : (height, width) bool
        Predicted object, with pixels of ``step`` level-0 pixels; not changed.
    box : Box
        Its place in level-0 pixels, beginning on a multiple of ``step``.
    edits : Strokes or None
        Strokes outside ``box`` are left out.
    step : int
        Level-0 pixels per pixel of the mask.

    Returns
    -------
    (height, width) bool
    """
    edited = np.array(mask, dtype=bool)
    if edits is None:
        return edited
    edits, place = edits.over(box, step), grid_box(box, step)
    common = place.intersection(edits.box)
    painted = edits.values[within(common, edits.box)]
    region = edited[within(common, place)]
    region[painted != KEEP] = painted[painted != KEEP] != 0
    return edited


def within(inner: Box, outer: Box) -> tuple[slice, slice]:
    """Return the slices of one box inside another; of nothing where they do not meet."""
    if not inner.area:
        return slice(0, 0), slice(0, 0)
    return inner.shifted(-outer.y0, -outer.x0).slices
