"""The panel on a pyramid of a gigapixel, in a real window, looked at on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from panel_window import LEFT, NO_KEY, RIGHT, Window
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from stored_images import write_ome_zarr

from napari_hrsam.plugin.panel import target as target_module
from napari_hrsam.plugin.session.targets import NewLayer
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.places import LabelFile, OwnPlace

MIDDLE, LARGE = (20_480, 9216), (16_384, 24_576)
RED = (230, 10, 10)


@pytest.fixture
def window(open_window: Any, discs: list[Any]) -> Window:
    made: Window = open_window(
        show=True, data=discs, multiscale=True, name="slide", scale=(0.5, 0.5)
    )
    return made


def channels(window: Window) -> Any:
    setup = window.controller._context.setup
    return {} if setup is None else setup.image.channels


def is_covered(window: Window, place: tuple[float, float]) -> bool:
    """Whether something is drawn over a red place of the picture."""
    return max(abs(np.subtract(window.color_at(place), RED))) > 20


def test_click_commit_and_undo_are_seen_at_three_zooms(window: Window) -> None:
    window.begin()
    window.zoom_to(MIDDLE, 5)
    assert window.controller.state.level == 5
    assert "level 5 · 32x" in window.panel.facts_label.text()
    assert not is_covered(window, MIDDLE)
    window.click(MIDDLE)
    assert is_covered(window, MIDDLE), "the preview"
    window.click((MIDDLE[0] + 850, MIDDLE[1]), RIGHT)
    assert window.controller.state.num_prompts == 2
    QTest.keyClick(window.canvas, Qt.Key.Key_C)
    window.idle()
    window.look_at(LARGE, 7)
    window.click(LARGE)
    QTest.keyClick(window.canvas, Qt.Key.Key_C)
    window.idle()
    assert window.controller.state.num_committed == 2
    rim = (MIDDLE[0], MIDDLE[1] + 450)
    for level, place in ((1, rim), (5, MIDDLE), (9, MIDDLE), (9, LARGE)):
        window.look_at(place, level)
        assert is_covered(window, place), f"zoom of level {level}"
    beside = (MIDDLE[0], MIDDLE[1] + 750)
    window.look_at(beside, 1)
    assert max(abs(np.subtract(window.color_at(beside), (0, 120, 0)))) <= 2
    QTest.keyClick(window.canvas, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    window.idle()
    for level in (9, 3):
        window.look_at(LARGE, level)
        assert not is_covered(window, LARGE), f"taken back, zoom of level {level}"
    window.look_at(MIDDLE, 9)
    assert is_covered(window, MIDDLE)


def test_the_level_can_be_kept_in_the_panel(window: Window) -> None:
    window.begin()
    box = window.panel.level_box
    window.zoom_to(MIDDLE, 3)
    assert box.spin_box.value() == 3
    assert box.spin_box.suffix() == " · 8x"
    assert not box.spin_box.isEnabled()
    box.pin_box.click()
    box.spin_box.setValue(5)
    window.zoom_to(MIDDLE, 8)
    assert window.controller.state.level == 5
    window.click(MIDDLE)
    assert window.controller.state.level == 5
    box.pin_box.click()
    window.panel.cancel_button.click()
    window.idle()
    assert window.controller.state.level == 8
    assert box.spin_box.value() == 8
    box.outline_box.setCurrentIndex(1)
    box.outline_box.activated.emit(1)
    box.ahead_box.click()
    state = window.controller.state
    assert (state.outlines_fully, state.reads_ahead) == (True, False)


def test_closing_the_window_makes_the_commit_that_waits(window: Window, model: Any) -> None:
    window.begin()
    store = Path(window.controller.state.labels_folder)
    window.look_at(MIDDLE, 5)
    errors: list[BaseException] = []
    window.controller.state.failed.connect(errors.append)
    model.gate.clear()
    QTest.mousePress(window.canvas, LEFT, NO_KEY, window.place(MIDDLE))
    QTest.mouseRelease(window.canvas, LEFT, NO_KEY, window.place(MIDDLE))
    QTest.keyClick(window.canvas, Qt.Key.Key_C)
    window.viewer.close()
    window.controller.close()
    model.gate.set()
    assert window.controller.worker.join(30)
    assert errors == []
    with open_labels(store.parent.parent, store.name) as labels:
        level = 4
        y, x = MIDDLE[0] >> level, MIDDLE[1] >> level
        assert (np.asarray(labels.levels[level][y : y + 2, x : x + 2]) == 1).all()


def texts(box: Any) -> list[str]:
    return [box.itemText(i) for i in range(box.count())]


def test_places_for_objects_are_offered_by_the_kind_of_image(
    window: Window, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    box = window.panel.target_box
    assert texts(box) == ["on disk, in the user folder", "a folder ..."]
    assert box.chosen is None
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes.txt").write_text("my notes")
    monkeypatch.setattr(target_module.QFileDialog, "getExistingDirectory", lambda *_: str(mine))
    box.setCurrentIndex(1)
    box.activated.emit(1)
    assert box.chosen == LabelFile(mine / "slide-objects.zarr", "objects")
    assert box.currentText() == "objects (in slide-objects.zarr)"
    window.begin()
    assert window.controller.state.labels_folder == str(
        mine / "slide-objects.zarr" / "labels" / "objects"
    )
    monkeypatch.setattr(target_module.QFileDialog, "getExistingDirectory", lambda *_: "")
    box.setCurrentIndex(box.count() - 1)
    box.activated.emit(box.count() - 1)
    assert box.currentText() == "objects (in slide-objects.zarr)", "given up: nothing changes"
    window.viewer.add_image(np.zeros((64, 64)), name="small")
    window.panel.start_button.click()
    window.idle()
    window.viewer.layers.selection.active = window.viewer.layers["small"]
    assert "new layer" in texts(box)
    assert box.currentText() == "new layer"
    assert box.chosen is None


def test_names_beside_an_ome_zarr_are_offered_and_can_be_added(
    open_window: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "slide.ome.zarr"
    arrays = write_ome_zarr(path, np.zeros((600, 600), np.uint8))
    create_labels(path, "cells").close()
    window = open_window(data=arrays, rgb=False, multiscale=True, contrast_limits=(0, 1))
    box = window.panel.target_box
    expected = ["objects (beside the image)", "cells (beside the image)"]
    assert texts(box)[1:3] == expected
    assert box.currentText() == expected[0]
    monkeypatch.setattr(target_module.QInputDialog, "getText", lambda *_: (" nuclei ", True))
    place = texts(box).index("a new name ...")
    box.setCurrentIndex(place)
    box.activated.emit(place)
    window.begin()
    assert window.controller.state.labels_folder == str(path / "labels" / "nuclei")
    assert box.currentText() == "nuclei (beside the image)"
    place = texts(box).index("cells (beside the image)")
    box.setCurrentIndex(place)
    box.activated.emit(place)
    window.qtbot.waitUntil(
        lambda: window.controller.state.labels_folder == str(path / "labels" / "cells"),
        timeout=20_000,
    )


def test_a_place_is_one_item_whoever_asks() -> None:
    assert NewLayer() == NewLayer()
    assert OwnPlace("a") == OwnPlace("a") != OwnPlace("b")
    assert LabelFile(Path("a"), "b") == LabelFile(Path("a"), "b") != LabelFile(Path("a"), "c")


def test_colours_can_be_chosen_where_layers_share_a_grid(open_window: Any) -> None:
    grey = np.zeros((64, 64), np.uint8)
    window = open_window(data=grey, rgb=False, contrast_limits=(0, 255), name="one")
    colours = window.panel.colour_box
    assert colours.isHidden()
    two = window.viewer.add_image(grey, contrast_limits=(0, 255), name="two")
    window.viewer.add_image(np.zeros((9, 9)), name="other size")
    window.viewer.layers.selection.active = window.viewer.layers["one"]
    assert not colours.isHidden()
    assert texts(colours.boxes["red"]) == ["as on screen", "one", "two"]
    window.begin()
    box = colours.boxes["green"]
    box.setCurrentIndex(2)
    box.activated.emit(2)
    window.qtbot.waitUntil(lambda: "green" in channels(window), timeout=20_000)
    # The image itself is not lost from the picture.
    assert channels(window) == {"red": window.viewer.layers["one"], "green": two}
    assert colours.boxes["red"].currentText() == "one"
    assert colours.boxes["blue"].itemText(0) == "nothing"
    window.idle()
    assert "what you see" in colours.boxes["blue"].toolTip()
    window.viewer.layers.remove("two")
    window.idle()
    assert colours.isHidden()
    assert colours.chosen == {}
