"""Scores of outlines."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_hrsam.errors import DataError, ShapeError
from napari_hrsam.modeling.outline_refiner import (
    OutlineConfig,
    OutlineRefiner,
    load_outline_refiner,
)
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.outline_drawings import draw_regions
from napari_hrsam.training.outline_scores import (
    OutlineCase,
    outline_cases,
    score_outline,
    score_refiner,
)


def square(low: int, high: int) -> NDArray[np.bool_]:
    mask = np.zeros((100, 100), bool)
    mask[low:high, low:high] = True
    return mask


def test_a_perfect_mask_has_perfect_scores() -> None:
    score = score_outline(square(30, 70), square(30, 70))
    assert (score.band, score.iou, score.distance_px) == (1, 1, 0)


def test_an_outline_two_pixels_away_is_two_pixels_away() -> None:
    score = score_outline(square(28, 72), square(30, 70))
    assert score.distance_px == pytest.approx(2, abs=0.2)
    assert score.iou == pytest.approx(40**2 / 44**2)
    assert 0.85 < score.band < 0.95


def test_pixels_far_from_the_outline_are_not_counted_in_the_band() -> None:
    mask = square(30, 70)
    mask[0, 0] = True
    assert score_outline(mask, square(30, 70)).band == 1


def test_a_lost_object_is_as_far_away_as_it_can_be() -> None:
    score = score_outline(np.zeros((100, 100), bool), square(30, 70))
    assert score.distance_px == pytest.approx(np.hypot(100, 100))
    assert score.iou == 0


def test_masks_of_two_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"one shape, got \(2, 2\) and \(100, 100\)"):
        score_outline(np.zeros((2, 2), bool), square(30, 70))


def test_cases_are_the_large_objects_on_the_grid_of_the_refiner(pairs: Path) -> None:
    samples = open_samples([pairs])
    (case,) = outline_cases(samples, min_area_px=700)
    assert case.image.shape == (*case.mask.shape, 3)
    assert case.mask.shape == (96, 120)  # 64 px to the left of it are less than there are
    assert np.count_nonzero(case.mask) == pytest.approx(np.pi * 18**2, rel=0.05)
    assert len(list(outline_cases(samples, min_area_px=100))) == 2
    assert len(list(outline_cases(samples, min_area_px=100, per_domain=1))) == 1
    (again,) = outline_cases(samples, min_area_px=700)
    assert again.seed == case.seed


def drawn_cases(num: int) -> list[OutlineCase]:
    """Images with exact masks, half of them of another kind than the rest."""
    cases = []
    for seed in range(num):
        image, mask = draw_regions(192, np.random.default_rng([99, seed]))
        cases.append(
            OutlineCase(domain="even" if seed % 2 else "odd", image=image, mask=mask, seed=seed)
        )
    return cases


def test_a_refiner_that_does_nothing_scores_as_its_prior() -> None:
    refiner = OutlineRefiner(OutlineConfig(half_channels=2, quarter_channels=2))
    scores = score_refiner(refiner, drawn_cases(3), factor=4)
    assert scores.keys() == {"even", "odd", "mean of domains"}
    assert scores["odd"]["objects"] == 2
    assert scores["mean of domains"]["objects"] == 3
    for row in scores.values():
        for name in ("band", "iou", "distance_px"):
            assert row[f"prior_{name}"] == row[f"refined_{name}"]
    mean = (scores["even"]["prior_band"] + scores["odd"]["prior_band"]) / 2
    assert scores["mean of domains"]["prior_band"] == pytest.approx(mean)


def test_priors_can_be_made_in_another_way() -> None:
    refiner = OutlineRefiner(OutlineConfig(half_channels=2, quarter_channels=2))
    scores = score_refiner(
        refiner, drawn_cases(2), factor=2, prior_of=lambda case: case.mask.astype("f4") * 2 - 1
    )
    assert scores["mean of domains"]["prior_band"] == 1


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(DataError, match="no object to score"):
        score_refiner(OutlineRefiner(), [], factor=2)


@pytest.mark.parametrize(("factor", "gain"), [(2, 0.02), (4, 0.06)])
def test_the_shipped_refiner_brings_outlines_nearer(factor: int, gain: float) -> None:
    scores = score_refiner(load_outline_refiner(), drawn_cases(10), factor=factor)
    mean = scores["mean of domains"]
    assert mean["refined_band"] > mean["prior_band"] + gain
    assert mean["refined_iou"] > mean["prior_iou"]
    assert mean["refined_distance_px"] < mean["prior_distance_px"]
