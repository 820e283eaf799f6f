"""A label image on disk, read as it is: never written to, never whole in memory.

What is stored is found by the names of the files, so that a label image of any size costs what its
objects cost. Nothing here needs the right to write, or to be the only one at the labels.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError, ImageReadError, LabelsError
from napari_hrsam.geometry import Box, Grid
from napari_hrsam.storage.files.remote import shown_url
from napari_hrsam.storage.images.ome_metadata import OmeImage, parse_ome
from napari_hrsam.storage.images.ome_zarr import array_in, open_group
from napari_hrsam.storage.labels.levels import read_labels
from napari_hrsam.storage.labels.names import label_folder
from napari_hrsam.storage.labels.store import checked_plane

REGION_PX = 1024
"""Side of what is looked at together; a multiple of the chunks, or one chunk that is larger."""

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


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredLabels:
    """The opened levels of a label image, for reading.

    Attributes
    ----------
    folder : Path
        Where the label group lies.
    name : str
        Name of the label image.
    ome : OmeImage
        What it says of itself.
    arrays : tuple of zarr.Array
        One per level, finest first; the last two axes are y and x, those before are planes.
    """

    folder: Path
    name: str
    ome: OmeImage
    arrays: tuple[zarr.Array[Any], ...]

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in level-0 pixels."""
        return self.level_shape(0)

    def level_shape(self, level: int) -> tuple[int, int]:
        """Height and width of a level in its pixels."""
        height, width = self.arrays[level].shape[-2:]
        return height, width

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Sizes of the axes before y and x."""
        return tuple(self.arrays[0].shape[:-2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The integer dtype of all levels."""
        return np.dtype(self.arrays[0].dtype)

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

    def read(self, level: int, plane: tuple[int, ...], box: Box) -> NDArray[Any]:
        """Read a box of one plane of one level, in pixels of that level.

        Raises
        ------
        LabelsError
            If a chunk cannot be read; the message names the array and the place.
        """
        return read_labels(self.arrays[level], (*plane, *box.slices))

    def files(self, level: int) -> StoredFiles:
        """Look up what is stored of a level; reads names only.

        Raises
        ------
        LabelsError
            If the folder cannot be listed.
        """
        array = self.arrays[level]
        root = self.folder / array.path
        chunks: dict[tuple[int, ...], set[tuple[int, int]]] = {}
        strange = []
        try:
            for name in _file_names(root):
                numbers = tuple(map(int, re.findall(r"\d+", name)))
                if name in ZARR_METADATA:
                    continue
                is_key = len(numbers) == array.ndim
                if is_key and array.metadata.encode_chunk_key(numbers) == name:
                    chunks.setdefault(numbers[:-2], set()).add((numbers[-2], numbers[-1]))
                else:
                    strange.append(name)
        except OSError as error:
            raise LabelsError(
                f"expected a folder that can be listed at {root}, got: {error}; check its rights"
            ) from error
        return StoredFiles(chunks, tuple(sorted(strange)))


def open_stored_labels(path: str | PathLike[str], name: str) -> StoredLabels:
    """Open a label image for reading: ours, or another program's.

    Parameters
    ----------
    path : path
        A local OME-Zarr image, or a folder of labels alone.
    name : str
        Name of the label image, which lies at ``labels/<name>``.

    Raises
    ------
    LabelsError
        If there is none of this name, or it is none of integers with the last axes y and x.
    """
    folder = label_folder(local_root(path), name)
    try:
        group = open_group(folder)
        ome = parse_ome(group.attrs.asdict(), str(folder))
        arrays = tuple(array_in(group, dataset, str(folder)) for dataset in ome.datasets)
    except (ImageError, ImageReadError) as error:
        raise LabelsError(
            f"expected an OME-Zarr label image at {folder}, got metadata that cannot be used: "
            f"{error}"
        ) from error
    labels = StoredLabels(folder=folder, name=name, ome=ome, arrays=arrays)
    _check(labels)
    return labels


