"""What an export is made from: a part of a label image, its measured objects, and the file."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from pathlib import Path

from napari_hrsam.atomic_path import atomic_path
from napari_hrsam.errors import ImageError, LabelsError
from napari_hrsam.geometry import Box, BoxLike, as_box
from napari_hrsam.storage.export.edges import trace_outlines
from napari_hrsam.storage.export.measures import ObjectTable, measure_objects
from napari_hrsam.storage.export.outlines import Outline
from napari_hrsam.storage.images.georeference import Georeference, map_shape, read_georeference
from napari_hrsam.storage.labels.journal_facts import JOURNAL_FILE, CommitFacts, read_journal
from napari_hrsam.storage.labels.properties import Properties, read_properties
from napari_hrsam.storage.labels.regions import Progress
from napari_hrsam.storage.labels.stored import ZARR_METADATA, StoredLabels

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was written.

    Attributes
    ----------
    path : str
        The file.
    num_objects : int
        Objects in it.
    num_bytes : int
        Its size.
    """

    path: str
    num_objects: int
    num_bytes: int


@dataclass(frozen=True, kw_only=True, eq=False)
class Part:
    """A part of a label image to be exported.

    Attributes
    ----------
    labels : StoredLabels
        The label image.
    plane : tuple of int
        All indices of the plane.
    box : Box
        Only this is looked at, in level-0 pixels.
    only : frozenset of int or None
        Only these objects; None for all.
    """

    labels: StoredLabels
    plane: tuple[int, ...]
    box: Box
    only: frozenset[int] | None

    def georeference(self, like: str | PathLike[str] | None) -> Georeference:
        """Say where the labels lie: as a map does, else as they tell themselves.

        Parameters
        ----------
        like : path, optional
            Of the GeoTIFF that they belong to.

        Raises
        ------
        LabelsError
            If neither says it, or the map is of another size.
        """
        try:
            found = self.labels.georeference if like is None else self._of_map(like)
        except ImageError as error:
            raise LabelsError(str(error)) from error
        if found is None:
            raise LabelsError(
                f"expected labels of a map, but {'the file' if like else 'nothing'} says where "
                f"{self.labels.name!r} lies; name the GeoTIFF that they were drawn on "
                "(georeference=, --georeference), or export in pixels"
            )
        return found

    def _of_map(self, like: str | PathLike[str]) -> Georeference | None:
        found = read_georeference(like)
        shape = map_shape(like)
        if shape != self.labels.shape_yx:
            raise LabelsError(
                f"expected the map of {self.labels.name!r}, of shape {self.labels.shape_yx}, got "
                f"one of {shape} at {like}; name the map that they were drawn on"
            )
        return found

    def measured(self, progress: Progress | None) -> ObjectTable:
        """Measure the objects; the first half of the way.

        Raises
        ------
        LabelsError
            If a chunk cannot be read, an id is negative, or an object that was asked for is not
            there.
        """
        table = measure_objects(
            self.labels, self.plane, box=self.box, only=self.only, progress=_half(progress, 0)
        )
        if table.labels.min(initial=0) < 0:
            raise LabelsError(
                f"expected objects numbered from 1 in {self.labels.name!r}, got "
                f"{int(table.labels.min())}, which some programs write for what is no object; set "
                "it to 0, or name the objects to be exported"
            )
        missing = sorted((self.only or frozenset()) - set(table.labels.tolist()))
        if missing:
            shown = ", ".join(map(str, missing[:10])) + (", ..." if len(missing) > 10 else "")
            raise LabelsError(
                f"expected objects that are in this part of {self.labels.name!r}, got none with "
                f"the label {shown}; leave them out, or look in another box or plane"
            )
        return table

    def outlines(
        self, table: ObjectTable, progress: Progress | None
    ) -> Iterator[tuple[int, Outline]]:
        """Trace the outlines of measured objects; the second half of the way."""
        return trace_outlines(
            self.labels,
            self.plane,
            table,
            box=self.box,
            only=self.only,
            progress=_half(progress, 1),
        )

    @cached_property
    def properties(self) -> Properties:
        """Classes and colours of the objects."""
        return read_properties(self.labels.folder)

    def commits(self) -> dict[int, CommitFacts]:
        """Return what the journal tells of each object; nothing if it cannot be read."""
        try:
            facts = read_journal(self.labels.folder)
        except LabelsError as error:
            logger.warning("%s", error)
            return {}
        if facts is None:
            return {}
        if facts.pending:
            logger.warning(
                "%d changes of %s are under way or were interrupted; if nobody is drawing, open "
                "the labels once with open_labels to put them back, then export again",
                len(facts.pending),
                self.labels.folder,
            )
        return facts.newest(self.plane)


