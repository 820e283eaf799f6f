"""Small and sparse OME-Zarr images for the tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

TYPES = {"t": "time", "c": "channel"}


def write_ome(
    path: Path,
    levels: Sequence[NDArray[Any]],
    axes: str = "yx",
    *,
    version: str = "0.5",
    chunks: tuple[int, ...] | None = None,
    scales: Sequence[Sequence[float]] | None = None,
    omero: Sequence[dict[str, Any]] = (),
) -> zarr.Group:
    """Write levels as an OME-Zarr image, each twice as coarse as the one before along y and x."""
    group = zarr.create_group(path, zarr_format=3 if version == "0.5" else 2)
    for number, level in enumerate(levels):
        array = create_level(group, str(number), level.shape, level.dtype, axes, chunks=chunks)
        array[:] = level
    describe(group, len(levels), axes, version=version, scales=scales, omero=omero)
    return group


def create_level(
    group: zarr.Group,
    name: str,
    shape: tuple[int, ...],
    dtype: Any,
    axes: str,
    *,
    chunks: tuple[int, ...] | None = None,
) -> zarr.Array[Any]:
    side = [min(64 if axis in "yx" else 1, n) for axis, n in zip(axes, shape, strict=True)]
    v2 = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
    more: dict[str, Any] = {} if group.metadata.zarr_format == 3 else v2
    return group.create_array(
        name, shape=shape, dtype=dtype, chunks=chunks or tuple(side), fill_value=0, **more
    )


def describe(
    group: zarr.Group,
    num_levels: int,
    axes: str,
    *,
    version: str = "0.5",
    scales: Sequence[Sequence[float]] | None = None,
    omero: Sequence[dict[str, Any]] = (),
) -> None:
    """Write the metadata of an image of levels 0, 1, ..."""
    if scales is None:
        scales = [
            [2.0**level if axis in "yx" else 1.0 for axis in axes] for level in range(num_levels)
        ]
    image: dict[str, Any] = {
        "axes": [
            {"name": axis, "type": TYPES.get(axis, "space")}
            | ({"unit": "micrometer"} if axis in "zyx" else {})
            for axis in axes
        ],
        "datasets": [
            {
                "path": str(level),
                "coordinateTransformations": [{"type": "scale", "scale": list(scale)}],
            }
            for level, scale in enumerate(scales)
        ],
    }
    attributes: dict[str, Any] = {"multiscales": [image]}
    if omero:
        attributes["omero"] = {"channels": list(omero)}
    if version == "0.5":
        group.attrs["ome"] = {"version": version, **attributes}
    else:
        image["version"] = version
        group.attrs.update(attributes)


def halves(array: NDArray[Any], num: int) -> list[NDArray[Any]]:
    """An array and means over 2 x 2 blocks of the last two axes, each of the one before."""
    levels = [array]
    for _ in range(num - 1):
        fine = levels[-1]
        h, w = fine.shape[-2] // 2, fine.shape[-1] // 2
        blocks = fine[..., : h * 2, : w * 2].reshape(*fine.shape[:-2], h, 2, w, 2)
        levels.append(blocks.mean(axis=(-3, -1)).astype(array.dtype))
    return levels


def sparse_slide(path: Path, side: int, discs: Sequence[tuple[int, int, int]]) -> None:
    """Write a square RGB (c, y, x) slide of mostly missing chunks with discs (y, x, radius)."""
    group = zarr.create_group(path, zarr_format=3)
    num_levels = 0
    while num_levels == 0 or side >> (num_levels - 1) > 1024:
        length = -(-side // 2**num_levels)
        array = create_level(
            group, str(num_levels), (3, length, length), np.uint8, "cyx", chunks=(3, 512, 512)
        )
        for y, x, radius in discs:
            _draw(array, y / 2**num_levels, x / 2**num_levels, radius / 2**num_levels)
        num_levels += 1
    colours = [{"color": c, "active": True} for c in ("FF0000", "00FF00", "0000FF")]
    describe(group, num_levels, "cyx", omero=colours)


def _draw(array: zarr.Array[Any], y: float, x: float, radius: float) -> None:
    y0, x0, side = int(y - radius), int(x - radius), int(2 * radius) + 2
    rows, columns = np.ogrid[y0 : y0 + side, x0 : x0 + side]
    disc = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    block = np.asarray(array[:, y0 : y0 + side, x0 : x0 + side])
    block[:, disc] = np.array([[230], [60], [90]], np.uint8)
    array[:, y0 : y0 + side, x0 : x0 + side] = block
