"""The objects of a label image as COCO annotations."""

from __future__ import annotations

import json
from collections.abc import Collection
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import napari_hrsam
from napari_hrsam.geometry import Box, BoxLike
from napari_hrsam.storage.export.measures import ObjectTable
from napari_hrsam.storage.export.outlines import Outline
from napari_hrsam.storage.export.source import Exported, new_file, part_of, written
from napari_hrsam.storage.labels.regions import Progress

Segmentation = Literal["rle", "counts", "polygons"]


def export_coco(
    path: str | PathLike[str],
    name: str,
    out: str | PathLike[str],
    *,
    box: BoxLike | None = None,
    labels: Collection[int] | None = None,
    plane: tuple[int, ...] = (),
    segmentation: Segmentation = "rle",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write a COCO JSON file: one image, one category per class, one annotation per object.

    Objects without a class are of the first category, which is named like the label image.

    The image is the box (by default the whole plane): coordinates and run lengths begin at its
    corner. ``area`` is the number of pixels, ``bbox`` x, y, width, height in pixels, ``id`` the
    label. ``iscrowd`` is 0 for all: each annotation is one object, not a group.

    Parameters
    ----------
    path, name, out, box, labels, plane, overwrite, progress
        As in `export_csv`.
    segmentation : {"rle", "counts", "polygons"}
        ``"rle"``: run lengths as COCO's compressed text, exact; ``"counts"``: the same as lists of
        numbers; ``"polygons"``: exteriors along pixel edges. COCO's polygons know no holes, so an
        object with holes is written as ``"rle"`` there too.

    Returns
    -------
    Exported

    Raises
    ------
    LabelsError
        As in `export_csv`.
    """
    part = part_of(path, name, box=box, labels=labels, plane=plane)
    with new_file(out, overwrite=overwrite) as partial:
        table = part.measured(progress)
        with partial.open("w", encoding="utf-8") as file:
            classes = [one.name for one in part.properties.classes]
            head = _head(Path(path), name, part.box, classes)
            file.write(json.dumps(head)[:-1] + ', "annotations": [')
            separator = "\n"
            for index, outline in part.outlines(table, progress):
                own = part.properties.of(outline.label).object_class
                category = classes.index(own) + 2 if own else 1
                annotation = _annotation(table, index, outline, part.box, segmentation)
                annotation["category_id"] = category
                file.write(separator + json.dumps(annotation, separators=(",", ":")))
                separator = ",\n"
            file.write("\n]}\n")
    return written(out, len(table))


def _head(path: Path, name: str, box: Box, classes: list[str]) -> dict[str, Any]:
    return {
        "info": {
            "description": f"label image {name!r}",
            "version": napari_hrsam.__version__,
            "box_y0_x0_y1_x1": [box.y0, box.x0, box.y1, box.x1],
        },
        "images": [
            {"id": 1, "file_name": path.name, "width": box.width, "height": box.height},
        ],
        "categories": [
            {"id": number, "name": each, "supercategory": ""}
            for number, each in enumerate([name, *classes], start=1)
        ],
    }


def _annotation(
    table: ObjectTable, index: int, outline: Outline, box: Box, segmentation: Segmentation
) -> dict[str, Any]:
    place = table.box(index).shifted(-box.y0, -box.x0)
    return {
        "id": outline.label,
        "image_id": 1,
        "segmentation": _segmentation(outline, box, segmentation),
        "area": int(table.area_px[index]),
        "bbox": [place.x0, place.y0, place.width, place.height],
        "iscrowd": 0,
    }


def _segmentation(outline: Outline, box: Box, segmentation: Segmentation) -> Any:
    if segmentation == "polygons" and outline.num_holes == 0:
        corner = (box.x0, box.y0)
        return [(exterior[:, ::-1] - corner).ravel().tolist() for exterior, *_ in outline.polygons]
    counts = run_lengths(outline, box)
    size = [box.height, box.width]
    if segmentation == "counts":
        return {"size": size, "counts": counts.tolist()}
    return {"size": size, "counts": compressed(counts)}


def run_lengths(outline: Outline, box: Box) -> NDArray[np.int64]:
    """Return the run lengths of an object, column by column: background, object, background, ...

    Parameters
    ----------
    outline : Outline
        The object.
    box : Box
        The image; its pixels are counted.

    Returns
    -------
    (N,) int
        The first is 0 if the first pixel belongs to the object; together they are ``box.area``.
    """
    column, first, last = outline.column_runs()
    before = (column - box.x0) * box.height - box.y0
    edges = np.stack([before + first, before + last], axis=1).ravel()
    # A run that goes on at the top of the next column is one run.
    goes_on = np.flatnonzero(edges[1:-1:2] == edges[2::2])
    edges = np.delete(edges, [*(2 * goes_on + 1), *(2 * goes_on + 2)])
    lengths = np.diff(edges, prepend=0, append=box.area)
    # What ends with the image has nothing after it.
    return lengths[:-1] if lengths[-1] == 0 else lengths


def compressed(counts: NDArray[np.int64]) -> str:
    """Pack run lengths into COCO's text.

    From the fourth on a run is told as its difference to the one two before. A number is cut into
    groups of five bits, the lowest first; a sixth bit says whether more groups follow, and 48 is
    added to make it a character.

    References
    ----------
    The format is that of the COCO API, file ``maskApi.c``; it is described, not copied.
    """
    left = counts.copy()
    left[3:] -= counts[1:-2]
    place = np.arange(len(left))
    text: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []
    while len(left):
        bits = left & 31
        left = left >> 5
        # The highest bit of the last group is the sign.
        is_last = np.where(bits & 16, left == -1, left == 0)
        text.append((place, np.where(is_last, bits, bits | 32) + 48))
        place, left = place[~is_last], left[~is_last]
    places = np.concatenate([part for part, _ in text])
    letters = np.concatenate([part for _, part in text]).astype(np.uint8)
    # Groups of one number stay in their order.
    return letters[np.argsort(places, kind="stable")].tobytes().decode("ascii")
