"""The list of models, and where the weights of each are found or come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from napari_hrsam.errors import WeightsNotFoundError
from napari_hrsam.modeling.download import (
    WEIGHTS_VARIABLE,
    Progress,
    RegistryEntry,
    fetch,
    load_registry,
    weight_folders,
)
from napari_hrsam.modeling.models import MODELS, ChannelOrder, ModelConfig, find_config
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.weight_files import read_metadata

Origin = Literal["shipped", "downloaded", "download", "authors"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What is known about a named model.

    Attributes
    ----------
    name, description : str
    num_parameters : int
    licence : str
        Of the weights: SPDX identifier, or where to read it.
    weights : str
        Path of the weights found, empty if not all that is needed is on this machine.
    trained_on : str
        From the weight file, or as the authors tell; empty if neither is there.
    tile_px : int
        Side of the square the encoder sees at once.
    channel_order : {"rgb", "bgr"}
        Of the images it was trained on; images are given to it in RGB all the same.
    source : {"shipped", "downloaded", "download", "authors"}
        Where weights come from: with this project (``weights`` is empty until they are); fetched
        before; to be fetched; or from the authors' page, by hand.
    download_bytes : int
        What a download brings; 0 if there is none.
    """

    name: str
    description: str
    num_parameters: int
    licence: str
    weights: str
    trained_on: str
    tile_px: int
    channel_order: ChannelOrder
    source: Origin
    download_bytes: int


def list_models() -> list[ModelInfo]:
    """List the models by name, with size, licence, and where their weights are."""
    registry = load_registry()
    return [_info(config, _entry(config, registry)) for config in MODELS.values()]


def _info(config: ModelConfig, entry: RegistryEntry | None) -> ModelInfo:
    path = find_weights(config)
    last = path  # the file that tells of the training
    if config.focus and path and path.stem != config.name:
        last = find_refiner(config)
        path = path if last else None
    source: Origin = "shipped"
    if entry:
        source = ("downloaded" if path else "download") if entry.url else "authors"
    seen = read_metadata(last).get("trained_on", "") if path and last else ""
    return ModelInfo(
        name=config.name,
        description=config.description,
        num_parameters=_num_parameters(config),
        licence=config.licence or (entry.licence if entry else ""),
        weights=str(path) if path else "",
        trained_on=seen or (entry.trained_on if entry else ""),
        tile_px=config.tile_px,
        channel_order=config.channel_order,
        source=source,
        download_bytes=entry.num_bytes if entry else 0,
    )


@lru_cache(maxsize=64)
def _num_parameters(config: ModelConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in Segmenter(config).parameters())


def find_weights(config: ModelConfig) -> Path | None:
    """Find the file that holds the encoder of a named model.

    Looked for, in each of `weight_folders`: the whole model as ``NAME.safetensors`` (what
    ``napari-hrsam convert`` writes), the shipped file, the downloaded one; then those of the model
    that ``+ba`` or ``+focus`` is put on.

    Returns
    -------
    Path or None
    """
    names = [f"{config.name}.safetensors", config.weights]
    base = base_config(config)
    for each in (config, base):
        entry = _entry(each, load_registry())
        names += [f"{each.name}.safetensors", entry.file if entry and entry.url else ""]
    return _first_of(names)


def find_refiner(config: ModelConfig) -> Path | None:
    """Find the shipped refiner of a ``+focus`` model.

    Returns
    -------
    Path or None
    """
    return _first_of([config.focus_weights])


def _first_of(names: list[str]) -> Path | None:
    for folder in weight_folders():
        for name in names:
            if name and (folder / name).is_file():
                return folder / name
    return None


def base_config(config: ModelConfig) -> ModelConfig:
    """Drop ``+ba`` and ``+focus``; SAM's weights do for the first and for FocSAM's encoder."""
    name = config.name
    while name.endswith(("+ba", "+focus")):
        name = name.rpartition("+")[0]
    return find_config(name) if name != config.name else config


def _entry(config: ModelConfig, registry: Mapping[str, RegistryEntry]) -> RegistryEntry | None:
    return registry.get(config.download or config.name)


def found_weights(config: ModelConfig) -> Path:
    """Like `find_weights`, but must find.

    Raises
    ------
    WeightsNotFoundError
        Saying how to get them.
    """
    path = find_weights(config)
    if path is None:
        raise WeightsNotFoundError(
            f"there are no weights for {config.name!r} on this machine; {how_to_get(config)}, or "
            f"give load_model the path of a weight file, or put one into the folder named by "
            f"{WEIGHTS_VARIABLE}"
        )
    return path


def found_or_fetched(config: ModelConfig, *, progress: Progress | None = None) -> Path:
    """Like `found_weights`, and fetch what is not here and can be had.

    Raises
    ------
    WeightsNotFoundError
        If it cannot be had by a program.
    DownloadError, CheckpointError
        As `download.fetch`.
    """
    path = find_weights(config)
    entry = _entry(base_config(config), load_registry())
    if path is None and entry is not None and entry.url:
        return fetch(entry, progress=progress)
    return path or found_weights(config)


def how_to_get(config: ModelConfig) -> str:
    """Say in half a sentence where the weights of a model come from."""
    registry = load_registry()
    entry = _entry(config, registry) or _entry(base_config(config), registry)
    if entry is None:
        return "they come with a release of napari-hrsam or from `napari-hrsam train`"
    if not entry.url:
        return f"they come from their authors. {entry.get}"
    return (
        f"fetch them ({entry.num_bytes / 1e6:.0f} MB) with `napari-hrsam models --download "
        f"{entry.name}` or load_model({config.name!r}, download=True)"
    )
