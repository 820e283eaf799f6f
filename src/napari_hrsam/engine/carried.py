"""An object of one plane carried to another: a click in its middle, and its mask as a prior.

`benchmarks/planes.py` compares what the model is told: with a box, too, it is worse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from napari_hrsam.engine.taken_up import as_logits, at_tile
from napari_hrsam.errors import SessionError
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.masks import ArrayMask, RegionMask

BOX_MARGIN = 1 / 8
"""The tile is chosen for a box larger than the object by this share of its longer side, at each
side: on the next plane the object may be larger."""

SAME_OVERLAP = 0.6
"""From this IoU with the plane before, the answer to the click alone is the same object."""

MAX_BETWEEN_PX = 2**24
"""Pixels of the box around both shapes between which others are interpolated: 4,096 x 4,096."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Carried:
    """An object of the label image on its way to another plane.

    Attributes
    ----------
    label : int
        Its id, which it keeps.
    plane : tuple of int
        Where it comes from, a plane of the image.
    mask : RegionMask
        What it is there.
    box : Box
        The smallest that holds the mask, in level-0 pixels.
    """

    label: int
    plane: tuple[int, ...]
    mask: RegionMask
    box: Box

    def loose_box(self, shape_yx: tuple[int, int]) -> tuple[float, float, float, float]:
        """Return a box in which the object may lie on the next plane; cut at the image's border."""
        box = self.box.expand(math.ceil(BOX_MARGIN * max(self.box.shape_yx))).clip(shape_yx)
        return float(box.y0), float(box.x0), float(box.y1), float(box.x1)

    def logits_on(self, tile: Tile) -> NDArray[np.float32]:
        """Return the mask as logits of a tile."""
        return as_logits(at_tile(self.mask, self.box, tile))

    def overlap(self, tile: Tile, logits: NDArray[np.float32]) -> float:
        """Return the IoU of the mask with what was found on a tile of another plane, 0..1."""
        there = logits > 0
        here = at_tile(self.mask, self.box, tile)
        union = np.count_nonzero(there | here)
        return np.count_nonzero(there & here) / union if union else 0.0


def click_in(
    logits: NDArray[np.float32], tile: Tile, shape_yx: tuple[int, int]
) -> tuple[float, float]:
    """Return the deepest place of a mask in level-0 pixels (y, x).

    Parameters
    ----------
    logits : (tile.size_px, tile.size_px) float32
        The mask on a tile; above 0 somewhere.
    tile : Tile
    shape_yx : (int, int)
        Of the image.
    """
    around = Box.around(logits > 0)
    depth = distance_transform_edt(np.pad(logits[around.slices] > 0, 1))[1:-1, 1:-1]
    row, column = np.unravel_index(int(np.argmax(depth)), depth.shape)
    y, x = (
        float((place + 0.5) * tile.downsample - 0.5)
        for place in (row + around.y0 + tile.y0, column + around.x0 + tile.x0)
    )
    return min(max(y, 0.0), shape_yx[0] - 1.0), min(max(x, 0.0), shape_yx[1] - 1.0)


def shape_between(
    first: Carried, last: Carried, share: float, shape_yx: tuple[int, int]
) -> Carried:
    """Interpolate between the shapes of an object on two planes.

    The signed distances from both outlines, each around its own centre, are mixed; the centre
    moves along a straight line. So the shapes need not overlap.

    Parameters
    ----------
    first, last : Carried
        The object on two planes.
    share : float
        Of the way from the first to the last, 0..1.
    shape_yx : (int, int)
        Of the image, in which the shape is to lie.

    Returns
    -------
    Carried
        Of no plane; it has at least one pixel.

    Raises
    ------
    SessionError
        If the box around both has more than `MAX_BETWEEN_PX` pixels.
    """
    for one in (first, last):
        if one.box.area > MAX_BETWEEN_PX:
            raise _too_large(one.box)
    masks = [one.mask.read(one.box) for one in (first, last)]
    centres = [
        np.argwhere(mask).mean(axis=0) + np.array((one.box.y0, one.box.x0))
        for mask, one in zip(masks, (first, last), strict=True)
    ]
    centre = (1 - share) * centres[0] + share * centres[1]
    moved = [
        one.box.shifted(*(int(way) for way in np.round(centre - own)))
        for one, own in zip((first, last), centres, strict=True)
    ]
    whole = moved[0].union(moved[1])
    if whole.area > MAX_BETWEEN_PX:
        raise _too_large(whole)
    distance = np.zeros(whole.shape_yx)
    for mask, box, weight in zip(masks, moved, (1 - share, share), strict=True):
        placed = np.zeros(whole.shape_yx, np.bool_)
        placed[box.shifted(-whole.y0, -whole.x0).slices] = mask
        inside = distance_transform_edt(np.pad(placed, 1))[1:-1, 1:-1]
        distance += weight * (inside - distance_transform_edt(~placed))
    inner = whole.clip(shape_yx)
    distance = distance[inner.shifted(-whole.y0, -whole.x0).slices]
    shape = (distance > 0) | (distance == distance.max())
    around = Box.around(shape)
    place = around.shifted(inner.y0, inner.x0)
    return Carried(
        label=first.label, plane=(), mask=ArrayMask(place, shape[around.slices]), box=place
    )


def _too_large(box: Box) -> SessionError:
    return SessionError(
        f"expected shapes in a box of at most {MAX_BETWEEN_PX:,} pixels to interpolate between, "
        f"got {box}; draw the object on the planes between with continue_on"
    )
