"""Encoding the chunks of a label image, as zarr does it, without its costs per call.

Chunks of the labels that we make hold plain numbers under Zstandard; that takes one call. Chunks of
other programs (any codec, filters, shards) go through a zarr array of one chunk in memory.
"""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import zarr
from numcodecs import Zstd
from numcodecs.zstd import compress
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.core.metadata import ArrayV2Metadata
from zarr.storage import MemoryStore, StorePath

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.files.bounded_codecs import bounded, loose_limit, plain, zstd_at_most


class ChunkCodec(Protocol):
    """Turns whole chunks into the bytes of their files and back.

    Attributes
    ----------
    max_bytes : int
        More than a file can take; none that is larger need be read.
    """

    max_bytes: int

    def encode(self, values: NDArray[Any]) -> bytes | None:
        """Encode a whole chunk; None for one of zeros, which needs no file."""

    def decode(self, data: bytes) -> NDArray[Any]:
        """Decode a file.

        Raises
        ------
        Exception
            Of the kinds in `DAMAGE`, if it is damaged.
        """


DAMAGE = (Exception,)
"""What zarr and its codecs raise at a damaged chunk: errors of any kind."""


def damaged(path: str, place: str, error: Exception) -> LabelsError:
    """Return the error for a chunk that cannot be read; ``place`` says what it holds."""
    return LabelsError(
        f"expected readable labels, got a damaged chunk {path} ({place}; {type(error).__name__}: "
        f"{error}); bring the file back from a copy, or delete it to make its pixels background"
    )


def codec_of(array: zarr.Array[Any]) -> ChunkCodec:
    """Choose the codec for the chunk files (shards, where there are any) of an array."""
    shape, dtype = array.shards or array.chunks, np.dtype(array.dtype)
    zstd = _plain_zstd(array)
    if zstd is None:
        return _ByZarr(array, shape)
    return _ByZstd(shape, dtype, *zstd)


def _plain_zstd(array: zarr.Array[Any]) -> tuple[int, bool] | None:
    """Return level and checksum if a chunk is nothing but little-endian numbers under zstd."""
    dtype = np.dtype(array.dtype)
    is_little = dtype.byteorder in "<|" or (dtype.byteorder == "=" and sys.byteorder == "little")
    if not is_little or array.shards or array.order != "C" or array.filters:
        return None
    if len(array.compressors) != 1:
        return None
    zstd = plain(array.compressors[0])
    if isinstance(zstd, Zstd):
        return int(zstd.level), bool(zstd.checksum)
    serializer = array.serializer
    if isinstance(zstd, ZstdCodec) and isinstance(serializer, BytesCodec):
        endian = getattr(serializer.endian, "value", serializer.endian)
        if dtype.itemsize == 1 or endian == "little":
            return zstd.level, zstd.checksum
    return None


class _ByZstd:
    """Plain numbers under Zstandard."""

    def __init__(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], level: int, checksum: bool
    ) -> None:
        self._shape, self._dtype = shape, dtype
        self._level, self._checksum = level, checksum
        self.max_bytes = loose_limit(math.prod(shape) * dtype.itemsize)

    def encode(self, values: NDArray[Any]) -> bytes | None:
        """See `ChunkCodec`."""
        if not values.any():
            return None
        packed: bytes = compress(
            np.ascontiguousarray(values, self._dtype), self._level, self._checksum
        )
        return packed

    def decode(self, data: bytes) -> NDArray[Any]:
        """See `ChunkCodec`."""
        values = np.empty(self._shape, self._dtype)
        zstd_at_most(data, values.nbytes, out=values)
        return values


class _ByZarr:
    """Any codec: an array of one chunk, in memory, with the metadata of the array."""

    def __init__(self, array: zarr.Array[Any], shape: tuple[int, ...]) -> None:
        metadata: Any = array.metadata
        one: dict[str, Any] = {"shape": shape, "attributes": {}}
        if not isinstance(metadata, ArrayV2Metadata):
            one["chunk_grid"] = {"name": "regular", "configuration": {"chunk_shape": shape}}
        self._buffer = default_buffer_prototype().buffer
        self._files: dict[str, Any] = {}
        store = StorePath(MemoryStore(self._files))
        self._array = bounded(zarr.Array(zarr.AsyncArray(replace(metadata, **one), store)))
        self._key = self._array.metadata.encode_chunk_key((0,) * len(shape))
        self.max_bytes = loose_limit(math.prod(shape) * np.dtype(array.dtype).itemsize)
        if array.shards:
            # The index of a shard has two numbers of 8 bytes per chunk.
            self.max_bytes += 16 * (math.prod(shape) // math.prod(array.chunks))

    def encode(self, values: NDArray[Any]) -> bytes | None:
        """See `ChunkCodec`."""
        self._array[...] = values
        found = self._files.pop(self._key, None)
        return None if found is None else bytes(found.to_bytes())

    def decode(self, data: bytes) -> NDArray[Any]:
        """See `ChunkCodec`."""
        self._files[self._key] = self._buffer.from_bytes(data)
        try:
            return np.asarray(self._array[...])
        finally:
            del self._files[self._key]
