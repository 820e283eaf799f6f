"""The table of objects: order, filter, selection; and the section in a real window."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from qtpy.QtCore import Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QMenu

from napari_hrsam.geometry import Box
from napari_hrsam.plugin.panel.objects_table import CLASS_COLUMN, FIELDS, ObjectsModel
from napari_hrsam.plugin.session.objects_list import CommittedObjects
from napari_hrsam.plugin.session.worker import Worker
from napari_hrsam.storage.labels.edits import Edit
from napari_hrsam.storage.labels.objects import ObjectList
from napari_hrsam.storage.labels.properties import Properties

pytestmark = pytest.mark.usefixtures("qapp")

INSIDE = (30, 30)
AREA_COLUMN = 2


def edit(label: int, area: int, **more: Any) -> Edit:
    return Edit(label=label, box=Box(0, 0, 9, 9), areas={label: area}, time=float(label), **more)


class Answer:
    def __init__(self, edit: Edit, *, is_undone: bool = False) -> None:
        self.edit, self.is_undone, self.newest = edit, is_undone, None
        self.earlier_edits: tuple[Edit, ...] = ()


@pytest.fixture
def objects() -> Iterator[CommittedObjects]:
    worker = Worker(lambda *_, **__: None)
    found = CommittedObjects(worker)
    edits = [edit(n, area, model=f"m{n % 2}") for n, area in enumerate((50, 10, 30, 20, 40), 1)]
    told = Properties()
    told = told.after(told.setting_class([1, 2], "nucleus"))
    found.begin(ObjectList(told.after(told.setting_class([5], "debris")), edits), None, ())
    yield found
    worker.close()


@pytest.fixture
def listed(objects: CommittedObjects) -> Iterator[ObjectsModel]:
    made = ObjectsModel(objects)
    made.fill()
    yield made
    made.links.close()


def labels(model: ObjectsModel) -> list[int]:
    return [int(model.data(model.index(place, 0))) for place in range(model.rowCount())]


@pytest.mark.parametrize("order", [Qt.SortOrder.AscendingOrder, Qt.SortOrder.DescendingOrder])
@pytest.mark.parametrize("column", range(len(FIELDS)))
def test_rows_stay_in_order_as_objects_come_and_go(
    objects: CommittedObjects, listed: ObjectsModel, qtmodeltester: Any, column: int, order: Any
) -> None:
    qtmodeltester.check(listed)
    listed.sort(column, order)
    steps = [
        Answer(edit(6, 35)),
        Answer(edit(3, 5, kind="replace")),
        Answer(edit(4, -20, kind="delete")),
        Answer(edit(1, 50), is_undone=True),
        Answer(edit(7, 1, model="z")),
    ]
    for step in steps:
        objects.answered(step)  # type: ignore[arg-type]
        seen = labels(listed)
        assert sorted(seen) == [row.label for row in objects.rows()]
        keys = [(FIELDS[column].order(row), row.label) for row in listed.rows]
        assert keys == sorted(keys, reverse=order == Qt.SortOrder.DescendingOrder)
        for place in range(listed.rowCount()):
            assert listed.place_of(listed.key_at(place)) == place
    assert sorted(seen) == [2, 3, 5, 6, 7]
    listed.fill()
    assert labels(listed) == seen


@pytest.mark.parametrize(
    ("text", "object_class", "expected"),
    [
        ("", None, [1, 2, 3, 4, 5]),
        ("", "nucleus", [1, 2]),
        ("", "", [3, 4]),
        ("NUC", None, [1, 2]),
        ("m1", None, [1, 3, 5]),
        ("m1 nucleus", None, [1]),
        ("m1", "", [3]),
        ("none", None, []),
    ],
)
def test_the_filter_shows_what_it_names(
    objects: CommittedObjects,
    listed: ObjectsModel,
    text: str,
    object_class: str | None,
    expected: list[int],
) -> None:
    listed.filter(text, object_class)
    assert labels(listed) == expected
    # What comes passes the filter too, or does not.
    objects.answered(Answer(edit(9, 3, model="m1")))  # type: ignore[arg-type]
    model_passes = all(word in "9  m1" for word in text.casefold().split())
    shown = model_passes and object_class in (None, "")
    assert labels(listed) == [*expected, 9] if shown else labels(listed) == expected


def test_an_object_that_gets_another_class_moves_and_tells_its_colour(
    objects: CommittedObjects, listed: ObjectsModel
) -> None:
    listed.sort(CLASS_COLUMN)
    assert labels(listed) == [5, 1, 2, 3, 4]
    change = objects.properties.setting_class([4], "debris")
    step = Edit(label=4, box=Box(0, 0, 0, 0), kind="properties", areas={}, change=change)
    objects.answered(Answer(step))  # type: ignore[arg-type]
    assert labels(listed) == [4, 5, 1, 2, 3]
    index = listed.index(0, CLASS_COLUMN)
    assert listed.data(index) == "debris"
    picture = listed.data(index, Qt.ItemDataRole.DecorationRole).pixmap(4).toImage()
    color = picture.pixelColor(1, 1)
    shown = (color.red(), color.green(), color.blue())
    # A screen of 16 bits rounds.
    np.testing.assert_allclose(shown, objects.properties.color_of(4), atol=8)


def test_areas_are_told_in_the_unit_of_the_image(objects: CommittedObjects) -> None:
    found = ObjectList(commits=[edit(1, 50)], pixel_area=0.25, unit="micrometer")
    objects.begin(found, None, ())
    model = ObjectsModel(objects)
    model.fill()
    assert model.data(model.index(0, AREA_COLUMN)) == "12.5 µm²"
    model.links.close()


def actions_of(menu: QMenu) -> dict[str, Any]:
    return {action.text(): action for action in menu.actions()}


def test_the_section_in_a_window(open_window: Any) -> None:
    window = open_window(show=True)
    section, controller = window.panel.objects_section, window.controller
    assert not section.add_button.isEnabled()
    window.start()
    section.add_class("nucleus")
    section.add_class("debris")
    window.idle()
    assert [section.class_list.item(n).text().split()[0] for n in (0, 1)] == ["nucleus", "debris"]
    window.click(INSIDE)
    QTest.keyClick(window.canvas, Qt.Key.Key_2, Qt.KeyboardModifier.AltModifier)
    QTest.keyClick(window.canvas, Qt.Key.Key_C)
    window.idle()
    assert section.model.rowCount() == 1
    assert section.model.data(section.model.index(0, CLASS_COLUMN)) == "debris"
    assert section.next_class.currentText() == "debris"
    assert section.count_label.text() == "1 object"

    window.viewer.scene.camera.center = (0.0, 500.0, 500.0)
    section.table.selectRow(0)
    row = controller.objects.list.rows()[0]
    centre = np.array([(row.box.y0 + row.box.y1) / 2, (row.box.x0 + row.box.x1) / 2]) - 0.5
    np.testing.assert_allclose(window.viewer.scene.camera.center[-2:], centre)
    assert controller.objects.list.selected == (((), 1),)
    QTest.keyClick(section.table, Qt.Key.Key_1)
    window.idle()
    assert controller.objects.list.rows()[0].object_class == "nucleus"
    assert controller.objects.list.selected == (((), 1),), "the row stays selected"
    section.table.clearSelection()
    before = window.camera()
    window.click(INSIDE)
    assert section.selected == [((), 1)], "a click on an object selects its row"
    assert window.camera() == before, "and does not move the view"

    menu = section.menu_of(section.selected)
    classes = actions_of(actions_of(menu)["Class"].menu())
    classes["No class"].trigger()
    window.idle()
    assert controller.objects.list.rows()[0].object_class == ""
    section.change_class("nucleus", new_name="core", color=(1, 2, 3), key=5)
    section.remove_class("debris")
    window.idle()
    assert [(c.name, c.color, c.key) for c in controller.objects.list.classes] == [
        ("core", (1, 2, 3), 5)
    ]
    assert section.next_class.currentText() == "No class"
    QTest.keyClick(window.canvas, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    window.idle()
    assert [one.name for one in controller.objects.list.classes] == ["core", "debris"]
    actions_of(section.menu_of(section.selected))["Delete"].trigger()
    window.idle()
    assert section.model.rowCount() == 0
    QTest.keyClick(window.canvas, Qt.Key.Key_Z, Qt.KeyboardModifier.ControlModifier)
    window.idle()
    assert section.model.rowCount() == 1
    actions_of(section.menu_of([((), 1)]))["Change its mask"].trigger()
    window.idle()
    assert controller.state.is_editing
    window.panel.start_button.click()
    window.idle()
    assert section.model.rowCount() == 0
    assert section.class_list.count() == 0
    assert "once a session is started" in section.count_label.text()


def test_the_panel_stays_as_narrow_as_it_was(open_window: Any) -> None:
    window = open_window()
    window.start()
    window.panel.objects_section.add_class("a name that is far too long for a panel " * 4)
    window.idle()
    assert window.panel.minimumSizeHint().width() <= 340
