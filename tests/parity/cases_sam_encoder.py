"""Parity of SAM's encoders: the ViT, a whole SAM around it, and MobileSAM's TinyViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cases_decoder import check_masks, decoder_config, resize
from cases_encoder import OWN_ERRORS
from parity_folders import ErrorTable, ParityFolder
from torch import Tensor

from napari_hrsam.modeling.attention import AttentionBackend
from napari_hrsam.modeling.configs import TinyViTConfig, ViTConfig
from napari_hrsam.modeling.models import ModelConfig
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.tiny_vit import TinyViTEncoder

SAM_TOLERANCE = 1e-5
# The mask prompt of the fixture goes through a LayerNorm of two channels, which multiplies the
# rounding of the convolution before it by up to a thousand. What is left in float32 depends on the
# processor (the reference's own 9e-6 came from another one), so these cases are compared in
# float64 too.
MASK_PROMPT_TOLERANCE = 2e-4
# Times the root mean square of the quantity.
TINY_VIT_TOLERANCE = 1e-4
_UNUSED = ("norm_head.", "head.")


@dataclass(frozen=True)
class Run:
    attention: AttentionBackend
    grad: bool = False
    dtype: torch.dtype = torch.float32

    @property
    def name(self) -> str:
        options = ("-grad" if self.grad else "", "-f64" if self.dtype == torch.float64 else "")
        return self.attention + "".join(options)


RUNS = (Run("auto"), Run("sdpa"), Run("reference"), Run("auto", grad=True), Run("sdpa", grad=True))
SAM_RUNS = (*RUNS, Run("auto", dtype=torch.float64))


def sam_config(config: dict[str, Any]) -> ModelConfig:
    """The whole model of a `sam_tiny` fixture."""
    same = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio", "window_size")
    grid = config["img_size"] // config["patch_size"]
    return ModelConfig(
        name="fixture",
        description="",
        image_encoder=ViTConfig(
            **{name: config[name] for name in same},
            global_blocks=tuple(config["global_attn_indexes"]),
            out_channels=config["out_chans"],
            pos_grid=grid,
        ),
        decoder=decoder_config(
            embed_dim=config["out_chans"],
            pe_grid=grid,
            mask_in_channels=config["prompt"]["mask_in_chans"],
            decoder=config["decoder"],
        ),
        tile_px=config["img_size"],
    )


def padded(image: Tensor, model: Segmenter, size: int) -> Tensor:
    """Put uint8 (3, h, w) into a square of the mean colour: (1, 3, size, size) float."""
    square = model.get_buffer("pixel_mean").expand(1, 3, size, size).clone()
    square[0, :, : image.shape[1], : image.shape[2]] = image.float()
    return square


def check_sam(folder: ParityFolder, case: str, table: ErrorTable, run: Run) -> None:
    """Compare embedding, logits, IoU and masks of the whole model, from the image on."""
    config, settings = folder.config, folder.case(case)
    model = Segmenter(sam_config(config)).eval()
    model.load_state_dict(folder.weights)
    model.to(run.dtype).set_backends(run.attention, "auto")
    size = config["img_size"]

    def prompt(name: str) -> Tensor | None:
        given = folder.optional(f"{case}.{name}")
        return given if given is None or not given.is_floating_point() else given.to(run.dtype)

    with torch.set_grad_enabled(run.grad):
        features = model.encode(padded(folder.tensor(f"{case}.image"), model, size))
        logits, iou = model.decode(
            features,
            point_coords_xy=prompt("point_coords"),
            point_labels=prompt("point_labels"),
            boxes_xyxy=prompt("boxes"),
            mask_logits=prompt("mask_inputs"),
            multimask=settings["multimask"],
        )
    upscaled = resize(resize(logits, (size, size), settings["resized_hw"]), settings["original_hw"])
    tolerance = max(SAM_TOLERANCE, OWN_ERRORS * folder.own_error(case, "embedding"))
    embedding = folder.tensor(f"{case}.image_embedding")
    table.close(folder, "whole image_embedding", features.embedding, embedding, tolerance)
    row = "whole"
    if settings.get("mask") and run.dtype == torch.float32:
        row, tolerance = "mask", MASK_PROMPT_TOLERANCE
    for name, ours in {
        "low_res_logits": logits,
        "iou_predictions": iou,
        "upscaled_logits": upscaled,
    }.items():
        table.close(folder, f"{row} {name}", ours, folder.tensor(f"{case}.{name}"), tolerance)
    check_masks(folder, upscaled, folder.tensor(f"{case}.masks"), table)


def tiny_vit(folder: ParityFolder) -> TinyViTEncoder:
    """TinyViT of a fixture, weights loaded strictly but for the classifier and the counters."""
    kwargs = dict(folder.config["kwargs"])
    assert kwargs.pop("mbconv_expand_ratio") == 4.0
    assert kwargs.pop("local_conv_size") == 3
    kwargs.pop("num_classes")
    lists = {k: tuple(v) if isinstance(v, list) else v for k, v in kwargs.items()}
    encoder = TinyViTEncoder(TinyViTConfig(**lists))
    weights = {k: v for k, v in folder.weights.items() if not k.startswith(_UNUSED)}
    # The counters of the batch norms are not in the fixture.
    counters = {k: v for k, v in encoder.state_dict().items() if k.endswith("num_batches_tracked")}
    encoder.load_state_dict(weights | counters)
    return encoder.eval()


def check_tiny_vit(folder: ParityFolder, case: str, table: ErrorTable, run: Run) -> None:
    """Compare the embedding and the map behind every stage."""
    encoder = tiny_vit(folder)
    encoder.attention_backend = run.attention
    stages: list[Tensor] = []
    for stage in encoder.layers:
        stage.register_forward_hook(lambda _module, _args, out: stages.append(out))
    size = tuple(folder.case(case)["input_hw"])
    image = F.interpolate(
        folder.tensor(f"{case}.image_64"), size, mode="bilinear", align_corners=False
    )
    with torch.set_grad_enabled(run.grad):
        output = encoder(image)[0]
    assert list(output.shape) == folder.case(case)["output_shape"]
    compared = {"output": (output[:, :, ::4, ::4], f"{case}.embedding_every_4th")}
    for index, (stage, step) in enumerate(zip(stages, (8, 4, 4, 4), strict=True)):
        cells = stage.permute(0, 2, 3, 1)[:, ::step, ::step]
        compared[f"stage {index}"] = (cells, f"{case}.layer{index}_every_{step}")
    for name, (ours, key) in compared.items():
        theirs = folder.tensor(key)
        rms = float(theirs.double().square().mean().sqrt())
        table.close(folder, name, ours, theirs, TINY_VIT_TOLERANCE * rms)
