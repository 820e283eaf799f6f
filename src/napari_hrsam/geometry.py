"""Boxes, tiles and the changes between their frames.

Everything is in (y, x) order. *Level-0 pixels* are pixels of the full-resolution image; a point
has pixel centres at integers, so pixel ``i`` covers ``[i - 0.5, i + 0.5)``. A box is half-open and
its numbers are pixel edges, so ``Box(0, 0, 2, 3)`` holds the pixels (0..1, 0..2).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from operator import index

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_hrsam.errors import ShapeError

FINEST_LEVEL = -2
"""Level 0 enlarged four times: the finest level a tile can have."""


def downsample(level: int) -> float:
    """Level-0 pixels per pixel of ``level`` along y and x: 0.25 at level -2, 1 at 0, 4 at 2."""
    return float(2.0**level)


def level_shape(shape_yx: tuple[int, int], level: int) -> tuple[int, int]:
    """Height and width in pixels at ``level``; a part of a pixel at the border counts as one."""
    scale = downsample(level)
    return math.ceil(shape_yx[0] / scale), math.ceil(shape_yx[1] / scale)


def coarsest_level(shape_yx: tuple[int, int], tile_px: int) -> int:
    """Find the first level (0 or more) at which the whole image fits in one tile."""
    level = 0
    while max(level_shape(shape_yx, level)) > tile_px:
        level += 1
    return level


def filling_level(shape_yx: tuple[int, int], tile_px: int) -> int:
    """Choose the level to start at: 0, or the enlarged level at which a small image fills a tile.

    An image of more than half a tile along its longer side gives 0, one of more than a quarter
    gives -1, a smaller one -2.
    """
    level = 0
    while level > FINEST_LEVEL and max(level_shape(shape_yx, level - 1)) <= tile_px:
        level -= 1
    return level


BEST_SHARES = 1 / 8, 1 / 4
"""Share of a tile's side that an object should take: more than the first, at most the second."""


def best_level(longer_px: float, shape_yx: tuple[int, int], tile_px: int) -> int:
    """Choose the level that shows an object at its best size, see `BEST_SHARES`.

    Parameters
    ----------
    longer_px : float
        The longer side of the object's box in level-0 pixels.
    shape_yx : tuple of int
        Of the image in level-0 pixels.
    tile_px : int
        Side of the tiles.

    Returns
    -------
    int
        From `FINEST_LEVEL` to the one at which the whole image fits in one tile.
    """
    level = math.ceil(math.log2(max(longer_px, 1.0) / (BEST_SHARES[1] * tile_px)))
    return min(max(level, FINEST_LEVEL), coarsest_level(shape_yx, tile_px))


def pixel_of(point_yx: tuple[float, float]) -> tuple[int, int]:
    """Return the pixel that a point lies in (pixel centres at integers)."""
    return math.floor(point_yx[0] + 0.5), math.floor(point_yx[1] + 0.5)


