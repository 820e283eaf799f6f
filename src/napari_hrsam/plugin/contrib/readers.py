"""Opening with File > Open: generated images, slides, label images on disk, files of objects."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from napari_hrsam.errors import LabelsError
from napari_hrsam.plugin.contrib.image_layers import image_layers
from napari_hrsam.plugin.contrib.label_layers import LayerData, stored_layer
from napari_hrsam.plugin.contrib.samples import generated_layer
from napari_hrsam.sample import open_sample
from napari_hrsam.sample.generated import read_recipe
from napari_hrsam.storage.files.metadata_files import ome_attributes
from napari_hrsam.storage.images.slides import is_slide
from napari_hrsam.storage.images.tiff_files import is_tiff
from napari_hrsam.storage.importing.formats import drawn_alone, import_format
from napari_hrsam.storage.labels.names import label_names
from napari_hrsam.storage.labels.places import LabelFile

logger = logging.getLogger(__name__)

Reader = Callable[[str | list[str]], list[LayerData]]


def generated_reader(path: str | list[str]) -> Reader | None:
    """Return a reader for an image made by ``napari-hrsam sample``; None for anything else.

    Parameters
    ----------
    path : str or list of str
        What the user opens.

    Raises
    ------
    ImageError, ImageReadError
        If it is such an image, but damaged or of another version.
    """
    if not isinstance(path, str) or read_recipe(Path(path)) is None:
        return None
    return _read


def _read(path: str | list[str]) -> list[LayerData]:
    """Open one generated image as a layer."""
    assert isinstance(path, str)
    return [generated_layer(open_sample(path), Path(path).name.split(".")[0])]


def slides_reader(path: str | list[str]) -> Reader | None:
    """Return a reader for a slide or a TIFF, read as it is drawn; None for anything else.

    Parameters
    ----------
    path : str or list of str
        What the user opens: a file, or a folder of DICOM files.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    if not isinstance(path, str) or "://" in path or not Path(path).exists():
        return None
    place = Path(path)
    return _read_slide if is_slide(place) or (place.is_file() and is_tiff(place)) else None


def _read_slide(path: str | list[str]) -> list[LayerData]:
    """Open a slide as layers that are read as they are drawn."""
    assert isinstance(path, str)
    return image_layers(Path(path))


def labels_reader(path: str | list[str]) -> Reader | None:
    """Return a reader for a folder of label images alone, or one label image; None for others.

    An OME-Zarr image that has labels is left to the readers of images.

    Parameters
    ----------
    path : str or list of str
        What the user opens.
    """
    if not isinstance(path, str) or not _label_files(Path(path)):
        return None
    return _read_labels


def _read_labels(path: str | list[str]) -> list[LayerData]:
    """Open label images as layers that are read as they are drawn."""
    assert isinstance(path, str)
    return [stored_layer(file) for file in _label_files(Path(path))]


def _label_files(path: Path) -> list[LabelFile]:
    if not path.is_dir():
        return []
    path = path.absolute()
    is_image = "multiscales" in ome_attributes(path)
    # A label image lies in a folder "labels", perhaps inside other folders there.
    root = next((place.parent for place in path.parents if place.name == "labels"), None)
    if root is not None:
        name = path.relative_to(root / "labels").as_posix()
        return [LabelFile(root, name)] if is_image and name in label_names(root) else []
    return [] if is_image else [LabelFile(path, name) for name in label_names(path)]


def objects_reader(path: str | list[str]) -> Reader | None:
    """Return a reader for GeoJSON or COCO; None for any other file.

    Parameters
    ----------
    path : str or list of str
        What the user opens.
    """
    if not isinstance(path, str):
        return None
    try:
        return None if import_format(path) is None else _read_objects
    except LabelsError:
        # Not even JSON.
        return None


def _read_objects(path: str | list[str]) -> list[LayerData]:
    """Draw a file of objects as a Labels layer of the size that the file tells."""
    assert isinstance(path, str)
    labels, done = drawn_alone(path)
    for line in done.lines()[1:]:
        logger.warning("%s: %s", path, line)
    return [(labels, {"name": Path(path).stem}, "labels")]
