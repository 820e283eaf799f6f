"""The tables of a journal, and its rows, read with checks: a file from elsewhere may hold anything.

All functions raise `ValueError` where what is there is none of ours.
"""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import dataclass
from functools import cache
from typing import Any

from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts

VERSION = 2
COLUMNS = "number, label, plane, y0, x0, y1, x1, prompts, model, time"
SCHEMA = f"""
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
PRAGMA user_version = {VERSION};
"""

MAX_TEXT = 4 * 2**20
"""Characters of the prompts of one edit: 100,000 clicks and more."""

MAX_PLANES = 32
"""Indices of a plane."""

_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True)
class EditRow:
    """A row of the table of edits, as in `JournalEdit`."""

    number: int
    label: int
    plane: tuple[int, ...]
    box: Box
    prompts: Prompts
    model: str
    time: float


def require_tables(database: sqlite3.Connection) -> None:
    """Refuse a journal with other tables than ours, with views or with triggers.

    Views and computed columns can go on without end, and triggers can change what is written.
    """
    database.execute("PRAGMA trusted_schema = OFF")
    if _objects(database) != _expected():
        raise ValueError("other tables than those of a journal")


def _objects(database: sqlite3.Connection) -> frozenset[tuple[str, str, str]]:
    rows = database.execute(
        "SELECT type, name, substr(sql, 1, 2000) FROM sqlite_master WHERE name NOT LIKE 'sqlite~_%'"
        " ESCAPE '~' LIMIT 100"
    )
    return frozenset((str(kind), str(name), " ".join(str(sql).split())) for kind, name, sql in rows)


@cache
def _expected() -> frozenset[tuple[str, str, str]]:
    database = sqlite3.connect(":memory:")
    try:
        database.executescript(SCHEMA)
        return _objects(database)
    finally:
        database.close()


def next_label_from(value: object) -> int:
    """Return the next label that a journal hands out."""
    return _whole(value, 1, _MAX_NUMBER + 1)


def edit_from(row: tuple[Any, ...]) -> EditRow:
    """Return the edit of a row with the `COLUMNS`."""
    number, label, plane, *ends, prompts, model, time = row
    indices = _json(plane)
    if not isinstance(indices, list) or len(indices) > MAX_PLANES:
        raise ValueError(f"no plane: {str(plane)[:80]!r}")
    if not isinstance(model, str) or len(model) > MAX_TEXT:
        raise ValueError("no name of a model")
    return EditRow(
        number=_whole(number, 1),
        label=_whole(label, 1),
        plane=tuple(_whole(index, 0) for index in indices),
        box=box_from(ends),
        prompts=_prompts_from(prompts),
        model=model,
        time=_number(time),
    )


def box_from(ends: list[Any]) -> Box:
    """Return the box of a row; it holds a pixel or more, none of them above or left of an image."""
    y0, x0, y1, x1 = (_whole(end, 0) for end in ends)
    if y1 <= y0 or x1 <= x0:
        raise ValueError(f"no box: {y0, x0, y1, x1}")
    return Box(y0, x0, y1, x1)


def prompts_text(prompts: Prompts) -> str:
    """Return prompts as they are kept."""
    return json.dumps(
        {"points_yx": prompts.points_yx, "labels": prompts.labels, "box": prompts.box}
    )


def _prompts_from(text: object) -> Prompts:
    said = _json(text)
    if not isinstance(said, dict):
        raise ValueError(f"no prompts: {str(text)[:80]!r}")
    try:
        return Prompts(
            points_yx=tuple(said["points_yx"]), labels=tuple(said["labels"]), box=said["box"]
        )
    # `Prompts` checks what it is given, which here may be anything.
    except Exception as error:
        raise ValueError(f"no prompts ({type(error).__name__}): {str(text)[:80]!r}") from error


def _json(text: object) -> Any:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ValueError(f"no text: {str(text)[:80]!r}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists inside lists without end") from error


def _whole(value: object, lowest: int, highest: int = _MAX_NUMBER) -> int:
    if type(value) is not int or not lowest <= value <= highest:
        raise ValueError(f"no whole number from {lowest}: {str(value)[:80]!r}")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"no number: {str(value)[:80]!r}")
    return float(value)
