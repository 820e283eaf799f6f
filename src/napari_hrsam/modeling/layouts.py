"""Recognise whose weight file it is by the names and shapes in it, and rename its tensors.

=================  ==============================================  =================================
layout             told by                                         from
=================  ==============================================  =================================
napari-hrsam       ``model`` in the metadata                       this project
sam                ``image_encoder.blocks.*.attn.rel_pos_h``       Segment Anything, ViT-B / L / H
mobile-sam         ``image_encoder.patch_embed.seq.*``             MobileSAM
ba-sam             either with ``attn.coefficient``                BA-SAM, fine-tuned
mmengine-sam       ``backbone.blocks.*.attn.rel_pos_h``            SAM in FocSAM's code
hrsam, hrsam++     ``backbone.mamba_blocks``, ``ms_mamba_blocks``  HRSAM's authors
flash-swin         ``backbone.blocks.*.attn.padding`` only         their later encoder without SSM
focsam             ``refine_head.*``, with or without the encoder  FocSAM's authors
mae-pretrain       plain ViT blocks                                initial weights of HRSAM
efficientnet-lite0 ``image_encoder.stem.net.*`` only               initial weights of our stem
=================  ==============================================  =================================

mmengine files (``backbone.``, ``neck.``, ``decode_head.``, ``refine_head.``) hold the same tensors
as SAM's under other prefixes. Their models were trained on BGR images (see `ModelConfig`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import MappingProxyType
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from napari_hrsam.errors import CheckpointError
from napari_hrsam.modeling.configs import BASAMConfig, HRSAMConfig, TinyViTConfig, ViTConfig
from napari_hrsam.modeling.models import (
    COMPARISONS,
    FLASH_SWIN_B,
    MODELS,
    ChannelOrder,
    ModelConfig,
    find_config,
    split_name,
    with_focus,
)
from napari_hrsam.modeling.segmenter import Segmenter

Part = Literal["image_encoder", "prompt_encoder", "mask_decoder", "dense_head", "focus_refiner"]
PARTS: tuple[Part, ...] = (
    "image_encoder",
    "prompt_encoder",
    "mask_decoder",
    "dense_head",
    "focus_refiner",
)
Shapes = Mapping[str, tuple[int, ...]]

MAE_PRETRAIN = "mae-pretrain"
PRETRAINED_STEM = "efficientnet-lite0"

# Ours <-> mmengine; inside the prompt encoder two modules have other names too.
_PREFIXES = {
    "image_encoder.": "backbone.",
    "prompt_encoder.": "neck.",
    "mask_decoder.": "decode_head.",
    "focus_refiner.": "refine_head.",
}
_PROMPT_NAMES = {
    "prompt_encoder.pe_layer.": "prompt_encoder.pos_embed_layer.",
    "prompt_encoder.point_embeddings.": "prompt_encoder.point_embeds.",
}

_UNUSED = re.compile(r"image_encoder\.(head|norm_head|norm|cls_token|mask_token|decoder_\w+)(\.|$)")
"""Classifier heads and MAE's own decoder: stored in some files, used by no segmenter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """What a weight file was found to be.

    Attributes
    ----------
    name : str
        Row of the module's table.
    config : ModelConfig or None
        The model it belongs to; None for `MAE_PRETRAIN`, which belongs to none.
    parts : frozenset of str
        Which of `PARTS` the file holds.
    names : mapping of str to str
        Name in the file to our name, for the tensors that are used.
    dropped : tuple of str
        Names in the file that nothing uses.
    """

    name: str
    config: ModelConfig | None
    parts: frozenset[str]
    names: Mapping[str, str]
    dropped: tuple[str, ...]

    @property
    def model(self) -> str:
        """Name of the model, or of the layout if it belongs to none."""
        return self.config.name if self.config else self.name


def recognise(
    shapes: Shapes, metadata: Mapping[str, str] | None = None, source: str = "the file"
) -> Layout:
    """Tell the layout of a file.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Names and shapes of its tensors.
    metadata : mapping of str to str, optional
        Of a safetensors file.
    source : str
        For messages.

    Raises
    ------
    CheckpointError
        If nothing of it is known, naming the nearest model.
    """
    metadata = metadata or {}
    ours = {key: our_name(key) for key in shapes}
    dropped = tuple(key for key, name in ours.items() if _UNUSED.match(name))
    names = {key: name for key, name in ours.items() if key not in dropped}
    found = {name: shapes[key] for key, name in names.items()}
    if len(found) < len(names):
        raise CheckpointError(
            f"{source} holds tensors twice, under names of two layouts; expected one of them"
        )
    parts = frozenset(name.partition(".")[0] for name in found) & set(PARTS)
    if metadata.get("model"):
        layout = "napari-hrsam"
        config: ModelConfig | None = _config_of_metadata(metadata, found, source)
    else:
        is_mmengine = any(key.startswith(tuple(_PREFIXES.values())) for key in shapes)
        layout, config = _recognise_names(found, parts, is_mmengine=is_mmengine)
        if not layout:
            raise CheckpointError(
                f"{source} is no weight file known here; {describe_nearest(found)}"
            )
    return Layout(name=layout, config=config, parts=parts, names=names, dropped=dropped)


def renamed(layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give the tensors of a file our names; what has a known value and was left out is added.

    Left out may be the count of batches a BatchNorm saw, and the position map in BA-SAM's
    fine-tuned files, whose code does not have one: zeros, which change nothing.
    """
    state = {name: tensors[key] for key, name in layout.names.items()}
    for name in [n for n in state if n.endswith(".bn.running_mean")]:
        counter = name.removesuffix("running_mean") + "num_batches_tracked"
        state.setdefault(counter, torch.zeros((), dtype=torch.int64))
    encoder = layout.config.image_encoder if layout.config else None
    if isinstance(encoder, ViTConfig) and encoder.ba and encoder.ba.coefficient:
        shape = (1, encoder.pos_grid, encoder.pos_grid, encoder.embed_dim)
        state.setdefault("image_encoder.pos_embed", torch.zeros(shape))
    return state


