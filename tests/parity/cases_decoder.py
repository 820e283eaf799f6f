"""Decoder parity: SAM's prompt encoder and mask decoder, and the post-processing of SAM."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from cases_encoder import OWN_ERRORS
from parity_folders import ErrorTable, ParityFolder, plain_size, refuse_unknown
from torch import Tensor

from napari_hrsam.modeling.configs import PromptDecoderConfig, height_width
from napari_hrsam.modeling.mask_decoder import MaskDecoder
from napari_hrsam.modeling.prompt_encoder import PromptEncoder

TOLERANCE = 1e-5
_PREFIXES = {
    "neck.": "prompt_encoder.",
    "decode_head.": "mask_decoder.",
    "backbone.": "image_encoder.",
}
# Names under which the reference's own float32 error is noted.
_NOTED_AS = {"single_mask": "masks", "best_mask": "masks", "sparse_embeds": "sparse"}
_TRANSFORMER = ("depth", "mlp_dim", "num_heads")
_RENAMED = {"pos_embed_layer.": "pe_layer.", "point_embeds.": "point_embeddings."}


def sam_names(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename HRSAM's key names to SAM's."""
    renamed = {}
    for key, value in weights.items():
        name = key
        for old, new in _PREFIXES.items():
            if key.startswith(old):
                name = new + key.removeprefix(old)
        for old, new in _RENAMED.items():
            name = name.replace(f"prompt_encoder.{old}", f"prompt_encoder.{new}")
        renamed[name] = value
    return renamed


def decoder_config(
    *,
    embed_dim: int,
    pe_grid: int | tuple[int, int],
    mask_in_channels: int,
    decoder: dict[str, Any],
) -> PromptDecoderConfig:
    transformer = decoder.get("attn_cfg", decoder)
    known = {"num_multimask_outputs", "iou_head_depth", "iou_head_hidden_dim"}
    refuse_unknown(decoder, {*known, *_TRANSFORMER, "attn_cfg", "in_dim", "type"}, "decoder")
    if "attn_cfg" in decoder:
        refuse_unknown(transformer, set(_TRANSFORMER), "decoder's transformer")
    return PromptDecoderConfig(
        embed_dim=embed_dim,
        pe_grid=pe_grid,
        mask_in_channels=mask_in_channels,
        num_multimask=decoder["num_multimask_outputs"],
        depth=transformer["depth"],
        num_heads=transformer["num_heads"],
        mlp_dim=transformer["mlp_dim"],
        iou_head_depth=decoder["iou_head_depth"],
        iou_head_dim=decoder["iou_head_hidden_dim"],
    )


def neck_head_config(neck: dict[str, Any], head: dict[str, Any]) -> PromptDecoderConfig:
    """Configuration from the `neck` and `head` entries of an HRSAM fixture."""
    known = {"embed_dim", "image_embed_size", "input_image_size", "mask_in_dim", "type"}
    refuse_unknown(neck, known, "prompt encoder")
    assert head["in_dim"] == neck["embed_dim"], "decoder and prompt encoder must have one width"
    return decoder_config(
        embed_dim=neck["embed_dim"],
        pe_grid=plain_size(neck["image_embed_size"]),
        mask_in_channels=neck["mask_in_dim"],
        decoder=head,
    )


def _load(folder: ParityFolder, config: PromptDecoderConfig) -> tuple[PromptEncoder, MaskDecoder]:
    weights = sam_names(folder.weights)
    modules = (PromptEncoder(config), MaskDecoder(config))
    for module, prefix in zip(modules, ("prompt_encoder.", "mask_decoder."), strict=True):
        module.load_state_dict(
            {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}
        )
        module.eval()
    return modules


