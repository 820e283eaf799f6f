"""Encode tiles ahead of time: a level, a part of it, or what lies around a view."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.predictor import Embedding
from napari_hrsam.engine.tasks import EndOfRunError
from napari_hrsam.engine.tile_cache import TileCache
from napari_hrsam.errors import PromptError
from napari_hrsam.geometry import FINEST_LEVEL, Box, Tile, TileGrid, downsample

Progress = Callable[[int, int], None]
"""Called with the tiles done and the tiles in all; may raise to stop."""

BLANK_PX, BLANK_RANGE = 8, 8
"""A tile is blank if the means of its squares of this side lie within this range of 0..255."""

NUM_FINER = 4
"""Tiles of the next finer level that are read ahead."""

MAX_AHEAD = 8
"""Sides of tiles around the middle of a view in which tiles are read ahead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbedReport:
    """What encoding ahead came to.

    Attributes
    ----------
    level : int
    num_tiles : int
        Tiles that were asked for.
    num_encoded : int
        Those that were encoded just now.
    num_at_hand : int
        Those that were there before.
    num_blank : int
        Those that were left out.
    tile_px : int
        Side of a tile.
    seconds : float
    """

    level: int
    num_tiles: int
    num_encoded: int
    num_at_hand: int
    num_blank: int
    tile_px: int
    seconds: float

    @property
    def mpx_per_s(self) -> float:
        """Millions of pixels encoded per second; tiles overlap, so most count four times."""
        return self.num_encoded * self.tile_px**2 / 1e6 / max(self.seconds, 1e-9)


def embed_tiles(
    cache: TileCache,
    tiles: Sequence[Tile],
    progress: Progress | None = None,
    *,
    skip_blank: bool = False,
    num_in_all: int = 0,
) -> EmbedReport:
    """Encode the tiles that are not kept yet, one after the other, and keep each at once.

    One by one: batches gain less than a tenth on a CPU (benchmarks/embeddings.py), and what of a
    batch was done would be lost when the process is killed.

    Parameters
    ----------
    cache : TileCache
    tiles : sequence of Tile
        Of one level; at least one.
    progress : callable, optional
        Told how many tiles are done, first those at hand. What it raises stops the work; what was
        encoded is kept.
    skip_blank : bool
        Leave out tiles that show nothing; they are encoded when they are clicked on.
    num_in_all : int
        Tiles that there must be room for, where others encode more of them.

    Raises
    ------
    SessionError
        If there is no room for all of them.
    EmbeddingsError
        If an embedding cannot be written.
    ImageReadError
        If pixels cannot be read.
    """
    started = time.perf_counter()
    missing = [tile for tile in tiles if not cache.is_kept(tile)]
    at_hand, blank, encoded = len(tiles) - len(missing), 0, 0
    if progress:
        progress(at_hand, len(tiles))
    for done, tile in enumerate(missing, at_hand + 1):
        pixels = cache.pixels(tile)
        if skip_blank and is_blank(pixels.inside()):
            blank += 1
        else:
            embedding = cache.keep(tile, pixels)
            encoded += 1
            if encoded == 1:
                _require_room(cache, embedding, max(num_in_all, len(tiles)))
        if progress:
            progress(done, len(tiles))
    return EmbedReport(
        level=tiles[0].level,
        num_tiles=len(tiles),
        num_encoded=encoded,
        num_at_hand=at_hand,
        num_blank=blank,
        tile_px=tiles[0].size_px,
        seconds=time.perf_counter() - started,
    )


def _require_room(cache: TileCache, embedding: Embedding, num: int) -> None:
    """Refuse to encode tiles that would push out those encoded before."""
    room = cache.max_kept(embedding)
    if num <= room:
        return
    need = num * sum(array.nbytes for array in embedding.arrays.values())
    if cache.stored is None:
        way = "give the session a store on disk: Session(..., embeddings=EmbeddingStore())"
    else:
        way = f"allow the store more (max_bytes={need}, --max-gb {math.ceil(need / 1e8) / 10})"
    raise EndOfRunError(
        f"expected room for {num} tiles ({need / 1e9:.1f} GB), got room for {room}; {way}, or "
        "choose a coarser level or a box"
    )


