"""Write a change of labels to every level of a label image, in little memory."""

from __future__ import annotations

import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.lru import LRU
from napari_hrsam.masks import RegionMask
from napari_hrsam.storage.files.safe_files import FileBatch, changed_ns
from napari_hrsam.storage.labels.blocks import Block, Blocks
from napari_hrsam.storage.labels.changes import changed_pixels
from napari_hrsam.storage.labels.chunks import (
    Chunk,
    ChunkGrid,
    OneLabel,
    labels_of,
    mask_of,
    one_label,
    own_labels_of,
    unwritable,
)
from napari_hrsam.storage.labels.downsampling import AxisRatio, any_set, majority
from napari_hrsam.storage.labels.stored import StoredLabels

logger = logging.getLogger(__name__)

MAX_KEPT_BYTES = 64 * 2**20
"""Memory for the chunks that were read or written last, all levels together."""


_Place = tuple[int, int]

MAX_CHUNK_BYTES = 2**27
"""Largest chunk (or shard) of another program that is drawn into; up to three copies of it are in
memory at a time."""


def require_small_chunks(labels: StoredLabels) -> None:
    """Raise `LabelsError` if a commit would have to rewrite a chunk that fills the memory."""
    for array in labels.levels:
        step = array.shards or array.chunks
        num_bytes = math.prod(step) * labels.dtype.itemsize
        if num_bytes > MAX_CHUNK_BYTES:
            raise LabelsError(
                f"expected chunks (or shards) of at most {MAX_CHUNK_BYTES >> 20} MiB at "
                f"{labels.folder}, got {step} with {num_bytes >> 20} MiB in level {array.path}; "
                "each commit would rewrite one: copy the labels into new ones made with "
                "create_labels"
            )


