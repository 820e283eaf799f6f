"""The demonstration without a display, and how it finds out that there is none."""

from __future__ import annotations

import json
import socket
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from napari_hrsam import demo
from napari_hrsam.cli import main
from napari_hrsam.errors import MissingExtraError
from napari_hrsam.storage.image_files import read_picture


def test_recording_is_made_on_a_photograph_and_a_micrograph_of_the_wheel() -> None:
    from skimage import data

    scenes = demo.load_scenes()
    assert [scene.image for scene in scenes] == ["coins", "immunohistochemistry"]
    folder = Path(data.__file__).parent
    assert (folder / "coins.png").is_file()
    assert (folder / "ihc.png").is_file()


@pytest.mark.parametrize("scene", demo.load_scenes(), ids=lambda scene: scene.image)
def test_recorded_clicks_lie_in_the_image_and_end_with_a_commit(scene: demo.Scene) -> None:
    height, width = scene.pixels().shape[:2]
    points = [action.point_yx for action in scene.actions if action.point_yx is not None]
    assert all(0 <= y < height and 0 <= x < width for y, x in points)
    assert scene.actions[-1].point_yx is None
    assert scene.actions[0].positive
    assert scene.actions[0].point_yx is not None


def test_replay_writes_overlays_masks_and_the_time_of_every_step(
    untrained_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(demo, "missing_display", partial(demo.missing_display, platform="linux"))
    out = tmp_path / "out"
    assert main(["demo", "--model", str(untrained_weights), "--out", str(out)]) == 0
    table, told = capsys.readouterr()
    assert "No display: neither DISPLAY nor WAYLAND_DISPLAY is set" in told
    assert str(out / "coins_overlay.png") in told
    num_actions = sum(len(scene.actions) for scene in demo.load_scenes())
    assert len(table.splitlines()) == 1 + num_actions
    for scene in demo.load_scenes():
        image = scene.pixels()
        overlay, masks = (
            read_picture(out / f"{scene.image}_{what}.png") for what in ("overlay", "masks")
        )
        shown = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
        assert overlay.shape == shown.shape
        assert (overlay != shown).any()
        assert set(np.unique(masks)) == set(range(1 + commits(scene)))


def commits(scene: demo.Scene) -> int:
    return sum(action.point_yx is None for action in scene.actions)


def test_replay_as_json_has_the_seconds_of_encoder_and_decoder(
    untrained_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_hrsam.engine.object_predictor.MAX_LOOKS", 1)
    arguments = ["demo", "--headless", "--model", str(untrained_weights), "--out", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    clicks = [step for step in figures["steps"] if "click" in step["action"]]
    assert all(click["decode_s"] > 0 for click in clicks)
    assert clicks[0]["encode_s"] > 0
    assert clicks[1]["encode_s"] == 0, "the second object lies in the same tile"
    assert all(Path(path).is_file() for path in figures["files"])


def test_window_is_opened_where_there_is_a_display(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[bool] = []
    monkeypatch.setattr(demo, "missing_display", lambda: "")
    monkeypatch.setattr(demo, "open_window", lambda: opened.append(True))
    assert main(["demo"]) == 0
    assert opened == [True]


@pytest.mark.parametrize("module", ["napari", "qtpy.QtWidgets"])
def test_missing_napari_or_qt_is_told_with_the_command_that_installs_it(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "napari-hrsam\[all\]"'):
        demo.open_window()


@pytest.mark.parametrize(
    ("environ", "platform", "reason"),
    [
        ({}, "linux", "neither DISPLAY nor WAYLAND_DISPLAY"),
        ({"DISPLAY": ":4321"}, "linux", "no X server answers at DISPLAY=:4321"),
        ({"DISPLAY": "unix:4321.0"}, "linux", "no X server answers"),
        ({"WAYLAND_DISPLAY": "wayland-none", "XDG_RUNTIME_DIR": "/nowhere"}, "linux", "DISPLAY"),
        ({"DISPLAY": ":0", "QT_QPA_PLATFORM": "offscreen"}, "darwin", "QT_QPA_PLATFORM=offscreen"),
    ],
)
def test_missing_display_is_noticed_with_its_reason(
    environ: dict[str, str], platform: str, reason: str
) -> None:
    assert reason in demo.missing_display(environ, platform)


@pytest.mark.parametrize(
    ("environ", "platform"),
    [({}, "darwin"), ({}, "win32"), ({"DISPLAY": "localhost:10.0"}, "linux")],
)
def test_display_is_taken_where_it_cannot_be_asked(environ: dict[str, str], platform: str) -> None:
    assert demo.missing_display(environ, platform) == ""


def test_wayland_socket_is_a_display(tmp_path: Path) -> None:
    (tmp_path / "wayland-7").touch()
    environ = {"WAYLAND_DISPLAY": "wayland-7", "XDG_RUNTIME_DIR": str(tmp_path)}
    assert demo.missing_display(environ, "linux") == ""


def test_answering_x_server_is_a_display() -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind("\0/tmp/.X11-unix/X4322")
        server.listen()
        assert demo.missing_display({"DISPLAY": ":4322.0"}, "linux") == ""
