"""Losses of whole crops, and the task that joins them with the clicks."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_hrsam.modeling.efficientnet import EfficientNetLite0
from napari_hrsam.modeling.models import HRSAM_TINY
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.click_task import ClickTask
from napari_hrsam.training.dense_task import StemTeacher, dense_loss, prototype_loss
from napari_hrsam.training.settings import ClickConfig

SIDE = 64


def targets() -> Tensor:
    """One object of 8 x 8 cells of the head in the middle, at twice the size."""
    out = torch.zeros(1, 3, 32, 32)
    out[:, 0, 8:24, 8:24] = 1
    out[:, 1, 8:24, 8:24] = 0.25
    out[:, 2, 8:24, 8:24] = 0.75
    return out


def perfect() -> Tensor:
    small = F.avg_pool2d(targets(), 2)
    logits = torch.logit(small.clamp(1e-6, 1 - 1e-6))
    logits[:, 0] = 40 * (small[:, 0] - 0.5)
    return logits


def test_perfect_maps_cost_nothing() -> None:
    assert dense_loss(perfect(), targets()) < 1e-3


@pytest.mark.parametrize(
    ("channel", "where"), [(0, "in"), (0, "out"), (1, "in"), (2, "in"), (2, "out")]
)
def test_every_wrong_map_costs(channel: int, where: str) -> None:
    place = (slice(5, 7), slice(5, 7)) if where == "in" else (slice(0, 2), slice(0, 2))
    wrong = perfect()
    wrong[(0, channel, *place)] *= -1
    if (channel, where) == (1, "in"):
        wrong[(0, channel, *place)] = 3.0
    assert dense_loss(wrong, targets()) > dense_loss(perfect(), targets()) + 1e-3


def test_centre_distance_does_not_count_in_the_background() -> None:
    wrong = perfect()
    wrong[0, 1, 0, 0] = 5.0
    torch.testing.assert_close(dense_loss(wrong, targets()), dense_loss(perfect(), targets()))


def test_centre_distance_at_an_edge_is_that_of_the_object() -> None:
    # Cells that are half covered hold half of the distance, and are to predict all of it.
    maps = torch.roll(targets(), 1, 2)
    small = F.avg_pool2d(maps, 2)
    logits = torch.logit(small.clamp(1e-6, 1 - 1e-6))
    logits[:, 1] = torch.logit(torch.tensor(0.25))
    wrong = logits.clone()
    wrong[:, 1] = torch.logit((small[:, 1]).clamp(1e-6))
    assert dense_loss(logits, maps) < dense_loss(wrong, maps) - 1e-4


def test_teacher_measures_the_unexplained_share() -> None:
    torch.manual_seed(0)
    net = EfficientNetLite0(32)
    teacher = StemTeacher(
        {f"image_encoder.stem.net.{k}": v for k, v in net.state_dict().items()}, 8
    )
    image = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        target = net.eval()(image)[32]
    embedding = torch.zeros(2, 8, 4, 4, requires_grad=True)
    teacher.bridge.weight.data.zero_()
    teacher.bridge.bias.data.zero_()
    spread = target.std((0, 2, 3)).clamp(min=1e-2)
    rows = (target - target.mean((0, 2, 3), keepdim=True)) / spread[:, None, None]
    wide = F.interpolate(rows, (4, 4), mode="bilinear", align_corners=False)
    loss = teacher(image, embedding)
    torch.testing.assert_close(loss, wide.square().mean())
    teacher.bridge.weight.data.normal_()
    teacher(image, embedding).backward()
    assert embedding.grad.abs().max() > 0
    assert teacher.bridge.weight.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in teacher.net.parameters())


def batch() -> Any:
    y, x = np.mgrid[:SIDE, :SIDE]
    labels = np.zeros((2, SIDE, SIDE), np.int64)
    labels[:, (y - 30) ** 2 + (x - 25) ** 2 < 150] = 1
    labels = torch.from_numpy(labels)
    torch.manual_seed(0)
    return SimpleNamespace(
        images=120.0 * (labels[:, None] > 0) + 60 * torch.rand(2, 3, SIDE, SIDE),
        labels=labels,
        masks=labels == 1,
        crop_index=torch.tensor([0, 1]),
        weight=torch.ones(2),
        max_id=1,
    )


@pytest.fixture(scope="module")
def model() -> Segmenter:
    torch.manual_seed(0)
    encoder = replace(HRSAM_TINY.image_encoder, depth=0, stage_ends=())
    return Segmenter(replace(HRSAM_TINY, image_encoder=encoder)).train()


def crop(*rows: list[int]) -> Tensor:
    """Labels of one crop from one value a cell of 4 x 4 pixels."""
    return torch.tensor(rows).repeat_interleave(4, 0).repeat_interleave(4, 1)[None]


TWO_OBJECTS = [[1, 1, 0, 2], [1, 1, 0, 2]]


def vectors(labels: Tensor, object_2: list[float]) -> Tensor:
    """(1, 2, 2, 4) embedding: objects along the first axis, background along the second."""
    kinds = torch.tensor([[0.0, 3.0], [2.0, 0.0], object_2])
    return kinds[labels[:, 2::4, 2::4]].permute(0, 3, 1, 2)


def test_objects_that_look_alike_cost_nothing_beside_a_background_that_does_not() -> None:
    labels = crop(*TWO_OBJECTS)
    assert prototype_loss(vectors(labels, [5.0, 0.0]), labels) < 1e-3


def test_every_object_is_a_prototype_for_the_cells_of_the_others() -> None:
    labels = crop(*TWO_OBJECTS)
    # In units of the temperature, the two objects are at 6; to the background object 1 is at 0 and
    # object 2 at 8. There are two cells for the first, and four for the second.
    first, second = F.softplus(torch.tensor([0.0 - 6.0, 8.0 - 6.0]))
    found = prototype_loss(vectors(labels, [3.0, 4.0]), labels)
    torch.testing.assert_close(found, (2 * first + 4 * second) / 6)


@pytest.mark.parametrize("cells", [[[1, 1, 0, 0]], [[1, 1, 2, 2]], [[0, 0, 0, 0]]])
def test_crop_without_two_objects_and_background_teaches_no_prototypes(
    cells: list[list[int]],
) -> None:
    labels = crop(cells[0], cells[0])
    embedding = torch.randn(1, 2, 2, 4, requires_grad=True)
    loss = prototype_loss(embedding, labels)
    assert loss == 0
    loss.backward()
    assert embedding.grad is not None
    assert not embedding.grad.abs().any()


def teacher() -> StemTeacher:
    state = EfficientNetLite0(32).state_dict()
    return StemTeacher({f"image_encoder.stem.net.{k}": v for k, v in state.items()}, 128)


def loss_of(task: ClickTask, model: Segmenter, done: float = 0.0, seed: int = 0) -> Any:
    return task(model, batch(), np.random.default_rng(seed), done)


ONE = ClickConfig(first_share=1, box_share=0)


def test_loss_is_the_weighted_sum_of_the_parts(model: Segmenter) -> None:
    config = replace(ONE, dense_weight=3, prototype_weight=2, stem_weight=0.5, stem_until=0.4)
    out = loss_of(ClickTask(config, teacher()), model, done=0.1)
    parts = out.parts
    assert set(parts) == {"clicks", "dense", "prototype", "stem"}
    # A quarter of the time that the stem is taught is over.
    expected = parts["clicks"] + 3 * parts["dense"] + 2 * parts["prototype"]
    expected = expected + 0.5 * 0.75 * parts["stem"]
    torch.testing.assert_close(out.loss.detach(), expected)
    assert not any(value.requires_grad for value in parts.values())
    out.loss.backward()
    for name in (
        "image_encoder.lateral_convs.0.0",
        "mask_decoder.prompt_map.join",
        "dense_head.up8",
    ):
        assert model.get_parameter(f"{name}.weight").grad.abs().max() > 0
    model.zero_grad()


def test_parts_without_weight_are_left_out(model: Segmenter) -> None:
    assert set(loss_of(ClickTask(replace(ONE, dense_weight=0)), model).parts) == {"clicks"}
    config = replace(ONE, stem_weight=0.5, stem_until=0.4)
    over = loss_of(ClickTask(config, teacher()), model, done=0.5)
    assert set(over.parts) == {"clicks", "dense"}


def test_half_of_the_batches_teach_the_head_without_the_stems_maps(
    model: Segmenter, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    head = model.dense_head
    assert head is not None
    forward = head.forward
    monkeypatch.setattr(head, "forward", lambda *maps: given.append(len(maps)) or forward(*maps))
    with torch.no_grad():
        for seed in range(12):
            loss_of(ClickTask(ONE), model, seed=seed)
    assert set(given) == {1, 3}


def test_the_same_seed_gives_the_same_loss(model: Segmenter) -> None:
    with torch.no_grad():
        losses = [loss_of(ClickTask(ClickConfig()), model, seed=s).loss for s in (1, 1, 2)]
    assert losses[0] == losses[1] != losses[2]
