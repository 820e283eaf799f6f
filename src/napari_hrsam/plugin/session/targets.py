"""Where committed objects go: a Labels layer in memory, or a label image on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
from napari.layers import Labels

from napari_hrsam.errors import LabelsError
from napari_hrsam.plugin.overlay.objects import COPY_KEY
from napari_hrsam.storage.labels.places import (
    DEFAULT_NAME,
    FOLDER_KEY,
    KeptArray,
    LabelFile,
    OwnPlace,
    ome_zarr_of,
    readable,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from napari.layers import Image, Layer
    from numpy.typing import NDArray

    from napari_hrsam.storage.images.layers import LayerImage

MAX_SIDE_PX = 16384
"""Single-scale Labels above the usual texture limit are drawn slowly and coarsely by napari."""

MAX_AUTO_SIDE_PX = 8192
"""An image up to this side has its objects in memory unless the user says otherwise."""

LABEL_DTYPE = np.dtype(np.uint32)


@dataclass(frozen=True, slots=True)
class NewLayer:
    """A new Labels layer in memory."""


Target: TypeAlias = Labels | LabelFile | OwnPlace | NewLayer


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MemoryTarget:
    """A label image in memory.

    Attributes
    ----------
    layer
        The user's layer, or None for a new one.
    array : (H, W) integer
        Changed in place by commits.
    """

    layer: Labels | None
    array: NDArray[np.integer]


def default_target(layer: Image, image: LayerImage) -> Target:
    """Choose where the objects of an image go when the user does not say.

    Parameters
    ----------
    layer
        The image layer.
    image
        What it holds.

    Returns
    -------
    NewLayer for a small flat image in memory; else the label image "objects" beside the image, or
    one in the user's data folder
    """
    is_small = max(image.shape_yx) <= MAX_AUTO_SIDE_PX
    if is_small and not image.plane_shape and image.is_in_memory:
        return NewLayer()
    beside = ome_zarr_of(layer)
    return OwnPlace(layer.name) if beside is None else LabelFile(beside, DEFAULT_NAME)


def resolve_target(
    target: Target, layer: Image, image: LayerImage
) -> MemoryTarget | LabelFile | OwnPlace:
    """Check what was chosen, and make the array of a new layer.

    Raises
    ------
    LabelsError
        If it cannot take the image's objects.
    """
    if isinstance(target, Labels) and FOLDER_KEY in target.metadata:
        path, name = target.metadata[FOLDER_KEY]
        return LabelFile(Path(path), name)
    if isinstance(target, Labels):
        check_target_layer(target, layer, image)
        return MemoryTarget(layer=target, array=target_array(target))
    if isinstance(target, NewLayer):
        _require_small(image)
        return MemoryTarget(layer=None, array=np.zeros(image.shape_yx, LABEL_DTYPE))
    return target


def kept_array(target: MemoryTarget, image: Image, layers: Iterable[Layer]) -> KeptArray:
    """Say where on disk a copy of the objects of a layer is kept.

    Parameters
    ----------
    target
        The layer, or the array of a new one.
    image
        The image layer.
    layers
        All layers of the viewer: a new layer takes up no copy that one of them has already.
    """
    place, layer = OwnPlace(image.name), target.layer
    if layer is None:
        copies = [other.metadata.get(COPY_KEY) for other in layers]
        taken = tuple(LabelFile(Path(copy[0]), copy[1]) for copy in copies if copy)
        return KeptArray(array=target.array, place=place, taken=taken)
    name = layer.metadata[COPY_KEY][1] if COPY_KEY in layer.metadata else readable(layer.name)
    return KeptArray(array=target.array, place=place, name=name, is_new=False)


def fits_in_memory(image: LayerImage) -> bool:
    """Whether objects of an image can be in a Labels layer in memory."""
    return not image.plane_shape and max(image.shape_yx) <= MAX_SIDE_PX


def _require_small(image: LayerImage) -> None:
    if not fits_in_memory(image):
        raise LabelsError(
            f"expected one plane of at most {MAX_SIDE_PX} pixels along an axis for objects in "
            f"memory, got {(*image.plane_shape, *image.shape_yx)} in {image.name}; keep them on "
            "disk"
        )


def can_be_target(target: Labels, layer: Image, image: LayerImage) -> bool:
    """Whether a Labels layer lies on an image and can be written to; values are not looked at."""
    try:
        _require_writable(target, layer, image)
    except LabelsError:
        return False
    return True


def check_target_layer(target: Labels, layer: Image, image: LayerImage) -> None:
    """Check that a Labels layer can receive the objects of an image.

    Raises
    ------
    LabelsError
        If it is multiscale, not a writable array, on another pixel grid, or holds negative values.
    """
    _require_writable(target, layer, image)
    if np.min(target.data) < 0:
        raise LabelsError(
            f"expected values from 0, but the Labels layer '{target.name}' holds negative ones"
        )


def _require_writable(target: Labels, layer: Image, image: LayerImage) -> None:
    where = f"Labels layer '{target.name}'"
    _require_small(image)
    if target.multiscale:
        raise LabelsError(
            f"expected a single-scale target, but the {where} is multiscale; choose 'new layer', "
            "or its file where the list of targets names it"
        )
    if not isinstance(target.data, np.ndarray) or not target.data.flags.writeable:
        raise LabelsError(
            f"expected a target in memory that can be written to, but the {where} holds "
            f"{type(target.data).__name__}; choose 'new layer'"
        )
    shape_yx = image.shape_yx
    if tuple(target.data.shape) != shape_yx:
        raise LabelsError(
            f"expected a target of the image's shape {shape_yx}, got {tuple(target.data.shape)} "
            f"in the {where}; choose 'new layer'"
        )
    corners = ((0.0, 0.0), (float(shape_yx[0]), 0.0), (0.0, float(shape_yx[1])))
    if not all(
        np.allclose(target.data_to_world(corner), layer.data_to_world(corner)) for corner in corners
    ):
        raise LabelsError(
            f"expected a target that lies on the image '{layer.name}', but the {where} has "
            "another scale or position; choose 'new layer'"
        )


def target_array(target: Labels) -> NDArray[np.integer]:
    """Return the array of a checked target layer, which commits change in place.

    Layers of 8 or 16 bits get a uint32 copy first, as they would soon run out of labels.
    """
    if np.dtype(target.data.dtype).itemsize < LABEL_DTYPE.itemsize:
        target.data = np.asarray(target.data).astype(LABEL_DTYPE)
    array: NDArray[np.integer] = target.data
    return array


def path_beside(layer: Image) -> Path | None:
    """Return a new file for objects beside the file of an image layer; None if it has none."""
    source = layer.source.path
    if not source or "://" in str(source):
        return None
    image, number = Path(source), 1
    stem = image.name.split(".")[0]
    path = image.with_name(f"{stem}-objects.tif")
    while path.exists():
        number += 1
        path = image.with_name(f"{stem}-objects-{number}.tif")
    return path
