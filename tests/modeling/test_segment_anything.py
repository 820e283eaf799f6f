"""Our SAM beside the `segment-anything` package and the key names of the released checkpoints."""

from __future__ import annotations

import json
import sys
from functools import partial
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.configs import PromptDecoderConfig, ViTConfig
from napari_hrsam.modeling.models import ModelConfig, find_config
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.vit import ViTEncoder

MANIFESTS = Path(__file__).resolve().parents[1] / "golden" / "manifests"
SIDE, PATCH = 96, 16
CONFIG = ModelConfig(
    name="small-sam",
    description="",
    image_encoder=ViTConfig(
        patch_size=PATCH,
        embed_dim=48,
        depth=4,
        num_heads=3,
        mlp_ratio=2.0,
        window_size=4,
        global_blocks=(1, 3),
        out_channels=32,
        pos_grid=SIDE // PATCH,
    ),
    decoder=PromptDecoderConfig(
        embed_dim=32,
        pe_grid=SIDE // PATCH,
        mask_in_channels=16,
        num_heads=4,
        mlp_dim=64,
        iou_head_dim=24,
    ),
    tile_px=SIDE,
)


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """The package's networks; its top module would import torchvision, which they do not use."""
    found = find_spec("segment_anything")
    assert found is not None, "segment-anything is in the extra 'test': pip install -e '.[test]'"
    assert found.submodule_search_locations is not None
    folder = Path(next(iter(found.submodule_search_locations))) / "modeling"
    name = "segment_anything_networks"
    spec = spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def their_encoder(package: ModuleType, config: ViTConfig) -> nn.Module:
    encoder: nn.Module = package.ImageEncoderViT(
        img_size=config.pos_grid * config.patch_size,
        patch_size=config.patch_size,
        embed_dim=config.embed_dim,
        depth=config.depth,
        num_heads=config.num_heads,
        mlp_ratio=config.mlp_ratio,
        out_chans=config.out_channels,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window_size,
        global_attn_indexes=config.global_blocks,
    )
    return encoder


@pytest.fixture(scope="module")
def theirs(package: ModuleType) -> nn.Module:
    decoder = CONFIG.decoder
    grid = (decoder.pe_grid, decoder.pe_grid)
    assert isinstance(CONFIG.image_encoder, ViTConfig)
    sam: nn.Module = package.Sam(
        image_encoder=their_encoder(package, CONFIG.image_encoder),
        prompt_encoder=package.PromptEncoder(
            embed_dim=decoder.embed_dim,
            image_embedding_size=grid,
            input_image_size=(SIDE, SIDE),
            mask_in_chans=decoder.mask_in_channels,
        ),
        mask_decoder=package.MaskDecoder(
            transformer_dim=decoder.embed_dim,
            transformer=package.TwoWayTransformer(
                depth=decoder.depth,
                embedding_dim=decoder.embed_dim,
                num_heads=decoder.num_heads,
                mlp_dim=decoder.mlp_dim,
            ),
            iou_head_depth=decoder.iou_head_depth,
            iou_head_hidden_dim=decoder.iou_head_dim,
        ),
    )
    g = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for value in (*sam.parameters(), *sam.buffers()):
            if value.ndim and value.shape != (3, 1, 1):
                value.add_(0.15 * torch.randn(value.shape, generator=g))
    return sam.eval()


@pytest.fixture(scope="module")
def ours(theirs: nn.Module) -> Segmenter:
    model = Segmenter(CONFIG)
    model.load_state_dict(theirs.state_dict())
    return model.eval()


def picture(height: int, width: int) -> Tensor:
    g = torch.Generator().manual_seed(height)
    return torch.randint(0, 256, (3, height, width), generator=g).float()


def padded(model: Segmenter, image: Tensor) -> Tensor:
    square = model.get_buffer("pixel_mean").expand(1, 3, SIDE, SIDE).clone()
    square[0, :, : image.shape[1], : image.shape[2]] = image
    return square


@torch.no_grad()
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
@pytest.mark.parametrize("size", [(96, 96), (60, 96)])
def test_encoder_equals_the_package(theirs, ours, size, backend) -> None:
    ours.set_backends(backend, "auto")
    image = picture(*size)
    embedding = theirs.image_encoder(theirs.preprocess(image)[None])
    assert float(embedding.std()) > 0.3
    difference = (ours.encode(padded(ours, image)).embedding - embedding).abs().max()
    assert float(difference) < 1e-5