@torch.inference_mode()
def check_neck_head(folder: ParityFolder, case: str, table: ErrorTable) -> None:
    """Compare prompt embeddings, all four masks, IoU and both output choices of one case."""
    neck = folder.config["neck"]
    prompt_encoder, mask_decoder = _load(folder, neck_head_config(neck, folder.config["head"]))
    image = folder.tensor(f"{case}.image_embeds")
    grid_hw = (image.shape[2], image.shape[3])
    cells_hw, pixels_hw = (
        height_width(plain_size(neck[name])) for name in ("image_embed_size", "input_image_size")
    )
    sides = zip(grid_hw, pixels_hw, cells_hw, strict=True)
    height, width = (n * pixels // cells for n, pixels, cells in sides)
    sparse, dense = prompt_encoder(
        grid_hw=grid_hw,
        image_hw=(height, width),
        point_coords_xy=folder.optional(f"{case}.point_coords_xy"),
        point_labels=folder.optional(f"{case}.point_labels"),
        boxes_xyxy=folder.optional(f"{case}.boxes_xyxy"),
        mask_logits=folder.optional(f"{case}.prev_logits"),
    )
    position = prompt_encoder.dense_position(grid_hw)
    decoded = mask_decoder(image, position, sparse, dense)
    masks, iou = decoded.masks, decoded.iou
    best = masks[torch.arange(len(iou)), iou.argmax(1)][:, None]
    for name, ours in {
        "sparse_embeds": sparse,
        "dense_embeds": dense,
        "image_pos_embeds": position,
        "masks": masks,
        "iou": iou,
        "single_mask": masks[:, :1],
        "best_mask": best,
    }.items():
        noted = _NOTED_AS.get(name, name)
        tolerance = max(TOLERANCE, OWN_ERRORS * folder.own_error(case, noted))
        table.close(folder, name, ours, folder.tensor(f"{case}.{name}"), tolerance)


@torch.inference_mode()
def check_sam_decoder(folder: ParityFolder, case: str, table: ErrorTable) -> None:
    """Compare the decoder half of a whole SAM, fed with the recorded image embedding.

    In float64, since the fixture's mask prompt amplifies rounding (see `cases_sam_encoder`).
    """
    config = folder.config
    size, patch = config["img_size"], config["patch_size"]
    prompt_encoder, mask_decoder = _load(
        folder,
        decoder_config(
            embed_dim=config["out_chans"],
            pe_grid=size // patch,
            mask_in_channels=config["prompt"]["mask_in_chans"],
            decoder=config["decoder"],
        ),
    )
    prompt_encoder.double()
    mask_decoder.double()

    def double(name: str) -> Tensor | None:
        given = folder.optional(f"{case}.{name}")
        return given if given is None or not given.is_floating_point() else given.double()

    image = folder.tensor(f"{case}.image_embedding").double()
    grid_hw = (image.shape[2], image.shape[3])
    sparse, dense = prompt_encoder(
        grid_hw=grid_hw,
        image_hw=(size, size),
        point_coords_xy=double("point_coords"),
        point_labels=double("point_labels"),
        boxes_xyxy=double("boxes"),
        mask_logits=double("mask_inputs"),
    )
    position = prompt_encoder.dense_position(grid_hw)
    table.close(folder, "dense_pe", position, folder.tensor("dense_pe"), TOLERANCE)
    table.close(
        folder, "sparse_embeddings", sparse, folder.tensor(f"{case}.sparse_embeddings"), TOLERANCE
    )
    theirs_dense = folder.optional(f"{case}.dense_embeddings")
    if theirs_dense is not None:
        table.close(folder, "dense_embeddings", dense, theirs_dense, TOLERANCE)
    settings = folder.case(case)
    decoded = mask_decoder(image, position, sparse, dense)
    chosen = slice(1, None) if settings["multimask"] else slice(0, 1)
    logits = decoded.masks[:, chosen]
    upscaled = resize(resize(logits, (size, size), settings["resized_hw"]), settings["original_hw"])
    for name, ours in {
        "low_res_logits": logits,
        "iou_predictions": decoded.iou[:, chosen],
        "upscaled_logits": upscaled,
    }.items():
        table.close(folder, name, ours, folder.tensor(f"{case}.{name}"), TOLERANCE)
    check_masks(folder, upscaled, folder.tensor(f"{case}.masks"), table)


def resize(
    logits: Tensor, size_hw: tuple[int, int] | list[int], crop_hw: list[int] | None = None
) -> Tensor:
    """Resize (N, M, h, w) bilinearly, then crop to the top left corner."""
    out = F.interpolate(logits, tuple(size_hw), mode="bilinear", align_corners=False)
    return out if crop_hw is None else out[..., : crop_hw[0], : crop_hw[1]]


def check_masks(
    folder: ParityFolder, logits: Tensor, masks: Tensor, table: ErrorTable, tolerance: float = 1e-4
) -> None:
    """Masks must be equal wherever the logits are not within `tolerance` of the threshold."""
    assert logits.shape == masks.shape, f"mask {tuple(logits.shape)}, want {tuple(masks.shape)}"
    sure = logits.abs() > tolerance
    wrong = int((((logits > 0) != (masks > 0)) & sure).sum())
    table.note(folder, "mask pixels", wrong, 0.0)
    assert wrong == 0, f"{wrong} mask pixels differ"
