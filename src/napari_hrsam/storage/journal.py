"""The journal of a label image: every commit, written down before it is carried out.

A commit is one transaction of SQLite that holds its prompts, its model, its time, the pixels that
it changed and the labels that were there before, as compressed blocks. It is marked as pending
until all chunks of the label image are on the disk. What is pending when the journal is opened is
carried out again. SQLite's own write-ahead log makes each transaction whole or absent, whenever the
process is killed or the power is cut.
"""

from __future__ import annotations

import json
import sqlite3
import time as clock
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.label_blocks import Block, StoredBlocks, pack, unpack
from napari_hrsam.storage.label_store import Edit, History
from napari_hrsam.storage.safe_files import force

UNDO_DEPTH = 1000
"""Commits that are offered for undo at once; the next open of the labels offers more."""

_VERSION = 2
# A note that an edit is carried out may be lost in a power cut: the edit is carried out again then.
# All other notes are forced onto the disk before anything is changed.
_LAZY, _FORCED = "PRAGMA synchronous = NORMAL", "PRAGMA synchronous = FULL"
_COLUMNS = "number, label, plane, y0, x0, y1, x1, prompts, model, time"
_SCHEMA = f"""
CREATE TABLE facts (name TEXT PRIMARY KEY, value);
CREATE TABLE edits (
    number INTEGER PRIMARY KEY AUTOINCREMENT, label INTEGER, plane TEXT,
    y0 INTEGER, x0 INTEGER, y1 INTEGER, x1 INTEGER, prompts TEXT, model TEXT, time REAL,
    is_done INTEGER NOT NULL, is_pending INTEGER NOT NULL
);
CREATE INDEX pending_edits ON edits (number) WHERE is_pending;
CREATE INDEX undone_edits ON edits (number) WHERE NOT is_done;
CREATE TABLE blocks (
    edit INTEGER NOT NULL REFERENCES edits ON DELETE CASCADE,
    y0 INTEGER, x0 INTEGER, y1 INTEGER, x1 INTEGER, changed BLOB, before BLOB
);
CREATE INDEX blocks_of_edit ON blocks (edit);
PRAGMA user_version = {_VERSION};
"""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class JournalEdit(Edit):
    """An edit that is kept in a journal, with what it changed.

    Attributes
    ----------
    number : int
        Its place in the order of all edits.
    journal : str
        Identity of the journal.
    """

    number: int
    journal: str


@dataclass(frozen=True, slots=True)
class PendingEdit:
    """An edit that may be carried out in part: ``is_done`` is what it was about to be."""

    edit: JournalEdit
    is_done: bool


