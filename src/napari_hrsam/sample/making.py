"""Generated images are made: metadata, a recipe, and the coarse levels."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import ZstdCodec

from napari_hrsam.atomic_path import patiently
from napari_hrsam.errors import ImageError
from napari_hrsam.geometry import Box
from napari_hrsam.sample.filling import Progress, fill_levels
from napari_hrsam.sample.generated import ZSTD_LEVEL
from napari_hrsam.sample.scene.looks import LOOKS
from napari_hrsam.sample.scene.recipe import CHUNK_PX, FILE_NAME, Recipe
from napari_hrsam.sample.slide import PIXEL_UM, Sample

COARSE_PX = 2048
"""Levels up to this side are always written, so that every program shows the whole picture."""

_COLOURS = {"red": "FF0000", "green": "00FF00", "blue": "0000FF"}


def make_sample(
    path: str | os.PathLike[str],
    size_px: int = 100_000,
    seed: int = 0,
    look: str = "tissue",
    *,
    fill: Sequence[int] = (),
    fill_box: Box | None = None,
    progress: Progress | None = None,
) -> Sample:
    """Make an OME-Zarr 0.5 image of any size with thousands of objects of known masks.

    Metadata, a recipe and the coarse levels are written; `open_image` paints all other pixels when
    they are read. Other programs see what is written, and a plain colour elsewhere.

    Parameters
    ----------
    path : path
        Where to make it; nothing may be there.
    size_px : int
        Height and width, 256 to 1,048,576.
    seed : int
        Another one gives other objects.
    look : str
        ``"tissue"`` (stained) or ``"em"`` (grey).
    fill : sequence of int
        Levels to write besides; ``0`` is the image in full.
    fill_box : Box, optional
        The part of these levels to write, in level-0 pixels. By default all of it.
    progress : callable, optional
        Called with chunks written and chunks to write; what it raises stops the work, and nothing
        is left.

    Returns
    -------
    Sample

    Raises
    ------
    ImageError
        If there is something at the path.
    ConfigError
        If size, seed, look, level or box is out of range.
    OSError
        If it cannot be written.
    """
    recipe = Recipe(size_px=size_px, seed=seed, look=look)
    target = Path(path)
    if target.exists():
        raise ImageError(
            f"expected a new path, but there is something at {target}; choose another, or open it "
            "with open_sample"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        _write_metadata(partial, target.name, recipe)
        sample = Sample(partial)
        coarse = [k for k, shape in enumerate(recipe.level_shapes) if max(shape) <= COARSE_PX]
        wanted: list[tuple[int, Box | None]] = [(level, None) for level in coarse]
        wanted += [(level, fill_box) for level in fill if level not in coarse]
        fill_levels(sample, wanted, progress)
        # mkdtemp makes folders that nobody else can read.
        partial.chmod(0o777 & ~_umask())
        patiently(lambda: partial.rename(target))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return Sample(target)


def open_sample(path: str | os.PathLike[str]) -> Sample:
    """Open an image made by `make_sample`.

    Raises
    ------
    ImageError
        If there is none, or it is of another version.
    """
    return Sample(Path(path))


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


def _write_metadata(folder: Path, name: str, recipe: Recipe) -> None:
    fill_value = round(LOOKS[recipe.look].ground[1])
    group = zarr.create_group(
        folder, overwrite=True, zarr_format=3, attributes={"ome": _ome(name, recipe)}
    )
    for level, shape in enumerate(recipe.level_shapes):
        group.create_array(
            str(level),
            shape=(3, *shape),
            chunks=(3, CHUNK_PX, CHUNK_PX),
            dtype="uint8",
            compressors=[ZstdCodec(level=ZSTD_LEVEL)],
            fill_value=fill_value,
            dimension_names=["c", "y", "x"],
        )
    (folder / FILE_NAME).write_text(recipe.to_json(), encoding="utf-8")


def _ome(name: str, recipe: Recipe) -> dict[str, Any]:
    datasets: list[dict[str, Any]] = []
    for level in range(len(recipe.level_shapes)):
        size, shift = PIXEL_UM * 2**level, PIXEL_UM * (2**level - 1) / 2
        transforms: list[dict[str, Any]] = [{"type": "scale", "scale": [1.0, size, size]}]
        if level:
            # The centre of a coarse pixel lies between the centres of its fine ones.
            transforms.append({"type": "translation", "translation": [0.0, shift, shift]})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    space = {"type": "space", "unit": "micrometer"}
    multiscale = {
        "name": name,
        "axes": [{"name": "c", "type": "channel"}, {"name": "y", **space}, {"name": "x", **space}],
        "datasets": datasets,
        "type": "mean",
    }
    window = {"min": 0, "max": 255, "start": 0, "end": 255}
    channels = [
        {"label": label, "color": colour, "active": True, "window": window}
        for label, colour in _COLOURS.items()
    ]
    return {"version": "0.5", "multiscales": [multiscale], "omero": {"channels": channels}}
