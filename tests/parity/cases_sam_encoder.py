"""Parity of SAM's encoders: the ViT, a whole SAM around it, and MobileSAM's TinyViT."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from cases_decoder import check_masks, decoder_config, resize
from cases_encoder import OWN_ERRORS
from parity_folders import ErrorTable, ParityFolder, plain_size, refuse_unknown
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
# What every configuration tells beside the constructor's arguments.
_ABOUT_FOLDER = {
    "model",
    "seed",
    "cases",
    "max_abs_err_fp32_vs_fp64",
    "key_prefix_in_official_checkpoint",
    "mode",
    "dtype",
    "notes",
}
_TINY_VIT_LISTS = ("embed_dims", "depths", "num_heads", "window_sizes")
_TINY_VIT_NUMBERS = ("mlp_ratio", "mbconv_expand_ratio", "local_conv_size")
# Of the classifier, of training, or a size that the weights do not depend on.
_TINY_VIT_IGNORED = (
    "num_classes",
    "drop_rate",
    "drop_path_rate",
    "use_checkpoint",
    "layer_lr_decay",
    "img_size",
    "in_chans",
)


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
    same = ("patch_size", "embed_dim", "depth", "num_heads", "mlp_ratio")
    others = {"img_size", "window_size", "global_attn_indexes", "out_chans", "prompt", "decoder"}
    refuse_unknown(config, {*same, *others, *_ABOUT_FOLDER}, "model")
    refuse_unknown(config["prompt"], {"mask_in_chans"}, "prompt encoder")
    grid = config["img_size"] // config["patch_size"]
    # Without a window every block sees the whole map.
    window, blocks = config["window_size"], tuple(config["global_attn_indexes"])
    if not window:
        window, blocks = grid, tuple(range(config["depth"]))
    return ModelConfig(
        name="fixture",
        description="",
        image_encoder=ViTConfig(
            **{name: config[name] for name in same},
            window_size=window,
            global_blocks=blocks,
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


def tiny_vit_config(kwargs: dict[str, Any]) -> TinyViTConfig:
    """Translate the reference's constructor arguments."""
    known = {*_TINY_VIT_LISTS, *_TINY_VIT_NUMBERS, *_TINY_VIT_IGNORED}
    refuse_unknown(kwargs, known, "encoder")
    assert kwargs.get("in_chans", 3) == 3, f"images have 3 channels, got {kwargs['in_chans']}"
    stages = len(kwargs["embed_dims"])
    assert stages == 4, f"the encoder has 4 stages, got {stages}"
    lists = {name: tuple(kwargs[name]) for name in _TINY_VIT_LISTS}
    lists["window_sizes"] = tuple(plain_size(size) for size in kwargs["window_sizes"])
    numbers = {name: kwargs[name] for name in _TINY_VIT_NUMBERS if name in kwargs}
    return TinyViTConfig(**lists, **numbers)


def tiny_vit(folder: ParityFolder) -> TinyViTEncoder:
    """TinyViT of a fixture, weights loaded strictly but for the classifier and the counters."""
    encoder = TinyViTEncoder(tiny_vit_config(folder.config["kwargs"]))
    weights = {k: v for k, v in folder.weights.items() if not k.startswith(_UNUSED)}
    # The counters of the batch norms are not in the fixture.
    counters = {k: v for k, v in encoder.state_dict().items() if k.endswith("num_batches_tracked")}
    encoder.load_state_dict(counters | weights)
    return encoder.eval()


def check_tiny_vit(folder: ParityFolder, case: str, table: ErrorTable, run: Run) -> None:
    """Compare the embedding and the map behind every stage."""
    encoder = tiny_vit(folder)
    encoder.attention_backend = run.attention
    stages: list[Tensor] = []
    for stage in encoder.layers:
        stage.register_forward_hook(lambda _module, _args, out: stages.append(out))
    size = tuple(folder.case(case)["input_hw"])
    small = folder.tensor(_only_key(folder, f"{case}.image_"))
    image = F.interpolate(small, size, mode="bilinear", align_corners=False)
    with torch.set_grad_enabled(run.grad):
        output = encoder(image)[0]
    assert list(output.shape) == folder.case(case)["output_shape"]
    key, step = _thinned(folder, f"{case}.embedding_every_")
    compared = {"output": (output[:, :, ::step, ::step], key)}
    for index, stage in enumerate(stages):
        key, step = _thinned(folder, f"{case}.layer{index}_every_")
        compared[f"stage {index}"] = (stage.permute(0, 2, 3, 1)[:, ::step, ::step], key)
    for name, (ours, key) in compared.items():
        theirs = folder.tensor(key)
        rms = float(theirs.double().square().mean().sqrt())
        table.close(folder, name, ours, theirs, TINY_VIT_TOLERANCE * rms)


def _only_key(folder: ParityFolder, start: str) -> str:
    keys = [key for key in folder.io if key.startswith(start)]
    assert len(keys) == 1, f"expected one array named {start}..., got {keys}"
    return keys[0]


def _thinned(folder: ParityFolder, start: str) -> tuple[str, int]:
    """Array of a map of which every n-th row and column was kept ("every_4th"), and that n."""
    key = _only_key(folder, start)
    return key, int(key.removeprefix(start).rstrip("thsndr"))
