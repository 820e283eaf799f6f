"""The panel as napari opens it: at once, and filled when its code is imported."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from napari.components import ViewerModel
from qtpy.QtWidgets import QApplication, QLabel

from napari_hrsam.plugin.panel.opening import PANEL_MODULE, OpeningPanel
from napari_hrsam.plugin.panel.widget import SegmentWidget


@pytest.fixture
def may_import(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let the code of the panel be imported once this is set, on a thread of its own only."""
    gate, import_module, window = threading.Event(), importlib.import_module, threading.get_ident()

    def wait_and_import(name: str) -> Any:
        if name == PANEL_MODULE:
            assert threading.get_ident() != window
            gate.wait()
        return import_module(name)

    monkeypatch.setattr(importlib, "import_module", wait_and_import)
    yield gate
    gate.set()


def test_the_window_goes_on_until_the_panel_is_there(
    viewer: ViewerModel, may_import: threading.Event, qtbot: Any
) -> None:
    opened = OpeningPanel(viewer)
    qtbot.addWidget(opened)
    for _ in range(5):
        QApplication.processEvents()
    assert not opened.is_filled
    assert opened.findChildren(SegmentWidget) == []
    assert [label.text() for label in opened.findChildren(QLabel)] == ["Opening …"]
    may_import.set()
    qtbot.waitUntil(lambda: opened.is_filled, timeout=60_000)
    assert opened.findChildren(SegmentWidget) == [opened.panel]
    assert opened.controller is opened.panel.controller
    layout: Any = opened.layout()
    assert layout.indexOf(opened.panel) == 0
    assert layout.count() == 1
    opened.controller.close()


def test_a_failed_import_is_tried_again_where_it_is_told(
    viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch, qtbot: Any
) -> None:
    import_module = importlib.import_module

    def fail(name: str) -> Any:
        if name == PANEL_MODULE:
            raise ImportError(name)
        return import_module(name)

    with monkeypatch.context() as patch:
        patch.setattr(importlib, "import_module", fail)
        opened = OpeningPanel(viewer)
        qtbot.addWidget(opened)
        assert isinstance(opened.panel, SegmentWidget)
    opened.controller.close()


def test_the_panel_has_the_whole_height_of_its_dock(make_napari_viewer: Any) -> None:
    viewer = make_napari_viewer()
    _, opened = viewer.window.add_plugin_dock_widget("napari-hrsam", "Segment by clicking")
    # Nothing stretches beside it, as napari puts it under what is as low as it may be.
    assert opened.layout().count() == 1
    panel = opened.panel
    assert opened.layout().itemAt(0).widget() is panel
    opened.controller.close()
