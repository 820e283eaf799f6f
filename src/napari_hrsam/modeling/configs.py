"""Frozen configurations of every network."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from napari_hrsam.errors import ConfigError

Stem = Literal["linear", "efficientnet-lite0"]
STEMS: tuple[Stem, ...] = ("linear", "efficientnet-lite0")

Precision = Literal["auto", "float32", "bfloat16"]
PRECISIONS: tuple[Precision, ...] = ("auto", "float32", "bfloat16")

ScanBackend = Literal["auto", "mamba", "triton", "torch", "numba", "reference"]
SCAN_BACKENDS: tuple[ScanBackend, ...] = ("auto", "mamba", "triton", "torch", "numba", "reference")

OUTLINE_STRIDE = 4
"""The outline refiner takes images whose sides are multiples of it."""

DENSE_FEATURES = 32
"""Channels of the dense head before its three maps, see `dense_head.DenseHead`."""

STEM_CHANNELS: dict[int, int] = {4: 24, 8: 40, 16: 112, 32: 320}
"""Channels of the convolutional stem's maps by their stride in pixels."""

STEM_PIXEL_MEAN, STEM_PIXEL_STD = (127.0,) * 3, (128.0,) * 3
"""Normalisation of 0..255 RGB that the stem's ImageNet weights were trained with."""


def _check_stem(stem: str, stride: int, patch_size: int) -> None:
    if stem not in STEMS or stride not in (16, 32):
        raise ConfigError(
            f"stem must be one of {', '.join(STEMS)} and stem_stride 16 or 32, got {stem!r} and "
            f"{stride}"
        )
    if stem != "linear" and patch_size != 16:
        raise ConfigError(f"the convolutional stem has stride 16, got patch {patch_size}")


Size = int | tuple[int, int]
"""One number for a square, or height and width."""


