"""SAM's mask decoder, and what ours adds to it."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from napari_hrsam.modeling.configs import PromptDecoderConfig
from napari_hrsam.modeling.drawn_prompts import DRAWN_CHANNELS, draw_prompts
from napari_hrsam.modeling.layers import LayerNorm2d
from napari_hrsam.modeling.mask_decoder import (
    Decoded,
    MaskDecoder,
    TokenAttention,
    TwoWayTransformer,
)

CONFIG = PromptDecoderConfig(embed_dim=16, num_heads=2, mlp_dim=24, iou_head_dim=12)
OURS = replace(CONFIG, skip_channels=(10, 6))


@pytest.fixture
def decoder() -> MaskDecoder:
    torch.manual_seed(0)
    return MaskDecoder(CONFIG).eval()


def inputs(num: int = 1, images: int = 1, height: int = 4, width: int = 5):
    return (
        torch.randn(images, 16, height, width),
        torch.randn(1, 16, height, width),
        torch.randn(num, 3, 16),
        torch.randn(num, 16, height, width),
    )


def ours() -> MaskDecoder:
    torch.manual_seed(0)
    return MaskDecoder(OURS).eval()


def fine_inputs(model: MaskDecoder, num: int = 1, images: int = 1) -> dict[str, torch.Tensor]:
    """Stem maps and two clicks for the 4 x 5 grid of `inputs`."""
    stride8, stride4 = model.project_stem(
        torch.randn(images, 10, 8, 10), torch.randn(images, 6, 16, 20)
    )
    coords = torch.rand(num, 2, 2) * torch.tensor([80.0, 64.0])
    labels = torch.tensor([[1, 0]]).expand(num, -1)
    drawn = draw_prompts(
        map_hw=(16, 20),
        num=num,
        point_coords_xy=coords,
        point_labels=labels,
        boxes_xyxy=None,
        mask_logits=None,
        like=coords,
    )
    return {
        "stride8": stride8.detach(),
        "stride4": stride4.detach(),
        "drawn_prompts": drawn,
        "point_coords_xy": coords,
        "point_labels": labels,
    }


def all_of(decoded: Decoded) -> list[torch.Tensor]:
    return [getattr(decoded, field.name) for field in fields(decoded)]


def test_token_attention_is_softmax_attention_of_the_inner_width() -> None:
    attention = TokenAttention(16, 2, downsample=2)
    q, k, v = torch.randn(2, 3, 16), torch.randn(2, 7, 16), torch.randn(2, 7, 16)
    heads = [
        proj(x).reshape(2, -1, 2, 4).transpose(1, 2)
        for proj, x in ((attention.q_proj, q), (attention.k_proj, k), (attention.v_proj, v))
    ]
    attended = F.scaled_dot_product_attention(*heads).transpose(1, 2).reshape(2, 3, 8)
    torch.testing.assert_close(attention(q, k, v), attention.out_proj(attended))


def transformer_by_definition(
    model: TwoWayTransformer, image: torch.Tensor, image_pe: torch.Tensor, prompts: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run the layers as they are described; the prompts are the position code throughout."""
    tokens = prompts
    for i, layer in enumerate(model.layers):
        if i == 0:
            tokens = layer.self_attn(prompts, prompts, prompts)
        else:
            coded = tokens + prompts
            tokens = tokens + layer.self_attn(coded, coded, tokens)
        tokens = layer.norm1(tokens)
        to_image = layer.cross_attn_token_to_image(tokens + prompts, image + image_pe, image)
        tokens = layer.norm2(tokens + to_image)
        tokens = layer.norm3(tokens + layer.mlp.lin2(layer.mlp.lin1(tokens).clamp(min=0)))
        to_tokens = layer.cross_attn_image_to_token(image + image_pe, tokens + prompts, tokens)
        image = layer.norm4(image + to_tokens)
    last = model.final_attn_token_to_image(tokens + prompts, image + image_pe, image)
    return model.norm_final_attn(tokens + last), image


def test_transformer_follows_its_definition() -> None:
    torch.manual_seed(0)
    model = TwoWayTransformer(CONFIG)
    image, image_pe, prompts = torch.randn(2, 20, 16), torch.randn(1, 20, 16), torch.randn(2, 6, 16)
    found = model(image, image_pe, prompts)
    for a, b in zip(found, transformer_by_definition(model, image, image_pe, prompts), strict=True):
        torch.testing.assert_close(a, b)


