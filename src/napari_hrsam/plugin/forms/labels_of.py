"""The label image that a form is about: on disk, or what a Labels layer holds."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from napari.layers import Labels

from napari_hrsam.errors import LabelsError
from napari_hrsam.plugin.forms.jobs import Progress
from napari_hrsam.plugin.overlay.objects import FOLDER_KEY
from napari_hrsam.storage.label_image import create_labels
from napari_hrsam.storage.labels.names import label_names
from napari_hrsam.storage.labels.places import LabelFile, readable

ROWS = 1024
"""Rows of a layer that are copied at once."""


def labels_on_disk(layer: Labels | None, folder: Path | None, name: str) -> LabelFile | None:
    """Say where the chosen label image lies; None if a layer holds it that is not on disk.

    Parameters
    ----------
    layer
        A layer; it counts before the folder.
    folder
        An OME-Zarr image, or a folder of labels alone.
    name
        Name of the label image in it; may be empty if there is one only.

    Raises
    ------
    LabelsError
        If nothing was chosen, or the name is missing where there are several.
    """
    if layer is not None:
        where = layer.metadata.get(FOLDER_KEY)
        return None if where is None else LabelFile(Path(where[0]), where[1])
    if folder is None:
        raise LabelsError(
            "expected labels, got none; choose a Labels layer, or the folder of an OME-Zarr image "
            "or of labels"
        )
    folder = Path(folder)
    if name.strip():
        return LabelFile(folder, name.strip())
    names = label_names(folder)
    if len(names) != 1:
        found = ", ".join(names) or "no label image"
        raise LabelsError(
            f"expected the name of a label image in {folder}, got none, and there is {found}; "
            "fill in its name"
        )
    return LabelFile(folder, names[0])


@contextmanager
def copied(layer: Labels, progress: Progress) -> Iterator[LabelFile]:
    """Give a layer that is not on disk as a label image, for as long as it is looked at.

    Raises
    ------
    LabelsError
        If it holds no labels from 0 to the largest of 32 bits.
    """
    data = layer.data[0] if layer.multiscale else layer.data
    *planes, height, _ = shape = tuple(int(side) for side in data.shape)
    places = [
        (*plane, slice(y0, y0 + ROWS))
        for plane in np.ndindex(*planes)
        for y0 in range(0, height, ROWS)
    ]
    with tempfile.TemporaryDirectory(prefix="napari-hrsam-") as folder:
        file = LabelFile(Path(folder) / "labels.zarr", readable(layer.name))
        with create_labels(file.path, file.name, shape) as labels:
            full_size = labels.levels[0]
            for done, place in enumerate(places):
                progress(done, len(places))
                values = np.asarray(data[place])
                _require_labels(values, layer.name)
                full_size[place] = values
        yield file


def _require_labels(values: np.ndarray, name: str) -> None:
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    largest = np.iinfo(np.uint32).max
    if low < 0 or high > largest:
        raise LabelsError(
            f"expected labels from 0 to {largest} in the layer '{name}', got "
            f"{low if low < 0 else high}; number the objects anew"
        )