class Journal:
    """The journal in one file. It belongs to one writer, which holds the `WriterLock`.

    Parameters
    ----------
    path : Path
        The file; `create` makes it.
    dtype
        Integer dtype of the label image.

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

    def __init__(self, path: Path, dtype: np.dtype[Any]) -> None:
        self.path = path
        self._dtype = dtype
        with self._explained():
            # The session's thread may be another one than that which opened the labels.
            self._database = sqlite3.connect(
                path, isolation_level=None, check_same_thread=False, timeout=5
            )
        try:
            with self._explained():
                self._database.execute("PRAGMA journal_mode = WAL")
                self._database.execute(_FORCED)
                self._database.execute("PRAGMA foreign_keys = ON")
                self._check_version()
                self.identity = str(self._fact("identity"))
        except BaseException:
            self._database.close()
            raise

    @classmethod
    def create(cls, path: Path, dtype: np.dtype[Any], next_label: int) -> Journal:
        """Make an empty journal, which hands out ids from ``next_label`` on."""
        # Under another name first: a journal is there as a whole or not at all.
        partial = path.with_name(path.name + ".partial")
        for old in partial.parent.glob(partial.name + "*"):
            old.unlink()
        with cls._explained_at(path):
            database = sqlite3.connect(partial, isolation_level=None)
            try:
                database.executescript(_SCHEMA)
                facts = [("identity", uuid.uuid4().hex), ("next_label", next_label)]
                database.executemany("INSERT INTO facts VALUES (?, ?)", facts)
            finally:
                database.close()
            force([partial])
            partial.rename(path)
            force([path.parent, path.parent.parent])
        return cls(path, dtype)

    def close(self) -> None:
        """Close the file. Does nothing the second time."""
        self._database.close()

    def next_label(self) -> int:
        """Return the lowest id that was never used; it takes the same time whatever is there."""
        with self._explained():
            return int(self._fact("next_label"))

    def raise_next_label(self, label: int) -> None:
        """Hand out ids from ``label`` on."""
        with self._explained():
            self._database.execute("UPDATE facts SET value = ? WHERE name = 'next_label'", [label])

    def record(
        self,
        blocks: Iterable[Block],
        *,
        label: int,
        plane: tuple[int, ...],
        prompts: Prompts,
        model: str,
    ) -> JournalEdit | None:
        """Write down a new edit as pending; what was undone before can no longer be made again.

        The blocks are taken one by one within the transaction: if that fails, or there are none,
        nothing is written.

        Returns
        -------
        JournalEdit or None
            None if there were no blocks.
        """
        time = clock.time()
        with self._transaction() as execute:
            execute("DELETE FROM edits WHERE NOT is_done")
            row = [label, json.dumps(plane), _prompts_text(prompts), model, time]
            number = execute(
                "INSERT INTO edits (label, plane, prompts, model, time, is_done, is_pending)"
                " VALUES (?, ?, ?, ?, ?, 1, 1)",
                row,
            ).lastrowid
            assert number is not None
            box = Box(0, 0, 0, 0)
            for block in blocks:
                box = box.union(block.box)
                execute(
                    "INSERT INTO blocks VALUES (?, ?, ?, ?, ?, ?, ?)",
                    [number, *_numbers(block.box), *pack(block, self._dtype)],
                )
            if box.area == 0:
                execute("ROLLBACK")
                return None
            execute(
                "UPDATE edits SET y0 = ?, x0 = ?, y1 = ?, x1 = ? WHERE number = ?",
                [*_numbers(box), number],
            )
            execute("UPDATE facts SET value = max(value, ?) WHERE name = 'next_label'", [label + 1])
        return JournalEdit(
            label=label,
            box=box,
            prompts=prompts,
            model=model,
            time=time,
            plane=plane,
            number=number,
            journal=self.identity,
        )

    def intend(self, edit: JournalEdit, *, is_done: bool) -> None:
        """Write down that an edit is about to be made again, or taken back."""
        with self._explained():
            self._database.execute(
                "UPDATE edits SET is_done = ?, is_pending = 1 WHERE number = ?",
                [is_done, edit.number],
            )

    def settle(self, edit: JournalEdit, *, is_done: bool) -> None:
        """Write down that an edit is wholly made, or wholly taken back."""
        with self._explained():
            self._database.execute(_LAZY)
            try:
                self._database.execute(
                    "UPDATE edits SET is_done = ?, is_pending = 0 WHERE number = ?",
                    [is_done, edit.number],
                )
            finally:
                self._database.execute(_FORCED)

    def forget(self, edit: JournalEdit) -> None:
        """Remove an edit that was never wholly made."""
        with self._explained():
            self._database.execute("DELETE FROM edits WHERE number = ?", [edit.number])

    def pending(self) -> list[PendingEdit]:
        """Return the edits that may be carried out in part, oldest first."""
        with self._explained():
            rows = self._database.execute(
                f"SELECT {_COLUMNS}, is_done FROM edits WHERE is_pending ORDER BY number"  # noqa: S608
            ).fetchall()
            return [PendingEdit(self._edit(row[:-1]), bool(row[-1])) for row in rows]

    def newest_done(self) -> int | None:
        """Return the number of the edit that can be taken back."""
        return self._number("SELECT number FROM edits WHERE is_done ORDER BY number DESC LIMIT 1")

    def oldest_undone(self) -> int | None:
        """Return the number of the edit that can be made again."""
        return self._number("SELECT number FROM edits WHERE NOT is_done ORDER BY number LIMIT 1")

    def history(self) -> History:
        """Return the newest `UNDO_DEPTH` commits and those that were taken back."""
        query = f"SELECT {_COLUMNS} FROM edits WHERE "  # noqa: S608
        with self._explained():
            done = self._database.execute(
                query + "is_done ORDER BY number DESC LIMIT ?", [UNDO_DEPTH]
            ).fetchall()
            undone = self._database.execute(
                query + "NOT is_done ORDER BY number LIMIT ?", [UNDO_DEPTH]
            ).fetchall()
            return History(
                done=tuple(self._edit(row) for row in reversed(done)),
                undone=tuple(self._edit(row) for row in reversed(undone)),
            )

    def blocks(self, edit: JournalEdit) -> StoredBlocks:
        """Return the blocks of an edit, to be read one by one."""
        with self._explained():
            rows = self._database.execute(
                "SELECT rowid, y0, x0, y1, x1, changed IS NULL AND before IS NULL FROM blocks"
                " WHERE edit = ? ORDER BY rowid",
                [edit.number],
            ).fetchall()
            boxes = [Box(*row[1:5]) for row in rows]
        rows_of_pixels = [None if row[5] else row[0] for row in rows]
        return StoredBlocks(boxes, rows_of_pixels, self._read_block)

    def _read_block(self, box: Box, row: int) -> Block:
        with self._explained():
            changed, before = self._database.execute(
                "SELECT changed, before FROM blocks WHERE rowid = ?", [row]
            ).fetchone()
            return unpack(box, changed, before, self._dtype)

    def _check_version(self) -> None:
        (version,) = self._database.execute("PRAGMA user_version").fetchone()
        if version > _VERSION:
            raise LabelsError(
                f"expected a journal of version {_VERSION} at {self.path}, got {version}; "
                "update napari-hrsam, or use the version that made it"
            )
        if version != _VERSION:
            raise LabelsError(
                f"expected a journal of version {_VERSION} at {self.path}, got {version}, which "
                "was made before the first release; the labels themselves lie in other files. "
                f"Move the folder {self.path.parent} away and open the labels again: they start a "
                "new journal, without the undo of earlier commits"
            )

    def _fact(self, name: str) -> Any:
        (value,) = self._database.execute(
            "SELECT value FROM facts WHERE name = ?", [name]
        ).fetchone()
        return value

    def _number(self, query: str) -> int | None:
        with self._explained():
            row = self._database.execute(query).fetchone()
        return None if row is None else int(row[0])

    def _edit(self, row: tuple[Any, ...]) -> JournalEdit:
        number, label, plane, y0, x0, y1, x1, prompts, model, time = row
        return JournalEdit(
            label=label,
            box=Box(y0, x0, y1, x1),
            prompts=_prompts_from(prompts),
            model=model,
            time=time,
            plane=tuple(json.loads(plane)),
            number=number,
            journal=self.identity,
        )

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
        except (sqlite3.Error, ValueError, TypeError, KeyError, RuntimeError) as error:
            if isinstance(error, LabelsError):
                raise
            raise LabelsError(
                f"expected an intact journal, got damage at {path} ({type(error).__name__}: "
                f"{error}); the labels themselves lie in other files. Move the folder "
                f"{path.parent} away and open the labels again: they start a new journal, without "
                "the undo of earlier commits"
            ) from error


def _numbers(box: Box) -> tuple[int, int, int, int]:
    return box.y0, box.x0, box.y1, box.x1


def _prompts_text(prompts: Prompts) -> str:
    return json.dumps(
        {"points_yx": prompts.points_yx, "labels": prompts.labels, "box": prompts.box}
    )


def _prompts_from(text: str) -> Prompts:
    said = json.loads(text)
    return Prompts(
        points_yx=tuple(said["points_yx"]), labels=tuple(said["labels"]), box=said["box"]
    )
