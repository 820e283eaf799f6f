"""Masks as runs of pixels: what is inside of polygons of any size, never dense as a whole.

Pixel (y, x) is the square from (y, x) to (y + 1, x + 1), as in QuPath and in our exports.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box

MAX_RUNS = 2**26
"""Runs of one object; each takes 24 bytes, and several times that while it is made."""

Bounds = tuple[float, float, float, float]
"""y0, x0, y1, x1: where something lies, in level-0 pixels."""

Polygons = Sequence[Sequence[NDArray[np.float64]]]
"""Parts of an object, each with its rings: (N, 2) corners y, x. Filled where a line from far away
crosses the rings of a part an odd number of times; parts may overlap."""


class RunMask:
    """A mask in runs along rows, or down columns; a `RegionMask`.

    Parameters
    ----------
    lines, starts, stops : (N,) int
        Row (or column), first pixel and the one after the last; sorted by row, then first pixel.
        Runs are not empty and do not overlap.
    are_columns : bool
        Whether the lines are columns.

    Attributes
    ----------
    lines, starts, stops : (N,) int
        As given.
    """

    def __init__(
        self,
        lines: NDArray[np.int64],
        starts: NDArray[np.int64],
        stops: NDArray[np.int64],
        *,
        are_columns: bool = False,
    ) -> None:
        self.lines, self.starts, self.stops = lines, starts, stops
        self._are_columns = are_columns
        self._box = Box(0, 0, 0, 0)
        if len(lines):
            self._box = self._turned(
                Box(int(lines[0]), int(starts.min()), int(lines[-1]) + 1, int(stops.max()))
            )

    @property
    def box(self) -> Box:
        """The smallest box that holds every pixel."""
        return self._box

    @property
    def bounds(self) -> Bounds:
        """Where it lies."""
        box = self._box
        return box.y0, box.x0, box.y1, box.x1

    @property
    def area(self) -> int:
        """Number of pixels."""
        return int((self.stops - self.starts).sum())

    def within(self, box: Box) -> RunMask:
        """Return the part in a box."""
        return RunMask(*self._runs(self._turned(box)), are_columns=self._are_columns)

    def read(self, box: Box) -> NDArray[np.bool_]:
        """Return the mask over a box, of shape ``box.shape_yx``."""
        own = self._turned(box)
        lines, starts, stops = self._runs(own)
        steps = np.zeros((own.height, own.width + 1), np.int8)
        steps[lines - own.y0, starts - own.x0] += 1
        steps[lines - own.y0, stops - own.x0] -= 1
        mask = np.cumsum(steps[:, :-1], axis=1, dtype=np.int8).view(np.bool_)
        return mask.T if self._are_columns else mask

    def fills(self, box: Box) -> bool | None:
        """Tell whether every pixel of a box is set (True) or none (False); None: read it."""
        _, starts, stops = self._runs(self._turned(box))
        count = int((stops - starts).sum())
        return False if count == 0 else (True if count == box.area else None)

    def _turned(self, box: Box) -> Box:
        return Box(box.x0, box.y0, box.x1, box.y1) if self._are_columns else box

    def _runs(self, own: Box) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        first, last = np.searchsorted(self.lines, [own.y0, own.y1])
        lines = self.lines[first:last]
        starts = np.maximum(self.starts[first:last], own.x0)
        stops = np.minimum(self.stops[first:last], own.x1)
        kept = starts < stops
        return lines[kept], starts[kept], stops[kept]


class PolygonShape:
    """Polygons that become a mask when they are drawn.

    Parameters
    ----------
    polygons : Polygons
        In level-0 pixels, of finite numbers; each ring has three corners or more.
    """

    def __init__(self, polygons: Polygons) -> None:
        self.polygons = polygons

    @property
    def bounds(self) -> Bounds:
        """Where they lie."""
        corners = np.concatenate([ring for polygon in self.polygons for ring in polygon])
        (y0, x0), (y1, x1) = corners.min(axis=0).tolist(), corners.max(axis=0).tolist()
        return y0, x0, y1, x1

    def within(self, box: Box) -> RunMask:
        """Return the pixels of a box whose centres lie inside.

        Raises
        ------
        LabelsError
            If they are more runs than `MAX_RUNS`.
        """
        parts = [_filled(polygon, box) for polygon in self.polygons]
        return parts[0] if len(parts) == 1 else _united(parts, box)


def _filled(rings: Sequence[NDArray[np.float64]], box: Box) -> RunMask:
    """Fill by the even-odd rule; a centre on an edge belongs to what lies below or right of it."""
    top = np.concatenate(rings)
    bottom = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    # From top to bottom: neighbours that share an edge compute the same places.
    is_up = top[:, 0] > bottom[:, 0]
    top[is_up], bottom[is_up] = bottom[is_up], top[is_up]
    first = np.clip(np.ceil(top[:, 0] - 0.5), box.y0, box.y1).astype(np.int64)
    length = np.clip(np.ceil(bottom[:, 0] - 0.5), box.y0, box.y1).astype(np.int64) - first
    total = int(length.sum())
    if total > 2 * MAX_RUNS:
        raise LabelsError(
            f"expected an outline that crosses rows at most {2 * MAX_RUNS:,} times, got {total:,}; "
            "simplify it"
        )
    edge = np.repeat(np.arange(len(length)), length)
    before = np.cumsum(length) - length
    row = np.arange(total) + np.repeat(first - before, length)
    along = (row + 0.5 - top[edge, 0]) / (bottom[edge, 0] - top[edge, 0])
    x = top[edge, 1] + along * (bottom[edge, 1] - top[edge, 1])
    column = np.clip(np.ceil(x - 0.5), box.x0, box.x1).astype(np.int64)
    order = np.lexsort((column, row))
    # A closed ring crosses a row an even number of times: in and out by turns.
    row, starts, stops = row[order][::2], column[order][::2], column[order][1::2]
    kept = starts < stops
    return RunMask(row[kept], starts[kept], stops[kept])


def _united(parts: Sequence[RunMask], box: Box) -> RunMask:
    """Return what lies in any of several masks along rows."""
    lines = np.concatenate([part.lines for part in parts])
    starts = np.concatenate([part.starts for part in parts])
    stops = np.concatenate([part.stops for part in parts])
    if not len(lines):
        return RunMask(lines, starts, stops)
    order = np.lexsort((starts, lines))
    lines, starts, stops = lines[order], starts[order], stops[order]
    # As if the rows lay behind each other, with a gap between them.
    shift = (lines - box.y0) * (box.width + 1) - box.x0
    reach = np.maximum.accumulate(stops + shift)
    begins = np.flatnonzero(np.r_[True, (starts + shift)[1:] > reach[:-1]])
    ends = np.append(begins[1:], len(lines)) - 1
    return RunMask(lines[begins], starts[begins], reach[ends] - shift[begins])
