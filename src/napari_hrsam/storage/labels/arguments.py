"""What is given to a label image, checked."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import BLOCK_PX, ArrayMask, RegionMask
from napari_hrsam.storage.labels.changes import MAX_AREAS


def require_fits(label: int, dtype: np.dtype[Any]) -> None:
    """Raise `LabelsError` unless labels of this dtype can hold the id."""
    highest = int(np.iinfo(dtype).max)
    if not 1 <= label <= highest:
        raise LabelsError(
            f"expected a label between 1 and {highest}, the highest that {dtype} "
            f"holds, got {label}; convert the labels, e.g. labels.astype(numpy.uint32)"
        )


def region_of(
    box: Box, mask: NDArray[np.bool_] | RegionMask, shape_yx: tuple[int, int]
) -> RegionMask:
    """Return a mask of either kind as one that is read part by part.

    Raises `ShapeError` or `LabelsError` unless it fills a box inside the labels.
    """
    if box.clip(shape_yx) != box:
        raise LabelsError(
            f"expected a box inside the labels of shape {shape_yx}, got {box}; "
            "clip the box and the mask to the image"
        )
    return ArrayMask(box, mask) if isinstance(mask, np.ndarray) else mask


def checked_plane(plane: tuple[int, ...], plane_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the plane, one index per axis; it may be left out where every axis has length 1.

    Raises `LabelsError` if the labels do not have it.
    """
    if plane == () and set(plane_shape) <= {1}:
        return (0,) * len(plane_shape)
    if len(plane) != len(plane_shape) or not all(
        0 <= place < size for place, size in zip(plane, plane_shape, strict=True)
    ):
        raise LabelsError(
            f"expected a plane inside labels with planes of shape {plane_shape}, got {plane}; "
            "give one index per axis before y and x, or make labels that have these planes with "
            "create_labels(path, name, like=image)"
        )
    return plane


def no_free_pixel(label: int, mask: RegionMask, box: Box) -> LabelsError:
    """Return the error for an object of which no pixel may be written."""
    count = 0
    for y0 in range(box.y0, box.y1, BLOCK_PX):
        for x0 in range(box.x0, box.x1, BLOCK_PX):
            part = Box(y0, x0, y0 + BLOCK_PX, x0 + BLOCK_PX).intersection(box)
            known = mask.fills(part)
            count += int(np.count_nonzero(mask.read(part)) if known is None else known * part.area)
    return LabelsError(
        f"expected at least one free pixel for object {label}, got a mask of "
        f"{count} pixels that all belong to objects already; "
        "allow it with overwrite=True, or draw another part of the image"
    )


def require_new_ids(ids: Collection[int], lowest: int, dtype: np.dtype[Any]) -> None:
    """Raise `LabelsError` unless ids of objects to be accepted are new, and not too many."""
    if not 0 < len(ids) <= MAX_AREAS:
        raise LabelsError(
            f"expected 1 to {MAX_AREAS:,} objects to accept in one step, got {len(ids):,}; accept "
            "them part by part, such as by a box or by their scores"
        )
    if min(ids) < lowest:
        raise LabelsError(
            f"expected ids that were never used, from {lowest} on, got {min(ids)}; number new "
            "objects from next_label() on"
        )
    require_fits(max(ids), dtype)


def none_free(ids: Collection[int]) -> LabelsError:
    """Return the error for many objects of which no pixel may be written."""
    return LabelsError(
        f"expected at least one free pixel for {len(ids):,} objects, but all of theirs belong to "
        "objects already; accept others"
    )


class NoSuchLabelError(LabelsError):
    """No pixel of a plane has an id."""


def no_such_label(label: int, values: NDArray[Any]) -> NoSuchLabelError:
    """Return the error for an id that no pixel has, beside an array of those that there are."""
    below = int(values.max(initial=0, where=(values > 0) & (values < label)))
    above = int(values.min(initial=np.iinfo(values.dtype).max, where=values > label))
    near = [str(near) for near in (below, above) if near and (values == near).any()]
    there = f"the nearest there are {' and '.join(near)}" if near else "there is no object at all"
    return NoSuchLabelError(
        f"expected the id of an object of the label image, got {label}; {there}. Point at the "
        "object, or name its plane, if there are several"
    )
