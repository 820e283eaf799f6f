"""Training runs: learns, is reproducible, goes on where it stopped."""

from __future__ import annotations

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from napari_hrsam.errors import CheckpointError, ConfigError, DataError
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.efficientnet import EfficientNetLite0
from napari_hrsam.modeling.models import MODELS
from napari_hrsam.modeling.saving import save_weights
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.settings import ClickConfig, CropConfig, CropSize, TrainConfig
from napari_hrsam.training.train import Trainer, train
from napari_hrsam.training.validation import ClickScores, Validation

CROPS = CropConfig(sizes=(CropSize(crop_px=64, batch_size=2, objects_per_crop=2),))
CLICKS = ClickConfig(max_clicks=3)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:128, :128]
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for i in range(3):
        labels = np.zeros((128, 128), np.uint8)
        for k, (cy, cx) in enumerate(((30, 30), (90, 40), (60, 95))):
            labels[(y - cy) ** 2 + (x - cx) ** 2 < (12 + 3 * i) ** 2] = k + 1
        image = np.where(labels > 0, 200, 60) + rng.normal(0, 8, labels.shape)
        Image.fromarray(image.astype(np.uint8)).save(folder / "images" / f"{i}.png")
        Image.fromarray(labels).save(folder / "masks" / f"{i}.png")
    return folder


@pytest.fixture
def config(data: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        data=(str(data),), out=str(tmp_path / "run"), crops=CROPS, clicks=CLICKS, steps=4, warmup=1
    )


def _log(config: TrainConfig) -> list[dict[str, str]]:
    with (Path(config.out) / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    for row in rows:
        del row["seconds"]
    return rows


def test_a_run_writes_log_config_and_weights_that_load(config):
    path = train(config)
    assert load_model(path, device="cpu").name == "hrsam-tiny"
    with safe_open(path, framework="pt") as tensors:
        assert tensors.metadata()["trained_on"].startswith("3 images (")
        assert "; 4 steps, 8 crops, " in tensors.metadata()["trained_on"]
    rows = _log(config)
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4]
    assert int(rows[-1]["crops"]) == 8
    assert all(np.isfinite(float(r["loss"])) for r in rows)
    assert (Path(config.out) / "config.json").exists()


def test_the_same_seed_gives_the_same_run_and_another_seed_does_not(config, tmp_path):
    runs = []
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        this = replace(config, out=str(tmp_path / name), seed=seed, steps=2)
        train(this)
        runs.append(_log(this))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]


def test_a_resumed_run_equals_one_that_was_not_interrupted(config, tmp_path):
    whole = replace(config, out=str(tmp_path / "whole"))
    train(whole)
    trainer = Trainer(config)
    for report in trainer.run():
        if report.step == 2:
            break
    folder = Path(config.out)
    folder.mkdir(parents=True)
    trainer.save(folder / "state.pt")
    train(config, resume=True)
    assert _log(config) == _log(whole)[2:]


def test_a_run_leaves_the_arithmetic_of_the_process_as_it_was(config):
    train(replace(config, steps=1))
    assert np.float32(1e-40) * np.float32(0.5) > 0


def test_training_lowers_the_loss(config):
    once = ClickConfig(max_clicks=1, box_share=0.0, dense_weight=0.0)
    small = replace(config.crops, span=(0.3, 0.3), wide_share=0.0, polarity=0.0)
    trainer = Trainer(
        replace(config, steps=50, learning_rate=2e-3, warmup=5, clicks=once, crops=small)
    )
    losses = [report.loss for report in trainer.run()]
    assert np.mean(losses[-8:]) < 0.9 * np.mean(losses[:8])


def test_a_folder_with_a_run_is_not_overwritten(config):
    train(replace(config, steps=1))
    with pytest.raises(CheckpointError, match="already holds a training run; resume it"):
        train(config)


def test_there_must_be_something_to_resume(config):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(config, resume=True)


def test_missing_data_is_named(config):
    with pytest.raises(DataError, match="no-such-folder"):
        train(replace(config, data=("no-such-folder",)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "hrsam-huge"}, "model must be one of"),
        ({"steps": 0}, "steps and validation_objects"),
        ({"hold": 2}, "hold must lie in 0..1"),
        ({"ema_decay": 1.5}, "ema_decay must lie in 0..1"),
        ({"schedule": "step"}, "schedule must be"),
    ],
)
def test_configs_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(TrainConfig(), **change)


