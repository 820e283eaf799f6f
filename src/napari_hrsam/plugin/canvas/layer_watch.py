"""Notices when a layer that a session needs is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import napari.components
    from napari.layers import Image, Layer


class LayerWatch:
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
