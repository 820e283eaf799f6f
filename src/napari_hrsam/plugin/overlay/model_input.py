"""The layer that shows a tile as the model sees it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari.layers import Image

from napari_hrsam.plugin.canvas.coordinates import MODEL_INPUT_KEY, place, placement

if TYPE_CHECKING:
    import napari.components
    import numpy as np
    from numpy.typing import NDArray

    from napari_hrsam.geometry import Tile


class ModelInputDisplay:
    """One RGB layer right above the image, made when it is first wanted.

    It is no part of the session: whoever removes it sees it again with the next answer.

    Parameters
    ----------
    viewer
        Where the layer is added.
    image
        The layer whose pixel grid it shares.
    """

    def __init__(self, viewer: napari.components.ViewerModel, image: Image) -> None:
        self._viewer, self._image = viewer, image
        self._layer: Image | None = None

    def show(self, picture: NDArray[np.uint8] | None, tile: Tile | None) -> None:
        """Show a tile's picture (size, size, 3), or nothing."""
        layers, layer = self._viewer.layers, self._layer
        if layer is not None and layer not in layers:
            layer = self._layer = None
        if picture is None or tile is None:
            if layer is not None:
                layers.remove(layer)
            return
        offset = tile.box0.y0, tile.box0.x0
        pixels = picture.reshape(*(1,) * (self._image.ndim - 2), *picture.shape)
        name = f"{self._image.name} [model input, level {tile.level}]"
        if layer is not None:
            layer.data, layer.name = pixels, name
            place(layer, self._image, offset, step=tile.downsample, plane=tile.plane)
            return
        active = layers.selection.active
        self._layer = Image(
            pixels,
            rgb=True,
            name=name,
            metadata={MODEL_INPUT_KEY: True},
            **placement(self._image, offset, step=tile.downsample, plane=tile.plane),
        )
        above = layers.index(self._image) + 1 if self._image in layers else len(layers)
        layers.insert(above, self._layer)
        layers.selection.active = active
