"""The preferences, and a panel that follows them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import napari.settings
import numpy as np
import pytest
from npe2 import PluginManifest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QLabel, QWidget

import napari_hrsam
from napari_hrsam.plugin.canvas.key_table import DEFAULT_KEYS, KEYS
from napari_hrsam.plugin.forms.embed import EncodeForm
from napari_hrsam.plugin.panel import preferences
from napari_hrsam.plugin.panel.preferences import (
    DEFAULTS,
    Preferences,
    PreferencesLink,
    keys_of_napari,
)
from napari_hrsam.plugin.session.controller import SegmentController

PACKAGED = Path(napari_hrsam.__file__).with_name("napari.yaml")
CYAN = (0, 217, 255)


@pytest.fixture
def kept() -> Preferences:
    """What napari keeps for us in this process."""
    # An earlier test may have asked while there were other plugins.
    napari.settings._clear_plugin_settings_cache()
    return Preferences()


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    found: list[str] = []
    monkeypatch.setattr(preferences, "show_warning", found.append)
    return found


@pytest.fixture
def begun() -> list[tuple[str, str]]:
    """Model and device that the panel was told to begin with."""
    return []


@pytest.fixture
def link(
    kept: Preferences,  # noqa: ARG001  first
    controller: SegmentController,
    begun: list[tuple[str, str]],
    warned: list[str],  # noqa: ARG001  from the beginning
    qtbot: Any,
) -> Iterator[PreferencesLink]:
    panel = QWidget()
    qtbot.addWidget(panel)
    link = PreferencesLink(panel, controller, lambda *chosen: begun.append(chosen))
    yield link
    link.close()


def test_the_manifest_says_what_the_code_says() -> None:
    configurations = PluginManifest.from_file(PACKAGED).contributions.configurations
    assert configurations is not None
    told = {
        group: {name: one.default for name, one in configuration.properties.items()}
        for group, configuration in configurations.items()
    }
    assert told == DEFAULTS
    # The dialog looks for the name in small letters.
    assert all(group == group.lower() for group in told)
    keys = configurations["keys"].properties
    assert {name: one.title for name, one in keys.items()} == {r.action: r.title for r in KEYS}


def test_without_preferences_of_napari_all_is_at_its_default(
    monkeypatch: pytest.MonkeyPatch, controller: SegmentController, qtbot: Any
) -> None:
    def missing(_: str) -> None:
        raise KeyError

    monkeypatch.setattr(napari.settings, "get_plugin_settings", missing)
    assert {group: Preferences().group(group) for group in DEFAULTS} == DEFAULTS
    panel = QWidget()
    qtbot.addWidget(panel)
    link = PreferencesLink(panel, controller, lambda *_: None)
    controller.settings.set_peeks(True)
    assert controller.state.peeks
    link.close()


def test_what_both_show_is_one_value(
    link: PreferencesLink, kept: Preferences, controller: SegmentController
) -> None:
    assert controller.state.reads_ahead
    kept.put("drawing", "look_ahead", False)
    controller.settings.set_peeks(True)
    assert kept.get("drawing", "preview"), "the panel's switch is remembered"
    link.take()
    assert not controller.state.reads_ahead
    assert controller.state.peeks
    controller.settings.set_reads_ahead(True)
    controller.settings.set_colors_by_class(True)
    assert kept.group("drawing") == {"look_ahead": True, "preview": True}
    assert kept.get("colors", "by_class")


def test_a_change_of_something_else_does_not_undo_one_that_is_not_taken_over_yet(
    link: PreferencesLink, kept: Preferences, controller: SegmentController
) -> None:
    kept.put("drawing", "look_ahead", False)
    controller.state.update(message="meanwhile")
    assert not kept.get("drawing", "look_ahead")
    link.take()
    assert not controller.state.reads_ahead


def test_a_panel_that_was_closed_follows_no_longer(
    link: PreferencesLink, kept: Preferences, controller: SegmentController, qtbot: Any
) -> None:
    link.close()
    kept.put("drawing", "look_ahead", False)
    controller.settings.set_peeks(True)
    qtbot.wait(preferences.TYPING_MS + 200)
    assert controller.state.reads_ahead
    assert not kept.get("drawing", "preview")


def test_changes_are_taken_over_when_the_preferences_are_left_alone(
    link: PreferencesLink,  # noqa: ARG001  it follows
    kept: Preferences,
    controller: SegmentController,
    warned: list[str],
    qtbot: Any,
) -> None:
    for typed in ("S", "Sh", "Shift+", "Shift+G"):
        kept.put("keys", "commit", typed)
    qtbot.waitUntil(lambda: controller.state.keys["commit"] == "Shift+G")
    assert not warned, "not of what was half typed"
    assert "Shift+G" in controller.canvas.actions
    assert "C" not in controller.canvas.actions


def test_a_panel_begins_with_model_and_device(
    link: PreferencesLink, kept: Preferences, begun: list[tuple[str, str]]
) -> None:
    kept.put("start", "device", "cpu")
    kept.put("start", "model", " ")
    link.take()
    assert begun == [("hrsam-tiny", "auto"), ("hrsam-tiny", "cpu")], "an empty name is the default"


def test_keys_are_refused_with_what_has_them(
    link: PreferencesLink, kept: Preferences, controller: SegmentController, warned: list[str]
) -> None:
    kept.put("keys", "lasso", "Ctrl+T")
    link.take()
    [told] = warned
    assert "'Lasso' stays L: Ctrl+T is napari's key for 'transpose axes'" in told
    assert controller.state.keys["lasso"] == "L"
    kept.put("keys", "box", "q")
    link.take()
    assert len(warned) == 1, "what was told once is not told again"
    assert controller.state.keys["box"] == "Q"


def test_a_colour_is_taken_or_told(
    link: PreferencesLink, kept: Preferences, started: SegmentController, warned: list[str]
) -> None:
    overlay = started.overlay
    assert overlay is not None

    def color() -> tuple[int, ...]:
        return tuple(np.rint(255 * overlay.preview.layer.get_color(1)[:3]).astype(int))

    assert color() == CYAN
    kept.put("colors", "current_object", "orange")
    link.take()
    assert color() == (255, 165, 0)
    kept.put("colors", "current_object", "#12")
    link.take()
    assert "expected a colour" in warned[0].lower()
    assert color() == (255, 165, 0)


def test_embeddings_go_where_the_preferences_say(
    link: PreferencesLink,
    kept: Preferences,
    started: SegmentController,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "tiles"
    kept.put("embeddings", "folder", str(folder))
    kept.put("embeddings", "max_gb", 0.5)
    link.take()
    started.start()
    started.wait()
    started.click((30.0, 30.0))
    started.wait()
    started.stop()
    started.wait()
    assert list(folder.rglob("zarr.json"))
    assert "500000000" in (folder / "embeddings.json").read_text()


def test_tiles_are_encoded_ahead_where_the_panel_looks_for_them(
    kept: Preferences, make_napari_viewer: Any, tmp_path: Path
) -> None:
    kept.put("embeddings", "folder", str(tmp_path))
    kept.put("embeddings", "max_gb", 2.0)
    fields = EncodeForm(make_napari_viewer()).fields
    assert (fields["folder"].value, fields["max_gb"].value) == (tmp_path, 2.0)


def test_the_window_follows_keys_and_shows_them(
    kept: Preferences, open_window: Any, qtbot: Any
) -> None:
    kept.put("start", "device", "cpu")
    window = open_window(show=True)
    panel, controller = window.panel, window.controller
    assert panel.device_box.currentText() == "cpu"
    taken = keys_of_napari(panel)
    assert not set(taken) & set(DEFAULT_KEYS.values())
    assert "Open File(s)" in taken["Ctrl+O"], "the menus' keys count"
    window.start()
    assert panel.commit_button.text() == "Commit [C]"
    kept.put("keys", "commit", "Shift+G")
    qtbot.waitUntil(lambda: panel.commit_button.text() == "Commit [Shift+G]")
    window.click((30, 30))
    assert "Shift+G commits" in panel.message_label.text()
    QTest.keyClick(window.canvas, Qt.Key.Key_C)
    assert controller.state.has_object
    QTest.keyClick(window.canvas, Qt.Key.Key_G, Qt.KeyboardModifier.ShiftModifier)
    window.idle()
    assert controller.state.num_committed == 1
    panel.keys_button.click()
    labels = [label.text() for label in panel._sheet.findChildren(QLabel)]
    assert "<b>Shift+G</b>" in labels
    assert "<b>C</b>" not in labels
    kept.put("keys", "commit", "C")
    qtbot.waitUntil(lambda: panel.commit_button.text() == "Commit [C]")
    assert "<b>C</b>" in [label.text() for label in panel._sheet.findChildren(QLabel)]
    panel.show_keys()
    assert not panel._sheet.isVisible()
