"""Label images as layer data: on disk, or copied to it for as long as they are looked at."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.objects import UNIT_SYMBOLS
from napari_hrsam.storage.labels.places import FOLDER_KEY, LabelFile, readable

LayerData = tuple[Any, dict[str, Any], str]

ROWS = 1024
"""Rows of a layer that are copied at once."""


def stored_layer(file: LabelFile) -> LayerData:
    """Describe a label image on disk as a layer that is read as it is drawn.

    Raises
    ------
    LabelsError
        If it cannot be opened.
    """
    labels = open_labels(file.path, file.name, mode="r")
    ome = labels.ome
    is_pyramid = len(labels.levels) > 1
    options: dict[str, Any] = {
        "name": labels.name,
        "multiscale": is_pyramid,
        "scale": ome.scales[0],
        "translate": ome.translations[0],
        "metadata": {FOLDER_KEY: (str(labels.path), labels.name)},
    }
    # napari refuses units that it does not know.
    if all(unit in UNIT_SYMBOLS for unit in ome.units):
        options["units"] = ome.units
    # It takes no pyramid of one level.
    return list(labels.levels) if is_pyramid else labels.levels[0], options, "labels"


@contextmanager
def copied(
    data: Any, name: str, progress: Callable[[int, int], None] | None = None
) -> Iterator[LabelFile]:
    """Give labels that are not on disk as a label image, for as long as it is looked at.

    Only full size is written.

    Parameters
    ----------
    data : array (..., H, W), or a list of them, finest first
        Labels of any library.
    name : str
        What people call them.
    progress : callable (done, total), optional
        Counts.

    Raises
    ------
    LabelsError
        If it holds no labels from 0 to the largest of 32 bits.
    """
    data = data[0] if isinstance(data, Sequence) else data
    *planes, height, _ = shape = tuple(int(side) for side in data.shape)
    places = [
        (*plane, slice(y0, y0 + ROWS))
        for plane in np.ndindex(*planes)
        for y0 in range(0, height, ROWS)
    ]
    with tempfile.TemporaryDirectory(prefix="napari-hrsam-") as folder:
        file = LabelFile(Path(folder) / "labels.zarr", readable(name))
        with create_labels(file.path, file.name, shape) as labels:
            full_size = labels.levels[0]
            for done, place in enumerate(places):
                if progress is not None:
                    progress(done, len(places))
                values = np.asarray(data[place])
                _require_labels(values, name)
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
