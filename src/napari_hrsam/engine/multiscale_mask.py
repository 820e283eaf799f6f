"""Logits of one object over the image: coarse ones of a tile, and finer ones where it matters.

Legend: *layer* 0 is the tile that found the object; every further layer is finer and holds square
blocks of logits along the object's outline. Where a layer has no block, the layer before speaks.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box, BoxLike, Grid, Tile, as_box, downsample, pixel_of

QUANTUM = 1 / 16
"""Step of the logits kept in blocks, which are bytes: 8 either way, far beyond any doubt."""

BLOCK_PX = 256
"""Side of the level-0 blocks in which a box is read; most of them are all object or none."""


@dataclass(frozen=True, slots=True, eq=False)
class OutlineLayer:
    """Logits along the outline at one level.

    Attributes
    ----------
    level : int
        Pyramid level, finer than that of the layer before.
    block_px : int
        Side of a block in pixels of the level; blocks lie on a grid from pixel (0, 0).
    blocks : mapping of (row, column) to (block_px, block_px) int8
        Logits in steps of `QUANTUM`.
    signs : dict of (row, column) to bool or None
        Whether a block is all object (True) or has none (False).
    """

    level: int
    block_px: int
    blocks: Mapping[tuple[int, int], NDArray[np.int8]]
    signs: dict[tuple[int, int], bool | None] = field(init=False)

    def __post_init__(self) -> None:
        """Look at every block once."""
        signs = {
            place: None if block.max() > 0 >= block.min() else bool(block.max() > 0)
            for place, block in self.blocks.items()
        }
        object.__setattr__(self, "signs", signs)

    def under(self, box: Box) -> Iterator[tuple[int, int]]:
        """Go through the places of blocks that a box (in pixels of the level) touches."""
        return itertools.product(
            range(box.y0 // self.block_px, -(-box.y1 // self.block_px)),
            range(box.x0 // self.block_px, -(-box.x1 // self.block_px)),
        )

    def place(self, block: tuple[int, int]) -> Box:
        """Return where a block lies, in pixels of the level."""
        y0, x0 = block[0] * self.block_px, block[1] * self.block_px
        return Box(y0, x0, y0 + self.block_px, x0 + self.block_px)


def to_block(logits: NDArray[np.float32]) -> NDArray[np.int8]:
    """Round logits to the bytes of a `OutlineLayer`; the sign of every one is kept."""
    steps = np.clip(np.abs(logits) / QUANTUM, 0, 127)
    # Above 0 is object, 0 is not: rounding must not move a small positive logit to 0.
    return np.where(logits > 0, np.ceil(steps), -np.floor(steps)).astype(np.int8)


class MultiscaleMask:
    """The mask of an object as logits, read at any level; a `RegionMask`.

    Parameters
    ----------
    tile : Tile
        Where the object was found.
    logits : (tile.size_px, tile.size_px) float32
        At tile resolution; above 0 is object. Not changed.
    shape_yx : (int, int)
        Of the image in level-0 pixels.
    clicks : sequence of ((y, x), bool), optional
        Level-0 pixels whose value is known: interpolation may miss a clicked pixel.
    layers : sequence of OutlineLayer, optional
        Finer logits, coarsest first.
    """

    def __init__(
        self,
        tile: Tile,
        logits: NDArray[np.float32],
        shape_yx: tuple[int, int],
        clicks: Sequence[tuple[tuple[float, float], bool]] = (),
        layers: Sequence[OutlineLayer] = (),
    ) -> None:
        self.tile = tile
        self.logits = logits
        self.layers = tuple(layers)
        self._shape_yx = shape_yx
        self._clicks = {pixel_of(point): label for point, label in clicks}
        self._box = tile.box0.clip(shape_yx)
        # How many logits above 0 lie above and left of each: the sums of any box in four reads.
        self._sums = np.pad(np.cumsum(np.cumsum(logits > 0, 0, np.int32), 1), ((1, 0), (1, 0)))

    @property
    def box(self) -> Box:
        """Where pixels may be set: the tile's part of the image, in level-0 pixels."""
        return self._box

    @property
    def level(self) -> int:
        """The finest level at which the outline is known."""
        return self.layers[-1].level if self.layers else self.tile.level

    @property
    def clicked(self) -> list[tuple[int, int, bool]]:
        """The pixels whose value is known: (y, x, label) in level-0 pixels."""
        return [(y, x, label) for (y, x), label in self._clicks.items()]

    def is_exact(self, box: Box) -> bool:  # noqa: ARG002  # a mask that was predicted never is
        """Whether the mask in a level-0 box is known, so that there is nothing to refine."""
        return False

    def with_layer(self, layer: OutlineLayer) -> MultiscaleMask:
        """Return the mask with one more, finer, layer."""
        clicks = list(self._clicks.items())
        return MultiscaleMask(self.tile, self.logits, self._shape_yx, clicks, (*self.layers, layer))

    def read(self, box: BoxLike) -> NDArray[np.bool_]:
        """Return the mask over a box of level-0 pixels; False outside its own box."""
        box = as_box(box)
        mask = np.zeros(box.shape_yx, np.bool_)
        common = box.intersection(self._box)
        for part in Grid((BLOCK_PX, BLOCK_PX)).parts(common):
            sign = self._sign(len(self.layers), part)
            if sign is not False:
                values = True if sign else self.sample(0, part) > 0
                mask[part.y0 - box.y0 : part.y1 - box.y0, part.x0 - box.x0 : part.x1 - box.x0] = (
                    values
                )
        for (y, x), label in self._clicks.items():
            if common.contains((y, x)):
                mask[y - box.y0, x - box.x0] = label
        return mask

    def fills(self, box: Box) -> bool | None:
        """Tell whether every pixel of a level-0 box is set or none, where logits tell it at once.

        Interpolated logits lie between the smallest and the largest of those around.
        """
        common = box.intersection(self._box)
        if common.area == 0:
            return False
        sign = self._sign(len(self.layers), common)
        clicked = (label for pixel, label in self._clicks.items() if common.contains(pixel))
        if sign is None or any(label != sign for label in clicked):
            return None
        return sign if common == box or not sign else None

    def _sign(self, num_layers: int, box: Box) -> bool | None:
        """Tell whether the first layers say object everywhere in a level-0 box, or nowhere."""
        if num_layers == 0:
            around = _around(box, self.tile)
            sums = self._sums
            count = sums[around.y1, around.x1] - sums[around.y0, around.x1]
            count += sums[around.y0, around.x0] - sums[around.y1, around.x0]
            return None if 0 < count < around.area else bool(count)
        layer = self.layers[num_layers - 1]
        here = box if layer.level == 0 else _at_level(box, layer.level).expand(1)
        signs: set[bool | None] = set()
        is_covered = True
        for block in layer.under(here):
            if block not in layer.signs:
                is_covered = False
                continue
            signs.add(layer.signs[block])
            if None in signs or len(signs) > 1:
                return None
        if not is_covered:
            signs.add(self._sign(num_layers - 1, box))
        return signs.pop() if len(signs) == 1 else None

    def sample(self, level: int, box: Box) -> NDArray[np.float32]:
        """Interpolate the logits bilinearly at the pixel centres of a level.

        Parameters
        ----------
        level : int
            Any; meant for levels not coarser than the finest layer.
        box : Box
            In pixels of that level; logits outside the tile are those at its border.

        Returns
        -------
        (box.height, box.width) float32
        """
        return self._sample(len(self.layers), level, box)

    def _sample(self, num_layers: int, level: int, box: Box) -> NDArray[np.float32]:
        """Interpolate what the first layers say; ``num_layers`` 0 is the tile alone."""
        if num_layers == 0:
            tile, values = self.tile, self.logits
            ratio, origin = downsample(level) / tile.downsample, (tile.y0, tile.x0)
            whole = Box(tile.y0, tile.x0, tile.y0 + tile.size_px, tile.x0 + tile.size_px)
            if ratio == 1 and box.intersection(whole) == box:
                return values[box.shifted(-tile.y0, -tile.x0).slices]
        else:
            layer = self.layers[num_layers - 1]
            ratio = downsample(level - layer.level)
            read = Box(
                *(int(np.floor((edge + 0.5) * ratio - 0.5)) for edge in (box.y0, box.x0)),
                *(int(np.ceil((edge - 0.5) * ratio - 0.5)) + 1 for edge in (box.y1, box.x1)),
            )
            values, origin = self._composed(num_layers, read), (read.y0, read.x0)
            if ratio == 1:
                return values
        rows = (np.arange(box.y0, box.y1) + 0.5) * ratio - 0.5 - origin[0]
        columns = (np.arange(box.x0, box.x1) + 0.5) * ratio - 0.5 - origin[1]
        return _resampled(values, rows, columns)

    def _composed(self, num_layers: int, box: Box) -> NDArray[np.float32]:
        """Read a box at the level of a layer: its blocks, and what the layers before say."""
        layer = self.layers[num_layers - 1]
        blocks = [block for block in layer.under(box) if block in layer.blocks]
        covered = sum(layer.place(block).intersection(box).area for block in blocks)
        if covered == box.area:
            values = np.empty(box.shape_yx, np.float32)
        else:
            values = self._sample(num_layers - 1, layer.level, box).copy()
        for block in blocks:
            place = layer.place(block)
            common = place.intersection(box)
            inside = layer.blocks[block][common.shifted(-place.y0, -place.x0).slices]
            values[common.shifted(-box.y0, -box.x0).slices] = inside * np.float32(QUANTUM)
        return values


