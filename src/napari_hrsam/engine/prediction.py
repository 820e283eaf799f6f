"""The mask of an object as a session tells it."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.multiscale_mask import MultiscaleMask
from napari_hrsam.errors import SessionError
from napari_hrsam.geometry import Box, BoxLike, Tile, as_box, downsample
from napari_hrsam.masks import RegionMask
from napari_hrsam.storage.images.tile_source import PyramidImage

MAX_DENSE_PX = 2**28
"""Level-0 pixels of the largest mask that is given as one array: 256 MiB."""

BLOCK_PX = 1024
"""Side of the blocks in which missing pixels are looked for."""


class PresentMask:
    """A mask without the pixels that the image lacks; a `RegionMask`.

    Parameters
    ----------
    region : RegionMask
        The mask.
    image : PyramidImage
    plane : tuple of int
        Where the object lies.
    """

    def __init__(self, region: RegionMask, image: PyramidImage, plane: tuple[int, ...]) -> None:
        self._region = region
        self._image = image
        self._plane = plane

    @property
    def box(self) -> Box:
        """Where pixels may be set."""
        return self._region.box

    def read(self, box: BoxLike) -> NDArray[np.bool_]:
        """Return the mask over a box; False outside its own.

        Raises
        ------
        ImageReadError
            If the image's pixels there cannot be read.
        """
        box = as_box(box)
        mask = self._region.read(box).copy()
        for y, x in itertools.product(
            range(0, box.height, BLOCK_PX), range(0, box.width, BLOCK_PX)
        ):
            block = mask[y : y + BLOCK_PX, x : x + BLOCK_PX]
            held = Box.around(block)
            if held.area:
                place = held.shifted(box.y0 + y, box.x0 + x)
                block[held.slices] &= self._image.present(place, self._plane)
        return mask

    def fills(self, box: Box) -> bool | None:
        """Tell only where nothing is set: any pixel may be missing."""
        return None if self._region.fills(box) is not False else False


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The mask of the current object as it stands; no pixel that the image lacks is in it.

    Attributes
    ----------
    multiscale : MultiscaleMask
        The mask at every level, before missing pixels are left out.
    iou : float
        The model's own estimate of the mask's IoU, about 0..1.
    logits : (tile_px / 4, tile_px / 4) float32
        Low-resolution logits over the whole tile; above 0 is object.
    is_cut : bool
        Whether the object reaches the border of the tile, beyond which there is more image. Another
        prompt, or a look from further away, shows more of it.
    seconds : dict of str to float
        ``encode_s`` (0 when the embedding was at hand), ``decode_s``, its part ``refine_s`` that
        the focus refiner took (0 when it did not run), and ``total_s`` with reading and drawing.
    image : PyramidImage, optional
        Whose missing pixels are left out.
    """

    multiscale: MultiscaleMask
    iou: float
    logits: NDArray[np.float32]
    is_cut: bool
    seconds: dict[str, float]
    image: PyramidImage | None = None

    @property
    def tile(self) -> Tile:
        """What the model looked at."""
        return self.multiscale.tile

    @property
    def level(self) -> int:
        """Pyramid level at which the model looked."""
        return self.multiscale.tile.level

    @property
    def box(self) -> Box:
        """Where the mask lies: the tile's part of the image, in level-0 pixels."""
        return self.multiscale.box

    @property
    def region(self) -> RegionMask:
        """The mask, to be read box by box however large the object is."""
        if self.image is not None and self.image.may_lack_pixels:
            return PresentMask(self.multiscale, self.image, self.tile.plane)
        return self.multiscale

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """The object in level-0 pixels: (box.height, box.width) bool, read-only.

        Raises
        ------
        SessionError
            If the box has more than 2**28 pixels; use `region` or `level_mask` then.
        """
        if self.box.area > MAX_DENSE_PX:
            raise SessionError(
                f"expected a mask of at most {MAX_DENSE_PX:,} pixels, got one over {self.box}; "
                "read parts of it with prediction.region.read(box), or take "
                "prediction.level_mask, which is coarser"
            )
        mask = self.region.read(self.box)
        mask.flags.writeable = False
        return mask

    @property
    def level_downsample(self) -> int:
        """Level-0 pixels per pixel of `level_mask` along y and x."""
        return int(downsample(max(self.level, 0)))

    @cached_property
    def level_mask(self) -> NDArray[np.bool_]:
        """The object in pixels of its level, from the upper left corner of `box`, read-only.

        (ceil(box.height / d), ceil(box.width / d)) bool with d = `level_downsample`; the same as
        `mask` at levels of 0 and less.
        """
        if self.level <= 0:
            return self.mask
        height, width = (math.ceil(side / self.level_downsample) for side in self.box.shape_yx)
        mask: NDArray[np.bool_] = self.multiscale.logits[:height, :width] > 0
        for y, x, label in self.multiscale.clicked:
            mask[
                (y - self.box.y0) // self.level_downsample,
                (x - self.box.x0) // self.level_downsample,
            ] = label
        mask.flags.writeable = False
        return mask

    @property
    def extent(self) -> Box:
        """The part of `box` that holds the object, as far as `level_mask` tells; may be empty.

        Level-0 pixels. A refined outline may lie a few pixels of the level outside.
        """
        around, scale = Box.around(self.level_mask), self.level_downsample
        edges = (around.y0, around.x0, around.y1, around.x1)
        place = Box(*(edge * scale for edge in edges)).shifted(self.box.y0, self.box.x0)
        return place.intersection(self.box)

    def __repr__(self) -> str:
        """Tell place, level and predicted IoU in one line."""
        box = self.extent
        place = (box.y0, box.x0, box.y1, box.x1)
        cut = ", cut" if self.is_cut else ""
        return f"Prediction({place}, level {self.level}, predicted IoU {self.iou:.2f}{cut})"

    def __bool__(self) -> bool:
        """Whether any pixel is set."""
        return bool(self.level_mask.any())
