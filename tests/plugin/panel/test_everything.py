"""The section Everything: all objects of a part of the image, reviewed in a window."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from everything_stand_in import SHAPE, Asked
from panel_window import NO_KEY, TIMEOUT_MS, Window
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest

from napari_hrsam.plugin.panel.everything import BOX, SHAPES, STEPS, WHOLE, EverythingSection


@pytest.fixture
def window(
    open_window: Callable[..., Window], monkeypatch: pytest.MonkeyPatch
) -> tuple[Window, Asked]:
    asked = Asked(monkeypatch)
    image = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    window = open_window(data=image)
    window.panel.start()
    window.controller.wait()
    return window, asked


def section_of(window: Window) -> EverythingSection:
    return window.panel.everything_section


def find(window: Window) -> None:
    section = section_of(window)
    section.level_box.setCurrentIndex(section.level_box.findText("level 0 · 1x"))
    section.find_button.click()
    window.qtbot.waitUntil(
        lambda: window.controller.state.is_reviewing and not window.controller.worker.is_busy,
        timeout=TIMEOUT_MS,
    )


def test_a_review_in_the_window(window: tuple[Window, Asked]) -> None:
    shown, asked = window
    section, panel = section_of(shown), shown.panel
    assert section.review_box.isHidden()
    assert panel.image_box.isEnabled()
    find(shown)
    assert asked.calls[-1][1] == 0
    assert not section.review_box.isHidden()
    assert not section.find_button.isEnabled()
    assert not panel.image_box.isEnabled(), "another image would end the review"
    review = shown.controller.everything.review
    assert review is not None
    section.accept_button.click()
    section.reject_button.click()
    assert section.count_label.text() == f"{len(review) - 2} left · 1 accepted · 1 rejected"
    # Sliders hide, and tell how many are left.
    areas = review.proposals.areas_px
    section.small_slider.slider.setValue(STEPS // 2)
    assert review.limits.min_px == pytest.approx((areas.min() * areas.max()) ** 0.5, abs=1)
    assert f"{review.is_left.sum()} left" in section.count_label.text()
    assert "hidden" in section.count_label.text()
    section.small_slider.slider.setValue(0)
    section.large_slider.slider.setValue(STEPS)
    assert "hidden" not in section.count_label.text()
    section.above_slider.slider.setValue(0)
    assert section.above_slider.label.text() == f"0.00: {review.is_left.sum()}"
    section.above_button.click()
    assert not section.above_button.isEnabled()
    section.undo_button.click()
    section.leave_button.click()
    assert section.review_box.isHidden()
    assert not section.resume_button.isHidden()
    section.resume_button.click()
    section.commit_button.click()
    shown.controller.wait()
    assert shown.controller.state.num_committed == 1
    assert section.resume_button.isHidden()
    assert panel.image_box.isEnabled()


def test_where_to_look_is_chosen(window: tuple[Window, Asked]) -> None:
    shown, _ = window
    section, controller = section_of(shown), shown.controller
    section.where_box.setCurrentIndex(section.where_box.findData(BOX))
    section.find_button.click()
    assert controller.everything.awaits_box
    controller.cancel()
    section.where_box.setCurrentIndex(section.where_box.findData(SHAPES))
    section.find_button.click()
    assert "no shape to look in" in controller.state.message.lower()
    opened: list[int] = []
    section._open_form = opened.append
    section.where_box.setCurrentIndex(section.where_box.findData(WHOLE))
    section.level_box.setCurrentIndex(section.level_box.findText("level 1 · 2x"))
    section.find_button.click()
    assert opened == [1]


def test_keys_of_a_review_work_in_docks_but_for_arrows(window: tuple[Window, Asked]) -> None:
    shown, _ = window
    panel: Any = shown.panel
    find(shown)
    review = shown.controller.everything.review
    assert review is not None
    keys = {
        shortcut.key().toString()
        for shortcuts in panel._keys._shortcuts.values()
        for shortcut in shortcuts
    } or set(panel._keys._actions)
    assert {"A", "X", "Shift+A"} <= keys
    assert not {"Left", "Right", "Up", "Down"} & keys
    shown.controller.cancel()
    assert "A" not in panel._keys._actions


def test_a_review_by_real_keys(
    open_window: Callable[..., Window], monkeypatch: pytest.MonkeyPatch
) -> None:
    Asked(monkeypatch)
    image = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    shown = open_window(data=image, show=True)
    shown.begin()
    find(shown)
    review = shown.controller.everything.review
    assert review is not None
    shown.controller.everything.sort_by("place")
    for key in (Qt.Key.Key_A, Qt.Key.Key_Right, Qt.Key.Key_X, Qt.Key.Key_A):
        QTest.keyClick(shown.canvas, key, NO_KEY)
    assert (len(review.accepted), len(review.rejected)) == (2, 1)
    shown.controller.wait()
    place = review.place
    QTest.keyClick(shown.canvas, Qt.Key.Key_Left, NO_KEY)
    assert review.place == place - 1
    QTest.keyClick(shown.canvas, Qt.Key.Key_C, NO_KEY)
    shown.idle()
    shown.controller.wait()
    assert shown.controller.state.num_committed == 2
