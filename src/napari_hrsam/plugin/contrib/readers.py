"""Opening of generated images, which other readers see only in part, with File > Open."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from napari_hrsam.plugin.contrib.samples import LayerData, generated_layer
from napari_hrsam.sample import open_sample
from napari_hrsam.sample.generated import read_recipe

Reader = Callable[[str | list[str]], list[LayerData]]


def generated_reader(path: str | list[str]) -> Reader | None:
    """Return a reader for an image made by ``napari-hrsam sample``; None for anything else.

    Parameters
    ----------
    path : str or list of str
        What the user opens.

    Raises
    ------
    ImageError, ImageReadError
        If it is such an image, but damaged or of another version.
    """
    if not isinstance(path, str) or read_recipe(Path(path)) is None:
        return None
    return _read


def _read(path: str | list[str]) -> list[LayerData]:
    """Open one generated image as a layer."""
    assert isinstance(path, str)
    return [generated_layer(open_sample(path), Path(path).name.split(".")[0])]
