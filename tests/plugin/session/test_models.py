"""Changing the model: by the controller, by the panel's list, from a server and from a file."""

from __future__ import annotations

import functools
import hashlib
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mouse_events import drag
from napari.components import ViewerModel
from numpy.typing import NDArray
from panel_window import TIMEOUT_MS
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QFileDialog, QLineEdit, QProgressBar

from napari_hrsam.cache import CACHE_VARIABLE
from napari_hrsam.errors import CheckpointError, DownloadError, SessionError
from napari_hrsam.modeling import registry
from napari_hrsam.modeling.models import HRSAM_TINY, MODELS
from napari_hrsam.modeling.registry import ModelInfo
from napari_hrsam.modeling.saving import save_weights
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.plugin.panel.model_chooser import CHOOSE_FILE
from napari_hrsam.plugin.panel.parts import WrappedLabel
from napari_hrsam.plugin.panel.widget import SegmentWidget
from napari_hrsam.plugin.session.commands import UseModel
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.plugin.session.loading import ModelRequest, load_named_model
from napari_hrsam.plugin.session.state import Phase

INSIDE = (30, 30)

MB = 10**6
LEFT = Qt.MouseButton.LeftButton
KNOWN = (
    ModelInfo(name="hrsam-tiny", description="", licence="", weights="here"),
    ModelInfo(name="other", description="", licence="", weights="here"),
    ModelInfo(
        name="far", description="", licence="MIT", download_bytes=40 * MB, site="example.org"
    ),
)


