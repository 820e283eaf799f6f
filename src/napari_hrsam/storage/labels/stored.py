"""A label image on disk: its levels, and what is stored of them.

A label image lies at ``labels/<name>`` of an OME-Zarr group, with one array per level. What is
stored is found by the names of the files, so that a label image of any size costs what its objects
cost. Nothing here writes, or needs the right to.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError, ImageReadError, LabelsError
from napari_hrsam.geometry import Box, BoxLike, as_box
from napari_hrsam.storage.images.georeference import GEOREFERENCE, Georeference
from napari_hrsam.storage.images.ome_metadata import OmeImage, dataset_paths, parse_ome
from napari_hrsam.storage.images.ome_zarr import array_in, open_group
from napari_hrsam.storage.labels.arguments import checked_plane
from napari_hrsam.storage.labels.codec import DAMAGE, damaged
from napari_hrsam.storage.labels.names import label_folder, local_folder

MAX_SIDE_PX = 2**31
"""Longest axis of a label image that is believed; 100 times the largest images there are."""

ZARR_METADATA = frozenset({".zarray", ".zattrs", ".zgroup", ".zmetadata", "zarr.json"})
"""Names of the files that describe arrays and groups."""


@dataclass(frozen=True, slots=True)
class StoredFiles:
    """The files of one level.

    Attributes
    ----------
    chunks : dict
        The chunks (the shards, where there are some) that are stored: by their indices over the
        axes before y and x, the indices over y and x.
    strange : tuple of str
        Names of the files that are no chunk of the array, inside its folder.
    """

    chunks: dict[tuple[int, ...], set[tuple[int, int]]]
    strange: tuple[str, ...]

    def of_plane(self, place: tuple[int, ...], window: Box) -> Iterator[tuple[int, int]]:
        """Go through the chunks of a plane of chunks.

        Parameters
        ----------
        place : tuple of int
            Indices over the axes before y and x.
        window : Box
            Only chunks with indices over y and x in it.
        """
        stored = self.chunks.get(place, set())
        if window.area < len(stored):
            rows, columns = range(window.y0, window.y1), range(window.x0, window.x1)
            return (chunk for chunk in itertools.product(rows, columns) if chunk in stored)
        return (chunk for chunk in stored if window.contains(chunk))

    def __len__(self) -> int:
        """Return the number of chunks."""
        return sum(map(len, self.chunks.values()))


class StoredLabels:
    """The opened levels of a label image: ours, or another program's.

    Parameters
    ----------
    path : path
        A local OME-Zarr image, or a folder of labels alone.
    name : str
        Name of the label image, which lies at ``labels/<name>``.
    mode : {"r", "r+"}
        Whether `levels` can be written to.

    Attributes
    ----------
    path : Path
        The image, or the folder of labels.
    name : str
        Name of the label image.
    levels : tuple of zarr.Array
        One per level, finest first; the last two axes are y and x, those before are
        planes.

    Raises
    ------
    LabelsError
        If there is none of this name, or it is none of integers.
    """

    def __init__(
        self, path: str | PathLike[str], name: str, mode: Literal["r", "r+"] = "r"
    ) -> None:
        self.path, self.name = local_folder(path), name
        folder = str(self.folder)
        try:
            group = open_group(self.folder, mode)
            self._attributes = group.attrs.asdict()
            self.levels: tuple[zarr.Array[Any], ...] = tuple(
                array_in(group, dataset, folder)
                for dataset in dataset_paths(self._attributes, folder)
            )
        except (ImageError, ImageReadError) as error:
            raise _unusable(folder, error) from error
        _check(self)

    def __repr__(self) -> str:
        """Tell place, size and planes in one line."""
        height, width = self.shape_yx
        planes = f", planes {self.plane_shape}" if self.plane_shape else ""
        return f"{type(self).__name__}({str(self.folder)!r}, {height} x {width} px{planes})"

    @cached_property
    def folder(self) -> Path:
        """Where the label group lies."""
        return label_folder(self.path, self.name)

    @cached_property
    def ome(self) -> OmeImage:
        """What the label image says of itself; drawing into it does not need that.

        Raises
        ------
        LabelsError
            If it contradicts itself or the arrays, or its last axes are not y and x.
        """
        try:
            ome = parse_ome(self._attributes, str(self.folder))
        except ImageError as error:
            raise _unusable(str(self.folder), error) from error
        if ome.axes[-2:] != ("y", "x"):
            raise LabelsError(
                f"expected labels whose last axes are y and x, got {ome.axes} at {self.folder}; "
                "write them in this order"
            )
        if any(array.ndim != len(ome.axes) for array in self.levels):
            raise LabelsError(
                f"expected labels with the axes {ome.axes} at {self.folder}, got the shape "
                f"{self.levels[0].shape}; write the label image again"
            )
        return ome

    @property
    def georeference(self) -> Georeference | None:
        """Where the pixels lie on a map; None where its image was none."""
        return Georeference.from_json(self._attributes.get(GEOREFERENCE))

    def require_metadata(self) -> None:
        """Raise `LabelsError` unless `ome` can be used, before work that needs it begins."""
        _ = self.ome

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in level-0 pixels."""
        return self.level_shape(0)

    def level_shape(self, level: int) -> tuple[int, int]:
        """Height and width of a level in its pixels."""
        height, width = self.levels[level].shape[-2:]
        return height, width

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Sizes of the axes before y and x; empty for a 2-D label image."""
        return tuple(self.levels[0].shape[:-2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The integer dtype of all levels."""
        return np.dtype(self.levels[0].dtype)

    @property
    def scale_yx(self) -> tuple[float, float]:
        """Height and width of a level-0 pixel in `unit`."""
        y, x = self.ome.scales[0][-2:]
        return y, x

    @property
    def translation_yx(self) -> tuple[float, float]:
        """Place of the centre of pixel (0, 0) in `unit`."""
        y, x = self.ome.translations[0][-2:]
        return y, x

    @property
    def unit(self) -> str:
        """Unit of y and x, such as ``"micrometer"``; empty if there is none for both."""
        y, x = self.ome.units[-2:]
        return y if y == x else ""

    def plane(self, plane: tuple[int, ...]) -> tuple[int, ...]:
        """Return the plane with all its indices; raises `LabelsError` if there is none such."""
        return checked_plane(plane, self.plane_shape)

    def read(
        self, box: BoxLike | None = None, level: int = 0, plane: tuple[int, ...] = ()
    ) -> NDArray[Any]:
        """Read a part of one level.

        Parameters
        ----------
        box : (y0, x0, y1, x1) or Box, optional
            In pixels of that level, inside it; by default all of it.
        level : int
            Index of `levels`.
        plane : tuple of int
            Index over the axes before y and x; may be left out where they all have length 1.

        Returns
        -------
        (box.height, box.width), dtype of the labels

        Raises
        ------
        LabelsError
            If a chunk cannot be read, there is no such level or plane, or the box reaches outside.
        """
        plane = self.plane(plane)
        if not 0 <= level < len(self.levels):
            raise LabelsError(
                f"expected a level from 0 to {len(self.levels) - 1}, got {level}; 0 is full size"
            )
        whole = Box.of_shape(self.level_shape(level))
        part = whole if box is None else as_box(box)
        if part.intersection(whole) != part:
            raise LabelsError(
                f"expected a box inside level {level} of shape {whole.shape_yx}, got {part}; give "
                "(y0, x0, y1, x1) in pixels of that level"
            )
        return read_labels(self.levels[level], (*plane, *part.slices))

    def files(self, level: int) -> StoredFiles:
        """Look up what is stored of a level; reads names only.

        Raises
        ------
        LabelsError
            If the folder cannot be listed.
        """
        chunks: dict[tuple[int, ...], set[tuple[int, int]]] = {}
        strange = []
        for key, place, _ in self.entries(level):
            if place is not None:
                chunks.setdefault(place[:-2], set()).add((place[-2], place[-1]))
            elif key not in ZARR_METADATA:
                strange.append(key)
        return StoredFiles(chunks, tuple(sorted(strange)))

    def entries(self, level: int) -> Iterator[tuple[str, tuple[int, ...] | None, os.DirEntry[str]]]:
        """Go through the files of a level; of which there may be far fewer than chunks.

        Yields
        ------
        (str, tuple of int or None, os.DirEntry)
            The path inside the level's folder, parts joined by ``/``; the indices of the chunk (or
            shard) whose key that is, None if it is none; and the file.

        Raises
        ------
        LabelsError
            If the folder cannot be listed.
        """
        array = self.levels[level]
        root = self.folder / array.path
        pending = [""]
        try:
            while pending:
                inside = pending.pop()
                with os.scandir(root / inside) as entries:
                    for entry in entries:
                        key = f"{inside}{entry.name}"
                        if entry.is_dir(follow_symlinks=False):
                            pending.append(f"{key}/")
                            continue
                        numbers = tuple(map(int, re.findall(r"\d+", key)))
                        is_key = len(numbers) == array.ndim and (
                            array.metadata.encode_chunk_key(numbers) == key
                        )
                        yield key, numbers if is_key else None, entry
        except OSError as error:
            raise LabelsError(
                f"expected a folder that can be listed at {root}, got: {error}; check its rights"
            ) from error


