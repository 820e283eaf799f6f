"""Keyboard shortcuts bound while a session is active, and put back afterwards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

Action = Callable[[], None]

TAKEN_FROM_NAPARI = {
    "A": ("select_all_in_slice", "select_shapes_in_slice"),
    "B": ("move_shapes_selection_to_back", "toggle_preserve_labels"),
    "C": ("auto_contrast_once",),
    "Delete": ("delete_selected_points", "delete_selected_shapes"),
    "E": ("activate_add_ellipse_mode", "activate_labels_erase_mode"),
    "Escape": ("finish_drawing_shape", "reset_polygon"),
    "L": ("activate_add_line_mode", "activate_labels_picker_mode"),
    "Left": ("increment_dims_left",),
    "M": ("new_label",),
    "Right": ("increment_dims_right",),
    "S": ("activate_points_select_mode", "activate_select_mode"),
    "Shift+A": ("select_append_all_in_slice",),
    "T": ("activate_add_path_mode",),
    "X": (
        "activate_vertex_remove_mode",
        "orient_plane_normal_along_x",
        "swap_selected_and_background_labels",
    ),
}
"""What our keys do in napari by default; they are ours on the session's layers while one runs, and
some of them only while proposals are reviewed. Its modes keep their digits: 1 erases, 5 picks a
label."""


class _Bindable(Protocol):
    def bind_key(self, key: str, func: Any, *, overwrite: bool = ...) -> Any: ...


class KeyBindings:
    """Bind actions to keys on a viewer and on layers.

    napari asks the active layer before the viewer, so a key must be bound on every layer that may
    be active. What was bound on an object before is put back by `unbind`.

    Parameters
    ----------
    actions
        Key, as in ``"Ctrl+Z"``, to a function without arguments.
    """

    def __init__(self, actions: Mapping[str, Action]) -> None:
        self._actions = dict(actions)
        self._bound: list[tuple[_Bindable, str, Any]] = []

    def bind(self, target: _Bindable) -> None:
        """Bind all keys on a viewer or a layer."""
        for key, action in self._actions.items():
            previous = target.bind_key(key, _ignoring_owner(action), overwrite=True)
            self._bound.append((target, key, previous))

    def unbind(self) -> None:
        """Take all keys back and restore what they were bound to before."""
        for target, key, previous in reversed(self._bound):
            target.bind_key(key, None)
            if previous is not None:
                target.bind_key(key, previous)
        self._bound.clear()


def _ignoring_owner(action: Action) -> Callable[[Any], None]:
    # napari makes a method of what is bound and passes the viewer or layer.
    def run(_owner: Any) -> None:
        action()

    return run
