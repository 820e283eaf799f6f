"""One export for all formats: which file is meant, and what each can be told."""

from __future__ import annotations

from collections.abc import Callable, Collection
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import BoxLike
from napari_hrsam.storage.export.coco import Segmentation, export_coco
from napari_hrsam.storage.export.geojson import ObjectType, Units, export_geojson
from napari_hrsam.storage.export.geopackage import export_geopackage
from napari_hrsam.storage.export.source import Exported
from napari_hrsam.storage.export.table import export_csv
from napari_hrsam.storage.export.tiff import export_tiff
from napari_hrsam.storage.labels.regions import Progress

FileFormat = Literal["geojson", "coco", "tiff", "csv", "gpkg"]

SUFFIXES: dict[str, FileFormat] = {
    ".geojson": "geojson",
    ".json": "coco",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".csv": "csv",
    ".gpkg": "gpkg",
}

OPTIONS: dict[str, tuple[FileFormat, ...]] = {
    "units": ("geojson",),
    "georeference": ("geojson", "gpkg", "tiff"),
    "simplify_px": ("geojson", "gpkg"),
    "object_type": ("geojson",),
    "segmentation": ("coco",),
    "level": ("tiff",),
}
"""What some formats alone can be told."""


def format_of(out: str | PathLike[str]) -> FileFormat:
    """Tell the format by the suffix of a file.

    Raises
    ------
    LabelsError
        If it is none of `SUFFIXES`.
    """
    try:
        return SUFFIXES[Path(out).suffix.lower()]
    except KeyError:
        raise LabelsError(
            f"expected a file that ends in {', '.join(SUFFIXES)}, got {str(out)!r}; change its "
            "name, or say which format it is"
        ) from None


def export_labels(
    path: str | PathLike[str],
    name: str,
    out: str | PathLike[str],
    *,
    file_format: FileFormat | None = None,
    box: BoxLike | None = None,
    labels: Collection[int] | None = None,
    plane: tuple[int, ...] = (),
    units: Units | None = None,
    georeference: str | PathLike[str] | None = None,
    simplify_px: float | None = None,
    object_type: ObjectType | None = None,
    segmentation: Segmentation | None = None,
    level: int | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Exported:
    """Write the objects of a label image as GeoJSON, COCO, label TIFF, CSV table or GeoPackage.

    Nothing is locked: it works while the labels are drawn into, and takes what is committed.

    Parameters
    ----------
    path, name, out, box, labels, plane, overwrite, progress
        As in `export_csv`.
    file_format : {"geojson", "coco", "tiff", "csv", "gpkg"}, optional
        By default that of the suffix of ``out``: .geojson, .json (COCO), .tif, .csv, .gpkg.
    units, simplify_px, object_type
        Of GeoJSON; see `export_geojson`. ``simplify_px`` also of GeoPackage.
    georeference
        Of GeoJSON in ``units="lonlat"``, GeoPackage and TIFF: the GeoTIFF that the labels were
        drawn on.
    segmentation
        Of COCO; see `export_coco`.
    level
        Of TIFF; see `export_tiff`.

    Returns
    -------
    Exported

    Raises
    ------
    LabelsError
        As the export of the format; if the suffix is none of these, or something is told that the
        format does not know.
    """
    chosen = file_format or format_of(out)
    given = {
        "units": units,
        "georeference": georeference,
        "simplify_px": simplify_px,
        "object_type": object_type,
        "segmentation": segmentation,
        "level": level,
    }
    options: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    for key in options:
        if chosen not in OPTIONS[key]:
            raise LabelsError(
                f"expected {key} for {' or '.join(OPTIONS[key])} alone, got it for {chosen}; leave "
                "it out"
            )
    exporters: dict[FileFormat, Callable[..., Exported]] = {
        "geojson": export_geojson,
        "coco": export_coco,
        "tiff": export_tiff,
        "csv": export_csv,
        "gpkg": export_geopackage,
    }
    return exporters[chosen](
        path,
        name,
        out,
        box=box,
        labels=labels,
        plane=plane,
        overwrite=overwrite,
        progress=progress,
        **options,
    )