def is_blank(pixels: NDArray[np.uint8]) -> bool:
    """Whether pixels show nothing but one colour and noise.

    Parameters
    ----------
    pixels : (h, w, 3) uint8
        Less than 8 rows or columns are never blank.
    """
    rows, columns = (side // BLANK_PX for side in pixels.shape[:2])
    if rows == 0 or columns == 0:
        return False
    squares = pixels[: rows * BLANK_PX, : columns * BLANK_PX].reshape(
        rows, BLANK_PX, columns, BLANK_PX, 3
    )
    means = squares.mean(axis=(1, 3), dtype=np.float32)
    return bool((means.max(axis=(0, 1)) - means.min(axis=(0, 1))).max() <= BLANK_RANGE)


def box_on(shape_yx: tuple[int, int], box: Sequence[float] | Box | None) -> Box:
    """Cut a level-0 box to an image; None is the whole image.

    Raises
    ------
    PromptError
        If the box is malformed or holds no pixel of the image.
    """
    if box is None:
        return Box.of_shape(shape_yx)
    if not isinstance(box, Box):
        try:
            y0, x0, y1, x1 = (float(end) for end in box)
            box = Box(int(y0 // 1), int(x0 // 1), int(-(-y1 // 1)), int(-(-x1 // 1)))
        except (TypeError, ValueError, OverflowError) as error:
            raise PromptError(
                f"expected a box (y0, x0, y1, x1) in level-0 pixels, got {box!r}; "
                "give the upper left corner first"
            ) from error
    cut = box.clip(shape_yx)
    if cut.area == 0:
        raise PromptError(
            f"expected a box inside the image of shape {shape_yx}, got {box}; "
            "give rows first, in pixels of full size"
        )
    return cut


def tiles_for(grid: TileGrid, box0: Box) -> list[Tile]:
    """Return the tiles that first clicks inside a box look at, nearest to its centre first.

    Parameters
    ----------
    grid : TileGrid
    box0 : Box
        In level-0 pixels, inside the image, of at least one pixel.
    """
    first = grid.nearest((box0.y0, box0.x0))
    last = grid.nearest((box0.y1 - 1, box0.x1 - 1))
    stride = grid.stride_px
    found = [
        grid.tile(row, column)
        for row in range(first.y0 // stride, last.y0 // stride + 1)
        for column in range(first.x0 // stride, last.x0 // stride + 1)
    ]
    centre = box0.y0 + box0.y1, box0.x0 + box0.x1

    def distance(tile: Tile) -> int:
        box = tile.box0
        return max(abs(box.y0 + box.y1 - centre[0]), abs(box.x0 + box.x1 - centre[1]))

    return sorted(found, key=distance)


def tiles_around(grid: TileGrid, box0: Box, coarsest: int) -> list[Tile]:
    """Return the tiles worth having for a view: its own, then coarser, then finer in its middle.

    Of a view of more than `MAX_AHEAD` tiles along a side it is the middle.
    """
    most = int(MAX_AHEAD * grid.tile_px * downsample(grid.level))
    dy, dx = (max(0, side - most) // 2 for side in box0.shape_yx)
    box0 = Box(box0.y0 + dy, box0.x0 + dx, box0.y1 - dy, box0.x1 - dx)
    tiles = tiles_for(grid, box0)
    for level, num in ((grid.level + 1, None), (grid.level - 1, NUM_FINER)):
        if FINEST_LEVEL <= level <= coarsest:
            other = TileGrid(grid.shape_yx, grid.tile_px, level, grid.plane)
            tiles += tiles_for(other, box0)[:num]
    return tiles
