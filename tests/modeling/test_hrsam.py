"""The HRSAM and HRSAM++ encoders."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.modeling import hrsam
from napari_hrsam.modeling.attention import window_attention
from napari_hrsam.modeling.configs import HRSAMConfig
from napari_hrsam.modeling.hrsam import Block, CycleScanBlock, HRSAMEncoder, WindowAttention
from napari_hrsam.modeling.models import MODELS

CONFIG = HRSAMConfig(
    patch_size=8,
    embed_dim=16,
    depth=6,
    num_heads=2,
    mlp_ratio=2.0,
    window_size=4,
    state_dim=3,
    stage_ends=(2, 5),
    out_channels=8,
    pos_grid=4,
)
PLUSPLUS = replace(CONFIG, anchor_sizes=(32,))
STEM = {"patch_size": 16, "stem": "efficientnet-lite0"}
WITHOUT_BLOCKS = {**STEM, "depth": 0, "stage_ends": ()}


def randomized(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights away from their special initial values (zero padding, ones)."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=g))
    return module.eval()


def image(height: int = 40, width: int = 56, batch: int = 1, seed: int = 1) -> torch.Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def recorded(encoder: nn.Module, names: list[str], x: torch.Tensor) -> list[tuple[str, tuple]]:
    """(name, (input, output)) of the named modules in the order of the calls."""
    calls: list[tuple[str, tuple]] = []
    for name in names:
        encoder.get_submodule(name).register_forward_hook(
            lambda _m, args, out, name=name: calls.append((name, (args[0], out)))
        )
    with torch.no_grad():
        encoder(x)
    return calls


@pytest.mark.parametrize("config", [CONFIG, PLUSPLUS, replace(CONFIG, pos_grid=0, state_dim=0)])
@pytest.mark.parametrize("size_hw", [(8, 8), (32, 32), (24, 88), (72, 16)])
def test_embedding_has_the_token_grid(config, size_hw) -> None:
    out, stride8, stride4 = HRSAMEncoder(config)(image(*size_hw, batch=2))
    assert out.shape == (2, 8, size_hw[0] // 8, size_hw[1] // 8)
    assert stride8 is stride4 is None


@torch.no_grad()
@pytest.mark.parametrize("stem_stride", [16, 32])
@pytest.mark.parametrize("config", [CONFIG, PLUSPLUS])
@pytest.mark.parametrize("size_hw", [(16, 16), (48, 80), (64, 32)])
def test_convolutional_stem_also_gives_finer_maps_of_the_image(
    config, stem_stride, size_hw
) -> None:
    encoder = randomized(HRSAMEncoder(replace(config, **STEM, stem_stride=stem_stride)))
    assert not any(key.startswith("patch_embed") for key in encoder.state_dict())
    x = image(*size_hw, batch=2)
    out, stride8, stride4 = encoder(x)
    height, width = size_hw
    assert out.shape == (2, 8, height // 16, width // 16)
    maps = encoder.stem.net(x)
    # Those of the image itself, not of an anchor map.
    assert stride8.shape == (2, 40, height // 8, width // 8)
    assert stride4.shape == (2, 24, height // 4, width // 4)
    assert torch.equal(stride8, maps[8])
    assert torch.equal(stride4, maps[4])


@torch.no_grad()
@pytest.mark.parametrize("stem_stride", [16, 32])
def test_without_blocks_the_embedding_is_made_of_the_stem_s_tokens_alone(stem_stride) -> None:
    changes = {**WITHOUT_BLOCKS, "stem_stride": stem_stride, "pos_grid": 0}
    encoder = randomized(HRSAMEncoder(replace(CONFIG, **changes)))
    assert not any(key.startswith("blocks.") for key in encoder.state_dict())
    x = image(48, 80, batch=2)
    projection, norm = encoder.lateral_convs[0]
    tokens = encoder.stem(x)[0].permute(0, 2, 3, 1)
    lateral = norm(tokens @ projection.weight.t()).permute(0, 3, 1, 2)
    expected = encoder.out_conv(lateral).permute(0, 3, 1, 2)
    torch.testing.assert_close(encoder(x)[0], expected)


def test_without_blocks_every_parameter_but_the_class_entry_learns() -> None:
    encoder = randomized(HRSAMEncoder(replace(CONFIG, **WITHOUT_BLOCKS, stem_stride=32))).train()
    encoder(image(32, 48))[0].square().mean().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_padding_token_enters_behind_the_norm_and_before_the_projection() -> None:
    attention = randomized(WindowAttention(16, 2, 4, shift=True))
    freqs, x = torch.ones(2), torch.randn(2, 35, 16)
    out = attention(x, ((5, 7),), freqs, shift_small=True, backend="sdpa")
    k, v = F.linear(attention.padding[0], attention.qkv.weight, attention.qkv.bias).chunk(3)[1:]
    expected = attention.proj(
        window_attention(
            attention.qkv(x).reshape(2, 5, 7, 3, 2, 8),
            torch.stack([k, v]).reshape(2, 2, 8),
            freqs,
            window=4,
            padding=2,
            backend="reference",
        ).reshape(2, 35, 16)
    )
    torch.testing.assert_close(out, expected)


def test_padding_token_is_not_normalized() -> None:
    block = randomized(Block(CONFIG, shift=True, drop_path=0.0))
    x, sizes, freqs = torch.randn(1, 15, 16), ((3, 5),), torch.ones(2)
    with torch.no_grad():
        small = block(x, sizes, freqs, "sdpa")
        # A norm would take the factor out again.
        block.attn.padding.mul_(3)
        assert (block(x, sizes, freqs, "sdpa") - small).abs().max() > 1e-3


def test_shifts_alternate_over_the_whole_network() -> None:
    encoder = HRSAMEncoder(replace(CONFIG, depth=6))
    assert [block.attn.shift for block in encoder.blocks] == [0, 2, 0, 2, 0, 2]


def test_maps_of_one_sample_do_not_meet_in_attention() -> None:
    block = randomized(Block(PLUSPLUS, shift=True, drop_path=0.0))
    x, sizes, freqs = torch.randn(1, 6 * 5 + 16, 16), ((6, 5), (4, 4)), torch.ones(2)
    y = x.clone()
    y[:, 30:] = torch.randn(1, 16, 16)
    a, b = (block(z, sizes, freqs, "sdpa") for z in (x, y))
    assert torch.equal(a[:, :30], b[:, :30])
    assert not torch.equal(a[:, 30:], b[:, 30:])


def test_state_space_block_runs_before_the_last_attention_block_of_a_stage() -> None:
    encoder = randomized(HRSAMEncoder(CONFIG))
    names = ["blocks.1", "blocks.2", "blocks.3", "blocks.5", "mamba_blocks.0", "mamba_blocks.1"]
    calls = recorded(encoder, names, image())
    order = [name for name, _ in calls]
    assert order == [*names[:1], "mamba_blocks.0", *names[1:3], "mamba_blocks.1", "blocks.5"]
    tensors = dict(calls)
    assert torch.equal(tensors["mamba_blocks.0"][0], tensors["blocks.1"][1])
    assert torch.equal(tensors["blocks.2"][0], tensors["mamba_blocks.0"][1])


def test_plusplus_scans_each_map_before_and_all_maps_after_attention() -> None:
    encoder = randomized(HRSAMEncoder(PLUSPLUS))
    names = ["ss_mamba_blocks.0", "blocks.2", "ms_mamba_blocks.0", "blocks.3"]
    calls = recorded(encoder, names, image())
    order = [name for name, _ in calls]
    assert order == ["ss_mamba_blocks.0", *names]
    lengths = [call[0].shape[1] for _, call in calls]
    assert lengths == [35, 16, 51, 51, 51]
    # What the scan over all maps gives is what the next block receives.
    assert torch.equal(calls[4][1][0], calls[3][1][1])


def test_scan_over_all_maps_carries_the_state_into_the_anchor() -> None:
    encoder = randomized(HRSAMEncoder(PLUSPLUS))
    x = torch.randn(1, 51, 16)
    y = x.clone()
    y[:, :35] = torch.randn(1, 35, 16)
    sizes = ((5, 7), (4, 4))
    with torch.no_grad():
        single = [encoder._scan_before(z, sizes, 0)[:, 35:] for z in (x, y)]
        joint = [encoder.ms_mamba_blocks[0](z, "torch")[:, 35:] for z in (x, y)]
    assert torch.equal(single[0], single[1])
    assert (joint[0] - joint[1]).abs().max() > 1e-4


def scan_block_by_definition(block: CycleScanBlock, x: torch.Tensor) -> torch.Tensor:
    """Compute the state-space block token by token."""
    width, states = block.dim, block.state_dim
    hidden = block.in_proj[0](F.layer_norm(x, (width,), block.in_norm.weight, block.in_norm.bias))
    hidden = hidden * torch.sigmoid(hidden)
    u, z = hidden[..., :width], hidden[..., width:]
    params = block.ssm_proj(u)
    raw, b, c = params[..., :width], params[..., width : width + states], params[..., -states:]
    delta = torch.log1p(torch.exp(raw + block.ssm_proj_bias))
    decay = -torch.exp(block.As_log)
    state, total = x.new_zeros(len(x), width, states), torch.zeros_like(x)
    for r in range(block.gamma.shape[1]):
        for t in range(x.shape[1]):
            drive = (delta[:, t] * u[:, t])[..., None] * b[:, t, None]
            state = torch.exp(delta[:, t, :, None] * decay) * state + drive
            y = (state * c[:, t, None]).sum(-1) + block.Ds * u[:, t]
            total[:, t] = total[:, t] + block.gamma[:, r, 0] * y
    normed = F.layer_norm(total, (width,), block.out_norm.weight, block.out_norm.bias)
    return x + block.out_proj(z * normed)


def test_state_space_block_follows_its_definition() -> None:
    block = randomized(CycleScanBlock(6, 3, 3)).double()
    x = torch.randn(2, 11, 6, dtype=torch.float64)
    for backend in ("auto", "torch", "reference"):
        torch.testing.assert_close(
            block(x, backend), scan_block_by_definition(block, x), rtol=1e-9, atol=1e-9
        )


def test_state_space_block_scans_in_raster_order() -> None:
    block = randomized(CycleScanBlock(6, 3, 3))
    x = torch.randn(1, 12, 6)
    flipped = block(x.flip(1), "torch").flip(1)
    assert (block(x, "torch") - flipped).abs().max() > 1e-3


def test_scan_starts_with_steps_between_a_thousandth_and_a_tenth() -> None:
    block = CycleScanBlock(64, 4, 3)
    steps = F.softplus(block.ssm_proj_bias)
    assert steps.detach().min() >= 0.001 * 0.99
    assert steps.detach().max() <= 0.1 * 1.01
    torch.testing.assert_close(block.As_log.exp()[0], torch.tensor([1.0, 2.0, 3.0, 4.0]))


def test_scan_is_float32_inside_autocast(monkeypatch) -> None:
    dtypes = []

    def spy(*inputs, **_backend):
        dtypes.extend(x.dtype for x in inputs)
        return inputs[0]

    monkeypatch.setattr(hrsam, "cycle_scan", spy)
    block, x = CycleScanBlock(8, 4, 3), torch.randn(1, 6, 8)
    with torch.autocast("cpu", torch.bfloat16):
        projected = block.in_proj[0](x)
        block(x, "torch")
    assert projected.dtype == torch.bfloat16
    assert set(dtypes) == {torch.float32}


def position_map(config: HRSAMConfig, size_hw: tuple[int, int]) -> torch.Tensor:
    """What the encoder adds to the patches: the difference that the parameter makes."""
    encoder = randomized(HRSAMEncoder(config))
    with torch.no_grad():
        added = encoder._tokens(image(*size_hw))[0] - encoder.patch_embed(image(*size_hw))
    return added, encoder.pos_embed.detach()


def test_position_map_is_used_as_it_is_at_its_own_size() -> None:
    added, stored = position_map(CONFIG, (32, 32))
    expected = stored[0, 1:].t().reshape(16, 4, 4)
    torch.testing.assert_close(added[0], expected, rtol=0, atol=1e-6)


def test_position_map_is_resized_without_corner_alignment() -> None:
    added, stored = position_map(CONFIG, (64, 40))
    grid = stored[:, 1:].transpose(1, 2).reshape(1, 16, 4, 4)
    expected = F.interpolate(grid, (8, 5), mode="bilinear", align_corners=False)
    torch.testing.assert_close(added, expected, rtol=0, atol=1e-6)


def test_class_entry_of_the_position_embedding_is_ignored() -> None:
    encoder = randomized(HRSAMEncoder(CONFIG))
    with torch.no_grad():
        before = encoder(image())[0]
        encoder.pos_embed[:, 0] += 7
        assert torch.equal(encoder(image())[0], before)


def test_every_norm_of_the_encoder_has_eps_1e_5() -> None:
    norms = [m for m in HRSAMEncoder(PLUSPLUS).modules() if isinstance(m, nn.LayerNorm)]
    assert len(norms) > 20
    assert {m.eps for m in norms} == {1e-5}


@pytest.mark.parametrize("config", [CONFIG, PLUSPLUS])
def test_samples_of_a_batch_do_not_meet(config) -> None:
    encoder = randomized(HRSAMEncoder(config))
    batch = image(batch=3)
    with torch.no_grad():
        whole, alone = encoder(batch)[0], encoder(batch[1:2])[0]
    torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("image_hw", "anchor_hw"),
    [((56, 96), (24, 32)), ((120, 48), (32, 16)), ((64, 64), (32, 32))],
)
def test_anchor_keeps_the_aspect_ratio_rounded_up_to_the_patch(image_hw, anchor_hw) -> None:
    encoder = HRSAMEncoder(replace(PLUSPLUS, anchor_keep_aspect=True))
    assert encoder._anchor(image(*image_hw), 32).shape[2:] == anchor_hw
    square = HRSAMEncoder(PLUSPLUS)
    assert square._anchor(image(*image_hw), 32).shape[2:] == (32, 32)


@torch.no_grad()
def test_anchor_of_a_given_height_and_width_is_the_map_that_the_aspect_ratio_would_give() -> None:
    kept = randomized(HRSAMEncoder(replace(PLUSPLUS, anchor_keep_aspect=True)))
    given = HRSAMEncoder(replace(PLUSPLUS, anchor_sizes=((24, 32),))).eval()
    given.load_state_dict(kept.state_dict())
    x = image(40, 56)
    assert kept._anchor(x, 32).shape[2:] == (24, 32)
    assert torch.equal(given(x)[0], kept(x)[0])
    turned = HRSAMEncoder(replace(PLUSPLUS, anchor_sizes=((32, 24),))).eval()
    turned.load_state_dict(kept.state_dict())
    assert not torch.allclose(turned(x)[0], kept(x)[0], atol=1e-3)


@torch.no_grad()
def test_anchors_of_several_shapes_follow_the_main_map_in_their_order() -> None:
    encoder = randomized(HRSAMEncoder(replace(PLUSPLUS, anchor_sizes=((16, 40), 24, (8, 60)))))
    seen: list[tuple] = []
    encoder.blocks[0].register_forward_pre_hook(lambda _m, args: seen.append(args[:2]))
    x = image(40, 56)
    assert encoder(x)[0].shape == (1, 8, 5, 7)
    ((tokens, sizes),) = seen
    # The last four columns of 60 pixels are no whole patch.
    assert sizes == ((5, 7), (2, 5), (3, 3), (1, 7))
    resized = F.interpolate(x, (16, 40), mode="bilinear", align_corners=False)
    pos = encoder.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (4, 4))
    pos = F.interpolate(pos, (2, 5), mode="bilinear", align_corners=False)
    expected = (encoder.patch_embed(resized) + pos).flatten(2).transpose(1, 2)
    assert torch.equal(tokens[:, 35:45], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"anchor_sizes": ((32, 0),)}, "anchor size must be a whole number .* got \\(32, 0\\)"),
        ({"anchor_sizes": ((32, 40, 8),)}, "anchor size must be .* height and width"),
        ({"anchor_sizes": (32.0,)}, "anchor size must be a whole number .* got 32.0"),
        ({"anchor_sizes": ((32, 4),)}, "anchor size must be one patch \\(8 px\\) or more"),
        ({"anchor_sizes": ((24, 32),), "anchor_keep_aspect": True}, "longer side, one number"),
    ],
)
def test_configuration_refuses_anchors_that_cannot_be(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(PLUSPLUS, **changes)


def test_every_parameter_learns() -> None:
    encoder = randomized(HRSAMEncoder(PLUSPLUS)).train()
    encoder(image(40, 56))[0].square().mean().backward()
    without = [n for n, p in encoder.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def test_released_size_has_the_published_number_of_parameters() -> None:
    with torch.device("meta"), torch.no_grad():
        block = Block(HRSAMConfig(), shift=False, drop_path=0.0)
    assert sum(p.numel() for p in block.parameters()) == 7_087_872 + 768
    assert MODELS["hrsam-b"].image_encoder == HRSAMConfig()


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 32, 32), r"must be \(B, 3, H, W\), got \(3, 32, 32\); add a batch axis"),
        ((1, 1, 32, 32), r"must be \(B, 3, H, W\), got \(1, 1, 32, 32\)"),
        ((1, 3, 32, 30), "positive multiples of 8, got 32 x 30; pad the image"),
        ((1, 3, 0, 32), "positive multiples of 8, got 0 x 32"),
    ],
)
def test_images_of_another_shape_are_refused(shape, message) -> None:
    with pytest.raises(ShapeError, match=message):
        HRSAMEncoder(CONFIG)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embed_dim": 20}, r"multiple of 4 \* num_heads = 8 .*got 20"),
        ({"stage_ends": (2, 6)}, r"must lie in 0..5 .*got \(2, 6\)"),
        ({"stage_ends": ()}, r"must lie in 0..5"),
        ({"stem": "patch"}, "one of linear, efficientnet-lite0 and .* got 'patch' and 16"),
        ({"stem_stride": 8}, "stem_stride 16 or 32, got 'linear' and 8"),
        ({"stem": "efficientnet-lite0"}, "stride 16, got patch 8"),
        ({"depth": 0}, r"depth 0\), got \(2, 5\); without blocks there are none"),
        ({"depth": 0, "stage_ends": ()}, "needs a convolutional stem and no anchor map.*'linear'"),
        ({**WITHOUT_BLOCKS, "anchor_sizes": (32,)}, r"no anchor map, got .*anchor maps \(32,\)"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)
