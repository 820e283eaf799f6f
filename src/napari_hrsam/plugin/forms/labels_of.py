"""The label image on disk that a form is about."""

from __future__ import annotations

from pathlib import Path

from napari.layers import Labels

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.labels.names import label_names
from napari_hrsam.storage.labels.places import FOLDER_KEY, LabelFile


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