def our_name(key: str) -> str:
    """Our name of a tensor of any layout; unknown names come back as they are."""
    for ours, theirs in _PREFIXES.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
    for ours, theirs in _PROMPT_NAMES.items():
        if key.startswith(theirs):
            key = ours + key.removeprefix(theirs)
    if key.startswith(("blocks.", "patch_embed.", "pos_embed", "cls_token", "norm.", "decoder_")):
        return "image_encoder." + key  # an encoder saved alone
    return key


class _LeftEmpty(TorchFunctionMode):
    """Functions that fill a tensor in place do nothing."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        named = kwargs or {}
        if re.fullmatch(r"[a-z].*[^_]_", func.__name__):
            return args[0] if args else named["tensor"]
        return func(*args, **named)


@lru_cache(maxsize=32)
def expected_state(config: ModelConfig) -> Mapping[str, Tensor]:
    """Names, shapes and dtypes of a model's tensors, whose values are not filled in.

    Random numbers and arithmetic on the meta device are left out (some constants are made on the
    CPU instead): torch imports its compiler for them, which takes seconds, and with it Triton,
    whose copy of LLVM crashes a process in which software OpenGL (Mesa) has loaded another.
    """
    with torch.device("meta"), _LeftEmpty():
        return MappingProxyType(Segmenter(config).state_dict())


def part_of(state: Mapping[str, Tensor], parts: Iterable[str]) -> dict[str, Tensor]:
    """Select the tensors of some parts."""
    prefixes = tuple(f"{part}." for part in parts)
    return {key: value for key, value in state.items() if key.startswith(prefixes)}


def describe_nearest(found: Iterable[str]) -> str:
    """Say which model's names are nearest, and what differs first."""
    names = set(found)
    counts = {}
    for config in (*MODELS.values(), FLASH_SWIN_B):
        expected = expected_state(config).keys()
        counts[config.name] = len(names & expected) / len(names | expected)
    nearest = max(counts, key=lambda name: counts[name])
    expected = expected_state(find_config(nearest)).keys()
    both = len(names & expected)
    if not both:
        return f"none of its {len(names)} tensors has a name of a known model: {sorted(names)[:3]}"
    return (
        f"nearest is {nearest!r}: {both} of its {len(expected)} tensors are there, missing are "
        f"{sorted(expected - names)[:3]}, unknown are {sorted(names - expected)[:3]}"
    )


