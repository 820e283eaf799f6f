"""GeoTIFFs written by the tests, and what they should say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

SHAPE_YX = (301, 601)
UTM = "EPSG:32633"
NORTH_UP = (0.5, 0.0, 500_000.0, 0.0, -0.5, 5_400_000.0)
ROTATED = (0.4, 0.3, 500_000.0, 0.3, -0.4, 5_400_000.0)
"""Pixels of half a metre, both."""


def write_map(
    path: Path,
    bands: NDArray[Any] | None = None,
    *,
    crs: str | None = UTM,
    affine: tuple[float, ...] = NORTH_UP,
    **options: Any,
) -> Path:
    """Write (bands, height, width) with rasterio; by default 3 of random bytes."""
    import rasterio

    if bands is None:
        bands = np.random.default_rng(0).integers(0, 256, (3, *SHAPE_YX), np.uint8)
    num, height, width = bands.shape
    layout = {"driver": "GTiff", "tiled": True, "blockxsize": 128, "blockysize": 128}
    if options.get("driver") == "COG":
        layout = {}
    with rasterio.open(
        path,
        "w",
        width=width,
        height=height,
        count=num,
        dtype=bands.dtype,
        crs=crs,
        transform=rasterio.Affine(*affine),
        **{**layout, **options},
    ) as file:
        file.write(bands)
    return path


def xy(affine: tuple[float, ...], row: float, column: float) -> tuple[float, float]:
    """Where a corner lies, by the definition of the affine."""
    a, b, c, d, e, f = affine
    return a * column + b * row + c, d * column + e * row + f
