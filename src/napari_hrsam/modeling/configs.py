"""Frozen configurations of every network, and the table of named models."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from napari_hrsam.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class HRSAMConfig:
    """HRSAM / HRSAM++ image encoder (hyper-parameters of arXiv 2407.02109).

    Attributes
    ----------
    patch_size, embed_dim, depth, num_heads, mlp_ratio
        Of the vision transformer.
    window_size : int
        Attention window in tokens.
    state_dim : int
        States N of the state-space blocks; 0 leaves these blocks out.
    num_cycles : int
        Passes R of the cycle scan.
    stage_ends : tuple of int
        Blocks whose output is fused; a state-space block runs before each.
    out_channels : int
        Channels of the embedding.
    pos_grid : int
        Side of the stored position map (resized to the token grid); 0 for none.
    drop_path : float
        Stochastic depth of the last block, rising linearly from 0.
    anchor_sizes : tuple of int
        Longer sides in pixels of the resized copies that HRSAM++ adds; empty for HRSAM.
    anchor_keep_aspect : bool
        Keep the aspect ratio of the copies (rounded up to the patch) instead of a square.
    shift_small : bool
        Shift maps that fit in one window too (released code: yes; the authors' later code: no).
    stem : {"linear", "conv"}
        Patch projection, or four stride-2 convolutions that also give stride-4 and stride-8 maps.
    stem_channels : tuple of int
        Channels of the convolutional stem at strides 2, 4 and 8.
    """

    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 16
    state_dim: int = 32
    num_cycles: int = 3
    stage_ends: tuple[int, ...] = (2, 5, 8, 11)
    out_channels: int = 256
    pos_grid: int = 14
    drop_path: float = 0.0
    anchor_sizes: tuple[int, ...] = ()
    anchor_keep_aspect: bool = False
    shift_small: bool = True
    stem: Literal["linear", "conv"] = "linear"
    stem_channels: tuple[int, int, int] = (24, 48, 96)

    def __post_init__(self) -> None:
        """Check the values."""
        if self.embed_dim % (4 * self.num_heads):
            raise ConfigError(
                f"embed_dim must be a multiple of 4 * num_heads = {4 * self.num_heads} for the "
                f"rotary embedding, got {self.embed_dim}"
            )
        if not self.stage_ends or max(self.stage_ends) >= self.depth or min(self.stage_ends) < 0:
            raise ConfigError(
                f"stage_ends must lie in 0..{self.depth - 1} (depth {self.depth}), "
                f"got {self.stage_ends}"
            )
        if self.stem not in ("linear", "conv"):
            raise ConfigError(f"stem must be 'linear' or 'conv', got {self.stem!r}")
        if self.stem == "conv" and self.patch_size != 16:
            raise ConfigError(f"the convolutional stem has stride 16, got patch {self.patch_size}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptDecoderConfig:
    """SAM's prompt encoder and mask decoder.

    Attributes
    ----------
    embed_dim : int
        Channels of tokens and image embedding.
    pe_grid : int
        Side of the grid at which the dense position code is computed before it is resized.
    mask_in_channels : int
        Width of the mask prompt's convolutions.
    num_multimask : int
        Masks besides the single one.
    depth, num_heads, mlp_dim
        Of the two-way transformer.
    iou_head_depth, iou_head_dim : int
        Layers and width of the head that predicts IoU.
    skip_channels : tuple of int or None
        Channels of the encoder's stride-8 and stride-4 maps added in the upscaling; None for SAM.
    dense_prompts : bool
        Let clicks, box and prior mask enter the upscaling at stride 4 as well. Needs
        ``skip_channels``. SAM's clicks reach the mask only through tokens; with little training
        data a correction is learned much faster when it is also drawn where it was made.
    """

    embed_dim: int = 256
    pe_grid: int = 64
    mask_in_channels: int = 16
    num_multimask: int = 3
    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    iou_head_depth: int = 3
    iou_head_dim: int = 256
    skip_channels: tuple[int, int] | None = None
    dense_prompts: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.embed_dim % 8 or self.embed_dim % (2 * self.num_heads):
            raise ConfigError(
                f"embed_dim must be a multiple of 8 and of 2 * num_heads, got {self.embed_dim} "
                f"with {self.num_heads} heads"
            )
        if self.dense_prompts and self.skip_channels is None:
            raise ConfigError("dense_prompts needs skip_channels (a convolutional stem)")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """A whole segmenter.

    Attributes
    ----------
    name : str
        Name in `MODELS`.
    description : str
        One line for lists.
    image_encoder, decoder
        Network configurations.
    pixel_mean, pixel_std : tuple of float
        Normalisation of 0..255 values in the order of ``channel_order``.
    channel_order : {"rgb", "bgr"}
        Channel order that the checkpoint was trained with.
    tile_px : int
        Side of the square the encoder sees at once, in level pixels.
    licence : str
        SPDX identifier of the weights.
    weights : str
        File name of shipped weights, empty if there are none.
    """

    name: str
    description: str
    image_encoder: HRSAMConfig
    decoder: PromptDecoderConfig
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channel_order: Literal["rgb", "bgr"] = "rgb"
    tile_px: int = 1024
    licence: str = ""
    weights: str = ""

    def __post_init__(self) -> None:
        """Check the values."""
        if self.tile_px % 16 or self.tile_px <= 0:
            raise ConfigError(f"tile_px must be a positive multiple of 16, got {self.tile_px}")
        if self.channel_order not in ("rgb", "bgr"):
            raise ConfigError(f"channel_order must be 'rgb' or 'bgr', got {self.channel_order!r}")
        if not all(math.isfinite(s) and s > 0 for s in self.pixel_std):
            raise ConfigError(f"pixel_std must be positive, got {self.pixel_std}")
        if self.image_encoder.out_channels != self.decoder.embed_dim:
            raise ConfigError(
                f"the encoder gives {self.image_encoder.out_channels} channels but the decoder "
                f"takes {self.decoder.embed_dim}"
            )


_TINY_STEM = (24, 48, 96)

HRSAM_TINY = ModelConfig(
    name="hrsam-tiny",
    description="HRSAM with 192 channels and a convolutional stem, for a laptop CPU",
    image_encoder=HRSAMConfig(
        embed_dim=192,
        num_heads=6,
        mlp_ratio=2.0,
        window_size=8,
        state_dim=8,
        out_channels=128,
        pos_grid=0,
        stem="conv",
        stem_channels=_TINY_STEM,
    ),
    decoder=PromptDecoderConfig(
        embed_dim=128,
        num_heads=4,
        mlp_dim=512,
        iou_head_dim=128,
        skip_channels=(_TINY_STEM[2], _TINY_STEM[1]),
        dense_prompts=True,
    ),
    tile_px=512,
    licence="BSD-3-Clause",
    weights="hrsam-tiny.safetensors",
)

HRSAM_B = ModelConfig(
    name="hrsam-b",
    description="HRSAM ViT-B of the paper, for the authors' checkpoints",
    image_encoder=HRSAMConfig(),
    decoder=PromptDecoderConfig(),
    channel_order="bgr",
)

MODELS: dict[str, ModelConfig] = {config.name: config for config in (HRSAM_TINY, HRSAM_B)}
