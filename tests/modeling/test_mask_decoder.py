"""SAM's mask decoder, and the prompts drawn for it at stride 4."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from napari_hrsam.modeling.configs import PromptDecoderConfig
from napari_hrsam.modeling.layers import LayerNorm2d
from napari_hrsam.modeling.mask_decoder import (
    DENSE_PROMPT_CHANNELS,
    MaskDecoder,
    TokenAttention,
    TwoWayTransformer,
    draw_prompts,
    match_clicks,
)

CONFIG = PromptDecoderConfig(embed_dim=16, num_heads=2, mlp_dim=24, iou_head_dim=12)


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
    masks, iou, _ = decoder(*inputs(num=3))
    assert masks.shape == (3, 4, 16, 20)
    assert iou.shape == (3, 4)


def test_one_image_is_shared_by_its_prompts(decoder) -> None:
    image, pe, sparse, dense = inputs(num=3)
    shared = decoder(image, pe, sparse, dense)
    repeated = decoder(image.expand(3, -1, -1, -1), pe, sparse, dense)
    for a, b in zip(shared, repeated, strict=True):
        torch.testing.assert_close(a, b)


def test_prompt_k_belongs_to_image_k(decoder) -> None:
    image, pe, sparse, dense = inputs(num=3, images=3)
    masks, iou, _ = decoder(image, pe, sparse, dense)
    one_mask, one_iou, _ = decoder(image[2:], pe, sparse[2:], dense[2:])
    torch.testing.assert_close(masks[2:], one_mask, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(iou[2:], one_iou, rtol=1e-4, atol=1e-5)


def test_each_mask_token_has_its_own_head(decoder) -> None:
    given = inputs()
    before = decoder(*given)[0]
    with torch.no_grad():
        decoder.output_hypernetworks_mlps[2].layers[2].bias += 1
    changed = (decoder(*given)[0] - before).abs().amax((0, 2, 3)) > 0
    assert changed.tolist() == [False, False, True, False]


def test_stem_maps_and_drawn_prompts_reach_the_masks() -> None:
    torch.manual_seed(0)
    model = MaskDecoder(replace(CONFIG, skip_channels=(10, 6), dense_prompts=True))
    stride8, stride4 = model.project_stem(torch.randn(1, 10, 8, 10), torch.randn(1, 6, 16, 20))
    assert stride8.shape == (1, 4, 8, 10)
    assert stride4.shape == (1, 2, 16, 20)
    given, drawn = inputs(), torch.zeros(1, DENSE_PROMPT_CHANNELS, 16, 20)
    maps = {"stride8": stride8, "stride4": stride4, "drawn_prompts": drawn}
    before = model(*given, **maps)[0]
    for name in maps:
        other = model(*given, **{**maps, name: maps[name] + torch.randn_like(maps[name])})[0]
        assert (other - before).abs().max() > 1e-4, name


def draw(**prompts) -> torch.Tensor:
    given = dict.fromkeys(("point_coords_xy", "point_labels", "boxes_xyxy", "mask_logits"))
    return draw_prompts(map_hw=(12, 16), num=1, like=torch.zeros(1), **{**given, **prompts})


def click(x: float, y: float, label: int) -> dict[str, torch.Tensor]:
    return {"point_coords_xy": torch.tensor([[[x, y]]]), "point_labels": torch.tensor([[label]])}


def test_click_is_drawn_on_the_cell_of_its_pixel() -> None:
    # Cell (5, 9) covers rows 20..23 and columns 36..39; its centre is pixel (21.5, 37.5).
    maps = draw(**click(37.5, 21.5, 1))[0]
    peak = torch.tensor(divmod(int(maps[0].argmax()), 16))
    assert peak.tolist() == [5, 9]
    assert float(maps[0].max()) == 1.0
    for channel, sigma in ((0, 2), (1, 8)):
        y, x = torch.meshgrid(torch.arange(12), torch.arange(16), indexing="ij")
        bump = torch.exp(-((y - 5) ** 2 + (x - 9) ** 2) / (2 * sigma**2))
        torch.testing.assert_close(maps[channel], bump)
    assert not maps[2:].any()


def test_negative_click_has_channels_of_its_own_and_padding_none() -> None:
    maps = draw(**click(37.5, 21.5, 0))[0]
    assert not maps[[0, 1, 4, 5]].any()
    torch.testing.assert_close(maps[2:4], draw(**click(37.5, 21.5, 1))[0, :2])
    assert not draw(**click(37.5, 21.5, -1)).any()


def test_several_clicks_are_joined_by_their_maximum() -> None:
    coords = torch.tensor([[[9.5, 9.5], [37.5, 21.5]]])
    both = draw(point_coords_xy=coords, point_labels=torch.tensor([[1, 1]]))
    single = [draw(**click(x, y, 1)) for x, y in coords[0].tolist()]
    torch.testing.assert_close(both, torch.maximum(*single))


def test_box_fills_the_cells_it_touches() -> None:
    # Columns 8..15 are cells 2 and 3; rows 4..19 are cells 1 to 4.
    maps = draw(boxes_xyxy=torch.tensor([[8.0, 4.0, 15.0, 19.0]]))[0]
    expected = torch.zeros(12, 16)
    expected[1:5, 2:4] = 1
    assert torch.equal(maps[4], expected)
    assert not maps[[0, 1, 2, 3, 5]].any()


def test_prior_logits_are_squashed() -> None:
    logits = torch.randn(1, 1, 12, 16) * 20
    maps = draw(mask_logits=logits)[0]
    torch.testing.assert_close(maps[5], torch.tanh(logits[0, 0] / 4))
    assert not maps[:5].any()
    assert math.isclose(
        float(draw(mask_logits=torch.full_like(logits, 4))[0, 5, 0, 0]), math.tanh(1), rel_tol=1e-6
    )


def test_prior_logits_of_another_size_are_resized_like_the_dense_prompt() -> None:
    prior = torch.full((1, 1, 6, 8), 2.0)
    drawn = draw(mask_logits=prior)
    assert torch.allclose(drawn[:, 5], torch.full((1, 12, 16), math.tanh(0.5)))


def test_an_empty_list_of_clicks_draws_nothing() -> None:
    drawn = draw(point_coords_xy=torch.zeros(1, 0, 2), point_labels=torch.zeros(1, 0))
    assert not drawn.any()


def test_the_pyramid_lets_a_click_reach_far() -> None:
    torch.manual_seed(0)
    config = replace(CONFIG, skip_channels=(6, 4), dense_prompts=True, embed_dim=32)
    fine = MaskDecoder(config).fine
    assert fine is not None
    prompts = torch.zeros(1, DENSE_PROMPT_CHANNELS, 64, 64, requires_grad=True)
    maps = torch.randn(1, 32, 16, 16), torch.randn(1, 8, 32, 32), torch.randn(1, 4, 64, 64)
    fine(*maps, prompts, None, None)[0, :, 32, 32].sum().backward()
    reached = prompts.grad.abs().amax((0, 1)) > 0
    assert reached[32, 8]
    assert reached[8, 32]


def test_clicks_match_the_cells_that_look_like_theirs() -> None:
    kinds = torch.randn(3, 8)
    which = torch.tensor([[0, 1, 2, 0], [1, 1, 2, 0]])
    x = kinds[which].permute(2, 0, 1)[None]
    # Pixel (5, 2) lies in row 0, column 1 at stride 4; (0, 7) in row 1, column 0: both kind 1.
    coords = torch.tensor([[[5.0, 2.0], [0.0, 7.0], [14.9, 0.0]]])
    positive, negative = match_clicks(x, coords, torch.tensor([[1, 1, 0]]), 4)[0]
    assert torch.allclose(positive[which == 1], torch.ones(3), atol=1e-4)
    assert (positive[which != 1] < 0.999).all()
    assert torch.allclose(negative[which == 0], torch.ones(3), atol=1e-4)
    other = match_clicks(x, coords, torch.tensor([[1, -1, -1]]), 4)[0]
    torch.testing.assert_close(other[0], positive)
    assert not other[1].any()


def test_without_clicks_nothing_matches() -> None:
    x = torch.randn(2, 8, 3, 4)
    assert not match_clicks(x, None, None, 4).any()
    assert match_clicks(x, torch.zeros(2, 0, 2), torch.zeros(2, 0), 4).shape == (2, 2, 3, 4)


@torch.inference_mode()
def test_mask_tokens_are_what_the_masks_are_made_from(decoder: MaskDecoder) -> None:
    seen: list[torch.Tensor] = []
    for mlp in decoder.output_hypernetworks_mlps:
        mlp.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    tokens = decoder(*inputs(num=3))[2]
    assert tokens.shape == (3, 4, 16)
    assert torch.equal(tokens, torch.stack(seen, dim=1))
