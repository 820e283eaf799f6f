"""The panel's section of committed objects and their classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from qtpy.QtCore import QEvent, QObject, QPoint, QSize, Qt
from qtpy.QtGui import QColor, QKeyEvent
from qtpy.QtWidgets import (
    QAbstractItemView,
    QCheckBox,
    QColorDialog,
    QComboBox,
    QHeaderView,
    QInputDialog,
    QLineEdit,
    QListWidget,
    QListWidgetItem,
    QMenu,
    QProgressBar,
    QTableView,
)

from napari_hrsam.plugin.panel.objects_table import (
    ANY_CLASS,
    PLANE_COLUMN,
    SELECT,
    ObjectsModel,
    selection_of,
)
from napari_hrsam.plugin.panel.parts import (
    Links,
    Section,
    WrappedLabel,
    button,
    fill_combo,
    narrow,
    row,
    swatch,
)
from napari_hrsam.plugin.session.objects_list import labels_of
from napari_hrsam.plugin.session.state import Phase
from napari_hrsam.storage.labels.properties import Properties

if TYPE_CHECKING:
    from napari_hrsam.plugin.session.controller import SegmentController
    from napari_hrsam.storage.labels.objects import Key
    from napari_hrsam.storage.labels.properties import Color, ObjectClass

ROW_PX = 22
TABLE_PX = 10 * ROW_PX
CLASSES_PX = 4 * ROW_PX
WIDTHS_PX = (48, 96, 84, 44, 44, 48, 60, 110, 120)
MAX_RESTORED = 2000
"""Selected rows that stay selected when the table is filled anew."""


class ObjectsSection(Section):
    """Lists committed objects and classes; what is chosen there is done by the controller.

    Parameters
    ----------
    controller
        Of the panel.

    Attributes
    ----------
    links
        To be closed, and those of `model`, before the panel goes.
    """

    def __init__(self, controller: SegmentController) -> None:
        super().__init__("Objects")
        self._controller, self._objects = controller, controller.objects.list
        self._guard = controller.state.guard
        self._is_following = False
        self.model = ObjectsModel(self._objects)
        self._build_table()
        self._build_classes()
        self.links = Links(
            (self._objects.reset, self._show_state),
            (self._objects.changed, self._show_state),
            (self._objects.classes_changed, self._show_classes),
            (self._objects.progressed, self._show_progress),
            (self._objects.picked, self._follow),
            (controller.state.changed, self._show_state),
        )
        self._show_classes()
        self._show_state()

    # ------------------------------------------------------------------ building

    def _build_table(self) -> None:
        self.filter_edit = QLineEdit()
        self.filter_edit.setPlaceholderText("Filter")
        self.filter_edit.setToolTip("Words in id, class or model; all of them")
        self.filter_edit.setClearButtonEnabled(True)
        self.filter_edit.textChanged.connect(self._filter)
        self.class_filter = narrow(QComboBox())
        self.class_filter.setToolTip("Show the objects of one class")
        self.class_filter.activated.connect(self._filter)
        self.table = table = QTableView()
        table.setModel(self.model)
        table.setSelectionBehavior(QAbstractItemView.SelectionBehavior.SelectRows)
        table.setSelectionMode(QAbstractItemView.SelectionMode.ExtendedSelection)
        table.setEditTriggers(QAbstractItemView.EditTrigger.NoEditTriggers)
        table.setVerticalScrollMode(QAbstractItemView.ScrollMode.ScrollPerItem)
        table.setHorizontalScrollMode(QAbstractItemView.ScrollMode.ScrollPerPixel)
        table.setWordWrap(False)
        table.setShowGrid(False)
        table.setAlternatingRowColors(False)
        table.setIconSize(QSize(10, 10))
        table.setMinimumHeight(TABLE_PX)
        # A table asks for a width of its own, which would make the panel wider.
        table.setMinimumWidth(1)
        heads = table.verticalHeader()
        heads.setVisible(False)
        # Rows of one height are not measured one by one.
        heads.setSectionResizeMode(QHeaderView.ResizeMode.Fixed)
        heads.setDefaultSectionSize(ROW_PX)
        for column, width in enumerate(WIDTHS_PX):
            table.setColumnWidth(column, width)
        table.setSortingEnabled(True)
        table.sortByColumn(0, Qt.SortOrder.AscendingOrder)
        table.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        table.customContextMenuRequested.connect(self._open_menu)
        table.doubleClicked.connect(self._open_menu_at)
        table.selectionModel().selectionChanged.connect(self._select)
        self.model.modelReset.connect(self._restore_selection)
        self._keys = _TableKeys(self)
        table.installEventFilter(self._keys)
        self.count_label = WrappedLabel()
        self.progress_bar = QProgressBar()
        self.progress_bar.setTextVisible(False)
        self.progress_bar.setFixedHeight(6)
        self.stop_button = button(
            "Stop counting", "Read no more of the pixels", self._objects.cancel
        )
        self.form.addRow(row(self.filter_edit, self.class_filter))
        self.form.addRow(self.table)
        self.form.addRow(self.count_label)
        self.form.addRow(self.progress_bar)
        self.form.addRow(self.stop_button)
        for widget in (self.progress_bar, self.stop_button):
            widget.setVisible(False)

    def _build_classes(self) -> None:
        self.next_class = narrow(QComboBox())
        self.next_class.setToolTip("The class that new objects get when they are committed")
        self.next_class.activated.connect(self._choose_next)
        self.class_list = QListWidget()
        self.class_list.setFixedHeight(CLASSES_PX)
        self.class_list.setMinimumWidth(1)
        self.class_list.setIconSize(QSize(10, 10))
        self.class_list.setToolTip(
            "Alt and the digit assign the class: to the current object, else to the selected rows, "
            "else to the object under the mouse"
        )
        self.class_list.setContextMenuPolicy(Qt.ContextMenuPolicy.CustomContextMenu)
        self.class_list.customContextMenuRequested.connect(self._open_class_menu)
        self.class_list.itemDoubleClicked.connect(lambda _: self._ask_name())
        self.add_button = button("Add class", "Add a class of objects", self._ask_new_class)
        self.change_button = button(
            "Change", "Rename, recolour or remove the class that is selected", self._class_menu_here
        )
        self.colors_box = QCheckBox("Show the colours of classes")
        self.colors_box.setToolTip(
            "Objects on the canvas have the colours of their classes, grey without one; else each "
            "has a colour of its own"
        )
        self.colors_box.setFocusPolicy(Qt.FocusPolicy.NoFocus)
        self.colors_box.toggled.connect(self._controller.settings.set_colors_by_class)
        self.form.addRow("New objects", self.next_class)
        self.form.addRow(self.class_list)
        self.form.addRow(row(self.add_button, self.change_button))
        self.form.addRow(self.colors_box)

    # ------------------------------------------------------------------ showing

    def _show_state(self, *_: Any) -> None:
        state = self._controller.state
        is_ready = state.phase is Phase.READY
        for widget in (self.add_button, self.next_class):
            widget.setEnabled(is_ready)
        self.change_button.setEnabled(is_ready and self.class_list.count() > 0)
        self.colors_box.blockSignals(True)
        self.colors_box.setChecked(state.colors_by_class)
        self.colors_box.blockSignals(False)
        shown, there = self.model.rowCount(), len(self._objects)
        text = f"{there:,} objects" if there != 1 else "1 object"
        if not is_ready:
            text = "The objects of the image are listed here once a session is started."
        elif shown != there:
            text = f"{shown:,} of {text}"
        if text != self.count_label.text():
            self.count_label.setText(text)
        self._show_next_class()

    def _show_classes(self) -> None:
        classes = self._objects.classes
        current = self.class_list.currentRow()
        self.class_list.clear()
        for one in classes:
            key = f"   Alt+{one.key}" if one.key else ""
            item = QListWidgetItem(swatch(one.color), f"{one.name}{key}")
            self.class_list.addItem(item)
        self.class_list.setCurrentRow(min(max(current, 0), len(classes) - 1))
        kept = self.class_filter.currentData()
        items: list[tuple[str, Any]] = [("All classes", (ANY_CLASS,)), ("No class", ("",))]
        items += [(one.name, (one.name,)) for one in classes]
        fill_combo(self.class_filter, items, kept)
        if self.class_filter.currentData() != kept:
            self._filter()
        self._show_next_class()
        self._show_state()

    def _show_next_class(self) -> None:
        names = [one.name for one in self._objects.classes]
        items = [("No class", ""), *((name, name) for name in names)]
        fill_combo(self.next_class, items, self._controller.state.object_class)

    def _show_progress(self, done: int, total: int) -> None:
        is_under_way = done < total
        for widget in (self.progress_bar, self.stop_button):
            widget.setVisible(is_under_way)
        self.progress_bar.setRange(0, max(1, total))
        self.progress_bar.setValue(done)

    def _filter(self, *_: Any) -> None:
        chosen = self.class_filter.currentData()
        self.model.filter(self.filter_edit.text(), ANY_CLASS if chosen is None else chosen[0])
        self._show_state()

    # ------------------------------------------------------------------ selecting

    @property
    def selected(self) -> list[Key]:
        """The selected objects, from the top of the table."""
        places = sorted(index.row() for index in self.table.selectionModel().selectedRows())
        return [self.model.key_at(place) for place in places]

    def _select(self, *_: Any) -> None:
        if self._is_following:
            return
        keys = self._objects.selected = tuple(self.selected)
        if len(keys) == 1:
            self._guard(self._controller.objects.show, keys[0])

    def select(self, keys: Sequence[Key]) -> None:
        """Select the rows of some objects, without moving the view to them."""
        wanted = set(keys)
        places = [n for n in range(self.model.rowCount()) if self.model.key_at(n) in wanted]
        self._is_following = True
        try:
            self.table.selectionModel().select(selection_of(self.model, places), SELECT)
            if len(places) == 1:
                self.table.scrollTo(self.model.index(places[0], 0))
        finally:
            self._is_following = False
        self._objects.selected = tuple(self.selected)

    def _follow(self, key: Key) -> None:
        """Select the row of an object that was clicked on."""
        self.select([key])

    def _restore_selection(self) -> None:
        keys = self._objects.selected
        if keys and len(keys) <= MAX_RESTORED:
            self.select(keys)
        elif keys:
            self._objects.selected = ()
        has_planes = any(plane for plane, _ in map(self.model.key_at, range(min(1, self._num))))
        self.table.setColumnHidden(PLANE_COLUMN, not has_planes)

    @property
    def _num(self) -> int:
        return self.model.rowCount()

    # ------------------------------------------------------------------ objects

    def menu_of(self, keys: Sequence[Key]) -> QMenu:
        """Make the menu of some objects."""
        menu = QMenu(self)
        change = self._controller.classes.change
        labels = labels_of(keys)
        if len(keys) == 1:
            menu.addAction("Go to it", _do(self._guard, self._controller.objects.show, keys[0]))
            menu.addAction(
                "Change its mask", _do(self._guard, self._controller.objects.edit_listed, keys[0])
            )
            menu.addSeparator()
        classes = menu.addMenu("Class")
        for one in self._objects.classes:
            make = partial(Properties.setting_class, labels=labels, name=one.name)
            classes.addAction(swatch(one.color), one.name, _do(self._guard, change, make))
        classes.addSeparator()
        none = partial(Properties.setting_class, labels=labels, name="")
        classes.addAction("No class", _do(self._guard, change, none))
        classes.addAction("New class ...", lambda: self._ask_new_class(labels))
        menu.addAction("Colour ...", lambda: self._ask_color(labels))
        plain = partial(Properties.setting_color, labels=labels, color=None)
        menu.addAction("Colour of the class", _do(self._guard, change, plain))
        menu.addSeparator()
        what = "Delete" if len(keys) == 1 else f"Delete {len(keys):,} objects"
        menu.addAction(what, _do(self._guard, self._controller.objects.delete_listed, list(keys)))
        return menu

    def _open_menu(self, place: QPoint) -> None:
        keys = self.selected
        if keys:
            self.menu_of(keys).popup(self.table.viewport().mapToGlobal(place))

    def _open_menu_at(self, index: Any) -> None:
        self._open_menu(self.table.visualRect(index).bottomLeft())

    def _ask_color(self, labels: Sequence[int]) -> None:
        color = self._asked_color(None)
        if color is not None:
            make = partial(Properties.setting_color, labels=labels, color=color)
            self._guard(self._controller.classes.change, make)

    # ------------------------------------------------------------------ classes

    def add_class(self, name: str, labels: Sequence[int] = ()) -> None:
        """Add a class, and give it to some objects."""
        make = partial(Properties.adding_class, name=name)
        if labels:
            make = partial(Properties.setting_class, labels=labels, name=name)
        self._guard(self._controller.classes.change, make)

    def change_class(self, name: str, **changes: Any) -> None:
        """Rename (new_name), recolour (color) a class, or give it a digit (key)."""
        make = partial(Properties.changing_class, name=name, **changes)
        self._guard(self._controller.classes.change, make)

    def remove_class(self, name: str) -> None:
        """Remove a class; its objects have none then."""
        make = partial(Properties.removing_class, name=name)
        self._guard(self._controller.classes.change, make)

    @property
    def current_class(self) -> ObjectClass | None:
        """The class that is selected in the list of classes."""
        place, classes = self.class_list.currentRow(), self._objects.classes
        return classes[place] if 0 <= place < len(classes) else None

    def class_menu(self, one: ObjectClass) -> QMenu:
        """Make the menu of a class."""
        menu = QMenu(self)
        menu.addAction("Rename ...", self._ask_name)
        menu.addAction("Colour ...", self._ask_class_color)
        digits = menu.addMenu("Digit")
        for digit in (*range(1, 10), 0):
            text = str(digit) if digit else "None"
            digits.addAction(text, partial(self.change_class, one.name, key=digit))
        menu.addSeparator()
        menu.addAction("Remove", partial(self.remove_class, one.name))
        return menu

    def _open_class_menu(self, place: QPoint) -> None:
        one = self.current_class
        if one is not None and self._controller.state.phase is Phase.READY:
            self.class_menu(one).popup(self.class_list.viewport().mapToGlobal(place))

    def _class_menu_here(self) -> None:
        self._open_class_menu(QPoint(0, self.class_list.height()))

    def _choose_next(self, *_: Any) -> None:
        self._controller.classes.choose(self.next_class.currentData())

    def _ask_new_class(self, labels: Sequence[int] = ()) -> None:
        name, is_agreed = QInputDialog.getText(self, "New class", "Name")
        if is_agreed and name.strip():
            self.add_class(name, labels)

    def _ask_name(self) -> None:
        one = self.current_class
        if one is None:
            return
        name, is_agreed = QInputDialog.getText(self, "Rename class", "Name", text=one.name)
        if is_agreed and name.strip():
            self.change_class(one.name, new_name=name)

    def _ask_class_color(self) -> None:
        one = self.current_class
        color = None if one is None else self._asked_color(one.color)
        if one is not None and color is not None:
            self.change_class(one.name, color=color)

    def _asked_color(self, color: Color | None) -> Color | None:
        first = QColor(255, 255, 255) if color is None else QColor(*color)
        found = QColorDialog.getColor(first, self, "Colour")
        return (found.red(), found.green(), found.blue()) if found.isValid() else None

    def press(self, event: QKeyEvent) -> bool:
        """Do what a key means in the table; whether it means something."""
        keys, plain = self.selected, Qt.KeyboardModifier.NoModifier
        if not keys or event.modifiers() & ~Qt.KeyboardModifier.KeypadModifier != plain:
            return False
        text = event.text()
        if len(text) == 1 and text in "123456789":
            self._guard(self._controller.classes.assign_key, int(text))
        elif event.key() == Qt.Key.Key_Delete:
            self._guard(self._controller.objects.delete_listed, keys)
        elif event.key() in (Qt.Key.Key_Return, Qt.Key.Key_Enter) and len(keys) == 1:
            self._guard(self._controller.objects.show, keys[0])
        else:
            return False
        return True


class _TableKeys(QObject):
    """Takes the table's own keys before the window's shortcuts and the table's search do."""

    def __init__(self, section: ObjectsSection) -> None:
        super().__init__(section)
        self._section = section

    def eventFilter(self, watched: QObject, event: QEvent) -> bool:  # noqa: ARG002, N802  Qt's
        """Take a key that means something in the table."""
        if not isinstance(event, QKeyEvent):
            return False
        if event.type() == QEvent.Type.ShortcutOverride and event.key() == Qt.Key.Key_Delete:
            event.accept()
            return bool(self._section.selected)
        return event.type() == QEvent.Type.KeyPress and self._section.press(event)


def _do(
    guard: Callable[..., None], action: Callable[..., Any], *arguments: Any
) -> Callable[..., None]:
    # Qt passes whether an action is checked.
    def run(*_: Any) -> None:
        guard(action, *arguments)

    return run
