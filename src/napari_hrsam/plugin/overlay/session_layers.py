"""The layers that a session adds to the viewer, kept together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from napari_hrsam.plugin.overlay.preview import PreviewLayer
from napari_hrsam.plugin.overlay.prompts import BoxDisplay, PointsDisplay

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari.components
    from napari.layers import Image, Labels, Layer

    from napari_hrsam.plugin.overlay.objects import ObjectsLayer
    from napari_hrsam.plugin.session.image_input import ImageInput

MOVE_EVENTS = ("scale", "translate", "rotate", "shear", "affine", "units", "axis_labels")


class SessionLayers:
    """Objects, preview, clicks and box of one session, all on the image's pixel grid.

    Parameters
    ----------
    viewer
        The viewer to add layers to.
    image
        The annotated layers; they are only read.
    objects
        What shows the committed objects, in the viewer already.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        image: ImageInput,
        objects: ObjectsLayer,
    ) -> None:
        self._viewer = viewer
        self._images = image.layers
        self._image: Image = image.layer
        self.objects = objects
        self.preview = PreviewLayer(viewer, image.layer)
        self.points = PointsDisplay(viewer, image.layer)
        self.box = BoxDisplay(viewer, image.layer)
        for name in MOVE_EVENTS:
            getattr(self._image.events, name).connect(self._move_with_image)
        viewer.layers.selection.active = self.preview.layer

    @property
    def target(self) -> Labels:
        """The layer with the committed objects."""
        return self.objects.layer

    @property
    def own(self) -> list[Layer]:
        """The layers that go when the session ends."""
        return [self.preview.layer, self.points.layer, self.box.layer]

    @property
    def all(self) -> list[Layer]:
        """Every layer the session needs: its own, the target and the images."""
        return [*self.own, self.target, *self._images]

    def rescale(self, pixels_per_screen_pixel: float) -> None:
        """Keep clicks and box as large on screen as before a change of zoom."""
        self.points.rescale(pixels_per_screen_pixel)
        self.box.rescale(pixels_per_screen_pixel)

    def _move_with_image(self) -> None:
        self.preview.move_with_image()
        self.points.move_with_image()
        self.box.move_with_image()
        self.objects.move_with_image()

    def disconnect(self) -> None:
        """Stop following the image."""
        for name in MOVE_EVENTS:
            getattr(self._image.events, name).disconnect(self._move_with_image)

    def remove(self, *, keeps_target: bool) -> None:
        """Take the session's own layers out of the viewer.

        Parameters
        ----------
        keeps_target
            Whether the layer with the objects stays even if it is empty.
        """
        leaving = list(self.own)
        if not keeps_target and self.objects.is_disposable:
            leaving.append(self.target)
        for layer in leaving:
            if layer in self._viewer.layers:
                self._viewer.layers.remove(layer)


class LossWatch:
    """Notices when a layer that a session needs is removed, or an image gets other data.

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
        self._images: list[Image] = []
        self._needed: list[Layer] = []
        viewer.layers.events.removed.connect(self._on_removed)

    def start(self, images: list[Image]) -> None:
        """Begin with the images, before there are layers of the session."""
        self.stop()
        self._images = list(images)
        self._needed = list(images)
        for image in images:
            image.events.data.connect(self._on_data)

    def add(self, layers: list[Layer]) -> None:
        """Watch more layers."""
        self._needed.extend(layers)

    def stop(self) -> None:
        """Watch nothing."""
        for image in self._images:
            image.events.data.disconnect(self._on_data)
        self._images = []
        self._needed = []

    def close(self) -> None:
        """Stop, and let go of the viewer."""
        self.stop()
        self._viewer.layers.events.removed.disconnect(self._on_removed)

    def _on_removed(self, event: Any) -> None:
        if event.value in self._needed:
            self._lost(f"the layer '{event.value.name}' was removed")

    def _on_data(self, event: Any) -> None:
        self._lost(f"the data of '{event.source.name}' was replaced")
