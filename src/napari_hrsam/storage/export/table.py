"""The objects of a label image as a table of measurements."""

from __future__ import annotations

import csv
from collections.abc import Collection
from datetime import UTC, datetime
from os import PathLike
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import BoxLike
from napari_hrsam.storage.export.measures import ObjectTable
from napari_hrsam.storage.export.source import Exported, Part, new_file, part_of, written
from napari_hrsam.storage.labels.journal_facts import CommitFacts
from napari_hrsam.storage.labels.regions import Progress

JOURNAL_COLUMNS = ("model", "committed", "prompts")


def export_csv(
    path: str | PathLike[str],
    name: str,
    out: str | PathLike[str],
    *,
    box: BoxLike | None = None,
    labels: Collection[int] | None = None,
    plane: tuple[int, ...] = (),
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a CSV table with one row per object, sorted by label.

    Columns: ``label``; ``class`` (empty for none); ``area_px`` (level-0 pixels),
    ``centroid_y_px``, ``centroid_x_px`` (pixel centres at whole numbers), ``y0_px`` to ``x1_px``
    (half-open box), ``perimeter_px`` (Crofton formula, four directions),
    ``equivalent_diameter_px``, ``major_axis_px``, ``minor_axis_px`` (of the ellipse with the same
    second moments); the same in ``unit`` (names without ``_px``), from the scale and translation of
    the OME metadata, and ``eccentricity``; ``parts`` (joined by sides, not by corners), ``holes``;
    and from the journal, where it knows the object, ``model``, ``committed`` (UTC) and ``prompts``.

    Parameters
    ----------
    path : path
        A local OME-Zarr image, or a folder of labels alone.
    name : str
        Name of the label image.
    out : path
        The file to write.
    box : (y0, x0, y1, x1) or Box, optional
        Only what lies in it, in level-0 pixels; objects are cut at it.
    labels : collection of int, optional
        Only these objects.
    plane : tuple of int
        Index over the axes before y and x; may be left out where they all have length 1.
    overwrite : bool
        Whether an existing file is replaced.
    progress : callable (done, total), optional
        Counts; what it raises ends the work, and no file is left.

    Returns
    -------
    Exported

    Raises
    ------
    LabelsError
        If there are no such labels, objects, box or plane, a chunk cannot be read, the labels are
        changed meanwhile, or the file exists or cannot be written.
    """
    part = part_of(path, name, box=box, labels=labels, plane=plane)
    with new_file(out, overwrite=overwrite) as partial:
        table = part.measured(progress)
        counts = np.zeros((len(table), 2), np.int64)
        for index, outline in part.outlines(table, progress):
            counts[index] = len(outline.polygons), outline.num_holes
        columns = measurements(table, part)
        columns["parts"], columns["holes"] = counts[:, 0].tolist(), counts[:, 1].tolist()
        commits = part.commits()
        with partial.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(["label", "class", *columns, "unit", *JOURNAL_COLUMNS])
            unit = part.labels.unit or "pixel"
            rows = zip(table.labels.tolist(), *columns.values(), strict=True)
            for label, *row in rows:
                own = part.properties.of(label).object_class
                writer.writerow([label, own, *row, unit, *journal_cells(commits.get(label))])
    return written(out, len(table))


def measurements(table: ObjectTable, part: Part) -> dict[str, list[float]]:
    """Compute what is told of every object, by column, in pixels and in the label image's unit."""
    (height, width), shift = part.labels.scale_yx, np.array(part.labels.translation_yx)
    columns: dict[str, list[float]] = {"area_px": table.area_px.tolist()}
    for place, axis in enumerate("yx"):
        columns[f"centroid_{axis}_px"] = _rounded(table.centroid_yx[:, place])
    for place, end in enumerate(("y0", "x0", "y1", "x1")):
        columns[f"{end}_px"] = table.boxes[:, place].tolist()
    columns.update(_shape(table, (1.0, 1.0), "_px"))
    columns["area"] = _rounded(table.area_px * height * width)
    physical = table.centroid_yx * (height, width) + shift
    for place, axis in enumerate("yx"):
        columns[f"centroid_{axis}"] = _rounded(physical[:, place])
    columns.update(_shape(table, (height, width), ""))
    columns["eccentricity"] = _rounded(_eccentricity(*table.axes((height, width))))
    return columns


def _shape(
    table: ObjectTable, scale_yx: tuple[float, float], suffix: str
) -> dict[str, list[float]]:
    major, minor = table.axes(scale_yx)
    area = table.area_px * scale_yx[0] * scale_yx[1]
    return {
        f"perimeter{suffix}": _rounded(table.perimeters(scale_yx)),
        f"equivalent_diameter{suffix}": _rounded(np.sqrt(4 * area / np.pi)),
        f"major_axis{suffix}": _rounded(major),
        f"minor_axis{suffix}": _rounded(minor),
    }


def _eccentricity(major: NDArray[np.float64], minor: NDArray[np.float64]) -> NDArray[np.float64]:
    """0 for a circle and a single pixel, 1 for a line."""
    ratio = np.divide(minor, major, out=np.ones_like(major), where=major > 0)
    eccentricity: NDArray[np.float64] = np.sqrt(1 - ratio**2)
    return eccentricity


def _rounded(values: NDArray[np.floating[Any]]) -> list[float]:
    """Leave out digits that are noise of the computation."""
    return [float(f"{value:.10g}") for value in values.tolist()]


def journal_cells(commit: CommitFacts | None) -> tuple[str, str, str]:
    """Return model, time and number of prompts of an object, empty where they are not known."""
    if commit is None:
        return "", "", ""
    time = datetime.fromtimestamp(commit.time, UTC).isoformat(timespec="seconds")
    return commit.model, time, str(commit.num_prompts)
