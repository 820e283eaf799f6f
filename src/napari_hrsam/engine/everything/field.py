"""One field of maps over a level: what a place holds depends on the place, not on who asks.

Tiles lie on a fixed grid, each is encoded by itself, and where several cover a place their maps are
blended by fixed weights. A cell is `CELL_PX` level pixels wide.
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.embed import is_blank
from napari_hrsam.engine.tile_cache import TilePixels
from napari_hrsam.errors import ConfigError
from napari_hrsam.geometry import Box, Tile, level_shape
from napari_hrsam.lru import LRU
from napari_hrsam.storage.images.tile_source import PyramidImage

if TYPE_CHECKING:
    from napari_hrsam.engine.predictor import DenseMaps, Embedding, Predictor

CELL_PX = 2
"""Level pixels along a side of a cell of the maps."""

FEATURE_CELLS = 8
"""Cells along a side of what has one vector of features: a cell of the embedding."""

FINEST = -1
"""The finest level at which a cell is a whole number of level-0 pixels."""

MAX_TILE_BYTES = 192 * 2**20
"""Memory for the maps of tiles, which neighbouring blocks share."""

_LEAST_WEIGHT = 1e-3
"""At the very edge of a tile: where no other tile covers it, it counts alone."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _TileMaps:
    """What is kept of a tile: maps and colours in cells, features; no maps if it is blank."""

    maps: NDArray[np.float16] | None
    rgb: NDArray[np.uint8]
    features: NDArray[np.float16] | None
    fine: tuple[NDArray[np.float16], ...] = ()

    @property
    def num_bytes(self) -> int:
        arrays = (self.maps, self.rgb, self.features, *self.fine)
        return sum(array.nbytes for array in arrays if array is not None)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FieldPart:
    """A part of the field.

    Attributes
    ----------
    box : Box
        Where, in cells.
    maps : (3, H, W) float32, 0..1
        Foreground, centre distance, boundary distance.
    rgb : (H, W, 3) uint8
        Mean colour of each cell as the model sees it.
    features : (h, w, F) float16
        Of each `FEATURE_CELLS` cells, from the cell that holds ``box``'s first: what
        the head reads its maps off, the embedding, the stem's maps.
    """

    box: Box
    maps: NDArray[np.float32]
    rgb: NDArray[np.uint8]
    features: NDArray[np.float16]

    @property
    def feature_box(self) -> Box:
        """Where the features lie, in cells of theirs."""
        return _feature_box(self.box)


