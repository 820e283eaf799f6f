"""Exit statuses, help, and how errors are told."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest

import napari_hrsam
from napari_hrsam.cli import main

COMMANDS = (
    "demo",
    "segment",
    "embed",
    "labels",
    "sample",
    "evaluate",
    "train",
    "convert",
    "bench",
    "models",
    "info",
)


@pytest.fixture(autouse=True)
def _restore_logging() -> None:
    """`--debug` sets the root logger's level."""
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_has_an_example(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"example:\n  napari-hrsam {command}" in shown
    assert "--json" in shown


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    shown = capsys.readouterr().out
    assert all(re.search(rf"^    {command}\s", shown, re.MULTILINE) for command in COMMANDS)


def test_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"napari-hrsam {napari_hrsam.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["no-such-command"],
        ["segment"],
        ["segment", "a.png"],
        ["segment", "a.png", "--point", "12"],
        ["segment", "a.png", "--point", "12,x"],
        ["segment", "a.png", "--point", "12,13,2"],
        ["segment", "a.png", "--box", "1,2,3"],
        ["segment", "a.png", "b/a.tif", "--point", "1,1"],
        ["segment", "--json", "a.png", "--point", "1,1"],
        ["segment", "a.png", "--point", "1,1", "--format", "gif"],
        ["evaluate"],
        ["evaluate", "--data", "x", "--clicks", "0"],
        ["evaluate", "--data", "x", "--view", "sideways"],
        ["evaluate", "--data", "x", "--baseline", "guessing"],
        ["train", "--out", "x"],
        ["train", "--data", "x"],
        ["train", "--data", "x", "--out", "y", "--steps", "many"],
        ["convert"],
        ["convert", "a.pth", "--channel-order", "grb"],
        ["convert", "a.pth", "--dtype", "int8"],
        ["info", "extra"],
        ["models", "--json", "models.txt"],
    ],
)
def test_misuse_exits_with_2_and_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert "usage: napari-hrsam" in capsys.readouterr().err


def test_json_target_that_is_no_json_file_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["info", "--json", "photo.png"])
    assert "ends in .json" in capsys.readouterr().err


def test_failure_is_one_line_on_stderr_and_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["segment", str(tmp_path / "none.png"), "--point", "1,1"]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("napari-hrsam: expected an image file, but there is none at ")
    assert err.count("\n") == 1


def test_debug_keeps_the_traceback(tmp_path: Path) -> None:
    with pytest.raises(napari_hrsam.HRSAMError):
        main(["segment", str(tmp_path / "none.png"), "--point", "1,1", "--debug"])


def test_interruption_is_told_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("napari_hrsam.modeling.registry.list_models", interrupt)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "napari-hrsam: interrupted\n"


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        pytest.param(["info", "--json"], 0, marks=pytest.mark.torch),
        pytest.param(["evaluate", "--data", "nowhere"], 1, marks=pytest.mark.torch),
        (["segment"], 2),
    ],
)
def test_the_installed_program_exits_with_the_status(
    arguments: list[str], status: int, tmp_path: Path
) -> None:
    program = Path(sys.executable).with_name("napari-hrsam")
    done = subprocess.run(
        [program, *arguments], check=False, capture_output=True, text=True, cwd=tmp_path
    )
    assert done.returncode == status, done.stderr
    assert "Traceback" not in done.stderr
