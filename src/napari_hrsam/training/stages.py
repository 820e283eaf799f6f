"""What a training run teaches: which parts learn, from which batches, with which loss.

"clicks" teaches the whole model from simulated clicks; "decoder" the same with the encoder frozen;
"focus" the refiner alone; "distill" the image encoder alone, from a teacher's embeddings; "outline"
the outline refiner, see `outline_task`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from napari_hrsam.modeling.checkpoints import load_model, read_state
from napari_hrsam.modeling.devices import choose_precision
from napari_hrsam.modeling.models import find_config
from napari_hrsam.modeling.saving import save_refiner, save_weights
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.batches import Batch, CropSampler, to_tensors
from napari_hrsam.training.click_rounds import per_object
from napari_hrsam.training.click_task import ClickTask, TaskLoss
from napari_hrsam.training.datasets import Sample
from napari_hrsam.training.dense_task import StemTeacher
from napari_hrsam.training.distill import TeacherCache
from napari_hrsam.training.focus_rounds import FocusRounds
from napari_hrsam.training.outline_task import OutlineStage
from napari_hrsam.training.settings import TrainConfig
from napari_hrsam.training.validation import ClickScores
from napari_hrsam.training.warm_start import start_model, take_decoder

logger = logging.getLogger(__name__)


class Stage(Protocol):
    """One way to train.

    Attributes
    ----------
    model : nn.Module
        The network, on the run's device.
    precision : {"float32", "bfloat16"}
        Of its arithmetic in training.
    helper : nn.Module or None
        Layers that learn along and are thrown away afterwards.
    data : str
        What is learned from besides the samples, for the weights' metadata.
    """

    model: Any
    precision: str
    helper: nn.Module | None
    data: str

    def learns(self, name: str) -> bool:
        """Tell whether a parameter of the network learns; the others are frozen."""

    def draw(self, rng: np.random.Generator, done: float) -> Any:
        """Draw a batch; runs in a second thread, one batch ahead."""

    def count(self, drawn: Any) -> tuple[int, int]:
        """Count the crops and the objects of a batch."""

    def loss(self, drawn: Any, rng: np.random.Generator, done: float) -> TaskLoss:
        """Compute the loss of a batch; ``done`` is the share of the training that is done."""

    def save(self, averaged: Any, path: Path, trained_on: str) -> None:
        """Write weights for use: fp16 safetensors."""

    def scores(self) -> Callable[[Any], dict[str, float]]:
        """Make the function that scores an averaged model on the validation data."""


def make_stage(config: TrainConfig, samples: Sequence[Sample]) -> Stage:
    """Make the stage of a run, with its network.

    Parameters
    ----------
    config : TrainConfig
    samples : sequence of Sample
        To learn from.

    Raises
    ------
    CheckpointError
        If weights to start from are unreadable or of another model.
    DataError
        If the samples hold nothing to learn from.
    """
    if config.stage == "outline":
        return OutlineStage(config, samples)
    sampler = CropSampler(samples, config.crops)
    if config.stage == "focus":
        return FocusStage(config, sampler)
    return (DistillStage if config.stage == "distill" else ClickStage)(config, sampler)


class _SegmenterStage:
    """What the stages that teach a segmenter from crops with objects have in common.

    Parameters
    ----------
    config : TrainConfig
    sampler : CropSampler
    """

    data = ""

    def __init__(self, config: TrainConfig, sampler: CropSampler) -> None:
        self.config, self.sampler = config, sampler
        device = torch.device(config.device)
        self.model = start_model(
            find_config(config.model), config.init, partly=config.init_partly
        ).to(device)
        self.precision = choose_precision(config.precision, device, on_cpu=True)
        self.model.precision = self.precision
        self.model.set_backends("auto", config.scan)
        self.helper: nn.Module | None = None

    def draw(self, rng: np.random.Generator, done: float) -> Any:
        """Draw crops with objects."""
        return self.sampler.batch(rng, done)

    def count(self, drawn: Batch) -> tuple[int, int]:
        """Crops, and objects that are clicked on."""
        return len(drawn.images), len(drawn.masks)

    def save(self, averaged: Segmenter, path: Path, trained_on: str) -> None:
        """Write the whole model."""
        save_weights(averaged, path, trained_on=trained_on)

    def scores(self) -> Callable[[Any], dict[str, float]]:
        """Masks after simulated clicks."""
        return ClickScores(self.config)


class ClickStage(_SegmenterStage):
    """Simulated clicks on the whole model, or on prompt encoder and decoder only."""

    def __init__(self, config: TrainConfig, sampler: CropSampler) -> None:
        super().__init__(config, sampler)
        self.is_encoder_frozen = config.stage != "clicks"
        teacher = None
        if config.stem_teacher and config.clicks.stem_weight and not self.is_encoder_frozen:
            state, _ = read_state(Path(config.stem_teacher))
            dim = find_config(config.model).image_encoder.out_channels
            teacher = StemTeacher(state, dim).to(config.device)
        clicks = config.clicks
        if self.is_encoder_frozen:
            clicks = replace(clicks, dense_weight=0.0, prototype_weight=0.0, stem_weight=0.0)
        self.task = ClickTask(clicks, teacher)
        self.helper = None if teacher is None else teacher.bridge

    def learns(self, name: str) -> bool:
        """Everything but a refiner; in the stage "decoder" without encoder and dense head."""
        if self.is_encoder_frozen:
            return name.startswith(("prompt_encoder.", "mask_decoder."))
        return not name.startswith("focus_refiner.")

    def loss(self, drawn: Batch, rng: np.random.Generator, done: float) -> TaskLoss:
        """Loss of one sequence of clicks, of the dense head and of the stem's wide map."""
        out: TaskLoss = self.task(self.model, to_tensors(drawn, self.model.device), rng, done)
        return out


