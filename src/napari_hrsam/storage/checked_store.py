"""A zarr store that notices chunks cut short, or far too large, before they are decoded."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from napari_hrsam.errors import ImageReadError
from napari_hrsam.storage.decoded_size import exceeds

_METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")


@dataclass(frozen=True, slots=True)
class _Watched:
    """What is known of the chunks of one array."""

    codec: str
    max_bytes: int
    is_sharded: bool


class CheckedStore(WrapperStore[Store]):
    """A store that refuses chunks cut short, and chunks that would decode to far too much.

    The Blosc of numcodecs fills the rest of a chunk cut short with whatever lies in memory. Its
    header tells the length, which is compared here for the arrays named to `watch`. Their chunks
    may decode to half as much again as a chunk needs, as compressors may come one after another.
    Not looked at is what lies in a shard that is read as a whole.

    Parameters
    ----------
    store : Store
        What is read.
    path : str
        Path or URL of the store, named in errors.
    """

    def __init__(self, store: Store, path: str = "") -> None:
        super().__init__(store)
        self._path = path
        self._watched: dict[str, _Watched] = {}

    def _with_store(self, store: Store) -> CheckedStore:
        other = CheckedStore(store, self._path)
        other._watched = self._watched
        return other

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key, or a part of it; None if there is none.

        Raises
        ------
        ImageReadError
            If less is there than must be, or more than there may be.
        """
        value = await self._store.get(key, prototype, byte_range)
        if value is None:
            return None
        expected = len(value)
        if isinstance(byte_range, RangeByteRequest):
            expected = byte_range.end - byte_range.start
        elif byte_range is None and self._is_blosc_chunk(key):
            expected = max(16, int.from_bytes(value.to_bytes()[12:16], "little"))
        if len(value) != expected:
            raise ImageReadError(
                f"expected {expected} bytes in the chunk {self._path.rstrip('/')}/{key}, got "
                f"{len(value)}: it is damaged; copy the image again, or work on another part"
            )
        await self._require_modest(key, value, byte_range)
        return value

    async def _require_modest(
        self, key: str, value: Buffer, byte_range: ByteRequest | None
    ) -> None:
        known = self._watched_for(key)
        if known is None or known.is_sharded != isinstance(byte_range, RangeByteRequest):
            return
        is_modest = len(value) <= known.max_bytes and not await asyncio.to_thread(
            exceeds, known.codec, value.to_bytes(), known.max_bytes
        )
        if not is_modest:
            raise ImageReadError(
                f"expected at most {known.max_bytes} bytes in the chunk "
                f"{self._path.rstrip('/')}/{key}, got more when it is decoded: it is damaged or "
                "meant to fill the memory; copy the image again, or work on another part"
            )

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for request in requests:
            yield request[0], await self.get(*request)

    def watch(self, array: zarr.Array[Any]) -> None:
        """Check the chunks of an array of this store."""
        if array.compressors:
            num_bytes = math.prod(array.chunks) * np.dtype(array.dtype).itemsize
            self._watched[f"{array.path}/" if array.path else ""] = _Watched(
                _name(array.compressors[-1]), num_bytes * 3 // 2 + 2**16, array.shards is not None
            )

    def _is_blosc_chunk(self, key: str) -> bool:
        known = self._watched_for(key)
        return known is not None and known.codec == "blosc" and not known.is_sharded

    def _watched_for(self, key: str) -> _Watched | None:
        if not key.endswith(_METADATA):
            for prefix, known in self._watched.items():
                if key.startswith(prefix):
                    return known
        return None


def _name(codec: Any) -> str:
    """Return the name of a codec of zarr or numcodecs, such as ``gzip``."""
    names = {BloscCodec: "blosc", GzipCodec: "gzip", ZstdCodec: "zstd"}
    found = names.get(type(codec)) or getattr(codec, "codec_id", None)
    return str(found or getattr(codec, "codec_name", "")).removeprefix("numcodecs.")
