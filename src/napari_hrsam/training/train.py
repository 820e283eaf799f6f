"""Train a segmenter from clicks: crops, simulated clicks, AdamW, an averaged model, resumable."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from napari_hrsam.errors import CheckpointError, ConfigError
from napari_hrsam.modeling.checkpoints import (
    load_training_state,
    load_weights,
    save_training_state,
    save_weights,
)
from napari_hrsam.modeling.configs import MODELS, ModelConfig
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.selective_scan import ScanBackend
from napari_hrsam.training.batches import Batch, CropConfig, CropSampler
from napari_hrsam.training.click_rounds import ClickRounds, per_object
from napari_hrsam.training.datasets import open_samples

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainConfig:
    """A training run; saved as JSON beside what it made.

    Attributes
    ----------
    model : str
        Name in `configs.MODELS`.
    data : tuple of str
        Shards and folders.
    exclude_sources : tuple of str
        Sources left out, e.g. for their licence.
    out : str
        Folder for checkpoints, log and weights.
    init : str
        Weights to start from; empty for a random start.
    steps : int
        Optimiser steps of the whole schedule.
    crops : CropConfig
    max_clicks : int
        Longest simulated sequence of clicks.
    click_decay : float
        A sequence goes on with this probability after each click (geometric).
    box_share : float
        Share of sequences that begin with a box in place of a click.
    learning_rate, weight_decay, clip_norm
        Of AdamW and of the gradient clipping.
    warmup : int
        Steps of linear warm-up.
    schedule : {"cosine", "linear"}
        Decay to zero after the warm-up.
    ema_decay : float
        Of the averaged weights, which are the ones saved for use.
    precision : {"float32", "bfloat16"}
        bfloat16 runs the encoder under autocast.
    scan : {"auto", "mamba", "torch", "numba", "reference"}
        Backend of the state-space blocks; "numba" trains several times faster on a CPU.
    device : str
    seed : int
    checkpoint_every_s : float
        Seconds between checkpoints.
    """

    model: str = "hrsam-tiny"
    data: tuple[str, ...] = ()
    exclude_sources: tuple[str, ...] = ()
    out: str = "runs/hrsam-tiny"
    init: str = ""
    steps: int = 4000
    crops: CropConfig = field(default_factory=CropConfig)
    max_clicks: int = 8
    click_decay: float = 0.7
    box_share: float = 0.12
    learning_rate: float = 1e-3
    weight_decay: float = 0.02
    clip_norm: float = 1.0
    warmup: int = 100
    schedule: Literal["cosine", "linear"] = "cosine"
    ema_decay: float = 0.998
    precision: Literal["float32", "bfloat16"] = "float32"
    scan: ScanBackend = "auto"
    device: str = "cpu"
    seed: int = 0
    checkpoint_every_s: float = 300.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.model not in MODELS:
            raise ConfigError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        if self.steps < 1 or self.warmup < 0 or self.max_clicks < 1:
            raise ConfigError(
                "steps and max_clicks must be at least 1 and warmup at least 0, got "
                f"{self.steps}, {self.max_clicks} and {self.warmup}"
            )
        for name in ("click_decay", "box_share", "ema_decay"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} must lie in 0..1, got {getattr(self, name)}")
        if self.schedule not in ("cosine", "linear"):
            raise ConfigError(f"schedule must be 'cosine' or 'linear', got {self.schedule!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReport:
    """One line of the log.

    Attributes
    ----------
    step : int
        Steps done.
    crops, objects : int
        Crops and objects seen since the start of the schedule.
    loss : float
    iou_first, iou_last : float
        Mean IoU on the crop after the first click and after the last of the sequence.
    clicks : int
        Length of the sequence.
    learning_rate, seconds : float
    """

    step: int
    crops: int
    objects: int
    loss: float
    iou_first: float
    iou_last: float
    clicks: int
    learning_rate: float
    seconds: float


def train(
    config: TrainConfig,
    *,
    resume: bool = False,
    progress: Callable[[StepReport], None] | None = None,
) -> Path:
    """Run (or go on with) a training.

    Parameters
    ----------
    config : TrainConfig
    resume : bool
        Continue from the checkpoint in ``config.out``; batches and clicks go on as if the run had
        not been interrupted.
    progress : callable, optional
        Called after every step.

    Returns
    -------
    Path
        The averaged weights, fp16 safetensors.

    Raises
    ------
    DataError
        If the data cannot be read.
    CheckpointError
        If there is nothing to resume, or the folder holds another run and ``resume`` is False.
    """
    # Denormals make backward passes many times slower; the switch belongs to the whole thread.
    torch.set_flush_denormal(True)
    try:
        return _train(config, resume=resume, progress=progress)
    finally:
        torch.set_flush_denormal(False)


def _train(
    config: TrainConfig, *, resume: bool, progress: Callable[[StepReport], None] | None
) -> Path:
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config)
    state_path = out / "state.pt"
    if resume:
        trainer.load(state_path)
    elif state_path.exists():
        raise CheckpointError(
            f"{out} already holds a training run; resume it, or choose another output folder"
        )
    (out / "config.json").write_text(json.dumps(asdict(config), indent=1))
    weights, log_path = out / f"{config.model}.safetensors", out / "log.csv"
    is_new = not log_path.exists()
    with log_path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(StepReport.__dataclass_fields__))
        if is_new:
            writer.writeheader()
        last_saved = time.monotonic()
        for report in trainer.run():
            writer.writerow(asdict(report))
            stream.flush()
            if progress is not None:
                progress(report)
            if time.monotonic() - last_saved > config.checkpoint_every_s:
                trainer.save(state_path)
                trainer.export(weights)
                last_saved = time.monotonic()
    trainer.save(state_path)
    trainer.export(weights)
    return weights


class Trainer:
    """State of one training run: model, averaged model, optimiser, step.

    Parameters
    ----------
    config : TrainConfig
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.device = torch.device(config.device)
        self.model = _new_model(MODELS[config.model], config.init).to(self.device)
        self.model.precision = config.precision
        self.model.image_encoder.scan_backend = config.scan
        self.averaged = _new_model(MODELS[config.model], "").to(self.device).eval()
        self.averaged.load_state_dict(self.model.state_dict())
        self.averaged.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay),
            lr=config.learning_rate,
            fused=True,
        )
        samples = open_samples(config.data, exclude_sources=config.exclude_sources)
        self._data = f"{len(samples)} images ({', '.join(sorted({s.source for s in samples}))})"
        self.sampler = CropSampler(samples, config.crops)
        self.step = 0
        self.crops = 0
        self.objects = 0

    def save(self, path: Path) -> None:
        """Write everything that `load` needs, atomically."""
        state = {
            "config": json.dumps(asdict(self.config)),
            "model": self.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": torch.tensor([self.step, self.crops, self.objects]),
        }
        save_training_state(state, path)

    def export(self, path: Path) -> None:
        """Write the averaged weights for use: fp16 safetensors that say what they saw."""
        seen = f"{self._data}; {self.step} steps, {self.crops} crops, {self.objects} objects"
        save_weights(self.averaged, path, trained_on=seen)

    def load(self, path: Path) -> None:
        """Continue from a file written by `save`.

        Raises
        ------
        CheckpointError
            If the file is missing, unreadable or of another model.
        """
        state = load_training_state(path)
        saved = json.loads(state["config"])["model"]
        if saved != self.config.model:
            raise CheckpointError(
                f"{path} is a run of {saved!r}, not of {self.config.model!r}; "
                "choose its folder or its model"
            )
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.crops, self.objects = state["counts"].tolist()

    def run(self) -> Iterator[StepReport]:
        """Do the remaining steps; batches are cut in a second thread, one ahead."""
        start = time.monotonic()
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(self.sampler.batch, self._rng(0))
            while self.step < self.config.steps:
                batch = pending.result()
                rng = self._rng(1)
                rate = self._learning_rate()
                for group in self.optimizer.param_groups:
                    group["lr"] = rate
                self.step += 1
                pending = ahead.submit(self.sampler.batch, self._rng(0))
                loss, ious = self._update(batch, rng)
                self.crops += len(batch.images)
                self.objects += len(batch.masks)
                yield StepReport(
                    step=self.step,
                    crops=self.crops,
                    objects=self.objects,
                    loss=round(loss, 5),
                    iou_first=round(ious[0], 4),
                    iou_last=round(ious[-1], 4),
                    clicks=len(ious),
                    learning_rate=rate,
                    seconds=round(time.monotonic() - start, 2),
                )

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, self.step, stream])

    def _learning_rate(self) -> float:
        config = self.config
        if self.step < config.warmup:
            return config.learning_rate * (self.step + 1) / config.warmup
        done = (self.step - config.warmup) / max(1, config.steps - config.warmup)
        if config.schedule == "linear":
            return config.learning_rate * (1 - done)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _update(self, batch: Batch, rng: np.random.Generator) -> tuple[float, list[float]]:
        # Noise depends on the step alone, so that a resumed run goes on as it would have.
        torch.manual_seed(int(rng.integers(2**62)))
        self.model.train()
        images = torch.from_numpy(batch.images).to(self.device).permute(0, 3, 1, 2).float()
        index = torch.from_numpy(batch.crop_index).to(self.device)
        with self._autocast():
            features = per_object(self.model.encode(images), index)
            rounds = ClickRounds(
                batch.masks,
                rng,
                max_clicks=self.config.max_clicks,
                click_decay=self.config.click_decay,
                box_share=self.config.box_share,
                device=self.device,
            )
            loss, ious = rounds.loss(self.model, features)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            self._average()
        else:
            # One such step would end the run: some half-precision kernels overflow on rare input.
            logger.warning("step %d: gradient is not finite, step left out", self.step)
        return float(loss.detach()), ious

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        if self.config.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()

    @torch.no_grad()
    def _average(self) -> None:
        # A short memory first, so that the average does not hold on to the random start.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        mine, theirs = self.averaged.state_dict(), self.model.state_dict()
        targets = [mine[k] for k in mine if mine[k].is_floating_point()]
        sources = [theirs[k] for k in mine if mine[k].is_floating_point()]
        torch._foreach_lerp_(targets, sources, 1 - decay)


def _new_model(config: ModelConfig, init: str) -> Segmenter:
    model = Segmenter(config)
    if init:
        load_weights(model, Path(init))
    return model


def _parameter_groups(model: Segmenter, weight_decay: float) -> list[dict[str, object]]:
    """No decay on vectors (norms, biases, gammas), tokens and the scan's own parameters."""
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        is_plain = parameter.ndim < 2 or "As_log" in name or "gamma" in name or "embed" in name
        (plain if is_plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
