"""`train`: from pairs of files to a weight file that `segment` takes."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest

from napari_hrsam.cli import main
from napari_hrsam.modeling.outline_refiner import load_outline_refiner
from napari_hrsam.training.settings import TrainConfig

SMALL = ["--crop-px", "64", "--batch-size", "2", "--max-clicks", "2", "--device", "cpu"]


def printed_config(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> dict:
    assert main(["train", "--print-config", *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_setting_but_tables_can_be_given_and_says_what_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    text = " ".join(capsys.readouterr().out.split())
    tables = {"sizes", "domain_factors"}
    for field in dataclasses.fields(TrainConfig):
        kind = field.default_factory
        parts = dataclasses.fields(kind) if dataclasses.is_dataclass(kind) else [field]
        prefix = "outline-" if field.name == "outline" else ""
        for part in parts:
            flag = "--" + prefix + part.name.replace("_", "-").replace("sources", "source")
            assert (flag in text) == (part.name not in tables), flag
    assert "Peak of AdamW's learning rate." in text
    assert "--stage clicks|decoder|focus|distill|outline" in text


@pytest.mark.parametrize("name", ["hrsam-tiny", "outline"])
def test_a_committed_recipe_is_read_whole(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "recipes" / f"{name}.json"
    recipe = json.loads(path.read_text())
    config = printed_config(["--config", str(path), "--data", "a", "--out", "o"], capsys)
    for setting, value in recipe.items():
        if isinstance(value, dict):
            assert {k: config[setting][k] for k in value} == value, setting
        else:
            assert config[setting] == value, setting


def test_settings_not_given_are_those_of_the_configuration(
    capsys: pytest.CaptureFixture[str],
) -> None:
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
        (["--precision", "float8"], "precision must be one of"),
        (["--stage", "outline", "--outline-crop-px", "65"], "multiple of 4"),
        (["--stage", "outline", "--model", "hrsam-tiny"], "belong together"),
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


def test_the_outline_refiner_is_trained_and_resumed(
    pairs_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = ["train", "--stage", "outline", "--data", str(pairs_folder)]
    start += ["--out", str(tmp_path / "run"), "--device", "cpu"]
    start += ["--outline-crop-px", "32", "--outline-batch-size", "2"]
    assert main([*start, "--steps", "1", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["last_step"]["crops"] == 2
    load_outline_refiner(path=Path(figures["weights"]))
    assert main([*start, "--steps", "2", "--resume"]) == 0
    assert "outline.safetensors" in capsys.readouterr().out
