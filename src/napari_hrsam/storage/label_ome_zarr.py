"""Label images on disk: OME-Zarr label groups, opened.

A label image lies at ``labels/<name>`` of an OME-Zarr group, with one array per level.
"""

from __future__ import annotations

import logging
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError, ImageReadError, LabelsError
from napari_hrsam.storage.label_codec import DAMAGE, ChunkCodec, codec_of, damaged
from napari_hrsam.storage.label_names import label_folder
from napari_hrsam.storage.ome_metadata import dataset_paths
from napari_hrsam.storage.ome_zarr import array_in, open_group
from napari_hrsam.storage.safe_files import changed_ns, read_at_most

logger = logging.getLogger(__name__)

MAX_SIDE_PX = 2**31
"""Longest axis of a label image that is believed; 100 times the largest images there are."""

MAX_CHUNK_BYTES = 2**27
"""Largest chunk (or shard) of another program that is drawn into; up to three copies of it are in
memory at a time."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelLevels:
    """The opened arrays of a label image.

    Attributes
    ----------
    folder : Path
        Where the label group lies.
    arrays : tuple of zarr.Array
        One per level, finest first; the last two axes are y and x, those before are planes.
    """

    folder: Path
    arrays: tuple[zarr.Array[Any], ...]

    @property
    def shapes_yx(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every level."""
        return tuple((array.shape[-2], array.shape[-1]) for array in self.arrays)

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Sizes of the axes before y and x."""
        return tuple(self.arrays[0].shape[:-2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The integer dtype of all levels."""
        return np.dtype(self.arrays[0].dtype)

    def highest_label(self, is_known: Callable[[str, int], bool] | None = None) -> int | None:
        """Find the highest label of level 0, chunk by chunk.

        Only chunks that are stored are read.

        Parameters
        ----------
        is_known : callable of (str, int), optional
            Told the key of a chunk, and when its file was changed (in nanoseconds); the chunks
            for which it returns True are left out. Damaged ones are then too, with a warning.

        Returns
        -------
        int or None
            None if no chunk was read.

        Raises
        ------
        LabelsError
            If the folder cannot be listed, or a chunk cannot be read.
        """
        array = self.arrays[0]
        top = self.folder / array.path
        codec = codec_of(array)
        highest: int | None = None
        for key, part, found_ns in _chunk_files(top, array):
            if is_known is not None and is_known(key, found_ns):
                continue
            try:
                label = int(_inside(_decoded(codec, top / key, array), part, array).max())
            except LabelsError as error:
                if is_known is None:
                    raise
                # Nothing can be derived from it; its pixels are refused when they are needed.
                logger.warning("no ids are known of a chunk: %s", error)
                continue
            highest = label if highest is None else max(highest, label)
        return highest


def open_label_levels(path: Path, name: str) -> LabelLevels:
    """Open an existing label image, ours or another program's; see `create_label_levels`.

    Raises
    ------
    LabelsError
        If there is none of that name, or it is none that can be drawn into.
    """
    folder = label_folder(path, name)
    try:
        group = open_group(folder, "r+")
        datasets = dataset_paths(group.attrs.asdict(), str(folder))
        arrays = tuple(array_in(group, dataset, str(folder)) for dataset in datasets)
    except (ImageError, ImageReadError) as error:
        raise LabelsError(
            f"expected an OME-Zarr label image at {folder}, got metadata that cannot be used: "
            f"{error}"
        ) from error
    levels = LabelLevels(folder=folder, arrays=arrays)
    _check(levels)
    return levels


