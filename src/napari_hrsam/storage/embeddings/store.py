"""Embeddings on disk: tiles that were encoded once need not be encoded again."""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any, Self, cast
from urllib.parse import urlsplit

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store
from zarr.core.sync import sync
from zarr.errors import ContainsArrayError
from zarr.storage import LocalStore

from napari_hrsam.atomic_path import patiently
from napari_hrsam.cache import EMBEDDINGS_VARIABLE, embeddings_folder
from napari_hrsam.errors import EmbeddingsError, ImageError, ImageReadError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.embeddings.layout import (
    CHUNK_NAME,
    FILE_NAMES,
    EmbeddingKey,
    Maps,
    chunk_path,
    create,
    describe,
    pack,
    require_layout,
    tile_index,
    unpack,
)
from napari_hrsam.storage.files.bounded_codecs import bounded
from napari_hrsam.storage.files.capped_folder import CappedFolder
from napari_hrsam.storage.files.checked_store import CheckedStore
from napari_hrsam.storage.files.metadata_files import read_json
from napari_hrsam.storage.files.remote import open_url
from napari_hrsam.storage.files.urls import is_url, shown_url

__all__ = ["EmbeddingKey", "EmbeddingStore"]

logger = logging.getLogger(__name__)

DEFAULT_MAX_BYTES = 8_000_000_000
"""What the embeddings of a folder may take until the folder is given another limit."""

SETTINGS = "embeddings.json"

PAUSE_S = 30.0
"""After a server of embeddings failed, it is not asked for so long."""