def test_the_learning_rate_warms_up_and_decays(config):
    trainer = Trainer(replace(config, steps=100, warmup=10, learning_rate=1.0))
    rates = []
    for trainer.step in range(100):
        rates.append(trainer._learning_rate())
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == pytest.approx(1.0)
    assert rates[:10] == sorted(rates[:10])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] < 0.01
    trainer.config = replace(trainer.config, schedule="linear")
    trainer.step = 55
    assert trainer._learning_rate() == pytest.approx(0.5)


def test_the_full_rate_can_be_held(config):
    trainer = Trainer(replace(config, steps=100, warmup=10, learning_rate=1.0, hold=0.5))
    rates = []
    for trainer.step in range(100):
        rates.append(trainer._learning_rate())
    assert rates[10:50] == [1.0] * 40
    assert rates[50:] == sorted(rates[50:], reverse=True)
    assert rates[-1] < 0.01


def test_the_pretrained_stem_learns_from_its_time_on(config, tmp_path):
    start = tmp_path / "start.safetensors"
    save_weights(Segmenter(MODELS["hrsam-tiny"]), start, dtype=torch.float32)
    trainer = Trainer(replace(config, init=(str(start),), stem_at=0.5))
    name = "image_encoder.stem.net.blocks.3.project.weight"
    first = trainer.model.get_parameter(name).clone()
    changed = [not torch.equal(trainer.model.get_parameter(name), first) for _ in trainer.run()]
    assert changed == [False, False, True, True]


def test_a_stem_without_weights_to_start_from_learns_at_once(config):
    trainer = Trainer(replace(config, steps=1))
    name = "image_encoder.stem.net.blocks.3.project.weight"
    first = trainer.model.get_parameter(name).clone()
    list(trainer.run())
    assert not torch.equal(trainer.model.get_parameter(name), first)


def test_the_stem_teacher_teaches_and_is_thrown_away(config, tmp_path):
    stem = tmp_path / "stem.safetensors"
    net = EfficientNetLite0(32).state_dict()
    save_file({f"image_encoder.stem.net.{k}": v for k, v in net.items()}, stem)
    clicks = ClickConfig(max_clicks=1, stem_weight=1.0, stem_until=0.5)
    taught = replace(config, stem_teacher=str(stem), clicks=clicks)
    parts = [report.parts for report in Trainer(taught).run()]
    assert ["stem=" in p for p in parts] == [True, True, False, False]
    assert set(load_file(train(taught))) == set(Segmenter(MODELS["hrsam-tiny"]).state_dict())
    with pytest.raises(ConfigError, match="needs the weights of the pretrained stem"):
        replace(taught, stem_teacher="")


def test_a_run_is_scored_and_its_best_weights_kept(config, data):
    scored = replace(
        config,
        validation=(str(data),),
        validate_every_s=0.0,
        validation_objects=2,
        validation_px=64,
    )
    train(scored)
    out = Path(scored.out)
    with (out / "validation.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [int(row["step"]) for row in rows] == [1, 2, 3, 4]
    best = max(rows, key=lambda row: float(row["quality"]))
    with safe_open(out / "hrsam-tiny-best.safetensors", framework="pt") as tensors:
        assert f"; {best['step']} steps" in tensors.metadata()["trained_on"]
    # What an earlier part of the run has kept is not overwritten by something worse.
    again = Validation(ClickScores(scored), out, scored.model)
    assert again.best == float(best["quality"])
    again.best = 2.0
    again.score(Segmenter(MODELS["hrsam-tiny"]).eval(), 5, lambda path: path.unlink())
    assert (out / "hrsam-tiny-best.safetensors").exists()


@pytest.mark.parametrize(("has_it", "used"), [(True, "bfloat16"), (False, "float32")])
def test_auto_is_bfloat16_where_the_processor_has_it(
    config: TrainConfig, has_it: bool, used: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.modeling.devices.cpu_has_bfloat16", lambda: has_it)
    trainer = Trainer(replace(config, precision="auto"))
    assert trainer.stage.precision == trainer.averaged.precision == used
