"""GeoJSON polygons, ours or QuPath's, drawn into a label image."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.importing.json_items import items
from napari_hrsam.storage.importing.objects import (
    LARGEST_COORDINATE,
    FoundObject,
    Imported,
    Skipped,
    draw_objects,
    extent,
)
from napari_hrsam.storage.importing.runs import PolygonShape
from napari_hrsam.storage.labels.regions import Progress
from napari_hrsam.storage.labels.store import LabelStore
from napari_hrsam.storage.labels.stored import StoredLabels

_MAX_DEPTH = 8
"""Collections inside collections."""

Ring = NDArray[np.float64]


def import_geojson(
    file: str | PathLike[str],
    labels: LabelStore,
    *,
    offset_yx: tuple[int, int] | None = None,
    plane: tuple[int, ...] | None = None,
    keep_ids: bool = False,
    overwrite: bool = False,
    allow_outside: bool = False,
    progress: Progress | None = None,
) -> Imported:
    """Draw the polygons of a GeoJSON file: a feature collection, or a list of features.

    Pixels whose centres lie inside get the object's id; so an export without simplification comes
    back pixel by pixel. In coordinates x, y in pixels, pixel (0, 0) is the square from 0 to 1, as
    in QuPath and in our exports; physical units of our exports are turned back as the file says.
    Each object is one commit. First the file is read once without a change. An object that cannot
    be drawn is skipped and told. Points and lines have no pixels and are skipped. Classes are given
    to label images that keep them.

    Parameters
    ----------
    file : path
        The file.
    labels : LabelWriter or ArrayLabels
        Where to draw; see `create_labels` and `open_labels`.
    offset_yx : (int, int), optional
        Where the file's pixel (0, 0) lies in the labels, in level-0 pixels; by default at (0, 0).
    plane : tuple of int, optional
        Draw all objects there: index over the axes before y and x. By default on the planes that
        the file names.
    keep_ids : bool
        Give objects the ids that the file gives them (``properties.label``, or a whole number as
        ``id``) where no object has these. Otherwise all get new ones.
    overwrite : bool
        Whether pixels of other objects are taken over; by default they stay, also those of the
        objects before in the file.
    allow_outside : bool
        Whether a file of an image of another size is drawn, and objects are cut at the border.
    progress : callable (done, total), optional
        Counts objects; what it raises ends the work, and what was drawn stays.

    Returns
    -------
    Imported

    Raises
    ------
    LabelsError
        If the file cannot be read or is no GeoJSON, objects reach outside of the labels, or there
        is no such plane; then nothing was drawn.
    """
    path = Path(file)
    head = _head_of(path, offset_yx or (0, 0))
    if head.shape_yx is not None and not allow_outside:
        require_image(path, head.shape_yx, labels, offset_yx)
    return draw_objects(
        str(path),
        lambda: _objects(path, head, labels if plane is None else None),
        labels,
        plane=plane,
        keep_ids=keep_ids,
        overwrite=overwrite,
        allow_outside=allow_outside,
        progress=progress,
    )


def geojson_extent(path: Path) -> tuple[int, int]:
    """Return the height and width of a file's image, as our exports say, or up to the last object.

    Raises
    ------
    LabelsError
        If there is no object.
    """
    head = _head_of(path, (0, 0))
    if head.shape_yx is not None:
        return head.shape_yx
    return extent(path, _objects(path, head, None))


@dataclass(frozen=True, slots=True, eq=False)
class _Head:
    """What the coordinates of a file mean: level-0 pixels are ``numbers * scale + shift``."""

    scale: NDArray[np.float64]
    shift: NDArray[np.float64]
    shape_yx: tuple[int, int] | None = None
    plane: tuple[int, ...] | None = None
    name: str = ""

    def placed(self, ring: Ring) -> Ring:
        """Turn x, y of the file into y, x in level-0 pixels."""
        placed: Ring = ring[:, 1::-1] * self.scale + self.shift
        return placed


def _head_of(path: Path, offset_yx: tuple[int, int]) -> _Head:
    is_geojson = False
    head: Any = None
    for key, value in items(path):
        is_geojson |= is_feature(value) if key in ("", "features") else False
        is_geojson |= key == "type" and value in ("FeatureCollection", "Feature")
        if key == "napari_hrsam":
            head = value
    if not is_geojson:
        raise LabelsError(
            f"expected GeoJSON at {path}: a FeatureCollection or a list of features; got other "
            "JSON. For COCO use import_coco"
        )
    offset = np.array(offset_yx, float)
    if not isinstance(head, dict):
        return _Head(np.ones(2), offset)
    if head.get("units") == "lonlat":
        raise LabelsError(
            f"expected objects in pixels or in the unit of the image, got longitude and latitude "
            f"in {path}; export them again with units='pixel'"
        )
    try:
        shape = int(head["image_shape_yx"][0]), int(head["image_shape_yx"][1])
        plane = tuple(map(int, head["plane"]))
        scale, shift = np.ones(2), np.zeros(2)
        if head["units"] == "physical":
            scale = 1 / _pair(head["pixel_size_yx"], above=0)
            shift = 0.5 - _pair(head["translation_yx"]) * scale
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise LabelsError(
            f"expected the member napari_hrsam of {path} as export_geojson writes it, got "
            f"{head!s:.80} ({error}); export the file again"
        ) from error
    return _Head(scale, shift + offset, shape, plane, str(head.get("labels", "")))


def require_image(
    path: Path,
    shape_yx: tuple[int, int],
    labels: LabelStore,
    offset_yx: tuple[int, int] | None,
) -> None:
    """Refuse a file of an image that is not that of the labels, or no part of it at the offset.

    Raises
    ------
    LabelsError
        If so.
    """
    whole = Box.of_shape(labels.shape_yx)
    place = Box.of_shape(shape_yx).shifted(*(offset_yx or (0, 0)))
    if place != whole and (offset_yx is None or place.intersection(whole) != place):
        raise LabelsError(
            f"expected objects of an image of shape {labels.shape_yx}, as the labels are, got "
            f"those of one of shape {shape_yx} in {path}; choose the labels of the right image, or "
            "say where its first pixel lies with offset_yx, or allow it with allow_outside "
            "(--allow-outside)"
        )


def _pair(value: Any, above: float = -np.inf) -> NDArray[np.float64]:
    pair = np.asarray(value, float)
    if pair.shape != (2,) or not (np.isfinite(pair) & (pair > above)).all():
        raise ValueError(f"no two numbers y, x: {value!s:.40}")
    return pair


def is_feature(value: Any) -> bool:
    """Whether a value is a GeoJSON feature."""
    return isinstance(value, dict) and value.get("type") == "Feature" and "geometry" in value


def _objects(path: Path, head: _Head, labels: LabelStore | None) -> Iterator[FoundObject | Skipped]:
    """Go through the features of a file; their planes count where labels are given."""
    number, single = 0, {}
    for key, value in items(path):
        if key in ("", "features"):
            number += 1
            yield _object(number, value, head, labels)
        elif key in ("type", "geometry", "properties", "id"):
            single[key] = value
    if is_feature(single):
        yield _object(1, single, head, labels)


def _object(
    number: int, feature: Any, head: _Head, labels: LabelStore | None
) -> FoundObject | Skipped:
    if not is_feature(feature):
        return Skipped(number, "", f"no GeoJSON feature: {feature!s:.60}")
    properties = feature.get("properties")
    told: dict[Any, Any] = properties if isinstance(properties, dict) else {}
    name = text_of(told.get("name"))
    geometry = feature["geometry"]
    try:
        polygons = list(_polygons(geometry, head, 0))
        plane = None if labels is None else _plane(geometry, labels)
        if labels is not None and plane is None and head.plane is not None:
            # What came from one plane of a stack may go to labels of one plane.
            plane = head.plane if len(head.plane) == len(labels.plane_shape) else None
    except LabelsError as error:
        return Skipped(number, name, str(error))
    if not polygons:
        return Skipped(number, name, "no polygon in it")
    label = told.get("label", feature.get("id"))
    classification = told.get("classification")
    if isinstance(classification, dict):
        classification = classification.get("name")
    class_name = text_of(classification)
    return FoundObject(
        number,
        name,
        PolygonShape(polygons),
        label if isinstance(label, int) else None,
        # Our exports tell the name of the labels where there is no class.
        "" if class_name == head.name else class_name,
        text_of(told.get("model")),
        plane,
    )


def text_of(value: Any) -> str:
    """Return a text of a file, cut to a length that can be shown; empty for anything else."""
    return value[:200] if isinstance(value, str) else ""


def _polygons(geometry: Any, head: _Head, depth: int) -> Iterator[list[Ring]]:
    """Go through the polygons of a geometry, in level-0 pixels y, x."""
    kind = geometry.get("type") if isinstance(geometry, dict) else None
    if kind == "GeometryCollection" and depth < _MAX_DEPTH:
        for inner in _list(geometry.get("geometries")):
            yield from _polygons(inner, head, depth + 1)
    elif kind == "Polygon":
        yield _rings(geometry.get("coordinates"), head)
    elif kind == "MultiPolygon":
        for coordinates in _list(geometry.get("coordinates")):
            yield _rings(coordinates, head)
    elif depth == 0 or kind not in ("Point", "MultiPoint", "LineString", "MultiLineString"):
        raise LabelsError(f"a geometry without pixels: {kind or str(geometry):.40}")


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise LabelsError(f"a list of coordinates expected, got {value!s:.40}")
    return value


def _rings(coordinates: Any, head: _Head) -> list[Ring]:
    rings = [head.placed(ring_of(ring)) for ring in _list(coordinates)]
    if not rings:
        raise LabelsError("a polygon without corners")
    return rings


def ring_of(corners: Any) -> Ring:
    """Return the corners of a ring as numbers, x first.

    Raises
    ------
    LabelsError
        If they are none, or fewer than three.
    """
    try:
        ring = np.asarray(_list(corners), np.float64)
    except (TypeError, ValueError, OverflowError):
        ring = np.zeros(0)
    if ring.ndim != 2 or ring.shape[1] < 2:
        raise LabelsError("corners that are no pairs of numbers x, y")
    if len(ring) < 3:
        raise LabelsError(f"an outline of {len(ring)} corners; it takes three")
    if not np.isfinite(ring).all():
        raise LabelsError("corners that are no finite numbers")
    largest = float(np.abs(ring).max())
    if largest > LARGEST_COORDINATE:
        raise LabelsError(f"coordinates up to {largest:.3g}, which no image has")
    return ring


def _plane(geometry: Any, labels: LabelStore) -> tuple[int, ...] | None:
    """Return the plane that QuPath tells with a geometry, if any."""
    told = geometry.get("plane")
    if not isinstance(told, dict):
        return None
    places = {}
    for axis in "tz":
        place = told.get(axis, 0)
        if not isinstance(place, int | float) or not math.isfinite(place) or place != int(place):
            raise LabelsError(f"a plane that is no whole number: {told!s:.40}")
        places[axis] = int(place)
    axes = ("t", "z")[2 - len(labels.plane_shape) :] if len(labels.plane_shape) <= 2 else ()
    if isinstance(labels, StoredLabels):
        axes = labels.ome.axes[:-2]
    missing = [axis for axis in "tz" if places[axis] and axis not in axes]
    if missing:
        raise LabelsError(
            f"it lies on the plane {missing[0]} = {places[missing[0]]}, which the labels do not "
            "have; choose a plane to draw all objects there"
        )
    return tuple(places.get(axis, 0) for axis in axes)
