"""The levels of an image: those that are stored, and coarser ones made when they are wanted."""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box, Grid
from napari_hrsam.lru import LRU
from napari_hrsam.storage.images.resample import finite_block_mean
from napari_hrsam.storage.images.stored import StoredLevel

OVERVIEW_PX = 2048
"""A pyramid that ends above this side gets coarser levels, each made when it is wanted."""

DERIVED_FACTOR = 8
"""Pixels of the level before per pixel of a made level, along y and x."""

MAX_DERIVED_BYTES = 64 * 2**20
"""Memory for the blocks kept of one made level."""


class Level(Protocol):
    """One level of an image, read box by box."""

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in pixels of this level."""

    @property
    def factor_yx(self) -> tuple[float, float]:
        """Level-0 pixels per pixel along y and x."""

    @property
    def chunk_yx(self) -> tuple[int, int]:
        """Height and width of what is read at once; (1, 1) where any part is read for itself."""

    @property
    def working_dtype(self) -> type[np.floating[Any]]:
        """The float dtype in which the pixel values can be told apart."""

    def read(self, box: Box, plane: tuple[int, ...], channels: tuple[int, ...]) -> NDArray[Any]:
        """Read (box.height, box.width, len(channels)) pixels; the box lies inside the level."""


class DerivedLevel:
    """A coarser level than any that is stored: area means, made block by block when wanted.

    The image is not changed. The blocks seen lately are kept in memory, `MAX_DERIVED_BYTES` at
    most. Pixels that are not finite do not count. Several threads may read at a time.

    Parameters
    ----------
    source : Level
        The next finer level.
    """

    def __init__(self, source: Level) -> None:
        self._source = source
        height, width = source.shape_yx
        self.shape_yx = (math.ceil(height / DERIVED_FACTOR), math.ceil(width / DERIVED_FACTOR))
        self.factor_yx = (
            source.factor_yx[0] * DERIVED_FACTOR,
            source.factor_yx[1] * DERIVED_FACTOR,
        )
        self.working_dtype = source.working_dtype
        self.chunk_yx = _block_shape(source.chunk_yx)
        self._blocks: LRU[tuple[object, ...], NDArray[Any]] = LRU(
            MAX_DERIVED_BYTES, lambda block: block.nbytes
        )
        self._lock = threading.Lock()

    def read(self, box: Box, plane: tuple[int, ...], channels: tuple[int, ...]) -> NDArray[Any]:
        """Read a box of one plane as in `StoredLevel.read`, in `working_dtype`."""
        pixels = np.empty((*box.shape_yx, len(channels)), self.working_dtype)
        grid = Grid(self.chunk_yx)
        for whole in map(grid.box, grid.places(box)):
            block, part = self._block(whole, plane, channels), whole.intersection(box)
            to, start = part.shifted(-box.y0, -box.x0), part.shifted(-whole.y0, -whole.x0)
            pixels[to.slices] = block[start.slices]
        return pixels

    def _block(self, box: Box, plane: tuple[int, ...], channels: tuple[int, ...]) -> NDArray[Any]:
        key = (box, plane, channels)
        with self._lock:
            if key in self._blocks:
                return self._blocks[key]
        # Not under the lock: others need not wait for a slow source.
        wide = Box(*(end * DERIVED_FACTOR for end in (box.y0, box.x0, box.y1, box.x1)))
        values = self._source.read(wide.clip(self._source.shape_yx), plane, channels)
        block = finite_block_mean(values.astype(self.working_dtype, copy=False), DERIVED_FACTOR)
        with self._lock:
            self._blocks[key] = block
        return block


def _block_shape(chunk_yx: tuple[int, int]) -> tuple[int, int]:
    """Choose blocks that hold whole chunks of the source, so that none is read twice.

    About square, but for chunks that are far longer than wide, such as strips; huge chunks are
    read for several blocks.
    """
    high, wide = (math.ceil(length / DERIVED_FACTOR) for length in chunk_yx)
    area = min(1024**2, max(256**2, high * wide))
    if wide > 256:
        wide = min(wide, area // min(high, 1024))
        return max(1, min(1024, max(high, area // wide))), wide
    high = min(max(high, 256), area)
    return high, max(wide, area // high)


def with_coarse_levels(stored: Sequence[StoredLevel]) -> tuple[Level, ...]:
    """Add made levels until the coarsest is an overview; an array in memory needs none."""
    levels: list[Level] = list(stored)
    while max(levels[-1].shape_yx) > OVERVIEW_PX and not stored[-1].is_in_memory:
        levels.append(DerivedLevel(levels[-1]))
    return tuple(levels)


def level_for(levels: Sequence[Level], factor: float) -> Level:
    """Choose the coarsest level that is not coarser than ``factor`` level-0 pixels per pixel."""
    # Factors come from physical scales and are not exact.
    fine = [level for level in levels if max(level.factor_yx) <= factor * (1 + 1e-6)]
    return fine[-1] if fine else levels[0]