def prompts(kind: str) -> dict[str, Any]:
    """Prompts of two objects under the package's names."""
    g = torch.Generator().manual_seed(3)
    points = 60 * torch.rand(2, 3, 2, generator=g)
    corner = 30 * torch.rand(2, 2, generator=g)
    given = {
        "point_coords": points,
        "point_labels": torch.tensor([[1, 0, 1], [1, 1, -1]]),
        "boxes": torch.cat([corner, corner + 25], dim=1),
        "mask_inputs": 4 * torch.randn(2, 1, SIDE // 4, SIDE // 4, generator=g),
    }
    return {key: given[key] for key in kind.split()}


@torch.no_grad()
@pytest.mark.parametrize("multimask", [False, True])
@pytest.mark.parametrize(
    "kind",
    [
        "point_coords point_labels",
        "boxes",
        "point_coords point_labels boxes",
        "point_coords point_labels mask_inputs",
        "boxes mask_inputs",
        "point_coords point_labels boxes mask_inputs",
    ],
)
def test_whole_prediction_equals_the_package(theirs, ours, kind, multimask) -> None:
    ours.set_backends("auto", "auto")
    image, original = picture(60, 96), (120, 192)
    given = prompts(kind)
    (expected,) = theirs(
        [{"image": image, "original_size": original, **given}], multimask_output=multimask
    )
    logits, iou = ours.decode(
        ours.encode(padded(ours, image)),
        point_coords_xy=given.get("point_coords"),
        point_labels=given.get("point_labels"),
        boxes_xyxy=given.get("boxes"),
        mask_logits=given.get("mask_inputs"),
        multimask=multimask,
    )
    assert logits.shape == (2, 3 if multimask else 1, SIDE // 4, SIDE // 4)
    assert float(logits.std()) > 0.1
    assert float((logits - expected["low_res_logits"]).abs().max()) < 2e-5
    assert float((iou - expected["iou_predictions"]).abs().max()) < 2e-5
    upscaled = F.interpolate(logits, (SIDE, SIDE), mode="bilinear", align_corners=False)
    upscaled = upscaled[..., :60, :96]
    upscaled = F.interpolate(upscaled, original, mode="bilinear", align_corners=False)
    sure = upscaled.abs() > 1e-4
    assert torch.equal((upscaled > 0)[sure], expected["masks"][sure])


@pytest.mark.parametrize("name", ["sam-b", "sam-l", "sam-h"])
def test_full_size_encoder_has_the_keys_and_shapes_of_the_package(package, name) -> None:
    config = find_config(name).image_encoder
    assert isinstance(config, ViTConfig)
    with torch.device("meta"):
        pair = (their_encoder(package, config), ViTEncoder(config))
    theirs, ours = ({k: v.shape for k, v in m.state_dict().items()} for m in pair)
    assert ours == theirs


@pytest.mark.parametrize(
    ("name", "manifest", "encoder_parameters"),
    [
        ("sam-b", "sam_vit_b", 89_670_912),
        ("sam-l", "sam_vit_l", 308_278_272),
        ("sam-h", "sam_vit_h", 637_026_048),
        # 6,065,532 with the unused classifier, which we leave out.
        ("mobile-sam", "mobile_sam_vit_t", 5_743_892),
    ],
)
def test_named_models_have_the_keys_shapes_and_sizes_of_the_released_checkpoints(
    name: str, manifest: str, encoder_parameters: int
) -> None:
    with torch.device("meta"):
        model = Segmenter(find_config(name))
    released = json.loads((MANIFESTS / f"{manifest}.json").read_text())
    unused = ("image_encoder.norm_head.", "image_encoder.head.")
    expected = {k: tuple(v) for k, v in released["keys"].items() if not k.startswith(unused)}
    left_out = sum(
        torch.Size(shape).numel()
        for key, shape in released["keys"].items()
        if key.startswith(unused)
    )
    assert {k: tuple(v.shape) for k, v in model.state_dict().items()} == expected
    counts = [sum(p.numel() for p in m.parameters()) for m in (model.image_encoder, model)]
    assert counts == [encoder_parameters, released["parameters_total"] - left_out]
