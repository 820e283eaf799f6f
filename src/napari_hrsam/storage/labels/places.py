"""Where the objects of an image are kept: beside it, or in a folder of their own.

It imports no zarr until an OME-Zarr image is looked at: that takes long, and the panel needs it at
once.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import platformdirs
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError, ImageReadError
from napari_hrsam.storage.images.fingerprint import identify
from napari_hrsam.storage.images.layers import LayerImage, levels_of
from napari_hrsam.storage.images.ome_metadata import parse_ome
from napari_hrsam.storage.labels.names import label_names

LABELS_VARIABLE = "NAPARI_HRSAM_LABELS"
"""Environment variable with the folder of label images that lie beside no image."""

DEFAULT_NAME = "objects"

FOLDER_KEY = "napari-hrsam labels"
"""Metadata of a layer that shows a label image on disk: its path and its name."""


@dataclass(frozen=True, slots=True)
class LabelFile:
    """A label image on disk, which may not be there yet.

    Attributes
    ----------
    path : Path
        A local OME-Zarr image, or a folder for labels alone.
    name : str
        Name of the label image.
    """

    path: Path
    name: str = DEFAULT_NAME

    @property
    def folder(self) -> Path:
        """Where the label image lies."""
        return self.path / "labels" / self.name


@dataclass(frozen=True, slots=True)
class OwnPlace:
    """The label image of an image that has no folder for one: the same for the same image.

    Attributes
    ----------
    name : str
        What people call the image.
    """

    name: str

    def of(self, image: LayerImage) -> LabelFile:
        """Return where it is, in the folder of `LABELS_VARIABLE` or the user's data folder.

        Parameters
        ----------
        image : LayerImage
            Some of its pixels are read, to tell it from others of its name; limits and colours do
            not count.

        Raises
        ------
        ImageReadError
            If they cannot be read.
        """
        chosen = os.environ.get(LABELS_VARIABLE)
        folder = Path(chosen) if chosen else platformdirs.user_data_path("napari-hrsam") / "labels"
        digest = identify(image.plain()).digest[:8]
        return LabelFile(folder / f"{readable(self.name)}-{digest}.zarr")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KeptArray:
    """An array for objects, and how its copy on disk is found.

    Attributes
    ----------
    array : (H, W) integer
        Changed in place by commits.
    place : OwnPlace
        Of the image.
    name : str
        Name of the label image there.
    taken : tuple of LabelFile
        Copies that belong to other arrays: with one of these names another one is used.
    is_new : bool
        Whether the array is to take up what the copy holds.
    """

    array: NDArray[np.integer]
    place: OwnPlace
    name: str = DEFAULT_NAME
    taken: tuple[LabelFile, ...] = ()
    is_new: bool = True

    def file(self, image: LayerImage) -> LabelFile:
        """Return where the copy lies; see `OwnPlace.of`."""
        path = self.place.of(image).path
        number, file = 1, LabelFile(path, self.name)
        while file in self.taken:
            number += 1
            file = LabelFile(path, f"{self.name}-{number}")
        return file


def ome_zarr_of(layer: Any) -> Path | None:
    """Find the local OME-Zarr image that an Image layer shows, if labels can be added to it.

    Parameters
    ----------
    layer : napari Image layer
        Opened from a path, or holding zarr arrays.

    Returns
    -------
    Path or None
        None if there is none, it cannot be written to, or its pixels are not those of the layer.
    """
    levels = levels_of(layer)
    shape = tuple(levels[0].shape[: layer.ndim])
    for path in _places(layer, levels[0]):
        if path.is_dir() and os.access(path, os.W_OK) and _is_image(path, shape):
            return path
    return None


def labels_in(folder: Path, image_name: str) -> LabelFile:
    """Return the label image to use in a folder that a person chose.

    Parameters
    ----------
    folder : Path
        A folder of labels, an OME-Zarr image, an empty folder, or any other: then a folder of
        labels is to be made inside it.
    image_name : str
        What people call the image.
    """
    names = label_names(folder)
    is_zarr = any((folder / name).is_file() for name in ("zarr.json", ".zgroup", ".zattrs"))
    if folder.is_dir() and any(folder.iterdir()) and not is_zarr:
        folder = folder / f"{readable(image_name)}-objects.zarr"
        names = label_names(folder)
    name = names[0] if names and DEFAULT_NAME not in names else DEFAULT_NAME
    return LabelFile(folder, name)


def readable(name: str) -> str:
    """Make a name for a folder of what people call something."""
    return re.sub(r"[^\w.-]+", "-", name).strip("-.")[:60] or "image"


def _places(layer: Any, level0: Any) -> list[Path]:
    places = []
    source = getattr(getattr(layer, "source", None), "path", None)
    if source and "://" not in str(source):
        places.append(Path(source))
    root = getattr(getattr(level0, "store", None), "root", None)
    if isinstance(root, Path):
        array = root / str(getattr(level0, "path", ""))
        # The arrays of levels lie in the image's group, or in groups inside it.
        places.extend(list(array.parents)[:2])
    return places


def _is_image(path: Path, shape: tuple[int, ...]) -> bool:
    """Whether a folder is an OME-Zarr image with these pixels, channels left out."""
    from napari_hrsam.storage.images.ome_zarr import array_in, open_group

    try:
        group = open_group(path)
        ome = parse_ome(group.attrs.asdict(), str(path))
        array = array_in(group, ome.datasets[0], str(path))
    except (ImageError, ImageReadError):
        return False
    kept = tuple(size for axis, size in enumerate(array.shape) if axis != ome.channel_axis)
    planes, own = kept[:-2], shape[:-2]
    is_flat = len(planes) >= len(own) and set(planes) | set(own) <= {1}
    return len(kept) >= 2 and kept[-2:] == shape[-2:] and (planes == own or is_flat)