class LevelWriter:
    """Writes changes to every level: whole chunks only, coarser levels derived from finer ones.

    It goes through the chunks in the order of a quadtree: a coarse chunk follows the fine ones
    under it, which are still in memory then. What was just read or written is kept, until `forget`.

    Parameters
    ----------
    labels : StoredLabels
        The label image.
    check : callable, optional
        Called before files take their places; what it raises keeps them from it.

    Raises
    ------
    LabelsError
        If a level is larger than the one before.
    """

    def __init__(self, labels: StoredLabels, check: Callable[[], None] | None = None) -> None:
        self.labels = labels
        self.files = FileBatch(check)
        self.grids = [ChunkGrid(labels.folder, array, self.files) for array in labels.levels]
        self.ratios = [
            (AxisRatio(fine[0], coarse[0]), AxisRatio(fine[1], coarse[1]))
            for fine, coarse in itertools.pairwise(grid.shape_yx for grid in self.grids)
        ]
        self._chunks: LRU[tuple[int, tuple[int, ...], _Place], Chunk] = LRU(
            MAX_KEPT_BYTES, _num_bytes
        )

    def forget(self) -> None:
        """Let go of the memory; the next change reads anew what others may have written."""
        self._chunks.clear()

    def close(self) -> None:
        """Let go of memory and threads."""
        self.forget()
        self.files.close()

    def changes(
        self,
        box: Box,
        mask: RegionMask,
        label: int,
        plane: tuple[int, ...],
        *,
        overwrite: bool,
        erased: Box | None = None,
    ) -> Iterator[Block]:
        """Go through what a new object changes, or other pixels for an old one, chunk by chunk.

        Parameters
        ----------
        box, mask, label, plane, overwrite
            As in `PyramidLabels.write`; all checked.
        erased : Box, optional
            In ``box``: where pixels that have the label and are not in the mask become background.

        Raises
        ------
        LabelsError
            If the labels there cannot be read.
        """
        row: Box | None = None
        for block in self._changed_chunks(
            box, mask, label, plane, overwrite=overwrite, erased=erased
        ):
            # Chunks in one row that the object fills and that were empty are one block.
            is_plain = block.changed is None and block.before is None
            if row is not None:
                if is_plain and _is_continued(row, block.box):
                    row = row.union(block.box)
                    continue
                yield Block(row)
                row = None
            if is_plain:
                row = block.box
            else:
                yield block
        if row is not None:
            yield Block(row)

    def accepted(
        self, box: Box, painted: Callable[[Box], NDArray[Any]], plane: tuple[int, ...]
    ) -> Iterator[Block]:
        """Go through what many new objects change, chunk by chunk: background only.

        Parameters
        ----------
        box : Box
            Inside the image.
        painted : callable of Box
            Gives the labels in a part of it, 0 where there is no new object.
        plane : tuple of int
            Where.

        Raises
        ------
        LabelsError
            If the labels there cannot be read.
        """
        grid = self.grids[0]
        for place in grid.places(box):
            whole = grid.box(place)
            part = whole.intersection(box)
            new = painted(part)
            changed = new != 0
            if not changed.any():
                continue
            chunk = self.read(0, plane, place)
            if chunk is not None:
                inside = part.shifted(-whole.y0, -whole.x0).slices
                changed &= labels_of(chunk, whole.shape_yx, self.labels.dtype)[inside] == 0
                if not changed.any():
                    continue
            tight = Box.around(changed)
            changed = changed[tight.slices]
            after = np.where(changed, new[tight.slices], 0).astype(self.labels.dtype)
            yield Block(tight.shifted(part.y0, part.x0), changed, after=after)

    def leaves_any(
        self, mask: RegionMask, label: int, plane: tuple[int, ...], *, overwrite: bool
    ) -> bool:
        """Whether a pixel of a mask has the label when it is written, or had it before."""
        for _, wanted, values in self._parts(mask.box, mask, plane, None):
            if values is None:
                return True
            able = (values == label) | changed_pixels(values, None, label, overwrite=overwrite)
            if (able if wanted is None else able & wanted).any():
                return True
        return False

    def put(self, plane: tuple[int, ...], label: int, blocks: Blocks, *, is_done: bool) -> None:
        """Write the labels after an edit (or before it) at every level; safe to do twice.

        Until `drop_backups`, `put_back` undoes it.

        Parameters
        ----------
        plane : tuple of int
            Where the edit is.
        label : int
            The id that it draws or erases.
        blocks : Blocks
            What it changes.
        is_done : bool
            Whether the labels after it are written, or those before it.

        Raises
        ------
        LabelsError
            If a chunk cannot be read or written; the edit may be written in part.
        """
        try:
            _Update(self, plane, label, blocks, is_done=is_done).run()
            self.files.finish()
        except OSError as error:
            raise unwritable(str(self.labels.folder), error) from error

    def written(self) -> Iterator[tuple[str, int]]:
        """Go through the chunks of level 0 that `put` wrote: their keys, and when (in ns)."""
        top = f"{self.labels.folder / self.labels.levels[0].path}/"
        for path in self.files.replaced:
            if path.startswith(top):
                # What was removed, or cannot be asked, is unknown.
                with suppress(OSError):
                    yield path.removeprefix(top), changed_ns(Path(path).stat())

    def drop_backups(self) -> None:
        """Let go of what `put` replaced."""
        try:
            self.files.drop_backups()
        except OSError as error:
            logger.warning("a file that is no longer needed was left: %s", error)

    def put_back(self) -> None:
        """Bring back all files as they were before `put`; this needs no space on the disk.

        Raises
        ------
        LabelsError
            If the disk fails; do it again later.
        """
        self.forget()
        try:
            self.files.abandon()
        except OSError as error:
            raise unwritable(str(self.labels.folder), error) from error

    def require_readable(self, plane: tuple[int, ...], blocks: Blocks) -> None:
        """Raise `LabelsError` if a chunk that a change of some blocks needs is damaged."""
        for index, box in enumerate(blocks.boxes):
            block = blocks.read(index)
            for place in self.grids[0].places(box):
                if not _replaces(block, self.grids[0].box(place)):
                    self.read(0, plane, place)

    def read(self, level: int, plane: tuple[int, ...], place: _Place) -> Chunk:
        """Read a chunk, or take it from memory."""
        key = (level, plane, place)
        if key not in self._chunks:
            self._chunks[key] = self.grids[level].read(plane, place)
        return self._chunks[key]

    def write(self, level: int, plane: tuple[int, ...], place: _Place, chunk: Chunk) -> None:
        """Write a chunk, and keep it in memory."""
        self.grids[level].write(plane, place, chunk)
        self._chunks[level, plane, place] = chunk

    def coarser(self, level: int, box: Box) -> Box:
        """Return the pixels of a level on which a box of the level before falls."""
        rows, columns = self.ratios[level - 1]
        y0, y1 = rows.covering(box.y0, box.y1)
        x0, x1 = columns.covering(box.x0, box.x1)
        return Box(y0, x0, y1, x1)

    def _changed_chunks(
        self,
        box: Box,
        mask: RegionMask,
        label: int,
        plane: tuple[int, ...],
        *,
        overwrite: bool,
        erased: Box | None,
    ) -> Iterator[Block]:
        for part, wanted, values in self._parts(box, mask, plane, erased):
            if values is None:
                if wanted is None or wanted.any():
                    yield _tight(part, wanted, None)
                continue
            gone = None if erased is None else part.intersection(erased)
            if gone is not None:
                gone = gone.shifted(-part.y0, -part.x0) if gone.area else None
            changed = changed_pixels(values, wanted, label, overwrite=overwrite, erased=gone)
            if changed.any():
                yield _tight(part, changed, values)

    def _parts(
        self, box: Box, mask: RegionMask, plane: tuple[int, ...], erased: Box | None
    ) -> Iterator[tuple[Box, NDArray[np.bool_] | None, NDArray[Any] | None]]:
        """Go through the chunks that a mask may change: where, its pixels, the labels there.

        None stands for a mask of all pixels, and for no labels.
        """
        grid = self.grids[0]
        for place in grid.places(box):
            whole = grid.box(place)
            part = whole.intersection(box)
            may_erase = erased is not None and part.intersection(erased).area > 0
            known = mask.fills(part)
            if known is False and not may_erase:
                continue
            wanted = None if known else mask.read(part).astype(np.bool_, copy=False)
            if wanted is not None and not may_erase and not wanted.any():
                continue
            chunk = self.read(0, plane, place)
            values = None
            if chunk is not None:
                inside = part.shifted(-whole.y0, -whole.x0).slices
                values = labels_of(chunk, whole.shape_yx, self.labels.dtype)[inside]
            yield part, wanted, values


