"""Mouse, keys and view of the canvas, for as long as a session can use them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from psygnal import Signal

from napari_hrsam.plugin.canvas.keys import Action, KeyBindings
from napari_hrsam.plugin.canvas.mouse import ClickTool, ToolWatch, tool_with_mouse

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Layer

    from napari_hrsam.plugin.canvas.mouse import Drag, DragTool, World


class Canvas:
    """Takes the mouse and our keys from a viewer, and gives them back; follows its view.

    They are ours while a session is started, the canvas is not paused (the panel is visible) and
    the view is 2-D.

    Parameters
    ----------
    viewer
        The viewer whose mouse, keys and view are used.
    on_click, on_drag, is_subtracting, drag_tool
        See `ClickTool`.

    Attributes
    ----------
    actions
        What our keys do, by key; see `set_actions`.
    changed
        Emitted with what changed: "zoom", "center", "point" (the plane that is shown), "ndisplay"
        (the view turned 2-D or 3-D) or "tool" (one of napari's tools took the mouse or left it).
    hovered
        Emitted with the world position of the mouse when it moves without a button.
    """

    changed: ClassVar[Signal] = Signal(str)
    hovered: ClassVar[Signal] = Signal(tuple)

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        *,
        on_click: Callable[[World, bool], None],
        on_drag: Callable[[Drag], None],
        is_subtracting: Callable[[], bool],
        drag_tool: Callable[[], DragTool],
    ) -> None:
        self._viewer = viewer
        self.actions: Mapping[str, Action] = {}
        self._keys = KeyBindings(self.actions)
        self._clicks = ClickTool(
            viewer,
            on_click=on_click,
            on_drag=on_drag,
            is_subtracting=is_subtracting,
            drag_tool=drag_tool,
        )
        self._tools = ToolWatch(viewer, partial(self.changed.emit, "tool"))
        self._layers: list[Layer] = []
        self._is_paused = False
        self._is_on = False
        camera, dims = viewer.scene.camera.events, viewer.dims.events
        self._emitters = (camera.zoom, camera.center, dims.point, dims.ndisplay)
        for emitter in self._emitters:
            emitter.connect(self._on_view)

    @property
    def is_paused(self) -> bool:
        """Whether mouse and keys were given back for a while."""
        return self._is_paused

    @property
    def is_on(self) -> bool:
        """Whether mouse and keys are ours now."""
        return self._is_on

    @property
    def has_layers(self) -> bool:
        """Whether there are layers on which keys are ours: between `start` and `stop`."""
        return bool(self._layers)

    @property
    def is_3d(self) -> bool:
        """Whether the view is 3-D, where a click has no unique place."""
        return bool(self._viewer.dims.ndisplay == 3)

    @property
    def tool(self) -> str:
        """Which of napari's tools has the mouse; empty if it is free for clicks."""
        return tool_with_mouse(self._viewer)

    def set_actions(self, actions: Mapping[str, Action]) -> None:
        """Say what our keys do, from now on."""
        if self._is_on:
            self._keys.unbind()
        self.actions = actions
        self._keys = KeyBindings(actions)
        if self._is_on:
            self._bind_keys()

    def start(self, layers: Sequence[Layer]) -> None:
        """Begin; keys work whichever of these layers is active."""
        self.stop()
        self._layers = list(layers)
        self._update()

    def set_layers(self, layers: Sequence[Layer]) -> None:
        """Let keys work whichever of these layers is active, while this is on."""
        self._layers = list(layers)
        self.set_actions(self.actions)

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
        for emitter in self._emitters:
            emitter.disconnect(self._on_view)
        self._tools.close()

    def _on_view(self, event: Any) -> None:
        if event.type == "ndisplay":
            self._update()
        self.changed.emit(event.type)

    def _on_move(self, _viewer: Any, event: Any) -> None:
        if not event.is_dragging:
            self.hovered.emit(tuple(event.position))

    def _update(self) -> None:
        is_on = bool(self._layers) and not self._is_paused and not self.is_3d
        if not is_on:
            self._clicks.stop()
        if is_on == self._is_on:
            return
        self._is_on = is_on
        if is_on:
            self._clicks.start()
            self._viewer.mouse_move_callbacks.append(self._on_move)
            self._bind_keys()
        else:
            self._viewer.mouse_move_callbacks.remove(self._on_move)
            self._keys.unbind()

    def _bind_keys(self) -> None:
        for owner in (self._viewer, *self._layers):
            self._keys.bind(owner)
