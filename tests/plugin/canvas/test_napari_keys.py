"""Our keys beside napari's own."""

from __future__ import annotations

from napari.utils.shortcuts import default_shortcuts

from napari_hrsam.plugin.canvas.keys import TAKEN_FROM_NAPARI
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.plugin.session.key_actions import key_actions


def test_what_our_keys_take_from_napari_is_known(controller: SegmentController) -> None:
    """A key that a later napari uses for something else fails here, so that it is looked at."""
    controller.state.is_reviewing = True
    ours = key_actions(controller)
    assert set(controller.canvas.actions) < set(ours)
    for key in ours:
        name = key.replace("Control", "Ctrl").replace("-", "+")
        actions = {
            action.removeprefix("napari:")
            for action, keys in default_shortcuts.items()
            if name in map(str, keys)
        }
        assert actions == set(TAKEN_FROM_NAPARI.get(key, ())), key
    assert set(TAKEN_FROM_NAPARI) <= set(ours)


def test_modes_that_lose_their_letter_keep_a_digit() -> None:
    for actions in TAKEN_FROM_NAPARI.values():
        for action in actions:
            if action.startswith("activate_") and "_add_" not in action:
                keys = [str(key) for key in default_shortcuts[f"napari:{action}"]]
                assert any(key.isdecimal() for key in keys), action
