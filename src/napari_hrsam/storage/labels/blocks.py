"""What an edit of a label image changes, in blocks that are kept packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numcodecs.zstd import compress
from numpy.typing import NDArray

from napari_hrsam.geometry import Box
from napari_hrsam.storage.files.bounded_codecs import zstd_at_most


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """A part of an edit.

    Attributes
    ----------
    box : Box
        Where, in level-0 pixels.
    changed : (box.height, box.width) bool or None
        The pixels that got the edit's label, or that had it and became background; None for all.
    before : (box.height, box.width) integer or None
        The labels there before; None where all changed pixels were background.
    after : (box.height, box.width) integer or None
        The labels that the changed pixels got, all of which were background, where an edit drew
        many objects; None: the label of the edit.
    """

    box: Box
    changed: NDArray[np.bool_] | None = None
    before: NDArray[Any] | None = None
    after: NDArray[Any] | None = None


class Blocks(Protocol):
    """The blocks of one edit."""

    @property
    def boxes(self) -> Sequence[Box]:
        """Where the blocks lie; together they hold every changed pixel once."""

    def read(self, index: int) -> Block:
        """Read a block."""


class StoredBlocks:
    """The blocks of one edit: their boxes at hand, their pixels when asked for.

    Parameters
    ----------
    boxes : list of Box
        In the order in which they were recorded; together they hold every changed pixel once.
    rows : list of int or None
        Where each is stored; None for those of which all was changed and nothing was there.
    read_row : callable of Box and int
        Reads one.

    Attributes
    ----------
    boxes : list of Box
    """

    def __init__(
        self, boxes: list[Box], rows: list[int | None], read_row: Callable[[Box, int], Block]
    ) -> None:
        self._rows = rows
        self._read_row = read_row
        self.boxes = boxes

    def read(self, index: int) -> Block:
        """Read a block.

        Raises
        ------
        LabelsError
            If what is stored is damaged.
        """
        box, row = self.boxes[index], self._rows[index]
        return Block(box) if row is None else self._read_row(box, row)


def pack(block: Block, dtype: np.dtype[Any]) -> tuple[bytes | None, bytes | None]:
    """Pack what changed and what was there before, or after; these as labels of a dtype."""
    changed = None if block.changed is None else _zstd(np.packbits(block.changed))
    labels = block.before if block.after is None else block.after
    if labels is None:
        return changed, None
    return changed, _zstd(np.ascontiguousarray(labels, dtype))


def unpack(
    box: Box,
    changed: bytes | None,
    packed: bytes | None,
    dtype: np.dtype[Any],
    *,
    are_after: bool = False,
) -> Block:
    """Return the block that was packed, with labels before or after.

    Raises
    ------
    ValueError, RuntimeError
        If it is damaged.
    """
    labels = None
    if packed is not None:
        size = box.area * dtype.itemsize
        labels = np.frombuffer(zstd_at_most(packed, size), dtype).reshape(box.shape_yx)
    mask = _mask_from(changed, box)
    return Block(box, mask, after=labels) if are_after else Block(box, mask, labels)


def _zstd(values: NDArray[Any]) -> bytes:
    # SQLite does not notice damage in what it holds; the checksum does.
    packed: bytes = compress(values, 1, checksum=True)
    return packed


def _mask_from(packed: bytes | None, box: Box) -> NDArray[np.bool_] | None:
    if packed is None:
        return None
    bits = np.frombuffer(zstd_at_most(packed, -(-box.area // 8)), np.uint8)
    return np.unpackbits(bits, count=box.area).view(np.bool_).reshape(box.shape_yx)
