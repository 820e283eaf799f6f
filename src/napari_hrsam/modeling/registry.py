"""Named models: where their weights lie or come from, and what is known of them. Needs no torch."""

from __future__ import annotations

import importlib.resources
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from napari_hrsam.cache import cache_folder
from napari_hrsam.errors import WeightsNotFoundError
from napari_hrsam.modeling.models import MODELS, ChannelOrder, ModelConfig, find_config, split_name
from napari_hrsam.modeling.own_models import OwnModel, own_models, read_metadata

if TYPE_CHECKING:
    from napari_hrsam.modeling.download import Progress

WEIGHTS_VARIABLE = "NAPARI_HRSAM_WEIGHTS"
"""Environment variable with a folder that is searched before the shipped weights."""

Origin = Literal["shipped", "downloaded", "download", "authors", "yours"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RegistryEntry:
    """A file of weights: where it comes from, and what is known of it.

    Attributes
    ----------
    name : str
        Of the model.
    file : str
        File name.
    holds : {"model", "focus refiner"}
        The whole model, or its refiner alone: the rest is that of the model without ``+focus``.
    num_parameters : int
        Of the whole model.
    url : str
        Empty where nothing can be fetched by a program; then ``get`` says how to get it.
    sha256 : str
        64 hex digits; empty without a URL.
    num_bytes : int
        Size; 0 without a URL.
    licence : str
        As its authors name it.
    channel_order : {"rgb", "bgr"}
        Of the images it was trained on.
    trained_on : str
    get : str
        What to get, and from where; empty for weights that come with this project.
    """

    name: str
    file: str
    licence: str
    channel_order: Literal["rgb", "bgr"]
    num_parameters: int
    holds: Literal["model", "focus refiner"] = "model"
    url: str = ""
    sha256: str = ""
    num_bytes: int = 0
    trained_on: str = ""
    get: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """What is known about a named model.

    Attributes
    ----------
    name, description : str
    num_parameters : int
        0 if it is not known.
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
    source : {"shipped", "downloaded", "download", "authors", "yours"}
        Where weights come from: with this project (``weights`` is empty until they are); fetched
        before; to be fetched; from the authors' page, by hand; or from `fine_tune`.
    download_bytes : int
        What a download brings; 0 if there is none.
    site : str
        Host of the download; empty if there is none.
    """

    name: str
    description: str
    num_parameters: int = 0
    licence: str = ""
    weights: str = ""
    trained_on: str = ""
    tile_px: int = 1024
    channel_order: ChannelOrder = "rgb"
    source: Origin = "shipped"
    download_bytes: int = 0
    site: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Located:
    """Where the weights of a model are on this machine, and where they come from.

    Attributes
    ----------
    config : ModelConfig
    model : Path or None
        File of the whole model, or of the one that ``+focus`` is put on.
    refiner : Path or None
        File of the focus refiner alone; None too if ``model`` holds it.
    lacks_refiner : bool
        Whether a refiner is needed and is in neither.
    entry : RegistryEntry or None
        What is known of the model's weights.
    base_entry : RegistryEntry or None
        The same of the model that ``+ba`` or ``+focus`` is put on.
    """

    config: ModelConfig
    model: Path | None
    refiner: Path | None
    lacks_refiner: bool
    entry: RegistryEntry | None
    base_entry: RegistryEntry | None

    @property
    def how_to_get(self) -> str:
        """Say in half a sentence where the weights come from."""
        entry = self.entry or self.base_entry
        if entry is None or not (entry.url or entry.get):
            return "they come with a release of napari-hrsam or from `napari-hrsam train`"
        if not entry.url:
            return f"they come from their authors. {entry.get}"
        return (
            f"fetch them ({entry.num_bytes / 1e6:.0f} MB) with `napari-hrsam models --download "
            f"{entry.name}` or load_model({self.config.name!r}, download=True)"
        )


def locate(config: ModelConfig) -> Located:
    """Look for the weights of a model.

    Looked for, in each of `weight_folders`: the whole model as ``NAME.safetensors`` (what
    ``napari-hrsam convert`` writes), the shipped or downloaded file; then those of the model that
    ``+ba`` or ``+focus`` is put on.

    Parameters
    ----------
    config : ModelConfig

    Returns
    -------
    Located
    """
    registry = load_registry()
    base_name, _ = split_name(config.name)
    entry, base_entry = registry.get(config.name), registry.get(base_name)
    names = []
    for name, known in ((config.name, entry), (base_name, base_entry)):
        names.append(f"{name}.safetensors")
        names += [known.file] if known and known.holds == "model" else []
    model, refiner = _first_of(names), None
    lacks_refiner = config.focus is not None and (model is None or model.stem != config.name)
    if lacks_refiner and entry and entry.holds == "focus refiner":
        refiner = _first_of([entry.file])
    return Located(
        config=config,
        model=model,
        refiner=refiner,
        lacks_refiner=lacks_refiner and refiner is None,
        entry=entry,
        base_entry=base_entry,
    )


def require_weights(
    config: ModelConfig, *, download: bool = False, progress: Progress | None = None
) -> Path:
    """Find the file with the encoder and decoder of a model, or fetch it.

    Parameters
    ----------
    config : ModelConfig
    download : bool
        Fetch what is not here and can be had.
    progress : callable, optional
        Of the download: bytes there, bytes in all.

    Raises
    ------
    WeightsNotFoundError
        If there is none, saying how to get it.
    DownloadError, CheckpointError
        As `download.fetch`.
    """
    located = locate(config)
    if located.model is not None:
        return located.model
    entry = located.base_entry
    if download and entry is not None and entry.url:
        # Here, as what fetches takes long to import.
        from napari_hrsam.modeling.download import fetch

        return fetch(entry, progress=progress)
    raise WeightsNotFoundError(
        f"there are no weights for {config.name!r} on this machine; {located.how_to_get}, or "
        f"give load_model the path of a weight file, or put one into the folder named by "
        f"{WEIGHTS_VARIABLE}"
    )


def list_models() -> list[ModelInfo]:
    """List the models by name, with size, licence, and where their weights are; yours last."""
    named = [_info(locate(config)) for config in MODELS.values()]
    return [*named, *map(_own_info, own_models())]


def _own_info(own: OwnModel) -> ModelInfo:
    config = find_config(own.network)
    known = load_registry().get(own.network) or load_registry().get(split_name(own.network)[0])
    return ModelInfo(
        name=own.name,
        description=f"{own.base}, fine-tuned by you",
        num_parameters=known.num_parameters if known else 0,
        licence=known.licence if known else "",
        weights=str(own.path),
        trained_on=own.trained_on,
        tile_px=own.tile_px or config.tile_px,
        channel_order=config.channel_order,
        source="yours",
    )


def _info(located: Located) -> ModelInfo:
    config, weights = located.config, None if located.lacks_refiner else located.model
    known = located.entry or located.base_entry
    is_fetched = known is not None and bool(known.url)
    source: Origin = "shipped"
    if is_fetched:
        source = "downloaded" if weights else "download"
    elif known is not None and known.get:
        source = "authors"
    told = _trained_on(located.refiner or weights) if weights else ""
    return ModelInfo(
        name=config.name,
        description=config.description,
        num_parameters=known.num_parameters if known else 0,
        licence=known.licence if known else "",
        weights=str(weights or ""),
        trained_on=told or (known.trained_on if known else ""),
        tile_px=config.tile_px,
        channel_order=config.channel_order,
        source=source,
        download_bytes=known.num_bytes if known else 0,
        site=(urlsplit(known.url).hostname or "") if known else "",
    )


def _trained_on(path: Path | None) -> str:
    if path is None or path.suffix != ".safetensors":
        return ""
    # One damaged file is no reason to list nothing; loading the model tells what is wrong.
    return (read_metadata(path) or {}).get("trained_on", "")


def load_registry() -> dict[str, RegistryEntry]:
    """Read ``weights/registry.json``, by name."""
    path = next(f for f in shipped_folders() if (f / "registry.json").is_file()) / "registry.json"
    return dict(_read_registry(path, path.stat().st_mtime_ns))


@cache
def _read_registry(path: Path, _modified_ns: int) -> dict[str, RegistryEntry]:
    listed = json.loads(path.read_text(encoding="utf-8"))["weights"]
    return {item["name"]: RegistryEntry(**item) for item in listed}


def shipped_folders() -> list[Path]:
    """Where shipped weights may lie: inside the package of a wheel, beside src/ in a checkout."""
    package = Path(str(importlib.resources.files("napari_hrsam")))
    return [package / "weights", package.parent.parent / "weights"]


def weight_folders() -> list[Path]:
    """Folders in the order of the search: `WEIGHTS_VARIABLE`, shipped, downloaded."""
    chosen = os.environ.get(WEIGHTS_VARIABLE)
    return [*([Path(chosen)] if chosen else []), *shipped_folders(), cache_folder()]


def _first_of(names: Sequence[str]) -> Path | None:
    paths = [folder / name for folder in weight_folders() for name in names]
    return next((path for path in paths if path.is_file()), None)
