"""Committed objects merged, split, filled and smoothed, in edits that can be undone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import ArrayMask, BlockMask
from napari_hrsam.prompts import Scribble
from napari_hrsam.storage.labels.store import DrawnAs, Edit, LabelStore

MAX_OBJECT_PX = 2**26
"""Pixels of the box of an object that is split, filled or smoothed: it is held as a whole."""

SMALLEST_PART = 0.01
"""Share of an object below which a piece beside a cut is a crumb of its neighbour."""

SMOOTHING = 0.03
"""Default radius of smoothing, as a share of the root of the object's area."""

_Mask = NDArray[np.bool_]


def merge(labels: LabelStore, ids: Sequence[int], plane: tuple[int, ...]) -> Edit:
    """Give all pixels of some objects to the first one, whatever their size.

    Raises
    ------
    LabelsError
        If there are fewer than two, or one is not there, or the labels cannot be read or written.
    """
    distinct = list(dict.fromkeys(ids))
    if len(distinct) < 2:
        raise LabelsError(f"expected two or more objects to merge, got {distinct}; name others")
    whole = Box(0, 0, 0, 0)
    for label in distinct:
        whole = whole.union(labels.find(label, plane))
    mask = BlockMask(whole, lambda part: np.isin(labels.read(part, plane=plane), distinct))
    edit = labels.replace(distinct[0], whole, mask, overwrite=True, plane=plane)
    assert edit is not None, "the others' pixels change"
    return edit


def split(
    labels: LabelStore, label: int, line_yx: Sequence[Sequence[float]], plane: tuple[int, ...]
) -> tuple[Edit, ...]:
    """Cut an object along a line; the largest piece keeps its id, every other gets a new one.

    Pieces that the line does not touch, and crumbs beside it, stay with what is next to them.

    Returns
    -------
    tuple of Edit
        One per new object.

    Raises
    ------
    LabelsError
        If the line does not cut the object, it is larger than `MAX_OBJECT_PX`, it is not there, or
        the labels cannot be read or written.
    """
    box, mask = _object(labels, label, plane)
    stroke = Scribble(points_yx=line_yx)  # type: ignore[arg-type]  # copied and checked
    parts = _parts(mask, np.floor(stroke.along(0.5) + 0.5).astype(int) - (box.y0, box.x0))
    if parts is None:
        raise LabelsError(
            f"expected a line that cuts object {label} in two, got one that leaves it in one "
            "piece; draw it from outside the object to outside"
        )
    return tuple(
        labels.write(
            box,
            part,
            labels.next_label(),
            overwrite=True,
            plane=plane,
            # Every piece is of the class of the whole.
            drawn=DrawnAs(object_class=labels.properties.of(label).object_class),
        )
        for part in parts
    )


def fill_holes(labels: LabelStore, label: int, plane: tuple[int, ...]) -> Edit | None:
    """Fill the holes of an object, but for pixels of others; None if there is nothing to fill."""
    box, mask = _object(labels, label, plane)
    filled = ndimage.binary_fill_holes(mask)
    return labels.replace(label, box, ArrayMask(box, filled), plane=plane)


def smooth(
    labels: LabelStore, label: int, radius_px: float | None, plane: tuple[int, ...]
) -> Edit | None:
    """Smooth the outline of an object; None if that changes nothing.

    The mask is blurred and cut at one half. Pixels of others stay theirs.

    Parameters
    ----------
    radius_px : float, optional
        Standard deviation of the blur; by default `SMOOTHING` of the root of the area, 1 or more.

    Raises
    ------
    LabelsError
        As `split`; also if nothing of the object would be left.
    """
    box, mask = _object(labels, label, plane)
    radius = max(1.0, SMOOTHING * math.sqrt(mask.sum())) if radius_px is None else radius_px
    if not 0 < radius <= max(box.shape_yx):
        raise LabelsError(
            f"expected a radius above 0 and at most the object's {max(box.shape_yx)} px, got "
            f"{radius_px}"
        )
    wide = box.expand(math.ceil(3 * radius)).clip(labels.shape_yx)
    room = np.zeros(wide.shape_yx, np.float32)
    room[box.shifted(-wide.y0, -wide.x0).slices] = mask
    # Beyond the image nothing is known: its border is no outline.
    smoothed = ndimage.gaussian_filter(room, radius, mode="nearest", truncate=3) > 0.5
    if not smoothed.any():
        raise LabelsError(
            f"expected an object that smoothing by {radius:.1f} px leaves something of, got "
            f"{int(mask.sum())} pixels; choose a smaller radius"
        )
    return labels.replace(label, wide, ArrayMask(wide, smoothed), plane=plane)


def _object(labels: LabelStore, label: int, plane: tuple[int, ...]) -> tuple[Box, _Mask]:
    """Return the tight box and the pixels of an object."""
    found = labels.find(label, plane)
    if found.area > MAX_OBJECT_PX:
        raise LabelsError(
            f"expected an object in a box of at most {MAX_OBJECT_PX:,} pixels for this, got "
            f"{found.height} x {found.width} of object {label}; take it up (edit) and correct it "
            "by prompts"
        )
    mask = labels.read(found, plane=plane) == label
    tight = Box.around(mask)
    return tight.shifted(found.y0, found.x0), mask[tight.slices]


def _parts(mask: _Mask, line: NDArray[Any]) -> list[_Mask] | None:
    """Return the pieces that a line cuts off, the largest left out; None if it cuts nothing."""
    inside = ((line >= 0) & (line < mask.shape)).all(axis=1)
    line = line[inside]
    drawn = np.zeros(mask.shape, bool)
    drawn[line[:, 0], line[:, 1]] = True
    # Thick enough that no corner connects both sides.
    drawn = ndimage.binary_dilation(drawn, np.ones((3, 3), bool)) & mask
    pieces = ndimage.label(mask, np.ones((3, 3), int))[0]
    touched = [n for n in np.unique(pieces[drawn]) if n]
    cut, num = ndimage.label(np.isin(pieces, touched) & ~drawn)
    sizes = np.bincount(cut.ravel(), minlength=num + 1)
    whole = int(np.isin(pieces, touched).sum())
    kept = [n for n in range(1, num + 1) if sizes[n] >= SMALLEST_PART * whole]
    if not touched or len(kept) < 2:
        return None
    # The pixels of the line, and crumbs, go to the nearest piece.
    seeds = np.where(np.isin(cut, kept), cut, 0)
    nearest = ndimage.distance_transform_edt(
        seeds == 0, return_distances=False, return_indices=True
    )
    owners = np.where(np.isin(pieces, touched), seeds[tuple(nearest)], 0)
    areas = np.bincount(owners.ravel(), minlength=num + 1)
    largest = max(kept, key=lambda n: areas[n])
    return [owners == n for n in kept if n != largest]
