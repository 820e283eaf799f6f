"""Clicks and boxes drawn on the canvas, without getting in the way of pan and zoom."""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Layer

MAX_CLICK_TRAVEL_PX = 4.0
LEFT, RIGHT = 1, 2

World = tuple[float, ...]

TOOL_NAMES = {"paint": "brush", "erase": "eraser", "fill": "fill tool", "pick": "colour picker"}
"""What people call napari's modes, where it is not the mode's name."""


def tool_with_mouse(viewer: napari.components.ViewerModel) -> str:
    """Say which of napari's tools the mouse belongs to; empty if it is free for clicks."""
    active = viewer.layers.selection.active
    mode = "pan_zoom" if active is None else str(active.mode)
    if active is None or mode == "pan_zoom":
        return ""
    name = TOOL_NAMES.get(mode, f"{mode.replace('_', ' ')} tool")
    return f"The {name} of '{active.name}' has the mouse"


class ToolWatch:
    """Notices when the mouse goes to one of napari's tools, or comes back from it.

    Parameters
    ----------
    viewer
        The viewer to watch.
    changed
        Called without arguments.
    """

    def __init__(self, viewer: napari.components.ViewerModel, changed: Callable[[], None]) -> None:
        self._viewer = viewer
        self._changed = changed
        self._active: Layer | None = None
        viewer.layers.selection.events.active.connect(self._on_active)
        self._on_active()

    def give_back(self) -> None:
        """Take the mouse from the tool that has it."""
        active = self._viewer.layers.selection.active
        if active is not None and str(active.mode) != "pan_zoom":
            active.mode = "pan_zoom"

    def close(self) -> None:
        """Let go of the viewer."""
        self._viewer.layers.selection.events.active.disconnect(self._on_active)
        self._watch(None)

    def _on_active(self) -> None:
        self._watch(self._viewer.layers.selection.active)
        self._changed()

    def _watch(self, active: Layer | None) -> None:
        if self._active is not None:
            self._active.events.mode.disconnect(self._on_mode)
        self._active = active
        if active is not None:
            active.events.mode.connect(self._on_mode)

    def _on_mode(self) -> None:
        self._changed()


class ClickTool:
    """Turn mouse events of a viewer into clicks and boxes while it is started.

    Left click adds to the object; right click, Ctrl+click and Shift+click take away; Shift+drag,
    or any left drag while `draws_boxes` says so, draws a box; other drags pan and zoom as ever. A
    double click is two clicks and does not zoom. While the active layer is in a mode of its own,
    such as painting, the tool leaves the mouse to it.

    Parameters
    ----------
    viewer
        The viewer whose callbacks are used.
    on_click
        Called with the world position and whether the click adds.
    on_box
        Called with two opposite world corners and whether the drag has ended.
    is_subtracting
        Whether a plain click takes away (and a right click adds).
    draws_boxes
        Whether a plain left drag draws a box.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        *,
        on_click: Callable[[World, bool], None],
        on_box: Callable[[World, World, bool], None],
        is_subtracting: Callable[[], bool],
        draws_boxes: Callable[[], bool],
    ) -> None:
        self._viewer = viewer
        self._on_click = on_click
        self._on_box = on_box
        self._is_subtracting = is_subtracting
        self._draws_boxes = draws_boxes
        self._set_aside: list[Any] = []
        self.is_started = False

    def start(self) -> None:
        """Begin to listen; napari's zoom on double click is set aside."""
        if self.is_started:
            return
        self.is_started = True
        self._viewer.mouse_drag_callbacks.append(self._drag)
        double_click = self._viewer.mouse_double_click_callbacks
        self._set_aside = list(double_click)
        double_click[:] = [self._double_click]

    def stop(self) -> None:
        """Stop listening and put the viewer's callbacks back."""
        if not self.is_started:
            return
        self.is_started = False
        self._viewer.mouse_drag_callbacks.remove(self._drag)
        double_click = self._viewer.mouse_double_click_callbacks
        # Others may have added theirs meanwhile.
        added = [callback for callback in double_click if callback != self._double_click]
        double_click[:] = [*self._set_aside, *added]

    def _is_free(self, event: Any) -> bool:
        is_ours = event.button in (LEFT, RIGHT) and "Alt" not in event.modifiers
        return is_ours and not tool_with_mouse(self._viewer)

    def _emit(self, event: Any) -> None:
        is_negative = (
            event.button == RIGHT or "Control" in event.modifiers or "Shift" in event.modifiers
        )
        self._on_click(tuple(event.position), is_negative == self._is_subtracting())

    def _double_click(self, _viewer: Any, event: Any) -> None:
        if self._is_free(event):
            self._emit(event)

    def _drag(self, _viewer: Any, event: Any) -> Generator[None, None, None]:
        if not self._is_free(event):
            return
        draws_box = event.button == LEFT and (self._draws_boxes() or "Shift" in event.modifiers)
        pressed_px, pressed = np.asarray(event.pos, dtype=float), tuple(event.position)
        event.handled = draws_box or event.handled
        yield
        while event.type == "mouse_move":
            if draws_box:
                event.handled = True
                self._on_box(pressed, tuple(event.position), False)
            yield
        travel_px = float(np.linalg.norm(np.asarray(event.pos, dtype=float) - pressed_px))
        if travel_px <= MAX_CLICK_TRAVEL_PX:
            self._emit(event)
        elif draws_box:
            self._on_box(pressed, tuple(event.position), True)
