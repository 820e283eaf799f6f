"""The stage "outline": crops along outlines, coarse masks with errors, a loss at the edge."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.outline_refiner import (
    OutlineRefiner,
    load_outline_refiner,
    save_outline_refiner,
)
from napari_hrsam.training.click_task import TaskLoss
from napari_hrsam.training.datasets import Sample, open_samples
from napari_hrsam.training.outline_crops import OutlineBatch, OutlineSampler
from napari_hrsam.training.outline_scores import outline_cases, score_refiner
from napari_hrsam.training.settings import TrainConfig

VALIDATION_AREA_PX = 2500
"""Area of the smallest objects that weights are chosen by."""

_BAND_PX = 12
_FAR_WEIGHT = 0.1
_VALIDATED_FACTOR = 4


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


class OutlineStage:
    """The outline refiner, from crops along the outlines of objects.

    Parameters
    ----------
    config : TrainConfig
    samples : sequence of Sample
    """

    data = " and drawings"

    def __init__(self, config: TrainConfig, samples: Sequence[Sample]) -> None:
        self.config = config
        refiner = OutlineRefiner()
        for path in config.init:
            refiner = load_outline_refiner(path=Path(path))
        self.model = refiner.to(config.device).train().requires_grad_(True)
        self.precision = "bfloat16" if config.precision == "bfloat16" else "float32"
        self.sampler = OutlineSampler(samples, config.outline)
        self.helper: nn.Module | None = None

    def learns(self, name: str) -> bool:  # noqa: ARG002
        """All of it."""
        return True

    def draw(self, rng: np.random.Generator, done: float) -> OutlineBatch:  # noqa: ARG002
        """Draw crops with coarse masks."""
        return self.sampler.batch(rng)

    def count(self, drawn: OutlineBatch) -> tuple[int, int]:
        """Crops, and objects: one each."""
        return len(drawn.images), len(drawn.images)

    def loss(
        self,
        drawn: OutlineBatch,
        rng: np.random.Generator,  # noqa: ARG002
        done: float,  # noqa: ARG002
    ) -> TaskLoss:
        """Cross-entropy and Dice where outlines are decided."""
        device = self.config.device
        images = torch.from_numpy(drawn.images).to(device).permute(0, 3, 1, 2).float()
        priors, masks, known = (
            torch.from_numpy(array).to(device)[:, None]
            for array in (drawn.priors, drawn.masks, drawn.known)
        )
        logits = self.model(images, priors)
        weight = self.config.outline.dice_weight
        loss = outline_loss(logits, masks, priors, known, dice_weight=weight)
        return TaskLoss(loss, {"outline": loss.detach()}, [])

    def save(self, averaged: nn.Module, path: Path, trained_on: str) -> None:
        """Write the refiner."""
        assert isinstance(averaged, OutlineRefiner)
        save_outline_refiner(averaged, path, trained_on=trained_on)

    def scores(self) -> Callable[[Any], dict[str, float]]:
        """Accuracy in the band along the outline, mean of domains."""
        samples = open_samples(self.config.validation)
        cases = list(outline_cases(samples, per_domain=4, min_area_px=VALIDATION_AREA_PX))

        def score(refiner: OutlineRefiner) -> dict[str, float]:
            found = score_refiner(refiner, cases, factor=_VALIDATED_FACTOR)
            return {"quality": round(found["mean of domains"]["refined_band"], 5)}

        return score
