"""Train a segmenter from clicks: crops, simulated clicks, AdamW, an averaged model, resumable."""

from __future__ import annotations

import csv
import json
import logging
import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_hrsam.errors import CheckpointError, ConfigError
from napari_hrsam.modeling.checkpoints import (
    load_training_state,
    save_training_state,
    save_weights,
)
from napari_hrsam.modeling.configs import MODELS, ModelConfig
from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter
from napari_hrsam.training.batches import Batch, CropConfig, CropSampler
from napari_hrsam.training.clicks import next_click
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.losses import batch_iou, dice_loss, normalized_focal_loss

logger = logging.getLogger(__name__)

LOSS_STRIDE = 2
"""Losses and clicks are computed at half the crop's resolution."""


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
    device: str = "cpu"
    seed: int = 0
    checkpoint_every_s: float = 300.0

    def __post_init__(self) -> None:
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
    torch.set_flush_denormal(True)  # Denormals make backward passes many times slower.
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
                save_weights(trainer.averaged, weights)
                last_saved = time.monotonic()
    trainer.save(state_path)
    save_weights(trainer.averaged, weights)
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
        self.averaged = _new_model(MODELS[config.model], "").to(self.device).eval()
        self.averaged.load_state_dict(self.model.state_dict())
        self.averaged.requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            _parameter_groups(self.model, config.weight_decay),
            lr=config.learning_rate,
            fused=True,
        )
        samples = open_samples(config.data, exclude_sources=config.exclude_sources)
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
        self.model.train()
        images = torch.from_numpy(batch.images).to(self.device).permute(0, 3, 1, 2).float()
        index = torch.from_numpy(batch.crop_index).to(self.device)
        with self._autocast():
            features = _per_object(self.model.encode(images), index)
            rounds = ClickRounds(batch.masks, rng, self.config, self.device)
            loss, ious = rounds.loss(self.model, features)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
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
    from napari_hrsam.modeling.checkpoints import load_weights

    model = Segmenter(config)
    if init:
        load_weights(model, Path(init))
    return model


def _parameter_groups(model: Segmenter, weight_decay: float) -> list[dict[str, object]]:
    """No decay on vectors (norms, biases, gammas), tokens and the scan's own parameters."""
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        is_plain = parameter.ndim < 2 or "As_log" in name or "gamma" in name or "embed" in name
        (plain if is_plain else decayed).append(parameter)
    return [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]


def _per_object(features: ImageFeatures, index: Tensor) -> ImageFeatures:
    maps = {name: None if x is None else x[index] for name, x in features.items()}
    return ImageFeatures(**maps)  # type: ignore[arg-type]


