"""The losses are those of the papers, and training can follow their gradients."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_hrsam.errors import ShapeError
from napari_hrsam.training.losses import (
    batch_iou,
    dice_loss,
    normalized_focal_loss,
    point_loss,
)


def random_case(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(3, 1, 6, 7, generator=generator, dtype=torch.float64) * 2
    labels = torch.randint(0, 2, (3, 6, 7), generator=generator)
    labels[0, :2] = 255
    return logits, labels


def numeric_gradient(loss, logits: Tensor) -> Tensor:
    gradient = torch.zeros_like(logits)
    for index in np.ndindex(*logits.shape):
        step = torch.zeros_like(logits)
        step[index] = 1e-2
        gradient[index] = (loss(logits + step).sum() - loss(logits - step).sum()) / 2e-2
    return gradient


@pytest.mark.parametrize(
    "loss",
    [
        lambda x, y: normalized_focal_loss(x, y, stop_delimiter_grad=False),
        lambda x, y: normalized_focal_loss(x, y, gamma=1.0, alpha=0.3, stop_delimiter_grad=False),
        dice_loss,
    ],
)
def test_gradients_are_those_of_the_loss(loss) -> None:
    logits, labels = random_case()
    logits.requires_grad_()
    loss(logits, labels).sum().backward()
    expected = numeric_gradient(lambda x: loss(x, labels), logits.detach())
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, atol=2e-4, rtol=2e-2)


def test_focal_loss_by_hand() -> None:
    logits = torch.tensor([[[[0.0, 2.0]]]])
    labels = torch.tensor([[[1, 0]]])
    p = 1 / (1 + math.exp(-2))
    weights = np.array([0.25, p**2])
    weights *= 2 / weights.sum()
    expected = 0.5 * (weights * [math.log(2), -math.log(1 - p)]).mean()
    assert float(normalized_focal_loss(logits, labels)) == pytest.approx(expected, abs=1e-5)


def test_the_focal_weights_average_to_one_so_confidence_does_not_shrink_the_loss() -> None:
    labels = torch.ones(1, 4, 4, dtype=torch.long)
    sure, unsure = torch.full((1, 1, 4, 4), 4.0), torch.full((1, 1, 4, 4), 1.0)
    for logits in (sure, unsure):
        entropy = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0], labels.float())
        torch.testing.assert_close(
            normalized_focal_loss(logits, labels)[0], 0.5 * entropy, rtol=1e-3, atol=1e-5
        )


def test_alpha_weighs_object_and_background() -> None:
    logits, labels = torch.zeros(1, 1, 2, 2), torch.tensor([[[1, 1], [1, 1]]])
    half = normalized_focal_loss(logits, labels)
    torch.testing.assert_close(normalized_focal_loss(logits, labels, alpha=0.25), half / 2)
    torch.testing.assert_close(normalized_focal_loss(logits, 1 - labels, alpha=0.25), half * 1.5)
    torch.testing.assert_close(normalized_focal_loss(logits, labels, loss_weight=3.0), half * 3)


def test_the_normalising_factor_carries_gradient_only_when_asked() -> None:
    gradients = []
    for stop in (True, False):
        logits, labels = random_case()
        logits.requires_grad_()
        normalized_focal_loss(logits, labels, stop_delimiter_grad=stop).sum().backward()
        gradients.append(logits.grad)
    assert not torch.allclose(gradients[0], gradients[1])


@pytest.mark.parametrize("loss", [normalized_focal_loss, dice_loss])
def test_ignored_pixels_change_nothing(loss) -> None:
    logits, labels = random_case()
    other = logits.clone()
    other[0, 0, :2] = 50.0
    torch.testing.assert_close(loss(logits, labels), loss(other, labels))
    other.requires_grad_()
    loss(other, labels).sum().backward()
    assert other.grad is not None
    assert not other.grad[0, 0, :2].any()


def test_a_sample_without_valid_pixels_costs_nothing() -> None:
    logits = torch.randn(1, 1, 3, 3, requires_grad=True)
    loss = normalized_focal_loss(logits, torch.full((1, 3, 3), 255))
    loss.sum().backward()
    assert float(loss.detach()) == 0
    assert logits.grad is not None
    assert not logits.grad.any()


@pytest.mark.parametrize("size", [40.0, 300.0])
def test_extreme_logits_stay_finite(size: float) -> None:
    labels = torch.tensor([[[1, 0]]])
    for sign in (-1, 1):
        logits = torch.tensor([[[[size * sign, -size * sign]]]], requires_grad=True)
        (normalized_focal_loss(logits, labels) + dice_loss(logits, labels)).sum().backward()
        assert logits.grad is not None
        assert logits.grad.isfinite().all()


def test_losses_do_not_depend_on_the_other_samples() -> None:
    logits, labels = random_case()
    for loss in (normalized_focal_loss, dice_loss, batch_iou):
        alone = torch.cat([loss(logits[i : i + 1], labels[i : i + 1]) for i in range(3)])
        torch.testing.assert_close(loss(logits, labels), alone)


def test_dice_is_zero_for_the_right_mask_and_large_for_its_opposite() -> None:
    labels = torch.tensor([[[1, 0], [0, 0]]])
    right = torch.where(labels[:, None] == 1, 30.0, -30.0)
    assert float(dice_loss(right, labels)) == pytest.approx(0, abs=1e-5)
    assert float(dice_loss(-right, labels)) == pytest.approx(1 - 1 / 5, abs=1e-5)


def test_point_loss_reads_x_then_y_and_averages_the_valid_clicks() -> None:
    logits = torch.zeros(2, 1, 4, 6)
    logits[0, 0, 1, 5] = 3.0
    coords = torch.tensor([[[5.0, 1.0], [0.0, 0.0]], [[2.4, 3.6], [99.0, -5.0]]])
    labels = torch.tensor([[1, -1], [0, -1]])
    p = 1 / (1 + math.exp(-3))
    expected = ((1 - p) ** 2 + 0.25) / 2
    assert float(point_loss(logits, coords, labels)) == pytest.approx(expected, abs=1e-6)
    assert float(point_loss(logits, coords, labels, loss_weight=2.0)) == pytest.approx(2 * expected)


def test_point_loss_takes_the_nearest_pixel() -> None:
    logits = torch.zeros(1, 1, 4, 6)
    logits[0, 0, 2, 3] = 30.0
    coords = torch.tensor([[[3.4, 1.6]]])
    assert float(point_loss(logits, coords, torch.tensor([[1]]))) < 1e-6


def test_point_loss_without_clicks_is_zero() -> None:
    assert float(point_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 2), -torch.ones(1, 2))) == 0


def test_batch_iou_leaves_ignored_pixels_out_and_is_zero_if_both_are_empty() -> None:
    logits = torch.tensor([[[[1.0, 1.0, -1.0, 1.0]]], [[[-1.0, -1.0, -1.0, -1.0]]]])
    labels = torch.tensor([[[1, 0, 1, 255]], [[0, 0, 0, 255]]])
    torch.testing.assert_close(batch_iou(logits, labels), torch.tensor([1 / 3, 0.0]))


@pytest.mark.parametrize("loss", [normalized_focal_loss, dice_loss, batch_iou])
@pytest.mark.parametrize("shape", [(2, 4, 4), (2, 2, 4, 4), (2, 1, 4, 5), (1, 1, 4, 4)])
def test_wrong_shapes_are_refused(loss, shape: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected logits \(B, 1, H, W\) and labels \(B, H, W\)"):
        loss(torch.zeros(shape), torch.zeros(2, 4, 4, dtype=torch.long))


def test_point_loss_refuses_wrong_shapes() -> None:
    with pytest.raises(ShapeError, match=r"coords_xy \(B, P, 2\) and point_labels \(B, P\)"):
        point_loss(torch.zeros(1, 1, 4, 4), torch.zeros(1, 2, 2), torch.zeros(1, 3))