def local_root(path: str | PathLike[str]) -> Path:
    """Return the folder of an image or of labels; raises `LabelsError` if it is not here."""
    text = str(path)
    if "://" in text and not text.startswith("file://"):
        raise LabelsError(
            f"expected labels in a folder on this computer, got {shown_url(text)}; copy them here "
            "first"
        )
    return Path(text.removeprefix("file://"))


def _check(labels: StoredLabels) -> None:
    first = labels.arrays[0]
    if labels.ome.axes[-2:] != ("y", "x"):
        raise LabelsError(
            f"expected labels whose last axes are y and x, got {labels.ome.axes} at "
            f"{labels.folder}; write them in this order"
        )
    for array in labels.arrays:
        if array.ndim != len(labels.ome.axes) or 0 in array.shape or array.dtype.kind not in "iu":
            raise LabelsError(
                f"expected labels of integers with the axes {labels.ome.axes} at {labels.folder}, "
                f"got shape {array.shape} and dtype {array.dtype}; convert them to uint32"
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


def _file_names(root: Path) -> Iterator[str]:
    """Go through the files below a folder, with their path inside it, parts joined by ``/``."""
    pending = [""]
    while pending:
        inside = pending.pop()
        with os.scandir(root / inside) as entries:
            for entry in entries:
                name = f"{inside}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    pending.append(f"{name}/")
                else:
                    yield name


@dataclass(frozen=True, slots=True)
class RegionGrid:
    """How a plane of one level is cut into regions of whole chunks, and which hold something.

    Attributes
    ----------
    domain : Box
        What is looked at, in pixels of the level.
    step_yx : (int, int)
        Height and width of a region; regions begin at multiples of it.
    filled : frozenset of (row, column)
        The regions inside the domain in which chunks are stored.
    """

    domain: Box
    step_yx: tuple[int, int]
    filled: frozenset[tuple[int, int]]

    def box(self, row: int, column: int) -> Box:
        """Return the part of a region inside the domain."""
        return Grid(self.step_yx).box((row, column)).intersection(self.domain)

    def boxes(self) -> Iterator[Box]:
        """Go through the filled regions row by row."""
        return (self.box(*place) for place in sorted(self.filled))

    def places(self, box: Box) -> Iterator[tuple[int, int]]:
        """Return the regions that a box of the level touches inside the domain."""
        return Grid(self.step_yx).places(box.intersection(self.domain))


def region_grid(
    labels: StoredLabels,
    level: int,
    plane: tuple[int, ...],
    box: Box | None = None,
    files: StoredFiles | None = None,
) -> RegionGrid:
    """Cut a plane of a level into regions, and find those that are stored.

    Parameters
    ----------
    labels : StoredLabels
        The label image.
    level : int
        Index of its arrays.
    plane : tuple of int
        All its indices.
    box : Box, optional
        Only what lies in it, in pixels of the level; by default everything.
    files : StoredFiles, optional
        Those of the level, if they were looked up before.
    """
    array = labels.arrays[level]
    whole = Box.of_shape(labels.level_shape(level))
    grid = RegionGrid(
        whole if box is None else box.intersection(whole), _step(array.chunks[-2:]), frozenset()
    )
    stored = array.shards or array.chunks
    chunks = Grid((stored[-2], stored[-1]))
    place = tuple(index // side for index, side in zip(plane, stored, strict=False))
    filled: set[tuple[int, int]] = set()
    for chunk in (files or labels.files(level)).of_plane(place, chunks.cover(grid.domain)):
        filled.update(grid.places(chunks.box(chunk)))
    return RegionGrid(grid.domain, grid.step_yx, frozenset(filled))


def _step(chunk_yx: tuple[int, ...]) -> tuple[int, int]:
    """Choose the size of a region: whole chunks, about `REGION_PX` squared in all."""
    height, width = chunk_yx
    # Beside chunks as wide as the image, few rows of them fill a region; and the other way round.
    down = max(1, min(REGION_PX, REGION_PX**2 // width) // height) * height
    across = max(1, min(REGION_PX, REGION_PX**2 // down) // width) * width
    return down, across
