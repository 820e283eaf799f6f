"""Tables, JSON and progress."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest

from napari_hrsam.cli.options import positive_int, put_json, show_progress, table


def test_table_puts_names_left_and_numbers_right() -> None:
    assert table(["model", "IoU", "why"], [["a", "0.5", "x y"], ["long-name", "10.25", "-"]]) == (
        "model        IoU  why\n---------  -----  ---\na            0.5  x y\nlong-name  10.25  -"
    )


def test_table_without_rows_is_its_head() -> None:
    assert table(["model"], []) == "model\n-----"


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "x", ""])
def test_number_below_one_is_refused(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="1 or more"):
        positive_int(text)


def test_json_without_a_number_is_not_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="JSON"):
        put_json(tmp_path / "scores.json", {"iou": float("nan")})
    assert not (tmp_path / "scores.json").exists()


def test_progress_on_a_file_is_told_ten_times(capsys: pytest.CaptureFixture[str]) -> None:
    for done in range(1, 101):
        show_progress(done, 100)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.split() == [f"{done}/100" for done in range(10, 101, 10)]


def test_progress_on_a_terminal_stays_on_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    for done in range(1, 4):
        show_progress(done, 3)
    assert capsys.readouterr().err == "\r1/3\r2/3\r3/3\n"
