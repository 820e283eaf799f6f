"""The objects of a label image as GeoJSON polygons that QuPath and GIS programs read."""

from __future__ import annotations

import json
from collections.abc import Collection
from os import PathLike
from typing import Any, Literal

import numpy as np

import napari_hrsam
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import BoxLike
from napari_hrsam.storage.export.outlines import Outline, Polygon, Ring
from napari_hrsam.storage.export.simplify import simplified
from napari_hrsam.storage.export.source import Exported, Part, new_file, part_of, written
from napari_hrsam.storage.export.table import JOURNAL_COLUMNS, journal_cells, measurements
from napari_hrsam.storage.labels.regions import Progress

Units = Literal["pixel", "physical"]
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
    units : {"pixel", "physical"}
        ``"pixel"``: QuPath's coordinates, in which pixel (0, 0) is the square from 0 to 1.
        ``"physical"``: in the unit of the OME metadata, where the centre of pixel (0, 0) lies at
        the translation. The member ``napari_hrsam`` of the file says which.
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
        As in `export_csv`; or if ``simplify_px`` is negative.
    """
    if not 0 <= simplify_px < np.inf:
        raise LabelsError(
            f"expected simplify_px of 0 or more pixels, got {simplify_px}; 0 gives exact outlines"
        )
    part = part_of(path, name, box=box, labels=labels, plane=plane)
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
                    "geometry": _geometry(polygons, part, units),
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
    head["coordinates"] = (
        "x, y in level-0 pixels; pixel (0, 0) is the square from 0 to 1"
        if units == "pixel"
        else "x, y in unit; the centre of pixel (0, 0) lies at translation_yx"
    )
    return head


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


def _geometry(polygons: tuple[Polygon, ...], part: Part, units: Units) -> dict[str, Any]:
    placed = [[_positions(ring, part, units) for ring in polygon] for polygon in polygons]
    if len(placed) == 1:
        return {"type": "Polygon", "coordinates": placed[0]}
    return {"type": "MultiPolygon", "coordinates": placed}


def _positions(ring: Ring, part: Part, units: Units) -> list[list[float]]:
    """Return the closed ring as x, y."""
    closed = np.concatenate([ring, ring[:1]])
    if units == "pixel":
        pixels: list[list[float]] = closed[:, ::-1].tolist()
        return pixels
    scale, shift = np.array(part.labels.scale_yx), np.array(part.labels.translation_yx)
    placed = (closed - 0.5) * scale + shift
    return [[float(f"{x:.12g}"), float(f"{y:.12g}")] for y, x in placed.tolist()]