class Loader:
    """Gives the colour model under any name; one of them slowly, with progress, one never."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.loaded: list[str] = []
        self.agreed: list[str] = []
        self.half = threading.Event()
        self.go_on = threading.Event()
        self.error: Exception | None = None

    def __call__(
        self, name: str, _device: str, *, download: bool, progress: Callable[[int, int], None]
    ) -> Any:
        if download:
            self.agreed.append(name)
            progress(10 * MB, 40 * MB)
            self.half.set()
            assert self.go_on.wait(20)
            progress(40 * MB, 40 * MB)
        if self.error is not None:
            raise self.error
        self.loaded.append(Path(name).name)
        return self.model


@pytest.fixture
def loader(model: Any) -> Iterator[Loader]:
    loader = Loader(model)
    yield loader
    loader.go_on.set()


@pytest.fixture
def session(
    viewer: ViewerModel, loader: Loader, pixels: NDArray[np.uint8]
) -> Iterator[SegmentController]:
    """A started controller with one committed object."""
    controller = SegmentController(viewer, load_model=loader)
    viewer.add_image(pixels, rgb=True, name="scene")
    viewer.scene.camera.zoom = 1.0
    controller.start()
    controller.wait()
    controller.click(INSIDE)
    controller.commit()
    controller.wait()
    yield controller
    loader.go_on.set()
    controller.close()


def labels_of(controller: SegmentController) -> NDArray[Any]:
    assert controller.overlay is not None
    return np.asarray(controller.overlay.target.data)


def test_commits_and_their_undo_outlive_a_change_of_model(
    session: SegmentController, viewer: ViewerModel
) -> None:
    layers = list(viewer.layers)
    labels = labels_of(session)
    before = labels.copy()
    session.models.use("other")
    assert session.state.phase is Phase.LOADING
    session.wait()
    assert session.state.phase is Phase.READY
    assert session.state.model == "other"
    assert session.state.num_committed == 1
    assert session.state.can_undo
    assert list(viewer.layers) == layers
    np.testing.assert_array_equal(labels, before)
    session.undo()
    session.wait()
    assert not labels.any()
    session.models.use("hrsam-tiny")
    session.wait()
    assert session.state.can_redo
    session.redo()
    session.wait()
    np.testing.assert_array_equal(labels, before)
    session.click((5, 5))
    session.commit()
    session.wait()
    assert set(np.unique(labels)) == {1, 2}


def test_an_object_given_up_does_not_come_back_under_another_model(
    session: SegmentController,
) -> None:
    session.click((5, 5))
    session.wait()
    session.cancel()
    session.wait()
    assert session.state.can_redo
    session.models.use("other")
    session.wait()
    assert not session.state.can_redo
    assert session.state.can_undo


def test_an_object_being_drawn_keeps_its_model(session: SegmentController) -> None:
    session.click((5, 5))
    with pytest.raises(SessionError, match="commit or cancel it"):
        session.models.use("other")
    session.wait()
    assert session.state.phase is Phase.READY
    assert session.state.num_prompts == 1
    assert session.state.model == "hrsam-tiny"


def test_an_object_whose_commit_fails_meanwhile_keeps_its_model(
    session: SegmentController,
) -> None:
    session.click(INSIDE)
    session.commit()  # on the object that is there: it cannot be written
    session.models.use("other")
    with pytest.raises(ValueError, match="belong to objects already"):
        session.wait()
    assert session.state.phase is Phase.READY
    assert session.state.model == "hrsam-tiny"
    assert session.state.num_prompts == 1


def test_after_a_failure_the_model_before_goes_on(
    session: SegmentController, loader: Loader
) -> None:
    errors: list[BaseException] = []
    session.state.failed.connect(errors.append)
    loader.error = CheckpointError("the file is damaged")
    session.models.use("other")
    with pytest.raises(CheckpointError):
        session.wait()
    assert len(errors) == 1
    assert session.state.is_error
    assert session.state.message == "The file is damaged"
    assert session.state.model == "hrsam-tiny"
    assert session.state.can_undo
    session.click((5, 5))
    session.commit()
    session.wait()
    assert session.state.num_committed == 2
    session.stop()
    session.start()
    session.wait()
    assert loader.loaded == ["hrsam-tiny"], "it was not loaded again"


def test_a_download_shows_how_far_it_is_and_can_be_cancelled(
    session: SegmentController, loader: Loader
) -> None:
    session.models.use("far", download=True)
    assert loader.half.wait(5)
    session.worker.deliver()
    assert session.state.progress == (10 * MB, 40 * MB)
    assert session.state.message == "Downloading: 10 MB of 40 MB"
    with pytest.raises(SessionError, match="being loaded already"):
        session.models.use("other")
    session.cancel()
    assert session.state.phase is Phase.READY
    assert session.state.progress is None
    assert "cancelled" in session.state.message
    loader.go_on.set()
    session.wait()
    assert session.state.model == "hrsam-tiny"
    assert not session.state.is_error
    assert loader.loaded == ["hrsam-tiny"]
    session.undo()
    session.wait()
    assert not labels_of(session).any()


def test_clicks_while_another_model_is_loaded_are_answered(
    session: SegmentController, viewer: ViewerModel, loader: Loader
) -> None:
    session.models.use("far", download=True)
    assert loader.half.wait(10)
    session.worker.deliver()
    drag(viewer, (5, 5))
    assert "Still loading" in session.state.message
    far = UseModel(ModelRequest(model="far"))
    session.worker.progress.emit(far, 20 * MB, 40 * MB)
    assert "Still loading" in session.state.message, "until it can be read"
    loader.go_on.set()
    session.wait()
    assert session.state.num_prompts == 0
    drag(viewer, (5, 5))
    session.wait()
    assert session.state.num_prompts == 1


def test_an_error_after_cancelling_is_not_shown(session: SegmentController, loader: Loader) -> None:
    loader.error = DownloadError("offline")

    def load(*_: Any, **__: Any) -> Any:
        loader.half.set()
        assert loader.go_on.wait(20)
        raise DownloadError("offline")

    session.worker._session._load_model = load
    session.models.use("far", download=True)
    assert loader.half.wait(5)
    session.cancel()
    loader.go_on.set()
    session.wait()
    assert not session.state.is_error


def test_stopping_gives_up_the_loading_too(session: SegmentController, loader: Loader) -> None:
    session.models.use("far", download=True)
    assert loader.half.wait(5)
    session.stop()
    loader.go_on.set()
    session.wait()
    assert session.state.phase is Phase.STOPPED
    assert session.state.model == "hrsam-tiny"
    assert "far" not in loader.loaded


def test_a_model_can_be_loaded_before_the_session(
    viewer: ViewerModel, loader: Loader, pixels: NDArray[np.uint8]
) -> None:
    controller = SegmentController(viewer, load_model=loader)
    loader.go_on.set()
    controller.models.use("far", download=True)
    controller.wait()
    assert controller.state.phase is Phase.STOPPED
    assert controller.state.model == "far"
    assert "press Start" in controller.state.message
    viewer.add_image(pixels, rgb=True)
    controller.start(model="far")
    controller.wait()
    assert controller.state.phase is Phase.READY
    assert loader.loaded == ["far"]
    controller.close()


@pytest.mark.parametrize("how", ["stop", "cancel"])
def test_loading_without_a_session_can_be_given_up(
    how: str, viewer: ViewerModel, loader: Loader
) -> None:
    controller = SegmentController(viewer, load_model=loader)
    controller.models.use("far", download=True)
    assert loader.half.wait(5)
    getattr(controller, how)()
    assert controller.state.phase is Phase.STOPPED
    loader.go_on.set()
    controller.wait()
    assert controller.state.model == ""
    assert loader.loaded == []
    controller.close()


# ------------------------------------------------------------------ the panel


class Panel:
    """The panel in a window, with one image."""

    def __init__(self, viewer: Any, widget: SegmentWidget, qtbot: Any) -> None:
        self.viewer, self.widget, self.qtbot = viewer, widget, qtbot
        self.controller, self.models = widget.controller, widget.model_box

    def wait(self, test: Callable[[], bool]) -> None:
        self.qtbot.waitUntil(test, timeout=TIMEOUT_MS)

    def idle(self) -> None:
        self.wait(lambda: not self.controller.state.is_busy)

    def start(self) -> None:
        self.widget.start_button.click()
        self.wait(lambda: self.controller.state.phase is Phase.READY)
        self.idle()

    def pick(self, key: str) -> None:
        index = self.models.findData(key)
        assert index >= 0, key
        self.models.setCurrentIndex(index)  # as a click in the list does
        self.models.activated.emit(index)

    def pick_file(self, path: Path) -> None:
        self.pick(CHOOSE_FILE)
        dialogs = self.models.findChildren(QFileDialog)
        [dialog] = [dialog for dialog in dialogs if dialog.isVisible()]
        dialog.findChild(QLineEdit, "fileNameEdit").setText(str(path))
        QTest.keyClick(dialog.findChild(QLineEdit, "fileNameEdit"), Qt.Key.Key_Return)
        self.wait(lambda: not self.models.findChildren(QFileDialog))


@pytest.fixture
def open_panel(
    make_napari_viewer: Any, qtbot: Any, pixels: NDArray[np.uint8]
) -> Iterator[Callable[..., Panel]]:
    panels: list[Panel] = []

    def make(load_model: Any, **options: Any) -> Panel:
        viewer = make_napari_viewer(show=True)
        viewer.add_image(pixels, rgb=True, name="scene")
        widget = SegmentWidget(viewer, load_model=load_model, **options)
        viewer.window.add_dock_widget(widget, name="Segment by clicking")
        panels.append(Panel(viewer, widget, qtbot))
        panels[-1].idle()
        return panels[-1]

    yield make
    for panel in panels:
        panel.controller.close()


@pytest.fixture
def panel(open_panel: Callable[..., Panel], loader: Loader) -> Panel:
    return open_panel(loader, find_models=lambda: list(KNOWN))


def test_a_download_begins_only_after_the_question(panel: Panel, loader: Loader) -> None:
    panel.start()
    question = panel.models.question
    panel.pick("far")
    assert question.isVisible()
    assert "example.org" in question.label.text()
    assert panel.models.currentText() == "hrsam-tiny"
    assert panel.controller.state.phase is Phase.READY, "napari and the session go on"
    QTest.mouseClick(question.decline_button, LEFT)
    assert not question.isVisible()
    panel.idle()
    assert loader.agreed == []
    panel.pick("far")
    QTest.mouseClick(question.agree_button, LEFT)
    assert not question.isVisible()
    panel.wait(lambda: panel.controller.state.progress is not None)
    bar: QProgressBar = panel.widget.progress_bar
    assert bar.value() / bar.maximum() == pytest.approx(0.25)
    assert panel.widget.message_label.text() == "Downloading: 10 MB of 40 MB"
    assert not panel.models.isEnabled()
    assert panel.models.currentText().startswith("far")
    loader.go_on.set()
    panel.wait(lambda: panel.controller.state.phase is Phase.READY)
    panel.idle()
    assert loader.agreed == ["far"]
    assert panel.controller.state.model == "far"
    assert panel.models.currentData() == "far"
    assert panel.models.isEnabled()


def test_cancelling_a_download_leaves_the_list_as_it_was(panel: Panel, loader: Loader) -> None:
    panel.start()
    panel.pick("far")
    QTest.mouseClick(panel.models.question.agree_button, LEFT)
    panel.wait(loader.half.is_set)
    QTest.mouseClick(panel.widget.abort_button, LEFT)
    assert panel.controller.state.phase is Phase.READY
    assert panel.models.currentText() == "hrsam-tiny"
    loader.go_on.set()
    panel.idle()
    assert panel.models.currentText() == "hrsam-tiny"
    assert panel.widget.progress_bar.maximum() == 1


def test_an_object_being_drawn_locks_the_list_and_says_why(panel: Panel, loader: Loader) -> None:
    panel.start()
    panel.pick("far")
    panel.controller.click(INSIDE)
    panel.idle()
    assert not panel.models.isEnabled()
    assert "Commit or cancel" in panel.models.toolTip()
    assert not panel.models.question.agree_button.isEnabled()
    panel.controller.cancel()
    panel.idle()
    assert panel.models.isEnabled()
    assert "Commit" not in panel.models.toolTip()
    assert panel.models.question.agree_button.isEnabled()
    panel.pick("other")
    assert not panel.models.question.isVisible()
    panel.wait(lambda: panel.controller.state.model == "other")
    panel.idle()
    assert loader.loaded == ["hrsam-tiny", "other"]
    panel.pick("other")
    assert panel.controller.state.phase is Phase.READY, "it is in use already"
    assert loader.loaded == ["hrsam-tiny", "other"]


def test_before_the_session_a_model_at_hand_is_loaded_by_start_only(
    panel: Panel, loader: Loader
) -> None:
    panel.pick("other")
    panel.idle()
    assert loader.loaded == []
    assert panel.models.currentText() == "other"
    panel.start()
    assert loader.loaded == ["other"]


def test_a_file_is_chosen_in_a_dialog_that_blocks_nothing(
    panel: Panel, loader: Loader, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr("napari_hrsam.plugin.panel.widget.show_error", notes.append)
    panel.start()
    bad, mine = tmp_path / "bad.pth", tmp_path / "mine.safetensors"
    bad.touch()
    mine.touch()
    loader.error = CheckpointError("bad.pth is no checkpoint")
    panel.pick_file(bad)
    panel.wait(lambda: panel.controller.state.is_error)
    panel.idle()
    assert notes == ["bad.pth is no checkpoint"]
    assert panel.models.currentText() == "hrsam-tiny"
    assert panel.models.findText("bad.pth") < 0
    loader.error = None
    panel.pick_file(mine)
    panel.wait(lambda: panel.controller.state.model == str(mine))
    panel.idle()
    assert panel.models.currentText() == "mine.safetensors"
    assert "mine.safetensors" in panel.widget.facts_label.text()
    assert str(tmp_path) not in panel.widget.facts_label.text()
    panel.pick("hrsam-tiny")
    panel.wait(lambda: panel.controller.state.model == "hrsam-tiny")
    panel.idle()
    panel.pick(str(mine))
    panel.wait(lambda: panel.controller.state.model == str(mine))
    panel.idle()
    assert loader.loaded == ["hrsam-tiny", "mine.safetensors", "hrsam-tiny", "mine.safetensors"]


def test_wrapped_lines_are_never_cut(qtbot: Any) -> None:
    label = WrappedLabel("one two three four five six seven eight nine ten")
    qtbot.addWidget(label)
    label.resize(2000, 10)
    label.show()
    one_line = label.minimumHeight()
    label.resize(80, 10)
    assert label.minimumHeight() >= label.heightForWidth(80) > 2 * one_line


# ------------------------------------------------------------------ a real download


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that a local server serves, with the weights of a model "far-tiny" in it."""
    folder, shipped = tmp_path / "site", tmp_path / "shipped"
    folder.mkdir()
    shipped.mkdir()
    config = replace(HRSAM_TINY, name="far-tiny")
    path = folder / "far.safetensors"
    save_weights(Segmenter(config), path)
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder)))
    entry = {
        "name": "far-tiny",
        "file": path.name,
        "url": f"http://127.0.0.1:{server.server_port}/{path.name}",
        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        "num_bytes": path.stat().st_size,
        "licence": "BSD-3-Clause",
        "channel_order": "rgb",
        "num_parameters": 0,
        "trained_on": "nothing",
    }
    (shipped / "registry.json").write_text(json.dumps({"weights": [entry]}))
    monkeypatch.setattr(
        registry, "shipped_folders", lambda before=registry.shipped_folders: [shipped, *before()]
    )
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setitem(MODELS, config.name, config)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder
    server.shutdown()
    server.server_close()
    thread.join(120)


def test_a_real_download_and_one_that_fails(
    open_panel: Callable[..., Panel], site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr("napari_hrsam.plugin.panel.widget.show_error", notes.append)
    panel = open_panel(load_named_model)
    panel.start()
    hidden = (site / "far.safetensors").rename(site / "moved")
    panel.pick("far-tiny")
    panel.models.question.agree_button.click()
    panel.wait(lambda: panel.controller.state.is_error)
    panel.idle()
    [note] = notes
    assert "far-tiny cannot be fetched" in note
    assert panel.controller.state.phase is Phase.READY
    assert panel.models.currentText() == "hrsam-tiny"
    panel.controller.click(INSIDE)
    panel.idle()
    assert panel.controller.state.num_prompts == 1
    panel.controller.cancel()
    panel.idle()
    hidden.rename(site / "far.safetensors")
    panel.pick("far-tiny")
    panel.models.question.agree_button.click()
    panel.wait(lambda: panel.controller.state.model == "far-tiny")
    panel.idle()
    assert panel.models.currentText() == "far-tiny", "no download any more"
    panel.controller.click(INSIDE)
    panel.idle()
    assert panel.controller.state.num_prompts == 1
    assert len(notes) == 1
