"""Outlines with fewer corners that are still valid polygons."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.storage.export.outlines import Polygon, Ring, signed_area

MAX_HALVINGS = 4
"""How often the tolerance of a ring that touches another one is halved, before it stays exact."""

MAX_PAIRS = 2_000_000
"""Pairs of segments that are compared at once."""


def simplified(polygons: tuple[Polygon, ...], tolerance_px: float) -> tuple[Polygon, ...]:
    """Leave out corners of the outline of one object.

    The corners that stay are among those of the exact outline. Rings that would cross or touch
    another one, or themselves, or come to lie inside another one, are simplified less, or not at
    all; no ring vanishes.

    Parameters
    ----------
    polygons : tuple of Polygon
        Exact outlines.
    tolerance_px : float
        Farthest that a corner left out may lie from the new outline.

    Returns
    -------
    tuple of Polygon
        The same parts and holes.
    """
    exact = [ring for polygon in polygons for ring in polygon]
    rings = [_ring(ring, tolerance_px) for ring in exact]
    for halving in range(1, MAX_HALVINGS + 2):
        # Exact rings may touch in corners: they are valid as they are.
        is_changed = [len(ring) < len(was) for ring, was in zip(rings, exact, strict=True)]
        pairs = {pair for pair in _touching(rings) if any(is_changed[ring] for ring in pair)}
        pairs = pairs or _moved(rings, exact, is_changed)
        wrong = {ring for pair in pairs for ring in pair}
        if not wrong:
            break
        for ring in wrong:
            is_last = halving > MAX_HALVINGS
            rings[ring] = exact[ring] if is_last else _ring(exact[ring], tolerance_px / 2**halving)
    else:
        # A ring that became exact in the last round may touch one that is not.
        rings = exact
    left = iter(rings)
    return tuple(tuple(next(left) for _ in polygon) for polygon in polygons)


def _ring(ring: Ring, tolerance_px: float) -> Ring:
    """Simplify a closed ring (Douglas and Peucker); the exact one if little would be left."""
    # Cut at two corners that lie far apart, which stay.
    first = int(np.lexsort((ring[:, 1], ring[:, 0]))[0])
    turned = np.roll(ring, -first, axis=0)
    far = int(((turned - turned[0]) ** 2).sum(axis=1).argmax())
    closed = np.concatenate([turned, turned[:1]])
    kept = np.zeros(len(closed), bool)
    kept[[0, far, len(ring)]] = True
    _keep(closed, kept, 0, far, tolerance_px)
    _keep(closed, kept, far, len(ring), tolerance_px)
    short = closed[:-1][kept[:-1]]
    if len(short) < 3 or signed_area(short) * signed_area(ring) <= 0:
        return ring
    return short


def _keep(
    path: NDArray[np.int64], kept: NDArray[np.bool_], first: int, last: int, tolerance_px: float
) -> None:
    """Mark the corners of a path that are needed."""
    pending = [(first, last)]
    while pending:
        start, stop = pending.pop()
        if stop - start < 2:
            continue
        inner = path[start + 1 : stop] - path[start]
        along = path[stop] - path[start]
        # Distance to the segment, not to the line: a path may come back on itself.
        place = np.clip(inner @ along / max(1, int(along @ along)), 0, 1)
        distance = np.hypot(*(inner - place[:, np.newaxis] * along).T)
        worst = int(distance.argmax())
        if distance[worst] > tolerance_px:
            kept[start + 1 + worst] = True
            pending += [(start, start + 1 + worst), (start + 1 + worst, stop)]


def _moved(rings: list[Ring], exact: list[Ring], is_changed: list[bool]) -> set[tuple[int, int]]:
    """Find the pairs of rings of which one came to lie inside the other, or outside of it."""
    # The first corner in rows and columns is always kept; the pixel below it is inside the ring.
    corners = np.array([ring[np.lexsort((ring[:, 1], ring[:, 0]))[0]] for ring in exact])
    found: set[tuple[int, int]] = set()
    for number, (ring, was) in enumerate(zip(rings, exact, strict=True)):
        if not is_changed[number]:
            continue
        low, high = was.min(axis=0), was.max(axis=0)
        near = np.flatnonzero(((corners >= low) & (corners <= high)).all(axis=1))
        near = near[near != number]
        moved = _inside(corners[near], ring) != _inside(corners[near] + 0.5, was)
        found.update((number, int(other)) for other in near[moved])
    return found


def _inside(points: NDArray[np.int64] | NDArray[np.float64], ring: Ring) -> NDArray[np.bool_]:
    """Whether points, none of which lies on the ring, are inside of it."""
    begin, end = ring, np.roll(ring, -1, axis=0)
    along, is_down = end - begin, end[:, 0] > begin[:, 0]
    inside = np.zeros(len(points), bool)
    step = max(1, MAX_PAIRS // len(ring))
    for start in range(0, len(points), step):
        y, x = points[start : start + step].T[..., np.newaxis]
        spans = (begin[:, 0] <= y) != (end[:, 0] <= y)
        side = along[:, 1] * (y - begin[:, 0]) - (x - begin[:, 1]) * along[:, 0]
        inside[start : start + step] = (spans & ((side > 0) == is_down)).sum(axis=1) % 2 == 1
    return inside


def _touching(rings: list[Ring]) -> set[tuple[int, int]]:
    """Find the pairs of rings of which segments meet that are not neighbours in one ring."""
    begin = np.concatenate(rings)
    end = np.concatenate([np.roll(ring, -1, axis=0) for ring in rings])
    owner = np.repeat(np.arange(len(rings)), [len(ring) for ring in rings])
    following = np.concatenate(
        [
            np.roll(np.arange(len(ring)), -1) + start
            for ring, start in zip(rings, _starts(rings), strict=True)
        ]
    )
    found: set[tuple[int, int]] = set()
    for first, second in _near(begin, end):
        meets = _meets(begin[first], end[first], begin[second], end[second])
        is_next = (following[first] == second) | (following[second] == first)
        meets &= ~is_next | _turns_back(begin, end, first, second)
        pairs = np.unique(np.stack([owner[first[meets]], owner[second[meets]]], 1), axis=0)
        found.update(map(tuple, pairs.tolist()))
    return found


def _starts(rings: list[Ring]) -> list[int]:
    ends = np.cumsum([0, *(len(ring) for ring in rings)])
    starts: list[int] = ends[:-1].tolist()
    return starts


def _near(
    begin: NDArray[np.int64], end: NDArray[np.int64]
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Go through the pairs of segments whose boxes meet, each pair once."""
    low, high = np.minimum(begin, end), np.maximum(begin, end)
    order = np.argsort(low[:, 0], kind="stable")
    # Sorted by their start, each one meets those that start before it ends.
    stops = np.searchsorted(low[order, 0], high[order, 0], side="right")
    counts = stops - np.arange(len(order)) - 1
    total = np.cumsum(counts)
    start = 0
    while start < len(order):
        before = total[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(total, before + MAX_PAIRS, side="right")))
        some = counts[start:stop]
        first = np.repeat(np.arange(start, stop), some)
        second = first + 1 + np.arange(len(first)) - np.repeat(np.cumsum(some) - some, some)
        first, second = order[first], order[second]
        meets = (low[first, 1] <= high[second, 1]) & (low[second, 1] <= high[first, 1])
        yield first[meets], second[meets]
        start = stop


def _side(a: NDArray[np.int64], b: NDArray[np.int64], c: NDArray[np.int64]) -> NDArray[np.int64]:
    """Tell on which side of the line from a to b each point c lies: -1, 0 or 1."""
    u, v = b - a, c - a
    side: NDArray[np.int64] = np.sign(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
    return side


def _meets(
    a: NDArray[np.int64], b: NDArray[np.int64], c: NDArray[np.int64], d: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Whether segments a-b and c-d, whose boxes meet, have a point in common."""
    meets: NDArray[np.bool_] = (_side(a, b, c) * _side(a, b, d) <= 0) & (
        _side(c, d, a) * _side(c, d, b) <= 0
    )
    return meets


def _turns_back(
    begin: NDArray[np.int64],
    end: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> NDArray[np.bool_]:
    """Whether of two segments in a row the second one goes back on the first."""
    u, v = end[first] - begin[first], end[second] - begin[second]
    cross = u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]
    back: NDArray[np.bool_] = (cross == 0) & ((u * v).sum(axis=1) < 0)
    return back