def height_width(size: Size, name: str = "size") -> tuple[int, int]:
    """Height and width of a size.

    Parameters
    ----------
    size : int or pair of int
        Side of a square, or height and width.
    name : str
        What the error calls it.

    Raises
    ------
    ConfigError
        If it is neither a whole number above 0 nor two of them.
    """
    sides = tuple(size) if isinstance(size, (tuple, list)) else (size, size)
    if len(sides) != 2 or any(type(side) is not int or side < 1 for side in sides):
        raise ConfigError(
            f"{name} must be a whole number above 0 or two of them, height and width, got {size!r}"
        )
    return sides


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
        Blocks whose output is fused; a state-space block runs before each. Empty with depth 0:
        the embedding is then made of the stem's tokens alone.
    out_channels : int
        Channels of the embedding.
    pos_grid : int
        Side of the stored position map (resized to the token grid); 0 for none.
    drop_path : float
        Stochastic depth of the last block, rising linearly from 0.
    anchor_sizes : tuple of int or pair of int
        Sizes in pixels of the resized copies that HRSAM++ adds, each a number or (height, width);
        empty for HRSAM. What is left over at the right and bottom after whole patches is not seen
        by a patch projection, and fills a last cell of a convolutional stem.
    anchor_keep_aspect : bool
        Keep the aspect ratio of the copies (rounded up to the patch) instead of a square; the
        numbers are then the longer sides.
    shift_small : bool
        Shift maps that fit in one window too (released code: yes; the authors' later code: no).
    stem : {"linear", "efficientnet-lite0"}
        Patch projection, or pretrained convolutions that also give stride-4 and stride-8 maps.
    stem_stride : {16, 32}
        Where the convolutional stem ends. With 16 all wider context comes from the blocks; with
        32 the stem's stride-32 map joins the tokens.
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
    anchor_sizes: tuple[Size, ...] = ()
    anchor_keep_aspect: bool = False
    shift_small: bool = True
    stem: Stem = "linear"
    stem_stride: int = 16

    def __post_init__(self) -> None:
        """Check the values."""
        if self.embed_dim % (4 * self.num_heads):
            raise ConfigError(
                f"embed_dim must be a multiple of 4 * num_heads = {4 * self.num_heads} for the "
                f"rotary embedding, got {self.embed_dim}"
            )
        ends_fit = all(0 <= end < self.depth for end in self.stage_ends)
        if not ends_fit or bool(self.stage_ends) != bool(self.depth):
            raise ConfigError(
                f"stage_ends must lie in 0..{self.depth - 1} (depth {self.depth}), "
                f"got {self.stage_ends}; without blocks there are none"
            )
        if not self.depth and (self.stem == "linear" or self.anchor_sizes):
            raise ConfigError(
                "an encoder without blocks needs a convolutional stem and no anchor map, got "
                f"depth 0, the stem {self.stem!r} and the anchor maps {self.anchor_sizes}"
            )
        _check_stem(self.stem, self.stem_stride, self.patch_size)
        for size in self.anchor_sizes:
            if min(height_width(size, "an anchor size")) < self.patch_size:
                raise ConfigError(
                    f"an anchor size must be one patch ({self.patch_size} px) or more, got {size}"
                )
            if self.anchor_keep_aspect and not isinstance(size, int):
                raise ConfigError(
                    "with anchor_keep_aspect an anchor size is the longer side, one number, "
                    f"got {size}"
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class BASAMConfig:
    """BA-SAM's changes of a SAM encoder's attention (arXiv 2401.02317), three separate switches.

    Attributes
    ----------
    form : {"paper", "released"}
        Whose arithmetic: the paper's, with the real number of tokens and the bias in training and
        use alike, or that of the released code (see `modeling.length_scaling`).
    scale : bool
        New scaling factor: logits times log(M) / log(N), M tokens now, N in training.
    distance_slope : float
        Slope m0 of the bias-mode mask, a penalty growing with the query-key distance; 0 is off.
        The slope is our choice: the paper's could not be had.
    coefficient : bool
        A learned scalar per attention layer that multiplies the relative-position term, as in the
        released fine-tuned weights (key ``coefficient``).
    """

    form: Literal["paper", "released"] = "paper"
    scale: bool = True
    distance_slope: float = 0.0
    coefficient: bool = False

    def __post_init__(self) -> None:
        """Check the values."""
        if self.form not in ("paper", "released"):
            raise ConfigError(f"form must be 'paper' or 'released', got {self.form!r}")
        if not (math.isfinite(self.distance_slope) and self.distance_slope >= 0):
            raise ConfigError(
                f"distance_slope must be finite and 0 or more, got {self.distance_slope}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class ViTConfig:
    """SAM's ViT image encoder (arXiv 2304.02643); the defaults are ViT-B.

    Attributes
    ----------
    patch_size, embed_dim, depth, num_heads, mlp_ratio
        Of the vision transformer.
    window_size : int
        Attention window in tokens of the blocks that are not global.
    global_blocks : tuple of int
        Blocks that attend over the whole map.
    out_channels : int
        Channels of the embedding.
    pos_grid : int
        Side in tokens of the map it was trained on: of the stored position map, which is resized
        to other grids, and of the relative-position tables of the global blocks.
    norm_eps : float
        Of the LayerNorms in the blocks (SAM 1e-6; FocSAM's copy of the encoder 1e-5).
    stem : {"linear", "efficientnet-lite0"}
        SAM's patch projection, or pretrained convolutions as in `HRSAMConfig`.
    stem_stride : {16, 32}
        Where the convolutional stem ends.
    ba : BASAMConfig or None
        BA-SAM's changes of the attention.
    """

    patch_size: int = 16
    embed_dim: int = 768
    depth: int = 12
    num_heads: int = 12
    mlp_ratio: float = 4.0
    window_size: int = 14
    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    out_channels: int = 256
    pos_grid: int = 64
    norm_eps: float = 1e-6
    stem: Stem = "linear"
    stem_stride: int = 16
    ba: BASAMConfig | None = None

    def __post_init__(self) -> None:
        """Check the values."""
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"embed_dim must be a multiple of num_heads = {self.num_heads}, "
                f"got {self.embed_dim}"
            )
        if any(not 0 <= block < self.depth for block in self.global_blocks):
            raise ConfigError(
                f"global_blocks must lie in 0..{self.depth - 1} (depth {self.depth}), "
                f"got {self.global_blocks}"
            )
        _check_stem(self.stem, self.stem_stride, self.patch_size)


@dataclass(frozen=True, kw_only=True, slots=True)
class TinyViTConfig:
    """MobileSAM's TinyViT image encoder (arXiv 2306.14289); the defaults are its 5M variant.

    Attributes
    ----------
    embed_dims, depths, num_heads : tuple of int
        Of the four stages; the first is convolutional and its heads and window are not used.
    window_sizes : tuple of int or pair of int
        Windows of the stages in cells, each a side or (height, width).
    mlp_ratio : float
    mbconv_expand_ratio : float
        Inner channels of the first stage's blocks over their outer ones.
    local_conv_size : int
        Side of the depthwise convolution in every block with attention; odd.
    out_channels : int
        Channels of the embedding.
    ba : BASAMConfig or None
        BA-SAM's changes of the attention.
    """

    embed_dims: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    num_heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    window_sizes: tuple[Size, Size, Size, Size] = (7, 7, 14, 7)
    mlp_ratio: float = 4.0
    mbconv_expand_ratio: float = 4.0
    local_conv_size: int = 3
    out_channels: int = 256
    ba: BASAMConfig | None = None

    @property
    def patch_size(self) -> int:
        """Pixels of the image for one cell of the embedding."""
        return 16

    def __post_init__(self) -> None:
        """Check the values."""
        for dim, heads in zip(self.embed_dims[1:], self.num_heads[1:], strict=True):
            if dim % heads:
                raise ConfigError(f"every embed_dim must be a multiple of its heads, got {self}")
        for size in self.window_sizes:
            height_width(size, "a window size")
        if self.local_conv_size % 2 == 0:
            raise ConfigError(f"local_conv_size must be odd, got {self.local_conv_size}")


EncoderConfig = HRSAMConfig | ViTConfig | TinyViTConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class FocusConfig:
    """FocSAM's focus refiner (arXiv 2405.18706); the defaults are the released ones.

    Attributes
    ----------
    embed_dim : int
        Channels of embedding and mask token.
    depth, num_heads, mlp_ratio
        Of the refiner; even blocks are plain, odd ones shifted.
    window_size : int
        Window in cells of the embedding.
    box_expansion : float
        By how much the box around the prediction is enlarged before windows are selected.
    """

    embed_dim: int = 256
    depth: int = 12
    num_heads: int = 8
    mlp_ratio: float = 4.0
    window_size: int = 16
    box_expansion: float = 1.4

    def __post_init__(self) -> None:
        """Check the values."""
        if self.embed_dim % self.num_heads:
            raise ConfigError(
                f"embed_dim must be a multiple of num_heads = {self.num_heads}, "
                f"got {self.embed_dim}"
            )
        if self.box_expansion < 1:
            raise ConfigError(f"box_expansion must be 1 or more, got {self.box_expansion}")


@dataclass(frozen=True, kw_only=True, slots=True)
class PromptDecoderConfig:
    """SAM's prompt encoder and mask decoder.

    Attributes
    ----------
    embed_dim : int
        Channels of tokens and image embedding.
    pe_grid : int or pair of int
        Side, or height and width, of the grid at which the dense position code is computed before
        it is resized.
    mask_in_channels : int
        Width of the mask prompt's convolutions.
    num_multimask : int
        Masks besides the single one.
    depth, num_heads, mlp_dim
        Of the two-way transformer.
    iou_head_depth, iou_head_dim : int
        Layers and width of the head that predicts IoU.
    skip_channels : tuple of int or None
        Channels of the encoder's stride-8 and stride-4 maps; None is SAM's decoder. With them the
        prompts are also drawn into the embedding where they were made, the transformer's image
        tokens see their surroundings before the upscaling, and a fine path that reads the maps
        corrects the mask. (SAM's clicks reach the mask through tokens only; with little training
        data a correction is learned much faster when it is also drawn.)
    context_levels : int
        How often the image tokens are halved in size for their surroundings; 0 for none.
    """

    embed_dim: int = 256
    pe_grid: Size = 64
    mask_in_channels: int = 16
    num_multimask: int = 3
    depth: int = 2
    num_heads: int = 8
    mlp_dim: int = 2048
    iou_head_depth: int = 3
    iou_head_dim: int = 256
    skip_channels: tuple[int, int] | None = None
    context_levels: int = 2

    def __post_init__(self) -> None:
        """Check the values."""
        if self.embed_dim % 8 or self.embed_dim % (2 * self.num_heads):
            raise ConfigError(
                f"embed_dim must be a multiple of 8 and of 2 * num_heads, got {self.embed_dim} "
                f"with {self.num_heads} heads"
            )
        if self.context_levels < 0:
            raise ConfigError(f"context_levels must be 0 or more, got {self.context_levels}")
