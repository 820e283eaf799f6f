"""One import for all formats: which one a file is."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.importing.coco import coco_extent, import_coco, is_annotation
from napari_hrsam.storage.importing.geojson import geojson_extent, import_geojson, is_feature
from napari_hrsam.storage.importing.json_items import items
from napari_hrsam.storage.importing.objects import Imported
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.store import LabelStore

ImportFormat = Literal["geojson", "coco"]

_MAX_LOOKED = 1000
"""Values of a file that are looked at to tell its format."""


def import_format(file: str | PathLike[str]) -> ImportFormat | None:
    """Tell what a file holds, by its beginning; None if it is neither GeoJSON nor COCO.

    Raises
    ------
    LabelsError
        If it cannot be read, or is no JSON.
    """
    for number, (key, value) in enumerate(items(Path(file))):
        if (key == "type" and value in ("FeatureCollection", "Feature")) or is_feature(value):
            return "geojson"
        if key in ("", "annotations") and is_annotation(value):
            return "coco"
        if key == "images" and isinstance(value, dict) and {"id", "file_name"} <= value.keys():
            return "coco"
        if number == _MAX_LOOKED:
            break
    return None


def import_objects(file: str | PathLike[str], labels: LabelStore, **options: Any) -> Imported:
    """Draw the objects of a GeoJSON or COCO file into a label image.

    Parameters
    ----------
    file, labels
        As in `import_geojson`.
    **options
        Of `import_geojson` or `import_coco`.

    Raises
    ------
    LabelsError
        If it is neither, ``image`` is told for GeoJSON, or as in `import_geojson`.
    """
    if require_objects(file) == "coco":
        return import_coco(file, labels, **options)
    if options.pop("image", None) is not None:
        raise LabelsError("image is for COCO, but the file is GeoJSON; leave it out")
    return import_geojson(file, labels, **options)


def require_objects(file: str | PathLike[str]) -> ImportFormat:
    """Tell which format a file has.

    Raises
    ------
    LabelsError
        If it is neither GeoJSON nor COCO, or cannot be read.
    """
    found = import_format(file)
    if found is None:
        raise LabelsError(
            f"expected GeoJSON with features, or COCO with images and annotations, got {file}, "
            "which is neither; export the objects as one of these"
        )
    return found


def drawn_alone(file: str | PathLike[str]) -> tuple[NDArray[np.uint32], Imported]:
    """Draw a file of objects into a new label image of the size that the file tells.

    Where it tells none, as QuPath's, the image ends with the objects. Ids are the file's where they
    can be.

    Returns
    -------
    (H, W) uint32, Imported

    Raises
    ------
    LabelsError
        As `import_objects`; if the file has no object, or the image is too large for memory.
    """
    is_coco = require_objects(file) == "coco"
    path = Path(file)
    shape = coco_extent(path) if is_coco else geojson_extent(path)
    labels = ArrayLabels(shape)
    # Objects may begin before the first pixel, where that is the only thing known of the image.
    done = import_objects(file, labels, keep_ids=True, allow_outside=True)
    return labels.array, done
