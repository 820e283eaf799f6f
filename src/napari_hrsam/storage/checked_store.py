"""A zarr store that reads no more of a file than there can be in it."""

from __future__ import annotations

import math
import stat
from collections.abc import AsyncGenerator, Iterable
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.abc.store import ByteRequest, RangeByteRequest, Store, SuffixByteRequest
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import WrapperStore

from napari_hrsam.errors import ImageReadError
from napari_hrsam.storage.bounded_codecs import loose_limit
from napari_hrsam.storage.metadata_files import MAX_METADATA_BYTES, is_modest, stated_chunks

MAX_BYTES: ContextVar[int] = ContextVar("MAX_BYTES", default=2**30)
"""What the read under way may give; for stores below that cannot look at the size first."""

_METADATA = (".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json")
_ARRAYS = (".zarray", "zarr.json")


class CheckedStore(WrapperStore[Store]):
    """A store that refuses files far larger than they need be, parts cut short, and no files.

    Metadata may have `MAX_METADATA_BYTES`. The chunks (or shards) of the arrays named to `watch`
    may take half as much again as their pixels. In a local folder, what is no file (a pipe, a
    device) is refused too.

    Parameters
    ----------
    store : Store
        What is read.
    path : str
        Path or URL of the store, named in errors.
    folder : Path, optional
        The local folder that is read.
    """

    def __init__(self, store: Store, path: str = "", folder: Path | None = None) -> None:
        super().__init__(store)
        self._path = path
        self._folder = folder
        self._max_bytes: dict[str, int] = {}

    def __str__(self) -> str:
        """Return where the store is."""
        return str(self._store)

    def _with_store(self, store: Store) -> CheckedStore:
        other = CheckedStore(store, self._path, self._folder)
        other._max_bytes = self._max_bytes
        return other

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key, or a part of it; None if there is none.

        Raises
        ------
        ImageReadError
            If less is there than must be, or more than there may be; or for an array in chunks of
            nothing.
        """
        limit = self._limit(key)
        wanted = _length(byte_range)
        if wanted is not None and wanted > limit:
            raise self._too_large(key, limit)
        if self._folder is not None:
            self._require_file(self._folder / key, key, limit)
        token = MAX_BYTES.set(limit)
        try:
            value = await self._store.get(key, prototype, byte_range)
        finally:
            MAX_BYTES.reset(token)
        if value is None:
            return None
        if len(value) > limit:
            raise self._too_large(key, limit)
        if isinstance(byte_range, RangeByteRequest) and len(value) != wanted:
            raise ImageReadError(
                f"expected {wanted} bytes in the chunk {self._named(key)}, got {len(value)}: it is "
                "damaged; copy the image again, or work on another part"
            )
        if key.endswith(_METADATA):
            self._check_metadata(key, value.to_bytes(), limit)
        return value

    def _check_metadata(self, key: str, data: bytes, limit: int) -> None:
        if not is_modest(data):
            raise self._too_large(key, limit)
        chunks = stated_chunks(data) if key.endswith(_ARRAYS) else []
        if any(isinstance(size, int) and size < 1 for size in chunks):
            raise ImageReadError(
                f"expected chunks of 1 pixel or more, got {chunks} in {self._named(key)}: it is "
                "damaged; bring it back from a copy"
            )

    def _require_file(self, path: Path, key: str, limit: int) -> None:
        try:
            status = path.stat()
        except (FileNotFoundError, NotADirectoryError):
            return
        if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
            raise ImageReadError(
                f"expected a file at {self._named(key)}, got a pipe, a device or the like; do not "
                "open files from people you do not trust"
            )
        if stat.S_ISREG(status.st_mode) and status.st_size > limit:
            raise self._too_large(key, limit)

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for request in requests:
            yield request[0], await self.get(*request)

    def watch(self, array: zarr.Array[Any]) -> None:
        """Limit the chunks of an array of this store."""
        stored = math.prod(array.shards or array.chunks)
        limit = loose_limit(stored * np.dtype(array.dtype).itemsize)
        if array.shards:
            # The index of a shard has two numbers of 8 bytes per chunk.
            limit += 16 * (stored // math.prod(array.chunks))
        self._max_bytes[f"{array.path}/" if array.path else ""] = limit

    def _limit(self, key: str) -> int:
        if key.endswith(_METADATA):
            return MAX_METADATA_BYTES
        found = (limit for prefix, limit in self._max_bytes.items() if key.startswith(prefix))
        return next(found, MAX_BYTES.get())

    def _named(self, key: str) -> str:
        return f"{self._path.rstrip('/')}/{key}"

    def _too_large(self, key: str, limit: int) -> ImageReadError:
        return ImageReadError(
            f"expected at most {limit} bytes in {self._named(key)}, got more: it is damaged or "
            "meant to fill the memory; copy the image again, or work on another part"
        )


def _length(byte_range: ByteRequest | None) -> int | None:
    """Return how many bytes are asked for, as far as that is said."""
    if isinstance(byte_range, RangeByteRequest):
        return byte_range.end - byte_range.start
    return byte_range.suffix if isinstance(byte_range, SuffixByteRequest) else None
