"""Segmenter with a focus refiner: what is refined, from what, and what learns."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_segmenter import CONFIG, STEM_CONFIG, build, pixels

from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.modeling.configs import FocusConfig
from napari_hrsam.modeling.models import ModelConfig
from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter

FOCUS = FocusConfig(embed_dim=16, depth=2, num_heads=2, mlp_ratio=2.0, window_size=2)
PLAIN, STEM = (replace(config, focus=FOCUS) for config in (CONFIG, STEM_CONFIG))
CLICKS = {
    "point_coords_xy": torch.tensor([[[20.0, 30.0], [8.0, 50.0]]]),
    "point_labels": torch.tensor([[1, 0]]),
}


def prompts(num: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(2)
    coords = torch.rand(num, 2, 2, generator=g) * 48
    labels = torch.tensor([[1, 0]]).expand(num, -1)
    prior = torch.randn(num, 1, 16, 12, generator=g)
    return {"point_coords_xy": coords, "point_labels": labels, "mask_logits": prior}


def same(a: ImageFeatures, b: ImageFeatures) -> bool:
    pairs = zip(a.items(), b.items(), strict=True)
    return all(x is y if x is None else torch.equal(x, y) for (_, x), (_, y) in pairs)


@torch.inference_mode()
def test_the_coarse_mask_and_its_token_steer_the_refiner() -> None:
    model, given = build(PLAIN), prompts()
    features = model.encode(pixels())
    tokens: list[torch.Tensor] = []
    first = model.mask_decoder.output_hypernetworks_mlps[0]
    hook = first.register_forward_pre_hook(lambda _m, args: tokens.append(args[0]))
    coarse, _ = model.decode(features, **given)
    hook.remove()
    expected = model.focus_refiner(features.embedding, tokens[0][:, None], coarse, (64, 48))
    assert torch.equal(model.refine(features, **given).embedding, expected)


@torch.inference_mode()
@pytest.mark.parametrize("config", [PLAIN, STEM], ids=["linear", "stem"])
def test_objects_of_one_image_get_features_of_their_own(config: ModelConfig) -> None:
    model, given = build(config), prompts(3)
    features = model.encode(pixels())
    before = ImageFeatures(**{n: None if x is None else x.clone() for n, x in features.items()})
    refined = model.refine(features, **given)
    assert same(features, before)
    assert refined.embedding.shape == (3, 16, 4, 3)
    for (name, ours), (_, theirs) in zip(refined.items(), features.items(), strict=True):
        if name != "embedding" and theirs is not None:
            assert torch.equal(ours, theirs.expand(3, -1, -1, -1))
    assert model.decode(refined, **given)[0].shape == (3, 1, 16, 12)
    for i in range(3):
        alone = model.refine(features, **{name: x[i : i + 1] for name, x in given.items()})
        torch.testing.assert_close(refined.embedding[i], alone.embedding[0], rtol=1e-3, atol=1e-4)


def test_only_the_refiner_learns_from_a_refinement() -> None:
    model = build(STEM).train()
    with torch.no_grad():
        features = model.encode(pixels())
    refined = model.refine(features, **prompts(2))
    refined.embedding.square().mean().backward()
    learned = {name for name, p in model.named_parameters() if p.grad is not None}
    assert learned
    assert all(name.startswith("focus_refiner.") for name in learned)
    # What is decoded afterwards teaches the refiner through the mask.
    model.zero_grad(set_to_none=True)
    masks, _ = model.decode(model.refine(features, **prompts(2)), **prompts(2))
    masks.square().mean().backward()
    assert model.focus_refiner.embed_proj.weight.grad.any()


@torch.inference_mode()
def test_box_expansion_reaches_the_refiner() -> None:
    model, seen = build(PLAIN), []
    model.focus_refiner.register_forward_pre_hook(lambda _m, args: seen.append(args[3:]))
    features = model.encode(pixels())
    model.refine(features, **prompts(), box_expansion=(1.0, 1.2))
    model.refine(features, **prompts())
    assert seen == [((64, 48), (1.0, 1.2)), ((64, 48), None)]


@torch.inference_mode()
def test_a_model_without_refiner_says_so() -> None:
    model: Segmenter = build(CONFIG)
    with pytest.raises(ConfigError, match=r"with a focus refiner, got 'small'; choose one .*\+foc"):
        model.refine(model.encode(pixels()), **CLICKS)


@torch.inference_mode()
def test_features_of_another_number_of_images_are_refused() -> None:
    model = build(PLAIN)
    with pytest.raises(ShapeError, match="hold 2 images but the prompts are for 3 objects"):
        model.refine(model.encode(pixels(batch=2)), **prompts(3))


@torch.inference_mode()
def test_the_refiner_changes_no_other_answer() -> None:
    plain, focused = build(CONFIG), build(PLAIN)
    focused.load_state_dict(plain.state_dict(), strict=False)
    features = plain.encode(pixels())
    assert same(focused.encode(pixels()), features)
    assert torch.equal(focused.decode(features, **CLICKS)[0], plain.decode(features, **CLICKS)[0])
    assert focused.fingerprint != plain.fingerprint
