"""Boxes of the panel in a real window: wheel, keys, focus and width."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import QPoint, QPointF, Qt
from qtpy.QtGui import QDesktopServices, QWheelEvent
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QComboBox, QSpinBox, QWidget

from napari_hrsam.plugin.session.state import Phase

INSIDE = (30, 30)


def turn_wheel(widget: QWidget) -> None:
    at = QPointF(5, 5)
    event = QWheelEvent(
        at,
        QPointF(widget.mapToGlobal(QPoint(5, 5))),
        QPoint(0, -120),
        QPoint(0, -120),
        Qt.MouseButton.NoButton,
        Qt.KeyboardModifier.NoModifier,
        Qt.ScrollPhase.NoScrollPhase,
        False,
    )
    QApplication.sendEvent(widget, event)


def test_boxes_change_when_asked_only(open_window: Any, pixels: Any) -> None:
    window = open_window(show=True)
    window.viewer.add_image(pixels[..., 0], name="other")
    window.viewer.layers.selection.active = window.viewer.layers["scene"]
    window.start()
    window.viewer.window._qt_window.activateWindow()
    image_box = window.panel.image_box
    boxes = [*window.panel.findChildren(QComboBox), *window.panel.findChildren(QSpinBox)]
    assert len(boxes) >= 8
    window.canvas.setFocus()

    def values() -> list[Any]:
        return [box.currentIndex() if isinstance(box, QComboBox) else box.value() for box in boxes]

    before = values()
    for box in boxes:
        turn_wheel(box)
    assert values() == before, "the wheel over a box scrolls the panel"
    image_box.setFocus()
    QTest.qWait(50)
    QTest.keyClick(image_box, Qt.Key.Key_O)
    assert values() == before, "a letter chooses nothing"
    window.click(INSIDE)
    image_box.setEnabled(True)
    image_box.setFocus()
    QTest.qWait(50)
    QTest.keyClick(image_box, Qt.Key.Key_C)
    window.idle()
    assert window.controller.state.num_committed == 1, "our keys work there"
    image_box.setFocus()
    image_box.activated.emit(image_box.currentIndex())
    window.idle()
    assert window.canvas.hasFocus()


def test_locked_boxes_say_why(open_window: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    window = open_window()
    panel = window.panel
    boxes = (panel.image_box, panel.device_box, panel.target_box, panel.model_box)
    free = [box.toolTip() for box in boxes]
    window.start()
    assert [box.toolTip() for box in boxes] == free
    window.controller.click((30, 30))
    window.idle()
    assert not any(box.isEnabled() for box in boxes)
    assert all("Commit or cancel" in box.toolTip() for box in boxes)
    window.controller.cancel()
    window.idle()
    assert [box.toolTip() for box in boxes] == free
    window.controller.state.update(phase=Phase.LOADING)
    assert all("is being loaded" in box.toolTip() for box in boxes)
    window.controller.state.update(phase=Phase.READY)
    opened: list[str] = []
    monkeypatch.setattr(QDesktopServices, "openUrl", lambda url: opened.append(url.toLocalFile()))
    panel.folder_button.click()
    assert opened == [window.controller.state.labels_folder]
    assert Path(opened[0]).is_dir()
    assert opened[0] in panel.folder_button.toolTip()


def test_nothing_of_the_panel_is_cut_off(open_window: Any, pixels: Any) -> None:
    window = open_window(show=True)
    for name in ("a channel with a long name", "b"):
        window.viewer.add_image(pixels[..., 0].astype(np.float32), name=name)
    window.viewer.layers.selection.active = window.viewer.layers["b"]
    QTest.qWait(200)
    panel = window.panel
    assert panel.colour_box.isVisible()
    for widget in panel.findChildren(QWidget):
        if widget.isVisible() and widget.window() is panel.window():
            right = widget.mapTo(panel, QPoint(widget.width(), 0)).x()
            assert right <= panel.width(), widget


def test_lines_of_the_panel_are_as_high_as_their_text(open_window: Any) -> None:
    window = open_window(show=True)
    # Then nothing writes another text any more.
    window.idle()
    for label in (window.panel.message_label, window.panel.facts_label):
        label.setText("a line of many words " * 8)
        window.qtbot.waitUntil(lambda label=label: label.height() > 40)
        high = label.height()
        assert high >= label.heightForWidth(label.width())
        label.setText("a word")
        window.qtbot.waitUntil(lambda label=label, high=high: label.height() < high / 2)
