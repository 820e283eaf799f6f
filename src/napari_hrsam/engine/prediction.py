"""The mask of an object, and how it comes from the logits of a tile."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box, Tile

SAMPLE_PIXELS = 2_000_000
"""Level-0 pixels interpolated at a time, so that a coarse mask needs little memory."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Prediction:
    """The mask of the current object as it stands.

    Attributes
    ----------
    mask : (box.height, box.width) bool
        The object in level-0 pixels; read-only.
    box : Box
        Where the mask lies: the tile's part of the image, in level-0 pixels.
    level : int
        Pyramid level at which the model looked.
    iou : float
        The model's own estimate of the mask's IoU, about 0..1.
    logits : (tile_px / 4, tile_px / 4) float32
        Low-resolution logits over the whole tile; above 0 is object.
    tile : Tile
        What the model looked at.
    seconds : dict of str to float
        ``encode_s`` (0 when the embedding was at hand), ``decode_s``, its part ``refine_s`` that
        the focus refiner took (0 when it did not run), and ``total_s`` with reading and drawing.
    """

    mask: NDArray[np.bool_]
    box: Box
    level: int
    iou: float
    logits: NDArray[np.float32]
    tile: Tile
    seconds: dict[str, float]


def mask_at_level0(
    logits: NDArray[np.float32], tile: Tile, shape_yx: tuple[int, int]
) -> tuple[Box, NDArray[np.bool_]]:
    """Interpolate the logits of a tile at the centres of level-0 pixels and threshold at 0.

    Parameters
    ----------
    logits : (size, size) float32
        At tile resolution.
    tile : Tile
    shape_yx : (int, int)
        Of the image in level-0 pixels.

    Returns
    -------
    box : Box
        The tile's part of the image, in level-0 pixels.
    mask : (box.height, box.width) bool
    """
    box = tile.box0.clip(shape_yx)
    mask = np.zeros(box.shape_yx, np.bool_)
    # Interpolated values are above 0 only within one tile pixel of a logit above 0.
    hot = Box.around(logits > 0)
    if hot.area == 0:
        return box, mask
    hot = hot.expand(1).shifted(tile.y0, tile.x0)
    ends = [round(edge * tile.downsample) for edge in (hot.y0, hot.x0, hot.y1, hot.x1)]
    region = Box(*ends).expand(1).intersection(box)
    if region.area == 0:
        return box, mask
    columns = tile.to_tile(np.stack([np.zeros(region.width), np.arange(region.x0, region.x1)], 1))
    step = max(1, SAMPLE_PIXELS // region.width)
    for y0 in range(region.y0, region.y1, step):
        y1 = min(y0 + step, region.y1)
        rows = tile.to_tile(np.stack([np.arange(y0, y1), np.zeros(y1 - y0)], 1))
        values = _interpolate(_interpolate(logits, rows[:, 0], 0), columns[:, 1], 1)
        mask[y0 - box.y0 : y1 - box.y0, region.x0 - box.x0 : region.x1 - box.x0] = values > 0
    return box, mask


def _interpolate(
    values: NDArray[np.float32], places: NDArray[np.float64], axis: int
) -> NDArray[np.float32]:
    """Interpolate a 2-D array linearly along one axis, clamped at its ends."""
    places = np.clip(places, 0, values.shape[axis] - 1)
    low = np.floor(places).astype(np.intp)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    share = np.expand_dims((places - low).astype(np.float32), 1 - axis)
    between: NDArray[np.float32] = np.take(values, low, axis) * (1 - share)
    between += np.take(values, high, axis) * share
    return between
