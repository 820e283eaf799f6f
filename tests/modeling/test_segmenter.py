"""The whole model: normalisation, channel order, precision and output choice."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_segmenter import CONFIG, STEM_CONFIG, build, pixels

from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.modeling.configs import PromptDecoderConfig, TinyViTConfig
from napari_hrsam.modeling.models import MODELS
from napari_hrsam.modeling.segmenter import ImageFeatures

CLICK = {"point_coords_xy": torch.tensor([[[20.0, 30.0]]]), "point_labels": torch.tensor([[1]])}


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
@pytest.mark.parametrize("config", [CONFIG, STEM_CONFIG], ids=["linear", "stem"])
def test_multimask_gives_masks_one_to_three_and_single_mask_zero(config) -> None:
    model = build(config)
    features = model.encode(pixels())
    decoded = model.decode_all(features, **CLICK)
    masks, iou = decoded.masks, decoded.iou
    assert masks.shape == decoded.coarse.shape == (1, 4, 16, 12)
    single, single_iou = model.decode(features, **CLICK)
    multi, multi_iou = model.decode(features, **CLICK, multimask=True)
    # Made without the candidates: sums may be in another order.
    torch.testing.assert_close(single, masks[:, :1], rtol=1e-5, atol=1e-6)
    assert torch.equal(multi, masks[:, 1:])
    assert torch.equal(torch.cat([single_iou, multi_iou], 1), iou)


@torch.inference_mode()
@pytest.mark.parametrize("config", [CONFIG, STEM_CONFIG], ids=["linear", "stem"])
def test_a_click_runs_no_head_of_the_candidates(config) -> None:
    model = build(config)
    features = model.encode(pixels())
    expected, _ = model.decode(features, **CLICK)
    heads = model.mask_decoder.output_hypernetworks_mlps
    for head in heads[1:]:
        head.register_forward_hook(lambda *_: pytest.fail("made a mask that nobody looks at"))
    assert torch.equal(model.decode(features, **CLICK)[0], expected)
    decoded = model.decode_all(features, **CLICK, candidates=False)
    assert {decoded.masks.shape[1], decoded.iou.shape[1], decoded.mask_tokens.shape[1]} == {1}


@torch.inference_mode()
def test_stem_models_keep_projected_maps_and_others_none() -> None:
    plain, stem = build().encode(pixels()), build(STEM_CONFIG).encode(pixels())
    assert plain.stride8 is plain.stride4 is None
    assert stem.stride8.shape == (1, 32, 8, 6)
    assert stem.stride4.shape == (1, 16, 16, 12)
    moved = stem.to(device="cpu", dtype=torch.float16)
    assert {x.dtype for _, x in moved.items()} == {torch.float16}
    # SAM's decoder behind a stem does not look at its maps, and stores need not hold them.
    unused = build(replace(STEM_CONFIG, decoder=CONFIG.decoder)).encode(pixels())
    assert unused.stride8 is unused.stride4 is None


@torch.inference_mode()
def test_stem_maps_that_are_kept_are_the_projected_ones_of_the_stem() -> None:
    model = build(STEM_CONFIG)
    _, stride8, stride4 = model.image_encoder(model.normalize(pixels()))
    features = model.encode(pixels())
    expected = model.mask_decoder.project_stem(stride8, stride4)
    assert torch.equal(features.stride8, expected[0])
    assert torch.equal(features.stride4, expected[1])


@torch.inference_mode()
@pytest.mark.parametrize("config", [CONFIG, STEM_CONFIG], ids=["linear", "stem"])
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
    features = model.encode(pixels())
    decoded = model.decode_all(
        features,
        **CLICK,
        boxes_xyxy=torch.tensor([[5.0, 6.0, 40.0, 50.0]]),
        mask_logits=torch.randn(1, 1, 16, 12),
    )
    answers = (decoded.masks, decoded.iou, model.dense_maps(features))
    sum(x.square().mean() for x in answers).backward()
    unused = {
        "image_encoder.blocks.0.attn.padding",
        "prompt_encoder.point_embeddings.0.weight",
        "prompt_encoder.not_a_point_embed.weight",
        "prompt_encoder.no_mask_embed.weight",
    }
    silent = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent <= unused


@torch.inference_mode()
def test_dense_maps_are_shares_at_stride_4_and_the_head_sees_the_kept_maps() -> None:
    model = build(STEM_CONFIG)
    features = model.encode(pixels(batch=2))
    maps = model.dense_maps(features)
    assert maps.shape == (2, 3, 16, 12)
    assert 0 <= float(maps.min()) < float(maps.max()) <= 1
    logits = model.dense_head(features.embedding, features.stride8, features.stride4)
    torch.testing.assert_close(maps, 1 / (1 + torch.exp(-logits)))
    for name in ("embedding", "stride8", "stride4"):
        other = replace(features, **{name: getattr(features, name) + 1})
        assert not torch.allclose(model.dense_maps(other), maps, atol=1e-4), name


@torch.inference_mode()
def test_dense_maps_of_a_model_without_stem_maps_need_the_embedding_only() -> None:
    model = build(replace(CONFIG, dense_head=True))
    assert model.dense_maps(model.encode(pixels())).shape == (1, 3, 16, 12)


@torch.inference_mode()
def test_a_model_without_dense_head_says_so() -> None:
    model = build()
    with pytest.raises(ConfigError, match="got 'small'; choose one of hrsam-tiny, hrsam"):
        model.dense_maps(model.encode(pixels()))


@torch.inference_mode()
def test_the_dense_head_changes_no_mask() -> None:
    dense = build(STEM_CONFIG)
    plain = build(replace(STEM_CONFIG, dense_head=False))
    plain.load_state_dict(
        {k: v for k, v in dense.state_dict().items() if not k.startswith("dense_head.")}
    )
    features = dense.encode(pixels())
    assert torch.equal(plain.encode(pixels()).embedding, features.embedding)
    assert torch.equal(plain.decode(features, **CLICK)[0], dense.decode(features, **CLICK)[0])
    assert plain.fingerprint != dense.fingerprint


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
        (
            {"decoder": replace(CONFIG.decoder, skip_channels=(40, 24))},
            r"skip_channels must be .* None, or None, got \(40, 24\)",
        ),
        (
            {
                "decoder": replace(CONFIG.decoder, skip_channels=(24, 40)),
                "image_encoder": STEM_CONFIG.image_encoder,
            },
            r"skip_channels must be .* \(40, 24\), or None, got \(24, 40\)",
        ),
        (
            {
                "decoder": PromptDecoderConfig(skip_channels=(40, 24)),
                "image_encoder": TinyViTConfig(),
            },
            r"skip_channels must be .* None, or None, got \(40, 24\)",
        ),
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
    assert not official.dense_head


def test_own_models_see_what_their_stem_was_trained_with() -> None:
    for name in ("hrsam-tiny", "hrsam++-tiny", "hrsam-tiny+focus"):
        config = MODELS[name]
        assert config.image_encoder.stem == "efficientnet-lite0"
        assert (config.pixel_mean, config.pixel_std) == ((127.0,) * 3, (128.0,) * 3)
        assert config.channel_order == "rgb"
        assert config.decoder.skip_channels == (40, 24)
        assert config.dense_head