def _unusable(folder: str, error: Exception) -> LabelsError:
    return LabelsError(
        f"expected an OME-Zarr label image at {folder}, got metadata that cannot be used: {error}"
    )


def _check(labels: StoredLabels) -> None:
    first = labels.levels[0]
    for array in labels.levels:
        if max(array.shape, default=0) > MAX_SIDE_PX:
            raise LabelsError(
                f"expected labels of at most {MAX_SIDE_PX} pixels along each axis at "
                f"{labels.folder}, got shape {array.shape}; the metadata of level {array.path} is "
                "damaged: bring it back from a copy"
            )
        if array.ndim < 2 or 0 in array.shape or array.dtype.kind not in "iu":
            raise LabelsError(
                f"expected labels of integers with axes y and x at {labels.folder}, got shape "
                f"{array.shape} and dtype {array.dtype}; convert them to uint32"
            )
        if array.dtype != first.dtype or array.shape[:-2] != first.shape[:-2]:
            raise LabelsError(
                f"expected one dtype and all planes in every level of {labels.folder}, got "
                f"{array.dtype} {array.shape} beside {first.dtype} {first.shape}; write the label "
                "image again"
            )
        if array.fill_value not in (0, None):
            raise LabelsError(
                f"expected labels whose missing chunks are background (fill value 0) at "
                f"{labels.folder}, got {array.fill_value}; write the label image again"
            )


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
