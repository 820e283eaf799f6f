"""The form *Export labels*."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import napari.layers

from napari_hrsam.errors import LabelsError
from napari_hrsam.plugin.contrib.label_layers import copied
from napari_hrsam.plugin.forms.form import Form
from napari_hrsam.plugin.forms.jobs import Job, Progress, at_once, box_of, whole_numbers
from napari_hrsam.plugin.forms.labels_of import labels_on_disk
from napari_hrsam.storage.export.formats import OPTIONS, SUFFIXES, export_labels, format_of
from napari_hrsam.storage.export.source import Exported

if TYPE_CHECKING:
    import napari.viewer


def prepare_export(
    labels: napari.layers.Labels | None = None,
    folder: Path | None = None,
    name: str = "",
    out: Path | None = None,
    box: str = "",
    plane: str = "",
    units: Literal["pixel", "physical", "lonlat"] = "pixel",
    georeference: Path | None = None,
    simplify_px: float = 0.0,
    object_type: Literal["annotation", "detection"] = "annotation",
    segmentation: Literal["rle", "counts", "polygons"] = "rle",
    level: int = 0,
    overwrite: bool = False,
) -> Job[Exported]:
    """Write the objects of a label image to a file.

    Labels on disk are read there, also while they are drawn into: what is committed is written. A
    layer that is in memory alone is written as it is, in pixels: its scale is not taken over.

    Parameters
    ----------
    labels : Labels layer, optional
        What to export; or:
    folder, name
        An OME-Zarr image or a folder of labels, and the name of the label image in it.
    out : Path
        The file to write; its suffix tells the format: .geojson, .json (COCO), .csv, .tif, .gpkg.
    box : str
        Only what lies in y0,x0,y1,x1, in pixels of full size; empty: everything.
    plane : str
        Which plane of a stack: one number per axis besides rows and columns.
    units, simplify_px, object_type
        Of GeoJSON; see `napari_hrsam.export_geojson`.
    georeference : Path, optional
        Of GeoJSON in longitude and latitude, GeoPackage and TIFF: the GeoTIFF that the labels were
        drawn on, where they do not know it themselves.
    segmentation
        Of COCO; see `napari_hrsam.export_coco`.
    level : int
        Of TIFF: 0 full size, 1 half, ...
    overwrite : bool
        Whether an existing file is replaced.

    Raises
    ------
    LabelsError, ConfigError
        If something is missing or wrong; see `napari_hrsam.export_csv`.
    """
    if out is None or not Path(out).name:
        raise LabelsError("expected a file to write, got none; choose one, such as cells.geojson")
    chosen = format_of(out)
    given = {
        "units": units,
        # An empty field of a file is the folder ".".
        "georeference": georeference if georeference and georeference.name else None,
        "simplify_px": simplify_px,
        "object_type": object_type,
        "segmentation": segmentation,
        "level": level,
    }
    # What belongs to another format was not asked for.
    options: dict[str, Any] = {key: given[key] for key in OPTIONS if chosen in OPTIONS[key]}
    options |= {
        "box": box_of(box),
        "plane": whole_numbers(plane, "the numbers of a plane, such as 3 or 0,3"),
        "overwrite": overwrite,
    }
    place = labels_on_disk(labels, folder, name)

    def run(progress: Progress) -> Exported:
        if place is not None:
            return export_labels(place.path, place.name, out, progress=progress, **options)
        assert labels is not None
        with copied(labels.data, labels.name, progress) as file:
            return export_labels(file.path, file.name, out, progress=progress, **options)

    return run


export_layer = at_once(prepare_export)


class ExportForm(Form):
    """The dock: what to export, and where to."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        suffixes = " ".join(f"*{suffix}" for suffix in SUFFIXES)
        super().__init__(
            napari_viewer,
            prepare_export,
            action="Export",
            options={
                "labels": {"label": "Labels"},
                "folder": {"label": "or folder", "mode": "d"},
                "name": {"label": "its labels", "hint": "the only ones"},
                "out": {"label": "File", "mode": "w", "filter": f"Exports ({suffixes})"},
                "box": {"label": "Box", "hint": "all, or y0, x0, y1, x1"},
                "plane": {"label": "Plane", "hint": "of a stack: t, z"},
                "units": {"label": "Units"},
                "georeference": {"label": "Map", "mode": "r", "hint": "as the labels tell"},
                "simplify_px": {"label": "Simplify, px", "min": 0.0, "max": 1e6},
                "object_type": {"label": "In QuPath"},
                "segmentation": {"label": "Masks as"},
                "level": {"label": "Level", "min": 0, "max": 30},
                "overwrite": {"label": "Overwrite"},
            },
        )
        self.fields.changed.connect(self._show_fields)
        self._show_fields()

    def _show_fields(self) -> None:
        self.show_labels_fields()
        out = self.fields["out"].value
        chosen = None if out is None else SUFFIXES.get(Path(out).suffix.lower())
        for key, owners in OPTIONS.items():
            self.fields[key].visible = chosen in owners

    def describe(self, result: Exported) -> str:
        """Say what was written."""
        return (
            f"Wrote {result.num_objects:,} objects to {result.path} ({result.num_bytes:,} bytes)."
        )
