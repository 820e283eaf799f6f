"""Verify a label image of any size: metadata, chunks, levels and journal; and repair its levels."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.export_regions import Progress
from napari_hrsam.storage.journal_facts import JOURNAL_FILE, CommitFacts, read_journal
from napari_hrsam.storage.label_downsampling import AxisRatio, majority
from napari_hrsam.storage.label_ome_zarr import open_label_levels
from napari_hrsam.storage.label_pyramid import open_labels
from napari_hrsam.storage.ome_label_rules import broken_rules
from napari_hrsam.storage.stored_labels import (
    RegionGrid,
    StoredFiles,
    StoredLabels,
    label_folder,
    open_stored_labels,
    region_grid,
)
from napari_hrsam.storage.writer_lock import WriterLock

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Problem:
    """Something that is wrong with a label image.

    Attributes
    ----------
    kind : str
        ``"metadata"``, ``"chunk"``, ``"level"`` or ``"journal"``.
    text : str
        What is wrong.
    level : int or None
        Where, as far as it has a place.
    box : Box or None
        In pixels of the level.
    plane : tuple of int
        Index over the axes before y and x.
    is_repaired : bool
        Whether it was put right.
    """

    kind: str
    text: str
    level: int | None = None
    box: Box | None = None
    plane: tuple[int, ...] = ()
    is_repaired: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelsReport:
    """What was found in a label image.

    Attributes
    ----------
    problems : tuple of Problem
        Those that were repaired too.
    notes : tuple of str
        What is worth knowing and not wrong.
    num_levels, num_chunks, num_objects : int
        Levels, stored chunks (shards, where there are some) of all levels, and different labels of
        all planes of level 0, as far as they can be read.
    highest_label : int
        0 if there is none.
    """

    problems: tuple[Problem, ...]
    notes: tuple[str, ...]
    num_levels: int = 0
    num_chunks: int = 0
    num_objects: int = 0
    highest_label: int = 0

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong, or no longer."""
        return all(problem.is_repaired for problem in self.problems)


def verify_labels(
    path: str | PathLike[str],
    name: str,
    *,
    repair: bool = False,
    progress: Progress | None = None,
) -> LabelsReport:
    """Check a label image, ours or another program's, region by region.

    The metadata must follow OME-Zarr 0.4 or 0.5, every stored chunk must decode, every coarser
    level must be the majority of the finer one (background does not vote), nothing in the journal
    may be half done, and its objects must be there. Without ``repair`` nothing is written or
    locked; labels that are drawn into meanwhile may look wrong.

    Parameters
    ----------
    path : path
        A local OME-Zarr image, or a folder of labels alone.
    name : str
        Name of the label image.
    repair : bool
        Complete what a crash left half done, and write coarser levels anew where they differ or
        are damaged. Level 0 is never changed otherwise. Takes the right to write.
    progress : callable (done, total), optional
        Counts regions; what it raises ends the work.

    Returns
    -------
    LabelsReport

    Raises
    ------
    LabelsError
        If there is no such label image; or, with ``repair``, if it is open elsewhere or cannot be
        written to.
    """
    folder = label_folder(path, name)
    problems = [
        Problem(kind="metadata", text=text) for text in broken_rules(folder.parents[1], name)
    ]
    try:
        labels = open_stored_labels(path, name)
    except LabelsError as error:
        if not problems:
            problems.append(Problem(kind="metadata", text=str(error)))
        return LabelsReport(problems=tuple(problems), notes=("no pixels were looked at",))
    if not repair:
        return _checked(labels, problems, None, progress)
    with _writable(folder.parents[1], name) as arrays:
        return _checked(labels, problems, arrays, progress)


@contextmanager
def _writable(path: Path, name: str) -> Iterator[tuple[zarr.Array[Any], ...]]:
    """Take the right to write; what a crash left half done is completed."""
    folder = path / "labels" / name
    with ExitStack() as stack:
        if (folder / JOURNAL_FILE).exists():
            yield stack.enter_context(open_labels(path, name)).levels
            return
        lock_folder = folder / JOURNAL_FILE.parent
        try:
            lock_folder.mkdir(exist_ok=True)
        except OSError as error:
            raise LabelsError(
                f"expected a label image that can be written to, got an error at {lock_folder}: "
                f"{error}; check its rights, or verify it without repair"
            ) from error
        stack.callback(WriterLock(lock_folder).release)
        yield open_label_levels(path, name).arrays


def _checked(
    labels: StoredLabels,
    problems: list[Problem],
    arrays: tuple[zarr.Array[Any], ...] | None,
    progress: Progress | None,
) -> LabelsReport:
    check = _Check(labels, arrays, progress)
    check.run()
    problems = [*problems, *check.problems, *_journal_problems(labels, check.found)]
    highest = max((max(found, default=0) for found in check.found.values()), default=0)
    return LabelsReport(
        problems=tuple(problems),
        notes=tuple(check.notes),
        num_levels=len(labels.arrays),
        num_chunks=sum(map(len, check.files)),
        num_objects=len(set().union(*check.found.values())),
        highest_label=max(0, highest),
    )


