"""What a training run teaches: which parts learn, from which batches, with which loss.

"clicks" teaches the whole model from simulated clicks; "decoder" the same with the encoder frozen;
"focus" the refiner alone; "distill" the image encoder alone, from a teacher's embeddings.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from napari_hrsam.modeling.checkpoints import read_state
from napari_hrsam.modeling.models import find_config
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.batches import CropSampler, to_tensors
from napari_hrsam.training.click_rounds import per_object
from napari_hrsam.training.click_task import ClickTask, TaskLoss
from napari_hrsam.training.dense_task import StemTeacher
from napari_hrsam.training.distill import TeacherCache
from napari_hrsam.training.focus_rounds import FocusRounds

if TYPE_CHECKING:
    from napari_hrsam.training.train_config import TrainConfig


class Stage(Protocol):
    """One way to train.

    Attributes
    ----------
    helper : nn.Module or None
        Layers that learn along and are thrown away afterwards.
    """

    helper: nn.Module | None

    def learns(self, name: str) -> bool:
        """Tell whether a parameter of the segmenter learns; the others are frozen."""

    def draw(self, rng: np.random.Generator, done: float) -> Any:
        """Draw a batch; runs in a second thread, one batch ahead."""

    def loss(self, model: Segmenter, drawn: Any, rng: np.random.Generator, done: float) -> TaskLoss:
        """Compute the loss of a batch; ``done`` is the share of the training that is done."""


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
        teacher = None
        if config.stem_teacher and config.clicks.stem_weight and not self.is_encoder_frozen:
            state, _ = read_state(Path(config.stem_teacher))
            dim = find_config(config.model).image_encoder.out_channels
            teacher = StemTeacher(state, dim).to(config.device)
        clicks = config.clicks
        if self.is_encoder_frozen:
            clicks = replace(clicks, dense_weight=0.0, stem_weight=0.0)
        self.task = ClickTask(clicks, teacher)
        self.helper: nn.Module | None = None if teacher is None else teacher.bridge

    def learns(self, name: str) -> bool:
        """Everything but a refiner; in the stage "decoder" without encoder and dense head."""
        if self.is_encoder_frozen:
            return name.startswith(("prompt_encoder.", "mask_decoder."))
        return not name.startswith("focus_refiner.")

    def draw(self, rng: np.random.Generator, done: float) -> Any:
        """Draw crops with objects."""
        return self.sampler.batch(rng, done)

    def loss(self, model: Segmenter, drawn: Any, rng: np.random.Generator, done: float) -> TaskLoss:
        """Loss of one sequence of clicks, of the dense head and of the stem's wide map."""
        out: TaskLoss = self.task(model, to_tensors(drawn, model.device), rng, done)
        return out


class FocusStage:
    """The refiner alone, with clicks before and after the refinement.

    Parameters
    ----------
    config : TrainConfig
    sampler : CropSampler
    """

    def __init__(self, config: TrainConfig, sampler: CropSampler) -> None:
        self.config, self.sampler = config, sampler
        self.helper: nn.Module | None = None

    def learns(self, name: str) -> bool:
        """Only the refiner."""
        return name.startswith("focus_refiner.")

    def draw(self, rng: np.random.Generator, done: float) -> Any:
        """Draw crops with objects."""
        return self.sampler.batch(rng, done)

    def loss(
        self,
        model: Segmenter,
        drawn: Any,
        rng: np.random.Generator,
        done: float,  # noqa: ARG002
    ) -> TaskLoss:
        """Loss right after the refinement and at the end of one sequence of clicks."""
        batch = to_tensors(drawn, model.device)
        with torch.no_grad():
            features = model.encode(batch.images)
        rounds = FocusRounds(batch.masks, rng, self.config.clicks, self.config.focus, batch.weight)
        found = rounds.run(model, per_object(features, batch.crop_index))
        return TaskLoss(found.loss, {"clicks": found.loss.detach()}, found.ious)


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
        self.helper: nn.Module | None = None
        if channels != cache.channels:
            self.helper = nn.Conv2d(channels, cache.channels, 1).to(student.device)

    def learns(self, name: str) -> bool:
        """Only the image encoder, without a stem that the teacher has too."""
        is_stem = name.startswith("image_encoder.stem.")
        return name.startswith("image_encoder.") and not (is_stem and self.has_stem)

    def draw(self, rng: np.random.Generator, done: float) -> Any:  # noqa: ARG002
        """Draw one of the cached batches."""
        return self.cache.read(int(rng.integers(self.cache.config.num_batches)))

    def loss(
        self,
        model: Segmenter,
        drawn: Any,
        rng: np.random.Generator,  # noqa: ARG002
        done: float,  # noqa: ARG002
    ) -> TaskLoss:
        """Mean squared error over channels and positions."""
        crops, target = drawn
        images = torch.from_numpy(crops).to(model.device).permute(0, 3, 1, 2).float()
        embedding = model.encode(images).embedding
        if self.helper is not None:
            embedding = self.helper(embedding)
        loss = F.mse_loss(embedding.float(), target.to(model.device))
        return TaskLoss(loss, {"embedding": loss.detach()}, [])
