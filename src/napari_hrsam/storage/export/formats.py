"""The formats of exports, and which options each of them has."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from os import PathLike
from pathlib import Path
from typing import Any, Literal, get_args

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.export.coco import export_coco
from napari_hrsam.storage.export.geojson import export_geojson
from napari_hrsam.storage.export.source import Exported
from napari_hrsam.storage.export.table import export_csv
from napari_hrsam.storage.export.tiff import export_tiff

Format = Literal["geojson", "coco", "tiff", "csv"]
FORMATS: tuple[Format, ...] = get_args(Format)

SUFFIXES: dict[str, Format] = {
    ".geojson": "geojson",
    ".json": "coco",
    ".tif": "tiff",
    ".tiff": "tiff",
    ".csv": "csv",
}
"""Of files, in small letters."""

_WRITERS: dict[Format, Callable[..., Exported]] = {
    "geojson": export_geojson,
    "coco": export_coco,
    "tiff": export_tiff,
    "csv": export_csv,
}


def format_of(out: str | PathLike[str]) -> Format | None:
    """Return the format that the suffix of a file says, None if it says none."""
    return SUFFIXES.get(Path(out).suffix.lower())


def options_of(file_format: Format) -> tuple[str, ...]:
    """Return the names of the options that the export has."""
    parameters = inspect.signature(_WRITERS[file_format]).parameters.values()
    return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)


def export_labels(
    path: str | PathLike[str],
    name: str,
    out: str | PathLike[str],
    file_format: Format | None = None,
    **options: Any,
) -> Exported:
    """Write the objects of a label image to a file; see `LabelImage.export`.

    Raises
    ------
    LabelsError
        As the exports; also if the suffix tells no format, or the format has no such option.
    """
    chosen = format_of(out) if file_format is None else file_format
    if chosen not in FORMATS:
        raise LabelsError(
            f"expected a format of {', '.join(FORMATS)}, or a file whose suffix tells it "
            f"({', '.join(SUFFIXES)}), got {file_format or str(out)!r}; name the format"
        )
    unknown = sorted(set(options) - set(options_of(chosen)))
    if unknown:
        raise LabelsError(
            f"expected options of {chosen}: {', '.join(options_of(chosen))}; got "
            f"{', '.join(unknown)}; leave them out, or choose another format"
        )
    return _WRITERS[chosen](path, name, out, **options)
