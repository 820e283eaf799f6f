"""Labels layers written with File > Save: the same files as the form *Export labels* writes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from napari_hrsam.plugin.contrib.label_layers import copied
from napari_hrsam.storage.export.formats import FileFormat, export_labels
from napari_hrsam.storage.labels.check import verify_labels
from napari_hrsam.storage.labels.compact import compact_labels
from napari_hrsam.storage.labels.places import FOLDER_KEY, LabelFile

Write = Callable[[LabelFile, str], Any]


def write_geojson(path: str, data: Any, options: dict[str, Any]) -> list[str]:
    """Write a Labels layer as GeoJSON for QuPath and GIS programs; see `export_geojson`."""
    return _written(path, data, options, _exporting("geojson"))


def write_coco(path: str, data: Any, options: dict[str, Any]) -> list[str]:
    """Write a Labels layer as COCO with exact run lengths; see `export_coco`."""
    return _written(path, data, options, _exporting("coco"))


def write_csv(path: str, data: Any, options: dict[str, Any]) -> list[str]:
    """Write the measurements of the objects of a Labels layer; see `export_csv`."""
    return _written(path, data, options, _exporting("csv"))


def write_ome_zarr(path: str, data: Any, options: dict[str, Any]) -> list[str]:
    """Write a Labels layer as an OME-Zarr label image, all its levels; see `compact_labels`."""
    return _written(path, data, options, _compact)


def _exporting(file_format: FileFormat) -> Write:
    def export(file: LabelFile, path: str) -> None:
        # napari has asked whether an existing file is to be replaced.
        export_labels(file.path, file.name, path, file_format=file_format, overwrite=True)

    return export


def _compact(file: LabelFile, path: str) -> None:
    compact_labels(file.path, file.name, path)


def _written(path: str, data: Any, options: dict[str, Any], write: Write) -> list[str]:
    where = options.get("metadata", {}).get(FOLDER_KEY)
    if where is not None:
        write(LabelFile(Path(where[0]), where[1]), path)
        return [path]
    with copied(data, str(options.get("name") or "labels")) as file:
        if write is _compact:
            # The copy has full size alone; the coarser levels are made of it.
            verify_labels(file.path, file.name, repair=True)
        write(file, path)
    return [path]
