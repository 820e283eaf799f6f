"""What lies in one chunk of a label image while it is changed.

A chunk here is what one file of a level holds: a chunk of zarr, or a shard. Most that a commit
touches hold nothing, or one object: these are kept as such, and never as dense labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, Grid
from napari_hrsam.storage.files.safe_files import FileBatch
from napari_hrsam.storage.labels.codec import DAMAGE, codec_of, damaged
from napari_hrsam.storage.labels.names import require_no_way_out


@dataclass(frozen=True, slots=True, eq=False)
class OneLabel:
    """One object and background.

    Attributes
    ----------
    label : int
        The object's id.
    mask : (H, W) bool or None
        Where it lies; None for everywhere. Never changed in place.
    """

    label: int
    mask: NDArray[np.bool_] | None = None


Chunk = OneLabel | NDArray[Any] | None
"""None: background only. Arrays of labels are never changed in place."""


def one_label(label: int, mask: NDArray[np.bool_]) -> Chunk:
    """Return the simplest chunk that holds an object where the mask is True."""
    if mask.all():
        return OneLabel(label)
    return OneLabel(label, mask) if mask.any() else None


def _simplest(labels: NDArray[Any]) -> Chunk:
    """Return a chunk of labels; one that is the same everywhere is kept as that."""
    first = labels[0, 0]
    if labels[-1, -1] != first or not (labels == first).all():
        return labels
    return OneLabel(int(first)) if first else None


def mask_of(chunk: Chunk, label: int, shape_yx: tuple[int, int]) -> NDArray[np.bool_] | None:
    """Return where an object lies in a chunk that holds nothing else, to be changed in place.

    None if the chunk may hold others.
    """
    if chunk is None:
        return np.zeros(shape_yx, np.bool_)
    if not isinstance(chunk, OneLabel) or chunk.label != label:
        return None
    return np.ones(shape_yx, np.bool_) if chunk.mask is None else chunk.mask.copy()


def labels_of(chunk: Chunk, shape_yx: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the labels of a chunk, not to be changed in place."""
    if chunk is None:
        return np.zeros(shape_yx, dtype)
    if not isinstance(chunk, OneLabel):
        return chunk
    if chunk.mask is None:
        return np.full(shape_yx, chunk.label, dtype)
    labels: NDArray[Any] = np.multiply(chunk.mask, np.array(chunk.label, dtype))
    return labels.astype(dtype, copy=False)