def _around(box0: Box, tile: Tile) -> Box:
    """Return the tile pixels that pixels of a level-0 box are interpolated from."""
    first = tile.to_tile((box0.y0, box0.x0))
    last = tile.to_tile((box0.y1 - 1, box0.x1 - 1))
    low = np.clip(np.floor(first).astype(int), 0, tile.size_px - 1)
    high = np.clip(np.floor(last).astype(int) + 1, 0, tile.size_px - 1)
    return Box(low[0], low[1], high[0] + 1, high[1] + 1)


def _at_level(box0: Box, level: int) -> Box:
    scale = downsample(level)
    return Box(
        int(box0.y0 // scale),
        int(box0.x0 // scale),
        int(-(-box0.y1 // scale)),
        int(-(-box0.x1 // scale)),
    )


def _resampled(
    values: NDArray[np.float32], rows: NDArray[np.floating[Any]], columns: NDArray[np.floating[Any]]
) -> NDArray[np.float32]:
    """Interpolate a 2-D array bilinearly at rows x columns, ascending, clamped at its ends."""
    for axis, places in enumerate((rows, columns)):
        # What lies beside the places need not be looked at.
        first = min(max(math.floor(places[0]), 0), values.shape[axis] - 1)
        last = min(max(math.floor(places[-1]) + 1, 0), values.shape[axis] - 1)
        values = values[first : last + 1] if axis == 0 else values[:, first : last + 1]
        if axis == 0:
            rows = rows - first
        else:
            columns = columns - first
    return _interpolate(_interpolate(values, rows, 0), columns, 1)


def _interpolate(
    values: NDArray[np.float32], places: NDArray[np.floating[Any]], axis: int
) -> NDArray[np.float32]:
    """Interpolate a 2-D array linearly along one axis, clamped at its ends."""
    places = np.clip(places, 0, values.shape[axis] - 1)
    low = np.floor(places).astype(np.intp)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    share = np.expand_dims((places - low).astype(np.float32), 1 - axis)
    between: NDArray[np.float32] = np.take(values, low, axis) * (1 - share)
    between += np.take(values, high, axis) * share
    return between
