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

from napari_hrsam.errors import CheckpointError, ConfigError, DataError
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.models import MODELS
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.batches import CropConfig
from napari_hrsam.training.click_rounds import ClickRounds
from napari_hrsam.training.train import Trainer, train
from napari_hrsam.training.train_config import TrainConfig

CROPS = CropConfig(crop_px=64, batch_size=2, objects_per_crop=2, large_share=0.0)


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
        data=(str(data),), out=str(tmp_path / "run"), crops=CROPS, steps=4, warmup=1, max_clicks=3
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
    trainer = Trainer(replace(config, steps=40, learning_rate=2e-3, max_clicks=1, warmup=5))
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
        ({"steps": 0}, "steps and max_clicks"),
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


class _Recorder(Segmenter):
    """The real segmenter, keeping what it was asked."""

    def decode_all(self, features, **prompts):
        self.asked = [*getattr(self, "asked", []), prompts]
        return super().decode_all(features, **prompts)


def _rounds(config: TrainConfig, seed: int) -> tuple[ClickRounds, _Recorder]:
    masks = np.zeros((2, 64, 64), bool)
    masks[0, 8:40, 8:40] = masks[1, 20:60, 30:50] = True
    rounds = ClickRounds(
        masks,
        np.random.default_rng(seed),
        max_clicks=config.max_clicks,
        click_decay=config.click_decay,
        box_share=config.box_share,
        device=torch.device("cpu"),
    )
    torch.manual_seed(0)
    model = _Recorder(MODELS["hrsam-tiny"])
    features = model.encode(torch.rand(2, 3, 64, 64) * 255)
    loss, _ = rounds.loss(model, features)
    loss.backward()
    return rounds, model


def test_every_round_sees_all_clicks_so_far_and_the_last_logits(config):
    always = replace(config, click_decay=1.0, max_clicks=4, box_share=0.0)
    _, model = _rounds(always, 3)
    assert [p["point_labels"].shape[1] for p in model.asked] == [1, 2, 3, 4]
    assert model.asked[0]["mask_logits"] is None
    assert sum(p["mask_logits"] is not None for p in model.asked[1:]) >= 2
    assert (model.asked[0]["point_labels"] == 1).all()


def test_the_first_click_lies_in_the_object(config):
    for seed in range(5):
        _, model = _rounds(replace(config, box_share=0.0, max_clicks=1), seed)
        for (x, y), mask in zip(
            model.asked[0]["point_coords_xy"][:, 0].tolist(),
            ((8, 40, 8, 40), (20, 60, 30, 50)),
            strict=True,
        ):
            y0, y1, x0, x1 = mask
            assert y0 - 1 <= y <= y1
            assert x0 - 1 <= x <= x1


def test_a_sequence_may_begin_with_a_box(config):
    rounds, model = _rounds(replace(config, box_share=1.0, max_clicks=1), 0)
    assert model.asked[0]["point_coords_xy"] is None
    box = rounds.boxes[0].tolist()
    assert np.allclose(box, [7.5, 7.5, 39.5, 39.5], atol=6)


def test_gradients_reach_encoder_and_decoder(config):
    _, model = _rounds(config, 1)
    for name in ("image_encoder.stem.down2.0.weight", "mask_decoder.fine.enter4.0.weight"):
        assert model.get_parameter(name).grad.abs().sum() > 0
