"""A training of hrsam-tiny that is limited by time, with all of its data on one device."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from napari_hrsam.modeling.saving import save_weights
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.selective_scan import numba_ready
from napari_hrsam.training.click_task import ClickTask, TaskLoss
from napari_hrsam.training.dense_task import StemTeacher
from napari_hrsam.training.designs import Design
from napari_hrsam.training.device_crops import DeviceBatch, DeviceCrops
from napari_hrsam.training.flat_weights import FlatWeights
from napari_hrsam.training.graphed import CudaCapture, GraphedTask
from napari_hrsam.training.run_output import RunOutput
from napari_hrsam.training.settings import ClickConfig
from napari_hrsam.training.tile_scores import Ablation, quality, score_sizes

CROPS = ((256, 64, 3), (512, 16, 3))
"""Side in pixels, crops and objects per crop of the batches: equal numbers of pixels. Every size
costs each process some seconds at its first steps, for the plans of its convolutions."""
_CROP_SHARES = ((0.6, 0.4), (0.3, 0.7))
"""How often each is drawn, at the start and at the end."""
_WIDE_SPAN = (0.35, 0.95)
_PARTS = ("clicks", "dense", "stem")
COLUMNS = ("name", "seconds", "step", "crops", "loss", "iou_first", "iou_last", *_PARTS)
"""Of the rows that `train_for` writes."""
_MOST_HALVINGS = 4


@dataclass(frozen=True, kw_only=True, slots=True)
class RunConfig:
    """How a run learns.

    Attributes
    ----------
    learning_rate : float
        Its peak: reached after 100 steps, kept for 0.3 of the time, then a cosine to zero.
    stem_at : float, 0..1
        Share of the time from which the pretrained stem learns too.
    batch_factor : float
        On the numbers of crops of `CROPS`.
    graphs : bool
        Replay CUDA graphs where there is CUDA.
    small : bool
        Tiny batches and scores, for a rehearsal.
    seed : int
    """

    learning_rate: float = 1.5e-3
    stem_at: float = 0.35
    batch_factor: float = 1.0
    graphs: bool = True
    small: bool = False
    seed: int = 1


class Run:
    """One training on one device; `train_for` drives it. On CUDA: inside `graphed.own_stream`.

    Parameters
    ----------
    design : Design
    stem : mapping of str to Tensor
        The pretrained stem, see ``scripts/import_efficientnet.py``.
    train, val : DeviceCrops
        On the device.
    objects : (P,) int64
        Rows of val's tables to score.
    config : RunConfig, optional
    init : mapping of str to Tensor, optional
        Weights to start from, of the same design.
    """

    def __init__(
        self,
        design: Design,
        stem: Mapping[str, Tensor],
        train: DeviceCrops,
        val: DeviceCrops,
        objects: Tensor,
        config: RunConfig | None = None,
        init: Mapping[str, Tensor] | None = None,
    ) -> None:
        self.config = config or RunConfig()
        self.design = design
        torch.manual_seed(self.config.seed)
        self.device = train.device
        self.train, self.val, self.objects = train, val, objects
        self.model, self.averaged = Segmenter(design.config), Segmenter(design.config)
        self._fill(stem, init)
        self.averaged.eval().requires_grad_(False)
        teacher = None
        if design.stem_weight:
            teacher = StemTeacher(stem, design.config.decoder.embed_dim)
        clicks = ClickConfig(stem_weight=design.stem_weight)
        self.task = ClickTask(clicks, teacher).to(self.device)
        learning = [*self.model.named_parameters()]
        learning += [(n, p) for n, p in self.task.named_parameters() if p.requires_grad]
        self.weights = FlatWeights(
            learning,
            self.averaged,
            learning_rate=self.config.learning_rate,
            weight_decay=0.02,
            stem_factor=0.1,
        )
        self.weights.let_stem_learn(False)
        use_graphs = self.config.graphs and self.device.type == "cuda"
        self.graphed = GraphedTask(
            self.model, self.task, capture=CudaCapture() if use_graphs else None
        )
        self.batch_factor = self.config.batch_factor
        self.fixed_size: int | None = None
        self.step = self.crops = self.objects_seen = self.halvings = 0
        self._recent: list[Tensor] = []
        self._blocks: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self._stem_learns = False

    def _fill(self, stem: Mapping[str, Tensor], init: Mapping[str, Tensor] | None) -> None:
        if init is not None:
            self.model.load_state_dict({k: v.float() for k, v in init.items()})
        else:
            mine = self.model.state_dict()
            self.model.load_state_dict({k: v for k, v in stem.items() if k in mine}, strict=False)
        self.averaged.load_state_dict(self.model.state_dict())
        for model in (self.model, self.averaged):
            model.to(self.device)
            if self.device.type == "cpu":
                model.set_backends("auto", "numba" if numba_ready() else "torch")

    def batch(self, rng: np.random.Generator, done: float) -> DeviceBatch:
        """Draw crops: half of the batches with large objects."""
        start, end = (np.array(s) for s in _CROP_SHARES)
        index = int(rng.choice(len(CROPS), p=start + (end - start) * done))
        index = index if self.fixed_size is None else self.fixed_size
        px, num, objects = CROPS[index]
        num = max(1, int(num * self.batch_factor))
        if self.config.small:
            px, num, objects = px // 4, max(1, int(2 * self.batch_factor)), 2
        low = max(0.06, 20.0 / px)
        span = (low, 0.5) if rng.random() < 0.5 else _WIDE_SPAN
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        return self.train.batch(
            generator, crop_px=px, num_crops=num, objects_per_crop=objects, span=span
        )

    def advance(self, done: float) -> None:
        """Do one step; nothing waits for the device.

        Parameters
        ----------
        done : float, 0..1
            Share of the time that is over.
        """
        rng = np.random.default_rng([self.config.seed, self.step])
        if done >= self.config.stem_at and not self._stem_learns:
            self._stem_learns = True
            self.weights.let_stem_learn(True)
        batch = self.batch(rng, done)
        self.model.train()
        self.weights.zero_grad()
        out = self.graphed.step(batch, rng, done)
        warm = min(1.0, (self.step + 1) / 100)
        fall = 0.5 * (1 + math.cos(math.pi * max(0.0, (done - 0.3) / 0.7)))
        self.weights.step(self.config.learning_rate * warm * fall)
        self.step += 1
        self.weights.average(0.998, self.step)
        self.crops += len(batch.images)
        self.objects_seen += len(batch.masks)
        self._recent.append(_numbers(out))

    def report(self) -> dict[str, float]:
        """Average what the block of steps before the last one said.

        That block is over or nearly so, and the device goes on with the last one meanwhile.
        """
        means = torch.stack(self._recent).nanmean(0)
        self._recent.clear()
        event = None
        if self.device.type == "cuda":
            means = means.to("cpu", non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        self._blocks.append((means, event))
        if len(self._blocks) > 2:
            self._blocks.popleft()
        values, event = self._blocks[0]
        if event is not None:
            event.synchronize()
        return dict(zip(COLUMNS[4:], values.tolist(), strict=True))

    def halve(self) -> bool:
        """Halve the batches after memory ran out; False if that was done often enough."""
        self.halvings += 1
        self.batch_factor /= 2
        self.graphed.clear()
        self._recent.clear()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        return self.halvings <= _MOST_HALVINGS

    @torch.no_grad()
    def score(self, ablations: Sequence[Ablation] = ("none",)) -> dict[str, Any]:
        """Score the averaged weights.

        Parameters
        ----------
        ablations : sequence of Ablation

        Returns
        -------
        dict
            By ablation: means over the sizes, and ``spans`` with the scores of each size.
        """
        small = self.config.small
        out: dict[str, Any] = {}
        with torch.autocast(self.device.type, torch.bfloat16):
            for ablation in ablations:
                out[ablation] = score_sizes(
                    self.averaged,
                    self.val,
                    self.objects,
                    ablation=ablation,
                    tile_px=128 if small else 512,
                    at_once=4 if small or self.device.type == "cpu" else 32,
                )
        return out

    def save(self, path: Path, note: str = "") -> None:
        """Write the averaged weights, fp16."""
        seen = f"{self.step} steps, {self.crops} crops, {self.objects_seen} objects on one device"
        save_weights(self.averaged, path, trained_on=seen + note)


def _numbers(out: TaskLoss) -> Tensor:
    """Loss, first and last IoU and the parts; NaN for what there is not."""
    nothing = torch.full_like(out.loss, torch.nan)
    last = out.ious[-1] if len(out.ious) > 1 else nothing
    parts = [out.parts.get(name, nothing) for name in _PARTS]
    return torch.stack([out.loss, out.ious[0], last, *parts]).float()


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """How `train_for` trains and scores.

    Attributes
    ----------
    name : str
        Of the weight file, the rows and the entry in the facts.
    seconds : float
        With the scores between, without the last one.
    score_every : float
        Seconds between scores; infinite = only the last one.
    ablations : tuple of Ablation
        Of the last score.
    keep_weights : bool
    """

    name: str
    seconds: float
    score_every: float = math.inf
    ablations: tuple[Ablation, ...] = ("none", "embedding", "fine")
    keep_weights: bool = True


def train_for(
    run: Run,
    trial: Trial,
    out: RunOutput,
    *,
    busy: Callable[[], float | None] = lambda: None,
    told_to_end: Callable[[], bool] = lambda: False,
) -> float:
    """Train for a time, keep the best weights; with half the crops where memory runs out.

    Parameters
    ----------
    run : Run
    trial : Trial
    out : RunOutput
    busy : callable
        Percent of the time that the device was busy since the last call.
    told_to_end : callable
        Asked after every step. Then the averaged weights of that moment go to
        ``last.safetensors``, and nothing is scored.

    Returns
    -------
    float
        Quality of the best weights; -1 if nothing was scored.

    Raises
    ------
    torch.OutOfMemoryError
        If memory runs out again and again.
    """
    start = time.monotonic()
    next_score, best = trial.score_every, -1.0
    block = 2 if run.config.small else 10
    while (elapsed := time.monotonic() - start) < trial.seconds:
        try:
            for _ in range(block):
                run.advance(min(1.0, (time.monotonic() - start) / trial.seconds))
                if told_to_end():
                    run.save(out.folder / "last.safetensors", ", ended early")
                    out.put(ended_early_at_step=run.step)
                    return best
            row = run.report()
        except torch.OutOfMemoryError:
            if not run.halve():
                raise
            out.say(f"out of memory: crops times {run.batch_factor} from now on")
            continue
        values = (round(v, 4) for v in row.values())
        out.row(trial.name, round(elapsed, 1), run.step, run.crops, *values)
        if run.step % 100 == 0 or run.config.small:
            rate = run.crops / (time.monotonic() - start)
            out.say(
                f"{trial.name} step {run.step}, {rate:.0f} crops/s, "
                f"{run.graphed.num_records} records, loss {row['loss']:.3f}, "
                f"IoU first {row['iou_first']:.3f} last {row['iou_last']:.3f}"
            )
        if elapsed > next_score:
            next_score += trial.score_every
            best = max(best, _keep_if_best(run, replace(trial, ablations=("none",)), out, best))
    return max(best, _keep_if_best(run, trial, out, best, busy()))


def _keep_if_best(
    run: Run, trial: Trial, out: RunOutput, best: float, busy: float | None = None
) -> float:
    """Score, write what was found, and the weights if they are the best so far."""
    begin = time.monotonic()
    score = run.score(trial.ablations)
    found = quality(score["none"])
    entry = {
        "step": run.step,
        "crops": run.crops,
        "objects": run.objects_seen,
        "batch_factor": run.batch_factor,
        "graphs": run.graphed.capture is not None,
        "quality": round(found, 4),
        "gpu_busy_percent": busy,
        "seconds_to_score": round(time.monotonic() - begin, 1),
        "score": score,
    }
    out.put(**{trial.name: [*out.facts.get(trial.name, []), entry]})
    sizes = {k: (v["iou1"], v["iou5"]) for k, v in score["none"]["spans"].items() if v["objects"]}
    out.say(f"{trial.name} SCORE {found:.4f} at step {run.step}: IoU@1, @5 by size {sizes}")
    if found > best and trial.keep_weights:
        run.save(out.folder / f"{trial.name}.safetensors")
    return found
