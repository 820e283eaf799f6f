"""Objects found in a file, drawn into a label image one by one."""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import shapely

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, Grid
from napari_hrsam.masks import BLOCK_PX
from napari_hrsam.storage.importing.runs import Bounds, PolygonShape, RunMask
from napari_hrsam.storage.labels.arguments import checked_plane
from napari_hrsam.storage.labels.edits import DrawnAs
from napari_hrsam.storage.labels.regions import Progress, region_grid
from napari_hrsam.storage.labels.store import LabelStore
from napari_hrsam.storage.labels.stored import StoredLabels

logger = logging.getLogger(__name__)

MAX_TOLD = 1000
"""Skipped objects that are told one by one."""

LOOK_UP_BLOCKS = 64
"""Blocks of an object above which only those are read that are stored."""

TOLERANCE_PX = 1.0
"""How far an outline may reach outside of the image: some programs round so."""

LARGEST_COORDINATE = 1e12
"""Numbers beyond it are no coordinates of an image."""


class Shape(Protocol):
    """Where an object is: `PolygonShape` or `RunMask`."""

    @property
    def bounds(self) -> Bounds:
        """Where it lies, in level-0 pixels; it may reach outside of the image."""

    def within(self, box: Box) -> RunMask:
        """Return its pixels in a box."""


@dataclass(frozen=True, slots=True)
class Skipped:
    """An object that was not imported.

    Attributes
    ----------
    number : int
        Its place in the file, from 1.
    name : str
        What the file calls it; may be empty.
    reason : str
        Why.
    """

    number: int
    name: str
    reason: str


@dataclass(frozen=True, slots=True, eq=False)
class FoundObject:
    """An object of a file.

    Attributes
    ----------
    number, name
        As in `Skipped`.
    shape : Shape
        Where it is.
    label : int or None
        The id that the file gives it.
    class_name, model : str
        Its class, and the model that drew it; may be empty.
    plane : tuple of int or None
        Where the file says so.
    """

    number: int
    name: str
    shape: Shape
    label: int | None = None
    class_name: str = ""
    model: str = ""
    plane: tuple[int, ...] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Imported:
    """What came of an import.

    Attributes
    ----------
    path : str
        The file.
    labels : tuple of int
        The ids of the objects that were drawn, in the order of the file.
    num_overlapping : int
        How many of them lay on other objects in part: these kept the pixels, or lost them if
        ``overwrite`` was given.
    num_cut : int
        How many reached outside of the image and were cut.
    num_renumbered : int
        How many have another id than in the file although it was to be kept.
    num_crossing : int
        How many have outlines that cross themselves or each other, and were filled by the
        even-odd rule.
    num_skipped : int
        Objects that were not drawn.
    skipped : tuple of Skipped
        These, with the reasons; the first `MAX_TOLD`.
    """

    path: str
    labels: tuple[int, ...] = ()
    num_overlapping: int = 0
    num_cut: int = 0
    num_renumbered: int = 0
    num_crossing: int = 0
    num_skipped: int = 0
    skipped: tuple[Skipped, ...] = ()

    @property
    def num_objects(self) -> int:
        """Number of objects that were drawn."""
        return len(self.labels)

    def lines(self, max_skipped: int = 20) -> list[str]:
        """Say in words what happened, beginning with what was drawn."""
        told = [f"{self.num_objects:,} objects of {self.path} drawn"]
        counts = {
            "lay on other objects in part": self.num_overlapping,
            "reached outside of the image and were cut": self.num_cut,
            "got a new id, because theirs is in use or too large": self.num_renumbered,
            "had outlines that cross, and were filled by the even-odd rule": self.num_crossing,
            "were skipped": self.num_skipped,
        }
        told += [f"{count:,} {what}" for what, count in counts.items() if count]
        shown = self.skipped[:max_skipped]
        told += [
            f"object {one.number}{f' ({one.name})' if one.name else ''}: {one.reason}"
            for one in shown
        ]
        if self.num_skipped > len(shown):
            told.append(f"and {self.num_skipped - len(shown):,} more")
        return told


Objects = Callable[[], Iterator[FoundObject | Skipped]]
"""Reads the objects of a file, from the beginning each time."""


