"""BA-SAM's scaling factor and distance bias."""

from __future__ import annotations

import math

import pytest
import torch

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.configs import BASAMConfig
from napari_hrsam.modeling.length_scaling import (
    TINY_VIT_TRAINING_SIDE,
    TINY_VIT_TRAINING_TOKENS,
    distance_bias,
    distance_slopes,
    length_factor,
)

PAPER, RELEASED = BASAMConfig(), BASAMConfig(form="released")


def vit(ba: BASAMConfig | None, height: int, width: int) -> float:
    return length_factor(ba, (height, width), training_side=64, training_tokens=4096)


def tiny(ba: BASAMConfig, height: int, width: int) -> float:
    return length_factor(
        ba,
        (height, width),
        training_side=TINY_VIT_TRAINING_SIDE,
        training_tokens=TINY_VIT_TRAINING_TOKENS,
    )


@pytest.mark.parametrize("ba", [PAPER, RELEASED])
@pytest.mark.parametrize("factor", [vit, tiny])
def test_factor_is_exactly_one_at_the_training_size(factor, ba) -> None:
    assert factor(ba, 64, 64) == 1.0


@pytest.mark.parametrize("ba", [PAPER, RELEASED])
def test_factor_of_the_vit_is_seven_sixths_at_twice_and_four_thirds_at_four_times_the_side(
    ba,
) -> None:
    assert vit(ba, 128, 128) == pytest.approx(7 / 6, rel=1e-12)
    assert vit(ba, 256, 256) == pytest.approx(4 / 3, rel=1e-12)


@pytest.mark.parametrize("ba", [PAPER, RELEASED])
def test_factor_of_tiny_vit_has_the_released_values_in_both_forms(ba) -> None:
    assert tiny(ba, 128, 128) == pytest.approx(1.19055, abs=5e-6)
    assert tiny(ba, 256, 256) == pytest.approx(1.38110, abs=5e-6)


def test_factor_of_the_paper_uses_the_real_tokens_and_grows_with_them() -> None:
    assert vit(PAPER, 64, 96) == pytest.approx(math.log2(64 * 96) / 12, rel=1e-12)
    factors = [vit(PAPER, side, 64) for side in (8, 32, 63, 64, 65, 96, 200)]
    assert factors == sorted(set(factors))
    assert vit(PAPER, 16, 16) == pytest.approx(2 / 3)
    assert tiny(PAPER, 96, 96) > 1 > tiny(PAPER, 48, 48)


def test_factor_of_the_released_code_takes_whole_multiples_of_the_longer_side() -> None:
    assert vit(RELEASED, 96, 96) == 1.0
    assert vit(RELEASED, 127, 64) == 1.0
    assert vit(RELEASED, 64, 128) == pytest.approx(7 / 6)


def test_factor_of_the_released_code_is_one_below_the_training_size_where_the_code_fails() -> None:
    assert vit(RELEASED, 32, 32) == 1.0


def test_factor_never_turns_the_sign_of_the_logits() -> None:
    assert tiny(PAPER, 1, 1) == 0.0
    assert vit(PAPER, 1, 1) == 0.0


def test_factor_is_one_without_ba_and_with_the_scale_switched_off() -> None:
    assert vit(None, 128, 128) == 1.0
    assert vit(BASAMConfig(scale=False), 128, 128) == 1.0


def test_factor_refuses_a_training_length_of_one() -> None:
    with pytest.raises(ConfigError, match="2 or more tokens in training, got 1"):
        length_factor(PAPER, (2, 2), training_side=1, training_tokens=1)


def whole(slopes: torch.Tensor, height: int, width: int) -> torch.Tensor:
    return distance_bias(slopes, (height, width), slice(0, height), slice(0, width))


def test_distance_slopes_fall_by_powers_of_two_to_2_to_the_minus_8() -> None:
    assert torch.allclose(distance_slopes(4, 3.0), 3 * torch.tensor([2.0**-2, 2**-4, 2**-6, 2**-8]))
    assert not distance_slopes(4, 0.0).any()


def test_distance_bias_is_the_negative_euclidean_distance_in_tokens() -> None:
    bias = whole(torch.tensor([1.0, 0.5]), 4, 5)
    assert bias.shape == (2, 20, 20)
    assert bias[0, 0, 3 * 5 + 4] == -5.0
    assert torch.equal(bias[1], 0.5 * bias[0])


def test_distance_bias_is_symmetric_finite_and_zero_on_the_diagonal() -> None:
    bias = whole(distance_slopes(3, 2.0), 4, 7)
    assert torch.equal(bias, bias.transpose(1, 2))
    assert not bias.diagonal(dim1=1, dim2=2).any()
    assert bool(bias.isfinite().all())


def test_distance_bias_is_invariant_under_transposition_of_the_grid() -> None:
    slopes = distance_slopes(2, 1.0)
    bias = whole(slopes, 3, 5).reshape(2, 3, 5, 3, 5)
    turned = whole(slopes, 5, 3).reshape(2, 5, 3, 5, 3)
    assert torch.equal(bias, turned.permute(0, 2, 1, 4, 3))


def test_distance_bias_of_a_part_is_the_part_of_the_whole() -> None:
    slopes = distance_slopes(2, 1.0)
    part = distance_bias(slopes, (4, 5), slice(1, 3), slice(2, 5))
    rows = whole(slopes, 4, 5).reshape(2, 4, 5, 20)[:, 1:3, 2:5]
    assert torch.equal(part, rows.reshape(2, 6, 20))
