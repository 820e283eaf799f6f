"""The annotations of a COCO file, drawn into a label image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.importing.geojson import require_image, ring_of, text_of
from napari_hrsam.storage.importing.json_items import items
from napari_hrsam.storage.importing.objects import (
    FoundObject,
    Imported,
    Shape,
    Skipped,
    draw_objects,
    extent,
)
from napari_hrsam.storage.importing.rle import mask_of
from napari_hrsam.storage.importing.runs import PolygonShape
from napari_hrsam.storage.labels.regions import Progress
from napari_hrsam.storage.labels.store import LabelStore

MAX_IMAGES = 1_000_000
"""Images, and categories, of one file."""


def import_coco(
    file: str | PathLike[str],
    labels: LabelStore,
    *,
    image: str | int | None = None,
    offset_yx: tuple[int, int] | None = None,
    plane: tuple[int, ...] | None = None,
    keep_ids: bool = False,
    overwrite: bool = False,
    allow_outside: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Draw the annotations of a COCO file: polygons, and run lengths, compressed or not.

    Run lengths come back pixel by pixel. Of polygons the pixels whose centres lie inside are drawn;
    several polygons of one annotation are its parts. Otherwise as `import_geojson`.

    Parameters
    ----------
    file, labels, plane, overwrite, allow_outside, progress
        As in `import_geojson`.
    image : str or int, optional
        Name or id of the image whose annotations are drawn; needed where the file has several.
    offset_yx : (int, int), optional
        Where that image begins in the labels, in level-0 pixels; by default where our export of a
        part says, else at (0, 0).
    keep_ids : bool
        Give objects the ids of the annotations where no object has these.

    Returns
    -------
    Imported

    Raises
    ------
    LabelsError
        As in `import_geojson`; if there is no such image, or several and none was named.
    """
    path = Path(file)
    head = _head_of(path, image)
    told = head.offset_yx if offset_yx is None else offset_yx
    if head.shape_yx is not None and not allow_outside:
        require_image(path, head.shape_yx, labels, told)
    offset = told or (0, 0)
    return draw_objects(
        str(path),
        lambda: _objects(path, head, offset),
        labels,
        plane=plane,
        keep_ids=keep_ids,
        overwrite=overwrite,
        allow_outside=allow_outside,
        progress=progress,
    )


def coco_extent(path: Path) -> tuple[int, int]:
    """Return the height and width of a file's image, as it says, or up to the last object.

    Raises
    ------
    LabelsError
        If there are several images, or neither an image nor an object.
    """
    head = _head_of(path, None)
    y, x = head.offset_yx or (0, 0)
    if head.shape_yx is not None:
        return head.shape_yx[0] + y, head.shape_yx[1] + x
    return extent(path, _objects(path, head, (y, x)))


@dataclass(frozen=True, slots=True)
class _Head:
    """What a file tells besides annotations."""

    image_id: Any
    shape_yx: tuple[int, int] | None
    offset_yx: tuple[int, int] | None
    categories: dict[int, str] = field(default_factory=dict)


def is_annotation(value: Any) -> bool:
    """Whether a value is a COCO annotation of an object's pixels."""
    return isinstance(value, dict) and "image_id" in value and "segmentation" in value


