"""Parity of BA-SAM's attention: the ViT's modules and blocks, and TinyViT's windows."""

from __future__ import annotations

import math
from typing import Any

import torch
from cases_sam_encoder import Run
from parity_folders import ErrorTable, ParityFolder, plain_size

from napari_hrsam.modeling.configs import BASAMConfig, ViTConfig, height_width
from napari_hrsam.modeling.length_scaling import (
    TINY_VIT_TRAINING_SIDE,
    TINY_VIT_TRAINING_TOKENS,
    length_factor,
)
from napari_hrsam.modeling.tiny_vit import WindowBiasAttention
from napari_hrsam.modeling.vit import RelativeAttention, ViTBlock

TOLERANCE = 1e-5
# Of the blocks in the fixture; the encoder itself has 1e-6.
_BLOCK_EPS = 1e-5
_TRAINING_SIDE = 64


def ba_case_names(folder: ParityFolder) -> list[str]:
    """Names of the modules of `ba_sam_attention`, each with its grid."""
    return [_case_name(case) for case in folder.config["cases"]]


def _case_name(case: dict[str, Any]) -> str:
    return f"{case['module']}.{case['grid'][0]}x{case['grid'][1]}"


def _factor(case: dict[str, Any]) -> float:
    """Our factor of the fixture's length, checked against its own number.

    The fixture has its length from the image size, with 64 x 64 tokens in training whatever the
    grid of the module. It does not tell the size of every module; the whole number of training
    sides that gives its factor does.
    """
    ba = BASAMConfig(coefficient=True)
    ratio = round(_TRAINING_SIDE ** (case["scale_over_rsqrt"] - 1))
    windowed = "window" in case["module"]
    assert ratio == 1 or not windowed, f"windows keep the plain scale, got {ratio} times"
    side = ratio * _TRAINING_SIDE
    factor = length_factor(
        ba, (side, side), training_side=_TRAINING_SIDE, training_tokens=_TRAINING_SIDE**2
    )
    assert math.isclose(factor, case["scale_over_rsqrt"], rel_tol=1e-12)
    return factor


def check_ba_attention(folder: ParityFolder, name: str, table: ErrorTable, run: Run) -> None:
    """Compare one attention module or block, with its interpolated tables and coefficient."""
    config = folder.config
    case = next(case for case in config["cases"] if _case_name(case) == name)
    prefix, name = name, case["module"]
    weights = {
        key.removeprefix(f"{name}."): value
        for key, value in folder.weights.items()
        if key.startswith(f"{name}.")
    }
    is_block = name.startswith("block")
    tables = [weights["attn." * is_block + f"rel_pos_{axis}"] for axis in "hw"]
    height, width = ((len(table) + 1) // 2 for table in tables)
    assert height == width or not is_block, f"a block has square tables, got {height} x {width}"
    vit = ViTConfig(
        embed_dim=config["dim"],
        num_heads=config["num_heads"],
        mlp_ratio=config["mlp_ratio"],
        window_size=config["window_size"],
        pos_grid=height,
        norm_eps=_BLOCK_EPS,
        ba=BASAMConfig(coefficient=True),
    )
    module: RelativeAttention | ViTBlock
    if is_block:
        module = ViTBlock(vit, is_global="global" in name)
    else:
        module = RelativeAttention(vit.embed_dim, vit.num_heads, (height, width), vit.ba)
    module.load_state_dict(weights)
    with torch.set_grad_enabled(run.grad):
        output = module(folder.tensor(f"{prefix}.input"), _factor(case), run.attention)
    table.close(folder, name, output, folder.tensor(f"{prefix}.output"), TOLERANCE)


def check_ba_tiny_vit(folder: ParityFolder, mode: str, table: ErrorTable, run: Run) -> None:
    """Compare training and use in the released form; the paper's is its training in both."""
    config = folder.config
    side = config["length_scale"] * TINY_VIT_TRAINING_SIDE
    x = folder.tensor("input").unflatten(1, height_width(plain_size(config["resolution"])))
    for form in ("released", "paper"):
        ba = BASAMConfig(form=form, coefficient=True)
        factor = length_factor(
            ba,
            (side, side),
            training_side=TINY_VIT_TRAINING_SIDE,
            training_tokens=TINY_VIT_TRAINING_TOKENS,
        )
        assert math.isclose(factor, config["scale_over_rsqrt"], rel_tol=1e-12)
        module = WindowBiasAttention(
            config["dim"],
            config["num_heads"],
            plain_size(config["resolution"]),
            ba,
            key_dim=config["key_dim"],
            value_dim=int(config.get("attn_ratio", 1) * config["key_dim"]),
        )
        module.load_state_dict(folder.weights)
        module.train(mode == "train")
        with torch.set_grad_enabled(run.grad):
            output = module(x, factor, run.attention).flatten(1, 2)
        recorded = mode if form == "released" else "train"
        theirs = folder.tensor(f"output_{recorded}")
        table.close(folder, f"{form} {mode}", output, theirs, TOLERANCE)
