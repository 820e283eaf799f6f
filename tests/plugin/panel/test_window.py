"""The panel in a real window: real mouse events, keys, showing, hiding and closing."""

from __future__ import annotations

import gc
import threading
import weakref
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from panel_window import LEFT, NO_KEY, RIGHT, SHIFT, TIMEOUT_MS
from qtpy.QtCore import QCoreApplication, QEvent, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication

from napari_hrsam.errors import CheckpointError, WeightsNotFoundError
from napari_hrsam.plugin.canvas.mouse import DragTool
from napari_hrsam.plugin.panel import qt_binding
from napari_hrsam.plugin.panel.widget import SegmentWidget
from napari_hrsam.plugin.session.loading import load_named_model
from napari_hrsam.plugin.session.state import Phase

INSIDE, BESIDE = (30, 30), (5, 5)


def test_first_mask_by_mouse_and_keys(open_window: Any, square: NDArray[np.bool_]) -> None:
    window = open_window(show=True)
    window.start()
    before = window.camera()
    window.click(INSIDE)
    window.click(BESIDE, RIGHT)
    state = window.controller.state
    assert state.num_prompts == 2
    prompts = window.controller.overlay.shown_prompts.layer
    np.testing.assert_allclose(prompts.data, [INSIDE, BESIDE], atol=0.5)
    assert list(prompts.features["label"]) == [1, 0]
    QTest.mouseDClick(window.canvas, LEFT, NO_KEY, window.place(INSIDE))
    window.idle()
    assert window.camera() == before, "neither clicks nor double clicks move the view"
    QTest.keyClick(window.canvas, Qt.Key.Key_C)
    window.idle()
    labels = window.controller.overlay.target.data
    assert int(((labels == 1) != square).sum()) <= 8
    assert "1" in window.panel.count_label.text()
    QTest.keyClick(window.canvas, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    window.idle()
    assert not labels.any()
    window.drag((8, 8), (40, 24), SHIFT)
    assert window.camera() == before, "drawing a box does not move the view"
    assert window.controller.overlay.prompts.box is not None
    assert set(window.controller.overlay.shown_prompts.layer.features["label"]) == {2}
    QTest.keyClick(window.canvas, Qt.Key.Key_Escape)
    window.idle()
    assert window.controller.state.num_prompts == 0
    window.drag((8, 8), (30, 24), NO_KEY)
    assert window.camera() != before, "a plain drag moves the view"
    assert window.controller.state.num_prompts == 0


def test_buttons_do_what_they_say(open_window: Any) -> None:
    window = open_window()
    panel, controller = window.panel, window.controller
    assert not panel.commit_button.isEnabled()
    assert panel.image_box.currentText() == "scene"
    window.start()
    assert panel.start_button.text() == "Stop"
    assert panel.target_box.currentText() == "scene [objects]"
    panel.subtract_button.click()
    assert controller.state.is_subtracting
    panel.add_button.click()
    assert not controller.state.is_subtracting
    for tool, tool_button in panel.tool_buttons.items():
        tool_button.click()
        assert controller.state.drag_tool is tool
        assert [b.isChecked() for b in panel.tool_buttons.values()].count(True) == 1
    tool_button.click()
    assert controller.state.drag_tool is DragTool.PAN
    controller.click(INSIDE)
    window.idle()
    assert "ms" in panel.facts_label.text()
    assert "level" in panel.facts_label.text()
    panel.commit_button.click()
    window.idle()
    assert controller.state.num_committed == 1
    panel.undo_button.click()
    window.idle()
    assert controller.state.num_committed == 0
    panel.redo_button.click()
    window.idle()
    assert controller.state.num_committed == 1
    controller.click(BESIDE)
    panel.cancel_button.click()
    window.idle()
    assert controller.state.num_prompts == 0
    panel.start_button.click()
    window.idle()
    assert controller.state.phase is Phase.STOPPED
    assert [layer.name for layer in window.viewer.layers] == ["scene", "scene [objects]"]


def test_layer_boxes_follow_the_viewer(open_window: Any, pixels: NDArray[np.uint8]) -> None:
    window = open_window()
    panel = window.panel
    window.viewer.layers["scene"].name = "slide"
    assert panel.image_box.currentText() == "slide"
    other = window.viewer.add_image(pixels[..., 0], name="other")
    assert panel.image_box.currentText() == "other", "the active image"
    labels = window.viewer.add_labels(np.zeros((64, 64), np.uint32), name="mine")
    assert panel.image_box.currentText() == "other"
    assert [panel.target_box.itemText(i) for i in range(2)] == ["new layer", "mine"]
    window.viewer.layers.remove(labels)
    window.viewer.layers.remove(other)
    texts = [panel.target_box.itemText(i) for i in range(panel.target_box.count())]
    assert texts == ["new layer", "on disk, in the user folder", "a folder ..."]
    assert panel.image_box.currentText() == "slide"


def test_another_image_can_be_chosen_while_running(
    open_window: Any, pixels: NDArray[np.uint8]
) -> None:
    window = open_window()
    other = window.viewer.add_image(pixels[..., 0], name="other", translate=(0, 80))
    window.viewer.layers.selection.active = window.viewer.layers["scene"]
    window.start()
    window.panel.image_box.setCurrentText("other")
    window.panel.image_box.activated.emit(window.panel.image_box.currentIndex())
    window.qtbot.waitUntil(lambda: window.controller.state.phase is Phase.READY, timeout=TIMEOUT_MS)
    window.idle()
    assert window.controller.image_layer == other
    names = [layer.name for layer in window.viewer.layers]
    assert "other [objects]" in names
    assert "scene [current]" not in names


def test_hiding_the_panel_gives_the_mouse_back(open_window: Any) -> None:
    window = open_window(show=True)
    window.start()
    callbacks = list(window.viewer.mouse_drag_callbacks)
    window.panel.hide()
    assert len(window.viewer.mouse_drag_callbacks) == len(callbacks) - 1
    assert not window.viewer.keymap
    window.panel.show()
    assert len(window.viewer.mouse_drag_callbacks) == len(callbacks)


def test_closing_the_window_ends_the_thread(open_window: Any, model: Any) -> None:
    window = open_window()
    window.start()
    errors: list[BaseException] = []
    window.controller.state.failed.connect(errors.append)
    model.gate.clear()
    window.controller.click(INSIDE)
    assert model.waiting.wait(120)
    window.viewer.close()
    window.controller.close()
    model.gate.set()
    QTest.qWait(50)
    assert window.controller.worker.join(120)
    assert errors == []


def test_a_panel_that_is_gone_leaves_nothing_behind(make_napari_viewer: Any, model: Any) -> None:
    panel = SegmentWidget(make_napari_viewer(), load_model=lambda *_, **__: model)
    controller = weakref.ref(panel.controller)
    panel.deleteLater()
    QCoreApplication.sendPostedEvents(panel, QEvent.Type.DeferredDelete)
    del panel
    # What the application is to do when it quits must not keep the controller, and all it has.
    gc.collect()
    assert controller() is None


@pytest.mark.parametrize("kind", ["missing", "damaged"])
def test_a_bad_checkpoint_is_shown_once_and_the_panel_stays_usable(
    kind: str, open_window: Any, model: Any, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.safetensors"
    if kind == "damaged":
        path.write_bytes(b"not a weight file at all")

    def load(_name: str, device: str, **options: Any) -> Any:
        return model if is_repaired.is_set() else load_named_model(str(path), device, **options)

    is_repaired = threading.Event()
    window = open_window(load)
    notes: list[str] = []
    monkeypatch.setattr("napari_hrsam.plugin.panel.widget.show_error", notes.append)
    errors: list[BaseException] = []
    window.controller.state.failed.connect(errors.append)
    window.panel.start_button.click()
    window.qtbot.waitUntil(lambda: bool(errors), timeout=TIMEOUT_MS)
    window.idle()
    expected = WeightsNotFoundError if kind == "missing" else CheckpointError
    assert isinstance(errors[0], expected)
    assert "weights.safetensors" in notes[0]
    assert window.panel.message_label.text() == notes[0]
    assert "color" in window.panel.message_label.styleSheet()
    assert len(window.viewer.layers) == 1
    is_repaired.set()
    window.start()
    assert window.panel.message_label.styleSheet() == ""
    assert len(notes) == len(errors) == 1


def test_devices_are_found_in_the_background(open_window: Any) -> None:
    window = open_window(show=True)
    box = window.panel.device_box
    window.qtbot.waitUntil(lambda: box.count() >= 2, timeout=TIMEOUT_MS)
    assert [box.itemText(i) for i in range(2)] == ["auto", "cpu"]


def test_this_qt_binding_keeps_references(qapp: Any) -> None:  # noqa: ARG001
    assert not qt_binding.loses_references_to_none()
    assert qt_binding.binding_warning() is None


def test_a_broken_qt_binding_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qt_binding, "loses_references_to_none", lambda: True)
    monkeypatch.setattr(qt_binding.sys, "version_info", (3, 11, 7))
    warning = qt_binding.binding_warning()
    assert warning is not None
    assert "PySide6!=6.12.0" in warning
    monkeypatch.setattr(qt_binding.sys, "version_info", (3, 12, 1))
    assert qt_binding.binding_warning() is None


def test_prompts_that_are_hidden_follow_and_are_right_when_shown_again(open_window: Any) -> None:
    """napari draws of a hidden layer the points that were in view: they may be gone."""
    window = open_window(show=True)
    window.start()
    for at in (INSIDE, BESIDE, (8, 8), (50, 50)):
        window.click(at)
    layer = window.controller.overlay.shown_prompts.layer
    layer.visible = False
    QApplication.processEvents()
    for _ in range(3):
        window.controller.undo()
        window.idle()
    layer.visible = True
    QApplication.processEvents()
    np.testing.assert_allclose(layer.data, [INSIDE], atol=0.5)