def _head_of(path: Path, image: str | int | None) -> _Head:
    images: dict[int, dict[str, Any]] = {}
    categories: dict[int, str] = {}
    used: set[int] = set()
    own_name, is_coco = None, False
    offset: tuple[int, int] | None = None
    for key, value in items(path):
        if key in ("annotations", ""):
            is_coco |= is_annotation(value)
            if is_annotation(value) and isinstance(value["image_id"], int):
                used.add(value["image_id"])
        elif key == "images" and _has_id(value):
            is_coco = True
            images[value["id"]] = {k: value.get(k) for k in ("file_name", "height", "width")}
        elif key == "categories" and _has_id(value):
            categories[value["id"]] = text_of(value.get("name"))
        elif key == "info" and isinstance(value, dict):
            offset = _corner(value.get("box_y0_x0_y1_x1"))
            own_name = value.get("description")
        if max(len(images), len(categories), len(used)) > MAX_IMAGES:
            raise LabelsError(f"expected at most {MAX_IMAGES:,} images in {path}; split it")
    if not is_coco:
        raise LabelsError(
            f"expected COCO at {path}: images and annotations with a segmentation; got other JSON. "
            "For GeoJSON use import_geojson"
        )
    chosen = _chosen(path, images or {number: {} for number in used}, image)
    # Our exports have the name of the labels as their only category where there are no classes.
    categories = {
        number: name for number, name in categories.items() if own_name != f"label image {name!r}"
    }
    return _Head(
        chosen, _shape({} if chosen is None else images.get(chosen, {})), offset, categories
    )


def _has_id(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("id"), int)


def _corner(box: Any) -> tuple[int, int] | None:
    is_box = isinstance(box, list) and len(box) == 4 and all(isinstance(n, int) for n in box)
    # What begins at (0, 0) may as well be all of a smaller image.
    return (box[0], box[1]) if is_box and any(box[:2]) else None


def _shape(image: dict[str, Any]) -> tuple[int, int] | None:
    height, width = image.get("height"), image.get("width")
    if isinstance(height, int) and isinstance(width, int) and min(height, width) > 0:
        return height, width
    return None


def _chosen(path: Path, images: dict[int, dict[str, Any]], image: str | int | None) -> int | None:
    """Return the id of the image that is meant; None where there is none and none was named."""
    found = [
        number
        for number, told in images.items()
        if image is None or image in (number, str(number), told.get("file_name"))
    ]
    if len(found) == 1 or not (images or image):
        return found[0] if found else None
    names = ", ".join(str(told.get("file_name") or n) for n, told in list(images.items())[:10])
    raise LabelsError(
        f"expected one image in {path}, got {len(found)} that fit; name one with image (--image): "
        f"{names}{', ...' if len(images) > 10 else ''}"
    )


def _objects(
    path: Path, head: _Head, offset_yx: tuple[int, int]
) -> Iterator[FoundObject | Skipped]:
    """Go through the annotations of the image."""
    number = 0
    for key, value in items(path):
        if key not in ("annotations", ""):
            continue
        number += 1
        if not is_annotation(value):
            yield Skipped(number, "", f"no annotation with a segmentation: {value!s:.60}")
        elif value["image_id"] == head.image_id or head.image_id is None:
            yield _object(number, value, head, offset_yx)


def _object(
    number: int, annotation: dict[str, Any], head: _Head, offset_yx: tuple[int, int]
) -> FoundObject | Skipped:
    label, category = annotation.get("id"), annotation.get("category_id")
    name = f"id {label}" if isinstance(label, int) else ""
    try:
        shape = _shape_of(annotation["segmentation"], head, offset_yx)
    except LabelsError as error:
        return Skipped(number, name, str(error))
    class_name = head.categories.get(category, "") if isinstance(category, int) else ""
    return FoundObject(number, name, shape, label if isinstance(label, int) else None, class_name)


def _shape_of(segmentation: Any, head: _Head, offset_yx: tuple[int, int]) -> Shape:
    if isinstance(segmentation, dict):
        mask, size = mask_of(segmentation, offset_yx)
        if head.shape_yx is not None and tuple(size) != head.shape_yx:
            raise LabelsError(f"run lengths of the size {size}, not of the image {head.shape_yx}")
        return mask
    if not isinstance(segmentation, list) or not segmentation:
        raise LabelsError("a segmentation without outlines")
    rings = []
    for flat in segmentation:
        if not isinstance(flat, list) or len(flat) % 2:
            raise LabelsError("an outline that is no list of x, y, x, y, ...")
        ring = ring_of([list(pair) for pair in zip(flat[::2], flat[1::2], strict=True)])
        rings.append([ring[:, ::-1] + np.array(offset_yx, float)])
    return PolygonShape(rings)
