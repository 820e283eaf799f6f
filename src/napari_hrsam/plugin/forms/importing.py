"""The form *Import objects*."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import napari.layers
import numpy as np

from napari_hrsam.errors import ConfigError, LabelsError
from napari_hrsam.plugin.contrib.label_layers import stored_layer
from napari_hrsam.plugin.forms.form import Form
from napari_hrsam.plugin.forms.jobs import Job, Progress, at_once, whole_numbers
from napari_hrsam.plugin.forms.labels_of import labels_on_disk
from napari_hrsam.plugin.session.image_input import read_image_layers
from napari_hrsam.storage.importing.formats import import_objects, require_objects
from napari_hrsam.storage.importing.objects import Imported
from napari_hrsam.storage.label_image import open_labels, open_or_create_labels
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.places import FOLDER_KEY, LabelFile

if TYPE_CHECKING:
    import napari.viewer

MAX_SHOWN = 50
"""Skipped objects that are listed."""


def prepare_import(
    labels: napari.layers.Labels | None = None,
    folder: Path | None = None,
    name: str = "",
    like: napari.layers.Image | None = None,
    file: Path | None = None,
    image: str = "",
    plane: str = "",
    offset: str = "",
    keep_ids: bool = False,
    overwrite: bool = False,
    allow_outside: bool = False,
) -> Job[Imported]:
    """Draw the objects of a GeoJSON or COCO file into a label image.

    Parameters
    ----------
    labels : Labels layer, optional
        Where to draw; one on disk is drawn into there, and must not be open in the panel. Or:
    folder, name
        An OME-Zarr image or a folder of labels, and the name of the label image in it.
    like : Image layer, optional
        If the folder has no such labels, they are made for this image.
    file : Path
        GeoJSON, QuPath's or ours, or COCO.
    image : str
        Of COCO with several images: the name of one.
    plane : str
        Plane of a stack on which all objects are drawn; empty: as the file says.
    offset : str
        Where the file's first pixel lies in the labels: y,x in pixels of full size; empty: where
        the file says, or at 0,0.
    keep_ids : bool
        Give objects the ids of the file where no object has these.
    overwrite : bool
        Take over pixels of other objects.
    allow_outside : bool
        Take a file of an image of another size, and cut objects at the border.

    Raises
    ------
    LabelsError, ConfigError
        If something is missing or wrong; see `napari_hrsam.import_geojson`.
    """
    if file is None or not Path(file).name:
        raise LabelsError("expected a file of objects, got none; choose GeoJSON or COCO")
    chosen_plane = whole_numbers(plane, "the numbers of a plane, such as 3 or 0,3") or None
    places = whole_numbers(offset, "an offset y, x in pixels of full size")
    if len(places) not in (0, 2):
        raise ConfigError(f"expected an offset y, x, got {offset!r}; correct it, or leave it empty")
    options = {
        "image": image.strip() or None,
        "offset_yx": (places[0], places[1]) if places else None,
        "keep_ids": keep_ids,
        "overwrite": overwrite,
        "allow_outside": allow_outside,
    }
    place = labels_on_disk(labels, folder, name)
    if place is None:
        assert labels is not None
        array, plane_in_memory = _array(labels, chosen_plane)

        def draw(progress: Progress) -> Imported:
            drawn = ArrayLabels(array)
            return import_objects(file, drawn, plane=plane_in_memory, progress=progress, **options)

        return draw
    pixels = None if like is None else read_image_layers(like).image

    def run(progress: Progress) -> Imported:
        # Before labels are made for it.
        require_objects(file)
        opened = (
            open_labels(place.path, place.name)
            if place.folder.is_dir() or pixels is None
            else open_or_create_labels(place.path, place.name, pixels.open())
        )
        with opened as stored:
            return stored.import_objects(file, plane=chosen_plane, progress=progress, **options)

    return run


def _array(
    labels: napari.layers.Labels, plane: tuple[int, ...] | None
) -> tuple[np.ndarray, tuple[int, ...] | None]:
    """Return the plane of a layer in memory to draw into, and what is left of the plane."""
    data = labels.data
    if not isinstance(data, np.ndarray):
        raise LabelsError(
            f"expected a Labels layer on disk or of a NumPy array, got '{labels.name}' of "
            f"{type(data).__name__}; choose the folder of a label image"
        )
    num_planes = data.ndim - 2
    if num_planes and (plane is None or len(plane) != num_planes):
        raise LabelsError(
            f"expected a plane of the layer '{labels.name}' of shape {data.shape}, got "
            f"{plane or 'none'}; give one number per axis besides rows and columns"
        )
    if not num_planes:
        return data, plane
    assert plane is not None
    if not all(0 <= at < size for at, size in zip(plane, data.shape, strict=False)):
        raise LabelsError(f"expected a plane inside a layer of shape {data.shape}, got {plane}")
    return data[plane], ()


import_into_layer = at_once(prepare_import)


class ImportForm(Form):
    """The dock: what to import, and where to."""

    def __init__(self, napari_viewer: napari.viewer.Viewer) -> None:
        super().__init__(
            napari_viewer,
            prepare_import,
            action="Import",
            options={
                "file": {"label": "File", "mode": "r", "filter": "Objects (*.geojson *.json)"},
                "labels": {"label": "Labels"},
                "folder": {"label": "or folder", "mode": "d"},
                "name": {"label": "its labels", "hint": "the only ones"},
                "like": {"label": "made for"},
                "image": {"label": "Image", "hint": "of COCO, if several"},
                "plane": {"label": "Plane", "hint": "of a stack: t, z"},
                "offset": {"label": "Offset", "hint": "none, or y, x"},
                "keep_ids": {"label": "Keep ids"},
                "overwrite": {"label": "Overwrite"},
                "allow_outside": {"label": "Cut outside"},
            },
        )
        self.fields.changed.connect(self._show_fields)
        self._show_fields()

    def _show_fields(self) -> None:
        self.show_labels_fields()
        self.fields["like"].visible = self.fields["labels"].value is None

    def describe(self, result: Imported) -> str:
        """Say what was drawn, and show it."""
        values = self.fields.asdict()
        self._show_objects(
            None if values["labels"] else labels_on_disk(None, values["folder"], values["name"])
        )
        return "\n\n".join(f"{line[0].upper()}{line[1:]}." for line in result.lines(MAX_SHOWN))

    def describe_cancel(self, done: int, total: int) -> str:
        """Say what is left of it."""
        return f"Cancelled after {done} of {total} objects, which are kept: each is one commit."

    def _show_objects(self, drawn: LabelFile | None) -> None:
        """Draw Labels layers anew; add one for labels on disk that none shows."""
        shown = [layer for layer in self._viewer.layers if isinstance(layer, napari.layers.Labels)]
        for layer in shown:
            layer.refresh()
        keys = [layer.metadata.get(FOLDER_KEY) for layer in shown]
        if drawn is not None and (str(drawn.path), drawn.name) not in keys:
            levels, options, _ = stored_layer(drawn)
            self._viewer.add_labels(levels, **options)
