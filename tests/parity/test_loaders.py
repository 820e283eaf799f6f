"""What a fixture of each kind may say in its config.json: honoured, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from cases_ba_sam import ba_case_names, check_ba_attention, check_ba_tiny_vit
from cases_decoder import check_neck_head, neck_head_config
from cases_encoder import Backends, check_encoder, encoder_config
from cases_focus import check_refiner
from cases_sam_encoder import Run, check_tiny_vit, sam_config, tiny_vit_config
from cases_session import check_patch
from parity_folders import GOLDEN, ErrorTable, ParityFolder, folder_kind
from safetensors.torch import save_file
from torch import Tensor, nn

from napari_hrsam.modeling.configs import BASAMConfig, FocusConfig, ViTConfig
from napari_hrsam.modeling.focus_refiner import FocusRefiner
from napari_hrsam.modeling.focus_windows import box_map, expand_boxes, foreground_boxes
from napari_hrsam.modeling.hrsam import HRSAMEncoder
from napari_hrsam.modeling.mask_decoder import MaskDecoder
from napari_hrsam.modeling.prompt_encoder import PromptEncoder
from napari_hrsam.modeling.tiny_vit import TinyViTEncoder, WindowBiasAttention
from napari_hrsam.modeling.vit import RelativeAttention

RUN = Run("reference")


def golden_config(name: str) -> dict[str, Any]:
    return json.loads((GOLDEN / name / "config.json").read_text())


def written(
    path: Path, config: dict[str, Any], io: dict[str, Tensor], weights: dict[str, Tensor]
) -> ParityFolder:
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    np.savez(path / "io.npz", **{name: value.numpy() for name, value in io.items()})
    save_file({k: v.contiguous() for k, v in weights.items()}, path / "weights.safetensors")
    kind = folder_kind(path)
    assert kind is not None
    return ParityFolder(path, kind)


def shaken(module: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module.eval()


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


# --------------------------------------------------------------------------------------- HRSAM
@pytest.mark.parametrize(
    ("sizes", "ours"),
    [
        ([32], (32,)),
        (32, (32,)),
        ([[24, 40]], ((24, 40),)),
        ([[24, 24], 16, [8, 40]], (24, 16, (8, 40))),
        ([], ()),
    ],
)
def test_anchor_sizes_are_numbers_or_height_and_width(sizes, ours) -> None:
    kwargs = golden_config("hrsam_plusplus_vit")["kwargs"] | {"downsample_sizes": sizes}
    assert encoder_config(kwargs).anchor_sizes == ours


@torch.no_grad()
@pytest.mark.parametrize(
    "changes",
    [
        {"downsample_sizes": [[24, 40]]},
        {"downsample_sizes": [[40, 16], 32], "extend_ratio": 1, "state_dim": 5, "window_size": 3},
        {"img_size": [32, 32], "patch_size": 4, "depth": 3, "out_indices": [0, 2]},
    ],
)
def test_encoder_fixture_with_other_arguments_loads_and_is_compared(tmp_path, changes) -> None:
    config = golden_config("hrsam_plusplus_vit")
    config["kwargs"] |= changes
    encoder = shaken(HRSAMEncoder(encoder_config(config["kwargs"])))
    encoder.attention_backend = encoder.scan_backend = "reference"
    image = noise(1, 3, 40, 56)
    tapped: list[Tensor] = []
    encoder.blocks[1].register_forward_hook(lambda _m, _args, out: tapped.append(out))
    io = {"case0.input": image, "case0.output": encoder(image)[0]}
    io["case0.tap.blocks.1"] = tapped[0].flatten(0, 1)
    folder = written(tmp_path / "hrsam_plusplus_vit_b", config, io, encoder.state_dict())
    check_encoder(folder, "case0", ErrorTable(), Backends("reference", "reference"))
    folder.io["case0.output"] += 1e-3
    with pytest.raises(AssertionError, match="output differs by"):
        check_encoder(folder, "case0", ErrorTable(), Backends("reference", "reference"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_dim": 1}, "3 channels, got 1"),
        ({"img_size": [32, 64]}, "position map is square.*32, 64"),
        ({"window_size": [4, 5]}, "windows are square.*4, 5"),
        ({"use_rel_pos": True, "qk_norm": True}, "arguments of the encoder: qk_norm, use_rel_pos"),
    ],
)
def test_encoder_arguments_that_are_not_honoured_are_refused(changes, message) -> None:
    with pytest.raises(AssertionError, match=message):
        encoder_config(golden_config("hrsam_plusplus_vit")["kwargs"] | changes)


# ------------------------------------------------------------------------------------- decoder
@torch.no_grad()
def test_neck_fixture_may_have_a_position_grid_that_is_not_square(tmp_path) -> None:
    config = golden_config("sam_neck_head")
    config["neck"] |= {"image_embed_size": [6, 10], "input_image_size": [96, 160]}
    config |= {"cases": [{"name": "case0"}], "max_abs_err_fp32_vs_fp64": {}}
    ours = neck_head_config(config["neck"], config["head"])
    assert ours.pe_grid == (6, 10)
    prompts, decoder = shaken(PromptEncoder(ours)), shaken(MaskDecoder(ours))
    io = {
        "case0.image_embeds": noise(1, 32, 6, 10),
        "case0.point_coords_xy": torch.tensor([[[130.0, 20.0]]]),
        "case0.point_labels": torch.ones(1, 1),
    }
    sparse, dense = prompts(
        grid_hw=(6, 10),
        image_hw=(96, 160),
        point_coords_xy=io["case0.point_coords_xy"],
        point_labels=io["case0.point_labels"],
    )
    # Cell centres of 6 rows and 10 columns, x first.
    y, x = torch.meshgrid((torch.arange(6) + 0.5) / 6, (torch.arange(10) + 0.5) / 10, indexing="ij")
    position = prompts.pe_layer(torch.stack([x, y], -1)).permute(2, 0, 1)[None]
    decoded = decoder(io["case0.image_embeds"], position, sparse, dense)
    masks, iou = decoded.masks, decoded.iou
    theirs = {"sparse_embeds": sparse, "dense_embeds": dense, "image_pos_embeds": position}
    theirs |= {"masks": masks, "iou": iou, "single_mask": masks[:, :1]}
    theirs["best_mask"] = masks[:, iou.argmax(1)]
    io |= {f"case0.{name}": value.clone() for name, value in theirs.items()}
    weights = {f"neck.{k}": v for k, v in prompts.state_dict().items()}
    weights |= {f"decode_head.{k}": v for k, v in decoder.state_dict().items()}
    check_neck_head(written(tmp_path / "neck", config, io, weights), "case0", ErrorTable())


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("neck", "arguments of the prompt encoder: extra"),
        ("head", "arguments of the decoder: extra"),
        ("attn_cfg", "arguments of the decoder's transformer: extra"),
    ],
)
def test_decoder_arguments_that_are_not_honoured_are_refused(where, message) -> None:
    config = golden_config("sam_neck_head")
    part = config["head"]["attn_cfg"] if where == "attn_cfg" else config[where]
    part["extra"] = 1
    with pytest.raises(AssertionError, match=message):
        neck_head_config(config["neck"], config["head"])


def test_session_must_scale_clicks_by_the_patch() -> None:
    neck = golden_config("e2e_session_hrsam_plusplus")["neck"]
    check_patch(neck, 8)
    check_patch(neck | {"image_embed_size": [8, 12], "input_image_size": [64, 96]}, 8)
    with pytest.raises(AssertionError, match="must be 8.*got 100 and 8"):
        check_patch(neck | {"input_image_size": [100, 100]}, 8)


# ------------------------------------------------------------------------------- SAM, MobileSAM
def test_sam_without_windows_attends_globally_in_every_block() -> None:
    config = golden_config("sam_tiny")
    encoder = sam_config(config).image_encoder
    assert isinstance(encoder, ViTConfig)
    assert (encoder.window_size, encoder.global_blocks) == (5, (1, 3))
    encoder = sam_config(config | {"window_size": 0}).image_encoder
    assert isinstance(encoder, ViTConfig)
    assert encoder.global_blocks == (0, 1, 2, 3)


def test_sam_arguments_that_are_not_honoured_are_refused() -> None:
    config = golden_config("sam_tiny")
    with pytest.raises(AssertionError, match="arguments of the model: use_rel_pos"):
        sam_config(config | {"use_rel_pos": False})
    with pytest.raises(AssertionError, match="arguments of the prompt encoder: activation"):
        sam_config(config | {"prompt": {"mask_in_chans": 8, "activation": "relu"}})


@torch.no_grad()
def test_tiny_vit_fixture_may_have_other_windows_kernels_sizes_and_steps(tmp_path) -> None:
    config = golden_config("mobile_sam_tinyvit")
    config["kwargs"] |= {
        "window_sizes": [7, [5, 6], 7, [3, 3]],
        "local_conv_size": 5,
        "mbconv_expand_ratio": 2.0,
        "drop_path_rate": 0.1,
    }
    config["cases"] = [{"name": "case0", "input_hw": [128, 96], "output_shape": [1, 256, 8, 6]}]
    ours = tiny_vit_config(config["kwargs"])
    assert ours.window_sizes == (7, (5, 6), 7, 3)
    assert (ours.local_conv_size, ours.mbconv_expand_ratio) == (5, 2.0)
    encoder = shaken(TinyViTEncoder(ours))
    stages: list[Tensor] = []
    for stage in encoder.layers:
        stage.register_forward_hook(lambda _m, _args, out: stages.append(out))
    small = noise(1, 3, 32, 32)
    image = nn.functional.interpolate(small, (128, 96), mode="bilinear", align_corners=False)
    output = encoder(image)[0]
    io = {"case0.image_32": small, "case0.embedding_every_2nd": output[:, :, ::2, ::2]}
    for index, (stage, step) in enumerate(zip(stages, (4, 2, 1, 1), strict=True)):
        io[f"case0.layer{index}_every_{step}"] = stage.permute(0, 2, 3, 1)[:, ::step, ::step]
    folder = written(tmp_path / "mobile_sam_tinyvit_b", config, io, encoder.state_dict())
    check_tiny_vit(folder, "case0", ErrorTable(), RUN)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"in_chans": 1}, "3 channels, got 1"),
        ({"embed_dims": [8, 16, 24]}, "4 stages, got 3"),
        ({"attn_ratio": 2}, "arguments of the encoder: attn_ratio"),
    ],
)
def test_tiny_vit_arguments_that_are_not_honoured_are_refused(changes, message) -> None:
    with pytest.raises(AssertionError, match=message):
        tiny_vit_config(golden_config("mobile_sam_tinyvit")["kwargs"] | changes)


# -------------------------------------------------------------------------------------- BA-SAM
@torch.no_grad()
@pytest.mark.parametrize("attn_ratio", [1, 1.5])
def test_ba_tiny_vit_fixture_may_have_any_window_and_head_width(tmp_path, attn_ratio) -> None:
    config = golden_config("ba_sam_tinyvit_attention")
    factor = 1 + np.log(16) / np.log(1444)
    config |= {"resolution": [5, 6], "key_dim": 6, "attn_ratio": attn_ratio, "length_scale": 4}
    config["scale_over_rsqrt"] = factor
    attn = WindowBiasAttention(
        24,
        3,
        (5, 6),
        BASAMConfig(form="released", coefficient=True),
        key_dim=6,
        value_dim=int(6 * attn_ratio),
    )
    attn, x = shaken(attn), noise(2, 5, 6, 24)
    io = {"input": x.flatten(1, 2)}
    for mode in ("train", "eval"):
        io[f"output_{mode}"] = attn.train(mode == "train")(x, factor, "reference").flatten(1, 2)
    folder = written(tmp_path / "ba_sam_tinyvit_attention_b", config, io, attn.state_dict())
    for mode in ("train", "eval"):
        check_ba_tiny_vit(folder, mode, ErrorTable(), RUN)


@torch.no_grad()
def test_ba_fixture_may_have_one_module_at_several_lengths_and_tables_of_two_sides(
    tmp_path,
) -> None:
    attn = RelativeAttention(32, 4, (6, 8), BASAMConfig(coefficient=True))
    attn, cases, io = shaken(attn), [], {}
    assert (attn.rel_pos_h.shape[0], attn.rel_pos_w.shape[0]) == (11, 15)
    for grid, factor in (((6, 8), 1.0), ((12, 9), 7 / 6), ((7, 20), 4 / 3)):
        case = {"module": "global_any", "grid": grid, "scale_over_rsqrt": factor}
        cases.append(case)
        name, x = f"global_any.{grid[0]}x{grid[1]}", noise(1, *grid, 32)
        io |= {f"{name}.input": x, f"{name}.output": attn(x, factor, "reference")}
    config = golden_config("ba_sam_attention") | {"cases": cases}
    weights = {f"global_any.{key}": value for key, value in attn.state_dict().items()}
    folder = written(tmp_path / "ba_sam_attention_b", config, io, weights)
    names = ba_case_names(folder)
    assert names == ["global_any.6x8", "global_any.12x9", "global_any.7x20"]
    for name in names:
        check_ba_attention(folder, name, ErrorTable(), RUN)


# ------------------------------------------------------------------------------ FocSAM, numbers
@torch.no_grad()
def test_refiner_fixture_may_have_one_block(tmp_path) -> None:
    config = golden_config("focsam_refiner")
    config["kwargs"] |= {"depth": 1}
    config["cases"] = [config["cases"][3] | {"name": "case0"}]
    refiner = shaken(FocusRefiner(FocusConfig(**config["kwargs"])))
    image_hw, grid_hw, expansion = (96, 144), (6, 9), (1.0, 1.2)
    given = (noise(1, 32, 6, 9), noise(1, 1, 32), noise(1, 1, 24, 36))
    tokens: list[tuple[Tensor, Tensor]] = []
    refiner.blocks[0].register_forward_hook(lambda _m, _args, out: tokens.append(out))
    output = refiner(*given, image_hw, expansion)
    boxes = foreground_boxes(given[2], image_hw)
    expanded = expand_boxes(boxes, image_hw, expansion)
    ((image, token),) = tokens
    io = {
        **dict(zip(("image_embeds", "mask_token", "coarse_logits"), given, strict=True)),
        "bbox": boxes,
        "expanded_bbox": expanded,
        "block_mask": box_map(expanded, image_hw, grid_hw)[:, None].float(),
        "output": output,
        "block0.image": image,
        "block0.token": token,
        "last.token": token,
    }
    io = {f"case0.{name}": value for name, value in io.items()}
    folder = written(tmp_path / "focsam_refiner_b", config, io, refiner.state_dict())
    check_refiner(folder, "case0", ErrorTable(), grad=False)


@pytest.mark.parametrize(
    ("noted", "expected"),
    [
        ({}, 0.0),
        ({"max_abs_err_fp32_vs_fp64": 2e-6}, 2e-6),
        ({"max_abs_err_fp32_vs_fp64": {"case0": 3e-6}}, 3e-6),
        ({"max_abs_err_fp32_vs_fp64": {"case0": {"output": 4e-6, "masks": 1.0}}}, 4e-6),
        ({"max_abs_err_fp32_vs_fp64": {"case0": {"masks": 1.0}}}, 0.0),
        ({"tolerance_evidence": {"case0": {"max_abs_err_fp32_vs_fp64": 5e-6}}}, 5e-6),
    ],
)
def test_own_error_is_read_however_it_is_noted(tmp_path, noted, expected) -> None:
    folder = written(tmp_path / "hrsam_vit_b", {"model": "hrsam_vit"} | noted, {}, {})
    assert folder.own_error("case0", "output") == expected