def test_norms_of_the_decoder_have_their_eps(decoder) -> None:
    assert {m.eps for m in decoder.modules() if isinstance(m, nn.LayerNorm)} == {1e-5}
    assert {m.eps for m in decoder.modules() if isinstance(m, LayerNorm2d)} == {1e-6}


def test_all_masks_are_four_times_the_grid(decoder) -> None:
    decoded = decoder(*inputs(num=3))
    assert decoded.masks.shape == (3, 4, 16, 20)
    assert decoded.iou.shape == (3, 4)
    assert decoded.mask_tokens.shape == (3, 4, 16)


def test_one_image_is_shared_by_its_prompts(decoder) -> None:
    image, pe, sparse, dense = inputs(num=3)
    shared = decoder(image, pe, sparse, dense)
    repeated = decoder(image.expand(3, -1, -1, -1), pe, sparse, dense)
    for a, b in zip(all_of(shared), all_of(repeated), strict=True):
        torch.testing.assert_close(a, b)


def test_prompt_k_belongs_to_image_k(decoder) -> None:
    image, pe, sparse, dense = inputs(num=3, images=3)
    three = decoder(image, pe, sparse, dense)
    one = decoder(image[2:], pe, sparse[2:], dense[2:])
    for a, b in zip(all_of(three), all_of(one), strict=True):
        torch.testing.assert_close(a[2:], b, rtol=1e-4, atol=1e-5)


def test_each_mask_token_has_its_own_head(decoder) -> None:
    given = inputs()
    before = decoder(*given).masks
    with torch.no_grad():
        decoder.output_hypernetworks_mlps[2].layers[2].bias += 1
    changed = (decoder(*given).masks - before).abs().amax((0, 2, 3)) > 0
    assert changed.tolist() == [False, False, True, False]


@torch.inference_mode()
def test_mask_tokens_are_what_the_masks_are_made_from(decoder: MaskDecoder) -> None:
    seen: list[torch.Tensor] = []
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    tokens = decoder(*inputs(num=3)).mask_tokens
    assert tokens.shape == (3, 4, 16)
    assert torch.equal(tokens, torch.stack(seen, dim=1))


@torch.no_grad()
def test_sam_s_decoder_corrects_nothing_and_looks_at_no_further_maps(decoder) -> None:
    given = inputs()
    decoded = decoder(*given)
    assert decoded.coarse is decoded.masks
    more = fine_inputs(ours())
    for a, b in zip(all_of(decoder(*given, **more)), all_of(decoded), strict=True):
        assert torch.equal(a, b)
    assert not any(
        key.startswith(("fine", "prompt_map", "surroundings")) for key in decoder.state_dict()
    )


@torch.no_grad()
@pytest.mark.parametrize("name", ["stride8", "stride4"])
def test_stem_maps_correct_the_masks_and_leave_the_coarse_ones_as_they_are(name) -> None:
    model, given = ours(), inputs()
    maps = fine_inputs(model)
    before = model(*given, **maps)
    other = model(*given, **{**maps, name: torch.randn_like(maps[name])})
    assert torch.equal(other.coarse, before.coarse)
    assert torch.equal(other.iou, before.iou)
    assert torch.equal(other.mask_tokens, before.mask_tokens)
    assert (other.masks - before.masks).abs().amax((0, 2, 3)).min() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ["drawn_prompts", "point_coords_xy"])
def test_drawn_prompts_and_clicks_reach_the_coarse_masks(name) -> None:
    model, given = ours(), inputs()
    maps = fine_inputs(model)
    before = model(*given, **maps).coarse
    after = model(*given, **{**maps, name: maps[name].flip(-1)}).coarse
    assert (after - before).abs().amax((0, 2, 3)).min() > 1e-5


