"""The embeddings of one image by one model on disk: a place that may fail without harm."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

from napari_hrsam.engine.predictor import Embedding, Predictor
from napari_hrsam.errors import EmbeddingsError, ImageReadError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.images.fingerprint import identify
from napari_hrsam.storage.images.tile_source import PyramidImage

if TYPE_CHECKING:
    from napari_hrsam.storage.embeddings.store import EmbeddingKey, EmbeddingStore

logger = logging.getLogger(__name__)


class StoredTiles:
    """What an `EmbeddingStore` has for one image and one model.

    The image is fingerprinted when the store is first asked, not before.

    Parameters
    ----------
    store : EmbeddingStore
    image : PyramidImage
    predictor : Predictor

    Attributes
    ----------
    store : EmbeddingStore
    """

    def __init__(self, store: EmbeddingStore, image: PyramidImage, predictor: Predictor) -> None:
        self.store = store
        self._image = image
        self._predictor = predictor
        self._known: EmbeddingKey | None = None
        self._is_readable = True
        self._is_writable = not store.is_read_only
        self._writer: ThreadPoolExecutor | None = None
        self._last: tuple[Tile, Future[None]] | None = None

    def holds(self, tile: Tile, *, keep: bool = False) -> bool:
        """Tell whether a tile is there, as `EmbeddingStore.holds`."""
        self._finish(tile)
        key = self._key()
        return key is not None and self.store.holds(key, tile, keep=keep)

    def read(self, tile: Tile) -> Embedding | None:
        """Read a tile; None if it is not there or damaged."""
        started = time.perf_counter()
        self._finish(tile)
        key = self._key()
        maps = None if key is None else self.store.read(key, tile)
        if maps is None:
            return None
        return Embedding(
            arrays=maps,
            fingerprint=self._predictor.fingerprint,
            tile=tile,
            encode_s=time.perf_counter() - started,
        )

    def write(self, embedding: Embedding) -> None:
        """Keep a tile, now. One with seams, from a device short of memory, is not kept.

        Raises
        ------
        EmbeddingsError
            If it cannot be written.
        """
        key = self._key()
        if key is not None and not embedding.has_seams:
            self.store.write(key, embedding.tile, embedding.arrays)

    def write_later(self, embedding: Embedding) -> None:
        """Keep a tile without waiting for the disk; at most one other is still to be written.

        The first failure is logged as a warning, and nothing is written from then on.
        """
        if not self._is_writable:
            return
        self.flush()
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, thread_name_prefix="hrsam-embeddings")
        # Here, where errors in reading the image are told: the writer may outlive the image.
        self._key()
        try:
            self._last = embedding.tile, self._writer.submit(self._write_or_warn, embedding)
        except RuntimeError:
            # The interpreter is ending: neither we nor zarr can start work on other threads.
            self._is_writable = False
            logger.debug("a tile seen while the program ended is not kept")

    def flush(self) -> None:
        """Wait until what was to be kept is written."""
        if self._last is not None:
            (_, last), self._last = self._last, None
            last.result()

    def close(self) -> None:
        """Finish writing. What is kept can still be read."""
        self.flush()
        if self._writer is not None:
            self._writer.shutdown()
            self._writer = None

    def _finish(self, tile: Tile) -> None:
        """Wait if this tile is being written."""
        if self._last is not None and self._last[0] == tile:
            self.flush()

    def _write_or_warn(self, embedding: Embedding) -> None:
        try:
            self.write(embedding)
        except EmbeddingsError as error:
            self._is_writable = False
            logger.warning("embeddings are kept in memory only from now on: %s", error)

    def _key(self) -> EmbeddingKey | None:
        """Fingerprint image and model; None if the image cannot be read for that."""
        if self._known is None and self._is_readable:
            from napari_hrsam.storage.embeddings.store import EmbeddingKey

            try:
                image = identify(self._image, self._predictor.fill)
            except ImageReadError as error:
                self._is_readable = self._is_writable = False
                logger.warning("embeddings on disk are not used for this image: %s", error)
                return None
            self._known = EmbeddingKey(image, self._predictor.fingerprint)
        return self._known