def draw_objects(
    path: str,
    objects: Objects,
    labels: LabelStore,
    *,
    plane: tuple[int, ...] | None,
    keep_ids: bool,
    overwrite: bool,
    allow_outside: bool,
    progress: Progress | None,
) -> Imported:
    """Look through the objects of a file, then draw each of them as one commit.

    Raises
    ------
    LabelsError
        If the file is damaged, or objects reach outside: before anything is drawn.
    """
    total = _looked_through(path, objects, labels, allow_outside=allow_outside, progress=progress)
    drawing = _Drawing(labels, plane, keep_ids=keep_ids, overwrite=overwrite)
    try:
        for done, found in enumerate(objects()):
            if progress is not None:
                progress(done, total)
            drawing.add(found)
    finally:
        # Also what was drawn before the work was given up has its class.
        drawing.set_classes()
    if progress is not None and total:
        progress(total, total)
    counts = {f"num_{name}": count for name, count in drawing.counts.items()}
    return Imported(
        path=path, labels=tuple(drawing.drawn), skipped=tuple(drawing.skipped), **counts
    )


def _looked_through(
    path: str,
    objects: Objects,
    labels: LabelStore,
    *,
    allow_outside: bool,
    progress: Progress | None,
) -> int:
    """Count the objects of a file; refuse those of another image."""
    total = num_outside = num_turned = 0
    height, width = labels.shape_yx
    for total, found in enumerate(objects(), 1):
        if progress is not None:
            progress(0, total)
        if isinstance(found, Skipped):
            continue
        y0, x0, y1, x1 = found.shape.bounds
        if _reaches_outside((y0, x0, y1, x1), height, width):
            num_outside += 1
            num_turned += not _reaches_outside((x0, y0, x1, y1), height, width)
    if num_outside and not allow_outside:
        turned = (
            f" {num_turned} would lie inside with x and y exchanged: the file should say x first."
            if num_turned
            else ""
        )
        raise LabelsError(
            f"expected objects inside the labels of shape {labels.shape_yx}, got {num_outside} of "
            f"{total} in {path} that reach outside.{turned} Choose the labels of the right image; "
            "or move them with offset_yx; or have them cut at the border with allow_outside "
            "(--allow-outside)"
        )
    return total


def extent(path: Path, objects: Iterator[FoundObject | Skipped]) -> tuple[int, int]:
    """Return the height and width of the smallest image that holds the objects of a file.

    Raises
    ------
    LabelsError
        If there is none.
    """
    ends = [found.shape.bounds[2:] for found in objects if isinstance(found, FoundObject)]
    if not ends:
        raise LabelsError(
            f"expected objects in {path}, got none that can be drawn; export them again"
        )
    height, width = np.max(ends, axis=0).tolist()
    return max(1, math.ceil(height)), max(1, math.ceil(width))


def _reaches_outside(bounds: Bounds, height: int, width: int) -> bool:
    y0, x0, y1, x1 = bounds
    return min(y0, x0) < -TOLERANCE_PX or y1 > height + TOLERANCE_PX or x1 > width + TOLERANCE_PX


