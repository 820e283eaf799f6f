"""The panel in a real window, driven as a person does."""

from __future__ import annotations

from typing import Any

import numpy as np
from qtpy.QtCore import QEvent, QPoint, QPointF, Qt
from qtpy.QtGui import QMouseEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QWidget

from napari_hrsam.plugin.panel.widget import SegmentWidget
from napari_hrsam.plugin.session.state import Phase

LEFT, RIGHT = Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton
NO_KEY, SHIFT = Qt.KeyboardModifier.NoModifier, Qt.KeyboardModifier.ShiftModifier
TIMEOUT_MS = 180_000
"""For what hangs; on a busy machine a first Start alone may take half a minute."""


class Window:
    """A viewer with the panel, driven as a person does."""

    def __init__(self, viewer: Any, panel: SegmentWidget, qtbot: Any) -> None:
        self.viewer, self.panel, self.qtbot = viewer, panel, qtbot
        self.controller = panel.controller

    @property
    def canvas(self) -> QWidget:
        return self.viewer.window._qt_viewer.canvas.native  # type: ignore[no-any-return]

    def idle(self) -> None:
        self.qtbot.waitUntil(lambda: not self.controller.state.is_busy, timeout=TIMEOUT_MS)

    def start(self) -> None:
        self.begin()
        self.viewer.scene.camera.zoom = 3.0  # the whole image is on screen
        QApplication.processEvents()

    def begin(self) -> None:
        """Press Start and wait until prompts are taken."""
        self.panel.start_button.click()
        self.qtbot.waitUntil(lambda: self.controller.state.phase is Phase.READY, timeout=TIMEOUT_MS)
        self.idle()

    def look_at(self, data_yx: tuple[float, float], level: int) -> None:
        """Move the view so that a model tile of a level fills the smaller side of the canvas."""
        image = self.controller.image_layer
        assert image is not None
        assert self.controller.overlay is not None
        camera = self.viewer.scene.camera
        camera.center = image.data_to_world(data_yx)
        tile = self.controller.overlay.tile_px * 2.0**level * float(np.abs(image.scale[-1]))
        camera.zoom = 1.001 * min(self.viewer.canvas.size) / tile
        QTest.qWait(50)

    def zoom_to(self, data_yx: tuple[float, float], level: int) -> None:
        """Move the view so that the screen is as fine as a level."""
        self.look_at(data_yx, level)
        image = self.controller.image_layer
        assert image is not None
        self.viewer.scene.camera.zoom = 0.999 / (2.0**level * float(np.abs(image.scale[-1])))
        QTest.qWait(50)

    def color_at(self, data_yx: tuple[float, float]) -> tuple[int, ...]:
        """What the screen shows at a place of the image: (red, green, blue)."""
        shot = self.viewer.screenshot(canvas_only=True, flash=False)
        at, size = self.place(data_yx), self.canvas.size()
        row = round(at.y() * shot.shape[0] / size.height())
        column = round(at.x() * shot.shape[1] / size.width())
        return tuple(int(value) for value in shot[row, column, :3])

    def place(self, data_yx: tuple[float, float]) -> QPoint:
        image = self.controller.image_layer
        assert image is not None
        camera = self.viewer.scene.camera
        world = np.asarray(image.data_to_world(data_yx))
        offset = (world - np.asarray(camera.center)[-2:]) * camera.zoom
        size = self.canvas.size()
        return QPoint(round(size.width() / 2 + offset[1]), round(size.height() / 2 + offset[0]))

    def click(self, at: tuple[float, float], button: Any = LEFT, modifier: Any = NO_KEY) -> None:
        QTest.mousePress(self.canvas, button, modifier, self.place(at))
        QTest.mouseRelease(self.canvas, button, modifier, self.place(at))
        self.idle()

    def drag(self, start: tuple[float, float], end: tuple[float, float], modifier: Any) -> None:
        first, last = self.place(start), self.place(end)
        QTest.mousePress(self.canvas, LEFT, modifier, first)
        for share in np.linspace(0.2, 1, 5):
            at = QPointF(
                first.x() + (last.x() - first.x()) * share,
                first.y() + (last.y() - first.y()) * share,
            )
            away = QPointF(self.canvas.mapToGlobal(at.toPoint()))
            move = QMouseEvent(
                QEvent.Type.MouseMove, at, away, Qt.MouseButton.NoButton, LEFT, modifier
            )
            QApplication.sendEvent(self.canvas, move)
            QTest.qWait(30)  # vispy drops moves that come faster
        QTest.mouseRelease(self.canvas, LEFT, modifier, last)
        self.idle()

    def camera(self) -> tuple[Any, ...]:
        camera = self.viewer.scene.camera
        return camera.zoom, tuple(camera.center)