def own_labels_of(chunk: Chunk, shape_yx: tuple[int, int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the labels of a chunk, to be changed in place."""
    labels = labels_of(chunk, shape_yx, dtype)
    return labels.copy() if labels is chunk else labels


class ChunkGrid:
    """The chunks of one level and the files that hold them.

    Parameters
    ----------
    folder : Path
        Where the label group lies.
    array : zarr.Array
        The level; the last two axes are y and x.
    files : FileBatch
        Through which files are read and replaced.

    Attributes
    ----------
    shape_yx, side_yx : tuple of int
        Height and width of the level, and of a chunk that is not cut by the end of the level.
    dtype : dtype
        Of the labels.
    """

    def __init__(self, folder: Path, array: zarr.Array[Any], files: FileBatch) -> None:
        self._top = str(folder / array.path)
        self._array, self._files = array, files
        self.dtype = np.dtype(array.dtype)
        self._step = array.shards or array.chunks
        self._codec = codec_of(array)
        self._root = folder.resolve()
        self._folders_inside: set[str] = set()
        self._full: dict[tuple[int, tuple[int, int]], bytes | None] = {}
        self.shape_yx = (array.shape[-2], array.shape[-1])
        self.side_yx = (self._step[-2], self._step[-1])
        self._grid = Grid(self.side_yx)

    def places(self, box: Box) -> Iterator[tuple[int, int]]:
        """Go through the rows and columns of the chunks under a box, row by row."""
        return self._grid.places(box)

    def box(self, place: tuple[int, int]) -> Box:
        """Return the pixels of a chunk, inside the level."""
        return self._grid.box(place).clip(self.shape_yx)

    def read(self, plane: tuple[int, ...], place: tuple[int, int]) -> Chunk:
        """Read a chunk.

        Raises
        ------
        LabelsError
            If its file is damaged or cannot be read; the message names it.
        """
        stored = self._stored(self._path(plane, place), place)
        if stored is None:
            return None
        return _simplest(np.asarray(stored[self._inside(plane, place)]))

    def write(self, plane: tuple[int, ...], place: tuple[int, int], chunk: Chunk) -> None:
        """Replace a chunk; the file is there when the `FileBatch` is finished.

        Raises
        ------
        LabelsError
            If the disk is full or fails, or the codec of another program cannot write.
        """
        path = self._path(plane, place)
        try:
            if any(size > 1 for size in self._step[:-2]):
                data = self._codec.encode(self._with_other_planes(path, plane, place, chunk))
            else:
                data = self._encoded(place, chunk)
        except (LabelsError, MemoryError):
            raise
        # Settings of a codec are looked at when it writes, and answered with errors of any kind.
        except Exception as error:
            raise LabelsError(
                f"expected labels that can be written at {path}, got {type(error).__name__}: "
                f"{error} of their codec; copy them into new ones made with create_labels"
            ) from error
        try:
            self._require_inside(path)
            self._files.write(path, data, top=self._top)
        except OSError as error:
            raise unwritable(path, error) from error

    def _require_inside(self, path: str) -> None:
        """Refuse a file in a folder that a link leads out of the label image."""
        folder = path.rpartition("/")[0]
        if folder not in self._folders_inside:
            require_no_way_out(self._root, Path(folder))
            self._folders_inside.add(folder)

    def _stored(self, path: str, place: tuple[int, int]) -> NDArray[Any] | None:
        """Read a whole chunk with all planes that its file holds."""
        try:
            data = self._files.read(path, self._codec.max_bytes)
            return None if data is None else self._codec.decode(data)
        except DAMAGE as error:
            box = self.box(place)
            pixels = f"pixels [{box.y0}:{box.y1}, {box.x0}:{box.x1}] of {self._array.store_path}"
            raise damaged(path, pixels, error) from error

    def _encoded(self, place: tuple[int, int], chunk: Chunk) -> bytes | None:
        if chunk is None:
            return None
        shape = self.box(place).shape_yx
        if not isinstance(chunk, OneLabel) or chunk.mask is not None:
            return self._codec.encode(self._padded(labels_of(chunk, shape, self.dtype)))
        # All chunks that one object fills are the same bytes.
        key = chunk.label, shape
        if key not in self._full:
            self._full = {known: data for known, data in self._full.items() if known[0] == key[0]}
            self._full[key] = self._codec.encode(
                self._padded(np.full(shape, chunk.label, self.dtype))
            )
        return self._full[key]

    def _padded(self, values: NDArray[Any]) -> NDArray[Any]:
        """Return a whole chunk; beyond the end of the level it holds zeros."""
        if values.shape == self.side_yx:
            return values.reshape(self._step)
        stored = np.zeros(self._step, self.dtype)
        height, width = values.shape
        stored[..., :height, :width] = values
        return stored

    def _with_other_planes(
        self, path: str, plane: tuple[int, ...], place: tuple[int, int], chunk: Chunk
    ) -> NDArray[Any]:
        stored = self._stored(path, place)
        stored = np.zeros(self._step, self.dtype) if stored is None else stored.copy()
        labels = labels_of(chunk, self.box(place).shape_yx, self.dtype)
        stored[self._inside(plane, place)] = labels
        return stored

    def _inside(self, plane: tuple[int, ...], place: tuple[int, int]) -> tuple[Any, ...]:
        """Return where a plane's part of a chunk lies in its whole chunk."""
        height, width = self.box(place).shape_yx
        offset = (i % size for i, size in zip(plane, self._step[:-2], strict=True))
        return (*offset, slice(height), slice(width))

    def _path(self, plane: tuple[int, ...], place: tuple[int, int]) -> str:
        indices = (*(i // n for i, n in zip(plane, self._step[:-2], strict=True)), *place)
        return f"{self._top}/{self._array.metadata.encode_chunk_key(indices)}"


def unwritable(path: str, error: OSError) -> LabelsError:
    """Return the error for a file that the disk does not take."""
    return LabelsError(
        f"expected to write the labels at {path}, got: {error}; "
        "check the space on the disk and the rights of the folder, then do it again"
    )
