"""Validation scores on tiles: which objects count, what is fed back, and what is averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from napari_hrsam.modeling.mask_decoder import Decoded
from napari_hrsam.modeling.segmenter import ImageFeatures
from napari_hrsam.training.device_crops import UNCHANGED, DeviceCrops
from napari_hrsam.training.tile_scores import (
    spread_over_domains,
    summarize_scores,
    tile_scores,
)

TILE = 128


@dataclass(frozen=True)
class Picture:
    pixels: NDArray[np.uint8]
    labels: NDArray[np.int32]
    second_labels: None = None
    domain: str = "shapes"


def crops() -> DeviceCrops:
    """A large disc and a small square; bright on dark."""
    y, x = np.mgrid[:200, :240]
    labels = np.zeros((200, 240), np.int32)
    labels[(y - 90) ** 2 + (x - 80) ** 2 < 50**2] = 1
    labels[20:25, 200:205] = 2
    pixels = np.where(labels > 0, 200, 10).astype(np.uint8)
    return DeviceCrops([Picture(pixels, labels)], "cpu", augmentation=UNCHANGED)


class Bright:
    """Sees bright objects, at once or from the second click on; keeps what it is asked."""

    def __init__(self, sees_from: int = 1) -> None:
        self.sees_from, self.asked, self.embeddings = sees_from, [], []

    def encode(self, images: Tensor) -> ImageFeatures:
        bright = (images.mean(1, keepdim=True) > 100).float()
        return ImageFeatures(
            embedding=torch.ones(len(images), 2, TILE // 16, TILE // 16),
            stride4=torch.nn.functional.avg_pool2d(bright, 4),
        )

    def decode_all(self, features: ImageFeatures, **prompts: Any) -> Decoded:
        self.asked.append(prompts)
        self.embeddings.append(features.embedding)
        sees = prompts["point_coords_xy"].shape[1] >= self.sees_from
        fine = (features.stride4 - 0.5) * 20 if sees else torch.full_like(features.stride4, -1)
        coarse = torch.full_like(fine, -2)
        masks, coarse = fine.repeat(1, 4, 1, 1), coarse.repeat(1, 4, 1, 1)
        return Decoded(masks=masks, coarse=coarse, iou=masks[:, :, 0, 0], mask_tokens=masks)


def scored(model: Bright, rows: list[int], **options: Any) -> tuple[Tensor, Tensor]:
    given = {"span": (0.4, 0.6), "tile_px": TILE, "num_clicks": 3, **options}
    return tile_scores(model, crops(), torch.tensor(rows), **given)


def test_curve_rises_when_the_model_sees() -> None:
    model = Bright(sees_from=2)
    ious, valid = scored(model, [0])
    assert valid.tolist() == [True]
    assert ious[0, 0] == 0
    assert (ious[0, 1:] > 0.85).all()
    assert [a["point_coords_xy"].shape[1] for a in model.asked] == [1, 2, 3]
    assert (model.asked[0]["point_labels"] == 1).all()
    # The first click knows no prior; the later ones get the last masks.
    assert model.asked[0]["mask_logits"] is None
    assert (model.asked[1]["mask_logits"] == -1).all()
    assert model.asked[2]["mask_logits"].max() > 5


def test_first_click_falls_onto_the_object() -> None:
    model = Bright()
    scored(model, [0])
    x, y = model.asked[0]["point_coords_xy"][0, 0].round().long().tolist()
    assert model.asked[1]["mask_logits"][0, 0, y // 4, x // 4] > 5


def test_ablations_take_away_what_they_name() -> None:
    model = Bright()
    assert scored(model, [0])[0].min() > 0.85
    assert all((e == 1).all() for e in model.embeddings)
    model = Bright()
    scored(model, [0], ablation="embedding")
    assert all((e == 0).all() for e in model.embeddings)
    # The coarse mask of this model is empty.
    assert scored(Bright(), [0], ablation="fine")[0].max() == 0


def test_objects_that_cannot_be_shown_so_large_do_not_count() -> None:
    # 5 pixels, enlarged at most 4 times, span 20 of 128.
    _, valid = scored(Bright(), [0, 1, 0])
    assert valid.tolist() == [True, False, True]
    _, valid = scored(Bright(), [1], span=(0.1, 0.15))
    assert valid.tolist() == [True]


def test_scores_do_not_depend_on_the_batches_order_of_rows() -> None:
    rows = [0, 1, 0, 0, 1]
    ious, valid = scored(Bright(), rows, at_once=2)
    assert ious.shape == (5, 3)
    assert valid.tolist() == [r == 0 for r in rows]
    again, _ = scored(Bright(), rows, at_once=2)
    assert torch.equal(ious, again)
    other, _ = scored(Bright(), rows, at_once=2, seed=2)
    assert not torch.equal(ious, other)


def test_mean_is_over_domains_not_objects() -> None:
    ious = torch.tensor(
        [[0.2, 0.3, 0.4, 0.4, 0.5], [0.4, 0.5, 0.2, 0.6, 0.7], [0.9, 0.9, 0.9, 0.9, 0.9]]
    )
    ious = torch.cat([ious, torch.zeros(1, 5)])
    valid, domain = torch.tensor([True, True, True, False]), torch.tensor([0, 0, 2, 2])
    found = summarize_scores(ious, valid, domain, ("a", "b", "c"))
    assert list(found["domains"]) == ["a", "c"]
    assert found["domains"]["a"] == pytest.approx(
        {"iou1": 0.3, "iou3": 0.3, "iou5": 0.6, "drops": 1 / 8, "objects": 2}
    )
    assert found["iou1"] == pytest.approx(0.6)
    assert found["iou5"] == pytest.approx(0.75)
    assert found["drops"] == pytest.approx(1 / 16, abs=1e-4)
    assert found["objects"] == 3
    assert "iou3" not in summarize_scores(ious[:, :1], valid, domain, ("a", "b", "c"))


def test_objects_are_spread_over_domains() -> None:
    domain = torch.tensor([0] * 20 + [3] * 2 + [1] * 9)
    chosen = spread_over_domains(domain, 5)
    assert torch.bincount(domain[chosen], minlength=4).tolist() == [5, 5, 0, 2]
    assert len(set(chosen.tolist())) == len(chosen)
    assert chosen.tolist() == sorted(chosen.tolist())
    assert torch.equal(chosen, spread_over_domains(domain, 5))
    assert not torch.equal(chosen, spread_over_domains(domain, 5, seed=1))
