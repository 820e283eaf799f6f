"""Every stored chunk of a label image read, and every coarser level compared with the finer one."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_hrsam.errors import ImageReadError, LabelsError
from napari_hrsam.geometry import Box, Grid
from napari_hrsam.storage.labels.codec import DAMAGE
from napari_hrsam.storage.labels.downsampling import AxisRatio, majority, occur
from napari_hrsam.storage.labels.journal_facts import read_journal
from napari_hrsam.storage.labels.names import require_no_way_out
from napari_hrsam.storage.labels.regions import REGION_PX, Progress, RegionGrid, region_grid
from napari_hrsam.storage.labels.stored import StoredFiles, StoredLabels

logger = logging.getLogger(__name__)

_NO_FILES = StoredFiles({}, ())


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


@dataclass(slots=True)
class _Task:
    """A region of one level that is compared with what lies under it in the level before."""

    level: int
    plane: tuple[int, ...]
    box: Box


@dataclass(slots=True)
class LevelCheck:
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
    damaged : set
        Level, plane and box of the chunks that do not decode.
    committed : set of int
        Objects of the journal; where there are no others, coarser levels are as we draw them.
    """

    labels: StoredLabels
    arrays: tuple[zarr.Array[Any], ...] | None
    progress: Progress | None
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    found: dict[tuple[int, ...], set[int]] = field(default_factory=lambda: defaultdict(set))
    files: list[StoredFiles] = field(default_factory=list)
    damaged: set[tuple[int, tuple[int, ...], Box]] = field(default_factory=set)
    committed: set[int] = field(default_factory=set)
    # Regions that were written: level, plane (None for all), and place in the level's grid.
    _remade: set[tuple[int, tuple[int, ...] | None, tuple[int, int]]] = field(default_factory=set)
    _other_rules: set[int] = field(default_factory=set)

    def run(self) -> None:
        """Look at everything, finer levels first."""
        labels = self.labels
        self.committed = _committed(labels)
        self.files = [labels.files(level) for level in range(len(labels.levels))]
        for level, files in enumerate(self.files):
            strange = list(files.strange)
            if self.arrays is not None:
                strange = self._without_leftovers(level)
            if strange:
                self.notes.append(
                    f"level {level} has {len(strange)} files that are no chunks, such as "
                    f"{strange[0]}; they do no harm"
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
        self.notes.extend(
            f"level {level} is made by another rule than the majority: each pixel is one of those "
            "that it covers, which is as good"
            for level in sorted(self._other_rules)
        )

    def _without_leftovers(self, level: int) -> list[str]:
        """Remove what programs that were killed left unfinished; return the other strange files."""
        left = []
        for name in self.files[level].strange:
            if name.endswith(".partial"):
                (self.labels.folder / self.labels.levels[level].path / name).unlink(missing_ok=True)
            else:
                left.append(name)
        return left

    def _tasks(self, level: int) -> Iterator[_Task]:
        """Choose the regions; each chunk lies in one, or under one of the next level."""
        if level == 0:
            # Below another level, level 0 is looked at together with that one.
            planes = self._planes(0) if len(self.labels.levels) == 1 else ()
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
                array = self.labels.levels[level]
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
        is_remade = self._is_remade(task)
        expected = self._expected(level, plane, box)
        coarse = self._read(level, plane, box)
        if expected is None:
            return
        if coarse is None and self.arrays is not None:
            # Only what is damaged is made anew; the chunks beside it may follow another rule.
            for damaged_level, damaged_plane, chunk in list(self.damaged):
                part = chunk.intersection(box)
                if (damaged_level, damaged_plane) == (level, plane) and part.area:
                    values = expected[part.shifted(-box.y0, -box.x0).slices]
                    self._write(replace(task, box=part), values)
            coarse = self._read(level, plane, box)
        if coarse is None:
            return
        differs = coarse != expected
        if not differs.any():
            return
        if not is_remade and self._is_by_another_rule(task, coarse, differs):
            self._other_rules.add(level)
            return
        self.problems.append(
            Problem(
                kind="level",
                text=f"{np.count_nonzero(differs)} pixels differ from the majority of level "
                f"{level - 1}",
                level=level,
                box=Box.around(differs).shifted(box.y0, box.x0),
                plane=plane,
            )
        )
        if self.arrays is not None:
            self._write(task, expected)
            self._note_remade(task, plane)

    def _expected(self, level: int, plane: tuple[int, ...], box: Box) -> NDArray[Any] | None:
        """Compute a region from the level before; None if some of that is damaged."""
        expected: NDArray[Any] | None = np.zeros(box.shape_yx, self.labels.dtype)
        for part, fine, y, x in self._fine_parts(level, level - 1, plane, box):
            if fine is None:
                expected = None
            elif expected is not None and fine.any():
                expected[part.shifted(-box.y0, -box.x0).slices] = majority(fine, y, x)
        return expected

    def _fine_parts(
        self, level: int, finer: int, plane: tuple[int, ...], box: Box, margin: int = 0
    ) -> Iterator[tuple[Box, NDArray[Any] | None, NDArray[np.int64], NDArray[np.int64]]]:
        """Go through what lies under a region in a finer level.

        Gives a part of the region, the finer labels there and ``margin`` pixels around (None where
        they are damaged), and the edges of the part's pixels in these.
        """
        fine_yx, coarse_yx = self.labels.level_shape(finer), self.labels.level_shape(level)
        rows, columns = (AxisRatio(*sizes) for sizes in zip(fine_yx, coarse_yx, strict=True))
        # Beside a level that is many times finer, few pixels are computed at once.
        step = max(
            1, 2 * REGION_PX // max(-(-axis.fine // axis.coarse) for axis in (rows, columns))
        )
        for y0 in range(box.y0, box.y1, step):
            for x0 in range(box.x0, box.x1, step):
                part = Box(y0, x0, y0 + step, x0 + step).intersection(box)
                y, x = rows.edges(part.y0, part.y1), columns.edges(part.x0, part.x1)
                source = Box(
                    int(y[0]) - margin, int(x[0]) - margin, int(y[-1]) + margin, int(x[-1]) + margin
                ).clip(fine_yx)
                yield part, self._read(finer, plane, source), y - source.y0, x - source.x0

    def _is_by_another_rule(
        self, task: _Task, coarse: NDArray[Any], differs: NDArray[np.bool_]
    ) -> bool:
        """Whether a region that shows no majority shows labels that another program may choose."""
        level, plane, box = task.level, task.plane, task.box
        under: set[int] = set()
        missing = differs.copy()
        for part, fine, y, x in self._fine_parts(level, level - 1, plane, box, 1):
            if fine is not None:
                under |= _labels_in(fine)
                where = part.shifted(-box.y0, -box.x0).slices
                missing[where] &= ~occur(coarse[where], fine, y, x)
        if under and under <= self.committed:
            return False
        if missing.any() and level > 1:
            # Some programs make every level from full size.
            rest = Box.around(missing)
            place = rest.shifted(box.y0, box.x0)
            for part, fine, y, x in self._fine_parts(level, 0, plane, place, 1):
                where = part.shifted(-box.y0, -box.x0).slices
                if fine is not None and missing[where].any():
                    missing[where] &= ~occur(coarse[where], fine, y, x)
        return not missing.any()

    def _is_remade(self, task: _Task) -> bool:
        """Whether a region, or something under it, was written: then it must follow."""
        fine = self._box_under(task)
        return any(
            (level, plane, place) in self._remade
            for level, box in ((task.level, task.box), (task.level - 1, fine))
            for place in self._places(level, box)
            for plane in (task.plane, None)
        )

    def _note_remade(self, task: _Task, plane: tuple[int, ...] | None) -> None:
        for place in self._places(task.level, task.box):
            self._remade.add((task.level, plane, place))

    def _box_under(self, task: _Task) -> Box:
        rows, columns = self._ratios(task.level)
        y = rows.edges(task.box.y0, task.box.y1)
        x = columns.edges(task.box.x0, task.box.x1)
        return Box(int(y[0]), int(x[0]), int(y[-1]), int(x[-1]))

    def _places(self, level: int, box: Box) -> Iterator[tuple[int, int]]:
        return region_grid(self.labels, level, (), files=_NO_FILES).places(box)

    def _mark_repaired(self, task: _Task) -> None:
        """Note that what was wrong in a region is right now."""
        for number, problem in enumerate(self.problems):
            is_here = (problem.level, problem.plane) == (task.level, task.plane)
            if is_here and problem.box is not None and problem.box.intersection(task.box).area:
                self.problems[number] = replace(problem, is_repaired=True)

    def _read(self, level: int, plane: tuple[int, ...], box: Box) -> NDArray[Any] | None:
        """Read a box; None if a chunk is damaged, which is noted once."""
        try:
            values = self.labels.read(box, level, plane)
        except LabelsError:
            self._find_damage(level, plane, box)
            return None
        if level == 0:
            self.found[plane].update(_labels_in(values))
        return values

    def _find_damage(self, level: int, plane: tuple[int, ...], box: Box) -> None:
        """Name the chunks of a box that do not decode; of those that do, look at the labels."""
        height, width = self.labels.levels[level].chunks[-2:]
        shape = self.labels.level_shape(level)
        grid = Grid((height, width))
        for place in grid.places(box):
            chunk = grid.box(place).clip(shape)
            try:
                values = self.labels.read(chunk, level, plane)
            except LabelsError as error:
                self._add_damage(level, plane, chunk, error)
            else:
                if level == 0:
                    self.found[plane].update(_labels_in(values))

    def _add_damage(
        self, level: int, plane: tuple[int, ...], chunk: Box, error: LabelsError
    ) -> None:
        if (level, plane, chunk) in self.damaged:
            return
        self.damaged.add((level, plane, chunk))
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
            )
        )

    def _write(self, task: _Task, values: NDArray[Any]) -> None:
        """Write a region of a coarser level anew, and note what that repairs."""
        assert self.arrays is not None
        array = self.arrays[task.level]
        for file in self._chunk_files(task):
            require_no_way_out(self.labels.folder, file.parent)
        place: tuple[int | slice, ...] = (*task.plane, *task.box.slices)
        try:
            try:
                array[place] = values
            except DAMAGE as error:
                if isinstance(error, OSError) and not isinstance(error, ImageReadError):
                    raise
                # Where a chunk holds several planes, it is read first, and may be damaged.
                self._remove(task)
                array[place] = values
        except OSError as error:
            raise LabelsError(
                f"expected to write the labels at {array.store_path}, got: {error}; check the "
                "space on the disk and the rights of the folder, then repair again"
            ) from error
        self._mark_repaired(task)

    def _remove(self, task: _Task) -> None:
        """Remove the chunks of a region; all of them follow from the finer level."""
        self._note_remade(task, None)
        for file in self._chunk_files(task):
            file.unlink(missing_ok=True)

    def _chunk_files(self, task: _Task) -> Iterator[Path]:
        """Go through the files of the chunks of a region."""
        array = self.labels.levels[task.level]
        step = array.shards or array.chunks
        front = tuple(n // size for n, size in zip(task.plane, step, strict=False))
        for place in Grid((step[-2], step[-1])).places(task.box):
            key = array.metadata.encode_chunk_key((*front, *place))
            yield self.labels.folder / array.path / key


def _committed(labels: StoredLabels) -> set[int]:
    """Return the objects that were drawn here; none where that cannot be read (told elsewhere).

    One that another program drew and that was replaced here is not among them: what did not change
    is in the coarser levels as that program wrote it.
    """
    try:
        facts = read_journal(labels.folder)
    except LabelsError as error:
        logger.info("%s", error)
        return set()
    if facts is None:
        return set()
    first: dict[int, str] = {}
    for commit in facts.commits:
        if commit.kind != "properties":
            first.setdefault(commit.label, commit.kind)
    return {label for label, kind in first.items() if kind == "draw"}


def _labels_in(values: NDArray[Any]) -> set[int]:
    """Return the labels of an array, background left out."""
    if not values.any():
        return set()
    # Where runs begin there is every label, and few pixels.
    is_first = np.ones(values.shape, bool)
    np.not_equal(values[:, 1:], values[:, :-1], out=is_first[:, 1:])
    found: list[int] = np.unique(values[is_first]).tolist()
    return {label for label in found if label}
