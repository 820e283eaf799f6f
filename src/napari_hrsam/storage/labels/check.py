"""Verify a label image of any size: metadata, chunks, levels and journal; and repair its levels."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.files.writer_lock import WriterLock
from napari_hrsam.storage.labels.check_levels import LevelCheck, Problem
from napari_hrsam.storage.labels.journal_facts import JOURNAL_FILE, CommitFacts, read_journal
from napari_hrsam.storage.labels.making import require_listed
from napari_hrsam.storage.labels.names import label_folder, local_folder
from napari_hrsam.storage.labels.ome_rules import broken_rules
from napari_hrsam.storage.labels.pyramid import PyramidLabels
from napari_hrsam.storage.labels.regions import Progress
from napari_hrsam.storage.labels.stored import StoredLabels

logger = logging.getLogger(__name__)


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

    The metadata must follow OME-Zarr 0.4 or 0.5, every stored chunk must decode, nothing in the
    journal may be half done, and its objects must be there. Every coarser level must show the finer
    one: where all objects are the journal's, their majority (background does not vote), as we draw
    it; elsewhere each pixel may be any of those that it covers, as other programs pick or vote,
    which is noted. Without ``repair`` nothing is written or locked; labels that are drawn into
    meanwhile may look wrong.

    Parameters
    ----------
    path : path
        A local OME-Zarr image, or a folder of labels alone.
    name : str
        Name of the label image.
    repair : bool
        Put back what a crash left half done, list the label image, and write coarser levels anew
        where they are wrong or damaged. Level 0 is never changed otherwise. Takes the right to
        write. A damaged journal stops none of it.
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
    root = local_folder(path)
    label_folder(root, name)  # refuses names that lead elsewhere
    problems = [Problem(kind="metadata", text=text) for text in broken_rules(root, name)]
    try:
        labels = StoredLabels(path, name)
        labels.require_metadata()
    except LabelsError as error:
        if not problems:
            problems.append(Problem(kind="metadata", text=str(error)))
        return LabelsReport(problems=tuple(problems), notes=("no pixels were looked at",))
    if not repair:
        check = LevelCheck(labels, None, progress)
        check.run()
        return _report(check, problems)
    with _writable(root, name) as arrays:
        require_listed(root, name)
        left = broken_rules(root, name)
        problems = [replace(p, is_repaired=p.text not in left) for p in problems]
        check = LevelCheck(labels, arrays, progress)
        check.run()
    return _report(check, problems)


@contextmanager
def _writable(path: Path, name: str) -> Iterator[tuple[zarr.Array[Any], ...]]:
    """Take the right to write; what a crash left half done is put back."""
    folder = path / "labels" / name
    with ExitStack() as stack:
        if (folder / JOURNAL_FILE).exists():
            try:
                labels = stack.enter_context(PyramidLabels(path, name))
            except LabelsError as error:
                # The levels need no journal; what is wrong with it is told with all else.
                logger.warning("repairing without the journal: %s", error)
            else:
                yield labels.levels
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
        yield StoredLabels(path, name, "r+").levels


def _report(check: LevelCheck, problems: list[Problem]) -> LabelsReport:
    labels = check.labels
    problems = [*problems, *check.problems, *_journal_problems(labels, check.found)]
    highest = max((max(found, default=0) for found in check.found.values()), default=0)
    return LabelsReport(
        problems=tuple(problems),
        notes=tuple(check.notes),
        num_levels=len(labels.levels),
        num_chunks=sum(map(len, check.files)),
        num_objects=len(set().union(*check.found.values())),
        highest_label=max(0, highest),
    )


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
            "puts it back, and so does repair",
            level=0,
            box=commit.box,
            plane=commit.plane,
        )
    highest = max((max(there, default=0) for there in found.values()), default=0)
    if highest >= facts.next_label:
        yield Problem(
            kind="journal",
            text=f"the next object would get the id {facts.next_label}, but there are ids up to "
            f"{highest}; open the labels once with open_labels, which looks for them",
        )
    last = np.iinfo(labels.dtype).max
    if facts.next_label > last + 1:
        yield Problem(
            kind="journal",
            text=f"the next object would get the id {facts.next_label}, and {labels.dtype} holds "
            f"ids up to {last}; move the journal away and open the labels again: they start a new "
            "one, without the undo of earlier commits",
        )
    yield from _missing_objects(facts.commits, found)


def _missing_objects(
    commits: tuple[CommitFacts, ...], found: dict[tuple[int, ...], set[int]]
) -> Iterator[Problem]:
    """Find the objects of the journal of which no pixel is there, and that nothing has covered."""
    done = [commit for commit in commits if commit.is_done and commit.kind != "properties"]
    newest = {(commit.plane, commit.label): number for number, commit in enumerate(done)}
    boxes: dict[tuple[tuple[int, ...], int], Box] = {}
    for commit in done:
        key = commit.plane, commit.label
        # An edit that replaces an object tells only where it changed.
        boxes[key] = boxes[key].union(commit.box) if key in boxes else commit.box
    for (plane, label), number in newest.items():
        commit, box = done[number], boxes[plane, label]
        if (
            commit.kind == "delete"
            or label in found.get(plane, ())
            or any(
                later.plane == plane and later.box.intersection(box).area
                for later in done[number + 1 :]
            )
        ):
            continue
        yield Problem(
            kind="journal",
            text=f"object {label} was committed here, but no pixel of it is there",
            level=0,
            box=commit.box,
            plane=plane,
        )
