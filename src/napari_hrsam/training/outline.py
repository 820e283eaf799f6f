"""Train the outline refiner: crops along outlines, coarse masks with errors, a loss at the edge."""

from __future__ import annotations

import csv
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_hrsam.errors import CheckpointError, ConfigError
from napari_hrsam.modeling.outline_refiner import (
    OUTLINE_WEIGHTS,
    OutlineRefiner,
    load_outline_refiner,
    save_outline_refiner,
)
from napari_hrsam.modeling.weight_files import load_training_state, save_training_state
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.outline_crops import OutlineBatch, OutlineCropConfig, OutlineSampler
from napari_hrsam.training.outline_scores import OutlineCase, outline_cases, score_refiner

logger = logging.getLogger(__name__)

VALIDATION_AREA_PX = 2500
"""Area of the smallest objects that weights are chosen by."""

_BAND_PX = 12
_FAR_WEIGHT = 0.1
_VALIDATED_FACTOR = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlineTrainConfig:
    """Settings of a run.

    Attributes
    ----------
    data : tuple of str
        Shards and folders.
    exclude_sources : tuple of str
        Sources of the shards that are left out.
    validation : tuple of str
        Shards and folders on which the averaged weights are scored at every checkpoint; the best
        are kept. Without them the last are.
    out : str
        Folder of the checkpoint, the log and the weights.
    init : str
        Weights to start from; empty: a refiner that returns the prior.
    steps : int
    crops : OutlineCropConfig
    learning_rate, weight_decay, clip_norm : float
        Of AdamW; gradients are scaled down to the norm.
    warmup : int
        Steps of linear warm-up, before a cosine decay to 0.
    ema_decay : float
        Of the averaged weights, which are the ones that are kept.
    dice_weight : float
        Factor on the Dice loss beside the binary cross-entropy.
    precision : {"float32", "bfloat16"}
        bfloat16 runs the network under autocast.
    device : str
    seed : int
    checkpoint_every_s : float
    """

    data: tuple[str, ...] = ()
    exclude_sources: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    out: str = "runs/outline"
    init: str = ""
    steps: int = 4000
    crops: OutlineCropConfig = field(default_factory=OutlineCropConfig)
    learning_rate: float = 2e-3
    weight_decay: float = 0.01
    clip_norm: float = 1.0
    warmup: int = 50
    ema_decay: float = 0.995
    dice_weight: float = 0.5
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"
    seed: int = 0
    checkpoint_every_s: float = 300.0

    def __post_init__(self) -> None:
        """Check the values."""
        if self.steps < 1 or self.warmup < 0:
            raise ConfigError(
                "steps must be at least 1 and warmup at least 0, got "
                f"{self.steps} and {self.warmup}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"ema_decay must be at least 0 and below 1, got {self.ema_decay}")
        if self.precision not in ("float32", "bfloat16"):
            raise ConfigError(f"precision must be float32 or bfloat16, got {self.precision!r}")


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlineReport:
    """One line of the log.

    Attributes
    ----------
    step, crops : int
        Done since the start of the schedule.
    loss : float
    learning_rate, seconds : float
    validation : float or None
        Band accuracy, mean of domains, of the averaged weights, where it was measured.
    """

    step: int
    crops: int
    loss: float
    learning_rate: float
    seconds: float
    validation: float | None = None


def outline_loss(
    logits: Tensor, masks: Tensor, priors: Tensor, known: Tensor, *, dice_weight: float = 0.5
) -> Tensor:
    """Binary cross-entropy and Dice where outlines are decided.

    Pixels near the true outline, and those where the prior is wrong, weigh 1; all others a tenth,
    those outside the image nothing.

    Parameters
    ----------
    logits, priors : (B, 1, H, W) float
    masks, known : (B, 1, H, W) bool
    dice_weight : float

    Returns
    -------
    () float32
    """
    truth = masks.float()
    edge_or_wrong = (_near_outline(truth) > 0) | ((priors > 0) != masks)
    weight = torch.where(edge_or_wrong, 1.0, _FAR_WEIGHT) * known
    scores = logits.float()
    surprise = F.binary_cross_entropy_with_logits(scores, truth, reduction="none")
    entropy = (surprise * weight).sum() / weight.sum().clamp(min=1)
    probability = torch.sigmoid(scores) * weight
    overlap = (probability * truth).sum((1, 2, 3))
    total = probability.sum((1, 2, 3)) + (truth * weight).sum((1, 2, 3))
    dice = (1 - (2 * overlap + 1) / (total + 1)).mean()
    return entropy + dice_weight * dice


def _near_outline(truth: Tensor) -> Tensor:
    """1 in the band around the outline, 0 elsewhere."""

    def widest(x: Tensor) -> Tensor:
        for kernel in ((2 * _BAND_PX + 1, 1), (1, 2 * _BAND_PX + 1)):
            x = F.max_pool2d(x, kernel, 1, (kernel[0] // 2, kernel[1] // 2))
        return x

    # Outside the object its neighbourhood, and inside it that of the rest.
    return widest(truth) * widest(1 - truth)


def train_outline(
    config: OutlineTrainConfig,
    *,
    resume: bool = False,
    progress: Callable[[OutlineReport], None] | None = None,
) -> Path:
    """Run (or go on with) a training.

    Parameters
    ----------
    config : OutlineTrainConfig
    resume : bool
        Continue from the checkpoint in ``config.out``.
    progress : callable, optional
        Called after every step.

    Returns
    -------
    Path
        The averaged weights, fp16 safetensors: the best on ``config.validation``, or the last.

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
    config: OutlineTrainConfig,
    *,
    resume: bool,
    progress: Callable[[OutlineReport], None] | None,
) -> Path:
    out = Path(config.out)
    out.mkdir(parents=True, exist_ok=True)
    state_path, log_path = out / "state.pt", out / "log.csv"
    if state_path.exists() and not resume:
        raise CheckpointError(
            f"{out} already holds a training run; resume it, or choose another output folder"
        )
    trainer = OutlineTrainer(config)
    if resume:
        trainer.load(state_path)
    (out / "config.json").write_text(json.dumps(asdict(config), indent=1))
    is_new = not log_path.exists()
    with log_path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(OutlineReport.__dataclass_fields__))
        if is_new:
            writer.writeheader()
        for report in trainer.run():
            writer.writerow(asdict(report))
            stream.flush()
            if progress is not None:
                progress(report)
    return out / OUTLINE_WEIGHTS


def _start(config: OutlineTrainConfig) -> OutlineRefiner:
    return load_outline_refiner(path=Path(config.init)) if config.init else OutlineRefiner()


class OutlineTrainer:
    """State of one training run: refiner, averaged refiner, optimiser, step.

    Parameters
    ----------
    config : OutlineTrainConfig
    """

    def __init__(self, config: OutlineTrainConfig) -> None:
        self.config = config
        torch.manual_seed(config.seed)
        self.refiner = _start(config).to(config.device).train().requires_grad_(True)
        self.averaged = OutlineRefiner(self.refiner.config).to(config.device).eval()
        self.averaged.load_state_dict(self.refiner.state_dict())
        self.averaged.requires_grad_(False)
        samples = open_samples(config.data, exclude_sources=config.exclude_sources)
        sources = ", ".join(sorted({sample.source for sample in samples}))
        self._data = f"{len(samples)} images ({sources})"
        self.sampler = OutlineSampler(samples, config.crops)
        self.cases = self._cases()
        matrices = [p for p in self.refiner.parameters() if p.ndim > 1]
        vectors = [p for p in self.refiner.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            lr=config.learning_rate,
        )
        self.step = 0
        self.best = -math.inf

    def _cases(self) -> list[OutlineCase]:
        if not self.config.validation:
            return []
        samples = open_samples(self.config.validation)
        return list(outline_cases(samples, per_domain=4, min_area_px=VALIDATION_AREA_PX))

    def run(self) -> Iterator[OutlineReport]:
        """Do the remaining steps, with a checkpoint now and then and at the end."""
        start = last_saved = time.monotonic()
        while self.step < self.config.steps:
            batch = self.sampler.batch(np.random.default_rng([self.config.seed, self.step]))
            rate = self._learning_rate()
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            loss = self._update(batch)
            self.step += 1
            validation = None
            is_due = time.monotonic() - last_saved > self.config.checkpoint_every_s
            if is_due or self.step == self.config.steps:
                validation = self._checkpoint()
                last_saved = time.monotonic()
            yield OutlineReport(
                step=self.step,
                crops=self.step * self.config.crops.batch_size,
                loss=round(loss, 5),
                learning_rate=rate,
                seconds=round(time.monotonic() - start, 2),
                validation=validation,
            )

    def _learning_rate(self) -> float:
        config = self.config
        if self.step < config.warmup:
            return config.learning_rate * (self.step + 1) / config.warmup
        done = (self.step - config.warmup) / max(1, config.steps - config.warmup)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _update(self, batch: OutlineBatch) -> float:
        device = torch.device(self.config.device)
        images = torch.from_numpy(batch.images).to(device).permute(0, 3, 1, 2).float()
        priors, masks, known = (
            torch.from_numpy(array).to(device)[:, None]
            for array in (batch.priors, batch.masks, batch.known)
        )
        halved = self.config.precision == "bfloat16"
        with torch.autocast(device.type, torch.bfloat16) if halved else nullcontext():
            logits = self.refiner(images, priors)
        loss = outline_loss(logits, masks, priors, known, dice_weight=self.config.dice_weight)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self.refiner.parameters(), self.config.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            self._average()
        else:
            logger.warning("step %d: gradient is not finite, step left out", self.step)
        return float(loss.detach())

    @torch.no_grad()
    def _average(self) -> None:
        # A short memory first, so that the average does not hold on to the start.
        decay = min(self.config.ema_decay, (1 + self.step) / (10 + self.step))
        mine: list[Tensor] = list(self.averaged.parameters())
        theirs: list[Tensor] = list(self.refiner.parameters())
        torch._foreach_lerp_(mine, theirs, 1 - decay)

    def _checkpoint(self) -> float | None:
        """Save the run, and the averaged weights if they are the best."""
        score: float | None = None
        if self.cases:
            scores = score_refiner(self.averaged, self.cases, factor=_VALIDATED_FACTOR)
            score = round(scores["mean of domains"]["refined_band"], 5)
        if score is None or score > self.best:
            self.best = self.best if score is None else score
            seen = f"{self._data} and drawings; {self.step} steps of "
            seen += f"{self.config.crops.batch_size} crops"
            save_outline_refiner(
                self.averaged, Path(self.config.out) / OUTLINE_WEIGHTS, trained_on=seen
            )
        save_training_state(
            {
                "config": json.dumps(asdict(self.config)),
                "model": self.refiner.state_dict(),
                "averaged": self.averaged.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "counts": torch.tensor([self.step, self.best], dtype=torch.float64),
            },
            Path(self.config.out) / "state.pt",
        )
        return score

    def load(self, path: Path) -> None:
        """Continue from a checkpoint.

        Raises
        ------
        CheckpointError
            If the file is missing, unreadable or not of an outline refiner.
        """
        state = load_training_state(path)
        if state["model"].keys() != self.refiner.state_dict().keys():
            raise CheckpointError(
                f"{path} is not a run of the outline refiner; choose its folder, or resume it "
                "with napari-hrsam train"
            )
        self.refiner.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        step, self.best = state["counts"].tolist()
        self.step = int(step)
