"""MobileSAM's TinyViT encoder."""

from __future__ import annotations

import copy
import itertools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.modeling.configs import BASAMConfig, TinyViTConfig
from napari_hrsam.modeling.tiny_vit import TinyViTBlock, TinyViTEncoder, WindowBiasAttention

CONFIG = TinyViTConfig(
    embed_dims=(4, 8, 8, 16),
    depths=(1, 1, 2, 1),
    num_heads=(1, 2, 2, 4),
    window_sizes=(3, 3, 4, 3),
    mlp_ratio=2.0,
    out_channels=8,
)


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return module.eval()


def image(height: int, width: int) -> Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("size", [(64, 64), (16, 16), (48, 112), (128, 80)])
def test_grid_is_taken_from_the_input_at_strides_4_8_16_16(size) -> None:
    encoder = randomized(TinyViTEncoder(CONFIG))
    maps: list[tuple[int, int]] = []
    encoder.patch_embed.register_forward_hook(lambda *a: maps.append(tuple(a[2].shape[2:])))
    for stage in encoder.layers:
        stage.register_forward_hook(lambda *a: maps.append(tuple(a[2].shape[2:])))
    outputs = []
    for backend in ("auto", "sdpa", "reference"):
        encoder.attention_backend = backend
        embedding, stride8, stride4 = encoder(image(*size))
        assert (stride8, stride4) == (None, None)
        outputs.append(embedding)
    assert maps[:5] == [(size[0] // s, size[1] // s) for s in (4, 8, 16, 16, 16)]
    assert outputs[0].shape == (1, 8, size[0] // 16, size[1] // 16)
    assert torch.allclose(outputs[0], outputs[2], atol=1e-5)
    assert torch.allclose(outputs[1], outputs[2], atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 4, 32, 32), (1, 3, 32, 40)])
def test_encoder_refuses_other_shapes(shape) -> None:
    with pytest.raises(ShapeError, match="image"):
        TinyViTEncoder(CONFIG)(torch.zeros(shape))


def test_bias_is_looked_up_by_the_absolute_offset() -> None:
    attn = WindowBiasAttention(8, 2, 4)
    with torch.no_grad():
        attn.attention_biases.copy_(torch.arange(32.0).view(2, 16))
        table = attn.bias_table()
    assert table.shape == (2, 4, 4, 16)
    for head, y, x, key in ((0, 0, 0, 0), (0, 3, 1, 4 * 1 + 3), (1, 0, 2, 4 * 3 + 0)):
        expected = 16 * head + abs(y - key // 4) * 4 + abs(x - key % 4)
        assert float(table[head, y, x, key]) == expected


def test_bias_table_is_no_part_of_the_state_and_never_stale() -> None:
    encoder = randomized(TinyViTEncoder(CONFIG))
    other = randomized(TinyViTEncoder(CONFIG), seed=5)
    assert {k.split(".")[-1] for k in encoder.state_dict() if ".attn." in k} == {
        "weight",
        "bias",
        "attention_biases",
    }
    with torch.no_grad():
        encoder(image(48, 48))
        encoder.load_state_dict(other.state_dict())
        assert torch.equal(encoder(image(48, 48))[0], other(image(48, 48))[0])


@torch.no_grad()
def test_attention_interleaves_q_k_v_per_head_and_scales_by_the_factor() -> None:
    attn = randomized(WindowBiasAttention(8, 2, 3)).double()
    x = torch.randn(2, 3, 3, 8, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    projected = attn.qkv(attn.norm(x)).reshape(2, 9, 2, 12)
    q, k, v = (projected[..., 4 * i : 4 * i + 4].transpose(1, 2) for i in range(3))
    logits = 1.2 * q @ k.transpose(2, 3) / 2 + attn.bias_table().reshape(2, 9, 9)
    expected = attn.proj((logits.softmax(-1) @ v).transpose(1, 2).reshape(2, 3, 3, 8))
    assert torch.allclose(attn(x, 1.2), expected, atol=1e-12)


@torch.no_grad()
def test_window_padding_enters_before_the_norm_and_becomes_its_bias() -> None:
    block = randomized(TinyViTBlock(CONFIG, 1)).double()
    x = torch.randn(1, 8, 2, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    cells = x.permute(0, 2, 3, 1)
    attended = block.attn(F.pad(cells, (0, 0, 0, 1, 0, 1)))[:, :2, :2]
    y = block.local_conv((cells + attended).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    expected = (y + block.mlp(y)).permute(0, 3, 1, 2)
    assert torch.allclose(block(x, 1.0, "auto"), expected, atol=1e-12)
    assert not torch.allclose(block.attn.norm(torch.zeros(8).double()), torch.zeros(8).double())


def test_gradients_reach_every_weight_in_training_and_in_bfloat16() -> None:
    encoder = randomized(TinyViTEncoder(CONFIG)).train()
    with torch.autocast("cpu", torch.bfloat16):
        out = encoder(image(96, 64))[0]
    out.float().square().mean().backward()
    without = {name for name, p in encoder.named_parameters() if p.grad is None}
    assert not without


# ------------------------------------------------------------------------- windows of any shape
def literal_attention(
    attn: WindowBiasAttention, window: Tensor, scale: float, coefficient: float = 1.0
) -> Tensor:
    """One window (h, w, C), pair by pair, offsets numbered in the order they are met."""
    height, width, _ = window.shape
    cells = list(itertools.product(range(height), range(width)))
    met: dict[tuple[int, int], int] = {}
    for (y, x), (v, u) in itertools.product(cells, cells):
        met.setdefault((abs(y - v), abs(x - u)), len(met))
    rows = attn.qkv(attn.norm(window)).unflatten(-1, (attn.num_heads, -1))
    out = torch.zeros(height, width, attn.num_heads, attn.value_dim, dtype=window.dtype)
    kd = attn.key_dim
    for head, (y, x) in itertools.product(range(attn.num_heads), cells):
        logits = torch.stack(
            [
                scale * rows[y, x, head, :kd] @ rows[v, u, head, kd : 2 * kd]
                + coefficient * attn.attention_biases[head, met[abs(y - v), abs(x - u)]]
                for v, u in cells
            ]
        )
        values = torch.stack([rows[v, u, head, 2 * kd :] for v, u in cells])
        out[y, x, head] = logits.softmax(0) @ values
    return attn.proj(out.flatten(2))


@torch.no_grad()
@pytest.mark.parametrize("window", [(5, 6), (4, 2), 3])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(None, None), (2, 6)])
@pytest.mark.parametrize("ba", [None, BASAMConfig(coefficient=True)])
def test_attention_in_any_window_is_the_literal_one(window, key_dim, value_dim, ba) -> None:
    attn = WindowBiasAttention(8, 2, window, ba, key_dim=key_dim, value_dim=value_dim)
    attn = randomized(attn).double()
    height, width = (window, window) if isinstance(window, int) else window
    assert attn.attention_biases.shape == (2, height * width)
    g = torch.Generator().manual_seed(2)
    x = torch.randn(2, height, width, 8, generator=g, dtype=torch.float64)
    scale = 1.2 * (key_dim or 4) ** -0.5
    coefficient = 1.0 if ba is None else float(attn.coefficient)
    expected = torch.stack([literal_attention(attn, part, scale, coefficient) for part in x])
    for backend in ("auto", "sdpa", "reference"):
        assert torch.allclose(attn(x, 1.2, backend), expected, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("size", [(7, 5), (5, 6), (10, 12), (2, 13)])
def test_block_cuts_a_map_into_windows_that_are_not_square(size) -> None:
    config = replace(CONFIG, window_sizes=(3, (5, 6), 4, 3), local_conv_size=5)
    block = randomized(TinyViTBlock(config, 1)).double()
    g = torch.Generator().manual_seed(3)
    x = torch.randn(1, 8, *size, generator=g, dtype=torch.float64)
    cells, scale = x[0].permute(1, 2, 0), 4**-0.5
    whole = torch.zeros(10, 18, 8, dtype=torch.float64)
    whole[: size[0], : size[1]] = cells
    for top, left in itertools.product(range(0, 10, 5), range(0, 18, 6)):
        area = (slice(top, top + 5), slice(left, left + 6))
        whole[area] = literal_attention(block.attn, whole[area], scale)
    y = (cells + whole[: size[0], : size[1]]).permute(2, 0, 1)
    conv, norm = block.local_conv.c, block.local_conv.bn
    assert conv.kernel_size == (5, 5)
    y = norm(F.conv2d(F.pad(y[None], (2, 2, 2, 2)), conv.weight, groups=8)).permute(0, 2, 3, 1)
    expected = (y + block.mlp(y)).permute(0, 3, 1, 2)
    assert torch.allclose(block(x, 1.0, "auto"), expected, atol=1e-12)


@torch.no_grad()
def test_encoder_with_windows_that_are_not_square_is_the_same_with_all_kernels() -> None:
    config = replace(CONFIG, window_sizes=(1, (3, 5), (2, 4), (4, 3)), mbconv_expand_ratio=2.0)
    encoder = randomized(TinyViTEncoder(config)).double()
    assert encoder.layers[0].blocks[0].conv2.c.weight.shape[0] == 8
    assert [b.attn.attention_biases.shape[1] for s in encoder.layers[1:] for b in s.blocks] == [
        15,
        8,
        8,
        12,
    ]
    x, outputs = image(80, 112).double(), []
    for backend in ("sdpa", "reference"):
        encoder.attention_backend = backend
        with torch.enable_grad():
            outputs.append(encoder(x)[0])
    assert torch.allclose(*outputs, atol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window_sizes": (7, 7, (14, 0), 7)}, "window size must be .* got \\(14, 0\\)"),
        ({"window_sizes": (7, 7, (1, 2, 3), 7)}, "window size must be .* height and width"),
        ({"window_sizes": (7, 7, 3.5, 7)}, "window size must be a whole number.*3.5"),
        ({"local_conv_size": 4}, "local_conv_size must be odd, got 4"),
    ],
)
def test_configuration_refuses_windows_and_kernels_that_do_not_exist(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


# ------------------------------------------------------------------------------------- BA-SAM
def ba_encoder(ba: BASAMConfig) -> tuple[TinyViTEncoder, TinyViTEncoder]:
    """A plain encoder and one with the same weights and BA-SAM."""
    plain = randomized(TinyViTEncoder(CONFIG))
    encoder = TinyViTEncoder(replace(CONFIG, ba=ba))
    extra = {k: v for k, v in encoder.state_dict().items() if k.endswith("coefficient")}
    encoder.load_state_dict(plain.state_dict() | extra)
    return plain, encoder.eval()


@torch.no_grad()
def test_ba_at_the_training_size_is_plain_and_scales_every_layer_at_others(monkeypatch) -> None:
    plain, encoder = ba_encoder(BASAMConfig(coefficient=True))
    monkeypatch.setattr("napari_hrsam.modeling.tiny_vit.TINY_VIT_TRAINING_SIDE", 4)
    assert torch.equal(encoder(image(64, 64))[0], plain(image(64, 64))[0])
    factors: list[float] = []
    for name, module in encoder.named_modules():
        if name.endswith(".attn"):
            module.register_forward_pre_hook(lambda _module, args: factors.append(args[1]))
    encoder(image(128, 128))
    assert factors == pytest.approx([1.190551] * 4, abs=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("form", ["paper", "released"])
@pytest.mark.parametrize("training", [False, True])
def test_ba_coefficient_counts_in_use_too_unless_the_form_is_the_released_one(
    form, training
) -> None:
    attn = randomized(WindowBiasAttention(8, 2, 3, BASAMConfig(form=form, coefficient=True)))
    plain = WindowBiasAttention(8, 2, 3)
    plain.attention_biases.copy_(attn.attention_biases)
    counts = training or form == "paper"
    factor = attn.coefficient if counts else torch.ones(1)
    assert torch.equal(attn.train(training).bias_table(), plain.bias_table() * factor)


def test_ba_coefficient_has_the_released_key() -> None:
    plain, encoder = ba_encoder(BASAMConfig(coefficient=True))
    assert set(encoder.state_dict()) - set(plain.state_dict()) == {
        "layers.1.blocks.0.attn.coefficient",
        "layers.2.blocks.0.attn.coefficient",
        "layers.2.blocks.1.attn.coefficient",
        "layers.3.blocks.0.attn.coefficient",
    }


def without_slope(attn: WindowBiasAttention) -> WindowBiasAttention:
    plain = copy.deepcopy(attn)
    plain.ba = None
    return plain


@torch.no_grad()
def test_ba_distance_bias_is_added_inside_the_windows_and_off_at_slope_zero() -> None:
    steep = randomized(WindowBiasAttention(8, 2, 3, BASAMConfig(distance_slope=1e5)))
    x = torch.randn(2, 3, 3, 8, generator=torch.Generator().manual_seed(2))
    value = steep.qkv(steep.norm(x)).unflatten(-1, (2, 3, 4))[..., 2, :].flatten(-2)
    assert torch.allclose(steep(x), steep.proj(value), atol=1e-5)
    oblong = randomized(WindowBiasAttention(8, 2, (2, 4), BASAMConfig(distance_slope=1.0)))
    added = oblong.bias_table() - without_slope(oblong).bias_table()
    # From cell (0, 1) to cell (1, 3): one row and two columns; slopes 1/16 and 1/256.
    assert torch.allclose(added[:, 0, 1, 7], -torch.tensor([5**0.5 / 16, 5**0.5 / 256]))
    level = copy.deepcopy(steep)
    level.ba = BASAMConfig(distance_slope=0.0)
    plain = WindowBiasAttention(8, 2, 3)
    plain.load_state_dict(steep.state_dict())
    assert torch.equal(level(x), plain(x))
