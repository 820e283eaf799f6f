"""Mouse events on a viewer without a window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import wrapt
from napari.components import ViewerModel
from napari.utils.interactions import (
    mouse_move_callbacks,
    mouse_press_callbacks,
    mouse_release_callbacks,
)

LEFT, RIGHT, MIDDLE = 1, 2, 3


@dataclass
class EventData:
    """What napari's mouse events have that the click tool reads."""

    position: tuple[float, ...]
    pos: tuple[float, float]
    type: str = "mouse_press"
    button: int = LEFT
    modifiers: tuple[str, ...] = ()
    handled: bool = False
    is_dragging: bool = True


def mouse_event(*fields: Any, **named: Any) -> Any:
    """Make an event as napari hands it out: one object whose content changes during a drag."""
    return wrapt.ObjectProxy(EventData(*fields, **named))


def drag(
    viewer: ViewerModel,
    start: tuple[float, float],
    end: tuple[float, float] | None = None,
    button: int = LEFT,
    modifiers: tuple[str, ...] = (),
) -> bool:
    """Press, move and release at world positions of one screen pixel each; True if handled."""
    end = start if end is None else end
    handled = []
    for kind, at, run in (
        ("mouse_press", start, mouse_press_callbacks),
        ("mouse_move", end, mouse_move_callbacks),
        ("mouse_release", end, mouse_release_callbacks),
    ):
        event = mouse_event(at, (at[1], at[0]), kind, button, modifiers)
        run(viewer, event)
        handled.append(event.handled)
    return handled[0] and handled[1]
