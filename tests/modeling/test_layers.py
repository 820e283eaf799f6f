"""Rotary embedding, norms and stochastic depth."""

from __future__ import annotations

import math

import torch
from rotation import rotated_by_definition
from torch import nn

from napari_hrsam.modeling.layers import (
    LayerNorm2d,
    Mlp,
    TokenDropPath,
    rotary_frequencies,
    rotary_phases,
    rotate,
)


def test_rotation_has_the_released_sign_pairs_unit_and_order() -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 5, 7, 1, 16, dtype=torch.float64)
    phases = rotary_phases((5, 7), rotary_frequencies(16).double())
    y = rotate(x, phases)
    for row, col in ((0, 0), (1, 0), (0, 1), (4, 6)):
        expected = rotated_by_definition(x[0, row, col, 0], row, col)
        torch.testing.assert_close(y[0, row, col, 0], expected, rtol=1e-6, atol=1e-6)


def test_frequencies_fall_from_one_by_powers_of_ten_thousand() -> None:
    expected = torch.tensor([10000 ** (-2 * k / 32) for k in range(16)])
    torch.testing.assert_close(rotary_frequencies(64), expected)


def test_rotated_products_depend_on_offsets_only() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 9, 9, 1, 8, dtype=torch.float64)
    phases = rotary_phases((9, 9), rotary_frequencies(8).double())
    q_same, k_same = (x[:, :1, :1].expand_as(x) for x in (q, k))
    product = (rotate(q_same, phases)[0, 1:4, 2, 0] * rotate(k_same, phases)[0, 3:6, 7, 0]).sum(-1)
    torch.testing.assert_close(product, product[:1].expand(3), rtol=1e-12, atol=1e-12)


def test_rotation_keeps_the_dtype_and_computes_in_float32() -> None:
    x = torch.randn(1, 3, 40, 2, 8)
    phases = rotary_phases((3, 40), rotary_frequencies(8))
    low = rotate(x.bfloat16(), phases)
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, rotate(x.bfloat16().float(), phases).bfloat16())


def test_layer_norm_2d_normalizes_over_channels() -> None:
    norm, x = LayerNorm2d(6), torch.randn(2, 6, 3, 4)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    mean, var = x.mean(1, keepdim=True), x.var(1, keepdim=True, unbiased=False)
    expected = (x - mean) / (var + 1e-6).sqrt()
    expected = expected * norm.weight.view(1, -1, 1, 1) + norm.bias.view(1, -1, 1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_mlp_uses_the_exact_gelu() -> None:
    mlp, x = Mlp(4, 8), torch.randn(3, 4)
    hidden = mlp.fc1(x)
    gelu = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
    torch.testing.assert_close(mlp(x), mlp.fc2(gelu))


def test_drop_path_drops_single_tokens_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    drop = TokenDropPath(0.25)
    y = drop(torch.ones(8, 500, 4))
    kept = y[..., 0] != 0
    assert torch.equal(y, torch.where(kept[..., None], 1 / 0.75, 0.0).expand_as(y))
    assert 0.7 < float(kept.float().mean()) < 0.8
    assert kept.any(1).all()
    x = torch.randn(2, 5, 4)
    assert drop.eval()(x) is x