def part_of(
    path: str | PathLike[str],
    name: str,
    *,
    box: BoxLike | None = None,
    labels: Collection[int] | None = None,
    plane: tuple[int, ...] = (),
) -> Part:
    """Open a label image and choose what is exported.

    Parameters
    ----------
    path, name
        As in `StoredLabels`.
    box : (y0, x0, y1, x1) or Box, optional
        Only what lies in it, in level-0 pixels; by default everything.
    labels : collection of int, optional
        Only these objects; by default all.
    plane : tuple of int
        Index over the axes before y and x; may be left out where they all have length 1.

    Raises
    ------
    LabelsError
        If there is no such label image or plane, or the box lies outside of it.
    """
    stored = StoredLabels(path, name)
    stored.require_metadata()
    whole = Box.of_shape(stored.shape_yx)
    chosen = whole if box is None else as_box(box)
    if chosen.area == 0 or chosen.intersection(whole) != chosen:
        raise LabelsError(
            f"expected a box of 1 pixel or more inside the labels of shape {stored.shape_yx}, got "
            f"{chosen}; give y0, x0, y1, x1 in level-0 pixels"
        )
    only = None if labels is None else frozenset(labels)
    return Part(labels=stored, plane=stored.plane(plane), box=chosen, only=only)


@contextmanager
def new_file(out: str | PathLike[str], *, overwrite: bool) -> Iterator[Path]:
    """Give the name of a file to write, which takes its place when it is whole.

    Raises
    ------
    LabelsError
        If the file exists and shall not be overwritten, cannot be written, or would be a part of
        zarr data: of the labels themselves, or of others.
    """
    path = Path(out)
    if _is_in_zarr(path):
        raise LabelsError(
            f"expected a file of its own, got {path}, which is or would be a part of the zarr data "
            "there; choose a name outside of it"
        )
    if path.exists() and (path.is_dir() or not overwrite):
        raise LabelsError(
            f"expected a new file, but {path} exists already; choose another name, or overwrite "
            "it (overwrite=True, --force)"
        )
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as partial:
            yield partial
    except OSError as error:
        raise LabelsError(
            f"expected to write {path}, got: {error}; check the space on the disk and the rights "
            "of the folder"
        ) from error


def _is_in_zarr(path: Path) -> bool:
    """Whether a file is zarr's metadata, or lies in the folder of an array or of a journal."""
    # What is replaced is the name in its folder, not what a link of that name leads to.
    folder = Path(os.path.realpath(path.parent))
    return path.name in ZARR_METADATA or any(
        _is_array(place) or (place / JOURNAL_FILE.name).exists()
        for place in (folder, *folder.parents)
    )


def _is_array(folder: Path) -> bool:
    if (folder / ".zarray").exists():
        return True
    try:
        metadata = json.loads((folder / "zarr.json").read_text(encoding="utf-8"))
    except OSError:
        return False
    except (ValueError, RecursionError):
        return True  # Damaged: nothing says that it is none.
    return not isinstance(metadata, dict) or metadata.get("node_type") != "group"


def written(path: str | PathLike[str], num_objects: int) -> Exported:
    """Describe a file that was written."""
    return Exported(path=str(path), num_objects=num_objects, num_bytes=Path(path).stat().st_size)


def _half(progress: Progress | None, half: int) -> Progress | None:
    """Count one of two passes over the same regions."""
    if progress is None:
        return None
    return lambda done, total: progress(half * total + done, 2 * total)