class _Update:
    """One change on its way through the levels."""

    def __init__(
        self,
        writer: LevelWriter,
        plane: tuple[int, ...],
        label: int,
        blocks: Blocks,
        *,
        is_done: bool,
    ) -> None:
        self._writer = writer
        self._plane, self._label = plane, label
        self._blocks, self._is_done = blocks, is_done
        self._dtype = writer.labels.dtype
        # Blocks that touch each chunk of level 0, and the part of every chunk to be changed.
        self._touching: dict[_Place, list[int]] = {}
        self._parts: list[dict[_Place, Box]] = [{} for _ in writer.grids]
        for index, box in enumerate(blocks.boxes):
            for place in self._touch(0, box):
                self._touching.setdefault(place, []).append(index)
        for level in range(1, len(writer.grids)):
            for part in self._parts[level - 1].values():
                self._touch(level, writer.coarser(level, part))
        self._left = [set(parts) for parts in self._parts]

    def run(self) -> None:
        """Write every chunk, finer ones before the coarser ones over them."""
        top = len(self._parts) - 1
        for place in list(self._parts[top]):
            self._update(top, place)

    def _touch(self, level: int, box: Box) -> list[_Place]:
        grid, parts = self._writer.grids[level], self._parts[level]
        places = list(grid.places(box))
        for place in places:
            part = box.intersection(grid.box(place))
            parts[place] = parts[place].union(part) if place in parts else part
        return places

    def _update(self, level: int, place: _Place) -> None:
        if place not in self._left[level]:
            return
        self._left[level].remove(place)
        chunk = self._derived(level, place) if level else self._changed(place)
        self._writer.write(level, self._plane, place, chunk)

    def _changed(self, place: _Place) -> Chunk:
        """Change a chunk of level 0."""
        box = self._writer.grids[0].box(place)
        blocks = [self._blocks.read(index) for index in self._touching[place]]
        if _replaces(blocks[0], box):
            return OneLabel(self._label) if self._is_done else None
        chunk = self._writer.read(0, self._plane, place)
        for block in blocks:
            chunk = self._with_block(chunk, box, block)
        return chunk

    def _with_block(self, chunk: Chunk, box: Box, block: Block) -> Chunk:
        common = box.intersection(block.box)
        where = common.shifted(-box.y0, -box.x0).slices
        inside = common.shifted(-block.box.y0, -block.box.x0).slices
        changed = True if block.changed is None else block.changed[inside]
        if block.after is not None:
            values = own_labels_of(chunk, box.shape_yx, self._dtype)
            new = block.after[inside] if self._is_done else np.array(0, self._dtype)
            np.copyto(values[where], new, where=changed)
            return values if values.any() else None
        before = None if block.before is None else block.before[inside]
        mask = mask_of(chunk, self._label, box.shape_yx)
        if mask is not None and (self._is_done or before is None):
            # What had the label already and changes is erased.
            is_drawn = self._is_done if before is None else before != self._label
            np.copyto(mask[where], is_drawn, where=changed)
            return one_label(self._label, mask)
        values = own_labels_of(chunk, box.shape_yx, self._dtype)
        new = np.array(self._label if self._is_done else 0, self._dtype)
        if before is not None:
            new = np.where(before == self._label, 0, new) if self._is_done else before
        np.copyto(values[where], new.astype(self._dtype, copy=False), where=changed)
        return values if values.any() else None

    def _derived(self, level: int, place: _Place) -> Chunk:
        """Compute what changes in a coarser chunk, from the level before."""
        box, part = self._writer.grids[level].box(place), self._parts[level][place]
        current: Chunk = None
        if part != box:
            try:
                current = self._writer.read(level, self._plane, place)
            except LabelsError:
                self._warn(level)
                part = box
        found = self._coarse(level, part)
        if part == box:
            return found
        where = part.shifted(-box.y0, -box.x0).slices
        mask = mask_of(current, self._label, box.shape_yx)
        new = mask_of(found, self._label, part.shape_yx)
        if mask is not None and new is not None:
            mask[where] = new
            return one_label(self._label, mask)
        values = own_labels_of(current, box.shape_yx, self._dtype)
        values[where] = labels_of(found, part.shape_yx, self._dtype)
        return values if values.any() else None

    def _coarse(self, level: int, part: Box) -> Chunk:
        """Compute a part of a level from the level before."""
        rows, columns = self._writer.ratios[level - 1]
        y, x = rows.edges(part.y0, part.y1), columns.edges(part.x0, part.x1)
        source = Box(int(y[0]), int(x[0]), int(y[-1]), int(x[-1]))
        places = list(self._writer.grids[level - 1].places(source))
        chunks = {place: self._source(level - 1, place) for place in places}
        if all(chunk is None for chunk in chunks.values()):
            return None
        label = _only_label(chunks.values())
        if label is not None and all(_is_full(chunk) for chunk in chunks.values()):
            return OneLabel(label)
        y, x = y - y[0], x - x[0]
        if label is not None:
            mask = np.zeros(source.shape_yx, np.bool_)
            for place, chunk in chunks.items():
                if isinstance(chunk, OneLabel):
                    to, inside = self._common(level - 1, place, source)
                    mask[to] = True if chunk.mask is None else chunk.mask[inside]
            return one_label(label, any_set(mask, y, x))
        values = np.zeros(source.shape_yx, self._dtype)
        for place, chunk in chunks.items():
            if chunk is not None:
                to, inside = self._common(level - 1, place, source)
                shape = self._writer.grids[level - 1].box(place).shape_yx
                values[to] = labels_of(chunk, shape, self._dtype)[inside]
        return majority(values, y, x)

    def _source(self, level: int, place: _Place) -> Chunk:
        """Return a finer chunk as it shall be."""
        self._update(level, place)
        try:
            return self._writer.read(level, self._plane, place)
        except LabelsError:
            if level == 0:
                raise
            self._warn(level)
        self._left[level].add(place)
        self._parts[level][place] = self._writer.grids[level].box(place)
        self._update(level, place)
        return self._writer.read(level, self._plane, place)

    def _warn(self, level: int) -> None:
        # What is damaged in a coarser level is made anew.
        folder = self._writer.labels.folder
        logger.warning("deriving a damaged part of level %d of %s", level, folder)

    def _common(
        self, level: int, place: _Place, box: Box
    ) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
        """Return where the common part of a box and a chunk lies in the box, and in the chunk."""
        own = self._writer.grids[level].box(place)
        common = own.intersection(box)
        return common.shifted(-box.y0, -box.x0).slices, common.shifted(-own.y0, -own.x0).slices


