"""The comparison with other plugins: it has its rows, and what it names is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import napari_hrsam
from napari_hrsam.cli.main import build_parser

PAGE = Path(__file__).parents[1] / "docs" / "compared.md"
NUM_ROWS, NUM_OTHERS = 49, 8
ROWS = [
    [cell.strip() for cell in line.strip().strip("|").split("|")]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("|")
][2:]
NAMED = sorted({name for row in ROWS for name in re.findall(r"`([^`]+)`", row[1])})


def test_every_row_says_what_is_here_and_elsewhere() -> None:
    assert len(ROWS) == NUM_ROWS
    assert len({row[0] for row in ROWS}) == NUM_ROWS
    for row in ROWS:
        assert len(row) == 2 + NUM_OTHERS, row
        assert all(row), row
    answers = [row[1][0] for row in ROWS]
    assert answers.count("Y") + answers.count("~") + answers.count("-") >= NUM_ROWS - 2


@pytest.mark.parametrize("name", NAMED)
def test_what_is_named_is_there(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    command, *words = name.split()
    if command == "napari-hrsam":
        # Its help, and not another command's.
        with pytest.raises(SystemExit) as stop:
            build_parser().parse_args([*words, "--help"])
        assert stop.value.code == 0
        assert f"usage: {name}" in capsys.readouterr().out
        return
    found: Any = napari_hrsam
    for part in name.split("."):
        found = getattr(found, part)
    assert found.__doc__