def _config_of_metadata(metadata: Mapping[str, str], found: Shapes, source: str) -> ModelConfig:
    """Rebuild the configuration of a file that this project wrote."""
    try:
        config = find_config(metadata["model"])
        config = _with_coefficient(config, found)
        if metadata.get("layout") == "mmengine-sam":
            config = _as_focsam_has_it(config)
        order = cast(ChannelOrder, metadata.get("channel_order", config.channel_order))
        tile_px = int(metadata.get("tile_px", config.tile_px))
        return replace(config, channel_order=order, tile_px=tile_px)
    except ValueError as error:  # ConfigError is one
        raise CheckpointError(
            f"{source}: its metadata cannot be used ({error}); expected what this version of "
            "napari-hrsam writes, convert the original again"
        ) from error


def _recognise_names(
    found: Shapes, parts: frozenset[str], *, is_mmengine: bool
) -> tuple[str, ModelConfig | None]:
    """Layout and model by names; an empty layout if they are not known."""
    if all(name.startswith("image_encoder.stem.net.") for name in found):
        return PRETRAINED_STEM, None
    layout, config = _recognise_encoder(found, is_mmengine=is_mmengine)
    if "focus_refiner" not in parts:
        return layout, config
    if "image_encoder" not in parts or layout == "mmengine-sam":
        is_whole = config is None or config.name == "sam-h"
        config = MODELS["sam-h+focus"] if is_whole else config
    if config is not None and config.focus is None:
        encoder, order = config.image_encoder, config.channel_order
        config = replace(with_focus(config), image_encoder=encoder, channel_order=order)
    return "focsam", config


def _recognise_encoder(found: Shapes, *, is_mmengine: bool) -> tuple[str, ModelConfig | None]:
    def has(pattern: str) -> bool:
        return any(re.match(r"image_encoder\." + pattern, name) for name in found)

    if has(r"patch_embed\.seq\."):
        config = _with_coefficient(MODELS["mobile-sam"], found)
        return ("ba-sam" if "ba" in split_name(config.name)[1] else "mobile-sam"), config
    if has(r"ms_mamba_blocks\."):
        return "hrsam++", _of_size(found, "hrsam++-b", "hrsam++-tiny")
    if has(r"mamba_blocks\."):
        return "hrsam", _of_size(found, "hrsam-b", "hrsam-tiny")
    if has(r"blocks\.\d+\.attn\.padding$"):
        return "flash-swin", FLASH_SWIN_B
    if has(r"blocks\.\d+\.attn\.rel_pos_h$"):
        config = _of_size(found, "sam-b", "sam-l", "sam-h", "sam-tiny")
        if has(r"blocks\.\d+\.attn\.coefficient$"):
            return "ba-sam", _with_coefficient(config, found)
        return ("mmengine-sam", _as_focsam_has_it(config)) if is_mmengine else ("sam", config)
    if has(r"blocks\.\d+\.attn\.qkv\.weight$"):
        return MAE_PRETRAIN, None
    return "", None


def _of_size(found: Shapes, *names: str) -> ModelConfig:
    """Choose among models of one kind by the width of the encoder; the first if none fits."""
    width = found.get("image_encoder.blocks.0.norm1.weight", (0,))[0]
    known = {**MODELS, **COMPARISONS}
    for name in names:
        encoder = known[name].image_encoder
        if not isinstance(encoder, TinyViTConfig) and encoder.embed_dim == width:
            return known[name]
    return known[names[0]]


def _with_coefficient(config: ModelConfig, found: Shapes) -> ModelConfig:
    """BA-SAM's fine-tuned files have one more scalar per attention layer."""
    encoder = config.image_encoder
    learned = any(name.endswith(".attn.coefficient") for name in found)
    if not learned or isinstance(encoder, HRSAMConfig):
        return config
    return replace(
        config,
        name=config.name if "ba" in split_name(config.name)[1] else f"{config.name}+ba",
        image_encoder=replace(encoder, ba=BASAMConfig(form="released", coefficient=True)),
    )


def _as_focsam_has_it(config: ModelConfig) -> ModelConfig:
    """FocSAM's copy of SAM: LayerNorm with eps 1e-5, and images in BGR."""
    encoder = config.image_encoder
    if not isinstance(encoder, ViTConfig):
        return config
    return replace(config, image_encoder=replace(encoder, norm_eps=1e-5), channel_order="bgr")
