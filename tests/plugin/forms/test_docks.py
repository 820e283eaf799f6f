"""The forms in a window."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_files import blobs, write_labels
from qtpy.QtWidgets import QLabel

from napari_hrsam.plugin.forms import embed as embed_module
from napari_hrsam.plugin.forms import export as export_module
from napari_hrsam.plugin.forms.embed import EncodeForm
from napari_hrsam.plugin.forms.export import ExportForm
from napari_hrsam.plugin.forms.importing import ImportForm
from napari_hrsam.plugin.forms.verify import VerifyForm
from napari_hrsam.storage.labels.places import FOLDER_KEY

TIMEOUT_MS = 120_000


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    write_labels(tmp_path / "a.zarr", blobs((60, 80), 6), num_levels=2)
    return tmp_path / "a.zarr"


def run(form: Any, qtbot: Any) -> None:
    form.run_button.click()
    qtbot.waitUntil(lambda: not form.is_busy, timeout=TIMEOUT_MS)


def test_labels_are_exported_and_an_error_leaves_the_form_usable(
    make_napari_viewer: Any, qtbot: Any, stored: Path, tmp_path: Path
) -> None:
    viewer = make_napari_viewer()
    layer = viewer.add_labels(blobs((60, 80), 6), metadata={FOLDER_KEY: (str(stored), "cells")})
    form = ExportForm(viewer)
    viewer.window.add_dock_widget(form)
    assert form.fields["labels"].value is layer
    run(form, qtbot)
    assert "Expected a file to write" in form.message
    assert form.message_label.styleSheet()
    form.fields["out"].value = tmp_path / "a.csv"
    run(form, qtbot)
    assert "Wrote 6 objects" in form.message
    assert not form.message_label.styleSheet()
    run(form, qtbot)
    assert "exists already" in form.message
    form.fields["overwrite"].value = True
    run(form, qtbot)
    assert "Wrote 6 objects" in form.message


def test_objects_are_imported_and_shown(
    make_napari_viewer: Any, qtbot: Any, stored: Path, tmp_path: Path
) -> None:
    file = tmp_path / "a.geojson"
    export_module.export_layer(folder=stored, out=file)
    viewer = make_napari_viewer()
    layer = viewer.add_labels(np.zeros((60, 80), int))
    form = ImportForm(viewer)
    viewer.window.add_dock_widget(form)
    run(form, qtbot)
    assert "Expected a file of objects" in form.message
    form.fields["file"].value = file
    form.fields["keep_ids"].value = True
    run(form, qtbot)
    assert form.message.startswith("6 objects of")
    np.testing.assert_array_equal(layer.data, blobs((60, 80), 6))
    assert (np.asarray(layer._slice.image.raw) == layer.data).all()
    run(form, qtbot)
    assert "6 were skipped" in form.message
    assert "belong to other objects" in form.message
    # Labels on disk that no layer shows are shown.
    form.fields["labels"].value = None
    form.fields["folder"].value = stored
    form.fields["overwrite"].value = True
    run(form, qtbot)
    assert viewer.layers[-1].metadata[FOLDER_KEY] == (str(stored), "cells")
    assert len(viewer.layers) == 2


def test_a_form_shows_the_fields_that_count(
    make_napari_viewer: Any, tmp_path: Path, qtbot: Any
) -> None:
    viewer = make_napari_viewer(show=True)
    form = ExportForm(viewer)
    viewer.window.add_dock_widget(form)
    qtbot.waitUntil(form.isVisible, timeout=TIMEOUT_MS)
    assert form.fields["folder"].visible
    layer = viewer.add_labels(np.zeros((5, 6), int), name="new")
    assert layer in form.fields["labels"].choices
    form.fields["labels"].value = layer
    assert not form.fields["folder"].visible
    for name, shown in (("a.tif", "level"), ("a.json", "segmentation"), ("a.geojson", "units")):
        form.fields["out"].value = tmp_path / name
        options = ("level", "segmentation", "units", "simplify_px", "object_type")
        assert shown in {key for key in options if form.fields[key].visible}
        assert form.fields["level"].visible == (shown == "level")
    viewer.layers.remove(layer)
    assert form.fields["labels"].value is None
    names = [name.width() for name in form.fields.native.findChildren(QLabel) if name.isVisible()]
    assert len(set(names)) == 1, "the fields begin below one another"


def test_a_report_names_what_is_wrong(make_napari_viewer: Any, qtbot: Any, stored: Path) -> None:
    (stored / "labels/cells/0/c/0/1").write_bytes(b"damage")
    form = VerifyForm(make_napari_viewer())
    form.fields["folder"].value = stored
    run(form, qtbot)
    assert "6 objects" in form.message or "objects" in form.message
    assert "chunk" in form.message
    form.deleteLater()


def test_cancel_frees_the_form_at_once_and_progress_is_shown(
    make_napari_viewer: Any, qtbot: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = make_napari_viewer()
    viewer.add_image(np.zeros((64, 64), np.uint8))
    form = EncodeForm(viewer)
    viewer.window.add_dock_widget(form)
    begun, go_on = threading.Event(), threading.Event()

    def prepare(**_: Any) -> Any:
        def job(progress: Any) -> None:
            progress(2, 5)
            begun.set()
            assert go_on.wait(TIMEOUT_MS / 1000)
            progress(5, 5)

        return job

    monkeypatch.setattr(form, "_prepare", prepare)
    form.run_button.click()
    qtbot.waitUntil(lambda: form.progress_bar.value() == 2, timeout=TIMEOUT_MS)
    assert form.progress_bar.maximum() == 5
    assert not form.run_button.isEnabled()
    assert not form.fields.enabled
    assert begun.wait(TIMEOUT_MS / 1000)
    form.cancel_button.click()
    assert not form.is_busy, "though the step is still under way"
    assert form.message == "Cancelled after 2 of 5 tiles, which are kept: Encode goes on there."
    assert form.run_button.isEnabled()
    go_on.set()


def test_what_is_not_ours_is_shown_too(
    make_napari_viewer: Any, qtbot: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    viewer = make_napari_viewer()
    viewer.add_labels(np.zeros((5, 6), int))
    form = ExportForm(viewer)
    form.fields["out"].value = tmp_path / "a.csv"

    def fails(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(export_module, "export_labels", fails)
    run(form, qtbot)
    assert "Unexpected ZeroDivisionError: odd" in form.message
    form.deleteLater()


def test_shipped_models_can_be_chosen(make_napari_viewer: Any) -> None:
    form = EncodeForm(make_napari_viewer())
    assert embed_module.DEFAULT_MODEL in form.fields["model"].choices
    assert form.fields["model"].tooltip.startswith("Name from")
    form.deleteLater()
