"""``napari-hrsam bench``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from napari_hrsam.bench import gigapixel
from napari_hrsam.bench.settings import Settings
from napari_hrsam.cli import main


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    """Settings that were asked for; the figures are made up."""
    settings: list[Settings] = []

    def measure(wanted: Settings, **_options: Any) -> list[dict[str, Any]]:
        settings.append(wanted)
        rows: list[dict[str, Any]] = []
        for size_px in wanted.sizes_px:
            rows.append({"size_px": size_px, "case": "shown", "peak_bytes": 500_000_000})
            rows.append({"size_px": size_px, "case": "annotated", "peak_bytes": 1_200_000_000})
            rows.append({"size_px": size_px, "case": "commits", "commit_500": {"median_s": 0.02}})
        if wanted.rounds == 1:
            rows.append({"size_px": wanted.sizes_px[0], "case": "clicks", "error": "it broke"})
        return rows

    monkeypatch.setattr(gigapixel, "measure_gigapixel", measure)
    return settings


def test_a_table_has_one_row_per_size(
    asked: list[Settings], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "gigapixel", "--sizes", "2000", "4000", "--warm", "7"]) == 0
    assert asked[0].sizes_px == (2000, 4000)
    assert asked[0].num_warm == 7
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert "commit 500 px ms" in head
    assert "cold s" not in head
    assert [row.split() for row in rows] == [
        ["2000", "1200", "700", "0.000", "20"],
        ["4000", "1200", "700", "0.000", "20"],
    ]


def test_figures_come_as_json(asked: list[Settings], tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    assert main(["bench", "gigapixel", "--sizes", "2000", "--json", str(target)]) == 0
    figures = json.loads(target.read_text())
    assert figures["command"] == "napari-hrsam bench gigapixel --sizes 2000"
    assert figures["settings"]["sizes_px"] == [2000]
    assert figures["summary"] == [
        {
            "size_px": 2000,
            "commit_500_ms": 20.0,
            "peak_mb": 1200.0,
            "above_mb": 700.0,
            "growth": 0.0,
        }
    ]
    assert len(figures["rows"]) == 3
    assert asked[0] == Settings(sizes_px=(2000,))


@pytest.mark.usefixtures("asked")
def test_a_case_that_failed_is_told_after_the_others(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["bench", "gigapixel", "--sizes", "2000", "--rounds", "1"]) == 1
    out, err = capsys.readouterr()
    assert "1200" in out
    assert "expected every case to be measured, got errors: clicks at 2000 px: it broke" in err


@pytest.mark.parametrize(
    ("arguments", "status", "told"),
    [
        ([], 2, "what"),
        (["terapixel"], 2, "invalid choice"),
        (["gigapixel", "--sizes", "0"], 2, "expected a whole number of 1 or more"),
        (["gigapixel", "--sizes", "500"], 1, "expected sizes of 1024 px or more"),
    ],
)
def test_misuse_is_told(
    arguments: list[str], status: int, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if status == 2:
        with pytest.raises(SystemExit) as stop:
            main(["bench", *arguments])
        assert stop.value.code == 2
    else:
        assert main(["bench", *arguments]) == status
    assert told in capsys.readouterr().err
