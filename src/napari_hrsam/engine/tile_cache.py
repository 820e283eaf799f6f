"""The embeddings of tiles: in memory, else on disk, else from a server, else made here."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.predictor import Embedding, Predictor
from napari_hrsam.engine.stored_tiles import StoredTiles
from napari_hrsam.errors import ImageReadError, SessionError
from napari_hrsam.geometry import Tile, level_shape
from napari_hrsam.storage.images.fingerprint import identify
from napari_hrsam.storage.images.tile_source import PyramidImage

if TYPE_CHECKING:
    from napari_hrsam.engine.remote_encoder import RemoteEncoder
    from napari_hrsam.storage.embeddings.store import EmbeddingStore
    from napari_hrsam.storage.images.fingerprint import ImageIdentity

logger = logging.getLogger(__name__)

MAX_BYTES = 512 * 2**20
"""Memory for the tiles of one image, pixels included."""


class CachedTile:
    """A tile and its embedding.

    Parameters
    ----------
    embedding : Embedding
        What the model made of it.
    encode_s : float
        Seconds that encoding took just now; 0 when the embedding was at hand.
    pixels : TilePixels
        What the model saw.
    """

    def __init__(self, embedding: Embedding, encode_s: float, pixels: TilePixels) -> None:
        self.embedding = embedding
        self.encode_s = encode_s
        self._pixels = pixels

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """(size, size, 3) uint8; read from the image at first use if it was not read before.

        Raises
        ------
        ImageReadError
            If they cannot be read.
        """
        return self._pixels.read()

    @property
    def present(self) -> NDArray[np.bool_] | None:
        """(size, size) bool, False where the image lacks pixels; None if it can lack none.

        Raises
        ------
        ImageReadError
            If the pixels cannot be read.
        """
        return self._pixels.present()


class TilePixels:
    """The pixels of one tile, read when they are first wanted, and kept.

    Parameters
    ----------
    image : PyramidImage
    tile : Tile
    fill : (red, green, blue)
        Colour outside the image.
    """

    def __init__(self, image: PyramidImage, tile: Tile, fill: tuple[int, int, int]) -> None:
        self._image = image
        self._tile = tile
        self._fill = fill
        self._read: tuple[NDArray[np.uint8], NDArray[np.bool_] | None] | None = None

    def read(self) -> NDArray[np.uint8]:
        """Return (size, size, 3) uint8."""
        return self._once()[0]

    def present(self) -> NDArray[np.bool_] | None:
        """Return (size, size) bool, False where the image lacks pixels; None: it can lack none."""
        return self._once()[1] if self._image.may_lack_pixels else None

    def _once(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        if self._read is None:
            if self._image.may_lack_pixels:
                self._read = self._image.read_present(self._tile, self._fill)
            else:
                self._read = self._image.read(self._tile, self._fill), None
        return self._read

    def inside(self) -> NDArray[np.uint8]:
        """Return the (h, w, 3) part that lies inside the image."""
        inside = self._tile.box0.clip(self._image.shape_yx)
        height, width = level_shape(inside.shape_yx, self._tile.level)
        return self.read()[:height, :width]


class NotEncodedError(Exception):
    """A tile that is neither in memory nor on disk, where nothing is to be encoded."""


class TileCache:
    """Embeddings of tiles of one image by one model, made when they are first wanted.

    Parameters
    ----------
    image : PyramidImage
        Where pixels are read.
    predictor : Predictor
        The model.
    max_tiles : int
        Tiles kept in memory, 1 or more; those not seen for the longest time go first.
    max_bytes : int
        Memory for them; one is kept whatever its size.
    store : EmbeddingStore, optional
        Where embeddings are kept on disk.
    remote : RemoteEncoder, optional
        A server that is asked before a tile is encoded here.

    Attributes
    ----------
    max_tiles : int
    stored : StoredTiles or None

    Raises
    ------
    SessionError
        If ``max_tiles`` is less than 1.
    """

    def __init__(
        self,
        image: PyramidImage,
        predictor: Predictor,
        *,
        max_tiles: int,
        max_bytes: int = MAX_BYTES,
        store: EmbeddingStore | None = None,
        remote: RemoteEncoder | None = None,
    ) -> None:
        if max_tiles < 1:
            raise SessionError(f"expected max_embeddings of 1 or more, got {max_tiles}")
        self._image = image
        self._predictor = predictor
        self.max_tiles = max_tiles
        self._max_bytes = max_bytes
        self.stored = None if store is None else StoredTiles(store, image, predictor)
        self._remote = remote
        self._identity: ImageIdentity | None = None
        self._is_readable = True
        self._seen: OrderedDict[Tile, CachedTile] = OrderedDict()
        self._may_encode = True

    @property
    def tile_px(self) -> int:
        """Side of the tiles that the model takes."""
        return self._predictor.tile_px

    def get(self, tile: Tile) -> CachedTile:
        """Take a tile from memory or from disk, else read and encode it.

        Raises
        ------
        ImageReadError
            If its pixels cannot be read.
        SessionError
            If the model fails.
        """
        if tile in self._seen:
            self._seen.move_to_end(tile)
            return self._seen[tile]
        embedding = None if self.stored is None else self.stored.read(tile)
        pixels, encode_s = self.pixels(tile), 0.0
        if embedding is None and not self._may_encode:
            raise NotEncodedError(tile)
        if embedding is None:
            embedding = self._encoded(pixels, tile)
            encode_s = embedding.encode_s
            logger.debug("encoded %s in %.3f s", tile, encode_s)
            if self.stored is not None:
                self.stored.write_later(embedding)
        self._seen[tile] = CachedTile(embedding, 0.0, pixels)
        while len(self._seen) > max(1, self._room_like(embedding)):
            self._seen.popitem(last=False)
        return CachedTile(embedding, encode_s, pixels)

    @contextmanager
    def without_encoding(self) -> Iterator[None]:
        """Have `get` raise `NotEncodedError` where it would encode."""
        self._may_encode = False
        try:
            yield
        finally:
            self._may_encode = True

    def see_ahead(self, wanted: Sequence[Tile], needed: Collection[Tile] = ()) -> bool:
        """See the first of some tiles that is not at hand.

        No other wanted tile and no needed one makes room for it: tiles at the end of ``wanted``
        for which memory has no room are left out.

        Parameters
        ----------
        wanted : sequence of Tile
            The most important first.
        needed : collection of Tile
            Tiles in use, which stay in memory.

        Returns
        -------
        bool
            False if there was nothing to do.

        Raises
        ------
        ImageReadError, SessionError
            As in `see`.
        """
        others = [tile for tile in needed if tile in self._seen and tile not in wanted]
        wanted = wanted[: max(0, self._room() - len(others))]
        for tile in wanted:
            if self.is_at_hand(tile):
                continue
            self._renew((*reversed(wanted), *others))
            self.get(tile)
            self._renew((*reversed(wanted), *others))
            return True
        return False

    def is_at_hand(self, tile: Tile) -> bool:
        """Whether a tile is in memory or on disk."""
        return tile in self._seen or (self.stored is not None and self.stored.holds(tile))

    def is_kept(self, tile: Tile) -> bool:
        """Whether a tile is where `keep` puts it; this counts as a use."""
        if self.stored is not None:
            return self.stored.holds(tile, keep=True)
        self._renew([tile])
        return tile in self._seen

    def keep(self, tile: Tile, pixels: TilePixels) -> Embedding:
        """Encode a tile for later: onto the disk, or into memory if there is no store.

        Parameters
        ----------
        tile : Tile
        pixels : TilePixels
            Of this tile.

        Raises
        ------
        ImageReadError, SessionError
            As in `see`.
        EmbeddingsError
            If the embedding cannot be written.
        """
        if self.stored is None:
            return self.get(tile).embedding
        seen = self._seen.get(tile)
        embedding = self._encoded(pixels, tile) if seen is None else seen.embedding
        self.stored.write(embedding)
        return embedding

    def pixels(self, tile: Tile) -> TilePixels:
        """Give the pixels of a tile, which are not read yet."""
        return TilePixels(self._image, tile, self._predictor.fill)

    def max_kept(self, embedding: Embedding) -> int:
        """Tell how many tiles like this one `keep` has room for."""
        if self.stored is None:
            return self._room_like(embedding)
        return self.stored.store.max_bytes // sum(x.nbytes for x in embedding.arrays.values())

    def clear(self) -> None:
        """Forget the tiles in memory, and finish writing others to disk."""
        self._seen.clear()
        if self.stored is not None:
            self.stored.close()

    def _encoded(self, pixels: TilePixels, tile: Tile) -> Embedding:
        """Have a tile encoded by the server if there is one that does, else here."""
        if self._remote is not None and tile.size_px == self._predictor.tile_px:
            started = time.perf_counter()
            fingerprint = self._predictor.fingerprint
            maps = self._remote.encode(
                tile, pixels.read, fingerprint, self._predictor.map_shapes, self._known()
            )
            if maps is not None:
                encode_s = time.perf_counter() - started
                return Embedding(arrays=maps, fingerprint=fingerprint, tile=tile, encode_s=encode_s)
        return self._predictor.encode(pixels.read(), tile)

    def _known(self) -> ImageIdentity | None:
        """Tell the image from others, for a server that may have it; None if it is damaged."""
        if self._identity is None and self._is_readable:
            try:
                self._identity = identify(self._image, self._predictor.fill)
            except ImageReadError as error:
                self._is_readable = False
                logger.warning("a server is not asked for this image by its name: %s", error)
        return self._identity

    def _renew(self, tiles: Iterable[Tile]) -> None:
        """Count tiles as just seen, the last one last."""
        for tile in tiles:
            if tile in self._seen:
                self._seen.move_to_end(tile)

    def _room(self) -> int:
        """Tiles that memory has room for."""
        if not self._seen:
            return self.max_tiles
        return self._room_like(next(reversed(self._seen.values())).embedding)

    def _room_like(self, embedding: Embedding) -> int:
        """Tiles like this one that memory has room for."""
        return min(self.max_tiles, self._max_bytes // num_bytes(embedding))


def num_bytes(embedding: Embedding) -> int:
    """Memory that a tile takes, with its pixels."""
    return sum(array.nbytes for array in embedding.arrays.values()) + 3 * embedding.tile.size_px**2
