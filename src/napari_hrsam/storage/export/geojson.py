"""The objects of a label image as GeoJSON polygons that QuPath and GIS programs read."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from os import PathLike
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import napari_hrsam
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import BoxLike
from napari_hrsam.storage.export.outlines import Outline, Polygon, Ring
from napari_hrsam.storage.export.simplify import simplified
from napari_hrsam.storage.export.source import Exported, Part, new_file, part_of, written
from napari_hrsam.storage.export.table import JOURNAL_COLUMNS, journal_cells, measurements
from napari_hrsam.storage.labels.regions import Progress

Units = Literal["pixel", "physical", "lonlat"]
ObjectType = Literal["annotation", "detection"]


def export_geojson(
    path: str | PathLike[str],
    name: str,
    out: str | PathLike[str],
    *,
    box: BoxLike | None = None,
    labels: Collection[int] | None = None,
    plane: tuple[int, ...] = (),
    units: Units = "pixel",
    georeference: str | PathLike[str] | None = None,
    simplify_px: float = 0.0,
    object_type: ObjectType = "annotation",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a GeoJSON feature collection with one feature per object.

    Outlines run along pixel edges, so that filling them gives back every pixel; holes are rings of
    their own, and an object in several parts (also parts that touch at a corner only) is a
    MultiPolygon. Exteriors turn from +x to +y. The properties are those of QuPath: ``objectType``,
    ``name``, ``classification`` (name and colour of the class; without one the name of the label
    image) and ``measurements`` (named like the columns of `export_csv`), besides ``label``, and
    ``model``, ``committed`` and ``prompts`` where the journal knows them.

    Parameters
    ----------
    path, name, out, box, labels, plane, overwrite, progress
        As in `export_csv`.
    units : {"pixel", "physical", "lonlat"}
        ``"pixel"``: QuPath's coordinates, in which pixel (0, 0) is the square from 0 to 1.
        ``"physical"``: in the unit of the OME metadata, where the centre of pixel (0, 0) lies at
        the translation. ``"lonlat"``: longitude and latitude of WGS 84 (EPSG:4326), as RFC 7946
        wants them, of labels that were drawn on a map; exteriors turn counterclockwise. The member
        ``napari_hrsam`` of the file says which.
    georeference : path, optional
        Of ``"lonlat"``: the GeoTIFF that the labels were drawn on; by default as they tell
        themselves.
    simplify_px : float
        Farthest that a corner left out may lie from the outline, in pixels; 0 for exact outlines.
        Polygons stay valid.
    object_type : {"annotation", "detection"}
        What QuPath makes of the objects; it shows many thousands of detections faster.

    Returns
    -------
    Exported

    Raises
    ------
    LabelsError
        As in `export_csv`; if ``simplify_px`` is negative, or nothing says where the labels lie.
    MissingExtraError
        If ``"lonlat"`` is wanted, and the extra ``geo`` is not installed.
    """
    if not 0 <= simplify_px < np.inf:
        raise LabelsError(
            f"expected simplify_px of 0 or more pixels, got {simplify_px}; 0 gives exact outlines"
        )
    if georeference is not None and units != "lonlat":
        raise LabelsError(
            f"expected units='lonlat' for the georeference {georeference}, got {units!r}; leave "
            "one out"
        )
    part = part_of(path, name, box=box, labels=labels, plane=plane)
    place = _placing(part, units, georeference)
    with new_file(out, overwrite=overwrite) as partial:
        table = part.measured(progress)
        measured = measurements(table, part)
        commits = part.commits()
        with partial.open("w", encoding="utf-8") as file:
            head = json.dumps(_head(part, units, simplify_px), ensure_ascii=False)
            file.write(f'{{"type": "FeatureCollection",\n"napari_hrsam": {head},\n"features": [')
            separator = "\n"
            for index, outline in part.outlines(table, progress):
                polygons = outline.polygons
                if simplify_px:
                    polygons = simplified(polygons, simplify_px)
                properties: dict[str, Any] = {
                    "objectType": object_type,
                    "name": str(outline.label),
                    "label": outline.label,
                    "classification": _classification(part, outline.label),
                    "measurements": _measurements(measured, index, outline),
                }
                known = journal_cells(commits.get(outline.label))
                properties.update(zip(JOURNAL_COLUMNS, known, strict=True) if any(known) else ())
                feature = {
                    "type": "Feature",
                    "geometry": _geometry(polygons, place),
                    "properties": properties,
                }
                file.write(separator + json.dumps(feature, separators=(",", ":")))
                separator = ",\n"
            file.write("\n]}\n")
    return written(out, len(table))


