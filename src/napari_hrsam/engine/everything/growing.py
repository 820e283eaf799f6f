"""Objects from the three maps of a dense head, so that a part of the maps gives the same objects.

A seed is a connected area near a centre and far from a boundary. Every other pixel of the
foreground climbs from neighbour to neighbour, always to the highest, until it reaches a seed, whose
object it joins: the catchment basins of a watershed, told by each pixel's own way. A way has a
largest length, and a seed and an object a largest side, so that what is decided at a place depends
on the maps within `Rules.halo` cells of it and on nothing else. A flooding in the order of heights
has no such bound: whom a pixel belongs to may be decided by ties far away.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_hrsam.errors import ConfigError, DataError, ShapeError
from napari_hrsam.geometry import Box

LOOK = 3
"""Cells around the top of a hill without a seed in which a higher place is looked for."""

_NEAR = [(y, x) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0)]
_FAR = [
    (y, x)
    for y in range(-LOOK, LOOK + 1)
    for x in range(-LOOK, LOOK + 1)
    if max(abs(y), abs(x)) > 1
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """What counts as an object.

    Attributes
    ----------
    foreground_above, centre_below, boundary_above : float, 0..1
        Thresholds of the maps; objects cover the foreground, the other two are for seeds.
    sigma : float
        Smoothing of the boundary distance, in cells of the maps.
    smallest : int
        Objects of fewer cells are dropped.
    largest : int
        Longest side of an object in cells.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """

    # The defaults of the first five are the best of a search on 60 training images, with maps at
    # stride 2 of tiles: `benchmarks/dense_head.py --tune`.
    foreground_above: float = 0.5
    centre_below: float = 0.5
    boundary_above: float = 0.5
    sigma: float = 1.0
    smallest: int = 40
    largest: int = 128

    def __post_init__(self) -> None:
        """Check the numbers."""
        shares = (self.foreground_above, self.centre_below, self.boundary_above)
        if not all(0 <= share <= 1 for share in shares) or not 0 < self.sigma <= 10:
            raise ConfigError(
                f"expected thresholds of 0..1 and a sigma above 0 and at most 10, got {self}"
            )
        if self.smallest < 1 or not 8 <= self.largest <= 4096:
            raise ConfigError(
                "expected a smallest object of 1 cell or more and a largest of 8 to 4096, got "
                f"{self.smallest} and {self.largest}"
            )

    @property
    def seed_side(self) -> int:
        """Longest side of a seed; that of a round object is half as long as the object."""
        return self.largest * 3 // 4

    @property
    def reach(self) -> int:
        """Longest way to a seed, in cells; a quarter of the side in a round object."""
        return self.largest * 3 // 8

    @property
    def halo(self) -> int:
        """Cells around the first cell of a seed on which its object depends."""
        return self.seed_side + self.reach + LOOK + int(4 * self.sigma + 0.5) + 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Grown:
    """Objects of maps.

    Attributes
    ----------
    labels : (H, W) int32
        Objects 1, 2, ... in the order of their first cells, row by row.
    first : (N, 2) int64
        First cell of each seed, y and x.
    boxes : (N, 4) int64
        Half-open box of each object, y0, x0, y1, x1.
    areas : (N,) int64
        Cells of each object.
    too_large : (M, 2) int64
        First cells of the seeds of those that were left out because they are too large.
    """

    labels: NDArray[np.int32]
    first: NDArray[np.int64]
    boxes: NDArray[np.int64]
    areas: NDArray[np.int64]
    too_large: NDArray[np.int64]


def grow(maps: NDArray[np.floating], rules: Rules, core: Box | None = None) -> Grown:
    """Find the objects of maps.

    Parameters
    ----------
    maps : (3, H, W) float, 0..1
        Foreground, centre distance and boundary distance, see `dense_head.DENSE_MAPS`.
    rules : Rules
    core : Box, optional
        Only objects with the first cell of their seeds in it. Where the maps go on beyond the
        array, it must hold `Rules.halo` cells around.

    Returns
    -------
    Grown
    """
    require_maps(maps)
    foreground, centre, boundary = maps
    mask = foreground > rules.foreground_above
    seeds, num = ndimage.label(
        mask & (centre < rules.centre_below) & (boundary > rules.boundary_above)
    )
    heights = ndimage.gaussian_filter(boundary.astype(np.float32, copy=False), rules.sigma)
    labels = _climbed(mask, seeds, heights, rules.reach)
    # Numbers follow the first cells, row by row: the first place of each is where it is seen first.
    flat = seeds.ravel()
    places = np.flatnonzero(flat)
    found, index = np.unique(flat[places], return_index=True)
    assert len(found) == num
    first = np.stack(np.divmod(places[index], seeds.shape[1]), axis=1)
    boxes, seed_boxes = _boxes(labels, num), _boxes(seeds, num)
    areas = np.bincount(labels.ravel(), minlength=num + 1)[1:]
    is_large = (_sides(seed_boxes) > rules.seed_side) | (_sides(boxes) > rules.largest)
    is_own = np.ones(num, bool)
    if core is not None:
        inside = (first >= (core.y0, core.x0)) & (first < (core.y1, core.x1))
        is_own[:] = inside.all(axis=1)
    kept = is_own & ~is_large & (areas >= rules.smallest)
    numbers = np.zeros(num + 1, np.int32)
    numbers[1:][kept] = np.arange(1, kept.sum() + 1)
    return Grown(
        labels=numbers[labels],
        first=first[kept],
        boxes=boxes[kept],
        areas=areas[kept],
        too_large=first[is_own & is_large],
    )


def require_maps(maps: NDArray[np.floating]) -> None:
    """Raise `ShapeError` or `DataError` unless maps are (3, H, W) and finite."""
    if maps.ndim != 3 or maps.shape[0] != 3 or not maps.size:
        raise ShapeError(f"expected maps as (3, H, W) with cells, got {maps.shape}")
    if not np.isfinite(maps).all():
        raise DataError("the maps must be finite, got NaN or infinite values")


def _climbed(
    mask: NDArray[np.bool_], seeds: NDArray[np.int32], heights: NDArray[np.float32], reach: int
) -> NDArray[np.int32]:
    """Give every cell of the foreground the seed that its way up leads to, 0 where none is near."""
    height, width = mask.shape[0] + 2 * LOOK, mask.shape[1] + 2 * LOOK
    if height * width >= 2**31:
        raise ShapeError(f"expected maps of less than 2**31 cells, got {mask.shape}")
    # The ground, and what is beyond the array, lies deeper than anything.
    ground = np.pad(np.where(mask, heights, -np.inf), LOOK, constant_values=-np.inf).ravel()
    seed_of = np.pad(seeds, LOOK).ravel()
    way = np.flatnonzero(np.isfinite(ground) & (seed_of == 0)).astype(np.int32)
    above = np.arange(height * width, dtype=np.int32)
    length = np.zeros(height * width, np.int32)
    above[way] = _higher(ground, way, _NEAR, width)
    tops = way[above[way] == way]
    length[way] = 1
    above[tops] = _higher(ground, tops, _FAR, width)
    length[tops] = LOOK
    # Each turn doubles the ways. One that ends at a top has the length of a longer one.
    for _ in range(reach.bit_length()):
        further = above[way]
        step = length[further]
        above[way] = above[further]
        length[way] = np.minimum(length[way] + step, reach + 1)
    ends = np.where(length[way] <= reach, seed_of[above[way]], 0)
    seed_of[way] = ends
    return seed_of.reshape(height, width)[LOOK:-LOOK, LOOK:-LOOK]


def _higher(
    ground: NDArray[np.float32],
    places: NDArray[np.int32],
    offsets: list[tuple[int, int]],
    width: int,
) -> NDArray[np.int32]:
    """Return the highest place around each; itself if it is that. Of equal ones, the first."""
    best, chosen = ground[places], places.copy()
    for y, x in offsets:
        other = places + np.int32(y * width + x)
        values = ground[other]
        # Equal ones go to the first in rows: no way leads in a circle.
        is_better = values > best
        if (y, x) < (0, 0):
            np.logical_or(is_better, (values == best) & (chosen == places), out=is_better)
        best = np.where(is_better, values, best)
        chosen = np.where(is_better, other, chosen)
    return chosen


def _boxes(labels: NDArray[np.int32], num: int) -> NDArray[np.int64]:
    """Return the half-open box of every label, zeros where it has no cell."""
    found = ndimage.find_objects(labels, num)
    ends = [(0, 0, 0, 0) if s is None else (s[0].start, s[1].start, s[0].stop, s[1].stop)
            for s in found]  # fmt: skip
    return np.array(ends, np.int64).reshape(num, 4)


def _sides(boxes: NDArray[np.int64]) -> NDArray[np.int64]:
    sides: NDArray[np.int64] = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0)
    return sides