@dataclass(frozen=True, slots=True)
class Box:
    """A half-open rectangle of whole pixels: rows ``y0 .. y1 - 1``, columns ``x0 .. x1 - 1``.

    Raises
    ------
    ShapeError
        If an end lies before its start.
    """

    y0: int
    x0: int
    y1: int
    x1: int

    def __post_init__(self) -> None:
        """Take any whole numbers and check their order."""
        for name in ("y0", "x0", "y1", "x1"):
            object.__setattr__(self, name, index(getattr(self, name)))
        if self.y1 < self.y0 or self.x1 < self.x0:
            raise ShapeError(
                f"expected a box with y0 <= y1 and x0 <= x1, got {self}; "
                "give the upper left corner first"
            )

    @classmethod
    def of_shape(cls, shape_yx: tuple[int, int]) -> Box:
        """Return the box of a whole image."""
        return cls(0, 0, shape_yx[0], shape_yx[1])

    @classmethod
    def around(cls, mask: NDArray[np.bool_]) -> Box:
        """Return the smallest box that holds every True pixel of a (H, W) mask, or an empty one."""
        rows = np.flatnonzero(mask.any(axis=1))
        if rows.size == 0:
            return cls(0, 0, 0, 0)
        columns = np.flatnonzero(mask[rows[0] : rows[-1] + 1].any(axis=0))
        return cls(int(rows[0]), int(columns[0]), int(rows[-1]) + 1, int(columns[-1]) + 1)

    @property
    def height(self) -> int:
        """Number of rows."""
        return self.y1 - self.y0

    @property
    def width(self) -> int:
        """Number of columns."""
        return self.x1 - self.x0

    @property
    def shape_yx(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height, self.width

    @property
    def area(self) -> int:
        """Number of pixels."""
        return self.height * self.width

    @property
    def slices(self) -> tuple[slice, slice]:
        """Index that reads this box from an array; all ends must be 0 or more."""
        return slice(self.y0, self.y1), slice(self.x0, self.x1)

    def intersection(self, other: Box) -> Box:
        """Return the common part; of zero size if there is none."""
        y0, x0 = max(self.y0, other.y0), max(self.x0, other.x0)
        return Box(y0, x0, max(y0, min(self.y1, other.y1)), max(x0, min(self.x1, other.x1)))

    def union(self, other: Box) -> Box:
        """Return the smallest box that holds both; an empty box adds nothing."""
        if self.area == 0 or other.area == 0:
            return other if self.area == 0 else self
        return Box(
            min(self.y0, other.y0),
            min(self.x0, other.x0),
            max(self.y1, other.y1),
            max(self.x1, other.x1),
        )

    def contains(self, point_yx: tuple[float, float]) -> bool:
        """Whether the pixel under a point (pixel centres at integers) belongs to the box."""
        y, x = pixel_of(point_yx)
        return self.y0 <= y < self.y1 and self.x0 <= x < self.x1

    def expand(self, margin_px: int) -> Box:
        """Return the box grown by a margin on all four sides."""
        return Box(
            self.y0 - margin_px, self.x0 - margin_px, self.y1 + margin_px, self.x1 + margin_px
        )

    def clip(self, shape_yx: tuple[int, int]) -> Box:
        """Return the part inside an image of this shape."""
        height, width = shape_yx
        y0, x0 = min(max(self.y0, 0), height), min(max(self.x0, 0), width)
        return Box(y0, x0, max(y0, min(self.y1, height)), max(x0, min(self.x1, width)))

    def shifted(self, dy: int, dx: int) -> Box:
        """Return the box moved by (dy, dx)."""
        return Box(self.y0 + dy, self.x0 + dx, self.y1 + dy, self.x1 + dx)


BoxLike = Box | Sequence[int]
"""A `Box`, or four whole numbers (y0, x0, y1, x1): what every public function takes."""


def as_box(box: BoxLike) -> Box:
    """Return a box that was given as one or as (y0, x0, y1, x1).

    Raises
    ------
    ShapeError
        If it is neither, or an end lies before its start.
    """
    if isinstance(box, Box):
        return box
    try:
        return Box(*box)
    except TypeError:
        raise ShapeError(
            f"expected a box as four whole numbers (y0, x0, y1, x1), got {box!r}"
        ) from None


@dataclass(frozen=True, slots=True)
class Grid:
    """Blocks of one size, side by side, the first of which begins at pixel (0, 0).

    Attributes
    ----------
    side_yx : (int, int)
        Height and width of a block, 1 or more.
    """

    side_yx: tuple[int, int]

    def cover(self, box: Box) -> Box:
        """Return the rows and columns of blocks that a box touches; none if it has no pixel."""
        height, width = self.side_yx
        if box.area == 0:
            return Box(0, 0, 0, 0)
        return Box(box.y0 // height, box.x0 // width, -(-box.y1 // height), -(-box.x1 // width))

    def places(self, box: Box) -> Iterator[tuple[int, int]]:
        """Go through row and column of the blocks that a box touches, row by row."""
        cover = self.cover(box)
        return itertools.product(range(cover.y0, cover.y1), range(cover.x0, cover.x1))

    def box(self, place: tuple[int, int]) -> Box:
        """Return the pixels of a block."""
        (row, column), (height, width) = place, self.side_yx
        return Box(row * height, column * width, (row + 1) * height, (column + 1) * width)

    def parts(self, box: Box) -> Iterator[Box]:
        """Cut a box where blocks end, row by row."""
        return (self.box(place).intersection(box) for place in self.places(box))


@dataclass(frozen=True, slots=True)
class Tile:
    """The square that the encoder sees at once.

    Attributes
    ----------
    level : int
        Pyramid level, -2 or more.
    y0, x0 : int
        Upper left corner, in pixels of that level; below level 0 a whole level-0 pixel.
    size_px : int
        Side in pixels of that level.
    plane : tuple of int
        Index over the non-spatial axes of the image; empty for a 2-D image.
    """

    level: int
    y0: int
    x0: int
    size_px: int
    plane: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that the tile covers whole level-0 pixels."""
        if self.level < FINEST_LEVEL:
            raise ShapeError(
                f"expected a level of {FINEST_LEVEL} or more, got {self.level}; "
                "the image cannot be enlarged further"
            )
        step = 2 ** max(0, -self.level)
        if self.size_px <= 0 or self.size_px % step or self.y0 % step or self.x0 % step:
            raise ShapeError(
                f"expected a tile that covers whole level-0 pixels, got {self}; "
                f"use multiples of {step} for y0, x0 and size_px at level {self.level}"
            )

    @property
    def downsample(self) -> float:
        """Level-0 pixels per tile pixel."""
        return downsample(self.level)

    @property
    def box0(self) -> Box:
        """The tile in level-0 pixels; it may reach beyond the image."""
        scale = self.downsample
        y0, x0, size = int(self.y0 * scale), int(self.x0 * scale), int(self.size_px * scale)
        return Box(y0, x0, y0 + size, x0 + size)

    def to_tile(self, points0_yx: ArrayLike) -> NDArray[np.float64]:
        """Move (..., 2) points from level-0 pixels to pixels of this tile."""
        points = np.asarray(points0_yx, dtype=np.float64)
        moved: NDArray[np.float64] = (points + 0.5) / self.downsample - 0.5
        moved -= (self.y0, self.x0)
        return moved


@dataclass(frozen=True, slots=True)
class TileGrid:
    """The fixed grid of half-overlapping tiles over one level of an image.

    Because the grid is fixed, nearby objects share one embedding, a tile can be computed ahead,
    and a result does not depend on the order of work.

    Attributes
    ----------
    shape_yx : tuple of int
        Height and width of the image in level-0 pixels, 1 or more.
    tile_px : int
        Side of a tile in level pixels, a multiple of 8.
    level : int
        Pyramid level, -2 or more.
    plane : tuple of int
        Given to every tile.
    """

    shape_yx: tuple[int, int]
    tile_px: int
    level: int = 0
    plane: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Check that the image and the tiles have a size."""
        if min(self.shape_yx) < 1:
            raise ShapeError(f"expected an image of at least 1 x 1 pixels, got {self.shape_yx}")
        if self.tile_px < 8 or self.tile_px % 8:
            raise ShapeError(
                f"expected a tile side that is a positive multiple of 8, got {self.tile_px}"
            )

    @property
    def stride_px(self) -> int:
        """Distance between neighbouring tiles in level pixels: half a tile."""
        return self.tile_px // 2

    @property
    def num_tiles_yx(self) -> tuple[int, int]:
        """Number of tiles along y and x; at least one each."""
        height, width = level_shape(self.shape_yx, self.level)
        return self._num_along(height), self._num_along(width)

    def _num_along(self, length_px: int) -> int:
        return 1 + max(0, math.ceil((length_px - self.tile_px) / self.stride_px))

    def __len__(self) -> int:
        """Return the number of tiles."""
        return math.prod(self.num_tiles_yx)

    def __iter__(self) -> Iterator[Tile]:
        """Go through all tiles row by row."""
        for row in range(self.num_tiles_yx[0]):
            for column in range(self.num_tiles_yx[1]):
                yield self.tile(row, column)

    def tile(self, row: int, column: int) -> Tile:
        """Return the tile at a place in the grid."""
        stride = self.stride_px
        return Tile(self.level, row * stride, column * stride, self.tile_px, self.plane)

    def nearest(self, point0_yx: tuple[float, float]) -> Tile:
        """Return the tile whose centre is nearest to a level-0 point; it holds the point."""
        row, column = (
            self._nearest_along((point + 0.5) / downsample(self.level), num)
            for point, num in zip(point0_yx, self.num_tiles_yx, strict=True)
        )
        return self.tile(row, column)

    def _nearest_along(self, edge_px: float, num: int) -> int:
        place = math.ceil((edge_px - self.tile_px / 2) / self.stride_px - 0.5)
        return min(max(place, 0), num - 1)

    def holding(self, points0_yx: ArrayLike) -> Tile | None:
        """Return the tile of this level that holds all (N, 2) points, best centred on them."""
        points = np.asarray(points0_yx, dtype=np.float64).reshape(-1, 2)
        edges = (np.floor(points + 0.5) + 0.5) / downsample(self.level)
        places: list[int] = []
        for low, high, num in zip(
            edges.min(axis=0), edges.max(axis=0), self.num_tiles_yx, strict=True
        ):
            first = max(0, math.ceil((high - self.tile_px) / self.stride_px))
            last = min(num - 1, math.floor(low / self.stride_px))
            if first > last:
                return None
            places.append(min(max(self._nearest_along((low + high) / 2, num), first), last))
        return self.tile(*places)

    def smallest_holding(self, points0_yx: ArrayLike) -> Tile:
        """Return the finest tile, of this level or a coarser one, that holds all (N, 2) points.

        Raises
        ------
        ShapeError
            If a point lies outside the image, so that no tile can hold it.
        """
        for level in range(self.level, max(self.level, self._coarsest) + 1):
            tile = TileGrid(self.shape_yx, self.tile_px, level, self.plane).holding(points0_yx)
            if tile is not None:
                return tile
        raise ShapeError(
            f"expected points inside the image of shape {self.shape_yx}, "
            f"got {np.asarray(points0_yx).tolist()}; no tile holds them all"
        )

    @property
    def _coarsest(self) -> int:
        return coarsest_level(self.shape_yx, self.tile_px)