def _head(part: Part, units: Units, simplify_px: float) -> dict[str, Any]:
    """Say what the coordinates mean."""
    stored = part.labels
    head: dict[str, Any] = {
        "version": napari_hrsam.__version__,
        "labels": stored.name,
        "image_shape_yx": stored.shape_yx,
        "plane": part.plane,
        "box": [part.box.y0, part.box.x0, part.box.y1, part.box.x1],
        "units": units,
        "unit": "pixel" if units == "pixel" else stored.unit or "unknown",
        "pixel_size_yx": stored.scale_yx,
        "pixel_size_unit": stored.unit or "unknown",
        "translation_yx": stored.translation_yx,
        "simplify_px": simplify_px,
    }
    if units == "lonlat":
        head["unit"] = "degree"
    head["coordinates"] = _COORDINATES[units]
    return head


_COORDINATES: dict[Units, str] = {
    "pixel": "x, y in level-0 pixels; pixel (0, 0) is the square from 0 to 1",
    "physical": "x, y in unit; the centre of pixel (0, 0) lies at translation_yx",
    "lonlat": "longitude, latitude of WGS 84 (EPSG:4326)",
}


def _classification(part: Part, label: int) -> dict[str, Any]:
    """Tell the class of an object, as QuPath does; without one it is of the label image's kind."""
    name, color = part.properties.of(label).object_class, part.properties.color_of(label)
    told: dict[str, Any] = {"name": name or part.labels.name}
    return told if color is None else {**told, "color": list(color)}


def _measurements(
    measured: dict[str, list[float]], index: int, outline: Outline
) -> dict[str, float]:
    found = {column: values[index] for column, values in measured.items()}
    return {**found, "parts": len(outline.polygons), "holes": outline.num_holes}


Place = Callable[[Ring, bool], list[list[float]]]
"""Turns a ring into closed x, y; whether it is a hole counts where its turn does."""


def _geometry(polygons: tuple[Polygon, ...], place: Place) -> dict[str, Any]:
    placed = [
        [place(ring, number > 0) for number, ring in enumerate(polygon)] for polygon in polygons
    ]
    if len(placed) == 1:
        return {"type": "Polygon", "coordinates": placed[0]}
    return {"type": "MultiPolygon", "coordinates": placed}


def _placing(part: Part, units: Units, georeference: str | PathLike[str] | None) -> Place:
    """Choose how pixels become coordinates."""
    if units == "pixel":
        return lambda ring, _: _closed(ring)[:, ::-1].tolist()
    if units == "physical":
        scale, shift = np.array(part.labels.scale_yx), np.array(part.labels.translation_yx)
        return lambda ring, _: _rounded(((_closed(ring) - 0.5) * scale + shift)[:, ::-1])
    where = part.georeference(georeference)

    def lonlat(ring: Ring, is_hole: bool) -> list[list[float]]:
        placed = where.lonlat(_closed(ring))
        return _rounded(placed if turns_left(placed) != is_hole else placed[::-1])

    return lonlat


def _closed(ring: Ring) -> NDArray[Any]:
    return np.concatenate([ring, ring[:1]])


def turns_left(places: NDArray[np.floating[Any]]) -> bool:
    """Whether a closed ring of (N, 2) x, y goes counterclockwise, x to the right, y up."""
    x, y = (places - places[0]).T
    return bool(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]) > 0)


def _rounded(places: NDArray[np.floating[Any]]) -> list[list[float]]:
    return [[float(f"{x:.12g}"), float(f"{y:.12g}")] for x, y in places.tolist()]
