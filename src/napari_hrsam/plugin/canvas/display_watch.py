"""Notices when images are shown otherwise, once it has been quiet for a while."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from napari.layers import Image

from napari_hrsam.plugin.canvas.coordinates import is_image

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Layer

QUIET_S = 0.3
"""Seconds without a change after which one counts: while a slider is dragged there are many."""

DISPLAY_EVENTS = ("contrast_limits", "gamma", "colormap", "opacity", "blending", "visible", "data")
PLACE_EVENTS = ("scale", "translate", "rotate", "shear", "affine", "units")
"""Of these, too, it depends which layers are seen together."""


class DisplayWatch:
    """Follows how the image layers of a viewer are shown.

    Parameters
    ----------
    viewer
        The viewer to watch.
    changed
        Called at every change.
    quiet
        Called on a thread of its own when there was none for `QUIET_S`.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        changed: Callable[[], None],
        quiet: Callable[[], None],
    ) -> None:
        self._viewer = viewer
        self._changed = changed
        self._quiet = quiet
        self._layers: list[Image] = []
        self._timer: threading.Timer | None = None
        self._rested = threading.Event()
        self._is_on = False

    @property
    def is_pending(self) -> bool:
        """Whether there was a change since `settle`."""
        return self._timer is not None

    @property
    def is_quiet(self) -> bool:
        """Whether there was a change, and it is long enough ago."""
        return self.is_pending and self._rested.is_set()

    def start(self) -> None:
        """Begin to watch."""
        self.stop()
        self._is_on = True
        for emitter in self._order_events():
            emitter.connect(self._on_layers)
        self._watch_layers()

    def settle(self) -> None:
        """Take the changes so far for done."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def stop(self) -> None:
        """Watch nothing."""
        self.settle()
        if not self._is_on:
            return
        self._is_on = False
        for emitter in self._order_events():
            emitter.disconnect(self._on_layers)
        self._leave_layers()

    def _order_events(self) -> list[Any]:
        events = self._viewer.layers.events
        return [events.inserted, events.removed, events.reordered]

    def _watch_layers(self) -> None:
        self._leave_layers()
        self._layers = [layer for layer in self._viewer.layers if is_image(layer)]
        for layer in self._layers:
            for emitter in _events_of(layer):
                emitter.connect(self._on_change)

    def _leave_layers(self) -> None:
        for layer in self._layers:
            for emitter in _events_of(layer):
                emitter.disconnect(self._on_change)
        self._layers = []

    def _on_layers(self) -> None:
        before = self._layers
        self._watch_layers()
        # Layers of other kinds come and go with every session.
        if self._layers != before:
            self._on_change()

    def _on_change(self) -> None:
        if not self._is_on:
            return
        self.settle()
        self._rested = rested = threading.Event()

        def rest() -> None:
            rested.set()
            self._quiet()

        self._timer = threading.Timer(QUIET_S, rest)
        self._timer.daemon = True
        self._timer.start()
        self._changed()


def _events_of(layer: Layer) -> list[Any]:
    return [getattr(layer.events, name) for name in (*DISPLAY_EVENTS, *PLACE_EVENTS)]
