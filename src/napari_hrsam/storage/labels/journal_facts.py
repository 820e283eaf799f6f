"""What the journal of a label image tells about its objects, read without the right to write."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.files.writer_lock import require_own_files
from napari_hrsam.storage.labels.edits import Edit, EditKind
from napari_hrsam.storage.labels.journal_rows import (
    COLUMNS,
    OF_OBJECT,
    edit_from,
    id_of,
    of_object,
    require_few_pending,
    require_tables,
    require_version,
)
from napari_hrsam.storage.labels.properties import PropertiesChange

JOURNAL_FILE = Path(".journal") / "journal.sqlite"
"""Where the journal lies in the folder of a label image."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CommitFacts:
    """One commit, without its pixels.

    Attributes
    ----------
    label : int
        The object's id.
    plane : tuple of int
        Where it lies.
    box : Box
        What it changed, in level-0 pixels.
    model : str
        Name of the model that drew it, or empty.
    time : float
        In seconds since 1970.
    num_prompts : int
        Clicks, scribbles and boxes that led to it.
    is_done, is_pending : bool
        Whether it counts (it may have been taken back), and whether it may be carried out in part.
    kind : "draw", "replace", "delete" or "properties"
        As in `Edit`; each of many objects that were drawn at once has a row of its own.
    level, score, areas, change
        As in `Edit`; None where it was not written down.
    """

    label: int
    plane: tuple[int, ...]
    box: Box
    model: str
    time: float
    num_prompts: int
    is_done: bool
    is_pending: bool
    kind: EditKind
    level: int | None = None
    score: float | None = None
    areas: Mapping[int, int] | None = None
    change: PropertiesChange | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class JournalFacts:
    """What a journal tells.

    Attributes
    ----------
    next_label : int
        The lowest id that was never used.
    commits : tuple of CommitFacts
        Oldest first.
    has_others : bool
        Whether there may be objects, or pixels of them, that no commit tells.
    """

    next_label: int
    commits: tuple[CommitFacts, ...]
    has_others: bool = True

    @property
    def pending(self) -> tuple[CommitFacts, ...]:
        """Those that may be carried out in part."""
        return tuple(commit for commit in self.commits if commit.is_pending)

    def newest(self, plane: tuple[int, ...]) -> dict[int, CommitFacts]:
        """Return the newest commit of every object of a plane."""
        return {
            commit.label: commit
            for commit in self.commits
            if commit.is_done and commit.plane == plane and commit.kind != "properties"
        }


def read_journal(folder: Path) -> JournalFacts | None:
    """Read the journal of a label image; nothing is changed or locked.

    Parameters
    ----------
    folder : Path
        Of the label group.

    Returns
    -------
    JournalFacts or None
        None if there is no journal, as for another program's labels.

    Raises
    ------
    LabelsError
        If it is damaged, of another version, or cannot be read.
    """
    with _reading(folder) as database:
        return None if database is None else _facts(database)


def read_newest(folder: Path, label: int, plane: tuple[int, ...]) -> Edit | None:
    """Return the newest commit of one object, None if the journal knows none; see `read_journal`.

    Raises
    ------
    LabelsError
        As `read_journal`.
    """
    with _reading(folder) as database:
        if database is None:
            return None
        query = f"SELECT {COLUMNS} FROM edits WHERE {OF_OBJECT} ORDER BY number DESC LIMIT 1"  # noqa: S608
        row = database.execute(query, of_object(label, plane)).fetchone()
        return None if row is None else edit_from(row).part_of(label)


@contextmanager
def _reading(folder: Path) -> Iterator[sqlite3.Connection | None]:
    """Open a journal for reading, None if there is none; errors are told as those of the labels."""
    path = folder / JOURNAL_FILE
    if not path.is_file():
        yield None
        return
    require_own_files(path.parent)
    try:
        with closing(sqlite3.connect(_address(path), uri=True, timeout=5)) as database:
            require_version(database, path)
            require_tables(database)
            yield database
    # ValueError and the like: what is written in a row is none of ours.
    except (sqlite3.Error, OSError, ValueError, TypeError, KeyError) as error:
        raise LabelsError(
            f"expected an intact journal, got {type(error).__name__}: {error} at {path}; the "
            "labels themselves lie in other files. Copy the whole folder to where it can be "
            "written to and try again, or move the journal away to go on without the undo of "
            "earlier commits"
        ) from error


def _facts(database: sqlite3.Connection) -> JournalFacts:
    (next_label,) = database.execute("SELECT value FROM facts WHERE name = 'next_label'").fetchone()
    told = database.execute("SELECT value FROM facts WHERE name = 'has_others'").fetchone()
    commits = tuple(_commits(database))
    # A journal that does not say so is an older one.
    drawn = (commit.label for commit in commits if commit.kind == "draw")
    has_others = min(drawn, default=2) > 1 if told is None else bool(told[0])
    return JournalFacts(next_label=id_of(next_label), commits=commits, has_others=has_others)


def _address(path: Path) -> str:
    """Return an address that opens the file without leaving anything beside it, where it can."""
    log = path.with_name(path.name + "-wal")
    # Without a log, all of it is in the file: no lock is needed, which a read-only folder refuses.
    is_settled = not log.exists() or log.stat().st_size == 0
    return f"file:{quote(str(path.resolve()))}?mode=ro{'&immutable=1' if is_settled else ''}"


def _commits(database: sqlite3.Connection) -> Iterator[CommitFacts]:
    query = f"SELECT {COLUMNS}, is_done, is_pending FROM edits ORDER BY number"  # noqa: S608
    num_pending = 0
    for *row, is_done, is_pending in database.execute(query):
        num_pending += bool(is_pending)
        require_few_pending(num_pending)
        for edit in edit_from(tuple(row)).parts():
            yield CommitFacts(
                label=edit.label,
                plane=edit.plane,
                box=edit.box,
                model=edit.model,
                time=edit.time,
                num_prompts=len(edit.prompts),
                is_done=bool(is_done),
                is_pending=bool(is_pending),
                kind=edit.kind,
                level=edit.level,
                score=edit.score,
                areas=edit.areas,
                change=edit.change,
            )
