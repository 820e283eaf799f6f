"""Encoding the chunks of a label image, as zarr does it, without its costs per call.

Chunks of the labels that we make hold plain numbers under Zstandard; that takes one call. Chunks of
other programs (any codec, filters, shards) go through a zarr array of one chunk in memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import zarr
from numcodecs import Zstd
from numcodecs.zstd import compress, decompress
from numpy.typing import NDArray
from zarr.codecs import BytesCodec, ZstdCodec
from zarr.core.buffer import default_buffer_prototype
from zarr.storage import MemoryStore

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.decoded_size import zstd_size


class ChunkCodec(Protocol):
    """Turns whole chunks into the bytes of their files and back."""

    def encode(self, values: NDArray[Any]) -> bytes | None:
        """Encode a whole chunk; None for one of zeros, which needs no file."""

    def decode(self, data: bytes) -> NDArray[Any]:
        """Decode a file.

        Raises
        ------
        Exception
            Of the kinds in `DAMAGE`, if it is damaged.
        """


DAMAGE = (OSError, ValueError, RuntimeError, KeyError)
"""What zarr and its codecs raise at a damaged chunk."""


def damaged(path: str, place: str, error: Exception) -> LabelsError:
    """Return the error for a chunk that cannot be read; ``place`` says what it holds."""
    return LabelsError(
        f"expected readable labels, got a damaged chunk {path} ({place}; {type(error).__name__}: "
        f"{error}); bring the file back from a copy, or delete it to make its pixels background"
    )


def codec_of(folder: Path, array: zarr.Array[Any]) -> ChunkCodec:
    """Choose the codec for the chunk files (shards, where there are any) of an array.

    Parameters
    ----------
    folder : Path
        Where the array's metadata lies.
    array : zarr.Array
        The opened array.
    """
    shape, dtype = array.shards or array.chunks, np.dtype(array.dtype)
    zstd = _plain_zstd(array)
    if zstd is None:
        return _ByZarr(folder, shape, array.metadata.zarr_format)
    return _ByZstd(shape, dtype, *zstd)


def _plain_zstd(array: zarr.Array[Any]) -> tuple[int, bool] | None:
    """Return level and checksum if a chunk is nothing but little-endian numbers under zstd."""
    dtype = np.dtype(array.dtype)
    is_little = dtype.byteorder in "<|" or (dtype.byteorder == "=" and sys.byteorder == "little")
    if not is_little or array.shards or array.order != "C" or array.filters:
        return None
    if len(array.compressors) != 1:
        return None
    (zstd,) = array.compressors
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
        size = zstd_size(data)
        if size not in (None, values.nbytes):
            raise ValueError(f"a chunk of {size} bytes in place of {values.nbytes}")
        decompress(data, values)
        return values


class _ByZarr:
    """Any codec: an array of one chunk, in memory, with the metadata of the array."""

    def __init__(self, folder: Path, shape: tuple[int, ...], zarr_format: int) -> None:
        name = "zarr.json" if zarr_format == 3 else ".zarray"
        metadata = json.loads((folder / name).read_text(encoding="utf-8"))
        self._buffer = default_buffer_prototype().buffer
        self._files: dict[str, Any] = {
            name: self._buffer.from_bytes(json.dumps({**metadata, "shape": shape}).encode())
        }
        self._array = zarr.open_array(MemoryStore(self._files), mode="r+")
        self._key = self._array.metadata.encode_chunk_key((0,) * len(shape))

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
