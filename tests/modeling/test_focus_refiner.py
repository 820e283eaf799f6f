"""Focus refiner: what the parity fixtures cannot show, and the official names and shapes."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.modeling.configs import FocusConfig
from napari_hrsam.modeling.focus_refiner import FocusBlock, FocusRefiner, ZeroSlotAttention
from napari_hrsam.modeling.focus_windows import select_windows, window_cells
from napari_hrsam.modeling.models import find_config
from napari_hrsam.modeling.segmenter import Segmenter

CONFIG = FocusConfig(embed_dim=16, depth=3, num_heads=2, mlp_ratio=2.0, window_size=4)
MANIFESTS = Path(__file__).resolve().parents[1] / "golden" / "manifests"
IMAGE_HW = (128, 176)


def build(config: FocusConfig = CONFIG) -> FocusRefiner:
    """A refiner whose parameters all matter, at a scale that keeps numbers near 1."""
    torch.manual_seed(0)
    refiner = FocusRefiner(config).eval()
    with torch.no_grad():
        for parameter in refiner.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return refiner


def inputs(batch: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """Embedding 8 x 11, token, and logits with an object in another place in each sample."""
    g = torch.Generator().manual_seed(1)
    logits = torch.full((batch, 1, 32, 44), -3.0)
    for i in range(batch):
        logits[i, 0, 6 + 12 * i : 10 + 12 * i, 5 + 14 * i : 12 + 14 * i] = 3.0
    embedding = torch.randn(batch, 16, 8, 11, generator=g)
    return embedding, torch.randn(batch, 1, 16, generator=g), logits


def one_window(grid_hw: tuple[int, int] = (8, 12)) -> Tensor:
    focus = torch.zeros(1, *grid_hw, dtype=torch.bool)
    focus[0, 1, 1] = True
    return focus


@torch.inference_mode()
@pytest.mark.parametrize("is_shifted", [False, True])
def test_a_block_changes_only_selected_windows(is_shifted: bool) -> None:
    torch.manual_seed(0)
    block = FocusBlock(CONFIG, is_shifted=is_shifted, is_last=False)
    x, focus = torch.randn(1, 16, 8, 12), one_window()
    out, _ = block(x, torch.randn(1, 1, 16), focus)
    is_selected = select_windows(focus, 4, block.shift)[0]
    assert is_selected.sum() == 1
    before, after = (window_cells(y, 4, block.shift) for y in (x, out))
    assert torch.equal(after[~is_selected], before[~is_selected])
    assert (after[is_selected] != before[is_selected]).any(1).all()


@torch.inference_mode()
def test_the_token_is_the_mean_over_all_windows_stretched_by_the_selected_share() -> None:
    torch.manual_seed(0)
    block = FocusBlock(CONFIG, is_shifted=False, is_last=False)
    last = FocusBlock(CONFIG, is_shifted=False, is_last=True)
    last.load_state_dict(block.state_dict(), strict=False)
    x, token, focus = torch.randn(1, 16, 8, 12), torch.randn(1, 1, 16), one_window()
    seen = block.img2cls(token, window_cells(x, 4, 0)[:1].flatten(2).transpose(1, 2))
    # One of six windows; the five others hold the old token.
    torch.testing.assert_close(last(x, token, focus)[1], (seen + 5 * token) / 6)
    # As initialised, the stretch takes the dilution back.
    torch.testing.assert_close(block(x, token, focus)[1], seen)
    block.cls_scale_proj.weight.fill_(0.5)
    block.cls_scale_proj.bias.fill_(0.3)
    stretch = math.exp(0.5 * math.log(6) + 0.3)
    expected = token + stretch * (seen - token) / 6
    torch.testing.assert_close(block(x, token, focus)[1], expected)


@torch.inference_mode()
def test_the_selected_share_counts_as_one_percent_at_least() -> None:
    torch.manual_seed(0)
    block = FocusBlock(replace(CONFIG, window_size=1), is_shifted=False, is_last=False)
    x, token, focus = torch.randn(1, 16, 20, 15), torch.randn(1, 1, 16), one_window((20, 15))
    seen = block.img2cls(token, x[:, :, 1, 1][:, None])
    expected = token + 100 * (seen - token) / 300
    torch.testing.assert_close(block(x, token, focus)[1], expected, rtol=1e-4, atol=1e-5)


def test_only_the_last_block_has_no_re_scaling_and_odd_ones_are_shifted() -> None:
    refiner = FocusRefiner(replace(CONFIG, depth=4, window_size=5))
    assert [b.cls_scale_proj is None for b in refiner.blocks] == [False, False, False, True]
    assert [b.shift for b in refiner.blocks] == [0, 2, 0, 2]


@torch.inference_mode()
def test_attention_may_attend_to_nothing() -> None:
    torch.manual_seed(0)
    attention = ZeroSlotAttention(8, 2)
    x = torch.randn(3, 5, 8)
    attention.q_proj.weight.zero_()
    attention.q_proj.bias.zero_()
    # Logits of zero: the extra slot takes one part in six, and its value is zero.
    values = attention.v_proj(x).sum(1, keepdim=True) / 6
    expected = attention.proj(values).expand(-1, 5, -1)
    torch.testing.assert_close(attention(x, x), expected)
    attention.q_proj.bias.fill_(-100.0)
    attention.k_proj.weight.zero_()
    attention.k_proj.bias.fill_(1.0)
    torch.testing.assert_close(attention(x, x), attention.proj.bias.expand_as(x))


@torch.inference_mode()
def test_nothing_of_the_original_embedding_bypasses_the_projection() -> None:
    refiner, (embedding, token, logits) = build(), inputs()
    refiner.embed_proj.weight.zero_()
    one = refiner(embedding, token, logits, IMAGE_HW)
    assert torch.equal(refiner(embedding + 1, token, logits, IMAGE_HW), one)


@torch.inference_mode()
def test_without_the_object_only_the_projection_reaches_a_window() -> None:
    refiner, (embedding, token, logits) = build(replace(CONFIG, depth=1)), inputs(1)
    out = refiner(embedding, token, logits, IMAGE_HW)
    projected = refiner.embed_proj(embedding)
    assert torch.equal(out[..., 4:, 8:], projected[..., 4:, 8:])
    assert not torch.equal(out[..., :4, :4], projected[..., :4, :4])


@torch.inference_mode()
def test_samples_of_a_batch_are_refined_apart() -> None:
    refiner, given = build(), inputs(2)
    both = refiner(*given, IMAGE_HW)
    for i in range(2):
        alone = refiner(*(x[i : i + 1] for x in given), IMAGE_HW)
        torch.testing.assert_close(both[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@torch.inference_mode()
def test_nothing_given_is_changed() -> None:
    refiner, given = build(), inputs()
    before = [x.clone() for x in given]
    refiner(*given, IMAGE_HW)
    assert all(torch.equal(a, b) for a, b in zip(given, before, strict=True))


@torch.inference_mode()
def test_the_box_grows_as_configured_or_as_told() -> None:
    given = inputs(1)
    wide, narrow = build(replace(CONFIG, box_expansion=3.0)), build(CONFIG)
    narrow_out = narrow(*given, IMAGE_HW)
    assert torch.equal(narrow(*given, IMAGE_HW, (1.4, 1.4)), narrow_out)
    wide_out = wide(*given, IMAGE_HW)
    assert torch.equal(narrow(*given, IMAGE_HW, (3.0, 3.0)), wide_out)
    assert not torch.equal(narrow_out, wide_out)
    # Height and width apart: the windows below are reached by height alone.
    single = build(replace(CONFIG, depth=1))
    tall, broad = (single(*given, IMAGE_HW, ratio) for ratio in ((9.0, 1.0), (1.0, 9.0)))
    kept = single.embed_proj(given[0])
    assert not torch.equal(tall[..., 4:, :4], kept[..., 4:, :4])
    assert torch.equal(tall[..., :4, 8:], kept[..., :4, 8:])
    assert torch.equal(broad[..., 4:, :4], kept[..., 4:, :4])
    assert not torch.equal(broad[..., :4, 8:], kept[..., :4, 8:])


@pytest.mark.parametrize("bfloat16", [False, True])
def test_every_weight_learns_and_gradients_are_finite(bfloat16: bool) -> None:
    refiner, (embedding, token, logits) = build().train(), inputs()
    embedding.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
        out = refiner(embedding, token, logits, IMAGE_HW)
    (out.float() * torch.randn(out.shape)).sum().backward()
    # The token of the last block goes nowhere but into its own windows.
    silent = {n for n, p in refiner.named_parameters() if p.grad is None or not p.grad.any()}
    assert silent == set()
    assert all(torch.isfinite(p.grad).all() for p in refiner.parameters())
    assert torch.isfinite(embedding.grad).all()


@torch.inference_mode()
def test_bfloat16_is_close_to_float32() -> None:
    refiner, given = build(), inputs()
    exact = refiner(*given, IMAGE_HW)
    with torch.autocast("cpu", torch.bfloat16):
        fast = refiner(*given, IMAGE_HW)
    assert 0 < (fast - exact).abs().mean() < 0.05 * exact.abs().mean()


@pytest.mark.parametrize("wrong", [0, 1, 2])
def test_inputs_that_do_not_belong_together_are_refused(wrong: int) -> None:
    given = list(inputs(2))
    given[wrong] = given[wrong][:1] if wrong else given[wrong][:, :8]
    with pytest.raises(ShapeError, match=r"expected embedding \(2, 16, h, w\), token \(2, 1, 16\)"):
        build()(*given, IMAGE_HW)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_heads": 3}, "multiple of num_heads = 3, got 16"),
        ({"box_expansion": 0.9}, "box_expansion must be 1 or more, got 0.9"),
    ],
)
def test_settings_out_of_range_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(CONFIG, **changes)


def test_new_weights_start_where_the_paper_starts() -> None:
    for block in FocusRefiner(CONFIG).blocks:
        for part in (block.img2cls, block.cls2img):
            assert (part.gamma1 == 1).all()
            assert (part.gamma2 == 1).all()
        activation = block.cls2img.relu1
        for name in ("pixel_scale", "pixel_bias", "channel_scale", "channel_bias"):
            assert not getattr(activation, name).any()


def test_names_and_shapes_are_those_of_the_released_model() -> None:
    manifest = json.loads((MANIFESTS / "focsam_vit_h.json").read_text())
    rules = json.loads((MANIFESTS / "key_rules.json").read_text())["sam_to_mmengine"]
    with torch.device("meta"):
        model = Segmenter(find_config("sam-h+focus"))
    ours = {}
    for key, value in model.state_dict().items():
        room, rest = key.split(".", 1)
        if room == "prompt_encoder":
            first, *others = rest.split(".")
            rest = ".".join([rules["inside_prompt_encoder"].get(first, first), *others])
        prefixes = {**rules["prefixes"], "focus_refiner.": "refine_head."}
        ours[prefixes[f"{room}."] + rest] = list(value.shape)
    assert ours == manifest["keys"]
    assert sum(key.startswith("refine_head.") for key in ours) == 662
    assert sum(p.numel() for p in model.focus_refiner.parameters()) == 25_396_058
