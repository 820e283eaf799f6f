"""Label images as any program may write them, for the tests of what only reads them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_hrsam.storage.labels.downsampling import AxisRatio, majority

AXES = {2: "yx", 3: "zyx", 4: "tzyx"}
TYPES = {"t": "time", "c": "channel"}


def write_labels(
    path: Path,
    labels: NDArray[Any],
    *,
    version: str = "0.5",
    chunk: int = 16,
    shard: int = 0,
    num_levels: int = 1,
    scale: tuple[float, float] = (1.0, 1.0),
    translation: tuple[float, float] | None = None,
    unit: str = "",
    name: str = "cells",
) -> zarr.Group:
    """Write (..., y, x) labels with right coarser levels as ``path/labels/<name>``."""
    zarr_format: Any = 3 if version == "0.5" else 2
    root = zarr.open_group(path, mode="a", zarr_format=zarr_format)
    listing = root.require_group("labels")
    group = listing.create_group(name)
    axes, front = AXES[labels.ndim], (1,) * (labels.ndim - 2)
    datasets, level = [], labels
    for number in range(num_levels):
        if number:
            level = coarser(level)
        more: dict[str, Any] = {"dimension_names": list(axes)}
        if zarr_format == 2:
            more = {"chunk_key_encoding": {"name": "v2", "separator": "/"}}
        if shard:
            more["shards"] = (*front, shard, shard)
        array = group.create_array(
            str(number),
            shape=level.shape,
            chunks=(*front, chunk, chunk),
            dtype=level.dtype,
            fill_value=0,
            **more,
        )
        array[...] = level
        steps: list[dict[str, Any]] = [
            {"type": "scale", "scale": [1.0] * len(front) + [s * 2**number for s in scale]}
        ]
        if translation is not None:
            moved = [t + s * (2**number - 1) / 2 for t, s in zip(translation, scale, strict=True)]
            steps.append({"type": "translation", "translation": [0.0] * len(front) + moved})
        datasets.append({"path": str(number), "coordinateTransformations": steps})
    units = {"unit": unit} if unit else {}
    image: dict[str, Any] = {
        "axes": [
            {"name": axis, "type": TYPES.get(axis, "space")} | (units if axis in "yx" else {})
            for axis in axes
        ],
        "datasets": datasets,
    }
    found: dict[str, Any] = {"multiscales": [image], "image-label": {}}
    if zarr_format == 2:
        image["version"] = version
        group.attrs.update(found)
        listing.attrs["labels"] = [name]
    else:
        group.attrs["ome"] = {"version": version, **found}
        listing.attrs["ome"] = {"version": version, "labels": [name]}
    return group


def coarser(labels: NDArray[Any]) -> NDArray[Any]:
    """Take the majority of the labels in blocks of 2 x 2, plane by plane."""
    height, width = labels.shape[-2:]
    shape = -(-height // 2), -(-width // 2)
    rows, columns = AxisRatio(height, shape[0]), AxisRatio(width, shape[1])
    edges = rows.edges(0, shape[0]), columns.edges(0, shape[1])
    coarse = np.zeros((*labels.shape[:-2], *shape), labels.dtype)
    for plane in np.ndindex(labels.shape[:-2]):
        coarse[plane] = majority(labels[plane], *edges)
    return coarse


def blobs(shape: tuple[int, int], num: int, seed: int = 0, dtype: Any = np.uint32) -> NDArray[Any]:
    """Draw discs, some with a hole and some cut by others, with labels 1 to num."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(shape, dtype)
    y, x = np.ogrid[: shape[0], : shape[1]]
    for label in range(1, num + 1):
        centre, radius = rng.uniform(0, shape), rng.uniform(2, min(shape) / 5)
        distance = np.hypot(y - centre[0], x - centre[1])
        inner = radius / 2 if label % 3 == 0 else 0
        labels[(distance < radius) & (distance >= inner)] = label
    return labels
