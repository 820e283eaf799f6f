"""SAM's ViT encoder."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.modeling import biased_attention
from napari_hrsam.modeling.configs import BASAMConfig, ViTConfig
from napari_hrsam.modeling.layers import merge_windows, split_windows
from napari_hrsam.modeling.models import find_config
from napari_hrsam.modeling.vit import RelativeAttention, ViTBlock, ViTEncoder, relative_table

CONFIG = ViTConfig(
    patch_size=8,
    embed_dim=16,
    depth=3,
    num_heads=2,
    mlp_ratio=2.0,
    window_size=3,
    global_blocks=(1,),
    out_channels=8,
    pos_grid=4,
)


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return module.eval()


def image(height: int, width: int, seed: int = 1) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(seed))


def cells(height: int, width: int, channels: int = 16) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return torch.randn(2, height, width, channels, generator=g, dtype=torch.float64)


def explicit_attention(attn: RelativeAttention, x: Tensor, factor: float = 1.0) -> Tensor:
    """The formula, pair by pair, for tables as long as the map."""
    batch, height, width, dim = x.shape
    heads, d = attn.num_heads, dim // attn.num_heads
    q, k, v = attn.qkv(x).split(dim, dim=-1)
    q, k, v = (t.reshape(batch, height * width, heads, d).transpose(1, 2) for t in (q, k, v))
    logits = torch.empty(batch, heads, height * width, height * width, dtype=x.dtype)
    for a in range(height * width):
        for b in range(height * width):
            i, j, m, n = a // width, a % width, b // width, b % width
            row = attn.rel_pos_h[i - m + height - 1]
            column = attn.rel_pos_w[j - n + width - 1]
            product = factor * d**-0.5 * (q[:, :, a] * k[:, :, b]).sum(-1)
            logits[:, :, a, b] = product + q[:, :, a] @ row + q[:, :, a] @ column
    out = (logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
    return attn.proj(out)


@torch.no_grad()
@pytest.mark.parametrize("factor", [1.0, 1.3])
def test_attention_adds_unscaled_row_and_column_terms(factor: float) -> None:
    attn = randomized(RelativeAttention(16, 2, 4)).double()
    x = cells(4, 4)
    assert torch.allclose(attn(x, factor), explicit_attention(attn, x, factor), atol=1e-12)


@torch.no_grad()
def test_attention_over_another_map_interpolates_each_table_along_its_length() -> None:
    attn = randomized(RelativeAttention(16, 2, 4)).double()
    resized = RelativeAttention(16, 2, 4).double()
    resized.load_state_dict(attn.state_dict())
    for name, size in (("rel_pos_h", 3), ("rel_pos_w", 6)):
        rows = getattr(attn, name).T[None]
        longer = F.interpolate(rows, 2 * size - 1, mode="linear", align_corners=False)
        setattr(resized, name, nn.Parameter(longer[0].T))
    x = cells(3, 6)
    assert torch.allclose(attn(x), explicit_attention(resized, x), atol=1e-12)


def test_relative_table_of_its_own_size_is_indexed_by_query_minus_key() -> None:
    table = torch.arange(7.0)[:, None]
    pairs = relative_table(table, 4)
    assert pairs.shape == (4, 4, 1)
    assert [pairs[0, 3], pairs[2, 2], pairs[3, 0]] == [0.0, 3.0, 6.0]


def test_windows_are_padded_with_zeros_on_the_right_and_bottom_only() -> None:
    x = cells(4, 5)
    windows = split_windows(x, 3)
    assert windows.shape == (8, 3, 3, 16)
    assert torch.equal(windows[0], x[0, :3, :3])
    assert torch.equal(windows[4 + 3, :1, :2], x[1, 3:, 3:])
    assert not windows[3, 1:].any()
    assert not windows[3, :, 2:].any()
    assert torch.equal(merge_windows(windows, (4, 5)), x)


@torch.no_grad()
def test_window_padding_enters_behind_the_norm_and_takes_part() -> None:
    block = randomized(ViTBlock(CONFIG, is_global=False)).double()
    x = cells(2, 2)
    normed = F.pad(block.norm1(x), (0, 0, 0, 1, 0, 1))
    y = x + explicit_attention(block.attn, normed)[:, :2, :2]
    y = y + block.mlp(block.norm2(y))
    assert torch.allclose(block(x), y, atol=1e-12)


def test_norms_of_the_blocks_have_the_eps_of_the_configuration() -> None:
    assert find_config("sam-b").image_encoder.norm_eps == 1e-6
    block = ViTBlock(replace(CONFIG, norm_eps=1e-3), is_global=True)
    assert block.norm1.eps == block.norm2.eps == 1e-3


@torch.no_grad()
def test_position_map_is_added_as_it_is_at_its_own_grid_and_resized_at_others() -> None:
    encoder = randomized(ViTEncoder(replace(CONFIG, depth=0, global_blocks=())))
    position = encoder.pos_embed.permute(0, 3, 1, 2)
    for height, width in ((4, 4), (4, 7), (2, 3)):
        x = image(8 * height, 8 * width)
        added = position
        if (height, width) != (4, 4):
            added = F.interpolate(position, (height, width), mode="bilinear", align_corners=False)
        expected = encoder.neck(encoder.patch_embed(x) + added)
        assert torch.equal(encoder(x)[0], expected)


@torch.no_grad()
@pytest.mark.parametrize("size", [(32, 32), (40, 56), (8, 16), (64, 24)])
def test_encoder_takes_any_multiple_of_the_patch_with_every_backend(monkeypatch, size) -> None:
    encoder = randomized(ViTEncoder(CONFIG))
    monkeypatch.setattr(biased_attention, "CPU_PART_LOGITS", 150)
    outputs = []
    for backend in ("reference", "sdpa", "xformers", "auto"):
        encoder.attention_backend = backend
        embedding, stride8, stride4 = encoder(image(*size))
        assert embedding.shape == (2, 8, size[0] // 8, size[1] // 8)
        assert stride8 is None
        assert stride4 is None
        outputs.append(embedding)
    for other in outputs[1:]:
        assert torch.allclose(outputs[0], other, atol=2e-5)


def test_only_the_named_blocks_see_the_whole_map() -> None:
    """A change in the far corner reaches the near one through global blocks alone."""
    x, changed = image(72, 72), image(72, 72)
    changed[:, :, 64:, 64:] += 1
    for blocks, reaches in (((), False), ((2,), True)):
        encoder = randomized(ViTEncoder(replace(CONFIG, global_blocks=blocks)))
        with torch.no_grad():
            same = torch.equal(encoder(x)[0][..., 0, 0], encoder(changed)[0][..., 0, 0])
        assert same is not reaches


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), "add a batch axis"),
        ((1, 1, 32, 32), r"must be \(B, 3, H, W\), got \(1, 1, 32, 32\)"),
        ((1, 3, 32, 36), "multiples of 8, got 32 x 36; pad"),
        ((1, 3, 0, 32), "multiples of 8"),
    ],
)
def test_encoder_refuses_other_shapes(shape, message) -> None:
    with pytest.raises(ShapeError, match=message):
        ViTEncoder(CONFIG)(torch.zeros(shape))


@torch.no_grad()
@pytest.mark.parametrize("stem_stride", [16, 32])
def test_convolutional_stem_gives_the_finer_maps_and_replaces_the_patch_projection(
    stem_stride,
) -> None:
    config = replace(CONFIG, patch_size=16, stem="efficientnet-lite0", stem_stride=stem_stride)
    encoder = ViTEncoder(config)
    assert not any(key.startswith("patch_embed") for key in encoder.state_dict())
    embedding, stride8, stride4 = encoder(image(48, 64))
    assert embedding.shape == (2, 8, 3, 4)
    assert stride8.shape == (2, 40, 6, 8)
    assert stride4.shape == (2, 24, 12, 16)


@torch.no_grad()
def test_without_blocks_the_neck_sees_the_tokens() -> None:
    encoder = randomized(ViTEncoder(replace(CONFIG, depth=0, global_blocks=())))
    tokens = encoder._tokens(image(32, 48))[0].permute(0, 3, 1, 2)
    assert torch.equal(encoder(image(32, 48))[0], encoder.neck(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem": "conv"}, "one of linear, efficientnet-lite0 and .* got 'conv' and 16"),
        ({"stem_stride": 4}, "stem_stride 16 or 32, got 'linear' and 4"),
        ({"stem": "efficientnet-lite0"}, "stride 16, got patch 8"),
        ({"depth": 0}, r"global_blocks must lie in 0..-1 \(depth 0\), got \(1,\)"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


@pytest.mark.parametrize("backend", ["auto", "sdpa"])
def test_bfloat16_training_step_is_close_to_float32_and_reaches_every_weight(backend) -> None:
    encoder = randomized(ViTEncoder(CONFIG)).train()
    encoder.attention_backend = backend
    with torch.autocast("cpu", torch.bfloat16):
        low = encoder(image(32, 48))[0]
    low.float().square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in encoder.parameters())
    with torch.no_grad():
        full = encoder(image(32, 48))[0]
    assert float((low.detach() - full).abs().mean()) < 0.02 * float(full.abs().mean())


# ------------------------------------------------------------------------------------- BA-SAM
def ba_encoder(ba: BASAMConfig, source: ViTEncoder) -> ViTEncoder:
    encoder = ViTEncoder(replace(CONFIG, ba=ba))
    extra = {k: v for k, v in encoder.state_dict().items() if k.endswith("coefficient")}
    encoder.load_state_dict(source.state_dict() | extra)
    return encoder.eval()


@torch.no_grad()
def test_ba_in_the_paper_form_is_plain_sam_at_the_training_size_to_the_last_bit() -> None:
    plain = randomized(ViTEncoder(CONFIG))
    encoder = ba_encoder(BASAMConfig(coefficient=True), plain)
    assert torch.equal(encoder(image(32, 32))[0], plain(image(32, 32))[0])
    assert not torch.allclose(encoder(image(64, 64))[0], plain(image(64, 64))[0], atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("form", "size", "factor"),
    [
        ("paper", (64, 48), 1 + torch.tensor(3.0).log2().item() / 4),
        ("released", (64, 48), 1.5),
        ("released", (24, 16), 1.0),
    ],
)
def test_ba_scales_the_products_of_the_global_blocks_only(form, size, factor) -> None:
    plain = randomized(ViTEncoder(CONFIG))
    encoder = ba_encoder(BASAMConfig(form=form), plain)
    x = plain._tokens(image(*size))[0]
    for index, block in enumerate(plain.blocks):
        attend = block.attn
        normed = block.norm1(x)
        if index == 1:
            attended = attend(normed, factor)
        else:
            attended = merge_windows(attend(split_windows(normed, 3)), x.shape[1:3])
        x = x + attended
        x = x + block.mlp(block.norm2(x))
    expected = plain.neck(x.permute(0, 3, 1, 2))
    assert torch.allclose(encoder(image(*size))[0], expected, atol=1e-5)


@torch.no_grad()
def test_ba_coefficient_multiplies_the_interpolated_position_term_in_windows_too() -> None:
    ba = BASAMConfig(scale=False, coefficient=True)
    encoder = ba_encoder(ba, randomized(ViTEncoder(CONFIG)))
    zeroed = ba_encoder(ba, encoder)
    for block, other in zip(encoder.blocks, zeroed.blocks, strict=True):
        block.attn.coefficient.zero_()
        other.attn.rel_pos_h.zero_()
        other.attn.rel_pos_w.zero_()
    assert torch.allclose(encoder(image(48, 64))[0], zeroed(image(48, 64))[0], atol=1e-6)


@pytest.mark.parametrize(("form", "start"), [("paper", 1.0), ("released", 0.1)])
def test_ba_coefficient_is_one_number_per_block_under_the_released_key(form, start) -> None:
    encoder = ViTEncoder(replace(CONFIG, ba=BASAMConfig(form=form, coefficient=True)))
    new = set(encoder.state_dict()) - set(ViTEncoder(CONFIG).state_dict())
    assert new == {f"blocks.{index}.attn.coefficient" for index in range(3)}
    for key in new:
        assert encoder.state_dict()[key].tolist() == pytest.approx([start])


@torch.no_grad()
def test_ba_distance_bias_is_for_global_blocks_and_off_at_slope_zero() -> None:
    plain = randomized(ViTEncoder(CONFIG))
    off, on = BASAMConfig(scale=False), BASAMConfig(scale=False, distance_slope=2.0)
    x = image(40, 48)
    assert torch.equal(ba_encoder(off, plain)(x)[0], plain(x)[0])
    assert not torch.allclose(ba_encoder(on, plain)(x)[0], plain(x)[0], atol=1e-3)
    for index, block in enumerate(ba_encoder(on, plain).blocks):
        assert block.attn.slope == (2.0 if index == 1 else 0.0)


@torch.no_grad()
def test_ba_distance_bias_lowers_the_attention_of_far_keys(monkeypatch) -> None:
    """With a steep slope every cell attends to itself only: the output is its own value."""
    monkeypatch.setattr(biased_attention, "CPU_PART_LOGITS", 30)
    ba = BASAMConfig(distance_slope=1e5)
    attn = randomized(RelativeAttention(16, 2, 4, ba)).double()
    x = cells(4, 4)
    value = attn.qkv(x)[..., 32:]
    assert torch.allclose(attn(x), attn.proj(value), atol=1e-12)
