"""Find and load models: by name, or from a weight file of this project or of the authors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from napari_hrsam.errors import CheckpointError, ConfigError, WeightsNotFoundError
from napari_hrsam.modeling.attention import ATTENTION_BACKENDS, AttentionBackend
from napari_hrsam.modeling.configs import SCAN_BACKENDS, Precision, ScanBackend
from napari_hrsam.modeling.devices import choose_device, choose_precision
from napari_hrsam.modeling.download import Progress
from napari_hrsam.modeling.layouts import Layout, expected_state, part_of, recognise, renamed
from napari_hrsam.modeling.models import (
    MODELS,
    SAM_H_FOCUS,
    ChannelOrder,
    ModelConfig,
    find_config,
    split_name,
    with_focus,
)
from napari_hrsam.modeling.own_models import find_own, own_models
from napari_hrsam.modeling.registry import locate, require_weights
from napari_hrsam.modeling.saving import base_fingerprint
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.weight_files import check_finite, check_state, open_weight_file

logger = logging.getLogger(__name__)


def load_model(
    model: str | Path,
    *,
    device: str = "auto",
    precision: Precision = "auto",
    attention: AttentionBackend = "auto",
    scan: ScanBackend = "auto",
    focus: str | Path | None = None,
    tile_px: int | None = None,
    channel_order: ChannelOrder | None = None,
    download: bool = False,
    progress: Progress | None = None,
) -> Segmenter:
    """Load a model for use.

    Parameters
    ----------
    model : str or Path
        Name from `list_models`, or a weight file: of this project (.safetensors), or as the
        authors of HRSAM, FocSAM, SAM, MobileSAM or BA-SAM give it (.pth, .pt), told by its content.
    device : str
        "auto" (CUDA, then Apple's MPS, then CPU) or a torch device.
    precision : {"auto", "float32", "bfloat16"}
        Arithmetic of the encoder. "auto" is bfloat16 where it is native: on CUDA, and for our own
        small models on a CPU too; else float32.
    attention : {"auto", "xformers", "triton", "sdpa", "reference"}
    scan : {"auto", "mamba", "triton", "torch", "numba", "reference"}
    focus : str or Path, optional
        Weights of a focus refiner: a file of `save_refiner`, or FocSAM's. Makes a ``+focus`` model
        of any model whose embedding fits.
    tile_px : int, optional
        Side of the tiles in place of the model's own, a multiple of 16.
    channel_order : {"rgb", "bgr"}, optional
        Order the weights were trained with, in place of what is known of the file.
    download : bool
        Fetch the weights of a named model if they are not here and can be had.
    progress : callable, optional
        Of the download: bytes there, bytes in all.

    Returns
    -------
    Segmenter
        In eval mode, without gradients.

    Raises
    ------
    WeightsNotFoundError
        If there is no such file, or no weights for this name on this machine.
    CheckpointError
        If the file is truncated, corrupt, unsafe or of another model.
    DownloadError
        If the weights cannot be fetched.
    ConfigError
        If an option is unknown or the device is not there.
    """
    if attention not in ATTENTION_BACKENDS:
        raise ConfigError(
            f"attention must be one of {', '.join(ATTENTION_BACKENDS)}, got {attention!r}"
        )
    if scan not in SCAN_BACKENDS:
        raise ConfigError(f"scan must be one of {', '.join(SCAN_BACKENDS)}, got {scan!r}")
    chosen = choose_device(device)
    find = partial(require_weights, download=download, progress=progress)
    config, sources = _resolve(model, Path(focus) if focus else None, find)
    config = replace(
        config,
        tile_px=config.tile_px if tile_px is None else tile_px,
        channel_order=channel_order or config.channel_order,
    )
    segmenter = Segmenter(config)
    _fill(segmenter, sources)
    segmenter.set_backends(attention, scan)
    is_ours = config.decoder.skip_channels is not None
    segmenter.precision = choose_precision(precision, chosen, on_cpu=is_ours)
    if chosen.type == "cpu" and is_ours:
        lay_out_for_cpu(segmenter)
    return segmenter.to(chosen).eval().requires_grad_(False)


def lay_out_for_cpu(segmenter: Segmenter) -> None:
    """Put the weights of convolutions into the order in which those of few channels are fastest.

    They are then not turned over at every call; the numbers stay the same.
    """
    segmenter.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@dataclass(frozen=True, kw_only=True, slots=True)
class _Source:
    """A recognised file with its tensors under our names."""

    path: Path
    layout: Layout
    metadata: Mapping[str, str]
    state: Mapping[str, Tensor]


def _open(path: Path) -> _Source:
    file = open_weight_file(path)
    layout = recognise(file.shapes, file.metadata, str(path))
    state = renamed(layout, file.tensors)
    return _Source(path=path, layout=layout, metadata=file.metadata, state=state)


def _resolve(
    model: str | Path, focus: Path | None, find: Callable[[ModelConfig], Path]
) -> tuple[ModelConfig, list[_Source]]:
    """Decide on the configuration, and on the files to fill it from, later ones on top."""
    config, problem = _by_name(model)
    if config is None:
        own = find_own(model) if isinstance(model, str) else None
        path = own.path if own else Path(model)
        if not path.is_file():
            raise WeightsNotFoundError(
                f"{str(model)!r} is neither a model name ({problem}) nor a weight file"
            )
        base = _open(path)
        config = replace(_segmenter_config(base), own_name=own.name if own else "")
        if focus:
            return with_focus(config), [base, _open(focus)]
        if "image_encoder" in base.layout.parts:
            return config, [base]
        return config, [_open(find(_base_config(config))), base]  # FocSAM without its encoder
    if focus:
        config = with_focus(config)
    if config.focus is None:
        base = _open(find(config))
        return _with_settings(config, base), [base]
    return _resolve_focus(config, focus, find)


def _resolve_focus(
    config: ModelConfig, focus: Path | None, find: Callable[[ModelConfig], Path]
) -> tuple[ModelConfig, list[_Source]]:
    """Find a named ``+focus`` model: one whole file, or a model and a refiner."""
    located = locate(config)
    if focus is None and located.model and not located.lacks_refiner and not located.refiner:
        base = _open(located.model)
        return _with_settings(config, base), [base]
    refiner_path = focus or located.refiner
    if refiner_path is None:
        raise WeightsNotFoundError(
            f"there is no focus refiner for {config.name!r} on this machine; "
            f"{located.how_to_get}, or give load_model its file as focus=PATH"
        )
    refiner = _open(refiner_path)
    if "image_encoder" in refiner.layout.parts:
        return _with_settings(config, refiner), [refiner]
    base = _open(find(_base_config(config)))
    return _with_settings(config, base), [base, refiner]


def _by_name(model: str | Path) -> tuple[ModelConfig | None, str]:
    if isinstance(model, Path):
        return None, ", ".join(MODELS)
    try:
        return find_config(model), ""
    except ConfigError as error:
        yours = ", ".join(own.name for own in own_models())
        return None, f"{error}{f'; yours are {yours}' if yours else ''}"


def _base_config(config: ModelConfig) -> ModelConfig:
    """Drop ``+ba`` and ``+focus``; SAM's weights do for the first and for FocSAM's encoder."""
    return find_config(split_name(config.name)[0])


def _segmenter_config(source: _Source) -> ModelConfig:
    """Refuse files that hold no model one could click with."""
    config, parts = source.layout.config, source.layout.parts
    if config is None:
        raise CheckpointError(
            f"{source.path} holds initial weights for training ({source.layout.name}: a part of "
            "an image encoder, trained on other tasks), not a model that segments; expected a "
            "trained checkpoint. It can start a training: napari-hrsam train --init"
        )
    if parts == {"focus_refiner"}:
        raise CheckpointError(
            f"{source.path} holds a focus refiner alone, not a whole model; give it as "
            f"focus=PATH beside a model: load_model({_base_config(config).name!r}, focus=...)"
        )
    if "mask_decoder" not in parts:
        raise CheckpointError(
            f"{source.path} holds the encoder of {config.name!r} alone; expected a mask decoder "
            "too. It can start a training: napari-hrsam train --init"
        )
    return config


def _with_settings(config: ModelConfig, source: _Source) -> ModelConfig:
    """Take channel order and tile from a file of ours, where it speaks of the same model."""
    told = source.layout.config
    if told is None or "model" not in source.metadata:
        return config
    if told.name == config.name:
        return told
    # hrsam-b+focus is trained as hrsam-b was; FocSAM on SAM is not as SAM was.
    if (
        told.name == _base_config(config).name
        and _base_config(config).channel_order == config.channel_order
    ):
        return replace(config, channel_order=told.channel_order)
    return config


def _fill(model: Segmenter, sources: list[_Source]) -> None:
    """Load the sources, later ones on top, strictly."""
    state: dict[str, Tensor] = {}
    for source in sources:
        state.update(_wanted(source, model.config, on_top=source is not sources[0]))
    named = " with ".join(str(source.path) for source in sources)
    check_state(state, expected_state(model.config), named, model.name)
    model.load_state_dict(state)
    if len(sources) > 1:
        _check_refiner_belongs(model, sources[-1])


def _wanted(source: _Source, config: ModelConfig, *, on_top: bool) -> dict[str, Tensor]:
    """Choose what a file put on top of another gives: its refiner, and FocSAM its decoder too."""
    if not on_top:
        return dict(source.state)
    if "focus_refiner" not in source.layout.parts:
        raise CheckpointError(
            f"{source.path} holds no focus refiner but {source.layout.model!r}; expected a file "
            "of save_refiner or of FocSAM"
        )
    # FocSAM fine-tuned SAM's decoder; its refiner was trained with that one.
    if config.name == SAM_H_FOCUS.name and source.layout.name == "focsam":
        return dict(source.state)
    return part_of(source.state, ["focus_refiner"])


def _check_refiner_belongs(model: Segmenter, refiner: _Source) -> None:
    """Warn of a refiner that was trained on other embeddings: it runs, but refines badly."""
    made_for = refiner.metadata.get("model") or refiner.layout.model
    trained_on = refiner.metadata.get("base")
    if made_for != model.name:
        logger.warning(
            "the focus refiner %s was trained for %s and is used with %s; it may spoil masks",
            refiner.path,
            made_for,
            model.name,
        )
    elif trained_on and trained_on != base_fingerprint(model):
        logger.warning(
            "the focus refiner %s was trained on other weights of %s than those loaded; it may "
            "spoil masks, train it again",
            refiner.path,
            model.name,
        )


def read_state(path: Path) -> tuple[dict[str, Tensor], str]:
    """Read the tensors of a weight file of any known layout under our names, complete or not.

    Parameters
    ----------
    path : Path

    Returns
    -------
    state : dict of str to Tensor
    name : str
        Model it belongs to; ``"mae-pretrain"`` for initial weights that belong to none.

    Raises
    ------
    WeightsNotFoundError
        If the file is not there.
    CheckpointError
        If it is unreadable, of an unknown layout, or holds values that are not finite.
    """
    source = _open(path)
    check_finite(source.state, str(path))
    return dict(source.state), source.layout.model


def load_weights(model: Segmenter, path: Path) -> None:
    """Load a weight file of any known layout into a model, strictly.

    Parameters
    ----------
    model : Segmenter
        Changed only if every tensor fits.
    path : Path
        Values of other precisions are converted.

    Raises
    ------
    WeightsNotFoundError
        If the file is not there.
    CheckpointError
        If it is unreadable, or keys or shapes differ, or values are not finite.
    """
    _fill(model, [_open(path)])
