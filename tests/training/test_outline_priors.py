"""Coarse masks with made-up errors."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_hrsam.engine.multiscale_mask import MultiscaleMask
from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.training.outline_priors import PriorErrors, coarse_prior, enlarge

NONE = PriorErrors(displacement_px=0, smoothing_px=0)


def disc(side: int = 96, radius: float = 30) -> NDArray[np.bool_]:
    rows, columns = np.ogrid[:side, :side]
    return np.hypot(rows - side / 2, columns - side / 2) <= radius


@pytest.mark.parametrize("factor", [2, 4])
def test_without_errors_the_outline_is_off_by_less_than_a_coarse_pixel(factor: int) -> None:
    mask = disc()
    prior = coarse_prior(mask, factor, NONE, np.random.default_rng(0))
    assert prior.shape == mask.shape
    assert prior.dtype == np.float32
    rows, columns = np.ogrid[:96, :96]
    wrong = (prior > 0) != mask
    assert np.abs(np.hypot(rows - 48, columns - 48) - 30)[wrong].max() < factor


@pytest.mark.parametrize("factor", [2, 4])
def test_an_exact_prior_tells_the_outline_within_a_fine_pixel(factor: int) -> None:
    mask = disc()
    prior = coarse_prior(mask, factor, replace(NONE, exact=True), np.random.default_rng(0))
    assert np.count_nonzero((prior > 0) != mask) < 0.3 * (2 * np.pi * 30)
    rows, columns = np.ogrid[:96, :96]
    depth = 30 - np.hypot(rows - 48, columns - 48)
    near = np.abs(depth) < 8
    np.testing.assert_allclose(prior[near] * factor, depth[near], atol=1.2)


def test_doubt_weakens_logits_where_the_outline_is_displaced() -> None:
    errors = PriorErrors(displacement_px=0, smoothing_px=0, shift_px=1)
    sure, doubting = (
        coarse_prior(disc(), 4, replace(errors, doubt=doubt), np.random.default_rng(0))
        for doubt in (0.0, 1.0)
    )
    inner = np.abs(sure) < 7
    np.testing.assert_allclose(doubting[inner], sure[inner] / 2, atol=1e-5)


def test_priors_are_interpolated_as_sessions_do() -> None:
    coarse = np.random.default_rng(0).standard_normal((32, 32), np.float32)
    field = MultiscaleMask(Tile(2, 0, 0, 32), coarse, (128, 128))
    expected = field.sample(0, Box(0, 0, 128, 128))
    np.testing.assert_allclose(enlarge(coarse, 4), expected, atol=1e-5)


def test_a_displacement_has_the_size_that_was_asked_for() -> None:
    mask = np.zeros((512, 512), bool)
    mask[:256] = True
    errors = PriorErrors(displacement_px=1.5, reach_px=3, smoothing_px=0)
    rng = np.random.default_rng(0)
    edges = np.concatenate(
        [(coarse_prior(mask, 4, errors, rng) > 0).sum(0) - 256 for _ in range(8)]
    )
    assert edges.std() == pytest.approx(4 * 1.5, rel=0.2)


def test_a_shift_moves_the_outline_outwards() -> None:
    errors = PriorErrors(displacement_px=0, smoothing_px=0, shift_px=2)
    area = np.count_nonzero(coarse_prior(disc(), 4, errors, np.random.default_rng(0)) > 0)
    assert area == pytest.approx(np.pi * 38**2, rel=0.05)


def test_blobs_change_the_mask_beside_the_outline_only() -> None:
    errors = PriorErrors(displacement_px=0, smoothing_px=0, blobs=3)
    mask = disc(256, 40)
    changed = (coarse_prior(mask, 4, errors, np.random.default_rng(1)) > 0) != mask
    assert np.count_nonzero(changed) > 50
    assert not changed[:40].any()
    assert not changed[120:136, 120:136].any()


@pytest.mark.parametrize("value", [False, True])
def test_a_mask_without_an_outline_stays_one(value: bool) -> None:
    prior = coarse_prior(np.full((16, 16), value), 4, PriorErrors(), np.random.default_rng(0))
    assert ((prior > 0) == value).all()


def test_drawn_errors_range_from_none_to_far_too_large() -> None:
    rng = np.random.default_rng(0)
    sizes = [PriorErrors.draw(rng).displacement_px for _ in range(300)]
    assert 0.05 < np.mean(np.array(sizes) < 0.15) < 0.3
    assert max(sizes) > 3


def test_sides_that_do_not_fit_the_factor_are_refused() -> None:
    with pytest.raises(ShapeError, match="multiples of 4, got 10 x 8"):
        coarse_prior(np.ones((10, 8), bool), 4, NONE, np.random.default_rng(0))


def test_errors_below_zero_are_refused() -> None:
    with pytest.raises(ConfigError, match="must not be negative"):
        PriorErrors(displacement_px=-1)
    with pytest.raises(ConfigError, match="gain above 0"):
        PriorErrors(gain=0)
