"""What the panel can take: checks on the image layer and on the layer that receives the objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Image, Labels

from napari_hrsam.errors import ImageError, LabelsError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from napari.layers import Layer

# Single-scale Labels above the usual texture limit are drawn slowly and coarsely by napari.
MAX_SIDE_PX = 16384
LABEL_DTYPE = np.dtype(np.uint32)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageInput:
    """Level 0 of an image layer, not read yet.

    Attributes
    ----------
    data
        Array-like (H, W), or (H, W, 3 or 4) when `rgb`.
    rgb
        Whether the last axis holds colours.
    shape_yx
        (H, W) in pixels.
    """

    data: Any
    rgb: bool
    shape_yx: tuple[int, int]


def read_image_layer(layer: Layer | None) -> ImageInput:
    """Check an image layer and describe its level 0 without reading pixels.

    Raises
    ------
    ImageError
        If there is no layer, or it is not a 2-D grey or RGB image of usable size and place.
    """
    if layer is None:
        raise ImageError(
            "expected an image layer, got none; open an image (File > Open) or choose one in "
            "the panel"
        )
    if not isinstance(layer, Image):
        raise ImageError(
            f"expected an image layer, got the {type(layer).__name__} layer '{layer.name}'; "
            "choose an image in the panel"
        )
    data = layer.data[0] if layer.multiscale else layer.data
    shape = tuple(int(length) for length in data.shape)
    if layer.ndim != 2:
        raise ImageError(_axes_message(layer, shape))
    shape_yx = (shape[0], shape[1])
    if 0 in shape:
        raise ImageError(f"expected pixels, but the image '{layer.name}' is empty: shape {shape}")
    if max(shape_yx) > MAX_SIDE_PX:
        raise ImageError(
            f"expected at most {MAX_SIDE_PX} pixels along an axis, got {shape_yx[0]} x "
            f"{shape_yx[1]} in '{layer.name}'; images of this size are supported in a later "
            "version, crop it for now"
        )
    _check_place(layer)
    return ImageInput(data=data, rgb=bool(layer.rgb), shape_yx=shape_yx)


def _axes_message(layer: Image, shape: tuple[int, ...]) -> str:
    text = f"expected a 2-D grey or RGB image, got '{layer.name}' with {layer.ndim} axes {shape}; "
    if 3 <= min(shape[0], shape[-1]) <= 16:
        return text + (
            "if one axis holds channels, split it (right-click the layer > Split Stack) and "
            "choose one channel, or add the image with rgb=True"
        )
    return text + "choose one plane (right-click the layer > Split Stack) or add a 2-D slice"


def _check_place(layer: Layer) -> None:
    numbers = np.concatenate(
        [np.ravel(layer.scale), np.ravel(layer.translate), np.ravel(layer.affine.affine_matrix)]
    )
    if not np.isfinite(numbers).all() or 0 in np.asarray(layer.scale):
        raise ImageError(
            f"expected a finite scale other than 0, got scale {tuple(map(float, layer.scale))}, "
            f"translate {tuple(map(float, layer.translate))} on '{layer.name}'; set them right, "
            "e.g. layer.scale = (1, 1)"
        )


def check_target_layer(target: Labels, image: Image, shape_yx: tuple[int, int]) -> None:
    """Check that a Labels layer can receive the objects of an image.

    Raises
    ------
    LabelsError
        If it is multiscale, not a writable array, on another pixel grid, or holds negative values.
    """
    where = f"Labels layer '{target.name}'"
    if target.multiscale:
        raise LabelsError(
            f"expected a single-scale target, but the {where} is multiscale; choose 'new layer'"
        )
    if not isinstance(target.data, np.ndarray) or not target.data.flags.writeable:
        raise LabelsError(
            f"expected a target in memory that can be written to, but the {where} holds "
            f"{type(target.data).__name__}; choose 'new layer'"
        )
    if tuple(target.data.shape) != shape_yx:
        raise LabelsError(
            f"expected a target of the image's shape {shape_yx}, got {tuple(target.data.shape)} "
            f"in the {where}; choose 'new layer'"
        )
    corners = ((0.0, 0.0), (float(shape_yx[0]), 0.0), (0.0, float(shape_yx[1])))
    if not all(
        np.allclose(target.data_to_world(corner), image.data_to_world(corner)) for corner in corners
    ):
        raise LabelsError(
            f"expected a target that lies on the image '{image.name}', but the {where} has "
            "another scale or position; choose 'new layer'"
        )
    if np.min(target.data) < 0:
        raise LabelsError(f"expected values from 0, but the {where} holds negative ones")


def target_array(target: Labels) -> np.ndarray:
    """Return the array of a checked target layer, which commits change in place.

    Layers of 8 or 16 bits get a uint32 copy first, as they would soon run out of labels.
    """
    if np.dtype(target.data.dtype).itemsize < LABEL_DTYPE.itemsize:
        target.data = np.asarray(target.data).astype(LABEL_DTYPE)
    array: np.ndarray = target.data
    return array


def default_image_layer(layers: Iterable[Layer], active: Layer | None) -> Image | None:
    """Choose the active image, else the first visible, else the first one."""
    if isinstance(active, Image):
        return active
    images = [layer for layer in layers if isinstance(layer, Image)]
    return next((image for image in images if image.visible), images[0] if images else None)
