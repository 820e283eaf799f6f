"""The canvas in whose window the panel is, reached through Qt alone."""

from __future__ import annotations

import weakref
from functools import partial
from typing import TYPE_CHECKING

from qtpy.QtCore import Qt
from qtpy.QtGui import QKeySequence, QShortcut
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtWidgets import QDockWidget, QPlainTextEdit, QTextEdit, QWidget

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import napari.components


ARROWS = ("Left", "Right", "Up", "Down")


def main_window(panel: QWidget) -> QWidget:
    """Return the outermost widget that holds the panel, also while its dock floats."""
    outer = panel
    while (parent := outer.parentWidget()) is not None:
        outer = parent
    return outer


def focus_canvas(panel: QWidget) -> None:
    """Give the keyboard to the canvas."""
    for canvas in main_window(panel).findChildren(QOpenGLWidget):
        canvas.setFocus()


class ContextGuard:
    """Makes the canvas's OpenGL context the current one before a layer is removed.

    napari then sends what is left to the graphics driver in whichever context is current, which
    may be Qt's own: the process ends there soon after (docs/upstream.md).

    Parameters
    ----------
    viewer
        The viewer to watch.
    panel
        A widget in its window.
    """

    def __init__(self, viewer: napari.components.ViewerModel, panel: QWidget) -> None:
        self._viewer = viewer
        self._panel = weakref.ref(panel)
        viewer.layers.events.removing.connect(self._before_removal)

    def close(self) -> None:
        """Let go of the viewer."""
        self._viewer.layers.events.removing.disconnect(self._before_removal)

    def _before_removal(self) -> None:
        panel = self._panel()
        if panel is not None:
            for canvas in main_window(panel).findChildren(QOpenGLWidget):
                canvas.makeCurrent()


class WindowKeys:
    """Our keys while the focus is not on the canvas but in a dock of its window.

    Fields where one writes keep their letters, docks with pages of text, such as the console, keep
    all keys, and arrows move what has the focus: a slider, a row of a table.

    Parameters
    ----------
    panel
        A widget in the window.
    """

    def __init__(self, panel: QWidget) -> None:
        self._panel = weakref.ref(panel)
        self._actions: Mapping[str, Callable[[], None]] = {}
        self._shortcuts: dict[QWidget, list[QShortcut]] = {}
        self._is_enabled = False

    def set_actions(self, actions: Mapping[str, Callable[[], None]]) -> None:
        """Say what the keys do: key, as napari and Qt write it, to what it does."""
        self._actions = {key: action for key, action in actions.items() if key not in ARROWS}
        for shortcuts in self._shortcuts.values():
            for shortcut in shortcuts:
                shortcut.setEnabled(False)
                shortcut.deleteLater()
        self._shortcuts.clear()
        is_enabled, self._is_enabled = self._is_enabled, False
        self.set_enabled(is_enabled)

    def set_enabled(self, is_enabled: bool) -> None:
        """Take the keys, or leave them; docks may have come meanwhile."""
        if is_enabled == self._is_enabled:
            return
        self._is_enabled = is_enabled
        panel = self._panel()
        if is_enabled and panel is not None:
            for dock in main_window(panel).findChildren(QDockWidget):
                has_pages = dock.findChild(QTextEdit) or dock.findChild(QPlainTextEdit)
                if dock not in self._shortcuts and not has_pages:
                    dock.destroyed.connect(partial(self._shortcuts.pop, dock, None))
                    self._shortcuts[dock] = [self._shortcut(dock, key) for key in self._actions]
        for shortcuts in self._shortcuts.values():
            for shortcut in shortcuts:
                shortcut.setEnabled(is_enabled)

    def _shortcut(self, dock: QWidget, key: str) -> QShortcut:
        shortcut = QShortcut(QKeySequence(key), dock)
        shortcut.setContext(Qt.ShortcutContext.WidgetWithChildrenShortcut)
        shortcut.activated.connect(self._actions[key])
        return shortcut
