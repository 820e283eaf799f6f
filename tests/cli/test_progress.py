"""Progress on stderr, in place on a terminal."""

from __future__ import annotations

import sys

import pytest

from napari_hrsam.cli.progress import Progress, _duration


def test_the_rest_is_estimated_from_what_was_done(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = [100.0]
    monkeypatch.setattr("napari_hrsam.cli.progress.time.monotonic", lambda: now[0])
    progress = Progress("tiles")
    progress(40, 100)
    now[0] += 1
    progress(41, 100)
    now[0] += 11
    progress(52, 100)
    now[0] += 48
    progress(100, 100)
    assert capsys.readouterr().err.splitlines() == [
        "40/100 tiles, 40 of them at hand",
        "52/100 tiles, 48 s left",
        "100/100 tiles, 40 of them at hand",
    ]
    assert (progress.done, progress.total) == (100, 100)


def test_on_a_terminal_the_line_is_rewritten(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    progress = Progress("tiles")
    progress(0, 2)
    progress(2, 2)
    progress.end()
    told = capsys.readouterr().err
    assert told.startswith("\r0/2 tiles ")
    assert told.endswith("\n\n")
    assert told.count("\r") == 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.6, "1 min 0 s"), (61, "1 min 1 s"), (7260, "2 h 1 min")]
)
def test_durations_are_plain(seconds: float, text: str) -> None:
    assert _duration(seconds) == text
