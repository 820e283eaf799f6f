"""Which layers can be chosen, kept up to date."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from napari.layers import Image, Labels

from napari_hrsam.plugin.canvas.coordinates import is_image

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Layer


class LayerChoices:
    """The viewer's images, and the Labels layers that objects can be committed to.

    Parameters
    ----------
    viewer
        The viewer to watch.
    changed
        Called when layers came, went, moved or got another name, or another one became active.
    """

    def __init__(self, viewer: napari.components.ViewerModel, changed: Callable[[], None]) -> None:
        self._viewer = viewer
        self._changed = changed
        for emitter in self._emitters():
            emitter.connect(self._on_change)
        viewer.layers.events.inserted.connect(self._watch_name)
        for layer in viewer.layers:
            layer.events.name.connect(self._on_change)

    @property
    def images(self) -> list[Image]:
        """Image layers, top of the layer list last."""
        return [layer for layer in self._viewer.layers if is_image(layer)]

    @property
    def active(self) -> Layer | None:
        """The active layer."""
        return self._viewer.layers.selection.active

    def targets(self, own_layers: list[Layer]) -> list[Labels]:
        """Labels layers except a session's own."""
        return [
            layer
            for layer in self._viewer.layers
            if isinstance(layer, Labels) and layer not in own_layers
        ]

    def close(self) -> None:
        """Stop watching."""
        for emitter in self._emitters():
            emitter.disconnect(self._on_change)
        self._viewer.layers.events.inserted.disconnect(self._watch_name)
        for layer in self._viewer.layers:
            layer.events.name.disconnect(self._on_change)

    def _emitters(self) -> list[Any]:
        events = self._viewer.layers.events
        active = self._viewer.layers.selection.events.active
        return [events.inserted, events.removed, events.reordered, active]

    def _watch_name(self, event: Any) -> None:
        event.value.events.name.connect(self._on_change)

    def _on_change(self) -> None:
        self._changed()
