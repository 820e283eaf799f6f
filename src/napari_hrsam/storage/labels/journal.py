"""The journal of a label image: every commit, written down before it is carried out.

A commit is one transaction of SQLite that holds its prompts, its model, its time, the pixels that
it changed and the labels that were there before, as compressed blocks. It is marked as pending, and
as not done, until all chunks of the label image are on the disk. What is pending when the journal
is opened is put back: a commit that never returned, on a full disk for instance, never comes back.
SQLite's own write-ahead log makes each transaction whole or absent, whenever the
process is killed or the power is cut.
"""

from __future__ import annotations

import json
import sqlite3
import time as clock
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from napari_hrsam.atomic_path import patiently
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.files.bounded_codecs import loose_limit
from napari_hrsam.storage.files.safe_files import force
from napari_hrsam.storage.labels.blocks import Block, StoredBlocks, pack, unpack
from napari_hrsam.storage.labels.changes import MAX_AREAS, area_changes
from napari_hrsam.storage.labels.edits import NOT_SAID, DrawnAs, DrawnObject, EditKind, History
from napari_hrsam.storage.labels.journal_rows import (
    COLUMNS,
    MAX_PENDING,
    MAX_TEXT,
    OF_OBJECT,
    SCHEMA,
    SEEN,
    Bounds,
    EditRow,
    box_from,
    edit_from,
    id_of,
    objects_text,
    of_object,
    prompts_text,
    require_few_pending,
    require_tables,
    require_version,
    stored_id,
)
from napari_hrsam.storage.labels.objects import Areas
from napari_hrsam.storage.labels.properties import PropertiesChange
from napari_hrsam.storage.labels.unfinished import Unfinished

UNDO_DEPTH = 1000
"""Commits that are offered for undo at once; the next open of the labels offers more."""

MAX_POINTS = 1_000_000
"""Points of prompts in the commits that are offered at once; more would fill the memory."""

# What the contents of a row can raise that we never wrote.
_NONE_OF_OURS = (ValueError, LookupError, TypeError, RuntimeError, ArithmeticError)
# What is_pending says of an edit: wholly done or not, being changed, or being made the first time.
_APPLIED, _CHANGING, _NEW = range(3)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JournalEdit(EditRow):
    """An edit that is kept in a journal, with what it changed.

    Attributes
    ----------
    journal : str
        Identity of the journal.
    """

    journal: str


@dataclass(frozen=True, slots=True)
class PendingEdit:
    """An edit that may be carried out in part.

    Attributes
    ----------
    edit : JournalEdit
        The edit.
    is_done : bool
        Whether it was done before; that is what counts.
    is_new : bool
        Whether it was never done before.
    """

    edit: JournalEdit
    is_done: bool
    is_new: bool


