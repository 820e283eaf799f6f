"""What our keys do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from napari_hrsam.plugin.canvas.mouse import DragTool

if TYPE_CHECKING:
    from napari_hrsam.plugin.canvas.keys import Action
    from napari_hrsam.plugin.session.controller import SegmentController


def key_actions(controller: SegmentController) -> dict[str, Action]:
    """Return what keys of the viewer do with a controller, by key."""
    state, objects, settings = controller.state, controller.objects, controller.settings
    guarded: dict[str, Callable[[], None]] = {
        "C": controller.commit,
        "Escape": controller.cancel,
        "Control-Z": controller.undo,
        "Control-Shift-Z": controller.redo,
        "E": objects.edit_under_cursor,
        "M": objects.merge_under_cursor,
        "Delete": objects.delete_under_cursor,
        "N": controller.next_candidate,
        "Shift-Right": partial(controller.planes.continue_on, 1),
        "Shift-Left": partial(controller.planes.continue_on, -1),
        **{f"Alt-{digit}": partial(controller.classes.assign_key, digit) for digit in range(1, 10)},
    }
    return {
        "T": lambda: state.update(is_subtracting=not state.is_subtracting),
        "B": partial(settings.use_tool, DragTool.BOX),
        "S": partial(settings.use_tool, DragTool.SCRIBBLE),
        "L": partial(settings.use_tool, DragTool.LASSO),
        "K": partial(settings.use_tool, DragTool.CUT),
        "H": lambda: settings.set_peeks(not state.peeks),
        **{key: partial(state.guard, action) for key, action in guarded.items()},
    }
