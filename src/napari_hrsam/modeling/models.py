"""The table of named models."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.configs import (
    STEM_CHANNELS,
    STEM_PIXEL_MEAN,
    STEM_PIXEL_STD,
    BASAMConfig,
    EncoderConfig,
    FocusConfig,
    HRSAMConfig,
    PromptDecoderConfig,
    TinyViTConfig,
    ViTConfig,
)

ChannelOrder = Literal["rgb", "bgr"]


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
    dense_head : bool
        Whether it predicts maps of all objects at once too, see `dense_head.DenseHead`.
    focus : FocusConfig or None
        Refiner that rewrites the embedding of an object at its second click.
    pixel_mean, pixel_std : tuple of float
        Normalisation of 0..255 values in the order of ``channel_order``.
    channel_order : {"rgb", "bgr"}
        Channel order that the checkpoint was trained with.
    tile_px : int
        Side of the square the encoder sees at once, in level pixels.
    own_name : str
        What the user calls these weights of the model; empty but for `own_models`.
    """

    name: str
    description: str
    image_encoder: EncoderConfig
    decoder: PromptDecoderConfig
    dense_head: bool = False
    focus: FocusConfig | None = None
    pixel_mean: tuple[float, float, float] = (123.675, 116.28, 103.53)
    pixel_std: tuple[float, float, float] = (58.395, 57.12, 57.375)
    channel_order: ChannelOrder = "rgb"
    tile_px: int = 1024
    own_name: str = ""

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
        encoder, skips = self.image_encoder, self.decoder.skip_channels
        has_stem = not isinstance(encoder, TinyViTConfig) and encoder.stem != "linear"
        stem_channels = (STEM_CHANNELS[8], STEM_CHANNELS[4]) if has_stem else None
        if skips is not None and skips != stem_channels:
            raise ConfigError(
                f"skip_channels must be the channels of the encoder's stride-8 and stride-4 maps, "
                f"{stem_channels}, or None, got {skips}"
            )
        if self.focus is not None and self.focus.embed_dim != self.decoder.embed_dim:
            raise ConfigError(
                f"the encoder gives {self.decoder.embed_dim} channels but the focus refiner "
                f"takes {self.focus.embed_dim}"
            )


_TINY_ENCODER = HRSAMConfig(
    embed_dim=192,
    depth=6,
    num_heads=6,
    mlp_ratio=2.0,
    window_size=8,
    state_dim=8,
    stage_ends=(2, 5),
    out_channels=128,
    pos_grid=0,
    stem="efficientnet-lite0",
)

HRSAM_TINY = ModelConfig(
    name="hrsam-tiny",
    description="HRSAM with 192 channels behind a pretrained stem, for a laptop CPU",
    image_encoder=_TINY_ENCODER,
    decoder=PromptDecoderConfig(
        embed_dim=128,
        pe_grid=32,
        num_heads=4,
        mlp_dim=512,
        iou_head_dim=128,
        skip_channels=(STEM_CHANNELS[8], STEM_CHANNELS[4]),
    ),
    dense_head=True,
    pixel_mean=STEM_PIXEL_MEAN,
    pixel_std=STEM_PIXEL_STD,
    tile_px=512,
)

HRSAM_PLUSPLUS_TINY = replace(
    HRSAM_TINY,
    name="hrsam++-tiny",
    description="hrsam-tiny with an anchor map: the whole tile at 128 px beside it",
    image_encoder=replace(_TINY_ENCODER, anchor_sizes=(128,)),
)

HRSAM_TINY_FOCUS = replace(
    HRSAM_TINY,
    name="hrsam-tiny+focus",
    description="hrsam-tiny with a focus refiner at the second click",
    focus=FocusConfig(embed_dim=128, depth=4, num_heads=4, mlp_ratio=2.0, window_size=8),
)


def _tiny_design(name: str, *, depth: int, stem_stride: int) -> ModelConfig:
    """Make hrsam-tiny with more or fewer blocks, and with another end of the stem."""
    encoder = replace(
        _TINY_ENCODER, depth=depth, stage_ends=tuple(range(2, depth, 3)), stem_stride=stem_stride
    )
    return replace(
        HRSAM_TINY,
        name=name,
        description=f"hrsam-tiny with {depth} blocks and the stem to stride {stem_stride}",
        image_encoder=encoder,
    )


TINY_NO_TRUNK = _tiny_design("tiny-no-trunk", depth=0, stem_stride=16)
TINY_WIDE_STEM = _tiny_design("tiny-wide-stem", depth=6, stem_stride=32)
TINY_WIDE_STEM_NO_TRUNK = _tiny_design("tiny-wide-stem-no-trunk", depth=0, stem_stride=32)

SAM_TINY = ModelConfig(
    name="sam-tiny",
    description="small encoder with SAM's attention, global in every block, for comparisons",
    image_encoder=ViTConfig(
        embed_dim=192,
        num_heads=6,
        mlp_ratio=2.0,
        depth=6,
        global_blocks=tuple(range(6)),
        out_channels=128,
        pos_grid=16,
        stem="efficientnet-lite0",
    ),
    decoder=HRSAM_TINY.decoder,
    pixel_mean=STEM_PIXEL_MEAN,
    pixel_std=STEM_PIXEL_STD,
    tile_px=256,
)

HRSAM_B = ModelConfig(
    name="hrsam-b",
    description="HRSAM ViT-B of the paper, for the authors' checkpoints",
    image_encoder=HRSAMConfig(),
    decoder=PromptDecoderConfig(),
    channel_order="bgr",
)

