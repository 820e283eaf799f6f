"""Mouse, keys and view of the canvas, for as long as a session can use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from psygnal import Signal

from napari_hrsam.plugin.canvas.keys import Action, KeyBindings
from napari_hrsam.plugin.canvas.mouse import ClickTool, ToolWatch, tool_with_mouse

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Layer

    from napari_hrsam.plugin.canvas.mouse import World


class Canvas:
    """Takes the mouse and our keys from a viewer, and gives them back; follows its view.

    They are ours while a session is started, the canvas is not paused (the panel is visible) and
    the view is 2-D.

    Parameters
    ----------
    viewer
        The viewer whose mouse, keys and view are used.
    actions
        Key to action.
    on_click, on_box, is_subtracting, draws_boxes
        See `ClickTool`.

    Attributes
    ----------
    actions
        What our keys do.
    zoomed, moved
        Emitted when the zoom or the centre of the view changed.
    plane_changed
        Emitted when another plane is shown.
    turned
        Emitted when the view turned 2-D or 3-D.
    tool_changed
        Emitted when the mouse went to one of napari's tools, or came back.
    """

    zoomed: ClassVar[Signal] = Signal()
    moved: ClassVar[Signal] = Signal()
    plane_changed: ClassVar[Signal] = Signal()
    turned: ClassVar[Signal] = Signal()
    tool_changed: ClassVar[Signal] = Signal()

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        actions: Mapping[str, Action],
        *,
        on_click: Callable[[World, bool], None],
        on_box: Callable[[World, World, bool], None],
        is_subtracting: Callable[[], bool],
        draws_boxes: Callable[[], bool],
    ) -> None:
        self._viewer = viewer
        self.actions = dict(actions)
        self._keys = KeyBindings(actions)
        self._clicks = ClickTool(
            viewer,
            on_click=on_click,
            on_box=on_box,
            is_subtracting=is_subtracting,
            draws_boxes=draws_boxes,
        )
        self._tools = ToolWatch(viewer, self.tool_changed.emit)
        self._layers: list[Layer] = []
        self._is_paused = False
        self._is_on = False
        camera, dims = viewer.scene.camera.events, viewer.dims.events
        self._connections = [
            (camera.zoom, self._on_zoom),
            (camera.center, self._on_center),
            (dims.point, self._on_point),
            (dims.ndisplay, self._on_ndisplay),
        ]
        for emitter, callback in self._connections:
            emitter.connect(callback)

    @property
    def is_paused(self) -> bool:
        """Whether mouse and keys were given back for a while."""
        return self._is_paused

    @property
    def is_on(self) -> bool:
        """Whether mouse and keys are ours now."""
        return self._is_on

    @property
    def is_3d(self) -> bool:
        """Whether the view is 3-D, where a click has no unique place."""
        return bool(self._viewer.dims.ndisplay == 3)

    @property
    def tool(self) -> str:
        """Which of napari's tools has the mouse; empty if it is free for clicks."""
        return tool_with_mouse(self._viewer)

    def start(self, layers: Sequence[Layer]) -> None:
        """Begin; keys work whichever of these layers is active."""
        self.stop()
        self._layers = list(layers)
        self._update()

    def listen(self) -> None:
        """Take clicks already, to say that nothing is ready yet."""
        if not self._is_paused and not self.is_3d:
            self._clicks.start()

    def stop(self) -> None:
        """End, and give mouse and keys back."""
        self._layers = []
        self._update()

    def set_paused(self, is_paused: bool) -> None:
        """Give mouse and keys back for a while, e.g. while the panel is hidden, or take them."""
        self._is_paused = is_paused
        self._update()

    def take_mouse(self) -> None:
        """Take the mouse back from the tool of napari that has it."""
        self._tools.give_back()

    def close(self) -> None:
        """Stop, and let go of the viewer."""
        self.stop()
        for emitter, callback in self._connections:
            emitter.disconnect(callback)
        self._tools.close()

    def _on_zoom(self) -> None:
        self.zoomed.emit()

    def _on_center(self) -> None:
        self.moved.emit()

    def _on_point(self) -> None:
        self.plane_changed.emit()

    def _on_ndisplay(self) -> None:
        self._update()
        self.turned.emit()

    def _update(self) -> None:
        is_on = bool(self._layers) and not self._is_paused and not self.is_3d
        if not is_on:
            self._clicks.stop()
        if is_on == self._is_on:
            return
        self._is_on = is_on
        if is_on:
            self._clicks.start()
            for owner in (self._viewer, *self._layers):
                self._keys.bind(owner)
        else:
            self._keys.unbind()