class Field:
    """The maps of one plane of an image at one level.

    ``keeps_fine`` is for a class that also wants what the maps were read off, in each tile.

    Parameters
    ----------
    image : PyramidImage
    predictor : Predictor
        Of a model with a dense head.
    level : int
        -1 or more.
    plane : tuple of int
        As in ``Tile.plane``.
    skip_blank : bool
        Whether tiles that show one colour and noise are taken to hold nothing.

    Attributes
    ----------
    shape : (int, int)
        Height and width in cells.
    seconds : dict of str to float
        Of the processor, so far: "read", "encode", "head"; those who use it add theirs.
    num_tiles, num_blank : int
        Tiles encoded so far, and those left out.

    Raises
    ------
    ConfigError
        If the model has no dense head, its tiles cannot be laid out, or there is no such level.
    """

    keeps_fine = False

    def __init__(
        self,
        image: PyramidImage,
        predictor: Predictor,
        level: int,
        plane: tuple[int, ...] = (),
        *,
        skip_blank: bool = False,
    ) -> None:
        predictor.require_dense_head()
        self._side = predictor.tile_px // CELL_PX
        if predictor.tile_px % 64:
            raise ConfigError(
                f"expected tiles of a multiple of 64 px, got {predictor.tile_px}; load the model "
                "with another tile_px"
            )
        if not FINEST <= level < image.num_levels:
            raise ConfigError(
                f"expected a level from {FINEST} to {image.num_levels - 1}, got {level}; 0 is full "
                "size, 1 half of it"
            )
        self._image, self._predictor = image, predictor
        self.level, self.plane, self._skip_blank = level, plane, skip_blank
        height, width = level_shape(image.shape_yx, level)
        self.shape = -(-height // CELL_PX), -(-width // CELL_PX)
        self._stride = self._side * 3 // 4
        self._window = _window(self._side, self._side - self._stride)
        self._tiles: LRU[tuple[int, int], _TileMaps] = LRU(
            MAX_TILE_BYTES, lambda tile: tile.num_bytes
        )
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.num_tiles = self.num_blank = 0

    def tiles_of(self, box: Box) -> list[tuple[int, int]]:
        """Return row and column of the tiles that cover some cells."""
        rows, columns = (
            range(
                max(0, -(-(first - self._side + 1) // self._stride)),
                min(self._last(size), (last - 1) // self._stride) + 1,
            )
            for first, last, size in zip(
                (box.y0, box.x0), (box.y1, box.x1), self.shape, strict=True
            )
        )
        return list(itertools.product(rows, columns))

    def read(self, box: Box, step: Callable[[], None] | None = None) -> FieldPart:
        """Compute a part of the field.

        Parameters
        ----------
        box : Box
            In cells, inside the field, of at least one cell.
        step : callable, optional
            Called before each tile; what it raises ends the work.

        Raises
        ------
        ImageReadError
            If pixels cannot be read.
        SessionError
            If the model computes NaN or infinity, or memory runs out.
        """
        sums = np.zeros((3, *box.shape_yx), np.float32)
        total = np.zeros(box.shape_yx, np.float32)
        rgb = np.zeros((*box.shape_yx, 3), np.uint8)
        lots = _feature_box(box)
        features: NDArray[np.float16] | None = None
        for place in self.tiles_of(box):
            if step is not None:
                step()
            tile = self._tile(place)
            where = self._box(place)
            common = where.intersection(box)
            inside = common.shifted(-where.y0, -where.x0).slices
            out = common.shifted(-box.y0, -box.x0).slices
            weights = self._window[inside]
            total[out] += weights
            if tile.maps is not None:
                sums[:, *out] += weights * tile.maps[:, *inside].astype(np.float32)
            own = self._own(place).intersection(box)
            if own.area:
                inside = own.shifted(-where.y0, -where.x0).slices
                rgb[own.shifted(-box.y0, -box.x0).slices] = tile.rgb[inside]
            if tile.features is not None:
                if features is None:
                    features = np.zeros((*lots.shape_yx, tile.features.shape[2]), np.float16)
                own = _feature_box(self._own(place)).intersection(lots)
                first = where.y0 // FEATURE_CELLS, where.x0 // FEATURE_CELLS
                inside = own.shifted(-first[0], -first[1]).slices
                features[own.shifted(-lots.y0, -lots.x0).slices] = tile.features[inside]
        if features is None:
            features = np.zeros((*lots.shape_yx, 0), np.float16)
        return FieldPart(box=box, maps=sums / total, rgb=rgb, features=features)

    def _last(self, size: int) -> int:
        """Return the place of the last tile along an axis."""
        return max(0, -(-(size - self._side) // self._stride))

    def _box(self, place: tuple[int, int]) -> Box:
        y, x = place[0] * self._stride, place[1] * self._stride
        return Box(y, x, y + self._side, x + self._side)

    def _own(self, place: tuple[int, int]) -> Box:
        """Return the cells for whose colours and features a tile stands: near its middle."""
        overlap = self._side - self._stride
        margin = overlap // 2 // FEATURE_CELLS * FEATURE_CELLS
        ends = []
        for index, size in zip(place, self.shape, strict=True):
            first = index * self._stride
            start = first + (margin if index else 0)
            is_last = index == self._last(size)
            ends.append((start, first + (self._side if is_last else self._stride + margin)))
        (y0, y1), (x0, x1) = ends
        return Box(y0, x0, y1, x1)

    def _tile(self, place: tuple[int, int]) -> _TileMaps:
        found = self._tiles.get(place)
        if found is None:
            found = self._tiles[place] = self._made(place)
        return found

    def _made(self, place: tuple[int, int]) -> _TileMaps:
        side_px = self._side * CELL_PX
        stride_px = self._stride * CELL_PX
        tile = Tile(self.level, place[0] * stride_px, place[1] * stride_px, side_px, self.plane)
        started = time.process_time()
        pixels = TilePixels(self._image, tile, self._predictor.fill)
        shown = pixels.read()
        rgb = _means(shown)
        self.seconds["read"] += time.process_time() - started
        if self._skip_blank and is_blank(pixels.inside()):
            self.num_blank += 1
            return _TileMaps(maps=None, rgb=rgb, features=None)
        started = time.process_time()
        embedding = self._predictor.encode(shown, tile)
        encoded = time.process_time()
        dense = self._predictor.dense_maps(embedding)
        maps = dense.maps.astype(np.float16)
        present = pixels.present()
        if present is not None:
            # There is no object where the image lacks its pixels.
            maps[0] *= present.reshape(self._side, CELL_PX, self._side, CELL_PX).any(axis=(1, 3))
        features = _features(embedding, dense)
        self.seconds["encode"] += encoded - started
        self.seconds["head"] += time.process_time() - encoded
        self.num_tiles += 1
        stem = (embedding.arrays.get(name) for name in ("stride8", "stride4"))
        fine = (dense.features, *(values[0] for values in stem if values is not None))
        return _TileMaps(
            maps=maps, rgb=rgb, features=features, fine=fine if self.keeps_fine else ()
        )


def _feature_box(box: Box) -> Box:
    step = FEATURE_CELLS
    return Box(box.y0 // step, box.x0 // step, -(-box.y1 // step), -(-box.x1 // step))


def _window(side: int, overlap: int) -> NDArray[np.float32]:
    """Return the weights of a tile: 0 to 1 over the middle half of what two tiles share."""
    edge = np.minimum(np.arange(side) + 0.5, side - 0.5 - np.arange(side))
    ramp = np.clip((edge - overlap / 4) / (overlap / 2), _LEAST_WEIGHT, 1.0)
    return np.outer(ramp, ramp).astype(np.float32)


def _means(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the rounded mean colour of each cell."""
    rows = pixels[::2].astype(np.uint16) + pixels[1::2]
    sums = rows[:, ::2] + rows[:, 1::2]
    return ((sums + 2) >> 2).astype(np.uint8)


def _features(embedding: Embedding, dense: DenseMaps) -> NDArray[np.float16]:
    """Return the means of the head's features, of the embedding and the stem's maps: (h, w, F)."""
    h, w = embedding.arrays["embedding"].shape[2:]
    parts = []
    named = (embedding.arrays.get(name) for name in ("embedding", "stride8", "stride4"))
    for values in (dense.features[None], *named):
        if values is not None:
            _, num, rows, columns = values.shape
            cells = values.reshape(num, h, rows // h, w, columns // w)
            parts.append(cells.mean(axis=(2, 4), dtype=np.float32))
    features: NDArray[np.float16] = np.concatenate(parts).transpose(1, 2, 0).astype(np.float16)
    return np.ascontiguousarray(features)
