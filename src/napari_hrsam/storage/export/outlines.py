"""Outlines of objects along pixel edges: runs of edges chained into valid polygons with holes.

Pixel (y, x) is the square from (y, x) to (y + 1, x + 1), as in QuPath. Pixels that touch at a
corner only belong to two parts. Every ring is simple: it passes no point twice; rings of one
object touch in points at most.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Ring = NDArray[np.int64]
"""(N, 2) corners y, x; the first is not repeated. Exteriors turn from +x to +y, holes back."""

Polygon = tuple[Ring, ...]
"""One part of an object: its exterior, then its holes."""


class Side(IntEnum):
    """On which side of the object a run of edges lies; it is walked with the object beside it.

    Top runs are walked to +x, right ones to +y, bottom ones to -x, left ones to -y. The order of
    the numbers decides the turn where two parts touch at a corner: see `_next`.
    """

    TOP = 0
    BOTTOM = 1
    RIGHT = 2
    LEFT = 3


@dataclass(frozen=True, slots=True, eq=False)
class Outline:
    """Where an object is.

    Attributes
    ----------
    label : int
        Its id.
    polygons : tuple of Polygon
        Its parts, those that begin first (in rows, then columns) before the others.
    """

    label: int
    polygons: tuple[Polygon, ...]

    @property
    def num_holes(self) -> int:
        """Number of holes of all parts."""
        return sum(len(polygon) - 1 for polygon in self.polygons)

    def column_runs(self) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Cut the object into runs down its columns.

        Returns
        -------
        (N,) int, (N,) int, (N,) int
            Column, first row, and row after the last; sorted by column, then row.
        """
        columns, rows = [], []
        for polygon in self.polygons:
            for ring in polygon:
                after = np.roll(ring, -1, axis=0)
                flat = ring[:, 0] == after[:, 0]
                low = np.minimum(ring[flat, 1], after[flat, 1])
                length = np.abs(after[flat, 1] - ring[flat, 1])
                columns.append(_spread(low, length))
                rows.append(np.repeat(ring[flat, 0], length))
        column, row = np.concatenate(columns), np.concatenate(rows)
        order = np.lexsort((row, column))
        # Down a column, edges lead in and out by turns.
        return column[order][::2], row[order][::2], row[order][1::2]


def chained(runs: NDArray[np.int64]) -> tuple[Polygon, ...] | None:
    """Chain the runs of edges of one object.

    Parameters
    ----------
    runs : (N, 4) int
        `Side`, line (y of a top or bottom run, x of the others), start and stop along it.

    Returns
    -------
    tuple of Polygon, or None if the runs do not close, so that they are no outline
    """
    runs = _merged(runs)
    begin, end = _ends(runs)
    following = _next(runs[:, 0], begin, end)
    if following is None:
        return None
    walks = _walks(following)
    keys = _keys(begin)
    if len(np.unique(keys)) == len(keys):
        rings = [(number, begin[walk]) for number, walk in enumerate(walks)]
    else:
        rings = [
            (number, begin[part])
            for number, walk in enumerate(walks)
            for part in _simple(walk, keys)
        ]
    return _grouped(rings, walks, runs)


def signed_area(ring: Ring) -> int:
    """Return the area inside a ring: positive for an exterior, negative for a hole."""
    # Relative to the first corner the products stay small.
    y, x = (ring - ring[0]).T
    return int(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) // 2