class _Drawing:
    """The objects drawn so far."""

    def __init__(
        self,
        labels: LabelStore,
        plane: tuple[int, ...] | None,
        *,
        keep_ids: bool,
        overwrite: bool,
    ) -> None:
        self._labels, self._overwrite = labels, overwrite
        # A plane that is not there is told before anything is drawn.
        self._plane = None if plane is None else checked_plane(plane, labels.plane_shape)
        self._ids = _Ids(labels) if keep_ids else None
        self._classes: dict[str, list[int]] = {}
        self.drawn: list[int] = []
        self.skipped: list[Skipped] = []
        self.counts: Counter[str] = Counter()

    def add(self, found: FoundObject | Skipped) -> None:
        """Draw one object, or note why not; others do not suffer."""
        if isinstance(found, FoundObject):
            try:
                self._draw(found)
            except LabelsError as error:
                found = Skipped(found.number, found.name, str(error))
        if isinstance(found, Skipped):
            self.counts["skipped"] += 1
            if len(self.skipped) < MAX_TOLD:
                self.skipped.append(found)

    def _draw(self, found: FoundObject) -> None:
        labels = self._labels
        plane = self._plane
        if plane is None:
            plane = checked_plane(found.plane or (), labels.plane_shape)
        whole = Box.of_shape(labels.shape_yx)
        mask = found.shape.within(whole)
        is_cut = _reaches_outside(found.shape.bounds, *labels.shape_yx)
        if mask.area == 0:
            raise LabelsError(
                "it lies outside of the image"
                if is_cut
                else "no centre of a pixel lies inside its outline"
            )
        num_taken = _num_taken(labels, mask, plane)
        if num_taken == mask.area and not self._overwrite:
            raise LabelsError(f"all of its {mask.area:,} pixels belong to other objects")
        label = self._label(found)
        labels.write(
            mask.box,
            mask,
            label,
            overwrite=self._overwrite,
            plane=plane,
            drawn=DrawnAs(model=found.model),
        )
        self.drawn.append(label)
        self.counts["overlapping"] += num_taken > 0
        self.counts["cut"] += is_cut
        self.counts["crossing"] += _crosses(found.shape)
        self.counts["renumbered"] += self._ids is not None and found.label not in (None, label)
        if found.class_name:
            self._classes.setdefault(found.class_name, []).append(label)

    def _label(self, found: FoundObject) -> int:
        if self._ids is not None and found.label is not None and self._ids.take(found.label):
            return found.label
        return self._labels.next_label()

    def set_classes(self) -> None:
        """Tell the label image the classes, if it keeps any."""
        set_class = getattr(self._labels, "set_class", None)
        if set_class is None:
            return
        for name, drawn in self._classes.items():
            try:
                set_class(drawn, name)
            except LabelsError as error:
                logger.warning("no class %.80r for %d objects: %s", name, len(drawn), error)


def _num_taken(labels: LabelStore, mask: RunMask, plane: tuple[int, ...]) -> int:
    """Count the pixels of a mask that belong to objects."""
    count = 0
    for part in _parts(labels, mask.box, plane):
        fills = mask.fills(part)
        if fills is False:
            continue
        taken = labels.read(part, 0, plane) != 0
        if taken.any():
            count += int(np.count_nonzero(taken if fills else taken & mask.read(part)))
    return count


def _parts(labels: LabelStore, box: Box, plane: tuple[int, ...]) -> Iterator[Box]:
    """Go through the parts of a box in which there may be objects."""
    blocks = Grid((BLOCK_PX, BLOCK_PX))
    # Looking up what is stored pays where that is a small part of it.
    if isinstance(labels, StoredLabels) and blocks.cover(box).area > LOOK_UP_BLOCKS:
        return region_grid(labels, 0, plane, box).boxes()
    return blocks.parts(box)


def _crosses(shape: Shape) -> bool:
    """Whether rings cross themselves or each other, so that what is inside is a matter of rules."""
    if not isinstance(shape, PolygonShape):
        return False
    return not all(
        shapely.is_valid(shapely.Polygon(shell, holes)) for shell, *holes in shape.polygons
    )


class _Ids:
    """Which ids may be kept."""

    def __init__(self, labels: LabelStore) -> None:
        self._labels = labels
        self._unused = labels.next_label()
        self._taken: set[int] = set()
        self._present: set[int] | None = None
        # Ids after it must be left for objects to come.
        self._highest = int(np.iinfo(labels.read(Box(0, 0, 1, 1), 0, self._some()).dtype).max) // 2

    def take(self, label: int) -> bool:
        """Take an id if no object has it."""
        if not 1 <= label <= self._highest or label in self._taken:
            return False
        if label < self._unused:
            if self._present is None:
                self._present = _present(self._labels)
            if label in self._present:
                return False
        self._taken.add(label)
        return True

    def _some(self) -> tuple[int, ...]:
        return (0,) * len(self._labels.plane_shape)


def _present(labels: LabelStore) -> set[int]:
    """Return the ids of all objects on all planes; reads what is stored once."""
    found: set[int] = set()
    for plane in np.ndindex(*labels.plane_shape):
        for part in _parts(labels, Box.of_shape(labels.shape_yx), plane):
            found.update(np.unique(labels.read(part, 0, plane)).tolist())
    return found
