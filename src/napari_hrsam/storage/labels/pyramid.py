"""A label image of any size in a folder, which loses no commit and needs no memory of its size."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, BoxLike, as_box
from napari_hrsam.masks import EmptyMask, RegionMask
from napari_hrsam.storage.files.held_places import HeldPlaces
from napari_hrsam.storage.files.writer_lock import WriterLock
from napari_hrsam.storage.labels.arguments import (
    no_free_pixel,
    none_free,
    region_of,
    require_fits,
    require_new_ids,
)
from napari_hrsam.storage.labels.blocks import Block
from napari_hrsam.storage.labels.changes import class_change, only_label
from napari_hrsam.storage.labels.classed import ClassedObjects
from napari_hrsam.storage.labels.edits import NOT_SAID, DrawnAs, Edit, EditKind, History
from napari_hrsam.storage.labels.highest_label import highest_label
from napari_hrsam.storage.labels.journal import Journal, JournalEdit
from napari_hrsam.storage.labels.journal_facts import JOURNAL_FILE
from napari_hrsam.storage.labels.journal_rows import Bounds
from napari_hrsam.storage.labels.listing import list_objects
from napari_hrsam.storage.labels.making import require_listed
from napari_hrsam.storage.labels.objects import ObjectList
from napari_hrsam.storage.labels.properties import (
    Properties,
    PropertiesChange,
    PropertiesFile,
    read_properties,
)
from napari_hrsam.storage.labels.search import find_label
from napari_hrsam.storage.labels.stored import StoredLabels
from napari_hrsam.storage.labels.unfinished import Unfinished
from napari_hrsam.storage.labels.writer import LevelWriter, require_small_chunks

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Failed:
    """An edit that could not be carried out, and how to take that back."""

    edit: JournalEdit
    was_done: bool
    is_new: bool


class PyramidLabels(StoredLabels, ClassedObjects):
    """An OME-Zarr label image that a session commits to: ours, or another program's.

    Every level shows every commit: coarser levels hold the majority of the labels, background not
    counted. A commit that has returned is kept whatever happens to the process. One object at a
    time may have a label image open, in the process that opened it; of several threads one at a
    time is let in. The folder must stay where it is until it is closed.

    Parameters
    ----------
    path, name
        As in `StoredLabels`.

    Raises
    ------
    LabelsError
        As in `StoredLabels`; if another process has the labels open, the journal is damaged or
        cannot be written to, or something left half done by a crash cannot be put back. Of every
        method that writes also if the folder was moved, deleted or replaced meanwhile, or the
        process was forked.
    """

    def __init__(self, path: str | PathLike[str], name: str) -> None:
        super().__init__(path, name, "r+")
        require_small_chunks(self)
        self._writer = LevelWriter(self, self._require_places)
        self._properties_file = PropertiesFile(self.folder, self._require_places)
        self._failed: _Failed | None = None
        self._is_closed = False
        self._process = os.getpid()
        self._one_at_a_time = threading.RLock()
        self._promised: dict[int, int] = {}
        with ExitStack() as undo:
            undo.callback(self._writer.close)
            undo.callback(self._properties_file.close)
            self._lock = WriterLock(_made(self.folder / JOURNAL_FILE.parent))
            undo.callback(self._lock.release)
            self._journal = self._open_journal()
            undo.callback(self._journal.close)
            self._places = HeldPlaces(
                self.folder,
                [
                    self.folder,
                    self.folder / JOURNAL_FILE.parent,
                    self.folder / JOURNAL_FILE,
                    *(self.folder / array.path for array in self.levels),
                ],
            )
            undo.callback(self._places.close)
            self._put_back_what_is_pending()
            self._properties = read_properties(self.folder)
            # Now that nobody else writes.
            require_listed(self.path, name)
            self._close_all = undo.pop_all()

    def __enter__(self) -> Self:
        """Return the labels themselves."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the labels."""
        self.close()

    def close(self) -> None:
        """Let others write. Everything is on disk already."""
        # In a forked process all of it still belongs to the one that opened it.
        if self._is_closed or os.getpid() != self._process:
            self._is_closed = True
            return
        with self._one_at_a_time:
            self._is_closed = True
            self._close_all.close()

    def __repr__(self) -> str:
        """Tell place, size and planes in one line."""
        return super().__repr__()[:-1] + (", closed)" if self._is_closed else ")")

    def history(self) -> History:
        """Return the commits that can be taken back and made again, also of earlier sessions."""
        with self._turn():
            return self._journal.history()

    @property
    def unfinished(self) -> Unfinished | None:
        """The object that was being drawn, and not committed, when the last session ended."""
        with self._turn():
            return self._journal.unfinished()

    def keep_unfinished(self, unfinished: Unfinished | None) -> None:
        """Remember the object that is being drawn, or that there is none.

        Raises
        ------
        LabelsError
            If the journal cannot be written to.
        """
        with self._turn():
            self._journal.keep_unfinished(unfinished)

    def newest_done(self) -> JournalEdit | None:
        """Return the commit that `revert` takes back, None if there is none."""
        self._require_open()
        with self._one_at_a_time:
            return self._journal.newest_done()

    def next_undone(self) -> JournalEdit | None:
        """Return the commit that `apply` makes again, None if there is none."""
        self._require_open()
        with self._one_at_a_time:
            return self._journal.oldest_undone()

    def newest_of(self, label: int, plane: tuple[int, ...] = ()) -> Edit | None:
        """Return the newest commit of one object that the journal knows, None if there is none."""
        plane = self.plane(plane)
        with self._turn():
            edit = self._journal.newest_of(label, plane)
            return None if edit is None else edit.part_of(label)

    def find(self, label: int, plane: tuple[int, ...] = ()) -> Box:
        """Return a box that holds an object: ours, or one that another program drew.

        Where level 0 is small it is searched whole. Where it is not, a coarser level is, and what
        is found is followed at level 0 as far as it goes; see `find_label`.

        Parameters
        ----------
        label : int
            Its id.
        plane : tuple of int
            Index over the axes before y and x.

        Returns
        -------
        Box
            In level-0 pixels; it may be a little larger than the object.

        Raises
        ------
        LabelsError
            If no pixel has the id, there is no such plane, or a chunk cannot be read.
        """
        require_fits(label, self.dtype)
        plane = self.plane(plane)
        with self._turn():
            return find_label(self._writer.grids, label, plane, self._journal.box_of(label, plane))

    def next_label(self) -> int:
        """Return an id that was never used; it takes the same time however many there are.

        It is the same until the thread writes; of several threads each gets another one.

        Raises
        ------
        LabelsError
            If the dtype of the labels cannot hold it.
        """
        with self._turn():
            thread = threading.get_ident()
            if thread not in self._promised:
                taken = set(self._promised.values())
                lowest = self._journal.next_label()
                label = next(label for label in itertools.count(lowest) if label not in taken)
                require_fits(label, self.dtype)
                self._promised[thread] = label
            return self._promised[thread]

    def write(
        self,
        box: BoxLike,
        mask: NDArray[np.bool_] | RegionMask,
        label: int,
        *,
        overwrite: bool = False,
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> JournalEdit:
        """Write one object at every level. When this returns, a killed program cannot lose it.

        Parameters
        ----------
        box : (y0, x0, y1, x1) or Box
            Where the mask lies, inside the image.
        mask : (box.height, box.width) bool, or RegionMask
            The object. Of a `RegionMask`, which need not fit into memory, what lies in the box
            is written.
        label : int
            Its id, 1 or more.
        overwrite : bool
            Whether pixels of other objects are taken over; by default they stay.
        plane : tuple of int
            Index over the axes before y and x; may be left out where they all have length 1.
        drawn : DrawnAs
            Kept in the journal.

        Returns
        -------
        JournalEdit
            Its box is the smallest one that holds every changed pixel.

        Raises
        ------
        LabelsError
            If no pixel can be written, the id does not fit the dtype, the box reaches outside,
            there is no such plane, or the disk is full or fails; the labels are as before then.
        ShapeError
            If the mask does not have the shape of the box.
        """
        require_fits(label, self.dtype)
        box = as_box(box)
        region = region_of(box, mask, self.shape_yx)
        plane = self.plane(plane)
        with self._turn():
            changes = self._writer.changes(box, region, label, plane, overwrite=overwrite)
            edit = self._carried_out(changes, label, plane, "draw", drawn)
            if edit is None:
                raise no_free_pixel(label, region, box)
            thread = threading.get_ident()
            self._promised = {
                other: promised
                for other, promised in self._promised.items()
                if other != thread and promised != label
            }
        return edit

    def accept(
        self,
        box: BoxLike,
        painted: Callable[[Box], NDArray[Any]],
        scores: Mapping[int, float],
        *,
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> JournalEdit:
        """Draw many new objects at every level in one edit, where there is background.

        It is as safe as `write`, and takes the time of the chunks that it touches.

        Parameters
        ----------
        box : (y0, x0, y1, x1) or Box
            Where they lie, inside the image.
        painted : callable of Box
            Gives the ids of the objects in a part of the box, (height, width) integer, 0 for none.
            None of them was used before: they are `next_label` or higher.
        scores : mapping of int to float
            The ids, at most `MAX_AREAS`, and the model's own estimate of each object.
        plane, drawn
            As in `write`.

        Returns
        -------
        JournalEdit
            Its `objects` are those of which a pixel was written.

        Raises
        ------
        LabelsError
            As `write`; if an id was used before, or there are too many or none.
        """
        box = as_box(box)
        region_of(box, EmptyMask(box), self.shape_yx)
        plane = self.plane(plane)
        with self._turn():
            require_new_ids(scores, self._journal.next_label(), self.dtype)
            # Told anew, also when this fails: the journal gives no id out twice.
            self._promised.pop(threading.get_ident(), None)
            if taken := set(self._promised.values()) & set(scores):
                raise LabelsError(
                    f"expected ids that no other thread draws under, got {min(taken)}, which one "
                    "was given; accept the objects when it has committed its own"
                )
            try:
                edit = self._journal.record(
                    self._writer.accepted(box, painted, plane),
                    label=max(scores),
                    plane=plane,
                    kind="accept",
                    drawn=drawn,
                    scores=scores,
                )
                if edit is None:
                    raise none_free(scores)
                self._carry_out(edit, is_done=True, is_new=True)
            finally:
                self._writer.forget()
        return edit

    def replace(
        self,
        label: int,
        box: BoxLike,
        mask: RegionMask | None,
        *,
        overwrite: bool = False,
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> JournalEdit | None:
        """Replace an object at every level, or delete it, in one edit; as safe as `write`.

        Parameters
        ----------
        label : int
            Its id.
        box : (y0, x0, y1, x1) or Box
            Inside the image. Pixels of the object in it that are not in the mask become
            background; see `find`.
        mask : RegionMask or None
            Its new pixels, in the image; None deletes it.
        overwrite, plane, drawn
            As in `write`.

        Returns
        -------
        JournalEdit or None
            None if the object is as the mask says already.

        Raises
        ------
        LabelsError
            If all pixels of the mask belong to other objects, or as in `write`.
        """
        require_fits(label, self.dtype)
        box = as_box(box)
        whole = box if mask is None else box.union(mask.box)
        region = region_of(whole, EmptyMask(whole) if mask is None else mask, self.shape_yx)
        plane = self.plane(plane)
        with self._turn():
            changes = self._writer.changes(
                whole, region, label, plane, overwrite=overwrite, erased=box
            )
            try:
                if mask is not None and not self._writer.leaves_any(
                    region, label, plane, overwrite=overwrite
                ):
                    raise no_free_pixel(label, region, mask.box)
                kind: EditKind = "delete" if mask is None else "replace"
                return self._carried_out(changes, label, plane, kind, drawn)
            finally:
                self._writer.forget()

    @property
    def properties(self) -> Properties:
        """The classes, and what is told of each object."""
        return self._properties

    def change_properties(self, change: PropertiesChange) -> JournalEdit | None:
        """Change classes and what is told of objects, as one edit; as safe as `write`.

        Parameters
        ----------
        change : PropertiesChange
            As `properties` makes it, e.g. ``labels.properties.setting_class(ids, "nucleus")``.

        Returns
        -------
        JournalEdit or None
            None if it is nothing.

        Raises
        ------
        LabelsError
            If the metadata cannot be written to; they are as before then.
        """
        if not change:
            return None
        with self._turn():
            edit = self._journal.record(
                (),
                label=only_label(change),
                plane=(0,) * len(self.plane_shape),
                kind="properties",
                change=change,
            )
            assert edit is not None
            self._carry_out(edit, is_done=True, is_new=True)
        return edit

    def object_list(self) -> ObjectList:
        """Return the objects that the journal tells, to be kept up to date by edits."""
        with self._turn():
            return list_objects(self)

    def _carried_out(
        self,
        changes: Iterator[Block],
        label: int,
        plane: tuple[int, ...],
        kind: EditKind,
        drawn: DrawnAs,
    ) -> JournalEdit | None:
        """Write a change down in the journal and carry it out; None if there is none."""
        try:
            edit = self._journal.record(
                changes,
                label=label,
                plane=plane,
                kind=kind,
                drawn=drawn,
                change=class_change(self._properties, label, drawn),
            )
            if edit is not None:
                self._carry_out(edit, is_done=True, is_new=True)
        finally:
            self._writer.forget()
        return edit

    def revert(self, edit: Edit) -> None:
        """Take back the newest commit; pixels that it did not change stay as they are.

        Raises
        ------
        LabelsError
            If it is not the newest commit of these labels, or the disk is full or fails.
        """
        own = self._own(edit)
        with self._turn():
            newest = self._journal.newest_done()
            if newest is None or own.number != newest.number:
                raise LabelsError(
                    "expected the newest commit to take back, got an older one (object "
                    f"{own.label}); take back those after it first, newest first"
                )
            self._change(own, is_done=False)

    def apply(self, edit: Edit) -> None:
        """Make the commit again that was taken back last.

        Raises
        ------
        LabelsError
            If it is not that commit, or the disk is full or fails.
        """
        own = self._own(edit)
        with self._turn():
            undone = self._journal.oldest_undone()
            if undone is None or own.number != undone.number:
                raise LabelsError(
                    "expected the commit that was taken back last, got another one (object "
                    f"{own.label}); make those before it again first. A new commit ends the chance "
                    "to"
                )
            self._change(own, is_done=True)

    def _change(self, edit: JournalEdit, *, is_done: bool) -> None:
        try:
            # A damaged chunk is found before anything is changed.
            self._writer.require_readable(edit.plane, self._journal.blocks(edit))
            self._journal.mark_pending(edit, was_done=not is_done)
            self._carry_out(edit, is_done=is_done, is_new=False)
        finally:
            self._writer.forget()

    def _carry_out(self, edit: JournalEdit, *, is_done: bool, is_new: bool) -> None:
        """Write an edit of the journal to every level; when that fails, take it back."""
        self._failed = _Failed(edit, was_done=not is_done, is_new=is_new)
        try:
            self._put(edit, is_done=is_done)
            self._journal.mark_applied(edit, is_done=is_done, seen=self._writer.written())
        except BaseException:
            try:
                self._take_back()
            except LabelsError:
                # The next call tries it again, and so does the next opening.
                logger.exception("could not take back a failed change of %s", self.folder)
            raise
        self._failed = None
        self._drop_backups()

    def _take_back(self) -> None:
        assert self._failed is not None
        edit, was_done, is_new = self._failed.edit, self._failed.was_done, self._failed.is_new
        # Said already, unless an interruption came right after it was applied.
        self._journal.mark_pending(edit, was_done=was_done, is_new=is_new)
        self._put_files_back()
        self._properties = read_properties(self.folder)
        self._note_put_back(edit, was_done=was_done, is_new=is_new)
        self._failed = None

    def _put_back_what_is_pending(self) -> None:
        """Put back what was under way when the last process ended."""
        for pending in self._journal.pending():
            logger.warning(
                "putting back a change of %s that was interrupted: object %d",
                self.folder,
                pending.edit.label,
            )
            try:
                self._put(pending.edit, is_done=pending.is_done)
                self._note_put_back(pending.edit, was_done=pending.is_done, is_new=pending.is_new)
            except BaseException:
                self._put_files_back()
                raise
            self._drop_backups()
        self._writer.forget()

    def _put_files_back(self) -> None:
        self._writer.put_back()
        self._properties_file.put_back()

    def _drop_backups(self) -> None:
        self._writer.drop_backups()
        self._properties_file.drop_backups()

    def _note_put_back(self, edit: JournalEdit, *, was_done: bool, is_new: bool) -> None:
        if is_new:
            self._journal.forget(edit)
        else:
            self._journal.mark_applied(edit, is_done=was_done, seen=self._writer.written())

    def _put(self, edit: JournalEdit, *, is_done: bool) -> None:
        """Write the labels after the edit (or before it) at every level; safe to do twice."""
        if edit.box.area:
            self._writer.put(edit.plane, edit.label, self._journal.blocks(edit), is_done=is_done)
        if edit.change is not None:
            self._properties = self._properties_file.put(edit.change, is_done=is_done)

    def _own(self, edit: Edit) -> JournalEdit:
        self._require_open()
        if not isinstance(edit, JournalEdit) or edit.journal != self._journal.identity:
            raise LabelsError(
                f"expected an edit of the labels at {self.folder}, got one of other labels; give "
                "what their write or their history returned"
            )
        return edit

    @contextmanager
    def _turn(self) -> Iterator[None]:
        """Let one thread in, if all is as it must be; what failed before is taken back first."""
        self._require_open()
        with self._one_at_a_time:
            self._require_open()
            self._require_places()
            if self._failed is not None:
                self._take_back()
            yield

    def _require_open(self) -> None:
        if os.getpid() != self._process:
            raise LabelsError(
                f"expected the process that opened the labels ({self._process}), got another one "
                f"({os.getpid()}) that was forked from it; write there, or close them there and "
                f"open them here ({self.folder})"
            )
        if self._is_closed:
            raise LabelsError(
                f"expected open labels, got closed ones ({self.folder}); open them again with "
                "open_labels"
            )

    def _require_places(self) -> None:
        self._places.require()

    def _open_journal(self) -> Journal:
        """Open the journal; look at the ids of what other programs wrote, or all the first time."""
        path, since_ns = self.folder / JOURNAL_FILE, self._lock.since_ns
        bounds = Bounds(
            shape=(*self.plane_shape, *self.shape_yx), chunk_yx=self._writer.grids[0].side_yx
        )
        if not path.exists():
            highest = highest_label(self) or 0
            return Journal.create(path, self.dtype, max(0, highest) + 1, since_ns, bounds)
        journal = Journal(path, self.dtype, bounds)
        try:
            looked_ns = journal.looked_ns()
            found = highest_label(
                self,
                lambda chunk, changed_ns: (
                    changed_ns < looked_ns or journal.is_seen(chunk, changed_ns)
                ),
            )
            if found is not None:
                journal.note_look(found, since_ns)
        except BaseException:
            journal.close()
            raise
        return journal


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise LabelsError(
            f"expected a folder that can be written to, got an error at {folder}: {error}; check "
            "its rights and the space on the disk"
        ) from error
    return folder
