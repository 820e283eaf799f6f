"""The score of a training run on validation images: by size of the object, the best kept."""

from __future__ import annotations

import csv
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.batches import open_scene
from napari_hrsam.training.datasets import Sample, open_samples
from napari_hrsam.training.device_crops import UNCHANGED, DeviceCrops
from napari_hrsam.training.pack import PackedSample
from napari_hrsam.training.settings import TrainConfig
from napari_hrsam.training.tile_scores import SPANS, objects_to_score, quality, score_sizes

MAX_IMAGES = 6
"""Validation images of each domain at most."""


class Validation:
    """Scores a run now and then; writes ``validation.csv`` and keeps the best weights.

    Parameters
    ----------
    score : callable
        Takes the averaged model, in eval mode, and returns figures, among them ``quality``.
    out : Path
        Folder of the run. What an earlier part of the run found there is taken up.
    name : str
        Of the model: the best weights are ``NAME-best.safetensors``.
    """

    def __init__(self, score: Callable[[Any], dict[str, float]], out: Path, name: str) -> None:
        self._score = score
        self._path = out / "validation.csv"
        self._best_path = out / f"{name}-best.safetensors"
        self.best = self._best_so_far()

    def _best_so_far(self) -> float:
        if not (self._path.exists() and self._best_path.exists()):
            return -1.0
        with self._path.open(newline="") as stream:
            return max((float(row["quality"]) for row in csv.DictReader(stream)), default=-1.0)

    def score(self, model: Any, step: int, export: Callable[[Path], None]) -> float:
        """Score a model.

        Parameters
        ----------
        model : Module
            In eval mode.
        step : int
            Steps done.
        export : callable
            Called with the path to write the weights to, if they are the best so far.

        Returns
        -------
        float
            The figure ``quality``.
        """
        begin = time.monotonic()
        row = {"step": step, **self._score(model), "seconds": round(time.monotonic() - begin, 1)}
        is_new = not self._path.exists()
        with self._path.open("a", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)
        if row["quality"] > self.best:
            self.best = row["quality"]
            export(self._best_path)
        return row["quality"]


class ClickScores:
    """The figures of a segmenter: by size of the objects, on tiles of validation images.

    Parameters
    ----------
    config : TrainConfig
        With validation data.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        packed = packed_samples(open_samples(config.validation), max_images=MAX_IMAGES)
        self._crops = DeviceCrops(packed, config.device, augmentation=UNCHANGED, workers=1)
        self._objects = objects_to_score(self._crops, packed, config.validation_objects)

    def __call__(self, model: Segmenter) -> dict[str, float]:
        """Return ``quality`` (see `tile_scores.quality`) and what it is made of."""
        use_bf16 = model.precision == "bfloat16"
        device = torch.device(self.config.device)
        context = torch.autocast(device.type, torch.bfloat16) if use_bf16 else nullcontext()
        with torch.no_grad(), context:
            found = score_sizes(
                model, self._crops, self._objects, tile_px=self.config.validation_px
            )
        return {
            "quality": float(quality(found)),
            **{k: found[k] for k in ("iou1", "iou3", "iou5", "drops")},
            **{
                f"{name}_{low}-{high}": found["spans"][f"{low}-{high}"][name]
                for name in ("iou1", "iou5")
                for low, high in SPANS
                if found["spans"][f"{low}-{high}"]["objects"]
            },
        }


def packed_samples(samples: Sequence[Sample], *, max_images: int) -> list[PackedSample]:
    """Decode samples for `DeviceCrops`.

    Parameters
    ----------
    samples : sequence of Sample
    max_images : int
        The first so many of each domain are taken.
    """
    packed, taken = [], Counter[str]()
    for sample in samples:
        taken[sample.domain] += 1
        if taken[sample.domain] > max_images:
            continue
        scene = open_scene(sample)
        packed.append(
            PackedSample(
                key=sample.key,
                domain=sample.domain,
                source=sample.source,
                licence=sample.licence,
                split="val",
                pixels=scene.pixels,
                labels=scene.labels,
                second_labels=None,
                noc_objects=sample.objects,
            )
        )
    return packed