def _check(levels: LabelLevels) -> None:
    first = levels.arrays[0]
    for array in levels.arrays:
        _check_sizes(levels.folder, array)
        if array.ndim < 2 or 0 in array.shape or array.dtype.kind not in "iu":
            raise LabelsError(
                f"expected labels of integers with axes y and x at {levels.folder}, got shape "
                f"{array.shape} and dtype {array.dtype}; convert them to uint32"
            )
        if array.dtype != first.dtype or array.shape[:-2] != first.shape[:-2]:
            raise LabelsError(
                f"expected one dtype and all planes in every level of {levels.folder}, got "
                f"{array.dtype} {array.shape} beside {first.dtype} {first.shape}; copy the labels "
                "into new ones made with create_labels"
            )
        if array.fill_value not in (0, None):
            raise LabelsError(
                f"expected labels whose missing chunks are background (fill value 0) at "
                f"{levels.folder}, got {array.fill_value}; write the label image again"
            )


def _check_sizes(folder: Path, array: zarr.Array[Any]) -> None:
    """Refuse sizes that no image has, before anything is made of that size."""
    step = array.shards or array.chunks
    if max(array.shape, default=0) > MAX_SIDE_PX:
        raise LabelsError(
            f"expected labels of at most {MAX_SIDE_PX} pixels along each axis at {folder}, got "
            f"shape {array.shape}; the metadata of level {array.path} is damaged: bring it back "
            "from a copy"
        )
    num_bytes = math.prod(step) * np.dtype(array.dtype).itemsize
    if num_bytes > MAX_CHUNK_BYTES:
        raise LabelsError(
            f"expected chunks (or shards) of at most {MAX_CHUNK_BYTES >> 20} MiB at {folder}, got "
            f"{step} with {num_bytes >> 20} MiB in level {array.path}; each commit would rewrite "
            "one: copy the labels into new ones made with create_labels"
        )


def _chunk_files(top: Path, array: zarr.Array[Any]) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """Go through what is stored of an array: keys of chunks (or shards), indices, time of change.

    The files are looked for, not the chunks of the shape, of which there may be any number.
    """
    step = array.shards or array.chunks
    counts = [math.ceil(size / part) for size, part in zip(array.shape, step, strict=True)]
    pending = [""]
    try:
        while pending:
            inside = pending.pop()
            with os.scandir(top / inside) as entries:
                for entry in entries:
                    key = f"{inside}{entry.name}"
                    if entry.is_dir(follow_symlinks=False):
                        pending.append(f"{key}/")
                        continue
                    numbers = re.split("[/.]", key.removeprefix("c/").removeprefix("c."))
                    if len(numbers) != array.ndim or not all(n.isdecimal() for n in numbers):
                        continue
                    part = tuple(map(int, numbers))
                    is_inside = all(i < count for i, count in zip(part, counts, strict=True))
                    is_key = array.metadata.encode_chunk_key(part) == key
                    if is_inside and is_key and entry.is_file():
                        yield key, part, changed_ns(entry.stat())
    except OSError as error:
        raise LabelsError(
            f"expected a folder that can be listed at {top}, got: {error}; check its rights"
        ) from error


def _decoded(codec: ChunkCodec, file: Path, array: zarr.Array[Any]) -> NDArray[Any]:
    try:
        return codec.decode(read_at_most(str(file), codec.max_bytes) or b"")
    except DAMAGE as error:
        raise damaged(str(file), f"of {array.store_path}", error) from error


def _inside(chunk: NDArray[Any], place: tuple[int, ...], array: zarr.Array[Any]) -> NDArray[Any]:
    """Cut off what lies beyond the end of the level: it is no label, whatever is written there."""
    ends = (n - i * side for n, i, side in zip(array.shape, place, chunk.shape, strict=True))
    return chunk[tuple(slice(end) for end in ends)]


def read_labels(array: zarr.Array[Any], where: tuple[slice | int, ...]) -> NDArray[Any]:
    """Read a part of one level.

    Raises
    ------
    LabelsError
        If a chunk cannot be read; it names the array and the place.
    """
    try:
        return np.asarray(array[where])
    except DAMAGE as error:
        raise damaged(f"in {array.store_path}", f"at {_text(where)}", error) from error


def _text(where: tuple[slice | int, ...]) -> str:
    parts = (f"{p.start}:{p.stop}" if isinstance(p, slice) else str(p) for p in where)
    return "[" + ", ".join(parts) + "]"
