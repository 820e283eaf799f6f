"""Training the outline refiner."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from napari_hrsam.errors import CheckpointError
from napari_hrsam.modeling.outline_refiner import OutlineRefiner, load_outline_refiner
from napari_hrsam.modeling.weight_files import save_training_state
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.outline_crops import OutlineSampler
from napari_hrsam.training.outline_task import outline_loss
from napari_hrsam.training.settings import OutlineTaskConfig, TrainConfig
from napari_hrsam.training.train import StepReport, train

CROPS = OutlineTaskConfig(crop_px=64, batch_size=4, drawn_share=0.5)


@pytest.fixture
def config(pairs: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        model="outline",
        stage="outline",
        data=(str(pairs),),
        out=str(tmp_path / "run"),
        steps=2,
        warmup=0,
        outline=CROPS,
    )


def test_the_loss_is_least_for_the_truth_and_heaviest_at_the_outline() -> None:
    masks = torch.zeros((1, 1, 64, 64), dtype=torch.bool)
    masks[..., 20:44, 20:44] = True
    truth = masks.float() * 12 - 6
    known = torch.ones_like(masks)

    def loss_with(change: Callable[[torch.Tensor], object], prior: torch.Tensor = truth) -> float:
        logits = truth.clone()
        change(logits)
        return float(outline_loss(logits, masks, prior, known))

    right = loss_with(torch.clone)
    at_edge = loss_with(lambda logits: logits[..., 44:46, 20:24].fill_(6))
    far = loss_with(lambda logits: logits[..., 0:2, 0:4].fill_(6))
    misled = truth.clone()
    misled[..., 0:2, 0:4] = 6
    kept = loss_with(lambda logits: logits[..., 0:2, 0:4].fill_(6), misled)
    assert right < far < kept
    assert far < at_edge


def test_pixels_beyond_the_image_do_not_count() -> None:
    masks = torch.zeros((1, 1, 32, 32), dtype=torch.bool)
    masks[..., :16] = True
    known = torch.ones_like(masks)
    known[..., 24:] = False
    logits = masks.float() * 12 - 6
    wrong = logits.clone()
    wrong[..., 24:] = 6
    assert outline_loss(wrong, masks, logits, known) == outline_loss(logits, masks, logits, known)


def test_training_lowers_the_loss(config: TrainConfig) -> None:
    easy = replace(CROPS, drawn_share=0, polarity=0)
    longer = replace(config, outline=easy, steps=30, learning_rate=4e-3, ema_decay=0.5)
    batch = OutlineSampler(open_samples(config.data), replace(easy, batch_size=24)).batch(
        np.random.default_rng(99)
    )
    images = torch.from_numpy(batch.images).permute(0, 3, 1, 2).float()
    priors, masks, known = (
        torch.from_numpy(array)[:, None] for array in (batch.priors, batch.masks, batch.known)
    )

    def loss_of(refiner: OutlineRefiner) -> float:
        with torch.inference_mode():
            return float(outline_loss(refiner(images, priors), masks, priors, known))

    before = loss_of(OutlineRefiner())
    after = loss_of(load_outline_refiner(path=train(longer)))
    assert after < 0.9 * before


def test_two_steps_leave_log_settings_and_weights(config: TrainConfig) -> None:
    weights = train(config)
    out = Path(config.out)
    assert weights == out / "outline.safetensors"
    with (out / "log.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["step"] for row in rows] == ["1", "2"]
    assert (rows[-1]["crops"], rows[-1]["objects"]) == ("8", "8")
    assert json.loads((out / "config.json").read_text())["outline"]["crop_px"] == 64


def test_a_resumed_run_ends_as_one_in_one_go(config: TrainConfig, tmp_path: Path) -> None:
    # The schedule is of 3 steps in both; the first run is stopped after 2.
    whole = replace(config, steps=3, out=str(tmp_path / "whole"))
    train(whole)
    halves = replace(whole, out=config.out, checkpoint_every_s=0.0)

    def stop(report: StepReport) -> None:
        if report.step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(halves, progress=stop)
    train(halves, resume=True)
    one = load_outline_refiner(path=Path(whole.out) / "outline.safetensors").state_dict()
    two = load_outline_refiner(path=Path(halves.out) / "outline.safetensors").state_dict()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6)


def test_the_best_weights_on_validation_images_are_kept(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.training.outline_task.VALIDATION_AREA_PX", 700)
    scores = iter([0.5, 0.9, 0.7])
    monkeypatch.setattr(
        "napari_hrsam.training.outline_task.score_refiner",
        lambda *_, **__: {"mean of domains": {"refined_band": next(scores)}},
    )
    kept: list[bytes] = []
    scored = replace(config, steps=3, validation=config.data, validate_every_s=0.0)
    path = Path(config.out) / "outline-best.safetensors"

    def look(report: StepReport) -> None:
        if report.step > 1:
            kept.append(path.read_bytes())

    train(scored, progress=look)
    with (Path(config.out) / "validation.csv").open() as stream:
        assert [row["quality"] for row in csv.DictReader(stream)] == ["0.5", "0.9", "0.7"]
    assert kept[0] != kept[1]
    assert kept[1] == path.read_bytes()


def test_a_run_is_not_overwritten_and_only_its_own_kind_resumed(
    config: TrainConfig,
) -> None:
    with pytest.raises(CheckpointError, match="nothing to resume"):
        train(config, resume=True)
    train(config)
    with pytest.raises(CheckpointError, match="already holds a training run"):
        train(config)
    empty: dict[str, object] = {name: {} for name in ("model", "averaged", "optimizer")}
    save_training_state(
        {**empty, "config": "{}", "counts": torch.zeros(2)}, Path(config.out) / "state.pt"
    )
    with pytest.raises(CheckpointError, match="not of 'outline'"):
        train(config, resume=True)


def test_training_starts_from_given_weights(config: TrainConfig, tmp_path: Path) -> None:
    first = train(config)
    start = load_outline_refiner(path=first).state_dict()
    again = replace(config, out=str(tmp_path / "again"), init=(str(first),), learning_rate=1e-12)
    after = load_outline_refiner(path=train(again)).state_dict()
    for name, value in start.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=1e-6)
