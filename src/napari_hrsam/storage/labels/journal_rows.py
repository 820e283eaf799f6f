"""The tables of a journal, and its rows, read with checks: a file from elsewhere may hold anything.

All functions raise `ValueError` where what is there is none of ours, but for `require_version`.
"""

from __future__ import annotations

import json
import math
import sqlite3
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_args

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, Grid
from napari_hrsam.prompts import Prompts, Scribble
from napari_hrsam.storage.labels.changes import MAX_AREAS
from napari_hrsam.storage.labels.edits import DrawnObject, Edit, EditKind
from napari_hrsam.storage.labels.properties import PropertiesChange

VERSION = 2
MAX_TEXT = 4 * 2**20
"""Characters of the prompts of one edit: 100,000 clicks and more."""

# Of a longer text no more is read than shows that it is too long.
_TEXTS = [f"substr({name}, 1, {MAX_TEXT + 1})" for name in ("plane", "prompts", "model")]
COLUMNS = f"number, label, {_TEXTS[0]}, y0, x0, y1, x1, {_TEXTS[1]}, {_TEXTS[2]}, time"
# What `of_object` gives the values of. Edits of classes alone have no box.
OF_OBJECT = "is_done AND label = ? AND plane = ? AND y0 IS NOT NULL"
# The chunks of level 0 that we wrote since the levels were looked at for ids, and their stamps.
SEEN = "CREATE TABLE IF NOT EXISTS seen (chunk TEXT PRIMARY KEY, changed_ns INTEGER)"
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
{SEEN};
PRAGMA user_version = {VERSION};
"""

MAX_PLANES = 32
"""Indices of a plane."""

MAX_PENDING = 1000
"""Edits that may be carried out in part; we make one at a time, and put each back on opening."""

_MAX_NUMBER = 2**63 - 1


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class EditRow(Edit):
    """A row of the table of edits.

    Attributes
    ----------
    number : int
        Its place in the order of all edits.
    """

    number: int


def require_tables(database: sqlite3.Connection) -> None:
    """Refuse a journal with other tables than ours, with views or with triggers.

    Views and computed columns can go on without end, and triggers can change what is written.
    """
    database.execute("PRAGMA trusted_schema = OFF")
    found = _objects(database)
    if not found <= _expected() or not {"facts", "edits", "blocks"} <= {
        name for _, name, _ in found
    }:
        raise ValueError("other tables than those of a journal")


def require_version(database: sqlite3.Connection, path: Path) -> None:
    """Refuse another version with a `LabelsError`: its rows may mean something else."""
    (version,) = database.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise LabelsError(
            f"expected a journal of version {VERSION} at {path}, got {version}; "
            "update napari-hrsam, or use the version that made it"
        )
    if version != VERSION:
        raise LabelsError(
            f"expected a journal of version {VERSION} at {path}, got {version}, which "
            "was made before the first release; the labels themselves lie in other files. "
            f"Move the folder {path.parent} away and open the labels again: they start a "
            "new journal, without the undo of earlier commits"
        )


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


def id_of(stored: object) -> int:
    """Return the id that a number of the journal stands for.

    SQLite has no numbers of 2**63 and above: these ids are stored as what is 2**64 less.
    """
    number = whole(stored, -(2**63))
    return number if number > 0 else number + 2**64


def stored_id(label: int) -> int:
    """Return the number that an id is stored as; see `id_of`."""
    return label if label < 2**63 else label - 2**64


def of_object(label: int, plane: tuple[int, ...]) -> tuple[Any, ...]:
    """Return the values of the condition `OF_OBJECT`."""
    return stored_id(label), json.dumps(plane)


def require_few_pending(num: int) -> None:
    """Refuse more interrupted edits than there can be."""
    if num > MAX_PENDING:
        raise ValueError(f"more than {MAX_PENDING} edits that were interrupted")


def edit_from(row: tuple[Any, ...]) -> EditRow:
    """Return the edit of a row with the `COLUMNS`."""
    number, label, plane, *ends, prompts, model, time = row
    indices = _json(plane)
    if not isinstance(indices, list) or len(indices) > MAX_PLANES:
        raise ValueError(f"no plane: {str(plane)[:80]!r}")
    if not isinstance(model, str) or len(model) > MAX_TEXT:
        raise ValueError("no name of a model")
    said = _told(prompts)
    kind = _kind(said)
    # Of an edit of classes alone no pixel is told, and perhaps no object.
    is_flat = kind == "properties"
    level, first, score = said.get("level"), said.get("first_level"), said.get("score")
    change = said.get("properties")
    return EditRow(
        number=whole(number, 1),
        label=0 if is_flat and label == 0 else id_of(label),
        plane=tuple(whole(index, 0) for index in indices),
        box=Box(0, 0, 0, 0) if is_flat and ends == [None] * 4 else box_from(ends),
        prompts=prompts_from(said),
        model=model,
        time=_number(time),
        kind=kind,
        level=None if level is None else whole(level, -100),
        score=None if score is None else _number(score),
        first_level=None if first is None else whole(first, -100),
        areas=_areas(said.get("areas")),
        change=None if change is None else PropertiesChange.of(change),
        objects=_objects_drawn(said.get("objects"), kind, ends),
    )


def objects_text(objects: tuple[DrawnObject, ...]) -> list[list[Any]]:
    """Return what is kept of objects that were drawn at once."""
    return [
        [one.label, one.box.y0, one.box.x0, one.box.y1, one.box.x1, one.area_px, one.score]
        for one in objects
    ]


def _objects_drawn(said: Any, kind: EditKind, ends: list[Any]) -> tuple[DrawnObject, ...]:
    if kind != "accept":
        return ()
    if not isinstance(said, list) or not 1 <= len(said) <= MAX_AREAS:
        raise ValueError(f"no objects: {str(said)[:80]!r}")
    around = box_from(ends)
    objects = []
    for label, y0, x0, y1, x1, area, score in said:
        box = box_from([y0, x0, y1, x1])
        if box.union(around) != around:
            raise ValueError(f"an object of {box} outside {around}")
        objects.append(
            DrawnObject(
                label=whole(label, 1, 2**64 - 1),
                box=box,
                area_px=whole(area, 1),
                score=None if score is None else _number(score),
            )
        )
    return tuple(objects)


def _areas(said: Any) -> dict[int, int] | None:
    """Return the areas that were told; an older journal tells none."""
    if said is None:
        return None
    if not isinstance(said, list) or len(said) > MAX_AREAS:
        raise ValueError(f"no areas: {str(said)[:80]!r}")
    return {whole(label, 1, 2**64 - 1): whole(area, -(2**63)) for label, area in said}


@dataclass(frozen=True, kw_only=True, slots=True)
class Bounds:
    """What an edit of a label image can be.

    Attributes
    ----------
    shape : (..., height, width)
        Of level 0.
    chunk_yx : (int, int)
        Height and width of what one file of level 0 holds.
    """

    shape: tuple[int, ...]
    chunk_yx: tuple[int, int]

    def require_edit(self, plane: tuple[int, ...], box: Box) -> None:
        """Refuse an edit that does not lie in the label image."""
        planes = self.shape[:-2]
        is_plane = len(plane) == len(planes) and all(map(int.__lt__, plane, planes))
        if not is_plane or box.intersection(Box(0, 0, *self.shape[-2:])) != box:
            raise ValueError(f"an edit of {box} in plane {plane} of labels of shape {self.shape}")

    def num_chunks(self, box: Box) -> int:
        """Return the most blocks that an edit of a box can have: one per file."""
        return Grid(self.chunk_yx).cover(box).area

    def require_pixels(self, box: Box) -> None:
        """Refuse a block of more pixels than one file holds."""
        if box.height > self.chunk_yx[0] or box.width > self.chunk_yx[1]:
            raise ValueError(f"a block of {box} beside files of {self.chunk_yx} pixels")


def box_from(ends: list[Any]) -> Box:
    """Return the box of a row; it holds a pixel or more, none of them above or left of an image."""
    y0, x0, y1, x1 = (whole(end, 0) for end in ends)
    if y1 <= y0 or x1 <= x0:
        raise ValueError(f"no box: {y0, x0, y1, x1}")
    return Box(y0, x0, y1, x1)


def prompts_text(prompts: Prompts, kind: EditKind = "draw", **more: Any) -> str:
    """Return prompts, what is done with the object, and what else there is to tell of the edit.

    What is None is left out: what an older version tells has none of it.
    """
    said: dict[str, Any] = {
        "points_yx": prompts.points_yx,
        "labels": prompts.labels,
        "box": prompts.box,
    }
    if prompts.scribbles:
        said["scribbles"] = [asdict(scribble) for scribble in prompts.scribbles]
    if kind != "draw":
        said["kind"] = kind
    return json.dumps(said | {key: value for key, value in more.items() if value is not None})


def prompts_from(said: Any) -> Prompts:
    """Return the prompts of what was kept; before there were scribbles it named none."""
    try:
        return Prompts(
            points_yx=tuple(said["points_yx"]),
            labels=tuple(said["labels"]),
            box=said["box"],
            scribbles=tuple(Scribble(**scribble) for scribble in said.get("scribbles", ())),
        )
    # `Prompts` checks what it is given, which here may be anything.
    except Exception as error:
        raise ValueError(f"no prompts ({type(error).__name__}): {str(said)[:80]!r}") from error


def _kind(said: Any) -> EditKind:
    kind = said.get("kind", "draw")
    if kind not in get_args(EditKind):
        raise ValueError(f"no kind of edit: {str(kind)[:80]!r}")
    found: EditKind = kind
    return found


def _told(text: object) -> dict[str, Any]:
    """Return what a text says by names."""
    said = _json(text)
    if isinstance(said, dict):
        return said
    raise ValueError(f"no prompts: {str(said)[:80]!r}")


def _json(text: object) -> Any:
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        raise ValueError(f"no text: {str(text)[:80]!r}")
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("lists inside lists without end") from error


def whole(value: object, lowest: int, highest: int = _MAX_NUMBER) -> int:
    """Return a number of the journal that must be whole, and not less than the lowest."""
    if type(value) is not int or not lowest <= value <= highest:
        raise ValueError(f"no whole number from {lowest}: {str(value)[:80]!r}")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"no number: {str(value)[:80]!r}")
    return float(value)
