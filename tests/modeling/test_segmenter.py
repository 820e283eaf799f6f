"""The whole model: normalisation, channel order, precision and output choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.modeling.configs import HRSAMConfig, PromptDecoderConfig
from napari_hrsam.modeling.models import MODELS, ModelConfig
from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter

ENCODER = HRSAMConfig(
    embed_dim=16,
    depth=2,
    num_heads=2,
    window_size=4,
    state_dim=3,
    stage_ends=(1,),
    out_channels=16,
    pos_grid=0,
)
CONFIG = ModelConfig(
    name="small",
    description="for tests",
    image_encoder=ENCODER,
    decoder=PromptDecoderConfig(embed_dim=16, num_heads=2, mlp_dim=24, iou_head_dim=12),
    tile_px=64,
)
STEM_CONFIG = replace(
    CONFIG,
    image_encoder=replace(ENCODER, stem="conv", stem_channels=(4, 6, 10)),
    decoder=replace(CONFIG.decoder, skip_channels=(10, 6), dense_prompts=True),
)
CLICK = {"point_coords_xy": torch.tensor([[[20.0, 30.0]]]), "point_labels": torch.tensor([[1]])}


def build(config: ModelConfig = CONFIG, seed: int = 0) -> Segmenter:
    torch.manual_seed(seed)
    return Segmenter(config).eval()


def pixels(height: int = 64, width: int = 48, batch: int = 1) -> torch.Tensor:
    g = torch.Generator().manual_seed(1)
    return torch.randint(0, 256, (batch, 3, height, width), generator=g).float()


@torch.inference_mode()
def test_pixels_are_normalized_by_mean_and_deviation() -> None:
    model = build()
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (CONFIG.pixel_mean, CONFIG.pixel_std))
    expected = model.image_encoder((pixels() - mean) / std)[0]
    torch.testing.assert_close(model.encode(pixels()).embedding, expected)


@torch.inference_mode()
def test_mean_colour_is_zero_for_the_network() -> None:
    model, seen = build(), []
    model.image_encoder.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    model.encode(torch.tensor(CONFIG.pixel_mean).view(1, 3, 1, 1).expand(1, 3, 32, 32))
    assert not seen[0].any()


@torch.inference_mode()
def test_bgr_models_see_swapped_channels() -> None:
    rgb, bgr = build(), build(replace(CONFIG, channel_order="bgr"))
    assert torch.equal(bgr.encode(pixels().flip(1)).embedding, rgb.encode(pixels()).embedding)


@torch.inference_mode()
@pytest.mark.parametrize("config", [CONFIG, STEM_CONFIG], ids=["linear", "conv"])
def test_multimask_gives_masks_one_to_three_and_single_mask_zero(config) -> None:
    model = build(config)
    features = model.encode(pixels())
    masks, iou = model.decode_all(features, **CLICK)
    assert masks.shape == (1, 4, 16, 12)
    single, single_iou = model.decode(features, **CLICK)
    multi, multi_iou = model.decode(features, **CLICK, multimask=True)
    assert torch.equal(single, masks[:, :1])
    assert torch.equal(multi, masks[:, 1:])
    assert torch.equal(torch.cat([single_iou, multi_iou], 1), iou)


@torch.inference_mode()
def test_stem_models_keep_projected_maps_and_others_none() -> None:
    plain, stem = build().encode(pixels()), build(STEM_CONFIG).encode(pixels())
    assert plain.stride8 is plain.stride4 is None
    assert stem.stride8.shape == (1, 4, 8, 6)
    assert stem.stride4.shape == (1, 2, 16, 12)
    moved = stem.to(device="cpu", dtype=torch.float16)
    assert {x.dtype for _, x in moved.items()} == {torch.float16}


@torch.inference_mode()
@pytest.mark.parametrize("config", [CONFIG, STEM_CONFIG], ids=["linear", "conv"])
def test_prompts_of_one_image_share_its_features(config) -> None:
    model = build(config)
    features = model.encode(pixels())
    coords = torch.tensor([[[20.0, 30.0]], [[5.0, 6.0]]])
    labels = torch.tensor([[1], [1]])
    both, _ = model.decode(features, point_coords_xy=coords, point_labels=labels)
    alone, _ = model.decode(features, point_coords_xy=coords[1:], point_labels=labels[1:])
    torch.testing.assert_close(both[1:], alone, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_bfloat16_is_close_and_hands_out_float32() -> None:
    model = build(STEM_CONFIG)
    exact = model.encode(pixels())
    model.precision = "bfloat16"
    fast = model.encode(pixels())
    for (name, a), (_, b) in zip(exact.items(), fast.items(), strict=True):
        assert b.dtype == torch.float32
        error = (a - b).abs().max()
        assert 0 < error < 0.15 * a.abs().max(), name


def test_gradients_flow_through_encoding_and_decoding() -> None:
    model = build(STEM_CONFIG).train()
    masks, iou = model.decode_all(
        model.encode(pixels()),
        **CLICK,
        boxes_xyxy=torch.tensor([[5.0, 6.0, 40.0, 50.0]]),
        mask_logits=torch.randn(1, 1, 16, 12),
    )
    (masks.square().mean() + iou.square().mean()).backward()
    unused = {
        "image_encoder.blocks.0.attn.padding",
        "prompt_encoder.point_embeddings.0.weight",
        "prompt_encoder.not_a_point_embed.weight",
        "prompt_encoder.no_mask_embed.weight",
    }
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent <= unused


def test_fingerprint_tells_weights_settings_and_precision_apart() -> None:
    model = build()
    prints = {
        model.fingerprint,
        build(seed=1).fingerprint,
        build(replace(CONFIG, channel_order="bgr")).fingerprint,
    }
    assert build().fingerprint == model.fingerprint
    model.precision = "bfloat16"
    assert len(prints | {model.fingerprint}) == 4


@torch.inference_mode()
def test_inputs_of_another_shape_are_refused() -> None:
    model = build()
    with pytest.raises(ShapeError, match=r"must be \(B, 3, H, W\), got \(3, 64, 64\)"):
        model.encode(torch.zeros(3, 64, 64))
    with pytest.raises(ShapeError, match="positive multiples of 16, got 64 x 50"):
        model.encode(torch.zeros(1, 3, 64, 50))
    features = model.encode(pixels(batch=2))
    three = {"point_coords_xy": torch.zeros(3, 1, 2), "point_labels": torch.ones(3, 1)}
    with pytest.raises(ShapeError, match="hold 2 images but the prompts are for 3 objects"):
        model.decode(features, **three)
    assert isinstance(features, ImageFeatures)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_px": 100}, "multiple of 16, got 100"),
        ({"channel_order": "gbr"}, "'rgb' or 'bgr', got 'gbr'"),
        ({"pixel_std": (1.0, 0.0, 1.0)}, "pixel_std must be positive"),
        ({"decoder": PromptDecoderConfig()}, "gives 16 channels but the decoder takes 256"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


def test_named_models_are_listed_under_their_names() -> None:
    assert all(name == config.name for name, config in MODELS.items())
    official = MODELS["hrsam-b"]
    assert official.image_encoder.stem == "linear"
    assert official.decoder.skip_channels is None
    assert official.channel_order == "bgr"
