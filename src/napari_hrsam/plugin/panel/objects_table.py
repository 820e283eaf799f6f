"""The committed objects as a table: sorted, filtered, and quick with many thousands of rows."""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from qtpy.QtCore import (
    QAbstractTableModel,
    QItemSelection,
    QItemSelectionModel,
    QModelIndex,
    QPersistentModelIndex,
    Qt,
)
from qtpy.QtGui import QIcon

from napari_hrsam.plugin.panel.parts import Links, swatch
from napari_hrsam.plugin.session.objects_list import CommittedObjects
from napari_hrsam.storage.labels.objects import Key, ObjectRow
from napari_hrsam.storage.labels.properties import Color

MAX_SINGLE = 200
"""Rows that are put in their places one by one; with more the table is filled anew."""

ANY_CLASS = None
"""No filter of classes; the empty text is for objects without a class."""

_Index: TypeAlias = QModelIndex | QPersistentModelIndex
_NO_INDEX = QModelIndex()
# As numbers: comparing the enum takes longer than all the rest.
_DISPLAY = int(Qt.ItemDataRole.DisplayRole)
_ALIGNMENT = int(Qt.ItemDataRole.TextAlignmentRole)
_ANSWERED = {_DISPLAY, _ALIGNMENT, int(Qt.ItemDataRole.DecorationRole)}
_RIGHT = Qt.AlignmentFlag.AlignRight | Qt.AlignmentFlag.AlignVCenter
_LEFT = Qt.AlignmentFlag.AlignLeft | Qt.AlignmentFlag.AlignVCenter


@dataclass(frozen=True, slots=True)
class Field:
    """A column: its title, what it says of an object, and by what it sorts."""

    title: str
    tooltip: str
    text: Callable[[ObjectRow], str]
    order: Callable[[ObjectRow], Any]
    is_number: bool = True


def area_text(row: ObjectRow) -> str:
    """Write an area in the unit of the image, in pixels where it has none."""
    if row.area_px is None or row.area is None:
        return ""
    return f"{row.area:.4g} {row.unit_symbol}²" if row.unit else f"{row.area_px:,} px"


def _time_text(row: ObjectRow) -> str:
    if row.time is None:
        return ""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(row.time))


def _number(value: float | None) -> tuple[bool, float]:
    """Sort what is not known before all that is."""
    return value is not None, 0.0 if value is None else value


FIELDS = (
    Field("Id", "The label in the label image", lambda r: str(r.label), lambda r: r.label),
    Field(
        "Class",
        "Alt+1 to Alt+9 assign classes; in this table the digits alone do, too",
        lambda r: r.object_class,
        lambda r: (not r.object_class, r.object_class.casefold()),
        is_number=False,
    ),
    Field("Area", "In the image's unit, or in pixels", area_text, lambda r: _number(r.area_px)),
    Field(
        "IoU",
        "What the model expects of its own mask",
        lambda r: "" if r.score is None else f"{r.score:.2f}",
        lambda r: _number(r.score),
    ),
    Field(
        "Level",
        "Pyramid level at which it was drawn; 0 is full size",
        lambda r: "" if r.level is None else str(r.level),
        lambda r: _number(r.level),
    ),
    Field(
        "Plane",
        "Where it lies along the axes before rows and columns",
        lambda r: ", ".join(map(str, r.plane)),
        lambda r: r.plane,
    ),
    Field(
        "Prompts",
        "Clicks, scribbles and boxes",
        lambda r: "" if r.num_prompts is None else str(r.num_prompts),
        lambda r: _number(r.num_prompts),
    ),
    Field("Model", "That drew it last", lambda r: r.model, lambda r: r.model, is_number=False),
    Field("Committed", "When it was changed last", _time_text, lambda r: _number(r.time)),
)
CLASS_COLUMN = 1
PLANE_COLUMN = 5


