"""Clicks, boxes and strokes drawn on the canvas, without getting in the way of pan and zoom."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Layer

MAX_CLICK_TRAVEL_PX = 4.0
LEFT, RIGHT = 1, 2

World = tuple[float, ...]


class DragTool(StrEnum):
    """What a drag of the mouse draws."""

    PAN = "pan"
    BOX = "box"
    SCRIBBLE = "scribble"
    LASSO = "lasso"
    CUT = "cut"


@dataclass(frozen=True, kw_only=True, slots=True)
class Drag:
    """A drag of the mouse that draws.

    Attributes
    ----------
    tool
        What it draws.
    path
        World positions, the first one where the button was pressed.
    is_positive
        Whether it adds to the object.
    is_done
        Whether the button was released.
    """

    tool: DragTool
    path: tuple[World, ...]
    is_positive: bool
    is_done: bool


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
    """Turn mouse events of a viewer into clicks and drawn prompts while it is started.

    Left click adds to the object; right click, Ctrl+click and Shift+click take away. A left drag
    draws what `drag_tool` says, Shift+drag a box where that is nothing; a scribble that is drawn
    with the right button, Ctrl or Shift takes away. Other drags pan and zoom as ever. A double
    click is two clicks and does not zoom. While the active layer is in a mode of its own, such as
    painting, the tool leaves the mouse to it.

    Parameters
    ----------
    viewer
        The viewer whose callbacks are used.
    on_click
        Called with the world position and whether the click adds.
    on_drag
        Called with what is drawn, at every move and at the end.
    is_subtracting
        Whether a plain click takes away (and a right click adds).
    drag_tool
        What a plain left drag draws.
    """

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
        self._on_click = on_click
        self._on_drag = on_drag
        self._is_subtracting = is_subtracting
        self._drag_tool = drag_tool
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

    def _is_positive(self, event: Any) -> bool:
        is_negative = (
            event.button == RIGHT or "Control" in event.modifiers or "Shift" in event.modifiers
        )
        return is_negative == self._is_subtracting()

    def _tool_of(self, event: Any) -> DragTool:
        tool = self._drag_tool()
        if tool is DragTool.SCRIBBLE:
            return tool
        if event.button != LEFT:
            return DragTool.PAN
        return DragTool.BOX if tool is DragTool.PAN and "Shift" in event.modifiers else tool

    def _double_click(self, _viewer: Any, event: Any) -> None:
        if self._is_free(event):
            self._on_click(tuple(event.position), self._is_positive(event))

    def _drag(self, _viewer: Any, event: Any) -> Generator[None, None, None]:
        if not self._is_free(event):
            return
        tool, is_positive = self._tool_of(event), self._is_positive(event)
        draws = tool is not DragTool.PAN
        pressed_px, path = np.asarray(event.pos, dtype=float), [tuple(event.position)]
        travel_px = 0.0
        event.handled = draws or event.handled
        yield
        while True:
            is_done = event.type != "mouse_move"
            moved_px = float(np.linalg.norm(np.asarray(event.pos, dtype=float) - pressed_px))
            # A stroke may come back to where it began: the farthest that it went counts.
            is_stroke = tool not in (DragTool.PAN, DragTool.BOX)
            travel_px = max(travel_px, moved_px) if is_stroke else moved_px
            if is_done and travel_px <= MAX_CLICK_TRAVEL_PX:
                self._on_click(tuple(event.position), is_positive)
            elif draws:
                event.handled = event.handled or not is_done
                path.append(tuple(event.position))
                drag = Drag(tool=tool, path=tuple(path), is_positive=is_positive, is_done=is_done)
                self._on_drag(drag)
            if is_done:
                return
            yield
