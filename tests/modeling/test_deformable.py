"""Modulated deformable convolution against its definition, point by point."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_hrsam.modeling.deformable import (
    ModulatedDeformConv,
    deform_conv,
    gathered_rows,
    weighted_rows,
)


def bilinear(x: Tensor, y: float, column: float) -> Tensor:
    """Value of (C, h, w) between cells; cells outside are zero."""
    total = torch.zeros_like(x[:, 0, 0])
    for row in (math.floor(y), math.floor(y) + 1):
        for col in (math.floor(column), math.floor(column) + 1):
            if 0 <= row < x.shape[1] and 0 <= col < x.shape[2]:
                total += x[:, row, col] * (1 - abs(y - row)) * (1 - abs(column - col))
    return total


def by_definition(x: Tensor, offsets: Tensor, modulation: Tensor, weight: Tensor) -> Tensor:
    num, _, height, width = x.shape
    out = x.new_zeros(num, weight.shape[0], height, width)
    for n in range(num):
        for i in range(height):
            for j in range(width):
                for k in range(9):
                    y = i + k // 3 - 1 + float(offsets[n, 2 * k, i, j])
                    column = j + k % 3 - 1 + float(offsets[n, 2 * k + 1, i, j])
                    sample = bilinear(x[n], y, column) * modulation[n, k, i, j]
                    out[n, :, i, j] += weight[:, :, k // 3, k % 3] @ sample
    return out


def inputs(spread: float = 1.5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    shapes = ((2, 3, 4, 5), (2, 18, 4, 5), (2, 9, 4, 5), (4, 3, 3, 3))
    x, offsets, modulation, weight = (
        torch.randn(*shape, generator=g, dtype=torch.float64) for shape in shapes
    )
    return x, spread * offsets, modulation.sigmoid(), weight


@pytest.mark.parametrize("spread", [0.3, 1.5, 20.0])
def test_samples_are_bilinear_at_row_then_column_offsets_and_zero_outside(spread: float) -> None:
    given = inputs(spread)
    torch.testing.assert_close(deform_conv(*given), by_definition(*given))


def test_maps_do_not_see_each_other_however_far_the_offsets_go() -> None:
    x, offsets, modulation, weight = inputs(spread=6.0)
    changed = torch.stack([x[0], x[1] + 100])
    before = deform_conv(x, offsets, modulation, weight)
    assert torch.equal(deform_conv(changed, offsets, modulation, weight)[0], before[0])


def test_gradients_of_all_inputs_are_those_of_the_definition() -> None:
    given = [x.requires_grad_() for x in inputs()]
    assert torch.autograd.gradcheck(deform_conv, given)


def test_a_new_layer_is_a_convolution_at_half_weight_that_can_learn_to_move() -> None:
    torch.manual_seed(0)
    layer, x = ModulatedDeformConv(6), torch.randn(2, 6, 5, 4)
    out = layer(x)
    torch.testing.assert_close(out, 0.5 * F.conv2d(x, layer.dcn.weight, padding=1))
    (out * torch.randn_like(out)).sum().backward()
    # Offsets of zero lie on cells, where a symmetric slope would be zero.
    moved = layer.dcn_offset.weight.grad.flatten(1).abs().amax(1)
    assert (moved > 0).all()


def test_modulation_is_squashed_between_zero_and_one() -> None:
    layer, x = ModulatedDeformConv(3), torch.randn(1, 3, 4, 4)
    plain = F.conv2d(x, layer.dcn.weight, padding=1)
    for bias, share in ((50.0, 1.0), (-50.0, 0.0)):
        with torch.no_grad():
            layer.dcn_offset.bias[18:] = bias
        torch.testing.assert_close(layer(x), share * plain, rtol=1e-4, atol=1e-5)


def test_places_are_float32_under_bfloat16_and_gradients_finite() -> None:
    torch.manual_seed(0)
    layer, x = ModulatedDeformConv(8), torch.randn(2, 8, 16, 16)
    with torch.no_grad():
        layer.dcn_offset.weight.normal_(std=0.3)
    exact = layer(x)
    dtypes = []
    layer.dcn_offset.register_forward_hook(lambda _m, _a, out: dtypes.append(out.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        fast = layer(x.bfloat16())
    assert dtypes == [torch.float32]
    assert fast.dtype == torch.bfloat16
    assert (fast - exact).abs().mean() < 0.03 * exact.abs().mean()
    fast.float().square().sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in layer.parameters())


def test_offsets_that_are_not_finite_give_numbers_that_are_not_finite() -> None:
    x, offsets, modulation, weight = inputs()
    offsets[0, 0, 1, 1] = torch.nan
    offsets[0, 3, 2, 2] = torch.inf
    out = deform_conv(x, offsets, modulation, weight)
    assert not torch.isfinite(out[0, :, 1, 1]).any()
    assert not torch.isfinite(out[0, :, 2, 2]).any()
    assert torch.isfinite(out[1]).all()


def test_both_ways_to_sum_rows_agree() -> None:
    table, weights = torch.randn(20, 6), torch.randn(7, 4)
    index = torch.randint(0, 20, (7, 4))
    expected = torch.einsum("mj,mjc->mc", weights, table[index])
    for way in (weighted_rows, gathered_rows):
        torch.testing.assert_close(way(table, index, weights), expected)
