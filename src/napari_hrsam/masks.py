"""Masks of objects of any size, read part by part and never dense as a whole.

Everything is in level-0 pixels, (y, x) order, half-open boxes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ShapeError
from napari_hrsam.geometry import Box, BoxLike, Grid, as_box

BLOCK_PX = 512
"""Side of the blocks of a `BlockMask`, which lie on a fixed grid from pixel (0, 0)."""

_GRID = Grid((BLOCK_PX, BLOCK_PX))


@runtime_checkable
class RegionMask(Protocol):
    """A mask that tells its pixels box by box."""

    @property
    def box(self) -> Box:
        """Where pixels may be set."""

    def read(self, box: Box) -> NDArray[np.bool_]:
        """Return the mask over any box, of shape ``box.shape_yx``; False outside ``self.box``."""

    def fills(self, box: Box) -> bool | None:
        """Tell whether every pixel of a box is set (True) or none (False); None: read it."""


class ArrayMask:
    """A mask in one array.

    Parameters
    ----------
    box : Box
        Where it lies.
    array : (box.height, box.width) bool
        Its pixels; not copied.

    Raises
    ------
    ShapeError
        If the array does not have the shape of the box.
    """

    def __init__(self, box: Box, array: NDArray[np.bool_]) -> None:
        if array.shape != box.shape_yx:
            raise ShapeError(
                f"expected a mask of the shape of its box {box.shape_yx}, got {array.shape}; "
                "cut the mask and the box alike"
            )
        self._box = box
        self._array = array

    @property
    def box(self) -> Box:
        """Where pixels may be set."""
        return self._box

    def read(self, box: BoxLike) -> NDArray[np.bool_]:
        """Return the mask over a box; False outside its own."""
        box = as_box(box)
        common = box.intersection(self._box)
        inside = self._array[common.shifted(-self._box.y0, -self._box.x0).slices]
        if common == box:
            return inside
        mask = np.zeros(box.shape_yx, np.bool_)
        if common.area:
            mask[common.shifted(-box.y0, -box.x0).slices] = inside
        return mask

    def fills(self, box: Box) -> bool | None:
        """Tell only that nothing is set outside its own box."""
        return False if box.intersection(self._box).area == 0 else None


class EmptyMask:
    """A mask without a pixel.

    Parameters
    ----------
    box : Box
        Where it lies.
    """

    def __init__(self, box: Box) -> None:
        self.box = box

    def read(self, box: BoxLike) -> NDArray[np.bool_]:
        """Return an array of False."""
        box = as_box(box)
        return np.zeros(box.shape_yx, np.bool_)

    def fills(self, box: Box) -> bool:  # noqa: ARG002  # a `RegionMask` is asked for boxes
        """Tell that nothing is set."""
        return False


class BlockMask:
    """A mask in blocks: only those that the outline crosses are kept, 32 KiB each.

    Parameters
    ----------
    box : Box
        Where pixels may be set, inside the image.
    read : callable of Box to (height, width) bool
        Gives the pixels of a part of ``box``; called once per block, none larger than `BLOCK_PX`.
    fills : callable of Box to bool or None, optional
        Spares reading where it knows, as `RegionMask.fills`.
    """

    def __init__(
        self,
        box: Box,
        read: Callable[[Box], NDArray[np.bool_]],
        fills: Callable[[Box], bool | None] | None = None,
    ) -> None:
        self._box = box
        self._full: set[tuple[int, int]] = set()
        self._mixed: dict[tuple[int, int], NDArray[np.uint8]] = {}
        for place in _GRID.places(box):
            part = _GRID.box(place).intersection(box)
            known = None if fills is None else fills(part)
            pixels = read(part) if known is None else None
            if known or (pixels is not None and pixels.all()):
                self._full.add(place)
            elif pixels is not None and pixels.any():
                self._mixed[place] = np.packbits(pixels)

    @property
    def box(self) -> Box:
        """Where pixels may be set."""
        return self._box

    @property
    def num_bytes(self) -> int:
        """Memory that the outline's blocks take."""
        return sum(packed.nbytes for packed in self._mixed.values())

    def read(self, box: BoxLike) -> NDArray[np.bool_]:
        """Return the mask over a box; False outside its own."""
        box = as_box(box)
        mask = np.zeros(box.shape_yx, np.bool_)
        for place in _GRID.places(box.intersection(self._box)):
            own = _GRID.box(place).intersection(self._box)
            part = own.intersection(box)
            inside = mask[part.shifted(-box.y0, -box.x0).slices]
            if place in self._full:
                inside[:] = True
            elif place in self._mixed:
                pixels = np.unpackbits(self._mixed[place], count=own.area).reshape(own.shape_yx)
                inside[:] = pixels[part.shifted(-own.y0, -own.x0).slices]
        return mask

    def fills(self, box: Box) -> bool | None:
        """Tell whether a box lies in full blocks only, or in empty ones only."""
        common = box.intersection(self._box)
        kinds = {
            None if place in self._mixed else place in self._full for place in _GRID.places(common)
        }
        if kinds <= {False}:
            return False
        return True if kinds == {True} and common == box else None


def mask_iou(pred: NDArray[Any], gt: NDArray[Any]) -> float:
    """Intersection over union of the foreground.

    Parameters
    ----------
    pred, gt : (H, W), any dtype
        Any non-zero value is foreground.

    Returns
    -------
    float, 0..1
        0 if both masks are empty, as in the published protocol.

    Raises
    ------
    ShapeError
        If the shapes differ.
    """
    if pred.shape != gt.shape:
        raise ShapeError(f"pred and gt must have one shape, got {pred.shape} and {gt.shape}")
    pred, gt = pred.astype(bool, copy=False), gt.astype(bool, copy=False)
    union = np.count_nonzero(pred | gt)
    return np.count_nonzero(pred & gt) / union if union else 0.0