class FocusStage(_SegmenterStage):
    """The refiner alone, with clicks before and after the refinement."""

    def learns(self, name: str) -> bool:
        """Only the refiner."""
        return name.startswith("focus_refiner.")

    def loss(
        self,
        drawn: Batch,
        rng: np.random.Generator,
        done: float,  # noqa: ARG002
    ) -> TaskLoss:
        """Loss right after the refinement and at the end of one sequence of clicks."""
        model, batch = self.model, to_tensors(drawn, self.model.device)
        with torch.no_grad():
            features = model.encode(batch.images)
        rounds = FocusRounds(batch.masks, rng, self.config.clicks, self.config.focus, batch.weight)
        found = rounds.run(model, per_object(features, batch.crop_index))
        return TaskLoss(found.loss, {"clicks": found.loss.detach()}, found.ious)

    def save(self, averaged: Segmenter, path: Path, trained_on: str) -> None:
        """Write the refiner alone."""
        save_refiner(averaged, path, trained_on=trained_on)


class DistillStage(_SegmenterStage):
    """Mean squared error between the student's embedding and the teacher's.

    Where their numbers of channels differ a linear map of the student's learns along, and is thrown
    away afterwards.
    """

    def __init__(self, config: TrainConfig, sampler: CropSampler) -> None:
        super().__init__(config, sampler)
        teacher = load_model(config.distill.teacher, device=config.device)
        take_decoder(self.model, teacher)
        folder = Path(config.out) / "teacher"
        self.cache = TeacherCache(folder, config.distill, teacher, sampler, config.seed)
        self.cache.complete(_log_cached)
        # The decoder reads a stem's fine maps: one that both have stays as it is.
        self.has_stem = getattr(teacher.image_encoder, "stem", None) is not None
        channels = self.model.config.image_encoder.out_channels
        if channels != self.cache.channels:
            self.helper = nn.Conv2d(channels, self.cache.channels, 1).to(self.model.device)

    def learns(self, name: str) -> bool:
        """Only the image encoder, without a stem that the teacher has too."""
        is_stem = name.startswith("image_encoder.stem.")
        return name.startswith("image_encoder.") and not (is_stem and self.has_stem)

    def draw(self, rng: np.random.Generator, done: float) -> Any:  # noqa: ARG002
        """Draw one of the cached batches."""
        return self.cache.read(int(rng.integers(self.cache.config.num_batches)))

    def count(self, drawn: Any) -> tuple[int, int]:
        """Crops; nothing is clicked on."""
        return len(drawn[0]), 0

    def loss(
        self,
        drawn: Any,
        rng: np.random.Generator,  # noqa: ARG002
        done: float,  # noqa: ARG002
    ) -> TaskLoss:
        """Mean squared error over channels and positions."""
        crops, target = drawn
        device = self.model.device
        images = torch.from_numpy(crops).to(device).permute(0, 3, 1, 2).float()
        embedding = self.model.encode(images).embedding
        if self.helper is not None:
            embedding = self.helper(embedding)
        loss = F.mse_loss(embedding.float(), target.to(device))
        return TaskLoss(loss, {"embedding": loss.detach()}, [])


def _log_cached(done: int, total: int) -> None:
    logger.info("teacher's embeddings: %d of %d batches", done, total)