class ClickRounds:
    """One simulated sequence of clicks on a batch of objects.

    Every sequence carries a loss after its first prompt and after its last; the rounds between
    run without gradient, so that long sequences cost little more than short ones.

    Parameters
    ----------
    masks : (N, H, W) bool
        Objects in crop pixels.
    rng : numpy.random.Generator
    config : TrainConfig
    device : torch.device
    """

    def __init__(
        self,
        masks: np.ndarray,
        rng: np.random.Generator,
        config: TrainConfig,
        device: torch.device,
    ) -> None:
        self.rng, self.device = rng, device
        size = (masks.shape[1] // LOSS_STRIDE, LOSS_STRIDE, masks.shape[2] // LOSS_STRIDE)
        covered = masks.reshape(len(masks), *size, LOSS_STRIDE).mean((2, 4))
        self.gt = covered >= 0.5
        for i in np.flatnonzero(~self.gt.any((1, 2))):
            self.gt[i] = covered[i] > 0  # A thin object keeps its touched cells.
        self.labels = torch.from_numpy(self.gt.astype(np.int64)).to(device)
        num = 1
        while num < config.max_clicks and rng.random() < config.click_decay:
            num += 1
        self.num_rounds = num
        self.coords: list[list[tuple[float, float]]] = [[] for _ in self.gt]
        self.signs: list[list[int]] = [[] for _ in self.gt]
        self.boxes = self._boxes() if rng.random() < config.box_share else None

    def loss(self, model: Segmenter, features: ImageFeatures) -> tuple[Tensor, list[float]]:
        """Run the sequence: the summed loss and the mean IoU after each round."""
        total = features.embedding.new_zeros(())
        prior: Tensor | None = None
        ious: list[float] = []
        if self.boxes is None:
            self._add_clicks(np.zeros_like(self.gt))
        for index in range(self.num_rounds):
            with_loss = index in (0, self.num_rounds - 1)
            with torch.set_grad_enabled(with_loss):
                masks, iou = model.decode_all(
                    features, **self._prompts(), mask_logits=self._noisy(prior)
                )
                resized = F.interpolate(
                    masks.float(), self.gt.shape[1:], mode="bilinear", align_corners=False
                )
                if with_loss:
                    total = total + self._round_loss(resized, iou.float(), first=index == 0)
            prior = masks[:, :1].detach().float()
            predicted = resized[:, :1].detach()
            ious.append(float(batch_iou(predicted, self.labels).mean()))
            if index + 1 < self.num_rounds:
                self._add_clicks((predicted[:, 0] > 0).cpu().numpy())
        return total, ious

    def _round_loss(self, masks: Tensor, iou: Tensor, *, first: bool) -> Tensor:
        loss = self._mask_loss(masks[:, :1]).mean()
        num_candidates = masks.shape[1] - 1
        if first and num_candidates:
            # An ambiguous first click: only the best of the candidates learns from it.
            each = torch.stack([self._mask_loss(masks[:, i : i + 1]) for i in range(1, 4)])
            loss = loss + 0.5 * each.min(0).values.mean()
        with torch.no_grad():
            real = torch.stack(
                [batch_iou(masks[:, i : i + 1], self.labels) for i in range(masks.shape[1])], 1
            )
        return loss + 0.5 * F.mse_loss(iou, real.to(iou))

    def _mask_loss(self, masks: Tensor) -> Tensor:
        return normalized_focal_loss(masks, self.labels) + dice_loss(masks, self.labels)

    def _noisy(self, prior: Tensor | None) -> Tensor | None:
        """Blur what the network may take for granted about its own earlier logits."""
        if prior is None or self.rng.random() < 0.05:
            return None
        scale = float(np.exp(self.rng.normal(0, 0.3)))
        noise = torch.randn_like(prior) * float(abs(self.rng.normal(0, 0.5)))
        return (prior * scale + noise).clamp(-16, 16)

    def _boxes(self) -> Tensor:
        boxes = np.zeros((len(self.gt), 4), np.float32)
        for i, mask in enumerate(self.gt):
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32) * LOSS_STRIDE
            side = np.array([box[2] - box[0], box[3] - box[1]] * 2)
            boxes[i] = box + self.rng.normal(0, 0.04, 4) * side - 0.5
        return torch.from_numpy(boxes).to(self.device)

    def _add_clicks(self, predicted: np.ndarray) -> None:
        for i, (pred, gt) in enumerate(zip(predicted, self.gt, strict=True)):
            k = float(self.rng.choice([1.0, 1.7, -1.0], p=[0.55, 0.35, 0.1]))
            click = next_click(pred, gt, (), k=k, rng=self.rng)
            if click is None:
                self.coords[i].append((0.0, 0.0))
                self.signs[i].append(-1)
                continue
            jitter = self.rng.uniform(-0.5, 0.5, 2)
            y, x = (np.array([click.y, click.x]) + 0.5 + jitter) * LOSS_STRIDE - 0.5
            self.coords[i].append((float(x), float(y)))
            self.signs[i].append(int(click.positive))

    def _prompts(self) -> dict[str, Tensor | None]:
        has_points = bool(self.coords[0])
        coords = torch.tensor(self.coords, device=self.device) if has_points else None
        signs = torch.tensor(self.signs, device=self.device) if has_points else None
        return {"point_coords_xy": coords, "point_labels": signs, "boxes_xyxy": self.boxes}


def threads_for_training() -> int:
    """All processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parse_data(paths: Sequence[str]) -> tuple[str, ...]:
    """Paths as they are stored in a `TrainConfig`."""
    return tuple(str(p) for p in paths)