class EmbeddingStore:
    """A folder of embeddings, limited in size; tiles used longest ago go first.

    Several processes may share a folder. A tile that is damaged counts as absent.

    Parameters
    ----------
    folder : path or URL, optional
        Made at the first write. By default `embeddings_folder`. A folder behind a URL, such as one
        that a cluster filled with ``napari-hrsam embed``, is only read; while its server does not
        answer, its tiles count as absent.
    max_bytes : int, optional
        What the embeddings may take. The folder keeps the number at the first write, for all
        programs that use it. By default the number that the folder was given last, or 8 GB.
    read_only : bool
        Whether nothing is ever written.

    Attributes
    ----------
    folder : Path
        Of a URL: its path.

    Raises
    ------
    EmbeddingsError
        If the folder is something else, or ``max_bytes`` is less than 1.
    """

    def __new__(cls, folder: Path | str | None = None, **_: Any) -> Self:
        """Choose who reads the folder."""
        kind = _BehindURL if isinstance(folder, str) and is_url(folder) else cls
        return cast("Self", super().__new__(kind))

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        max_bytes: int | None = None,
        read_only: bool = False,
    ) -> None:
        self.folder = embeddings_folder() if folder is None else Path(folder).absolute()
        self.is_read_only = read_only
        if self.folder.exists() and not self.folder.is_dir():
            raise EmbeddingsError(
                f"expected a folder for embeddings, got the file {self.folder}; name another place"
            )
        if max_bytes is not None and max_bytes < 1:
            raise EmbeddingsError(
                f"expected room of 1 byte or more for embeddings, got {max_bytes}"
            )
        self._asked_max_bytes = max_bytes
        if max_bytes is None:
            max_bytes = _kept_max_bytes(self.folder)
        self._files = CappedFolder(self.folder, "embeddings-v*", max_bytes, FILE_NAMES)
        self._arrays: dict[tuple[Path, bool], zarr.Array[Any]] = {}
        self._lock = threading.RLock()

    @property
    def max_bytes(self) -> int:
        """What the embeddings may take."""
        return self._files.max_bytes

    @property
    def num_bytes(self) -> int:
        """What the embeddings take now."""
        return self._files.num_bytes

    def holds(self, key: EmbeddingKey, tile: Tile, *, keep: bool = False) -> bool:
        """Tell whether a tile is there, without reading it.

        Parameters
        ----------
        key : EmbeddingKey
        tile : Tile
            Of the level's grid; no other tile is ever there.
        keep : bool
            Whether this counts as a use, so that others go first when room is needed.
        """
        place = chunk_path(self.folder, key, tile)
        if place is None or not self._is_there(place):
            return False
        if keep:
            self._used(place)
        return True

    def read(self, key: EmbeddingKey, tile: Tile) -> dict[str, NDArray[np.float16]] | None:
        """Read the maps of a tile.

        Returns
        -------
        dict of str to float16 array, or None
            As they were written; None if the tile is not there, or is damaged: then a warning is
            logged and it is removed.
        """
        place = chunk_path(self.folder, key, tile)
        if place is None or not self._is_there(place):
            return None
        try:
            maps = self._read(place, tile_index(key, tile))
        except _DamageError as error:
            logger.warning("%s is damaged and will be made again (%s)", error.path, error)
            self._drop(error.path)
            return None
        except OSError as error:
            logger.warning("%s cannot be read and will be made again (%s)", place, error)
            return None
        if maps is not None:
            self._used(place)
        return maps

    def write(self, key: EmbeddingKey, tile: Tile, maps: Maps) -> bool:
        """Keep the maps of a tile, and make room for them.

        Returns
        -------
        bool
            False if the tile does not lie on the level's grid, or the store is read-only: then
            nothing is written.

        Raises
        ------
        EmbeddingsError
            If the disk is full or the folder cannot be written to.
        """
        place = chunk_path(self.folder, key, tile)
        if place is None or self.is_read_only:
            return False
        flat, layout = pack(maps)
        try:
            self._keep_max_bytes()
            self._write(place.parent, tile_index(key, tile), flat, describe(key, tile, layout))
        except OSError as error:
            raise self._unusable(error) from error
        self._files.added(place)
        return True

    def require_writable(self) -> None:
        """Make the folder, and check that something can be written into it.

        Raises
        ------
        EmbeddingsError
            If not.
        """
        try:
            self._keep_max_bytes()
            probe = self.folder / f".{uuid.uuid4().hex}.partial"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise self._unusable(error) from error

    def tidy(self) -> None:
        """Remove what is over the limit and what killed processes left."""
        if not self.is_read_only:
            self._files.tidy()

    def _is_there(self, place: Path) -> bool:
        return place.is_file()

    def _used(self, place: Path) -> None:
        self._files.used(place)

    def _opened(self, folder: Path, *, writable: bool) -> Store:
        return LocalStore(folder, read_only=not writable)

    def _read(self, place: Path, index: tuple[int, ...]) -> dict[str, NDArray[np.float16]] | None:
        array = self._array(place.parent, writable=False)
        if array is None:
            return None
        layout: Any = array.attrs["maps"]
        try:
            flat = np.asarray(array[index])
            # Absent since it was looked for: chunks that are not there read as NaN.
            return None if np.isnan(flat[:1]).any() else unpack(flat, layout)
        except MemoryError:
            raise
        except OSError as error:
            if isinstance(error, ImageReadError):
                raise _DamageError(place, error) from error
            raise
        # Codecs answer damaged bytes with errors of any kind.
        except Exception as error:
            raise _DamageError(place, error) from error

    def _write(
        self,
        folder: Path,
        index: tuple[int, ...],
        flat: NDArray[np.float16],
        about: dict[str, Any],
    ) -> None:
        with self._lock:
            array = self._array_for(folder, about, flat.size)
        array[index] = flat
        if not (folder / "zarr.json").is_file():
            # Another process made room and took the bare folder away: describe it again.
            with self._lock:
                self._forget(folder)
                self._array_for(folder, about, flat.size)

    def _array_for(self, folder: Path, about: dict[str, Any], size: int) -> zarr.Array[Any]:
        """Open the array of a level for writing; make it where it is missing or does not fit."""
        shape = (*about["shape"], size)
        try:
            array = self._array(folder, writable=True)
        except _DamageError as error:
            logger.warning("%s is damaged and made anew (%s)", error.path, error)
            error.path.unlink(missing_ok=True)
            array = None
        if array is not None and array.shape == shape and array.attrs.asdict() == about:
            return array
        if array is not None:
            # Maps of another form under the same fingerprint are not to be trusted.
            logger.warning("%s holds embeddings of another form; they are removed", folder)
            chunks = (path for path in folder.iterdir() if CHUNK_NAME.fullmatch(path.name))
            for path in (*chunks, folder / "zarr.json"):
                path.unlink(missing_ok=True)
        self._forget(folder)
        try:
            made = create(folder, shape, about)
        except ContainsArrayError:
            # Another process was faster.
            return self._array_for(folder, about, size)
        self._arrays[folder, True] = made
        return made

    def _array(self, folder: Path, *, writable: bool) -> zarr.Array[Any] | None:
        """Open the array of a level, or give the one that is open; None if there is none."""
        with self._lock:
            if (folder, writable) in self._arrays:
                return self._arrays[folder, writable]
            try:
                store = self._opened(folder, writable=writable)
                local = folder if isinstance(store, LocalStore) else None
                checked = CheckedStore(store, str(folder), local)
                array = zarr.open_array(checked, mode="r+" if writable else "r")
                checked.watch(array)
                require_layout(array)
                array = bounded(array)
            except FileNotFoundError:
                return None
            except (OSError, MemoryError) as error:
                if isinstance(error, ImageReadError):
                    raise _DamageError(folder / "zarr.json", error) from error
                raise
            # So do damaged descriptions.
            except Exception as error:
                raise _DamageError(folder / "zarr.json", error) from error
            self._arrays[folder, writable] = array
            return array

    def _forget(self, folder: Path) -> None:
        for writable in (False, True):
            self._arrays.pop((folder, writable), None)

    def _drop(self, damaged: Path) -> None:
        if self.is_read_only:
            return
        with self._lock:
            self._forget(damaged.parent)
        # Where it cannot be removed it is found damaged again.
        with suppress(OSError):
            damaged.unlink()

    def _keep_max_bytes(self) -> None:
        """Have the folder remember its limit."""
        self.folder.mkdir(parents=True, exist_ok=True)
        asked, self._asked_max_bytes = self._asked_max_bytes, None
        if asked is None:
            return
        target = self.folder / SETTINGS
        partial = target.with_name(f"{SETTINGS}.{uuid.uuid4().hex}.partial")
        try:
            partial.write_text(json.dumps({"max_bytes": asked}) + "\n", encoding="utf-8")
            patiently(lambda: partial.replace(target))
        except OSError:
            self._asked_max_bytes = asked
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise

    def _unusable(self, error: OSError) -> EmbeddingsError:
        return EmbeddingsError(
            f"expected to write embeddings to {self.folder}, got {type(error).__name__}: {error}; "
            f"check the space on the disk and the rights of the folder, or name another one with "
            f"{EMBEDDINGS_VARIABLE}"
        )


