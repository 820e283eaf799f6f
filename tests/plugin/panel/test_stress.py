"""Layers come, go, move and change in the middle of the work: napari lives on."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pytest
from napari.utils.notifications import show_error
from panel_window import TIMEOUT_MS
from qtpy.QtCore import Qt
from qtpy.QtGui import QOpenGLContext
from qtpy.QtOpenGLWidgets import QOpenGLWidget
from qtpy.QtTest import QTest

from napari_hrsam.plugin.session.state import Phase

INSIDE = (30, 30)
ROUNDS = int(os.environ.get("NAPARI_HRSAM_STRESS_ROUNDS", "4"))


def test_layers_are_removed_in_the_context_of_the_canvas(open_window: Any) -> None:
    """napari frees textures while a layer goes: in another context the process would end."""
    window = open_window(show=True)
    window.start()
    canvas = window.canvas
    assert isinstance(canvas, QOpenGLWidget)
    seen = []
    window.viewer.layers.events.removing.connect(
        lambda: seen.append(QOpenGLContext.currentContext() == canvas.context())
    )
    canvas.doneCurrent()
    window.viewer.layers.remove("scene")
    window.idle()
    assert len(seen) >= 4
    assert all(seen)


def test_the_panel_alone_tells_of_a_removed_layer(
    open_window: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    window = open_window()
    window.start()
    notes: list[str] = []
    monkeypatch.setattr("napari_hrsam.plugin.panel.widget.show_error", notes.append)
    window.viewer.layers.remove("scene")
    window.idle()
    assert notes == []
    assert "'scene' was removed" in window.panel.message_label.text()


@pytest.mark.slow
def test_rounds_of_changing_layers_leave_napari_alive(open_window: Any) -> None:
    """`NAPARI_HRSAM_STRESS_ROUNDS=200` makes it long."""
    window = open_window(show=True)
    viewer, controller = window.viewer, window.controller
    pixels = np.asarray(viewer.layers["scene"].data)
    rng = np.random.default_rng(0)
    for number in range(ROUNDS):
        if "scene" not in viewer.layers:
            viewer.add_image(pixels, rgb=True, name="scene")
        window.start()
        window.click(INSIDE)
        if number % 2:
            QTest.keyClick(window.canvas, Qt.Key.Key_C)
        if number % 3 == 0:
            show_error(f"a notification over the canvas, {number}")
        image = viewer.layers["scene"]
        match number % 5:
            case 0:
                viewer.layers.remove(image)
            case 1:
                viewer.layers.move(0, len(viewer.layers))
                own = [layer for layer in controller.overlay.own if layer in viewer.layers]
                viewer.layers.remove(own[rng.integers(len(own))])
            case 2:
                image.name = "renamed"
                image.name = "scene"
                image.data = pixels[::-1].copy()
            case 3:
                viewer.layers.clear()
            case _:
                viewer.layers.remove(controller.overlay.target)
        QTest.qWait(100)
        window.idle()
        window.qtbot.waitUntil(lambda: controller.state.phase is Phase.STOPPED, timeout=TIMEOUT_MS)
        QTest.qWait(100)
        viewer.layers.clear()
