"""Models of the user's own: weight files in a folder, each loaded by its name. Needs no torch."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from napari_hrsam.cache import models_folder
from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.models import COMPARISONS, MODELS, find_config

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
MAX_NAME = 64
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_FILE_ENDINGS = (SUFFIX, ".pth", ".pt")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Windows has no files of these names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OwnModel:
    """A model of the user's own.

    Attributes
    ----------
    name : str
        The file's name without its suffix.
    path : Path
    network : str
        Name of the model whose network it is, in `models.MODELS`.
    base : str
        What it was made from: a named model, or another own one.
    trained_on : str
    tile_px : int
        0 if the file does not tell it.
    """

    name: str
    path: Path
    network: str
    base: str
    trained_on: str
    tile_px: int


def own_models() -> list[OwnModel]:
    """List the models in `cache.models_folder` by name.

    Files that cannot be read, belong to no known network, or have the name of a known model are
    left out.
    """
    folder = models_folder()
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    except OSError:
        # Most users have none.
        return []
    found = (_read(path) for path in paths if not path.name.startswith("."))
    return [own for own in found if own is not None]


def find_own(name: str) -> OwnModel | None:
    """Find an own model by name; None if there is none."""
    return next((own for own in own_models() if own.name == name), None)


def own_model_path(name: str, *, overwrite: bool = False) -> Path:
    """Return the file in which a model of this name is to be kept.

    Parameters
    ----------
    name : str
        Letters, digits, and inside it ``.``, ``_`` and ``-``; at most `MAX_NAME`.
    overwrite : bool
        Whether an own model of this name may be replaced.

    Raises
    ------
    ConfigError
        If the name is unusable, that of a known model, or taken.
    """
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME or _RESERVED.fullmatch(name):
        raise ConfigError(
            f"expected a name of at most {MAX_NAME} letters, digits, '.', '_' and '-' for the "
            f"model, got {name!r}; call it e.g. 'my-cells'"
        )
    if name.lower().endswith(_FILE_ENDINGS):
        raise ConfigError(
            f"expected the name of a model, got {name!r}, which looks like a file; leave the "
            "suffix out"
        )
    if _is_known(name):
        raise ConfigError(
            f"expected a name of your own for the model, got {name!r}, which is that of a known "
            "model; call it e.g. 'my-cells'"
        )
    # Some disks do not tell capital letters from small ones.
    taken = {own.name.lower() for own in own_models()}
    path = models_folder() / f"{name}{SUFFIX}"
    if not overwrite and (name.lower() in taken or path.exists()):
        raise ConfigError(
            f"there is a model {name!r} already in {models_folder()}; choose another name, or "
            "allow to overwrite it (overwrite=True, --overwrite)"
        )
    return path


def read_metadata(path: Path) -> Mapping[str, str] | None:
    """Read the metadata of a safetensors file; None if it cannot be read."""
    try:
        with safe_open(path, framework="numpy") as stored:
            return dict(stored.metadata() or {})
    except (SafetensorError, OSError) as error:
        logger.info("%s cannot be read: %s", path, error)
        return None


def _is_known(name: str) -> bool:
    return name.lower() in {known.lower() for known in (*MODELS, *COMPARISONS)}


def _read(path: Path) -> OwnModel | None:
    told = read_metadata(path)
    if told is None or _is_known(path.stem):
        return None
    try:
        network = find_config(told.get("model", "")).name
    except ConfigError as error:
        logger.info("%s is no model known here: %s", path, error)
        return None
    tile_px = told.get("tile_px", "")
    return OwnModel(
        name=path.stem,
        path=path,
        network=network,
        base=told.get("base_model") or network,
        trained_on=told.get("trained_on", ""),
        tile_px=int(tile_px) if tile_px.isdecimal() else 0,
    )