class _BehindURL(EmbeddingStore):
    """Embeddings on a server of files: nothing is written, and no tile is looked for twice."""

    def __init__(
        self,
        folder: Path | str | None = None,
        *,
        max_bytes: int | None = None,
        read_only: bool = True,
    ) -> None:
        del max_bytes, read_only
        self._url, _, self._query = str(folder).partition("?")
        self.folder = Path(urlsplit(self._url).path)
        self.is_read_only = True
        self._arrays = {}
        self._lock = threading.RLock()
        self._there: dict[Path, bool] = {}
        self._not_before = 0.0
        # What is no URL of a server is told now.
        self._opened(self.folder, writable=False)

    @property
    def max_bytes(self) -> int:
        return 0

    @property
    def num_bytes(self) -> int:
        return 0

    def write(self, key: EmbeddingKey, tile: Tile, maps: Maps) -> bool:
        del key, tile, maps
        return False

    def require_writable(self) -> None:
        raise EmbeddingsError(
            f"expected a folder that can be written to, got {shown_url(self._url)}; encode into a "
            "folder of this machine, and copy it there"
        )

    def _opened(self, folder: Path, *, writable: bool) -> Store:
        del writable
        below = folder.relative_to(self.folder).as_posix()
        query = f"?{self._query}" if self._query else ""
        try:
            return open_url(f"{self._url.rstrip('/')}/{below}{query}")
        except ImageError as error:
            raise EmbeddingsError(str(error)) from error

    def _is_there(self, place: Path) -> bool:
        if time.monotonic() < self._not_before:
            return False
        if place not in self._there:
            store = self._opened(place.parent, writable=False)
            try:
                self._there[place] = sync(store.exists(place.name))
            except OSError as error:
                self._not_before = time.monotonic() + PAUSE_S
                logger.warning(
                    "embeddings at %s are not used for %.0f s: %s",
                    shown_url(self._url),
                    PAUSE_S,
                    error,
                )
                return False
        return self._there[place]

    def _used(self, place: Path) -> None:
        pass


class _DamageError(Exception):
    """What was read from a file is not what was written."""

    def __init__(self, path: Path, error: Exception) -> None:
        super().__init__(f"{type(error).__name__}: {error}")
        self.path = path


def _kept_max_bytes(folder: Path) -> int:
    """Return the limit that a folder was given last."""
    try:
        kept = read_json(folder / SETTINGS)["max_bytes"]
    except FileNotFoundError:
        return DEFAULT_MAX_BYTES
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.warning("%s cannot be read (%s): the limit is 8 GB", folder / SETTINGS, error)
        return DEFAULT_MAX_BYTES
    return kept if isinstance(kept, int) and kept > 0 else DEFAULT_MAX_BYTES
