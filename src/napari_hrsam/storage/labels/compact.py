"""A copy of a label image in few files, to be shared: OME-Zarr 0.5 with shards."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from napari_hrsam.atomic_path import patiently
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, Grid
from napari_hrsam.storage.files.safe_files import discard
from napari_hrsam.storage.labels.journal_facts import read_journal
from napari_hrsam.storage.labels.properties import OWN_KEY
from napari_hrsam.storage.labels.regions import Progress, region_grid
from napari_hrsam.storage.labels.stored import StoredFiles, StoredLabels

CHUNK_PX = 512
"""Side of the chunks inside a shard: what is read at once."""

MAX_SHARD_PX = 4096
"""Longest side of a shard."""

MAX_SHARD_BYTES = 64 * 2**20
"""Size of the largest shard in memory."""

_VERSION = "0.5"


@dataclass(frozen=True, kw_only=True, slots=True)
class Compacted:
    """A copy that was made and compared.

    Attributes
    ----------
    path : str
        The folder of the copy.
    version : str
        OME-Zarr version of the copy.
    source_version : str
        That of the original.
    num_files, num_bytes : int
        Files and bytes of the levels of the copy.
    source_num_files, source_num_bytes : int
        Those of the original.
    """

    path: str
    version: str
    source_version: str
    num_files: int
    num_bytes: int
    source_num_files: int
    source_num_bytes: int


def compact_labels(
    path: str | PathLike[str],
    name: str,
    out: str | PathLike[str],
    *,
    progress: Progress | None = None,
) -> Compacted:
    """Write a copy of a label image whose chunks are packed into shards, and compare it.

    The copy is a folder of labels alone, with the same levels, axes, scales, classes and colours,
    and without the journal. It is OME-Zarr 0.5 on zarr v3 in any case, as zarr v2 (OME-Zarr 0.4)
    has no shards. Shards in which there are no labels are not written. The original is only read;
    go on drawing there, because every change of a shard writes all of it.

    Parameters
    ----------
    path : path
        A local OME-Zarr image, or a folder of labels alone.
    name : str
        Name of the label image, which it keeps.
    out : path
        Folder of the copy: a new or an empty one. It is there as a whole or not at all.
    progress : callable (done, total), optional
        Counts shards, first written, then compared; what it raises ends the work.

    Returns
    -------
    Compacted

    Raises
    ------
    LabelsError
        If there is no such label image, a chunk of it is damaged, the folder holds something or
        cannot be written to, or the copy differs because the labels are drawn into meanwhile.
    """
    labels = StoredLabels(path, name)
    labels.require_metadata()
    target = Path(out)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise LabelsError(
            f"expected a new or an empty folder for the copy, got {target}, which holds something; "
            "choose another one"
        )
    facts = read_journal(labels.folder)
    if facts is not None and facts.pending:
        raise LabelsError(
            f"expected labels with nothing half done, got {len(facts.pending)} interrupted changes "
            f"in {labels.folder}; open them once with open_labels, or close them where they are "
            "open, then do it again"
        )
    partial = target.with_name(f".{target.name}.partial")
    try:
        discard(partial)
        partial.parent.mkdir(parents=True, exist_ok=True)
        arrays = _made(labels, partial)
        _copy(labels, arrays, partial, progress)
        before, after = _size(labels), _size(StoredLabels(partial, name))
        if target.exists():
            target.rmdir()
        patiently(lambda: partial.replace(target))
    except OSError as error:
        raise LabelsError(
            f"expected to write the copy {target}, got: {error}; check the space on the disk and "
            "the rights of the folder"
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return Compacted(
        path=str(target),
        version=_VERSION,
        source_version=labels.ome.version,
        num_files=after[0],
        num_bytes=after[1],
        source_num_files=before[0],
        source_num_bytes=before[1],
    )


def _made(labels: StoredLabels, folder: Path) -> list[zarr.Array[Any]]:
    """Make the empty copy."""
    root = zarr.open_group(folder, mode="w-", zarr_format=3)
    listing = root.create_group("labels")
    listing.attrs["ome"] = {"version": _VERSION, "labels": [labels.name]}
    group = listing.create_group(labels.name)
    arrays = []
    for array, dataset in zip(labels.levels, labels.ome.datasets, strict=True):
        chunk = tuple(min(CHUNK_PX, size) for size in array.shape[-2:])
        shard = tuple(
            _shard_side(size, side, array.dtype.itemsize)
            for size, side in zip(array.shape[-2:], chunk, strict=True)
        )
        front = (1,) * (array.ndim - 2)
        arrays.append(
            group.create_array(
                dataset,
                shape=array.shape,
                chunks=front + chunk,
                shards=front + shard,
                dtype=array.dtype,
                fill_value=0,
                dimension_names=labels.ome.axes,
                compressors=[ZstdCodec(level=5)],
            )
        )
    group.attrs.update(_attributes(labels))
    return arrays


def _shard_side(size: int, chunk: int, itemsize: int) -> int:
    """Choose the side of a shard: whole chunks, as many as fit the memory or the level needs."""
    largest = min(MAX_SHARD_PX, int((MAX_SHARD_BYTES / itemsize) ** 0.5))
    return chunk * max(1, min(largest // chunk, -(-size // chunk)))


def _attributes(labels: StoredLabels) -> dict[str, Any]:
    """Take over the metadata, in the form of version 0.5."""
    group = zarr.open_group(labels.folder, mode="r", use_consolidated=False)
    attributes = group.attrs.asdict()
    ome: Any = copy.deepcopy(attributes.get("ome", attributes))
    image: dict[str, Any] = ome["multiscales"][0]
    image.pop("version", None)
    label = dict(ome.get("image-label", {}))
    label.pop("version", None)
    # The image does not lie beside the copy.
    label.pop("source", None)
    own = {OWN_KEY: attributes[OWN_KEY]} if OWN_KEY in attributes else {}
    return {"ome": {"version": _VERSION, "multiscales": [image], "image-label": label}, **own}


def _copy(
    labels: StoredLabels,
    arrays: list[zarr.Array[Any]],
    partial: Path,
    progress: Progress | None,
) -> None:
    """Copy shard by shard, then read both again and compare."""
    files = [labels.files(level) for level in range(len(arrays))]
    shards = [*_shards(labels, arrays, files)]
    total = 2 * len(shards)
    for done, (level, plane, box) in enumerate(shards):
        place: tuple[int | slice, ...] = (*plane, *box.slices)
        arrays[level][place] = _read(labels, level, plane, box, files[level])
        if progress is not None:
            progress(done + 1, total)
    copied = StoredLabels(partial, labels.name)
    if sum(len(copied.files(level)) for level in range(len(arrays))) > len(shards):
        raise _differs(labels)
    files = [labels.files(level) for level in range(len(arrays))]
    for done, (level, plane, box) in enumerate(_shards(labels, arrays, files)):
        now = _read(labels, level, plane, box, files[level])
        if not np.array_equal(copied.read(box, level, plane), now):
            raise _differs(labels)
        if progress is not None:
            progress(min(len(shards) + done + 1, total), total)


def _differs(labels: StoredLabels) -> LabelsError:
    return LabelsError(
        f"expected a copy equal to the labels at {labels.folder}, but it differs: they were "
        "changed meanwhile; close them where they are drawn into, then do it again"
    )


def _shards(
    labels: StoredLabels, arrays: list[zarr.Array[Any]], files: list[StoredFiles]
) -> Iterator[tuple[int, tuple[int, ...], Box]]:
    """Go through the shards of the copy under which the original has chunks."""
    for level, array in enumerate(arrays):
        assert array.shards is not None
        shards = Grid((array.shards[-2], array.shards[-1]))
        for plane in np.ndindex(labels.plane_shape):
            grid = region_grid(labels, level, plane, files=files[level])
            places = {place for box in grid.boxes() for place in shards.places(box)}
            for place in sorted(places):
                yield level, plane, shards.box(place).intersection(grid.domain)


def _read(
    labels: StoredLabels, level: int, plane: tuple[int, ...], box: Box, files: StoredFiles
) -> NDArray[Any]:
    """Read a shard's box from the original, region by region; missing chunks are not looked for."""
    values = np.zeros(box.shape_yx, labels.dtype)
    for part in region_grid(labels, level, plane, box, files).boxes():
        values[part.shifted(-box.y0, -box.x0).slices] = labels.read(part, level, plane)
    return values


def _size(labels: StoredLabels) -> tuple[int, int]:
    """Count the files and bytes of all levels."""
    files = [path for path in labels.folder.rglob("*") if _is_level_file(labels, path)]
    return len(files), sum(path.stat().st_size for path in files)


def _is_level_file(labels: StoredLabels, path: Path) -> bool:
    inside = path.relative_to(labels.folder).as_posix()
    return path.is_file() and any(inside.startswith(f"{level}/") for level in labels.ome.datasets)
