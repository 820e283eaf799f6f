"""Train a network: batches of a stage, AdamW, an averaged copy, resumable."""

from __future__ import annotations

import copy
import csv
import json
import logging
import math
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_hrsam.errors import CheckpointError
from napari_hrsam.modeling.weight_files import load_training_state, save_training_state
from napari_hrsam.training.click_task import TaskLoss
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.optimizer import STEM_PREFIX, average_into, make_optimizer, set_rate
from napari_hrsam.training.settings import TrainConfig
from napari_hrsam.training.stages import make_stage
from napari_hrsam.training.validation import Validation

logger = logging.getLogger(__name__)


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
    parts : str
        The losses that it is made of, before they are weighed.
    iou_first, iou_last : float or None
        Mean IoU on the crop after the first click and after the last of the sequence; None where
        there are no clicks.
    clicks : int
        Length of the sequence.
    learning_rate, seconds : float
    """

    step: int
    crops: int
    objects: int
    loss: float
    parts: str
    iou_first: float | None
    iou_last: float | None
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
    validation = None
    if config.validation:
        validation = Validation(trainer.stage.scores(), out, config.model)
    is_new = not log_path.exists()
    with log_path.open("a", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(StepReport.__dataclass_fields__))
        if is_new:
            writer.writeheader()
        last_saved = last_scored = time.monotonic()
        for report in trainer.run():
            writer.writerow(asdict(report))
            stream.flush()
            if progress is not None:
                progress(report)
            if time.monotonic() - last_saved > config.checkpoint_every_s:
                trainer.save(state_path)
                trainer.export(weights)
                last_saved = time.monotonic()
            due = time.monotonic() - last_scored > config.validate_every_s
            if validation is not None and due and report.step < config.steps:
                validation.score(trainer.averaged, report.step, trainer.export)
                last_scored = time.monotonic()
    trainer.save(state_path)
    trainer.export(weights)
    if validation is not None:
        validation.score(trainer.averaged, trainer.step, trainer.export)
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
        samples = open_samples(config.data, exclude_sources=config.exclude_sources)
        self.stage = make_stage(config, samples)
        self.model = self.stage.model
        sources = ", ".join(sorted({sample.source for sample in samples}))
        self._data = f"{len(samples)} images ({sources}){self.stage.data}"
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(self.stage.learns(name))
        learning = [(n, p) for n, p in self.model.named_parameters() if p.requires_grad]
        self._stem = [p for n, p in learning if n.startswith(STEM_PREFIX)]
        # A stem that starts from nothing has to learn from the first step on.
        self._stem_at = config.stem_at if config.init else 0.0
        self.averaged = copy.deepcopy(self.model).eval().requires_grad_(False)
        if self.stage.helper is not None:
            learning += [(f"helper.{n}", p) for n, p in self.stage.helper.named_parameters()]
        self._learning = [parameter for _, parameter in learning]
        self.optimizer = make_optimizer(
            learning,
            learning_rate=config.learning_rate,
            weight_decay=config.weight_decay,
            stem_factor=config.stem_factor,
        )
        self.step = 0
        self.crops = 0
        self.objects = 0
        self._ends_at = math.inf

    def save(self, path: Path) -> None:
        """Write everything that `load` needs, atomically."""
        state = {
            "config": json.dumps(asdict(self.config)),
            "model": {**self.model.state_dict(), **self._helper_state()},
            "averaged": self.averaged.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "counts": torch.tensor([self.step, self.crops, self.objects]),
        }
        save_training_state(state, path)

    def export(self, path: Path) -> None:
        """Write the averaged weights for use: fp16 safetensors that say what they saw."""
        seen = f"{self._data}; {self.step} steps, {self.crops} crops, {self.objects} objects"
        self.stage.save(self.averaged, path, seen)

    def load(self, path: Path) -> None:
        """Continue from a file written by `save`.

        Raises
        ------
        CheckpointError
            If the file is missing, unreadable or of another model.
        """
        state = load_training_state(path)
        saved = json.loads(state["config"])
        model, stage = saved.get("model"), saved.get("stage")
        if (model, stage) != (self.config.model, self.config.stage):
            raise CheckpointError(
                f"{path} is a run of {model!r} (stage {stage!r}), not of "
                f"{self.config.model!r} ({self.config.stage!r}); choose its folder or its model"
            )
        helper = {k: state["model"].pop(k) for k in self._helper_state()}
        if self.stage.helper is not None:
            self.stage.helper.load_state_dict(
                {k.removeprefix("helper."): value for k, value in helper.items()}
            )
        self.model.load_state_dict(state["model"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.crops, self.objects = state["counts"].tolist()

    def _helper_state(self) -> dict[str, Tensor]:
        if self.stage.helper is None:
            return {}
        return {f"helper.{k}": value for k, value in self.stage.helper.state_dict().items()}

    def run(self) -> Iterator[StepReport]:
        """Do the remaining steps; batches are cut in a second thread, one ahead."""
        start = time.monotonic()
        if self.config.minutes:
            self._ends_at = start + 60 * self.config.minutes
        with ThreadPoolExecutor(1) as ahead:
            pending = ahead.submit(self.stage.draw, self._rng(0), self._done())
            while self.step < self.config.steps:
                batch = pending.result()
                rng = self._rng(1)
                rate, share = self._learning_rate(), self._done()
                set_rate(self.optimizer, rate)
                self.step += 1
                pending = ahead.submit(self.stage.draw, self._rng(0), self._done())
                done = self._update(batch, rng, share)
                crops, objects = self.stage.count(batch)
                self.crops += crops
                self.objects += objects
                ious = [float(value) for value in done.ious]
                yield StepReport(
                    step=self.step,
                    crops=self.crops,
                    objects=self.objects,
                    loss=round(float(done.loss.detach()), 5),
                    parts=" ".join(f"{k}={float(v):.4f}" for k, v in done.parts.items()),
                    iou_first=round(ious[0], 4) if ious else None,
                    iou_last=round(ious[-1], 4) if ious else None,
                    clicks=len(ious),
                    learning_rate=rate,
                    seconds=round(time.monotonic() - start, 2),
                )
                if time.monotonic() >= self._ends_at:
                    return

    def _rng(self, stream: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, self.step, stream])

    def _done(self) -> float:
        """Share of the training that is done."""
        left_s = self._ends_at - time.monotonic()
        by_time = 0.0 if math.isinf(left_s) else 1 - left_s / (60 * self.config.minutes)
        return min(1.0, max(self.step / self.config.steps, by_time))

    def _learning_rate(self) -> float:
        config = self.config
        if self.step < config.warmup:
            return config.learning_rate * (self.step + 1) / config.warmup
        start = max(config.warmup, int(config.hold * config.steps))
        at = self.step if math.isinf(self._ends_at) else self._done() * config.steps
        done = max(0.0, (at - start) / max(1, config.steps - start))
        if config.schedule == "linear":
            return config.learning_rate * (1 - done)
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * done))

    def _update(self, batch: Any, rng: np.random.Generator, done: float) -> TaskLoss:
        # Noise depends on the step alone, so that a resumed run goes on as it would have.
        torch.manual_seed(int(rng.integers(2**62)))
        for parameter in self._stem:
            parameter.requires_grad_(done >= self._stem_at)
        self._set_modes()
        with self._autocast():
            out = self.stage.loss(batch, rng, done)
        self.optimizer.zero_grad(set_to_none=True)
        out.loss.backward()
        learning = [p for p in self._learning if p.grad is not None]
        norm = torch.nn.utils.clip_grad_norm_(learning, self.config.clip_norm)
        if torch.isfinite(norm):
            self.optimizer.step()
            average_into(self.averaged, self.model, self.config.ema_decay, self.step)
        else:
            # One such step would end the run: some half-precision kernels overflow on rare input.
            logger.warning("step %d: gradient is not finite, step left out", self.step)
        return out

    def _set_modes(self) -> None:
        """Only parts that learn are in training mode."""
        for part in self.model.children():
            part.train(any(parameter.requires_grad for parameter in part.parameters()))

    def _autocast(self) -> torch.autocast | nullcontext[None]:
        if self.stage.precision == "bfloat16":
            return torch.autocast(self.device.type, torch.bfloat16)
        return nullcontext()
