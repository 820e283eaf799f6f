"""What our keys do."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from napari_hrsam.plugin.canvas.key_table import CLASS_KEYS
from napari_hrsam.plugin.canvas.mouse import DragTool

if TYPE_CHECKING:
    from napari_hrsam.plugin.canvas.keys import Action
    from napari_hrsam.plugin.session.controller import SegmentController


def key_actions(controller: SegmentController) -> dict[str, Action]:
    """Return what keys of the viewer do with a controller, by key, as the keys are set."""
    state, objects, settings = controller.state, controller.objects, controller.settings
    keys = state.keys
    guarded: dict[str, Callable[[], None]] = {
        "commit": controller.commit,
        "cancel": controller.cancel,
        "undo": controller.undo,
        "redo": controller.redo,
        "edit": objects.edit_under_cursor,
        "merge": objects.merge_under_cursor,
        "delete": objects.delete_under_cursor,
        "next_mask": controller.next_candidate,
        "next_plane": partial(controller.planes.continue_on, 1),
        "previous_plane": partial(controller.planes.continue_on, -1),
    }
    plain: dict[str, Action] = {
        "polarity": lambda: state.update(is_subtracting=not state.is_subtracting),
        "box": partial(settings.use_tool, DragTool.BOX),
        "scribble": partial(settings.use_tool, DragTool.SCRIBBLE),
        "lasso": partial(settings.use_tool, DragTool.LASSO),
        "cut": partial(settings.use_tool, DragTool.CUT),
        "preview": lambda: settings.set_peeks(not state.peeks),
    }
    everything = controller.everything
    reviewing: dict[str, Callable[[], None]] = {
        "next_proposal": everything.step,
        "previous_proposal": partial(everything.step, -1),
        "accept": everything.accept,
        "reject": everything.reject,
        "accept_above": everything.accept_above,
        "higher": everything.raise_threshold,
        "lower": partial(everything.raise_threshold, -1),
    }
    if state.is_reviewing:
        guarded |= reviewing
    assign = controller.classes.assign_key
    return {
        **{keys[name]: action for name, action in plain.items()},
        **{keys[name]: partial(state.guard, action) for name, action in guarded.items()},
        **{key: partial(state.guard, assign, n) for n, key in enumerate(CLASS_KEYS, start=1)},
    }
