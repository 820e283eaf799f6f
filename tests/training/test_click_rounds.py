"""Sequences of clicks: where they go, what is fed back, and which round the loss comes from."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.mask_decoder import Decoded
from napari_hrsam.modeling.segmenter import ImageFeatures
from napari_hrsam.training.click_rounds import (
    ClickRounds,
    PriorDraws,
    boxes_around,
    draw_distortion,
    draw_length,
    fed_back,
    mask_loss,
    objects_loss,
    per_object,
    pooled,
    with_clicks_enforced,
)
from napari_hrsam.training.settings import ClickConfig

SIDE = 64
ONE = ClickConfig(first_share=1, box_share=0)
MANY = ClickConfig(first_share=0, click_decay=1, max_clicks=4, box_share=0)
BOXES = replace(MANY, box_share=1)


@dataclass
class Call:
    has_grad: bool
    coords: Tensor | None
    signs: Tensor | None
    boxes: Tensor | None
    prior: Tensor | None


class Empty:
    """A decoder that never sees an object; its one weight is added to all logits."""

    def __init__(self, level: float = -3.0) -> None:
        self.weight, self.calls = torch.tensor(level, requires_grad=True), []

    def decode_all(self, features: ImageFeatures, **prompts: Any) -> Decoded:
        coords, signs = prompts["point_coords_xy"], prompts["point_labels"]
        self.calls.append(
            Call(
                has_grad=torch.is_grad_enabled(),
                coords=None if coords is None else coords.clone(),
                signs=None if signs is None else signs.clone(),
                boxes=prompts["boxes_xyxy"],
                prior=prompts["mask_logits"],
            )
        )
        num = len(features.embedding)
        masks = self.weight.expand(num, 4, SIDE // 4, SIDE // 4)
        return Decoded(masks=masks, coarse=masks, iou=masks[:, :, 0, 0], mask_tokens=masks)


def discs() -> Tensor:
    y, x = torch.meshgrid(torch.arange(SIDE), torch.arange(SIDE), indexing="ij")
    return torch.stack([(y - 20) ** 2 + (x - 40) ** 2 < 144, (y - 40) ** 2 + (x - 20) ** 2 < 225])


def run(config: ClickConfig, seed: int = 0, weight: Tensor | None = None) -> Any:
    masks, model = discs(), Empty()
    rounds = ClickRounds(masks, np.random.default_rng(seed), config, weight)
    features = ImageFeatures(embedding=torch.zeros(2, 1, 4, 4))
    return rounds.run(model, features), model, rounds


def test_first_round_has_the_loss_where_it_is_asked() -> None:
    out, model, _ = run(ONE)
    assert len(model.calls) == len(out.ious) == 1
    assert model.calls[0].has_grad
    assert model.calls[0].prior is None
    out.loss.backward()
    assert model.weight.grad != 0


def test_only_the_last_round_has_a_gradient() -> None:
    out, model, _ = run(MANY)
    assert [c.has_grad for c in model.calls] == [False, False, False, True]
    assert [c.coords.shape[1] for c in model.calls] == [1, 2, 3, 4]
    assert len(out.ious) == 4
    out.loss.backward()
    assert model.weight.grad != 0


def test_without_gradients_no_round_has_one() -> None:
    with torch.no_grad():
        out, model, _ = run(MANY)
    assert not any(c.has_grad for c in model.calls)
    assert not out.loss.requires_grad


def test_clicks_fall_into_the_objects_and_are_positive() -> None:
    _, model, _ = run(MANY)
    last = model.calls[-1]
    assert (last.signs == 1).all()
    for mask, coords in zip(discs(), last.coords, strict=True):
        for x, y in coords.round().long().tolist():
            # A click is at most half a cell of two pixels off.
            assert mask[max(0, y - 1) : y + 2, max(0, x - 1) : x + 2].any()
    # What has been clicked stays.
    torch.testing.assert_close(model.calls[1].coords, last.coords[:, :2])


def test_clicks_are_negative_where_too_much_is_predicted() -> None:
    rounds, model = ClickRounds(discs(), np.random.default_rng(0), MANY), Empty(3.0)
    rounds.run(model, ImageFeatures(embedding=torch.zeros(2, 1, 4, 4)))
    signs = model.calls[-1].signs
    assert (signs[:, 0] == 1).all()
    assert (signs[:, 1:] == 0).all()


def test_nothing_is_left_to_click_in_an_empty_object() -> None:
    rounds = ClickRounds(torch.zeros(2, SIDE, SIDE).bool(), np.random.default_rng(0), MANY)
    rounds.run(Empty(), ImageFeatures(embedding=torch.zeros(2, 1, 4, 4)))
    assert (rounds.signs == -1).all()


def test_boxes_take_the_place_of_the_first_click() -> None:
    _, model, _ = run(BOXES)
    assert model.calls[0].coords is None
    assert [c.coords.shape[1] for c in model.calls[1:]] == [1, 2, 3]
    boxes = model.calls[-1].boxes
    # Within 0.04 * 4 of the side.
    expected = torch.tensor([[28.5, 8.5, 51.5, 31.5], [5.5, 25.5, 34.5, 54.5]])
    assert (boxes - expected).abs().max() < 0.16 * 30 + 1
    assert not torch.equal(boxes, expected)


def test_boxes_lie_on_pixel_edges_without_noise() -> None:
    gt = torch.zeros(1, 32, 32).bool()
    gt[0, 5:9, 10:20] = True
    box = boxes_around(gt, torch.zeros(1, 4))
    assert box.tolist() == [[19.5, 9.5, 39.5, 17.5]]
    wider = boxes_around(gt, torch.tensor([[-1.0, 0, 0, 1]]))
    torch.testing.assert_close(wider, torch.tensor([[19.5 - 0.8, 9.5, 39.5, 17.5 + 0.32]]))


def test_the_same_seed_gives_the_same_clicks_and_loss() -> None:
    (a, model_a, _), (b, model_b, _) = run(MANY, 3), run(MANY, 3)
    assert torch.equal(model_a.calls[-1].coords, model_b.calls[-1].coords)
    assert a.loss == b.loss
    assert not torch.equal(run(MANY, 4)[1].calls[-1].coords, model_a.calls[-1].coords)


def test_objects_without_weight_do_not_count() -> None:
    first = run(ONE, weight=torch.tensor([1.0, 0.0]))[0]
    both = run(ONE)[0]
    second = run(ONE, weight=torch.tensor([0.0, 1.0]))[0]
    assert first.loss != second.loss
    torch.testing.assert_close(both.loss, (first.loss + second.loss) / 2)
    assert run(ONE, weight=torch.zeros(2))[0].loss == 0


def test_lengths_of_sequences() -> None:
    rng = np.random.default_rng(0)
    config = ClickConfig(max_clicks=5, click_decay=0.5, first_share=0.4)
    lengths = np.array([draw_length(config, rng) for _ in range(4000)])
    shares = np.bincount(lengths, minlength=6)[1:] / 4000
    assert shares == pytest.approx([0.4, 0.3, 0.15, 0.075, 0.075], abs=0.03)
    assert draw_length(replace(config, max_clicks=1, first_share=0), rng) == 1


def test_mostly_the_prior_is_distorted_and_fed_back() -> None:
    rng = np.random.default_rng(0)
    drawn = np.array([draw_distortion(rng) for _ in range(4000)])
    assert np.mean((drawn == [1, 0]).all(1)) == pytest.approx(0.3, abs=0.03)
    assert np.log(drawn[:, 0]).std() == pytest.approx(0.3 * np.sqrt(0.7), abs=0.02)
    given = [c.prior is not None for seed in range(60) for c in run(MANY, seed)[1].calls[1:]]
    assert 0.88 < np.mean(given) < 0.995


def test_fed_back_logits() -> None:
    prior = torch.full((1, 1, 16, 16), 2.0)
    none, no_signs = torch.zeros(1, 0, 2), torch.zeros(1, 0).long()
    noise = torch.arange(256.0).view(1, 1, 16, 16) - 128
    draws = PriorDraws(torch.zeros(1, 0), noise, torch.tensor(1.5), 0.5)
    expected = (3 + 0.5 * noise).clamp(-16, 16)
    torch.testing.assert_close(fed_back(prior, none, no_signs, draws), expected)


def test_contradicted_clicks_are_obeyed_where_they_are() -> None:
    logits = torch.full((1, 1, 16, 16), -4.0)
    # Cell 5 of stride 4 has its centre at pixel 21.5.
    coords = torch.tensor([[[21.5, 41.5], [1.5, 1.5], [61.5, 61.5]]])
    signs = torch.tensor([[1, 0, -1]])
    out = with_clicks_enforced(logits, coords, signs, torch.full((1, 3), 0.5))
    assert out[0, 0, 10, 5] == 2
    assert out[0, 0, 10, 6] == 2  # Half of the reach of 3.75 is obeyed in full.
    assert -4 < out[0, 0, 10, 8] < 2
    # A negative click agrees with what is there, and padding says nothing.
    changed = (out != logits).nonzero()
    assert (changed[:, 2:] - torch.tensor([10, 5])).float().norm(dim=1).max() < 3.75
    wide = with_clicks_enforced(logits, coords, signs, torch.ones(1, 3))
    assert (wide != logits).sum() > (out != logits).sum()


def test_negative_clicks_push_down() -> None:
    logits = torch.full((1, 1, 16, 16), 4.0)
    out = with_clicks_enforced(
        logits, torch.tensor([[[21.5, 41.5]]]), torch.tensor([[0]]), torch.zeros(1, 1)
    )
    assert out[0, 0, 10, 5] == -2
    assert out[0, 0, 10, 8] == 4
    assert (
        with_clicks_enforced(logits, torch.zeros(1, 0, 2), torch.zeros(1, 0), torch.zeros(1, 0))
        is logits
    )


def test_pooled_keeps_cells_that_are_half_covered() -> None:
    mask = torch.zeros(1, 8, 8).bool()
    mask[0, :4, :3] = True
    assert pooled(mask, 2)[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    mask[0, 4, 4] = True  # A quarter of a cell.
    assert not pooled(mask, 2)[0, 2, 2]


def test_pooled_keeps_all_cells_of_a_thin_object() -> None:
    masks = torch.zeros(2, 8, 8).bool()
    masks[0, 3, :] = masks[1, 3, :] = True
    masks[1, :2, :2] = True
    masks[0, 3, :6] = False
    thin = torch.zeros(1, 16, 16).bool()
    thin[0, 3, 2:9] = True
    assert pooled(thin, 4)[0].nonzero().tolist() == [[0, 0], [0, 1], [0, 2]]
    assert pooled(masks, 2).any((1, 2)).all()
    assert not pooled(torch.zeros(1, 8, 8).bool(), 2).any()


def test_loss_of_objects_is_the_sum_of_its_parts() -> None:
    torch.manual_seed(0)
    masks, coarse = torch.randn(2, 4, 16, 16), torch.randn(2, 4, 16, 16)
    decoded = Decoded(masks=masks, coarse=coarse, iou=torch.full((2, 4), 9.0), mask_tokens=masks)
    resized = torch.randn(2, 1, 32, 32)
    gt = pooled(discs(), 2)
    truth = (gt.long(), pooled(gt, 2).long())
    config = ClickConfig(coarse_weight=0, candidate_weight=0, iou_weight=0)
    plain = objects_loss(config, decoded, resized, truth, first=True)
    torch.testing.assert_close(plain, mask_loss(resized, truth[0]))
    with_coarse = objects_loss(
        replace(config, coarse_weight=2), decoded, resized, truth, first=True
    )
    torch.testing.assert_close(with_coarse - plain, 2 * mask_loss(coarse[:, :1], truth[1]))
    every = torch.stack([mask_loss(masks[:, i : i + 1], truth[1]) for i in (1, 2, 3)])
    some = replace(config, candidate_weight=3)
    best = objects_loss(some, decoded, resized, truth, first=True) - plain
    torch.testing.assert_close(best, 3 * every.amin(0))
    # Later clicks are not ambiguous.
    torch.testing.assert_close(objects_loss(some, decoded, resized, truth, first=False), plain)
    # 9 is far above any IoU: the squared error is that of 9 less at most 1.
    error = objects_loss(replace(config, iou_weight=1), decoded, resized, truth, first=True) - plain
    assert ((error > 64) & (error <= 81)).all()


def test_features_are_repeated_for_the_objects_of_their_crop() -> None:
    embedding = torch.randn(2, 3, 4, 4, requires_grad=True)
    out = per_object(ImageFeatures(embedding=embedding), torch.tensor([1, 0, 1]))
    assert out.stride8 is None
    torch.testing.assert_close(out.embedding, embedding[[1, 0, 1]])
    out.embedding.sum().backward()
    assert embedding.grad[:, 0, 0, 0].tolist() == [1, 2]


@pytest.mark.parametrize(
    "wrong", [{"max_clicks": 0}, {"click_decay": 1.5}, {"box_share": -0.1}, {"stem_until": 0}]
)
def test_config_is_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ClickConfig(**wrong)
