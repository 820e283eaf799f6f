"""`train-outline`: from pairs of files to weights of the outline refiner."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from napari_hrsam.cli import main
from napari_hrsam.cli.train_outline import _CROP_SETTINGS, _SETTINGS
from napari_hrsam.modeling.outline_refiner import load_outline_refiner


def test_every_setting_can_be_given() -> None:
    from napari_hrsam.training.outline import OutlineTrainConfig
    from napari_hrsam.training.outline_crops import OutlineCropConfig

    own = {"data", "exclude_sources", "validation", "out", "init", "crops", "device"}
    assert {f.name for f in dataclasses.fields(OutlineTrainConfig)} == own | set(_SETTINGS)
    assert {f.name for f in dataclasses.fields(OutlineCropConfig)} == set(_CROP_SETTINGS)


def test_what_is_given_is_set_and_the_rest_are_defaults(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from napari_hrsam.training.outline import OutlineTrainConfig

    given = ["--data", "a", "b", "--out", "o", "--exclude-source", "c", "--grey", "0.5"]
    assert main(["train-outline", *given, "--steps", "7", "--print-config"]) == 0
    config = json.loads(capsys.readouterr().out)
    assert (config["data"], config["exclude_sources"]) == (["a", "b"], ["c"])
    assert (config["steps"], config["crops"]["grey"]) == (7, 0.5)
    assert config["learning_rate"] == OutlineTrainConfig().learning_rate


def test_settings_out_of_range_fail_with_their_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train-outline", "--data", "a", "--out", "o", "--crop-px", "65"]) == 1
    assert "multiple of 4" in capsys.readouterr().err


def test_training_writes_weights_and_resumes(
    pairs_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["train-outline", "--data", str(pairs_folder), "--out", str(tmp_path / "run")]
    start += ["--crop-px", "32", "--batch-size", "2", "--device", "cpu"]
    assert main([*start, "--steps", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["last_step"]["crops"] == 2
    load_outline_refiner(path=Path(figures["weights"]))
    assert main([*start, "--steps", "1"]) == 1
    assert "resume" in capsys.readouterr().err
    assert main([*start, "--steps", "2", "--resume"]) == 0
    out, err = capsys.readouterr()
    assert "outline.safetensors" in out
    assert err == ""