HRSAM_PLUSPLUS_B = replace(
    HRSAM_B,
    name="hrsam++-b",
    description="HRSAM++ ViT-B of the paper, for the authors' checkpoints",
    image_encoder=HRSAMConfig(anchor_sizes=(512,)),
)

FLASH_SWIN_B = replace(
    HRSAM_B,
    name="flash-swin-b",
    description="windowed ViT-B without state space, from the HRSAM authors' later code",
    image_encoder=HRSAMConfig(state_dim=0, anchor_sizes=(256,), shift_small=False),
)

MOBILE_SAM = ModelConfig(
    name="mobile-sam",
    description="MobileSAM: SAM's decoder behind a small TinyViT",
    image_encoder=TinyViTConfig(),
    decoder=PromptDecoderConfig(),
)

SAM_B = ModelConfig(
    name="sam-b",
    description="Segment Anything ViT-B",
    image_encoder=ViTConfig(),
    decoder=PromptDecoderConfig(),
)

SAM_L = replace(
    SAM_B,
    name="sam-l",
    description="Segment Anything ViT-L",
    image_encoder=ViTConfig(embed_dim=1024, depth=24, num_heads=16, global_blocks=(5, 11, 17, 23)),
)

_VIT_H = ViTConfig(embed_dim=1280, depth=32, num_heads=16, global_blocks=(7, 15, 23, 31))

SAM_H = replace(
    SAM_B,
    name="sam-h",
    description="Segment Anything ViT-H",
    image_encoder=_VIT_H,
)

SAM_H_FOCUS = ModelConfig(
    name="sam-h+focus",
    description="FocSAM of the paper: SAM ViT-H with a focus refiner, for the authors' checkpoint",
    image_encoder=replace(_VIT_H, norm_eps=1e-5),
    decoder=PromptDecoderConfig(),
    focus=FocusConfig(),
    channel_order="bgr",
)


def with_ba(config: ModelConfig, tile_px: int = 2048) -> ModelConfig:
    """Give a SAM model BA-SAM's scaling factor, and tiles above the size it was trained on.

    Parameters
    ----------
    config : ModelConfig
        With a `ViTConfig` or `TinyViTConfig`.
    tile_px : int
        Side of the tiles.

    Raises
    ------
    ConfigError
        If the encoder is not SAM's.
    """
    if isinstance(config.image_encoder, HRSAMConfig):
        raise ConfigError(f"+ba is for SAM's encoders, got {config.name!r}; it needs no +ba")
    return replace(
        config,
        name=f"{config.name}+ba",
        description=f"{config.description}, with BA-SAM's scaling for larger tiles",
        image_encoder=replace(config.image_encoder, ba=BASAMConfig()),
        tile_px=tile_px,
    )


def with_focus(config: ModelConfig) -> ModelConfig:
    """Give a model a focus refiner: its own if it has one, else the published size.

    SAM ViT-H's is FocSAM, whose copy of the encoder differs in small things (see `SAM_H_FOCUS`).

    Parameters
    ----------
    config : ModelConfig
        Comes back as it is if it has a refiner.

    Raises
    ------
    ConfigError
        If the embedding does not have the channels that the refiner takes.
    """
    if config.focus is not None:
        return config
    name = f"{config.name}+focus"
    if name == SAM_H_FOCUS.name:
        return SAM_H_FOCUS
    own = MODELS.get(name)
    description = f"{config.description}, with a focus refiner at the second click"
    return replace(
        config,
        name=name,
        description=own.description if own else description,
        focus=own.focus if own else FocusConfig(),
    )


_OPTIONS = {"ba": with_ba, "focus": with_focus}


def split_name(name: str) -> tuple[str, tuple[str, ...]]:
    """Split a model's name into that of its base and the options behind it.

    Parameters
    ----------
    name : str
        ``BASE``, or ``BASE+OPTION`` with one or more of the options "ba" and "focus".

    Returns
    -------
    base : str
    options : tuple of str
    """
    base, _, option = name.rpartition("+")
    if not base or option not in _OPTIONS:
        return name, ()
    base, options = split_name(base)
    return base, (*options, option)


MODELS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        HRSAM_TINY,
        HRSAM_PLUSPLUS_TINY,
        HRSAM_TINY_FOCUS,
        HRSAM_B,
        HRSAM_PLUSPLUS_B,
        MOBILE_SAM,
        SAM_B,
        SAM_L,
        SAM_H,
        SAM_H_FOCUS,
        *(with_ba(config) for config in (MOBILE_SAM, SAM_B, SAM_L, SAM_H)),
    )
}

COMPARISONS: dict[str, ModelConfig] = {
    config.name: config
    for config in (
        SAM_TINY,
        TINY_NO_TRUNK,
        TINY_WIDE_STEM,
        TINY_WIDE_STEM_NO_TRUNK,
        FLASH_SWIN_B,
    )
}
"""Networks that are trained for a comparison in ``benchmarks/``, or known as the encoder of some
checkpoints only; not offered to users."""


def find_config(name: str) -> ModelConfig:
    """Find a named model; ``+focus`` and ``+ba`` behind other names are put together.

    Parameters
    ----------
    name : str
        Of `MODELS` or `COMPARISONS`, or such a name with ``+ba`` (SAM's encoders) or ``+focus``
        (encoders with 256 channels, for a refiner of one's own) behind it.

    Raises
    ------
    ConfigError
        If there is no such model.
    """
    known = {**MODELS, **COMPARISONS}
    base, options = split_name(name)
    if base not in known or len(set(options)) < len(options):
        raise ConfigError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    if name in known:
        return known[name]
    config = known[base]
    for option in options:
        config = _OPTIONS[option](config)
    return config