def _merged(runs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Join runs that were cut at the border of a region."""
    runs = runs[np.lexsort((runs[:, 2], runs[:, 1], runs[:, 0]))]
    goes_on = (runs[1:, :2] == runs[:-1, :2]).all(axis=1) & (runs[1:, 2] == runs[:-1, 3])
    first = np.flatnonzero(np.r_[True, ~goes_on])
    joined = runs[first]
    joined[:, 3] = runs[np.append(first[1:], len(runs)) - 1, 3]
    return joined


def _ends(runs: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the corners y, x at which each run begins and ends when it is walked."""
    side, line = runs[:, 0], runs[:, 1]
    is_forward = (side == Side.TOP) | (side == Side.RIGHT)
    first = np.where(is_forward, runs[:, 2], runs[:, 3])
    last = np.where(is_forward, runs[:, 3], runs[:, 2])
    is_flat = (side < Side.RIGHT)[:, np.newaxis]
    begin = np.where(is_flat, np.stack([line, first], 1), np.stack([first, line], 1))
    end = np.where(is_flat, np.stack([line, last], 1), np.stack([last, line], 1))
    return begin, end


def _keys(corners: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give every corner a number of its own."""
    return (corners[:, 0] << 32) + corners[:, 1]


def _next(
    side: NDArray[np.int64], begin: NDArray[np.int64], end: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Find the run that each run is followed by; None if there is none for some.

    Flat and upright runs take turns. Where two parts touch at a corner, the walk stays with its
    part: from top to right, from bottom to left; from right to bottom, from left to top.
    """
    is_flat = side < Side.RIGHT
    flat, upright = np.flatnonzero(is_flat), np.flatnonzero(~is_flat)
    if len(flat) != len(upright):
        return None
    begins, ends = _keys(begin), _keys(end)
    following = np.empty(len(side), np.int64)
    from_flat = flat[np.lexsort((side[flat], ends[flat]))]
    to_upright = upright[np.lexsort((side[upright], begins[upright]))]
    from_upright = upright[np.lexsort((side[upright], ends[upright]))]
    to_flat = flat[np.lexsort((-side[flat], begins[flat]))]
    for source, target in ((from_flat, to_upright), (from_upright, to_flat)):
        if (ends[source] != begins[target]).any():
            return None
        following[source] = target
    return following


def _walks(following: NDArray[np.int64]) -> list[list[int]]:
    """Follow the runs until each is part of a closed walk."""
    after = following.tolist()
    walks = []
    for start in range(len(after)):
        walk = []
        place = start
        # A place that was passed is marked by -1.
        while after[place] >= 0:
            walk.append(place)
            after[place], place = -1, after[place]
        if walk:
            walks.append(walk)
    return walks


def _simple(walk: list[int], keys: NDArray[np.int64]) -> list[list[int]]:
    """Cut a walk that passes a corner twice into loops that do not."""
    loops: list[list[int]] = []
    path: list[int] = []
    where: dict[int, int] = {}
    for run, key in zip(walk, keys[walk].tolist(), strict=True):
        if key in where:
            place = where[key]
            loop = path[place:]
            loops.append(loop)
            for corner in keys[loop].tolist():
                del where[corner]
            del path[place:]
        where[key] = len(path)
        path.append(run)
    return [*loops, path]


def _grouped(
    rings: list[tuple[int, Ring]], walks: list[list[int]], runs: NDArray[np.int64]
) -> tuple[Polygon, ...]:
    """Put every hole with the exterior of its part."""
    parts = _parts(walks, runs)
    exteriors: dict[int, Ring] = {}
    holes: dict[int, list[Ring]] = {}
    for number, ring in rings:
        if signed_area(ring) > 0:
            exteriors[parts[number]] = ring
        else:
            holes.setdefault(parts[number], []).append(ring)
    order = sorted(exteriors, key=lambda part: tuple(exteriors[part].min(axis=0)))
    return tuple((exteriors[part], *holes.get(part, ())) for part in order)


def _parts(walks: list[list[int]], runs: NDArray[np.int64]) -> list[int]:
    """Give each part of an object a number, and tell the part of every walk.

    From a left edge to the next right edge in its row there are only pixels of one part.
    """
    if len(walks) == 1:
        return [0]
    walk_of = np.empty(len(runs), np.int64)
    for number, walk in enumerate(walks):
        walk_of[walk] = number
    upright = runs[:, 0] >= Side.RIGHT
    line, start, stop = runs[upright, 1], runs[upright, 2], runs[upright, 3]
    length = stop - start
    order = np.lexsort((np.repeat(line, length), _spread(start, length)))
    owner = np.repeat(walk_of[upright], length)[order]
    pairs = coo_array(
        (np.ones(len(owner) // 2, bool), (owner[::2], owner[1::2])), shape=(len(walks),) * 2
    )
    _, numbers = connected_components(pairs, directed=False)
    found: list[int] = numbers.tolist()
    return found


def _spread(start: NDArray[np.int64], length: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return start, start + 1, ... for each of several lengths, one after the other."""
    before = np.cumsum(length) - length
    spread: NDArray[np.int64] = np.arange(int(length.sum())) + np.repeat(start - before, length)
    return spread
