"""Images on disk for tests of the panel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray


def write_ome_zarr(path: Path, pixels: NDArray[Any], num_levels: int = 3) -> list[Any]:
    """Write a (y, x) pyramid and return its arrays."""
    group = zarr.open_group(path, mode="w")
    datasets = []
    for k in range(num_levels):
        group.create_array(str(k), data=pixels[:: 2**k, :: 2**k], chunks=(256, 256))
        scale = {"type": "scale", "scale": [2.0**k, 2.0**k]}
        datasets.append({"path": str(k), "coordinateTransformations": [scale]})
    axes = [{"name": name, "type": "space"} for name in "yx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return [group[str(k)] for k in range(num_levels)]