@dataclass(slots=True)
class _Task:
    """A region of one level that is compared with what lies under it in the level before."""

    level: int
    plane: tuple[int, ...]
    box: Box


@dataclass(slots=True)
class _Check:
    """Looks at every stored chunk, and at every region of a coarser level that may hold something.

    Attributes
    ----------
    labels : StoredLabels
        What is looked at.
    arrays : tuple of zarr.Array or None
        The same to be written to; None if nothing shall be repaired.
    progress : callable or None
        Counts regions.
    problems, notes
        What was found.
    found : dict
        The labels in each plane of level 0.
    files : list of StoredFiles
        By level.
    """

    labels: StoredLabels
    arrays: tuple[zarr.Array[Any], ...] | None
    progress: Progress | None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: dict[tuple[int, ...], set[int]] = field(default_factory=lambda: defaultdict(set))
    files: list[StoredFiles] = field(default_factory=list)

    def run(self) -> None:
        """Look at everything, finer levels first."""
        labels = self.labels
        self.files = [labels.files(level) for level in range(len(labels.arrays))]
        for level, files in enumerate(self.files):
            if files.strange:
                self.notes.append(
                    f"level {level} has {len(files.strange)} files that are no chunks, such as "
                    f"{files.strange[0]}; they do no harm"
                )
        tasks = [list(self._tasks(level)) for level in range(len(self.files))]
        done = 0
        for level in range(len(self.files)):
            if level and self.arrays is not None:
                # What was repaired has other chunks now.
                self.files[level - 1] = labels.files(level - 1)
                tasks[level] = list(self._tasks(level))
            for task in tasks[level]:
                if level:
                    self._compare(task)
                else:
                    self._read(0, task.plane, task.box)
                done += 1
                if self.progress is not None:
                    self.progress(done, sum(map(len, tasks)))

    def _tasks(self, level: int) -> Iterator[_Task]:
        """Choose the regions; each chunk lies in one, or under one of the next level."""
        if level == 0:
            # Below another level, level 0 is looked at together with that one.
            planes = self._planes(0) if len(self.labels.arrays) == 1 else ()
            for plane in planes:
                for box in self._grid(0, plane).boxes():
                    yield _Task(0, plane, box)
            return
        for plane in self._planes(level - 1, level):
            grid, fine = self._grid(level, plane), self._grid(level - 1, plane)
            places = set(grid.filled)
            for box in fine.boxes():
                places.update(grid.places(self._above(level, box)))
            for place in sorted(places):
                yield _Task(level, plane, grid.box(*place))

    def _planes(self, *levels: int) -> Iterator[tuple[int, ...]]:
        """Go through the planes of which something is stored in one of the levels."""
        for plane in np.ndindex(self.labels.plane_shape):
            for level in levels:
                array = self.labels.arrays[level]
                step = array.shards or array.chunks
                place = tuple(n // size for n, size in zip(plane, step, strict=False))
                if self.files[level].chunks.get(place):
                    yield plane
                    break

    def _grid(self, level: int, plane: tuple[int, ...]) -> RegionGrid:
        return region_grid(self.labels, level, plane, files=self.files[level])

    def _ratios(self, level: int) -> tuple[AxisRatio, AxisRatio]:
        """Tell how the pixels of the level before fall on those of a level."""
        fine, coarse = self.labels.level_shape(level - 1), self.labels.level_shape(level)
        return AxisRatio(fine[0], coarse[0]), AxisRatio(fine[1], coarse[1])

    def _above(self, level: int, box: Box) -> Box:
        rows, columns = self._ratios(level)
        (y0, y1), (x0, x1) = rows.covering(box.y0, box.y1), columns.covering(box.x0, box.x1)
        return Box(y0, x0, y1, x1)

    def _compare(self, task: _Task) -> None:
        """Compare a region with the majority of what lies under it."""
        level, plane, box = task.level, task.plane, task.box
        rows, columns = self._ratios(level)
        y, x = rows.edges(box.y0, box.y1), columns.edges(box.x0, box.x1)
        source = Box(int(y[0]), int(x[0]), int(y[-1]), int(x[-1]))
        fine = self._read(level - 1, plane, source)
        coarse = self._read(level, plane, box)
        if fine is None:
            return
        expected: NDArray[Any] = np.zeros(box.shape_yx, fine.dtype)
        if fine.any():
            expected = majority(fine, y - y[0], x - x[0])
        if coarse is None:
            if self.arrays is not None:
                self._write(task, expected)
            return
        differs = coarse != expected
        if differs.any():
            if self.arrays is not None:
                self._write(task, expected)
            where = Box.around(differs).shifted(box.y0, box.x0)
            self.problems.append(
                Problem(
                    kind="level",
                    text=f"{np.count_nonzero(differs)} pixels differ from the majority of level "
                    f"{level - 1}",
                    level=level,
                    box=where,
                    plane=plane,
                    is_repaired=self.arrays is not None,
                )
            )

    def _read(self, level: int, plane: tuple[int, ...], box: Box) -> NDArray[Any] | None:
        """Read a box; None if a chunk is damaged, which is noted once."""
        try:
            values = self.labels.read(level, plane, box)
        except LabelsError:
            self._find_damage(level, plane, box)
            return None
        if level == 0:
            self.found[plane].update(_labels_in(values))
        return values

    def _find_damage(self, level: int, plane: tuple[int, ...], box: Box) -> None:
        """Name the chunks of a box that do not decode; of those that do, look at the labels."""
        height, width = self.labels.arrays[level].chunks[-2:]
        shape = self.labels.level_shape(level)
        for y0 in range(box.y0 // height * height, box.y1, height):
            for x0 in range(box.x0 // width * width, box.x1, width):
                chunk = Box(y0, x0, y0 + height, x0 + width).clip(shape)
                try:
                    values = self.labels.read(level, plane, chunk)
                except LabelsError as error:
                    self._add_damage(level, plane, chunk, error)
                else:
                    if level == 0:
                        self.found[plane].update(_labels_in(values))

    def _add_damage(
        self, level: int, plane: tuple[int, ...], chunk: Box, error: LabelsError
    ) -> None:
        is_repaired = level > 0 and self.arrays is not None
        if any((p.level, p.box, p.plane) == (level, chunk, plane) for p in self.problems):
            return
        advice = (
            "bring the file back from a copy, or delete it to make its pixels background"
            if level == 0
            else "it can be made anew from the finer level (repair)"
        )
        logger.info("%s", error)
        self.problems.append(
            Problem(
                kind="chunk",
                text=f"the chunk does not decode; {advice}",
                level=level,
                box=chunk,
                plane=plane,
                is_repaired=is_repaired,
            )
        )

    def _write(self, task: _Task, values: NDArray[Any]) -> None:
        """Write a region of a coarser level anew."""
        assert self.arrays is not None
        array = self.arrays[task.level]
        place: tuple[int | slice, ...] = (*task.plane, *task.box.slices)
        try:
            try:
                array[place] = values
            except (ValueError, RuntimeError, KeyError):
                # Where a chunk holds several planes, it is read first, and may be damaged.
                self._remove(task)
                array[place] = values
        except OSError as error:
            raise LabelsError(
                f"expected to write the labels at {array.store_path}, got: {error}; check the "
                "space on the disk and the rights of the folder, then repair again"
            ) from error

    def _remove(self, task: _Task) -> None:
        """Remove the chunks of a region; all of them follow from the finer level."""
        array = self.labels.arrays[task.level]
        step = array.shards or array.chunks
        height, width = step[-2:]
        front = tuple(n // size for n, size in zip(task.plane, step, strict=False))
        for row in range(task.box.y0 // height, -(-task.box.y1 // height)):
            for column in range(task.box.x0 // width, -(-task.box.x1 // width)):
                key = array.metadata.encode_chunk_key((*front, row, column))
                (self.labels.folder / array.path / key).unlink(missing_ok=True)


def _labels_in(values: NDArray[Any]) -> set[int]:
    """Return the labels of an array, background left out."""
    if not values.any():
        return set()
    # Where runs begin there is every label, and few pixels.
    is_first = np.ones(values.shape, bool)
    np.not_equal(values[:, 1:], values[:, :-1], out=is_first[:, 1:])
    found: list[int] = np.unique(values[is_first]).tolist()
    return {label for label in found if label}


def _journal_problems(
    labels: StoredLabels, found: dict[tuple[int, ...], set[int]]
) -> Iterator[Problem]:
    """Compare the journal with the labels that are there."""
    try:
        facts = read_journal(labels.folder)
    except LabelsError as error:
        yield Problem(kind="journal", text=str(error))
        return
    if facts is None:
        return
    for commit in facts.pending:
        yield Problem(
            kind="journal",
            text=f"a change of object {commit.label} is half done; opening the labels for drawing "
            "completes it, and so does repair",
            level=0,
            box=commit.box,
            plane=commit.plane,
        )
    highest = max((max(there, default=0) for there in found.values()), default=0)
    if highest >= facts.next_label:
        yield Problem(
            kind="journal",
            text=f"the next object would get the id {facts.next_label}, but there are ids up to "
            f"{highest}; open the labels with open_labels, and look whether all levels are sound",
        )
    yield from _missing_objects(facts.commits, found)


def _missing_objects(
    commits: tuple[CommitFacts, ...], found: dict[tuple[int, ...], set[int]]
) -> Iterator[Problem]:
    """Find the objects of the journal of which no pixel is there, and that nothing has covered."""
    done = [commit for commit in commits if commit.is_done]
    newest = {(commit.plane, commit.label): number for number, commit in enumerate(done)}
    for (plane, label), number in newest.items():
        commit = done[number]
        if label in found.get(plane, ()) or any(
            later.plane == plane and later.box.intersection(commit.box).area
            for later in done[number + 1 :]
        ):
            continue
        yield Problem(
            kind="journal",
            text=f"object {label} was committed here, but no pixel of it is there",
            level=0,
            box=commit.box,
            plane=plane,
        )
