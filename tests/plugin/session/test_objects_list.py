"""The list of committed objects follows every step; classes are steps of the same history."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from napari.components import ViewerModel

from napari_hrsam.errors import LabelsError, PromptError, SessionError
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.places import LabelFile
from napari_hrsam.storage.labels.properties import Properties

INSIDE = (30, 30)
KEY = ((), 1)


def told(controller: SegmentController) -> list[tuple[int, str, int | None]]:
    return [(row.label, row.object_class, row.area_px) for row in controller.objects.list.rows()]


def draw(controller: SegmentController) -> None:
    controller.click(INSIDE)
    controller.commit()
    controller.wait()


def change(controller: SegmentController, make: Any, **arguments: Any) -> None:
    controller.classes.change(partial(make, **arguments))
    controller.wait()


def test_rows_follow_commits_changes_undo_and_redo(started: SegmentController) -> None:
    assert told(started) == []
    draw(started)
    assert started.overlay is not None
    area = int(np.count_nonzero(started.overlay.target.data))
    assert told(started) == [(1, "", area)]
    row = started.objects.list.row(KEY)
    assert row is not None
    assert (row.level, row.num_prompts) == (0, 1)
    assert row.score == pytest.approx(0.9)
    started.objects.delete(1)
    started.wait()
    assert told(started) == []
    started.undo()
    started.wait()
    assert told(started) == [(1, "", area)]
    started.undo()
    started.wait()
    assert told(started) == []
    started.redo()
    started.wait()
    assert told(started) == [(1, "", area)]


def test_a_class_is_given_with_the_commit_and_stays_for_new_objects(
    started: SegmentController,
) -> None:
    change(started, Properties.adding_class, name="nucleus")
    started.click(INSIDE)
    started.classes.assign_key(1)
    assert started.state.object_class == "nucleus"
    started.commit()
    started.wait()
    assert [name for _, name, _ in told(started)] == ["nucleus"]
    started.undo()
    started.wait()
    assert told(started) == []
    assert [one.name for one in started.objects.list.classes] == ["nucleus"]
    started.undo()
    started.wait()
    assert started.objects.list.classes == ()
    assert started.state.object_class == "", "what is no class any more is given to nothing"


def test_an_object_that_is_changed_keeps_its_class_unless_it_gets_another(
    started: SegmentController,
) -> None:
    change(started, Properties.adding_class, name="nucleus")
    change(started, Properties.adding_class, name="debris")
    started.classes.choose("nucleus")
    draw(started)
    started.objects.edit(1)
    started.wait()
    started.click((30, 43), positive=False)
    started.commit()
    started.wait()
    assert told(started)[0][1] == "nucleus"
    started.objects.edit(1)
    started.wait()
    started.classes.assign_key(2)
    started.commit()
    started.wait()
    assert told(started)[0][1] == "debris", "also where no pixel was changed"
    started.undo()
    started.wait()
    assert told(started)[0][1] == "nucleus"


def test_a_key_goes_to_the_selected_rows_else_to_what_is_under_the_mouse(
    started: SegmentController, viewer: ViewerModel
) -> None:
    change(started, Properties.adding_class, name="nucleus")
    draw(started)
    started.objects.list.selected = (KEY,)
    started.classes.assign_key(1)
    started.wait()
    assert told(started)[0][1] == "nucleus"
    assert started.state.message == "Object 1: class 'nucleus'."
    started.undo()
    started.wait()
    assert told(started)[0][1] == ""
    assert started.overlay is not None
    assert started.overlay.target.data.any(), "the class alone is taken back"
    started.objects.list.selected = ()
    viewer.cursor.position = INSIDE
    started.canvas.actions["Alt+1"]()
    started.wait()
    assert told(started)[0][1] == "nucleus"
    viewer.cursor.position = (5, 5)
    with pytest.raises(PromptError, match="under the mouse"):
        started.classes.assign_key(1)
    with pytest.raises(LabelsError, match="the digit 7"):
        started.classes.assign_key(7)


def test_a_click_on_a_committed_object_picks_it(started: SegmentController) -> None:
    draw(started)
    picked: list[Any] = []
    started.objects.list.picked.connect(picked.append)
    started.click_world(INSIDE)
    assert picked == [KEY]


def test_showing_an_object_moves_the_view_to_it(
    started: SegmentController, viewer: ViewerModel
) -> None:
    draw(started)
    viewer.scene.camera.center = (0.0, 1000.0, 1000.0)
    started.objects.show(KEY)
    row = started.objects.list.row(KEY)
    assert row is not None
    seen = started.overlay.view.box0()  # type: ignore[union-attr]
    assert seen.union(row.box) == seen
    with pytest.raises(SessionError, match="gone"):
        started.objects.show(((), 9))


def test_classes_are_there_in_the_next_session(started: SegmentController) -> None:
    change(started, Properties.adding_class, name="nucleus", color=(1, 2, 3))
    started.classes.choose("nucleus")
    draw(started)
    layer = started.overlay.target  # type: ignore[union-attr]
    started.stop()
    started.wait()
    assert told(started) == []
    assert started.objects.list.classes == ()
    started.start(model="colour", target=layer)
    started.wait()
    assert [name for _, name, _ in told(started)] == ["nucleus"]
    assert started.objects.list.classes[0].color == (1, 2, 3)
    started.undo()
    started.wait()


def test_labels_of_another_program_are_measured_beside_the_work(
    controller: SegmentController, viewer: ViewerModel, tmp_path: Path, pixels: Any
) -> None:
    create_labels(tmp_path / "a", "cells", (64, 64)).close()
    values = np.zeros((64, 64), np.uint32)
    values[2:6, 2:12] = 5
    values[50:60, 50:53] = 8
    zarr.open_array(tmp_path / "a/labels/cells/0", mode="r+")[...] = values
    viewer.add_image(pixels, rgb=True, name="scene")
    seen: list[tuple[int, int]] = []
    controller.objects.list.progressed.connect(lambda done, total: seen.append((done, total)))
    controller.start(model="colour", target=LabelFile(tmp_path / "a", "cells"))
    controller.wait()
    controller.objects.list.join()
    controller.worker.deliver()
    controller.worker.deliver()
    assert told(controller) == [(5, "", 40), (8, "", 30)]
    assert not controller.objects.list.is_measuring
    assert seen[-1] == (1, 1)
    controller.objects.delete_listed([((), 8)])
    draw(controller)
    assert [label for label, *_ in told(controller)] == [5, 9]
    controller.close()
    controller.worker.join()
    assert [row.label for row in open_labels(tmp_path / "a", "cells", mode="r").objects()] == [5, 9]


def test_objects_of_a_stack_are_found_on_their_plane(
    controller: SegmentController, viewer: ViewerModel, tmp_path: Path, pixels: Any
) -> None:
    viewer.add_image(np.stack([pixels] * 3), rgb=True, name="stack")
    controller.start(model="colour", target=LabelFile(tmp_path / "a", "cells"))
    controller.wait()
    for plane in (2, 0):
        viewer.dims.set_point(0, plane)
        draw(controller)
    assert [(row.plane, row.label) for row in controller.objects.list.rows()] == [
        ((0,), 2),
        ((2,), 1),
    ]
    controller.objects.show(((2,), 1))
    assert viewer.dims.current_step[0] == 2
    controller.objects.edit_listed(((0,), 2))
    assert viewer.dims.current_step[0] == 0
    controller.wait()
    with pytest.raises(SessionError, match="commit or cancel"):
        controller.objects.delete_listed([((2,), 1)])
    controller.cancel()
    controller.objects.delete_listed([((2,), 1), ((0,), 2)])
    controller.wait()
    assert told(controller) == []
    controller.undo()
    controller.wait()
    assert [label for label, *_ in told(controller)] == [2]
