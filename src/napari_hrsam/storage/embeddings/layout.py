"""How embeddings lie in zarr: one array per image, model and level, one chunk per tile.

A chunk holds all maps of a tile as one vector of float16, so that a tile is there as a whole or
not at all, and ends in a checksum. It is compressed with LZ4 after a shuffle of bits, which saves
more than zstd without one, and is written and read faster (benchmarks/embeddings.py).
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore

from napari_hrsam.geometry import Tile, TileGrid
from napari_hrsam.storage.images.fingerprint import ImageIdentity

VERSION = 1
"""Of the format: folders of other versions are not read, and go when room is needed."""

MAX_TILE_BYTES = 256 * 2**20
"""What a tile's embedding may take; ours take some megabytes."""

CHUNK_NAME = re.compile(r"c(\.\d+)+")
"""Names of the files that hold tiles."""

# zarr puts a random word between the name of a file and the end of its unfinished one.
FILE_NAMES = re.compile(
    r"embeddings-v\d+/[0-9a-f]{1,64}/[\w+-][\w.+-]{0,63}/-?\d+_\d+px/"
    r"(zarr\.json|c(\.\d+)+|(zarr|c(\.\d+)*)\.[0-9a-f]{32}\.partial)"
)
"""Paths of all files of the store, of this version and of others."""

Maps = Mapping[str, NDArray[np.float16]]


@dataclass(frozen=True, slots=True)
class EmbeddingKey:
    """What the embeddings of a folder belong to.

    Attributes
    ----------
    image : ImageIdentity
        The image as it is shown to the model.
    model : str
        Fingerprint of the model.
    """

    image: ImageIdentity
    model: str


def chunk_path(root: Path, key: EmbeddingKey, tile: Tile) -> Path | None:
    """Return the file of a tile; None for a tile that is not on the level's grid."""
    grid = _grid(key, tile)
    rows, columns = grid.num_tiles_yx
    row, column = tile.y0 / grid.stride_px, tile.x0 / grid.stride_px
    if not (row in range(rows) and column in range(columns)) or _plane(key, tile) is None:
        return None
    folder = root / f"embeddings-v{VERSION}" / key.image.digest / _name(key.model)
    name = ".".join(map(str, ("c", *tile_index(key, tile), 0)))
    return folder / f"{tile.level}_{tile.size_px}px" / name


def pack(maps: Maps) -> tuple[NDArray[np.float16], list[list[Any]]]:
    """Join maps to one vector; also give names and shapes, in the order of the vector."""
    layout = [[name, list(array.shape)] for name, array in maps.items()]
    parts = [np.ascontiguousarray(array, np.float16).reshape(-1) for array in maps.values()]
    return np.concatenate(parts), layout


def unpack(flat: NDArray[np.float16], layout: list[list[Any]]) -> dict[str, NDArray[np.float16]]:
    """Cut a vector of `pack` into its maps, which are views of it."""
    maps, start = {}, 0
    for name, shape in layout:
        end = start + math.prod(shape)
        maps[str(name)] = flat[start:end].reshape(shape)
        start = end
    if start != flat.size:
        raise ValueError(f"expected {start} numbers, got {flat.size}")
    return maps


def require_layout(array: zarr.Array[Any]) -> None:
    """Refuse a description that the store cannot have written.

    Raises
    ------
    ValueError
        If so.
    """
    layout: Any = array.attrs["maps"]
    is_fine = isinstance(layout, list) and all(
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], str)
        and isinstance(entry[1], list)
        and all(type(side) is int and side > 0 for side in entry[1])
        for entry in layout
    )
    if not is_fine or array.dtype != np.float16 or array.ndim < 2:
        raise ValueError("no description of embeddings")
    num_values = sum(math.prod(shape) for _, shape in layout)
    is_one_tile = array.chunks == (*(1 for _ in array.shape[:-1]), array.shape[-1])
    if array.shape[-1] != num_values or not is_one_tile or 2 * num_values > MAX_TILE_BYTES:
        raise ValueError(f"{num_values} numbers in chunks of {array.chunks}")


def _grid(key: EmbeddingKey, tile: Tile) -> TileGrid:
    return TileGrid(key.image.shape_yx, tile.size_px, tile.level, tile.plane)


def _plane(key: EmbeddingKey, tile: Tile) -> tuple[int, ...] | None:
    """Name a plane fully, None if there is no such plane."""
    sizes = key.image.plane_shape
    if tile.plane == () and set(sizes) <= {1}:
        return (0,) * len(sizes)
    fits = len(tile.plane) == len(sizes) and all(
        place in range(size) for place, size in zip(tile.plane, sizes, strict=True)
    )
    return tile.plane if fits else None


def tile_index(key: EmbeddingKey, tile: Tile) -> tuple[int, ...]:
    """Place of a tile of the grid in the array of its level, which has no axes of length 1."""
    stride = _grid(key, tile).stride_px
    planes = zip(_plane(key, tile) or (), key.image.plane_shape, strict=False)
    return *(place for place, size in planes if size > 1), tile.y0 // stride, tile.x0 // stride


def describe(key: EmbeddingKey, tile: Tile, layout: list[list[Any]]) -> dict[str, Any]:
    """Describe an array: what its numbers are, for readers and for checks."""
    grid = _grid(key, tile)
    return {
        "image": key.image.digest,
        "model": key.model,
        "level": tile.level,
        "tile_px": tile.size_px,
        "stride_px": grid.stride_px,
        "shape": [*(n for n in key.image.plane_shape if n > 1), *grid.num_tiles_yx],
        "maps": layout,
    }


def create(folder: Path, shape: tuple[int, ...], about: dict[str, Any]) -> zarr.Array[Any]:
    """Make the array of a level.

    Raises
    ------
    ContainsArrayError
        If there is one.
    """
    return zarr.create_array(
        LocalStore(folder),
        shape=shape,
        chunks=(*(1 for _ in shape[:-1]), shape[-1]),
        dtype="float16",
        fill_value=float("nan"),
        compressors=[BloscCodec(cname="lz4", clevel=1, shuffle="bitshuffle"), Crc32cCodec()],
        # All tiles of a level in one folder.
        chunk_key_encoding={"name": "default", "separator": "."},
        attributes=about,
    )


def _name(model: str) -> str:
    """Turn a model's fingerprint into the name of a folder."""
    if re.fullmatch(r"[\w.+-]{1,64}", model) and not model.startswith("."):
        return model
    return hashlib.sha256(model.encode()).hexdigest()[:24]