@torch.no_grad()
def test_the_correction_is_added_to_the_coarse_masks_by_heads_of_its_own() -> None:
    model, given = ours(), inputs(num=2)
    maps = fine_inputs(model, num=2)
    fine: list[torch.Tensor] = []
    model.fine.register_forward_hook(lambda _m, _args, out: fine.append(out))
    decoded = model(*given, **maps)
    for index, head in enumerate(model.fine_hypernetworks_mlps):
        weights = head(decoded.mask_tokens[:, index])
        expected = decoded.coarse[:, index] + torch.einsum("nc,nchw->nhw", weights, fine[0])
        torch.testing.assert_close(decoded.masks[:, index], expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_the_single_coarse_mask_is_the_guess_of_the_fine_path() -> None:
    model, given = ours(), inputs()
    seen: list[tuple[torch.Tensor, ...]] = []
    model.fine.register_forward_pre_hook(lambda _m, args: seen.append(args))
    decoded = model(*given, **fine_inputs(model))
    assert torch.equal(seen[0][4], decoded.coarse[:, :1])


def test_what_corrects_the_mask_teaches_the_coarse_one_through_no_guess() -> None:
    model = ours()
    guesses: list[torch.Tensor] = []
    model.fine.register_forward_pre_hook(lambda _m, args: guesses.append(args[4]))
    decoded = model(*inputs(), **fine_inputs(model))
    assert not guesses[0].requires_grad
    decoded.masks.square().mean().backward()
    silent = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert all(name.startswith(("iou_prediction_head", "fine.skip")) for name in silent)


@torch.no_grad()
def test_marks_join_the_tokens_before_and_the_surroundings_behind_the_transformer() -> None:
    model, (image, pe, sparse, dense) = ours(), inputs(num=2)
    maps = fine_inputs(model, num=2)
    entered: list[torch.Tensor] = []
    left: list[torch.Tensor] = []
    around: list[torch.Tensor] = []
    model.transformer.register_forward_pre_hook(lambda _m, args: entered.append(args[0]))
    model.transformer.register_forward_hook(lambda _m, _args, out: left.append(out[1]))
    model.surroundings.register_forward_pre_hook(lambda _m, args: around.append(args[0]))
    model(image, pe, sparse, dense, **maps)
    clicks = maps["point_coords_xy"], maps["point_labels"]
    marked = model.prompt_map(image, maps["drawn_prompts"], *clicks)
    assert marked.abs().max() > 1e-3
    expected = (image + dense + marked).flatten(2).transpose(1, 2)
    torch.testing.assert_close(entered[0], expected)
    back = left[0].transpose(1, 2).reshape(2, 16, 4, 5)
    torch.testing.assert_close(around[0], back + marked)


@torch.no_grad()
def test_our_decoder_shares_an_image_with_its_prompts_and_keeps_prompts_apart() -> None:
    model, (image, pe, sparse, dense) = ours(), inputs(num=3)
    maps = fine_inputs(model, num=3)
    shared = model(image, pe, sparse, dense, **maps)
    each = {k: v.expand(3, -1, -1, -1) if k.startswith("stride") else v for k, v in maps.items()}
    repeated = model(image.expand(3, -1, -1, -1), pe, sparse, dense, **each)
    last = {k: v if k.startswith("stride") else v[2:] for k, v in maps.items()}
    alone = model(image, pe, sparse[2:], dense[2:], **last)
    for a, b, c in zip(all_of(shared), all_of(repeated), all_of(alone), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a[2:], c, rtol=1e-4, atol=1e-5)


def test_stem_maps_are_projected_to_what_is_kept_with_the_embedding() -> None:
    model = ours()
    stride8, stride4 = torch.randn(2, 10, 8, 10), torch.randn(2, 6, 16, 20)
    kept8, kept4 = model.project_stem(stride8, stride4)
    assert (kept8.shape, kept4.shape) == ((2, 32, 8, 10), (2, 16, 16, 20))
    weight = model.fine.skip4.weight[:, :, 0, 0]
    expected = torch.einsum("oc,bchw->bohw", weight, stride4) + model.fine.skip4.bias[:, None, None]
    torch.testing.assert_close(kept4, expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_a_decoder_without_clicks_takes_a_box_or_a_mask_alone() -> None:
    model, given = ours(), inputs()
    maps = fine_inputs(model) | {"point_coords_xy": None, "point_labels": None}
    maps["drawn_prompts"] = torch.zeros(1, DRAWN_CHANNELS, 16, 20)
    assert torch.isfinite(model(*given, **maps).masks).all()