class Journal:
    """The journal in one file. It belongs to one writer, which holds the `WriterLock`.

    Parameters
    ----------
    path : Path
        The file; `create` makes it.
    dtype
        Integer dtype of the label image.
    bounds : Bounds, optional
        What edits of it can be; a row that says more counts as damage.

    Attributes
    ----------
    identity : str
        Differs between any two journals.

    Raises
    ------
    LabelsError
        If the file is damaged, of a newer version, or not to be written to. This holds for every
        method.
    """

    def __init__(self, path: Path, dtype: np.dtype[Any], bounds: Bounds | None = None) -> None:
        self.path = path
        self._dtype, self._bounds = dtype, bounds
        with self._explained():
            # The session's thread may be another one than that which opened the labels.
            self._database = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=5
            )
        try:
            with self._explained():
                self._database.execute("PRAGMA journal_mode = WAL")
                # Every note is on the disk before anything is changed, or told.
                self._database.execute("PRAGMA synchronous = FULL")
                self._database.execute("PRAGMA foreign_keys = ON")
                require_version(self._database, self.path)
                require_tables(self._database)
                self._database.execute(SEEN)
                self.identity = str(self._fact("identity"))
                self._raise_next_label(self._highest_told() + 1)
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def create(
        cls,
        path: Path,
        dtype: np.dtype[Any],
        next_label: int,
        looked_ns: int,
        bounds: Bounds | None = None,
    ) -> Journal:
        """Make an empty journal, which hands out ids from ``next_label`` on; see `note_look`."""
        # Under another name first: a journal is there as a whole or not at all.
        partial = path.with_name(path.name + ".partial")
        for old in partial.parent.glob(partial.name + "*"):
            old.unlink()
        with cls._explained_at(path):
            database = sqlite3.connect(partial, isolation_level=None)
            try:
                database.executescript(SCHEMA)
                facts = [
                    ("identity", uuid.uuid4().hex),
                    ("next_label", stored_id(next_label)),
                    ("looked_ns", looked_ns),
                    # Whether there are objects, or pixels, that no edit tells.
                    ("has_others", int(next_label > 1)),
                ]
                database.executemany("INSERT INTO facts VALUES (?, ?)", facts)
            finally:
                database.close()
            force([partial])
            patiently(lambda: partial.rename(path))
            force([path.parent, path.parent.parent])
        return cls(path, dtype, bounds)

    def close(self) -> None:
        """Close the file. Does nothing the second time."""
        self._database.close()

    def next_label(self) -> int:
        """Return the lowest id that was never used; it takes the same time whatever is there."""
        with self._explained():
            return id_of(self._fact("next_label"))

    def looked_ns(self) -> int:
        """Return when level 0 was looked at for ids, 0 if that was never noted."""
        with self._explained():
            row = self._database.execute(
                "SELECT value FROM facts WHERE name = 'looked_ns'"
            ).fetchone()
            return 0 if row is None else int(row[0])

    def is_seen(self, chunk: str, changed_ns: int) -> bool:
        """Whether a chunk of level 0 is as we wrote it, so that its ids are known."""
        with self._explained():
            row = self._database.execute(
                "SELECT 1 FROM seen WHERE chunk = ? AND changed_ns = ?", [chunk, changed_ns]
            ).fetchone()
            return row is not None

    def note_look(self, highest_label: int, looked_ns: int) -> None:
        """Write down that level 0 was looked at, and the highest id that was found.

        Parameters
        ----------
        highest_label : int
            Ids are handed out above it.
        looked_ns : int
            The time before the look, by the clock that stamps the files: what was changed at that
            time or later is unknown.
        """
        with self._transaction() as execute:
            self._raise_next_label(highest_label + 1)
            if highest_label > 0:
                # Of what we wrote ourselves the stamps are known: somebody else did.
                execute("INSERT OR REPLACE INTO facts VALUES ('has_others', 1)")
            execute("INSERT OR REPLACE INTO facts VALUES ('looked_ns', ?)", [looked_ns])
            execute("DELETE FROM seen WHERE changed_ns < ?", [looked_ns])

    def record(
        self,
        blocks: Iterable[Block],
        *,
        label: int,
        plane: tuple[int, ...],
        kind: EditKind = "draw",
        drawn: DrawnAs = NOT_SAID,
        change: PropertiesChange | None = None,
        scores: Mapping[int, float] = MappingProxyType({}),
    ) -> JournalEdit | None:
        """Write down a new edit as pending and not done.

        Of many objects that are accepted at once ``label`` is the highest, and ``scores`` tells
        theirs. The blocks are taken one by one within the transaction: if that fails, or there are
        none, nothing is written.

        Returns
        -------
        JournalEdit or None
            None if there were no blocks.
        """
        time, box = clock.time(), Box(0, 0, 0, 0)
        areas = {label: 0} if label and kind != "accept" else {}
        accepted = Areas()
        objects: tuple[DrawnObject, ...] = ()
        with self._transaction() as execute:
            row = [stored_id(label), json.dumps(plane), drawn.model, time, _NEW]
            number = execute(
                "INSERT INTO edits (label, plane, prompts, model, time, is_done, is_pending)"
                " VALUES (?, ?, '', ?, ?, 0, ?)",
                row,
            ).lastrowid
            assert number is not None
            for block in blocks:
                box = box.union(block.box)
                execute(
                    "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [number, *_numbers(block.box), *pack(block, self._dtype)],
                )
                if block.after is not None:
                    accepted.add(block.after, block.box.y0, block.box.x0)
                    continue
                found = area_changes(block.before, block.changed, label, block.box.area)
                # One more than are told is enough to know that none are.
                for other, area in found.items():
                    if other in areas or len(areas) <= MAX_AREAS:
                        areas[other] = areas.get(other, 0) + area
            if box.area == 0 and kind != "properties":
                execute("ROLLBACK")
                return None
            if kind == "accept":
                objects = tuple(
                    DrawnObject(label=one, box=where, area_px=area, score=scores.get(one))
                    for one, (area, where) in sorted(accepted.found().items())
                )
                areas = {one.label: one.area_px for one in objects}
            is_told = len(areas) <= MAX_AREAS and kind != "properties"
            said = prompts_text(
                drawn.prompts,
                kind,
                level=drawn.level,
                score=drawn.score,
                first_level=drawn.first_level,
                areas=[*areas.items()] if is_told else None,
                properties=change.told() if change else None,
                objects=objects_text(objects) if objects else None,
            )
            _require_short(said, drawn.prompts)
            execute("UPDATE edits SET prompts = ? WHERE number = ?", [said, number])
            if box.area:
                execute(
                    "UPDATE edits SET y0 = ?, x0 = ?, y1 = ?, x1 = ? WHERE number = ?",
                    [*_numbers(box), number],
                )
                self._raise_next_label(label + 1)
        return JournalEdit(
            label=label,
            box=box,
            prompts=drawn.prompts,
            model=drawn.model,
            time=time,
            plane=plane,
            kind=kind,
            level=drawn.level,
            score=drawn.score,
            first_level=drawn.first_level,
            areas=areas if is_told else None,
            change=change or None,
            objects=objects,
            number=number,
            journal=self.identity,
        )

    def mark_pending(self, edit: JournalEdit, *, was_done: bool, is_new: bool = False) -> None:
        """Write down that an edit may be carried out in part; what it was before counts.

        Nothing is written where that is said already.
        """
        with self._explained():
            self._database.execute(
                "UPDATE edits SET is_done = ?, is_pending = ? WHERE number = ? AND NOT is_pending",
                [was_done, _NEW if is_new else _CHANGING, edit.number],
            )

    def mark_applied(
        self, edit: JournalEdit, *, is_done: bool, seen: Iterable[tuple[str, int]] = ()
    ) -> None:
        """Write down that an edit is wholly made, or wholly taken back.

        When it is made the first time, what was undone before can no longer be made again.

        Parameters
        ----------
        edit, is_done
            The edit, and what it is now.
        seen : iterable of (str, int)
            The chunks of level 0 that it wrote, and their stamps.
        """
        with self._transaction() as execute:
            if is_done:
                execute(
                    "DELETE FROM edits WHERE NOT is_done AND number < ? AND EXISTS"
                    " (SELECT 1 FROM edits WHERE number = ? AND is_pending = ?)",
                    [edit.number, edit.number, _NEW],
                )
                # Whoever is killed now finds the object committed, and not to be drawn again.
                if edit.kind in ("draw", "replace"):
                    execute("DELETE FROM facts WHERE name = 'unfinished'")
            execute(
                "UPDATE edits SET is_done = ?, is_pending = ? WHERE number = ?",
                [is_done, _APPLIED, edit.number],
            )
            for chunk, changed_ns in seen:
                execute("INSERT OR REPLACE INTO seen VALUES (?, ?)", [chunk, changed_ns])

    def forget(self, edit: JournalEdit) -> None:
        """Remove an edit that was never wholly made."""
        with self._explained():
            self._database.execute("DELETE FROM edits WHERE number = ?", [edit.number])

    def pending(self) -> list[PendingEdit]:
        """Return the edits that may be carried out in part, newest first."""
        with self._explained():
            rows = self._database.execute(
                f"SELECT {COLUMNS}, is_done, is_pending FROM edits WHERE is_pending"  # noqa: S608
                " ORDER BY number DESC LIMIT ?",
                [MAX_PENDING + 1],
            ).fetchall()
            require_few_pending(len(rows))
            return [
                PendingEdit(self._edit(row[:-2]), bool(row[-2]), row[-1] == _NEW) for row in rows
            ]

    def newest_done(self) -> JournalEdit | None:
        """Return the edit that can be taken back."""
        return self._first("is_done ORDER BY number DESC")

    def oldest_undone(self) -> JournalEdit | None:
        """Return the edit that can be made again."""
        return self._first(f"NOT is_done AND is_pending != {_NEW} ORDER BY number")

    def newest_of(self, label: int, plane: tuple[int, ...]) -> JournalEdit | None:
        """Return the newest edit of one object that counts."""
        return self._first(f"{OF_OBJECT} ORDER BY number DESC", of_object(label, plane))

    def box_of(self, label: int, plane: tuple[int, ...]) -> Box:
        """Return a box that holds all that the edits of an object changed; it may be empty."""
        with self._explained():
            row = self._database.execute(
                f"SELECT min(y0), min(x0), max(y1), max(x1) FROM edits WHERE {OF_OBJECT}",  # noqa: S608
                of_object(label, plane),
            ).fetchone()
            return Box(0, 0, 0, 0) if row[0] is None else box_from(list(row))

    def unfinished(self) -> Unfinished | None:
        """Return the object that was being drawn, None if there was none."""
        query = "SELECT substr(value, 1, ?) FROM facts WHERE name = 'unfinished'"
        with self._explained():
            row = self._database.execute(query, [MAX_TEXT + 1]).fetchone()
            return None if row is None else Unfinished.from_text(row[0])

    def keep_unfinished(self, unfinished: Unfinished | None) -> None:
        """Write down the object that is being drawn, or that there is none."""
        if unfinished is None:
            self._execute("DELETE FROM facts WHERE name = 'unfinished'")
            return
        said = unfinished.text()
        _require_short(said, unfinished.prompts)
        self._execute("INSERT OR REPLACE INTO facts VALUES ('unfinished', ?)", [said])

    def history(self) -> History:
        """Return the newest `UNDO_DEPTH` commits and those that were taken back."""
        query = f"SELECT {COLUMNS} FROM edits WHERE "  # noqa: S608
        with self._explained():
            done = self._newest(query + "is_done ORDER BY number DESC LIMIT ?")
            undone = self._newest(
                query + f"NOT is_done AND is_pending != {_NEW} ORDER BY number LIMIT ?"
            )
            return History(done=done[::-1], undone=undone[::-1])

    def _newest(self, query: str) -> tuple[JournalEdit, ...]:
        """Return the first edits of a query, as many as are offered at once."""
        edits: list[JournalEdit] = []
        num_points = 0
        for row in self._database.execute(query, [UNDO_DEPTH]):
            edits.append(self._edit(row))
            num_points += edits[-1].prompts.num_points
            if num_points > MAX_POINTS:
                break
        return tuple(edits)

    def blocks(self, edit: JournalEdit) -> StoredBlocks:
        """Return the blocks of an edit, to be read one by one."""
        with self._explained():
            (num_blocks,) = self._database.execute(
                "SELECT count(*) FROM blocks WHERE edit = ?", [edit.number]
            ).fetchone()
            if self._bounds is not None and num_blocks > self._bounds.num_chunks(edit.box):
                raise ValueError(f"{num_blocks} blocks for {edit.box}")
            rows = self._database.execute(
                "SELECT rowid, y0, x0, y1, x1, changed IS NULL AND before IS NULL FROM blocks"
                " WHERE edit = ? ORDER BY rowid",
                [edit.number],
            ).fetchall()
            boxes = [box_from(list(row[1:5])) for row in rows]
            for box, row in zip(boxes, rows, strict=True):
                if box.union(edit.box) != edit.box:
                    raise ValueError(f"a block of {box} outside {edit.box}")
                if self._bounds is not None and not row[5]:
                    self._bounds.require_pixels(box)
        rows_of_pixels = [None if row[5] else row[0] for row in rows]
        read = partial(self._read_block, are_after=edit.kind == "accept")
        return StoredBlocks(boxes, rows_of_pixels, read)

    def _read_block(self, box: Box, row: int, *, are_after: bool) -> Block:
        limit = loose_limit(box.area * self._dtype.itemsize)
        with self._explained():
            changed, labels = self._database.execute(
                "SELECT changed, before FROM blocks WHERE rowid = ?"
                " AND ifnull(length(changed), 0) <= ? AND ifnull(length(before), 0) <= ?",
                [row, limit, limit],
            ).fetchone()
            return unpack(box, changed, labels, self._dtype, are_after=are_after)

    def _fact(self, name: str) -> Any:
        (value,) = self._database.execute(
            "SELECT value FROM facts WHERE name = ?", [name]
        ).fetchone()
        return value

    def _highest_told(self) -> int:
        """Return the highest id of all edits: the fact may be of an older copy, or set back."""
        row = self._database.execute(
            # Ids of 2**63 and above are stored below 0.
            "SELECT label FROM edits WHERE label != 0 ORDER BY label < 0 DESC, label DESC LIMIT 1"
        ).fetchone()
        return 0 if row is None else self._checked(id_of(row[0]))

    def _checked(self, label: int) -> int:
        if label > np.iinfo(self._dtype).max:
            raise ValueError(f"the id {label} in labels of {self._dtype}")
        return label

    def _raise_next_label(self, label: int) -> None:
        if label > id_of(self._fact("next_label")):
            self._execute(
                "UPDATE facts SET value = ? WHERE name = 'next_label'", [stored_id(label)]
            )

    def _first(self, condition: str, values: Sequence[Any] = ()) -> JournalEdit | None:
        query = f"SELECT {COLUMNS} FROM edits WHERE {condition} LIMIT 1"  # noqa: S608
        with self._explained():
            row = self._database.execute(query, values).fetchone()
            return None if row is None else self._edit(row)

    def _edit(self, row: tuple[Any, ...]) -> JournalEdit:
        edit = edit_from(row)
        self._checked(edit.label)
        if self._bounds is not None:
            self._bounds.require_edit(edit.plane, edit.box)
        said = {field.name: getattr(edit, field.name) for field in fields(edit)}
        return JournalEdit(**said, journal=self.identity)

    @contextmanager
    def _transaction(self) -> Iterator[Any]:
        """Give the function that executes; what was executed happens as a whole or not at all."""
        with self._explained():
            self._database.execute("BEGIN IMMEDIATE")
        try:
            yield self._execute
            if self._database.in_transaction:
                self._execute("COMMIT")
        except BaseException:
            # A full disk makes SQLite roll back by itself.
            if self._database.in_transaction:
                self._execute("ROLLBACK")
            raise

    def _execute(self, command: str, values: Iterable[Any] = ()) -> sqlite3.Cursor:
        with self._explained():
            return self._database.execute(command, list(values))

    def _explained(self) -> Any:
        return self._explained_at(self.path)

    @staticmethod
    @contextmanager
    def _explained_at(path: Path) -> Iterator[None]:
        """Turn what SQLite and damaged contents raise into an error that says what to do."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise LabelsError(
                f"expected a journal that can be written to at {path}, got: {error}; check the "
                "space on the disk and the rights of the folder. The labels are unchanged"
            ) from error
        # TypeError: a row that should be there is not.
        except (
            sqlite3.Error,
            ValueError,
            TypeError,
            KeyError,
            RuntimeError,
            OverflowError,
        ) as error:
            if isinstance(error, LabelsError):
                raise
            raise LabelsError(
                f"expected an intact journal, got damage at {path} ({type(error).__name__}: "
                f"{error}); the labels themselves lie in other files. Move the folder "
                f"{path.parent} away and open the labels again: they start a new journal, without "
                "the undo of earlier commits"
            ) from error


def _require_short(said: str, prompts: Prompts) -> None:
    if len(said) > MAX_TEXT:
        raise LabelsError(
            f"expected prompts, and classes of objects, of at most {MAX_TEXT} characters in one "
            f"change, got {len(said)} with {len(prompts)} clicks and scribbles; draw the object "
            "with fewer, or change the classes of fewer objects at once"
        )


def _numbers(box: Box) -> tuple[int, int, int, int]:
    return box.y0, box.x0, box.y1, box.x1
