"""A monkey at the panel: real mouse and key events, and layers that change, from a seed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from napari.layers import Image, Labels
from numpy.typing import NDArray
from panel_window import LEFT, NO_KEY, RIGHT, SHIFT, Window
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent, QWheelEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import (
    QAbstractSlider,
    QApplication,
    QCheckBox,
    QComboBox,
    QSpinBox,
    QWidget,
)

from napari_hrsam.errors import HRSAMError
from napari_hrsam.plugin.session.state import Phase

CONTROL = Qt.KeyboardModifier.ControlModifier
KEYS = (
    *((getattr(Qt.Key, f"Key_{name}"), NO_KEY) for name in (*"CCCTBSLNEEHKM", "Escape", "Delete")),
    *((getattr(Qt.Key, f"Key_{name}"), NO_KEY) for name in ("1", "P", "Z", "V", "X")),
    (Qt.Key.Key_Left, SHIFT),
    (Qt.Key.Key_Right, SHIFT),
    (Qt.Key.Key_1, Qt.KeyboardModifier.AltModifier),
    (Qt.Key.Key_Z, CONTROL),
    (Qt.Key.Key_Z, CONTROL | SHIFT),
)


class Monkey:
    """Does something at random with a window, again and again.

    Parameters
    ----------
    window
        With an image called "scene".
    pixels
        Of that image, to bring it back.
    rng
        The same seed does the same.
    import_objects
        Imports objects while the panel is open.
    """

    def __init__(
        self,
        window: Window,
        pixels: NDArray[np.uint8],
        rng: np.random.Generator,
        import_objects: Callable[[], None] = lambda: None,
    ) -> None:
        self.window, self.pixels, self.rng = window, pixels, rng
        self.import_objects = import_objects
        self.done: list[str] = []
        self.cpu_s: list[float] = []
        self._often = [self.click, self.press, self.drag, self.press, self.hover, self.click]
        self._seldom = [
            self.zoom,
            self.select,
            self.change_image,
            self.rename,
            self.reorder,
            self.push_a_button,
            self.slide,
            self.slide,
            self.switch_model,
            self.stop,
        ]
        self._rarely = [
            self.remove_layer,
            self.replace_pixels,
            self.replace_layer,
            self.add_layer,
            self.import_objects,
        ]

    def act(self) -> None:
        """Do one thing; an image and a session are brought back when they are gone."""
        self._begin()
        kind = self.rng.choice(3, p=(0.86, 0.12, 0.02))
        actions = (self._often, self._seldom, self._rarely)[kind]
        action = actions[int(self.rng.integers(len(actions)))]
        self.done.append(action.__name__)
        # A busy machine takes none of it: the time that this thread computes.
        started = time.thread_time()
        action()
        QApplication.processEvents()
        self.cpu_s.append(time.thread_time() - started)
        if self.rng.random() < 0.3:
            self.window.idle()

    def _begin(self) -> None:
        viewer, controller = self.window.viewer, self.window.controller
        if controller.state.phase is not Phase.STOPPED:
            return
        self.window.idle()
        if not any(isinstance(layer, Image) for layer in viewer.layers):
            viewer.add_image(self.pixels, rgb=True, name="scene")
        self.window.begin()

    def _place(self) -> QPoint:
        size = self.window.canvas.size()
        return QPoint(
            int(self.rng.integers(2, size.width() - 2)),
            int(self.rng.integers(2, size.height() - 2)),
        )

    def _button(self) -> Qt.MouseButton:
        return LEFT if self.rng.random() < 0.7 else RIGHT

    def _modifier(self) -> Qt.KeyboardModifier:
        return (NO_KEY, NO_KEY, NO_KEY, SHIFT, CONTROL)[int(self.rng.integers(5))]

    def _move(self, at: QPoint, button: Qt.MouseButton) -> None:
        canvas = self.window.canvas
        event = QMouseEvent(
            QEvent.Type.MouseMove,
            QPointF(at),
            QPointF(canvas.mapToGlobal(at)),
            Qt.MouseButton.NoButton,
            button,
            NO_KEY,
        )
        QApplication.sendEvent(canvas, event)

    def click(self) -> None:
        """Press and release a button."""
        QTest.mouseClick(self.window.canvas, self._button(), self._modifier(), self._place())

    def drag(self) -> None:
        """Press, move over a few places, release."""
        button, modifier, canvas = self._button(), self._modifier(), self.window.canvas
        at = self._place()
        QTest.mousePress(canvas, button, modifier, at)
        for _ in range(int(self.rng.integers(1, 6))):
            at = QPoint(
                at.x() + int(self.rng.integers(-60, 60)), at.y() + int(self.rng.integers(-60, 60))
            )
            self._move(at, button)
        QTest.mouseRelease(canvas, button, modifier, at)

    def hover(self) -> None:
        """Move the mouse."""
        self._move(self._place(), Qt.MouseButton.NoButton)

    def press(self) -> None:
        """Press a key over the canvas."""
        key, modifier = KEYS[int(self.rng.integers(len(KEYS)))]
        QTest.keyClick(self.window.canvas, key, modifier)

    def zoom(self) -> None:
        """Turn the wheel."""
        at, canvas = self._place(), self.window.canvas
        turn = QPoint(0, 120 if self.rng.random() < 0.5 else -120)
        event = QWheelEvent(
            QPointF(at),
            QPointF(canvas.mapToGlobal(at)),
            QPoint(0, 0),
            turn,
            Qt.MouseButton.NoButton,
            NO_KEY,
            Qt.ScrollPhase.NoScrollPhase,
            False,
        )
        QApplication.sendEvent(canvas, event)
        if self.rng.random() < 0.3:
            self.window.viewer.reset_view()

    def _layer(self, kind: type = object) -> Any:
        layers = [layer for layer in self.window.viewer.layers if isinstance(layer, kind)]
        return layers[int(self.rng.integers(len(layers)))] if layers else None

    def select(self) -> None:
        """Select a layer, perhaps with its brush."""
        layer = self._layer()
        self.window.viewer.layers.selection.active = layer
        if isinstance(layer, Labels) and layer.editable and self.rng.random() < 0.5:
            layer.mode = "paint"

    def change_image(self) -> None:
        """Show the image otherwise."""
        image = self._layer(Image)
        if image is not None:
            image.gamma = float(self.rng.uniform(0.5, 2))
            image.visible = bool(self.rng.random() < 0.9)

    def rename(self) -> None:
        """Rename a layer."""
        self._layer().name = f"layer {self.rng.integers(100)}"

    def reorder(self) -> None:
        """Move a layer in the list."""
        layers = self.window.viewer.layers
        layers.move(int(self.rng.integers(len(layers))), int(self.rng.integers(len(layers))))

    def push_a_button(self) -> None:
        """Push a button of the panel that can be pushed."""
        panel = self.window.panel
        buttons = [
            panel.add_button,
            panel.subtract_button,
            *panel.tool_buttons.values(),
            panel.commit_button,
            panel.cancel_button,
            panel.next_button,
            panel.delete_button,
            panel.fill_button,
            panel.smooth_button,
            panel.undo_button,
            panel.redo_button,
            panel.abort_button,
        ]
        buttons[int(self.rng.integers(len(buttons)))].click()

    def slide(self) -> None:
        """Turn a slider, a number, a list or a tick, of the panel or of napari, by its keys."""
        shown: list[QWidget] = [
            widget
            for kind in (QAbstractSlider, QSpinBox, QComboBox, QCheckBox)
            for widget in self.window.viewer.window._qt_window.findChildren(kind)
            if widget.isVisible() and widget.isEnabled()
        ]
        widget = shown[int(self.rng.integers(len(shown)))]
        keys = (Qt.Key.Key_Up, Qt.Key.Key_Down, Qt.Key.Key_PageUp, Qt.Key.Key_Space)
        for _ in range(int(self.rng.integers(1, 4))):
            QTest.keyClick(widget, keys[int(self.rng.integers(len(keys)))])
        # Space opens a list.
        QTest.keyClick(QApplication.activePopupWidget() or widget, Qt.Key.Key_Escape)

    def switch_model(self) -> None:
        """Ask for another model, which is refused while an object is drawn."""
        names = ("hrsam-tiny", "hrsam++-tiny")
        controller = self.window.controller
        controller.state.guard(controller.models.use, names[int(self.rng.integers(2))])

    def stop(self) -> None:
        """End the session, now and then in the middle of something."""
        if self.rng.random() < 0.3:
            self.window.controller.stop()

    def remove_layer(self) -> None:
        """Remove any layer."""
        self.window.viewer.layers.remove(self._layer())

    def replace_pixels(self) -> None:
        """Replace the pixels of an image by others of the same shape."""
        image = self._layer(Image)
        if image is not None:
            image.data = np.asarray(image.data)[::-1].copy()

    def replace_layer(self) -> None:
        """Put another layer of the same name and pixels in the place of an image."""
        image = self._layer(Image)
        if image is not None:
            layers, data = self.window.viewer.layers, np.asarray(image.data).copy()
            layers.remove(image)
            self.window.viewer.add_image(data, rgb=image.rgb, name=image.name)

    def add_layer(self) -> None:
        """Add a layer of the user's."""
        viewer = self.window.viewer
        if len(viewer.layers) < 10:
            viewer.add_labels(np.zeros((64, 64), np.uint8), name="mine")

    def errors_that_no_one_expected(self) -> list[BaseException]:
        """Return what was reported and is none of ours."""
        return [error for error in self.errors if not isinstance(error, HRSAMError)]

    def watch(self) -> None:
        """Collect what is reported from now on."""
        self.errors: list[BaseException] = []
        self.window.controller.state.failed.connect(self.errors.append)
