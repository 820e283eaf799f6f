"""The layers that a session adds to the viewer, kept together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from napari.layers import Labels

from napari_hrsam.plugin.coordinates import place, placement
from napari_hrsam.plugin.image_input import LABEL_DTYPE
from napari_hrsam.plugin.preview_layer import PreviewLayer
from napari_hrsam.plugin.prompt_layers import BoxDisplay, PointsDisplay

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari.components
    from napari.layers import Image, Layer

MOVE_EVENTS = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")
MAX_THUMBNAIL_PIXELS = 2**24


def new_target_array(shape_yx: tuple[int, int]) -> np.ndarray:
    """Empty label image (H, W) uint32."""
    return np.zeros(shape_yx, LABEL_DTYPE)


def target_name(image: Image) -> str:
    """Name of the layer made for the objects of an image."""
    return f"{image.name} [objects]"


class SessionLayers:
    """Target, preview, clicks and box of one session, all on the image's pixel grid.

    Parameters
    ----------
    viewer
        The viewer to add layers to.
    image
        The annotated layer; it is only read.
    target
        Labels layer that receives the objects, or None to add one.
    target_array : (H, W) uint32
        The label image behind a new target layer.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        image: Image,
        target: Labels | None,
        target_array: np.ndarray,
    ) -> None:
        self._viewer = viewer
        self._image = image
        self._owns_target = target is None
        if target is None:
            target = Labels(target_array, name=target_name(image), **placement(image))
            viewer.add_layer(target)
        self.target = target
        self.preview = PreviewLayer(viewer, image)
        self.points = PointsDisplay(viewer, image)
        self.box = BoxDisplay(viewer, image)
        for name in MOVE_EVENTS:
            getattr(image.events, name).connect(self._move_with_image)
        viewer.layers.selection.active = self.preview.layer

    @property
    def own(self) -> list[Layer]:
        """The layers that go when the session ends."""
        return [self.preview.layer, self.points.layer, self.box.layer]

    @property
    def all(self) -> list[Layer]:
        """Every layer the session needs: its own, the target and the image."""
        return [*self.own, self.target, self._image]

    def rescale(self, pixels_per_screen_pixel: float) -> None:
        """Keep clicks and box as large on screen as before a change of zoom."""
        self.points.rescale(pixels_per_screen_pixel)
        self.box.rescale(pixels_per_screen_pixel)

    def refresh_target(self) -> None:
        """Draw the target after its pixels were written."""
        is_small = self.target.data.size <= MAX_THUMBNAIL_PIXELS
        self.target.refresh(extent=False, thumbnail=is_small, highlight=False)

    def _move_with_image(self) -> None:
        self.preview.move_with_image()
        self.points.move_with_image()
        self.box.move_with_image()
        if self._owns_target:
            place(self.target, self._image)

    def disconnect(self) -> None:
        """Stop following the image."""
        for name in MOVE_EVENTS:
            getattr(self._image.events, name).disconnect(self._move_with_image)

    def remove(self, *, keeps_target: bool) -> None:
        """Take the session's own layers out of the viewer.

        Parameters
        ----------
        keeps_target
            Whether a new target layer stays even if it looks empty.
        """
        leaving = list(self.own)
        if self._owns_target and not keeps_target and not np.any(self.target.data):
            leaving.append(self.target)
        for layer in leaving:
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)


class LossWatch:
    """Notices when a layer that a session needs is removed, or its image gets other data.

    Parameters
    ----------
    viewer
        The viewer to watch.
    lost
        Called with what happened.
    """

    def __init__(self, viewer: napari.components.ViewerModel, lost: Callable[[str], None]) -> None:
        self._viewer = viewer
        self._lost = lost
        self._image: Image | None = None
        self._needed: list[Layer] = []
        viewer.layers.events.removed.connect(self._on_removed)

    def start(self, image: Image) -> None:
        """Begin with an image, before there are layers of the session."""
        self.stop()
        self._image = image
        self._needed = [image]
        image.events.data.connect(self._on_data)

    def add(self, layers: list[Layer]) -> None:
        """Watch more layers."""
        self._needed.extend(layers)

    def stop(self) -> None:
        """Watch nothing."""
        if self._image is not None:
            self._image.events.data.disconnect(self._on_data)
        self._image = None
        self._needed = []

    def close(self) -> None:
        """Stop, and let go of the viewer."""
        self.stop()
        self._viewer.layers.events.removed.disconnect(self._on_removed)

    def _on_removed(self, event: Any) -> None:
        if event.value in self._needed:
            self._lost(f"the layer '{event.value.name}' was removed")

    def _on_data(self) -> None:
        if self._image is not None:
            self._lost(f"the data of '{self._image.name}' was replaced")
