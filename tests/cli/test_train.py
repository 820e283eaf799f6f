"""`train`: from pairs of files to a weight file that `segment` takes."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from napari_hrsam.cli import main
from napari_hrsam.cli.train import (
    _CLICK_SETTINGS,
    _CROP_SETTINGS,
    _DISTILL_SETTINGS,
    _FOCUS_SETTINGS,
    _SETTINGS,
    _SIZE_SETTINGS,
)

SMALL = ["--crop-px", "64", "--batch-size", "2", "--max-clicks", "2", "--device", "cpu"]


def printed_config(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["train", "--print-config", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_setting_can_be_given() -> None:
    from napari_hrsam.training.batches import CropConfig, CropSize
    from napari_hrsam.training.click_rounds import ClickConfig
    from napari_hrsam.training.distill import DistillConfig
    from napari_hrsam.training.focus_rounds import FocusTaskConfig
    from napari_hrsam.training.train_config import TrainConfig

    def names(config: type) -> set[str]:
        return {field.name for field in dataclasses.fields(config)}

    own = {"model", "data", "exclude_sources", "out", "init", "init_partly", "device", "validation"}
    parts = {"crops", "clicks", "focus", "distill"}
    assert names(TrainConfig) == own | parts | set(_SETTINGS)
    # Tables of sizes and factors are given in a file.
    tables = {"sizes", "wide_span", "domain_factors"}
    assert names(CropConfig) == {"span"} | tables | set(_CROP_SETTINGS)
    assert names(CropSize) == {"share", "late_share"} | set(_SIZE_SETTINGS)
    assert names(ClickConfig) == set(_CLICK_SETTINGS)
    assert names(FocusTaskConfig) == set(_FOCUS_SETTINGS)
    assert names(DistillConfig) == set(_DISTILL_SETTINGS)


def test_the_committed_recipe_is_read_whole(capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "recipes" / "hrsam-tiny.json"
    recipe = json.loads(path.read_text())
    config = printed_config(["--config", str(path), "--data", "a", "--out", "o"], capsys)
    for name, value in recipe.items():
        if isinstance(value, dict):
            assert {k: config[name][k] for k in value} == value, name
        else:
            assert config[name] == value, name


def test_settings_not_given_are_those_of_the_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
    from napari_hrsam.training.train_config import TrainConfig

    config = printed_config(["--data", "a", "b", "--data", "c", "--out", "o"], capsys)
    assert config["data"] == ["a", "b", "c"]
    assert config["steps"] == TrainConfig().steps
    assert config["crops"]["span"] == list(TrainConfig().crops.span)


def test_a_teacher_makes_it_a_distillation(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = printed_config(["--data", "a", "--out", "o", "--teacher", "t.pth"], capsys)
    assert (config["stage"], config["distill"]["teacher"]) == ("distill", "t.pth")
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(config))
    again = printed_config(["--config", str(saved), "--out", "p", "--num-batches", "3"], capsys)
    assert again["distill"] == {"teacher": "t.pth", "num_batches": 3, "teacher_px": 0}


def test_command_line_overrides_a_saved_configuration(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = printed_config(
        ["--data", "a", "--out", "o", "--steps", "7", "--grey", "0.5", "--seed", "3"], capsys
    )
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps(config))
    again = printed_config(
        ["--config", str(saved), "--out", "p", "--seed", "4", "--span", "0.1", "0.2"], capsys
    )
    assert again["steps"] == 7
    assert again["crops"]["grey"] == 0.5
    assert (again["seed"], again["out"], again["crops"]["span"]) == (4, "p", [0.1, 0.2])


@pytest.mark.parametrize("text", ["not json", "[1]", '{"data": ["a"], "colour": "red"}'])
def test_broken_configuration_is_named(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = tmp_path / "config.json"
    saved.write_text(text)
    assert main(["train", "--config", str(saved), "--out", "o"]) == 1
    assert str(saved) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "0"], "steps"),
        (["--schedule", "square"], "schedule"),
        (["--crop-px", "100"], "multiple of 16"),
        (["--model", "no-model"], "no-model"),
        (["--data", "nowhere"], "nowhere"),
        (["--stage", "sleep"], "stage must be one of"),
        (["--stage", "focus"], "hrsam-tiny+focus"),
        (["--teacher", "x", "--stage", "clicks"], "belong together"),
    ],
)
def test_setting_out_of_range_fails_with_its_reason(
    arguments: list[str],
    message: str,
    pairs_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = ["train", "--data", str(pairs_folder), "--out", str(tmp_path / "run")]
    assert main([*start, *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.slow
def test_distillation_then_clicks_then_a_mask(
    pairs_folder: Path, disc_png: Path, untrained_weights: Path, tmp_path: Path
) -> None:
    start = ["train", "--data", str(pairs_folder), "--model", "sam-tiny", *SMALL, "--steps", "2"]
    distilled, tuned = tmp_path / "distilled", tmp_path / "tuned"
    teach = ["--teacher", str(untrained_weights), "--num-batches", "2"]
    assert main([*start, "--out", str(distilled), *teach]) == 0
    init = str(distilled / "sam-tiny.safetensors")
    assert main([*start, "--out", str(tuned), "--init", init]) == 0
    with (tuned / "log.csv").open() as stream:
        assert all(row["iou_first"] for row in csv.DictReader(stream))
    weights = str(tuned / "sam-tiny.safetensors")
    segment = ["segment", str(disc_png), "--point", "50,60", "--model", weights]
    assert main([*segment, "--out", str(tmp_path)]) == 0
    assert (tmp_path / "disc_mask.png").is_file()


@pytest.mark.slow
def test_training_writes_weights_resumes_and_segments(
    pairs_folder: Path, disc_png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    start = ["train", "--data", str(pairs_folder), "--out", str(out), *SMALL]
    assert main([*start, "--steps", "2", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["last_step"]["step"] == 2
    assert main([*start, "--steps", "2"]) == 1
    assert "resume" in capsys.readouterr().err
    assert main(["train", "--out", str(out), "--resume", "--steps", "3", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["last_step"]["step"] == 3
    assert len((out / "log.csv").read_text().splitlines()) == 4
    weights = figures["weights"]
    assert (
        main(
            [
                "segment",
                str(disc_png),
                "--point",
                "50,60",
                "--model",
                weights,
                "--out",
                str(tmp_path),
            ]
        )
        == 0
    )
    assert (tmp_path / "disc_mask.png").is_file()
