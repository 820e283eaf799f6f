"""The highest label that is in use, chunk by chunk."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import zarr
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.files.safe_files import changed_ns, read_at_most
from napari_hrsam.storage.labels.codec import DAMAGE, ChunkCodec, codec_of, damaged
from napari_hrsam.storage.labels.stored import StoredLabels

logger = logging.getLogger(__name__)


def highest_label(
    labels: StoredLabels, is_known: Callable[[str, int], bool] | None = None
) -> int | None:
    """Find the highest label of level 0, chunk by chunk.

    Only chunks that are stored are read.

    Parameters
    ----------
    labels : StoredLabels
        The label image.
    is_known : callable of (str, int), optional
        Told the key of a chunk, and when its file was changed (in nanoseconds); the chunks for
        which it returns True are left out. Damaged ones are then too, with a warning.

    Returns
    -------
    int or None
        None if no chunk was read.

    Raises
    ------
    LabelsError
        If the folder cannot be listed, or a chunk cannot be read.
    """
    array = labels.levels[0]
    top = labels.folder / array.path
    codec = codec_of(array)
    highest: int | None = None
    for key, place, entry in labels.entries(0):
        if place is None or not _is_inside(place, array) or not entry.is_file():
            continue
        if is_known is not None and is_known(key, changed_ns(entry.stat())):
            continue
        try:
            label = int(_cut(_decoded(codec, top / key, array), place, array).max())
        except LabelsError as error:
            if is_known is None:
                raise
            # Nothing can be derived from it; its pixels are refused when they are needed.
            logger.warning("no ids are known of a chunk: %s", error)
            continue
        highest = label if highest is None else max(highest, label)
    return highest


def _is_inside(place: tuple[int, ...], array: zarr.Array[Any]) -> bool:
    step = array.shards or array.chunks
    return all(i * n < size for i, n, size in zip(place, step, array.shape, strict=True))


def _decoded(codec: ChunkCodec, file: Path, array: zarr.Array[Any]) -> NDArray[Any]:
    try:
        return codec.decode(read_at_most(str(file), codec.max_bytes) or b"")
    except DAMAGE as error:
        raise damaged(str(file), f"of {array.store_path}", error) from error


def _cut(chunk: NDArray[Any], place: tuple[int, ...], array: zarr.Array[Any]) -> NDArray[Any]:
    """Cut off what lies beyond the end of the level: it is no label, whatever is written there."""
    ends = (n - i * side for n, i, side in zip(array.shape, place, chunk.shape, strict=True))
    return chunk[tuple(slice(end) for end in ends)]
