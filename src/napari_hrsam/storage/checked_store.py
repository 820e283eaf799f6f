"""A zarr store that notices chunks cut short, which decoders may take for whole ones."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterable
from typing import Any

import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.codecs import BloscCodec
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from napari_hrsam.errors import ImageReadError

_METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")


class CheckedStore(WrapperStore[Store]):
    """A store that refuses chunks cut short.

    The Blosc of numcodecs fills the rest of a chunk cut short with whatever lies in memory. Its
    header tells the length, which is compared here for the arrays named to `watch`.

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
        self._blosc: set[str] = set()

    def _with_store(self, store: Store) -> CheckedStore:
        other = CheckedStore(store, self._path)
        other._blosc = self._blosc
        return other

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key, or a part of it; None if there is none.

        Raises
        ------
        ImageReadError
            If less is there than must be.
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
        return value

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for request in requests:
            yield request[0], await self.get(*request)

    def watch(self, array: zarr.Array[Any]) -> None:
        """Check the chunks of an array of this store, if its codec does not."""
        if array.shards is not None or not array.compressors:
            return
        last = array.compressors[-1]
        if isinstance(last, BloscCodec) or getattr(last, "codec_id", "") == "blosc":
            self._blosc.add(f"{array.path}/" if array.path else "")

    def _is_blosc_chunk(self, key: str) -> bool:
        return not key.endswith(_METADATA) and any(map(key.startswith, self._blosc))
