"""What the panel can take: checks on the image layers of a session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image

from napari_hrsam.errors import ImageError
from napari_hrsam.plugin.canvas.coordinates import MODEL_INPUT_KEY, is_image
from napari_hrsam.storage.images.layers import (
    LayerImage,
    seen_together,
    share_grid,
    take_layers,
    take_shown,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from napari.layers import Layer

ChannelLayers = Mapping[str, Image]
"""Layers to be shown to the model as "red", "green" and "blue"."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ImageInput:
    """The image layers of a session, and what they held and how they were shown at a moment.

    Attributes
    ----------
    layer
        The layer whose pixel grid everything is drawn on.
    channels
        The layers shown to the model as colours; empty: what is on screen.
    seen
        The layers that make the picture.
    image
        Levels, axes and limits; no pixel was read yet.
    """

    layer: Image
    channels: ChannelLayers
    seen: tuple[Image, ...]
    image: LayerImage

    @property
    def layers(self) -> list[Image]:
        """The layers that there must be, the main one first."""
        rest = [layer for layer in self.channels.values() if layer != self.layer]
        return [self.layer, *dict.fromkeys(rest)]

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in level-0 pixels."""
        return self.image.shape_yx


def read_image_layers(
    layer: Layer | None, channels: ChannelLayers | None = None, among: Iterable[Layer] = ()
) -> ImageInput:
    """Check image layers and take down what they hold, without reading pixels.

    Parameters
    ----------
    layer
        What is annotated, of any size, single-scale or multiscale, with any leading axes.
    channels
        Layers on its grid for the colours "red", "green", "blue", with their limits and gamma; by
        default `layer` as it is on screen.
    among
        The viewer's layers, the lowest first: those seen together with `layer` are read with it.

    Raises
    ------
    ImageError
        If there is no layer, or it is not an image of usable place, or channels do not fit it.
    """
    image_layer = _checked(layer)
    channels = dict(channels or {})
    if not channels:
        among = [other for other in among if MODEL_INPUT_KEY not in other.metadata]
        return ImageInput(
            layer=image_layer,
            channels={},
            seen=tuple(seen_together(image_layer, among)) or (image_layer,),
            image=take_shown(image_layer, among),
        )
    for channel in channels.values():
        if not share_grid(image_layer, _checked(channel)):
            raise ImageError(
                f"expected channels on the pixel grid of '{image_layer.name}', got "
                f"'{channel.name}' of another shape, place or kind; choose channels of one image"
            )
    # The main one first, also where it is not shown: it distinguishes images.
    distinct = list(dict.fromkeys([image_layer, *channels.values()]))
    places = {colour: distinct.index(channel) for colour, channel in channels.items()}
    image = take_layers(distinct, channels=places)
    return ImageInput(
        layer=image_layer, channels=channels, seen=tuple(channels.values()), image=image
    )


def on_grid_of(layer: Image, layers: Iterable[Layer]) -> list[Image]:
    """Return the image layers that can be channels of one image with `layer`, itself included."""
    if not isinstance(layer, Image) or layer.rgb:
        return []
    return [other for other in layers if is_image(other) and share_grid(layer, other)]


def _checked(layer: Layer | None) -> Image:
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
    numbers = np.concatenate(
        [np.ravel(layer.scale), np.ravel(layer.translate), np.ravel(layer.affine.affine_matrix)]
    )
    if not np.isfinite(numbers).all() or 0 in np.asarray(layer.scale):
        raise ImageError(
            f"expected a finite scale other than 0, got scale {tuple(map(float, layer.scale))}, "
            f"translate {tuple(map(float, layer.translate))} on '{layer.name}'; set them right, "
            "e.g. layer.scale = (1, 1)"
        )
    if layer.ndim < 2:
        raise ImageError(
            f"expected an image with rows and columns, got '{layer.name}' with {layer.ndim} axis; "
            "choose another image"
        )
    return layer


def default_image_layer(layers: Iterable[Layer], active: Layer | None) -> Image | None:
    """Choose the active image, else the first visible, else the first one."""
    if active is not None and is_image(active):
        return active
    images = [layer for layer in layers if is_image(layer)]
    return next((image for image in images if image.visible), images[0] if images else None)
