"""Fine-tuning: before and after, what is kept, and what is refused."""

from __future__ import annotations

import json
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import napari_hrsam as hrsam
from napari_hrsam.cache import models_folder
from napari_hrsam.errors import ConfigError, DataError
from napari_hrsam.modeling.kept_model import kept_model
from napari_hrsam.modeling.models import MODELS
from napari_hrsam.training import fine_tune as module
from napari_hrsam.training.fine_tune import fine_tune, fine_tune_on
from napari_hrsam.training.settings import FineTuneConfig, fine_tune_run
from napari_hrsam.training.train import Trainer

QUICK = FineTuneConfig(minutes=0, steps=2, learning_rate=0.02, num_scored=1, num_clicks=1)


@pytest.fixture
def objects() -> tuple[hrsam.ArrayLabels, Any]:
    """Eight squares, and the image that they are on."""
    array = np.zeros((128, 256), np.int64)
    for n in range(8):
        y, x = divmod(n, 4)
        array[y * 64 + 10 : y * 64 + 40, x * 64 + 8 : x * 64 + 40] = n + 1
    return hrsam.ArrayLabels(array), np.where(array > 0, 200, 50).astype(np.uint8)


def test_a_model_of_ones_own_is_made_listed_and_loaded(
    objects: tuple[hrsam.ArrayLabels, Any], untrained_weights: Path, tmp_path: Path
) -> None:
    told: list[tuple[str, int, int]] = []
    start = str(untrained_weights)
    done = fine_tune(
        *objects,
        start,
        save_as="mine",
        config=QUICK,
        device="cpu",
        out=tmp_path / "run",
        progress=lambda *step: told.append(step),
    )
    assert (done.num_objects, done.num_held_out, done.num_steps) == (6, 1, 2)
    assert list(dict.fromkeys(part for part, *_ in told)) == [
        "regions",
        "before",
        "training",
        "after",
    ]
    assert told[-1] == ("after", 1, 1)
    assert ("training", 1000, 1000) in told
    assert done.path == models_folder() / "mine.safetensors"
    assert hrsam.list_models()[-1].name == "mine"
    # Prompt encoder and decoder have learned; nothing else has changed.
    before, after = load_file(untrained_weights), load_file(done.path)
    changed = {name.partition(".")[0] for name in before if (before[name] != after[name]).any()}
    assert changed == {"prompt_encoder", "mask_decoder"}
    assert after["mask_decoder.fine.deep8.conv1.weight"].dtype == torch.float16
    with safe_open(done.path, "pt") as stored:
        about = stored.metadata()
    facts = json.loads(about["fine_tuned"])
    assert (about["model"], about["base_model"]) == ("hrsam-tiny", "hrsam-tiny")
    assert (facts["objects"], facts["held_out"]) == (6, 1)
    assert facts["after"]["noc85"] == done.after.noc85
    loaded = hrsam.load_model("mine", device="cpu")
    assert (loaded.name, loaded.config.name) == ("mine", "hrsam-tiny")
    assert kept_model("mine") is kept_model("mine")
    with hrsam.Session(loaded, objects[1], hrsam.ArrayLabels((128, 256))) as session:
        assert session.model_name == "mine", "commits tell who drew them"
    with pytest.raises(hrsam.HRSAMError, match="yours are mine"):
        hrsam.load_model("my-cells")
    # One of one's own can be taught on, also from the samples that were kept.
    again = fine_tune_on(tmp_path / "run", "mine", save_as="more", config=QUICK, device="cpu")
    assert again.base == "mine"
    with pytest.raises(ConfigError, match="a model 'mine' already"):
        fine_tune(*objects, start, save_as="mine", config=QUICK)


def test_what_ends_the_work_leaves_no_model(
    objects: tuple[hrsam.ArrayLabels, Any], untrained_weights: Path
) -> None:
    def interrupt(part: str, done: int, _total: int) -> None:
        if part == "training" and done:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fine_tune(
            *objects,
            str(untrained_weights),
            save_as="mine",
            config=QUICK,
            device="cpu",
            progress=interrupt,
        )
    assert not models_folder().exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("hrsam-tiny+focus", "without a focus refiner, .* fine-tune the model before the"),
        ("sam-b", "one of our own small models, .* got 'sam-b'"),
    ],
)
def test_models_that_are_not_taught_here(
    objects: tuple[hrsam.ArrayLabels, Any],
    monkeypatch: pytest.MonkeyPatch,
    model: str,
    message: str,
) -> None:
    loaded = SimpleNamespace(config=MODELS[model])
    monkeypatch.setattr(module, "load_model", lambda *_, **__: loaded)
    with pytest.raises(ConfigError, match=message):
        fine_tune(*objects, model, save_as="mine")


def test_a_full_disk_is_told(
    untrained_weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    loaded = hrsam.load_model(untrained_weights, device="cpu")
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(module.shutil, "disk_usage", lambda _: usage(1, 1, 10**6))
    with pytest.raises(DataError, match="MB of room for the training in .*, got 1 MB"):
        module._require_room(tmp_path / "run", loaded)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "save_weights", full)
    score = hrsam.ClickScore(noc85=1.0, iou1=1.0)
    done = hrsam.FineTuned(
        name="mine",
        path=models_folder() / "mine.safetensors",
        base="hrsam-tiny",
        num_objects=3,
        num_regions=1,
        num_held_out=1,
        before=score,
        after=score,
        num_steps=1,
        seconds=1.0,
    )
    with pytest.raises(DataError, match="to write the model to .*No space left.*free some space"):
        module._save(loaded, done, "2026-01-01")


def test_settings_out_of_range() -> None:
    for wrong, message in (
        ({"minutes": 0}, "minutes or steps above 0"),
        ({"minutes": -1}, "minutes or steps above 0"),
        ({"num_scored": 0}, "num_scored and num_clicks"),
        ({"learning_rate": 0}, "learning_rate must be above 0"),
    ):
        with pytest.raises(ConfigError, match=message):
            FineTuneConfig(**wrong)
    places = {"model": "hrsam-tiny", "start": "s", "data": "d", "out": "o", "device": "cpu"}
    run = fine_tune_run(FineTuneConfig(whole=True), **places)
    assert (run.stage, run.clicks.dense_weight, run.minutes) == ("clicks", 0.0, 5.0)


def test_a_training_ends_with_its_time(
    pairs: Path, untrained_weights: Path, tmp_path: Path
) -> None:
    config = fine_tune_run(
        QUICK,
        model="hrsam-tiny",
        start=str(untrained_weights),
        data=str(pairs),
        out=str(tmp_path),
        device="cpu",
    )
    trainer = Trainer(replace(config, minutes=1e-9, steps=100))
    assert [report.step for report in trainer.run()] == [1]
    assert trainer._done() == 1.0, "its schedule too"
    assert trainer._learning_rate() < config.learning_rate
