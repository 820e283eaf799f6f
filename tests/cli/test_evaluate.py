"""`evaluate`: one table for a model and the classical baselines."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from napari_hrsam.cli import main
from napari_hrsam.cli.evaluate import _BASELINES, _table
from napari_hrsam.training.baselines import BASELINES

KEYS = {"noc80", "noc85", "noc90", "iou1", "iou3", "iou5", "iou10", "drops", "num_objects"}


def test_every_baseline_can_be_named() -> None:
    assert set(_BASELINES) == set(BASELINES)


def test_json_of_a_baseline_has_its_scores_per_domain(
    pairs_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--data", str(pairs_folder), "--clicks", "3", "--json"]
    assert main([*arguments, "--baseline", "random-walker"]) == 0
    out, err = capsys.readouterr()
    scores = json.loads(out)
    assert scores["model"] == "random-walker"
    assert set(scores["overall"]) == KEYS
    assert set(scores["domains"]) == {"pairs"}
    assert set(scores["domains"]["pairs"]) == KEYS
    assert scores["overall"]["num_objects"] == 2
    assert scores["overall"]["iou3"] > 0.8
    assert scores["overall"]["iou10"] is None
    assert "2/2" in err


def test_table_shows_model_and_baselines_side_by_side(
    pairs_folder: Path, untrained_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--data", str(pairs_folder), "--clicks", "2", "--max-objects", "1"]
    contestants = ["--model", str(untrained_weights), "--baseline", "random-walker"]
    assert main([*arguments, *contestants, "--baseline", "grabcut"]) == 0
    head, _, *rows = capsys.readouterr().out.splitlines()
    assert head.split()[:3] == ["model", "domain", "noc80"]
    names = ["hrsam-tiny", "random-walker", "grabcut"]
    assert [row.split()[:2] for row in rows[:3]] == [[name, "pairs"] for name in names]
    assert [row.split()[0] for row in rows[-3:]] == names
    assert all(row.split()[-1] == "1" for row in rows)


def test_json_of_model_and_baselines_puts_the_model_first(
    pairs_folder: Path, untrained_weights: Path, tmp_path: Path
) -> None:
    target = tmp_path / "scores.json"
    arguments = ["evaluate", "--data", str(pairs_folder), "--clicks", "1", "--json", str(target)]
    contestants = [
        "--model",
        str(untrained_weights),
        "--baseline",
        "random-walker",
        "--no-click-correction",
    ]
    assert main([*arguments, *contestants, "--view", "image"]) == 0
    scores = json.loads(target.read_text())
    assert scores["model"] == "hrsam-tiny"
    assert scores["view"] == "image"
    assert [other["model"] for other in scores["baselines"]] == ["random-walker"]


def test_folder_without_samples_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    assert main(["evaluate", "--data", str(tmp_path / "empty"), "--baseline", "grabcut"]) == 1
    assert str(tmp_path / "empty") in capsys.readouterr().err


def test_score_that_was_not_measured_is_a_dash() -> None:
    row = dict.fromkeys(KEYS, 0.5) | {"iou10": None, "num_objects": 3}
    shown = _table([{"model": "m", "domains": {"d": row}, "mean_of_domains": row, "overall": row}])
    cells = shown.splitlines()[2].split()
    assert cells == ["m", "d", "0.50", "0.50", "0.50", "0.500", "0.500", "0.500", "-", "0.500", "3"]
