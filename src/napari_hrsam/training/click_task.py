"""The loss of a batch of crops: clicks on its objects, maps of all of them, the stem's wide map.

Shape letters: B crops, N objects, S side of a crop in pixels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor, nn

from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.click_rounds import ClickRounds, per_object
from napari_hrsam.training.dense_targets import dense_targets
from napari_hrsam.training.dense_task import StemTeacher, dense_loss, prototype_loss
from napari_hrsam.training.settings import ClickConfig


class Crops(Protocol):
    """What a batch holds; `device_crops.DeviceBatch` is one.

    Attributes
    ----------
    images : (B, 3, S, S) float32, 0..255
    labels : (B, S, S) int64
        Objects of each crop; 0 = background.
    masks : (N, S, S) bool
        Objects to click on.
    crop_index : (N,) int64
    weight : (N,) float32
    max_id : int
        No value of ``labels`` is larger.
    """

    @property
    def images(self) -> Tensor: ...  # noqa: D102
    @property
    def labels(self) -> Tensor: ...  # noqa: D102
    @property
    def masks(self) -> Tensor: ...  # noqa: D102
    @property
    def crop_index(self) -> Tensor: ...  # noqa: D102
    @property
    def weight(self) -> Tensor: ...  # noqa: D102
    @property
    def max_id(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class TaskLoss:
    """The outcome of one batch.

    Attributes
    ----------
    loss : () Tensor
        With its graph.
    parts : dict of str to () Tensor
        What it is the sum of, before weighing; without graph, on the device.
    ious : list of () Tensor
        Mean IoU after each round of clicks, on the device.
    """

    loss: Tensor
    parts: dict[str, Tensor]
    ious: list[Tensor]


class ClickTask(nn.Module):
    """Teach a segmenter from simulated clicks and, from the same crops, its dense head.

    Parameters
    ----------
    config : ClickConfig
    teacher : StemTeacher, optional
        Needed for a ``stem_weight`` above 0; its projection learns along.
    """

    def __init__(self, config: ClickConfig, teacher: StemTeacher | None = None) -> None:
        super().__init__()
        self.config = config
        self.teacher = teacher

    def forward(
        self, model: Segmenter, batch: Crops, rng: np.random.Generator, done: float
    ) -> TaskLoss:
        """Compute the loss of a batch.

        Parameters
        ----------
        model : Segmenter
            In the mode in which it learns.
        batch : Crops
        rng : numpy.random.Generator
            Everything random follows from it.
        done : float, 0..1
            Share of the training that is done.
        """
        config = self.config
        features = model.encode(batch.images)
        rounds = ClickRounds(batch.masks, rng, config, batch.weight)
        clicked = rounds.run(model, per_object(features, batch.crop_index))
        loss, parts = clicked.loss, {"clicks": clicked.loss.detach()}
        if model.dense_head is not None and config.dense_weight:
            targets = dense_targets(batch.labels, max_id=batch.max_id)
            # Half of the time without the stem's maps: the embedding has to know it by itself.
            fine = (features.stride8, features.stride4) if rng.random() < 0.5 else ()
            dense = dense_loss(model.dense_head(features.embedding, *fine), targets)
            loss, parts["dense"] = loss + config.dense_weight * dense, dense.detach()
        if config.prototype_weight:
            alike = prototype_loss(features.embedding, batch.labels)
            loss, parts["prototype"] = loss + config.prototype_weight * alike, alike.detach()
        weight = config.stem_weight * max(0.0, 1 - done / config.stem_until)
        if self.teacher is not None and weight:
            unexplained = self.teacher(model.normalize(batch.images), features.embedding)
            loss, parts["stem"] = loss + weight * unexplained, unexplained.detach()
        return TaskLoss(loss, parts, clicked.ious)
