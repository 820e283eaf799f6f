"""The tiles that a session saw lately: their pixels and embeddings."""

from __future__ import annotations

import logging
from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.predictor import Embedding, Predictor
from napari_hrsam.errors import SessionError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.tile_source import PyramidImage

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class SeenTile:
    """A tile that was read and encoded.

    Attributes
    ----------
    pixels : (size, size, 3) uint8
        What the model saw.
    embedding : Embedding
        What it made of it.
    encode_s : float
        Seconds that encoding took just now; 0 when the embedding was at hand.
    """

    pixels: NDArray[np.uint8]
    embedding: Embedding
    encode_s: float


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

    Raises
    ------
    SessionError
        If ``max_tiles`` is less than 1.
    """

    def __init__(self, image: PyramidImage, predictor: Predictor, *, max_tiles: int) -> None:
        if max_tiles < 1:
            raise SessionError(f"expected max_embeddings of 1 or more, got {max_tiles}")
        self._image = image
        self._predictor = predictor
        self.max_tiles = max_tiles
        self._seen: OrderedDict[Tile, SeenTile] = OrderedDict()

    def see(self, tile: Tile) -> SeenTile:
        """Read and encode a tile, or take it from those seen lately.

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
        pixels = self._image.read(tile, self._predictor.fill)
        embedding = self._predictor.encode(pixels, tile)
        logger.debug("encoded %s in %.3f s", tile, embedding.encode_s)
        self._seen[tile] = SeenTile(pixels, embedding, 0.0)
        while len(self._seen) > self.max_tiles:
            self._seen.popitem(last=False)
        return SeenTile(pixels, embedding, embedding.encode_s)

    def clear(self) -> None:
        """Forget all tiles."""
        self._seen.clear()
