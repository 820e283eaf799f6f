"""The named model that was asked for last, kept in memory while its weight files stay the same."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.models import find_config
from napari_hrsam.modeling.own_models import find_own
from napari_hrsam.modeling.registry import locate
from napari_hrsam.modeling.segmenter import Segmenter


def kept_model(name: str) -> Segmenter:
    """Load a model as `load_model` does, unless it is the one that was asked for last.

    Parameters
    ----------
    name : str
        Name from `list_models`, or the path of a weight file. A file that was written anew is
        loaded anew.

    Returns
    -------
    Segmenter
        The same one as for the last call; it is not to be changed.

    Raises
    ------
    WeightsNotFoundError, CheckpointError, ConfigError
        As `load_model`.
    """
    return _loaded(name, _files(name))


# One: the largest take gigabytes.
@lru_cache(maxsize=1)
def _loaded(name: str, _files: tuple[tuple[Path, int, int], ...]) -> Segmenter:
    return load_model(name)


def _files(name: str) -> tuple[tuple[Path, int, int], ...]:
    """Return path, time (ns) and size (bytes) of the files that the model is made from."""
    try:
        located = locate(find_config(name))
        paths = [located.model, located.refiner]
    except ConfigError:
        own = find_own(name)
        paths = [own.path if own else Path(name)]
    stats = [(path.resolve(), path.stat()) for path in paths if path and path.is_file()]
    return tuple((path, stat.st_mtime_ns, stat.st_size) for path, stat in stats)
