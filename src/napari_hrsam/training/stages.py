"""What a training run teaches: which parts learn, from which batches, with which loss.

"clicks" teaches the whole model from simulated clicks; "decoder" the same with the encoder frozen;
"focus" the refiner alone; "distill" the image encoder alone, from a teacher's embeddings.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.batches import CropSampler
from napari_hrsam.training.click_rounds import ClickRounds, per_object
from napari_hrsam.training.distill import TeacherCache
from napari_hrsam.training.focus_rounds import FocusRounds

if TYPE_CHECKING:
    from napari_hrsam.training.train_config import TrainConfig

_REFINER = ("focus_refiner.",)


@dataclass(frozen=True, slots=True)
class StageLoss:
    """The outcome of one batch.

    Attributes
    ----------
    loss : () Tensor
        With its graph.
    ious : list of float
        Mean IoU after each round of clicks; empty where there are none.
    crops, objects : int
        Size of the batch.
    """

    loss: Tensor
    ious: list[float]
    crops: int
    objects: int


class Stage(Protocol):
    """One way to train.

    Attributes
    ----------
    bridge : nn.Module or None
        A layer that learns along and is thrown away afterwards.
    """

    bridge: nn.Module | None

    def learns(self, name: str) -> bool:
        """Tell whether a parameter of the segmenter learns; the others are frozen."""

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw a batch; runs in a second thread, one batch ahead."""

    def loss(self, model: Segmenter, drawn: Any, rng: np.random.Generator) -> StageLoss:
        """Compute the loss of a batch."""


class ClickStage:
    """Simulated clicks on the whole model, or on prompt encoder and decoder only.

    Parameters
    ----------
    config : TrainConfig
    sampler : CropSampler
    """

    def __init__(self, config: TrainConfig, sampler: CropSampler) -> None:
        self.config, self.sampler = config, sampler
        self.is_encoder_frozen = config.stage != "clicks"
        self.bridge: nn.Module | None = None

    def learns(self, name: str) -> bool:
        """Everything but a refiner; in the stage "decoder" without the image encoder."""
        frozen = ("focus_refiner.", "image_encoder.") if self.is_encoder_frozen else _REFINER
        return not name.startswith(frozen)

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw crops with objects."""
        return self.sampler.batch(rng)

    def loss(self, model: Segmenter, drawn: Any, rng: np.random.Generator) -> StageLoss:
        """Loss after the first and the last round of one sequence of clicks."""
        images = _to_images(drawn.images, model)
        index = torch.from_numpy(drawn.crop_index).to(model.device)
        with torch.set_grad_enabled(not self.is_encoder_frozen):
            features = model.encode(images)
        loss, ious = self._rounds(drawn, rng, model).loss(model, per_object(features, index))
        return StageLoss(loss, ious, len(drawn.images), len(drawn.masks))

    def _rounds(self, drawn: Any, rng: np.random.Generator, model: Segmenter) -> ClickRounds:
        return ClickRounds(
            drawn.masks,
            rng,
            max_clicks=self.config.max_clicks,
            click_decay=self.config.click_decay,
            box_share=self.config.box_share,
            device=model.device,
        )


class FocusStage(ClickStage):
    """The refiner alone, with clicks before and after the refinement."""

    def learns(self, name: str) -> bool:
        """Only the refiner."""
        return name.startswith(_REFINER)

    def _rounds(self, drawn: Any, rng: np.random.Generator, model: Segmenter) -> ClickRounds:
        return FocusRounds(
            drawn.masks,
            rng,
            max_clicks=self.config.max_clicks,
            click_decay=self.config.click_decay,
            refine_decay=self.config.refine_decay,
            point_weight=self.config.point_weight,
            dice_weight=self.config.dice_weight,
            device=model.device,
        )


class DistillStage:
    """Mean squared error between the student's embedding and the teacher's.

    Where their numbers of channels differ a linear map of the student's learns along, and is thrown
    away afterwards.

    Parameters
    ----------
    cache : TeacherCache
        Complete.
    student : Segmenter
    """

    def __init__(self, cache: TeacherCache, student: Segmenter) -> None:
        self.cache = cache
        # The decoder reads a stem's fine maps: one that both have stays as it is.
        self.has_stem = getattr(cache.teacher.image_encoder, "stem", None) is not None
        channels = student.config.image_encoder.out_channels
        self.bridge: nn.Module | None = None
        if channels != cache.channels:
            self.bridge = nn.Conv2d(channels, cache.channels, 1).to(student.device)

    def learns(self, name: str) -> bool:
        """Only the image encoder, without a stem that the teacher has too."""
        is_stem = name.startswith("image_encoder.stem.")
        return name.startswith("image_encoder.") and not (is_stem and self.has_stem)

    def draw(self, rng: np.random.Generator) -> Any:
        """Draw one of the cached batches."""
        return self.cache.read(int(rng.integers(self.cache.config.num_batches)))

    def loss(self, model: Segmenter, drawn: Any, rng: np.random.Generator) -> StageLoss:  # noqa: ARG002
        """Mean squared error over channels and positions."""
        crops, target = drawn
        embedding = model.encode(_to_images(crops, model)).embedding
        if self.bridge is not None:
            embedding = self.bridge(embedding)
        loss = F.mse_loss(embedding.float(), target.to(model.device))
        return StageLoss(loss, [], len(crops), 0)


def _to_images(crops: Any, model: Segmenter) -> Tensor:
    images: Tensor = torch.from_numpy(crops).to(model.device).permute(0, 3, 1, 2).float()
    return images
