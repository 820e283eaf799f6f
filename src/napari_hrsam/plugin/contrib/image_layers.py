"""Slides and maps as layer data: levels that are read as they are drawn, with scale and units."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from napari_hrsam.errors import ImageError
from napari_hrsam.storage.images.file_image import FileImage
from napari_hrsam.storage.images.layers import GEOREFERENCE_KEY
from napari_hrsam.storage.images.opening import open_file_image
from napari_hrsam.storage.images.parts_array import OneOf
from napari_hrsam.storage.images.stored import AxisOrder, stored_levels
from napari_hrsam.storage.images.tile_source import PyramidImage
from napari_hrsam.storage.labels.objects import UNIT_SYMBOLS

LayerData = tuple[Any, dict[str, Any], str]


def image_layers(path: str | PathLike[str]) -> list[LayerData]:
    """Describe a slide or a TIFF as layers of napari: one in colours, or one per channel.

    Parameters
    ----------
    path : path
        A slide, a map or another TIFF, or a folder of DICOM files.

    Returns
    -------
    list of (data, options, "image")
        What ``napari.layers.Layer.create`` takes: levels that are read as they are drawn, with
        scale and units. The objects of a map drawn on them know their place on the Earth.

    Raises
    ------
    MissingExtraError
        If it is a slide, and the extra ``slides`` is not installed.
    ImageError, ImageReadError
        If it is neither, or cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise ImageError(f"expected an image file, but there is none at {path}; check the path")
    found = open_file_image(path)
    if found is None:
        raise ImageError(
            f"expected a slide or a TIFF, got {path}; open pictures with napari's own reader"
        )
    name = path.name.split(".")[0]
    if found.is_colour and found.axes[-1] == "S" and found.levels[0].shape[-1] in {3, 4}:
        return [_layer(found, list(found.levels), found.axes[:-1], name, path, rgb=True)]
    letter = next((axis for axis in "SC" if axis in found.axes), None)
    if letter is None:
        return [_layer(found, list(found.levels), found.axes, name, path)]
    axis = found.axes.index(letter)
    rest = found.axes.replace(letter, "")
    layers = []
    for place in range(int(found.levels[0].shape[axis])):
        levels = [OneOf(level, axis, place) for level in found.levels]
        told = found.channels[place] if place < len(found.channels) else None
        channel = (told.name if told else "") or f"{letter}{place}"
        data, options, kind = _layer(found, levels, rest, f"{name} {channel}", path)
        options["blending"] = "additive"
        options["visible"] = place < _SHOWN
        options["colormap"] = f"#{told.colour}" if told and told.colour else "gray"
        layers.append((data, options, kind))
    return layers


_SHOWN = 3
"""Channels that are visible at first."""


def _layer(
    found: FileImage, levels: list[Any], axes: str, name: str, path: Path, *, rgb: bool = False
) -> LayerData:
    sizes = [found.pixel_size.get(axis, (1.0, "")) for axis in axes]
    # Degrees are no length, and differ along rows and columns.
    sizes = [(size, unit) if unit else (1.0, "") for size, unit in sizes]
    options: dict[str, Any] = {
        "name": name,
        "multiscale": len(levels) > 1,
        "scale": tuple(size for size, _ in sizes),
        "metadata": {"path": str(path)},
    }
    if rgb:
        options["rgb"] = True
    if found.georeference is not None:
        options["metadata"][GEOREFERENCE_KEY] = found.georeference.as_json()
    # napari refuses units that it does not know.
    if all(unit in UNIT_SYMBOLS or not unit for _, unit in sizes):
        options["units"] = tuple(unit or "pixel" for _, unit in sizes)
    if not (rgb and np.dtype(levels[0].dtype) == np.uint8):
        options["contrast_limits"] = _limits(levels, axes, rgb=rgb)
    return levels if len(levels) > 1 else levels[0], options, "image"


def _limits(levels: list[Any], axes: str, *, rgb: bool) -> tuple[float, float]:
    """Choose the values shown as black and white as `open_image` does."""
    planes = tuple(i for i, axis in enumerate(axes) if axis not in "YX")
    order = AxisOrder(
        y=axes.index("Y"), x=axes.index("X"), channel=len(axes) if rgb else None, planes=planes
    )
    stored = stored_levels(levels, order)
    return PyramidImage(stored, (0, 1, 2) if rgb else (0, 0, 0)).contrast_limits[0]
