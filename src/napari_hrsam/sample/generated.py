"""Generated images: OME-Zarr on disk whose missing chunks are painted when they are read.

Such an image has a recipe beside its metadata. The chunks that are on disk are read as they are
(other programs see these), all others come from the recipe's scene; nothing is written.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from numcodecs import Zstd
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import LocalStore, WrapperStore

from napari_hrsam.errors import ImageReadError
from napari_hrsam.lru import LRU
from napari_hrsam.sample.scene.recipe import CHUNK_PX, FILE_NAME, Recipe
from napari_hrsam.sample.scene.scene import Scene

ZSTD_LEVEL = 1
"""Compression of chunks, in memory and on disk."""

MAX_KEPT_BYTES = 32 * 2**20
"""Memory for the chunks painted last."""

_CHUNK_KEY = re.compile(r"(\d+)/c/0/(\d+)/(\d+)")


class GeneratedStore(WrapperStore[Store]):
    """A store that paints the chunks of an image which are not there.

    Chunks are painted one at a time on a thread of their own, so that other reading goes on.

    Parameters
    ----------
    store : Store
        Where metadata and some chunks lie.
    scene : Scene
        What is painted.
    prefix : str
        What comes before the keys of `store`: ``"0/"`` if it is rooted at the array of level 0.
    """

    def __init__(self, store: Store, scene: Scene, prefix: str = "") -> None:
        super().__init__(store)
        self._scene = scene
        self._prefix = prefix
        self._codec = Zstd(level=ZSTD_LEVEL)
        self._painter = ThreadPoolExecutor(1, thread_name_prefix="generated-image")
        self._kept: LRU[str, bytes] = LRU(MAX_KEPT_BYTES, len)
        self._num_bytes = 0

    def _with_store(self, store: Store) -> GeneratedStore:
        return GeneratedStore(store, self._scene, self._prefix)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key, or a part of it; None if there is none and it is no chunk of the image."""
        value = await self._store.get(key, prototype, byte_range)
        place = None if value is not None else self._place(key)
        if place is None:
            return value
        loop = asyncio.get_running_loop()
        chunk = await loop.run_in_executor(self._painter, self._painted, key, place)
        return prototype.buffer.from_bytes(_part(chunk, byte_range))

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Read parts of several keys, one after the other."""
        return [await self.get(key, prototype, part) for key, part in key_ranges]

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for request in requests:
            yield request[0], await self.get(*request)

    async def exists(self, key: str) -> bool:
        """Whether a key can be read."""
        return self._place(key) is not None or await self._store.exists(key)

    def _place(self, key: str) -> tuple[int, int, int] | None:
        """Tell level, row and column of a chunk's key; None if the image has no such chunk."""
        found = _CHUNK_KEY.fullmatch(self._prefix + key)
        if found is None:
            return None
        level, row, column = (int(number) for number in found.groups())
        shapes = self._scene.recipe.level_shapes
        if level >= len(shapes) or max(row, column) * CHUNK_PX >= shapes[level][0]:
            return None
        return level, row, column

    def _painted(self, key: str, place: tuple[int, int, int]) -> bytes:
        """Paint and compress a chunk, or take it from those painted last; one thread only."""
        if key not in self._kept:
            self._kept[key] = encode_chunk(self._scene, place, self._codec)
        return self._kept[key]


def encode_chunk(scene: Scene, place: tuple[int, int, int], codec: Zstd) -> bytes:
    """Paint the chunk (level, row, column) and compress it as it lies in a file."""
    return bytes(codec.encode(scene.chunk(*place)))


def read_recipe(folder: Path) -> Recipe | None:
    """Read the recipe of a generated image; None if the folder holds none.

    Raises
    ------
    ImageError
        If it is damaged, or of another version.
    ImageReadError
        If the file cannot be read.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ImageReadError(
            f"expected the recipe of a generated image that can be read, got {error} at {path}; "
            "check its rights, or make the image again with `napari-hrsam sample`"
        ) from error
    return Recipe.from_json(text, str(path))


def local_store(path: Path, *, read_only: bool = True) -> Store:
    """Open a local folder; a generated image, or one of its levels, paints itself."""
    store = LocalStore(path, read_only=read_only)
    recipe = read_recipe(path)
    if recipe is not None:
        return GeneratedStore(store, Scene(recipe))
    if path.name.isdecimal():
        recipe = read_recipe(path.parent)
        if recipe is not None:
            return GeneratedStore(store, Scene(recipe), f"{path.name}/")
    return store


def _part(chunk: bytes, byte_range: ByteRequest | None) -> bytes:
    if isinstance(byte_range, RangeByteRequest):
        return chunk[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return chunk[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return chunk[-byte_range.suffix :]
    return chunk
