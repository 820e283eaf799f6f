"""Parity of FocSAM's refiner, whole and in parts."""

from __future__ import annotations

import torch
from cases_encoder import Taps
from parity_folders import ErrorTable, ParityFolder
from torch import nn

from napari_hrsam.modeling.configs import FocusConfig
from napari_hrsam.modeling.focus_refiner import (
    FocusRefiner,
    ImageBlock,
    PDyReLU,
    TokenBlock,
    ZeroSlotAttention,
)
from napari_hrsam.modeling.focus_windows import box_map, expand_boxes, foreground_boxes

REFINER_TOLERANCE = 1e-4
UNIT_TOLERANCE = 1e-5


def check_refiner(folder: ParityFolder, case: str, table: ErrorTable, *, grad: bool) -> None:
    """Compare boxes, map, the taps of two blocks, the last token and the output of one case."""
    refiner = FocusRefiner(FocusConfig(**folder.config["kwargs"])).eval()
    refiner.load_state_dict(folder.weights)
    settings = folder.case(case)
    image_hw, grid_hw = tuple(settings["input_hw"]), tuple(settings["embed_hw"])
    expansion = tuple(settings["expand_ratio"])
    given = {
        name: folder.tensor(f"{case}.{name}")
        for name in ("image_embeds", "mask_token", "coarse_logits")
    }
    boxes = foreground_boxes(given["coarse_logits"], image_hw)
    expanded = expand_boxes(boxes, image_hw, expansion)
    focus = box_map(expanded, image_hw, grid_hw)[:, None].float()
    last = f"blocks.{len(refiner.blocks) - 1}"
    first = [index for index in (0, 1) if index < len(refiner.blocks)]
    taps = Taps(refiner, {*(f"blocks.{index}" for index in first), last})
    with torch.set_grad_enabled(grad):
        output = refiner(*given.values(), image_hw, expansion)
    compared = {"bbox": boxes, "expanded_bbox": expanded, "block_mask": focus, "output": output}
    for index in first:
        ((image, token),) = taps.calls[f"blocks.{index}"]
        compared |= {f"block{index}.image": image, f"block{index}.token": token}
    compared["last.token"] = taps.calls[last][0][1]
    for name, ours in compared.items():
        exact = name in ("bbox", "expanded_bbox", "block_mask")
        tolerance = 0.0 if exact else REFINER_TOLERANCE
        table.close(folder, name, ours, folder.tensor(f"{case}.{name}"), tolerance)


@torch.inference_mode()
def check_focus_units(folder: ParityFolder, table: ErrorTable) -> None:
    """Compare the activation, the attention in both uses, and both halves of a block."""
    dim, heads = folder.config["channels"], folder.config["num_heads"]
    config = FocusConfig(embed_dim=dim, num_heads=heads, mlp_ratio=folder.config["mlp_ratio"])
    x, token, image = (folder.tensor(name) for name in ("x", "token", "image"))
    attention = _loaded(ZeroSlotAttention(dim, heads), folder, "attn.")
    outputs = {
        "pdyrelu_out": _loaded(PDyReLU(dim), folder, "pdyrelu.")(x, token),
        "attn_out": attention(x, x),
        "attn_cross_out": attention(token, x),
        "msa_out": _loaded(ImageBlock(config), folder, "msa.")(image, token),
        "cross_out": _loaded(TokenBlock(config), folder, "cross.")(token, x),
    }
    for name, ours in outputs.items():
        table.close(folder, name, ours, folder.tensor(name), UNIT_TOLERANCE)


def _loaded(module: nn.Module, folder: ParityFolder, prefix: str) -> nn.Module:
    weights = folder.weights.items()
    module.load_state_dict({k.removeprefix(prefix): v for k, v in weights if k.startswith(prefix)})
    return module