def _tight(part: Box, changed: NDArray[np.bool_] | None, values: NDArray[Any] | None) -> Block:
    """Cut a change to its smallest box; leave out what goes without saying."""
    if changed is None:
        return Block(part)
    tight = Box.around(changed)
    changed = changed[tight.slices]
    before = None
    if values is not None:
        before = np.where(changed, values[tight.slices], np.array(0, values.dtype))
    return Block(
        tight.shifted(part.y0, part.x0),
        None if changed.all() else changed,
        before if before is not None and before.any() else None,
    )


def _is_continued(row: Box, box: Box) -> bool:
    return (row.y0, row.y1, row.x1) == (box.y0, box.y1, box.x0)


def _replaces(block: Block, box: Box) -> bool:
    """Whether a block says all about the pixels of a box."""
    is_plain = block.changed is None and block.before is None and block.after is None
    return is_plain and box.union(block.box) == block.box


def _only_label(chunks: Iterable[Chunk]) -> int | None:
    """Return the one label that there is in some chunks; None if there may be several, or none."""
    labels = {
        chunk.label if isinstance(chunk, OneLabel) else None
        for chunk in chunks
        if chunk is not None
    }
    return labels.pop() if len(labels) == 1 else None


def _is_full(chunk: Chunk) -> bool:
    return isinstance(chunk, OneLabel) and chunk.mask is None


def _num_bytes(chunk: Chunk) -> int:
    if chunk is None:
        return 0
    array = chunk.mask if isinstance(chunk, OneLabel) else chunk
    return 0 if array is None else array.nbytes
