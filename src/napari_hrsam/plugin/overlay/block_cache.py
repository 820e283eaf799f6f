"""Parts of stored label levels kept in bounded memory, for any number of threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, Grid
from napari_hrsam.lru import LRU

if TYPE_CHECKING:
    import zarr

MAX_BYTES = 128 * 2**20
"""Memory for blocks; what a 4k screen shows of two levels takes about half of it."""

MAX_BLOCKS = 2**16
"""Blocks remembered at most: those without any label take no memory, but a place in the list."""

BLOCK_PX = 512
"""Side of a block, as far as the chunks of an array allow it."""

MAX_BLOCK_PX = 2048

Key = tuple[int, tuple[int, ...], int, int]


class BlockCache:
    """Reads levels of a label image block by block; blocks seen lately stay in memory.

    Every method may be called from any thread. A block that cannot be read counts as background,
    and is reported once.

    Parameters
    ----------
    arrays : sequence of zarr arrays
        The levels, finest first; the last two axes are y and x.
    on_damage : callable, optional
        Called with the first `LabelsError`, on the thread that reads.
    max_bytes : int
        Memory for blocks.
    """

    def __init__(
        self,
        arrays: Sequence[zarr.Array[Any]],
        on_damage: Callable[[LabelsError], None] | None = None,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        self._arrays = tuple(arrays)
        self._on_damage = on_damage
        self._sides = tuple(_block_side(array) for array in arrays)
        # None stands for a block of background.
        self._blocks: LRU[Key, NDArray[Any] | None] = LRU(max_bytes, _num_bytes, MAX_BLOCKS)
        self._num_changes = 0
        self._damage: LabelsError | None = None
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """Memory that the blocks take now."""
        return self._blocks.num_bytes

    def shape(self, level: int) -> tuple[int, ...]:
        """Shape of a level."""
        return tuple(self._arrays[level].shape)

    def dtype(self, level: int) -> np.dtype[Any]:
        """Type of a level's labels, in the byte order of this computer."""
        return np.dtype(self._arrays[level].dtype).newbyteorder("=")

    def side_yx(self, level: int) -> tuple[int, int]:
        """Height and width of a level's blocks."""
        return self._sides[level]

    def tell_damage(self, on_damage: Callable[[LabelsError], None]) -> None:
        """Have the first `LabelsError` told; one that was met before is told at once."""
        with self._lock:
            self._on_damage, error = on_damage, self._damage
        if error is not None:
            on_damage(error)

    def read(self, level: int, plane: tuple[int, ...], box: Box) -> NDArray[Any]:
        """Read a part of one plane of a level.

        Parameters
        ----------
        level : int
        plane : tuple of int
            One index per axis before y and x.
        box : Box
            In pixels of the level, inside it.

        Returns
        -------
        (box.height, box.width), dtype of the labels; 0 where a chunk cannot be read
        """
        pixels = np.zeros(box.shape_yx, self.dtype(level))
        for row, column, whole in self._places(level, box):
            block = self._block((level, plane, row, column), whole)
            if block is not None:
                part = whole.intersection(box)
                pixels[part.shifted(-box.y0, -box.x0).slices] = block[
                    part.shifted(-whole.y0, -whole.x0).slices
                ]
        return pixels

    def forget(self, level: int, plane: tuple[int, ...], box: Box) -> None:
        """Have what lies under a box of a plane read again."""
        with self._lock:
            self._num_changes += 1
            for row, column, _ in self._places(level, box):
                self._blocks.drop((level, plane, row, column))

    def _places(self, level: int, box: Box) -> Iterator[tuple[int, int, Box]]:
        grid, shape = Grid(self._sides[level]), self._arrays[level].shape
        for place in grid.places(box):
            yield *place, grid.box(place).clip((shape[-2], shape[-1]))

    def _block(self, key: Key, box: Box) -> NDArray[Any] | None:
        with self._lock:
            if key in self._blocks:
                return self._blocks[key]
            num_changes = self._num_changes
        pixels = self._fetch(key, box)
        block = pixels if pixels.any() else None
        with self._lock:
            # What was written while this was read may be missing in it: it is used, not kept.
            if num_changes == self._num_changes:
                self._blocks[key] = block
        return block

    def _fetch(self, key: Key, box: Box) -> NDArray[Any]:
        # Here, as a panel without labels on disk needs no zarr, which takes long to import.
        from napari_hrsam.storage.labels.stored import read_labels

        level, plane = key[:2]
        try:
            pixels = read_labels(self._arrays[level], (*plane, *box.slices))
        except LabelsError as error:
            with self._lock:
                is_first, on_damage = self._damage is None, self._on_damage
                self._damage = self._damage or error
            if is_first and on_damage is not None:
                on_damage(error)
            return np.zeros(box.shape_yx, self.dtype(level))
        return pixels.astype(self.dtype(level), copy=False)


def _num_bytes(block: NDArray[Any] | None) -> int:
    return 0 if block is None else block.nbytes


def _block_side(array: zarr.Array[Any]) -> tuple[int, int]:
    """Choose blocks of whole chunks about `BLOCK_PX` wide, or parts of very large chunks."""
    height, width = (
        min(MAX_BLOCK_PX, max(1, round(BLOCK_PX / chunk)) * chunk) for chunk in array.chunks[-2:]
    )
    return height, width