class ObjectsModel(QAbstractTableModel):
    """The objects that pass the filter, in order; it follows commits, undo and redo.

    Parameters
    ----------
    objects
        Those of the session.

    Attributes
    ----------
    links
        To be closed before the table goes.
    """

    def __init__(self, objects: CommittedObjects) -> None:
        super().__init__()
        self._objects = objects
        self._column, self._is_reversed = 0, False
        self._text, self._class = "", ANY_CLASS  # type: str, str | None
        # Sorted: what a row sorts by, its key, and the row itself.
        self._rows: list[tuple[Any, Key, ObjectRow]] = []
        self._swatches: dict[Color, QIcon] = {}
        self.links = Links((objects.reset, self.fill), (objects.changed, self._change))

    # ------------------------------------------------------------------ what Qt asks

    def rowCount(self, parent: _Index = _NO_INDEX) -> int:  # noqa: N802  Qt's name
        """Return the number of objects shown."""
        return 0 if parent.isValid() else len(self._rows)

    def columnCount(self, parent: _Index = _NO_INDEX) -> int:  # noqa: N802  Qt's name
        """Return the number of columns."""
        return 0 if parent.isValid() else len(FIELDS)

    def headerData(  # noqa: N802  Qt's name
        self, section: int, orientation: Qt.Orientation, role: int = Qt.ItemDataRole.DisplayRole
    ) -> Any:
        """Return the titles."""
        if orientation == Qt.Orientation.Horizontal and 0 <= section < len(FIELDS):
            if role == Qt.ItemDataRole.DisplayRole:
                return FIELDS[section].title
            if role == Qt.ItemDataRole.ToolTipRole:
                return FIELDS[section].tooltip
        return None

    def data(self, index: _Index, role: int = Qt.ItemDataRole.DisplayRole) -> Any:
        """Return text, colour or alignment of a cell."""
        # Qt asks for eight roles of every cell that it draws: most are answered at once.
        if role not in _ANSWERED:
            return None
        place, column = index.row(), index.column()
        if not 0 <= place < len(self._rows):
            return None
        if role == _ALIGNMENT:
            return _RIGHT if FIELDS[column].is_number else _LEFT
        row = self._row_at(place)
        if role == _DISPLAY:
            return FIELDS[column].text(row)
        if column == CLASS_COLUMN and row.color is not None:
            if row.color not in self._swatches:
                self._swatches[row.color] = swatch(row.color)
            return self._swatches[row.color]
        return None

    def sort(self, column: int, order: Qt.SortOrder = Qt.SortOrder.AscendingOrder) -> None:
        """Sort by a column."""
        self._column = column
        self._is_reversed = order == Qt.SortOrder.DescendingOrder
        self.fill()

    # ------------------------------------------------------------------ rows

    @property
    def rows(self) -> list[ObjectRow]:
        """The objects shown, in order."""
        return [self._row_at(place) for place in range(len(self._rows))]

    def key_at(self, place: int) -> Key:
        """Return the (plane, label) of a row of the table."""
        return self._rows[self._turned(place)][1]

    def place_of(self, key: Key) -> int | None:
        """Return the row of the table that shows an object, None if none does."""
        for place, (_, found, _) in enumerate(self._rows):
            if found == key:
                return self._turned(place)
        return None

    def filter(self, text: str, object_class: str | None) -> None:
        """Show only some objects.

        Parameters
        ----------
        text
            In their id, class or model; each of its words.
        object_class
            Their class; "" for those without one, `ANY_CLASS` for all.
        """
        self._text, self._class = text.casefold(), object_class
        self.fill()

    def fill(self) -> None:
        """Show all that passes the filter, anew."""
        self.beginResetModel()
        entries = map(self._entry, self._objects.rows())
        self._rows = sorted((e for e in entries if self._passes(e[2])), key=_first_two)
        self.endResetModel()

    def _change(self, keys: Collection[Key]) -> None:
        if len(keys) > MAX_SINGLE:
            self.fill()
            return
        for key in keys:
            self._change_one(key)

    def _change_one(self, key: Key) -> None:
        row = self._objects.row(key)
        new = self._entry(row) if row is not None and self._passes(row) else None
        old = next((n for n, (_, found, _) in enumerate(self._rows) if found == key), None)
        if old is not None and new is not None and self._rows[old][0] == new[0]:
            self._rows[old] = new
            place = self._turned(old)
            self.dataChanged.emit(self.index(place, 0), self.index(place, len(FIELDS) - 1))
            return
        if old is not None:
            place = self._turned(old)
            self.beginRemoveRows(_NO_INDEX, place, place)
            del self._rows[old]
            self.endRemoveRows()
        if new is not None:
            at = bisect.bisect_left(self._rows, new[:2], key=_first_two)
            # Where the order is turned round, it comes before what it follows.
            place = len(self._rows) - at if self._is_reversed else at
            self.beginInsertRows(_NO_INDEX, place, place)
            self._rows.insert(at, new)
            self.endInsertRows()

    def _entry(self, row: ObjectRow) -> tuple[Any, Key, ObjectRow]:
        return FIELDS[self._column].order(row), (row.plane, row.label), row

    def _passes(self, row: ObjectRow) -> bool:
        if self._class is not ANY_CLASS and row.object_class != self._class:
            return False
        if not self._text:
            return True
        told = f"{row.label} {row.object_class} {row.model}".casefold()
        return all(word in told for word in self._text.split())

    def _row_at(self, place: int) -> ObjectRow:
        return self._rows[self._turned(place)][2]

    def _turned(self, place: int) -> int:
        return len(self._rows) - 1 - place if self._is_reversed else place


def selection_of(model: ObjectsModel, places: Iterable[int]) -> QItemSelection:
    """Return whole rows as a selection."""
    found = QItemSelection()
    last = len(FIELDS) - 1
    for place in places:
        found.select(model.index(place, 0), model.index(place, last))
    return found


SELECT = QItemSelectionModel.SelectionFlag.ClearAndSelect | QItemSelectionModel.SelectionFlag.Rows


def _first_two(entry: Sequence[Any]) -> tuple[Any, Any]:
    return entry[0], entry[1]
