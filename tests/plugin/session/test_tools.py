"""Scribbles, outlines, other masks, and committed objects that are changed or deleted."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from mouse_events import LEFT, RIGHT, mouse_event
from napari.components import ViewerModel
from napari.utils.interactions import (
    mouse_move_callbacks,
    mouse_press_callbacks,
    mouse_release_callbacks,
)
from numpy.typing import NDArray

from napari_hrsam.errors import HRSAMError, PromptError, SessionError
from napari_hrsam.plugin.canvas.mouse import DragTool
from napari_hrsam.plugin.overlay.prompts import LINE, NEGATIVE, POSITIVE
from napari_hrsam.plugin.session.controller import SegmentController

INSIDE, OTHER = (30, 30), (5, 5)


def stroke(
    viewer: ViewerModel,
    path: list[tuple[float, float]],
    button: int = LEFT,
    *,
    release: bool = True,
) -> None:
    """Press, move along a path, release; positions are those of the screen, too."""
    for number, at in enumerate([*path, path[-1]]):
        kind, run = "mouse_move", mouse_move_callbacks
        if number == 0:
            kind, run = "mouse_press", mouse_press_callbacks
        elif number == len(path):
            if not release:
                return
            kind, run = "mouse_release", mouse_release_callbacks
        run(viewer, mouse_event(at, (at[1], at[0]), kind, button))


def target(controller: SegmentController) -> NDArray[np.integer]:
    assert controller.overlay is not None
    labels: NDArray[np.integer] = controller.overlay.target.data
    return labels


def shown(controller: SegmentController) -> NDArray[np.bool_]:
    assert controller.overlay is not None
    box = controller.overlay.preview.box
    mask = np.zeros((64, 64), bool)
    if box is not None:
        mask[box.slices] = controller.overlay.preview.pixels != 0
    return mask


def kinds(controller: SegmentController) -> set[int]:
    assert controller.overlay is not None
    return set(controller.overlay.shown_prompts.layer.features["label"])


def commit(controller: SegmentController, at: tuple[float, float] = INSIDE) -> None:
    controller.click(at)
    controller.commit()
    controller.wait()


@pytest.mark.parametrize(("button", "is_positive"), [(LEFT, True), (RIGHT, False)])
def test_a_scribble_is_drawn_with_either_button(
    button: int, is_positive: bool, started: SegmentController, viewer: ViewerModel
) -> None:
    started.settings.use_tool(DragTool.SCRIBBLE)
    path = [(22.0, 20.0), (30.0, 25.0), (38.0, 30.0)]
    stroke(viewer, path, button, release=False)
    kind = POSITIVE if is_positive else NEGATIVE
    assert kinds(started) == {kind}, "it is shown while it is drawn"
    assert started.state.num_prompts == 0
    mouse_release_callbacks(viewer, mouse_event(path[-1], path[-1][::-1], "mouse_release", button))
    started.wait()
    assert started.overlay is not None
    (scribble,) = started.overlay.prompts.scribbles
    assert scribble.positive is is_positive
    assert scribble.points_yx[0] == path[0]
    assert scribble.points_yx[-1] == path[-1]
    assert bool(shown(started)[30, 25]) is is_positive


def test_a_scribble_that_returns_to_its_start_is_no_click(
    started: SegmentController, viewer: ViewerModel
) -> None:
    started.settings.use_tool(DragTool.SCRIBBLE)
    stroke(viewer, [(30, 30), (36, 30), (30, 30)])
    assert started.overlay is not None
    assert len(started.overlay.prompts.scribbles) == 1
    stroke(viewer, [(30, 30), (31, 31)])
    assert len(started.overlay.prompts.points_yx) == 1, "a hand that trembles clicks"


def test_an_outline_is_a_box_and_a_click(
    started: SegmentController, viewer: ViewerModel, square: NDArray[np.bool_]
) -> None:
    started.settings.use_tool(DragTool.LASSO)
    path = [(18.0, 16.0), (18.0, 48.0), (46.0, 48.0), (46.0, 16.0), (19.0, 17.0)]
    stroke(viewer, path, release=False)
    assert kinds(started) == {LINE}
    mouse_release_callbacks(viewer, mouse_event(path[-1], (17, 19), "mouse_release"))
    started.wait()
    assert started.overlay is not None
    prompts = started.overlay.prompts
    assert prompts.box == (17.5, 15.5, 46.5, 48.5)
    assert len(prompts.points_yx) == 1
    assert int((shown(started) != square).sum()) <= 8
    started.undo()
    started.wait()
    assert started.state.num_prompts == 0, "one step"


def test_a_tool_is_left_by_its_key(started: SegmentController, viewer: ViewerModel) -> None:
    for tool in (DragTool.BOX, DragTool.SCRIBBLE, DragTool.LASSO, DragTool.CUT):
        started.settings.use_tool(tool)
        assert started.state.drag_tool is tool
    started.settings.use_tool(DragTool.CUT)
    assert started.state.drag_tool is DragTool.PAN
    stroke(viewer, [(10, 10), (40, 40)])
    assert started.state.num_prompts == 0


def test_other_masks_are_shown_in_turn(
    started: SegmentController,
) -> None:
    started.click(INSIDE)
    started.wait()
    first = shown(started)
    seen = []
    for number in (2, 3, 1):
        started.next_candidate()
        started.wait()
        assert f"Mask {number} of 3" in started.state.message
        seen.append(int(shown(started).sum()))
    np.testing.assert_array_equal(shown(started), first)
    assert sorted(seen)[1:] == [int(first.sum()), 64 * 64]
    assert min(seen) < 50, "no more than the click itself"
    started.click(OTHER, positive=False)
    started.wait()
    assert "Mask" not in started.state.message
    with pytest.raises(SessionError, match="click on one first"):
        started.cancel(), started.next_candidate()


def test_a_committed_object_is_changed_under_its_id(
    started: SegmentController, viewer: ViewerModel
) -> None:
    commit(started)
    before = target(started).copy()
    viewer.cursor.position = INSIDE
    started.objects.edit_under_cursor()
    started.wait()
    assert started.state.is_editing
    assert started.state.message.startswith("Object 1: clicks correct it")
    np.testing.assert_array_equal(shown(started), before == 1)
    np.testing.assert_array_equal(target(started), before)
    started.box((20, 18, 44, 34))
    started.commit()
    started.wait()
    assert started.state.message == "Object 1 was changed."
    assert not started.state.is_editing
    assert set(np.unique(target(started))) == {0, 1}
    assert 0 < (target(started) == 1).sum() < (before == 1).sum()
    assert started.state.num_committed == 1
    started.undo()
    started.wait()
    assert started.state.message == "Object 1 is as it was before."
    np.testing.assert_array_equal(target(started), before)


def test_a_change_is_given_up_and_brought_back(started: SegmentController) -> None:
    commit(started)
    before = target(started).copy()
    started.objects.edit(1)
    started.click(OTHER, positive=False)
    started.wait()
    changed = shown(started)
    started.cancel()
    started.wait()
    assert not started.state.has_object
    np.testing.assert_array_equal(target(started), before)
    started.undo()
    started.wait()
    assert started.state.is_editing
    assert started.overlay is not None
    assert started.overlay.prompts.points_yx[-1] == OTHER
    np.testing.assert_array_equal(shown(started), changed)
    started.commit()
    started.wait()
    assert set(np.unique(target(started))) <= {0, 1}


def test_a_change_of_nothing_is_told(started: SegmentController) -> None:
    commit(started)
    before = target(started).copy()
    started.objects.edit(1)
    started.commit()
    started.wait()
    assert started.state.message == "Object 1 was put back as it was: nothing was changed."
    np.testing.assert_array_equal(target(started), before)


def test_a_committed_object_is_deleted_and_comes_back(
    started: SegmentController, viewer: ViewerModel
) -> None:
    commit(started)
    before = target(started).copy()
    viewer.cursor.position = INSIDE
    started.objects.delete_under_cursor()
    started.wait()
    assert not target(started).any()
    assert started.state.message == "Object 1 was deleted. Ctrl+Z brings it back."
    assert started.state.num_committed == 1, "one was drawn"
    started.undo()
    started.wait()
    np.testing.assert_array_equal(target(started), before)
    assert started.state.message == "Object 1 is back."
    started.objects.edit(1)
    started.objects.delete_under_cursor()
    started.wait()
    assert not target(started).any()
    assert not started.state.has_object


def test_where_nothing_is_nothing_is_changed(
    started: SegmentController, viewer: ViewerModel
) -> None:
    viewer.cursor.position = OTHER
    for action in (started.objects.edit_under_cursor, started.objects.delete_under_cursor):
        with pytest.raises(PromptError, match="no committed object is under the mouse"):
            action()
    viewer.cursor.position = (-50, 900)
    with pytest.raises(HRSAMError):
        started.objects.edit_under_cursor()
    started.objects.edit(77)
    with pytest.raises(HRSAMError, match="77"):
        started.wait()
    assert not started.state.has_object


def test_an_object_being_drawn_is_not_lost_to_another_one(
    started: SegmentController, viewer: ViewerModel
) -> None:
    commit(started)
    started.click(OTHER)
    started.wait()
    viewer.cursor.position = INSIDE
    for action in (started.objects.edit_under_cursor, started.objects.delete_under_cursor):
        with pytest.raises(SessionError, match="an object is being drawn: commit or cancel it"):
            action()
    assert started.state.num_prompts == 1


def two_objects(controller: SegmentController) -> None:
    """Commit the left and the right half of the square as objects 1 and 2."""
    for box in ((20, 18, 44, 32), (20, 32, 44, 48)):
        controller.box(box)
        controller.click((30, box[1] + 5))
        controller.commit()
    controller.wait()
    assert set(np.unique(target(controller))) == {0, 1, 2}


def test_an_object_takes_over_another(started: SegmentController, viewer: ViewerModel) -> None:
    two_objects(started)
    before = target(started).copy()
    viewer.cursor.position = (30, 40)
    with pytest.raises(SessionError, match="press E, then at the other one and press M"):
        started.objects.merge_under_cursor()
    started.objects.edit(1)
    started.wait()
    started.objects.merge_under_cursor()
    started.wait()
    np.testing.assert_array_equal(target(started) == 1, before > 0)
    assert not started.state.has_object
    assert started.state.message.startswith("Object 1 took over the other one.")
    started.undo()
    started.wait()
    np.testing.assert_array_equal(target(started), before)


def test_a_drag_cuts_the_object_that_it_crosses(
    started: SegmentController, viewer: ViewerModel
) -> None:
    commit(started)
    before = target(started).copy()
    started.settings.use_tool(DragTool.CUT)
    stroke(viewer, [(15, 31), (30, 32), (50, 32)])
    started.wait()
    after = target(started).copy()
    assert set(np.unique(after)) == {0, 1, 2}
    np.testing.assert_array_equal(after > 0, before > 0)
    assert started.state.message.startswith("Object 2 was cut off")
    started.undo()
    started.wait()
    np.testing.assert_array_equal(target(started), before)
    stroke(viewer, [(2, 2), (10, 10)])
    assert "o committed object is under this line" in started.state.message
    with pytest.raises(PromptError):
        started.wait()
    stroke(viewer, [(30, 30), (30, 36)])
    with pytest.raises(HRSAMError, match="cuts object 1 in two"):
        started.wait()
    np.testing.assert_array_equal(target(started), before)


def test_holes_are_filled_and_outlines_smoothed(
    started: SegmentController, viewer: ViewerModel
) -> None:
    commit(started)
    whole = target(started) == 1
    target(started)[29:33, 29:33] = 0
    viewer.cursor.position = (26, 24)
    started.objects.change_under_cursor(started.objects.fill_holes, "edit")
    started.wait()
    np.testing.assert_array_equal(target(started) == 1, whole)
    assert started.state.message.startswith("Object 1 has no holes any more.")
    started.objects.fill_holes(1)
    started.wait()
    assert started.state.message == "The object has no holes."
    target(started)[30, 44:48] = 1
    started.objects.edit(1)
    started.wait()
    started.objects.smooth(1)
    started.wait()
    assert started.state.message.startswith("Object 1 was smoothed.")
    assert not started.state.has_object
    assert not target(started)[30, 46:48].any(), "the spike is gone"
    started.click(OTHER)
    with pytest.raises(SessionError, match="an object is being drawn"):
        started.objects.smooth(1)


def hover(viewer: ViewerModel, at: tuple[float, float]) -> None:
    event = mouse_event(at, at[::-1], "mouse_move")
    event.is_dragging = False
    mouse_move_callbacks(viewer, event)


def test_what_a_click_would_give_is_shown_under_the_mouse(
    started: SegmentController, viewer: ViewerModel
) -> None:
    hover(viewer, INSIDE)
    started.wait()
    assert not shown(started).any(), "off by default"
    started.settings.set_peeks(True)
    hover(viewer, INSIDE)
    started.wait()
    assert not shown(started).any(), "nothing is encoded for it"
    started.click(INSIDE)
    started.cancel()
    started.wait()
    hover(viewer, INSIDE)
    started.wait()
    peeked = shown(started)
    assert peeked.any()
    assert not started.state.has_object
    started.commit()
    started.wait()
    assert not target(started).any(), "it is no object"
    hover(viewer, INSIDE)
    started.click(INSIDE)
    started.wait()
    np.testing.assert_array_equal(shown(started), peeked)
    hover(viewer, OTHER)
    started.wait()
    np.testing.assert_array_equal(shown(started), peeked, "an object stays as it is")
    started.cancel()
    started.wait()
    hover(viewer, INSIDE)
    started.wait()
    started.settings.set_peeks(False)
    assert not shown(started).any()


def test_of_many_moves_the_newest_is_answered(
    started: SegmentController, viewer: ViewerModel, model: Any
) -> None:
    started.click(INSIDE)
    started.cancel()
    started.wait()
    started.settings.set_peeks(True)
    num = model.num_decoded
    for column in range(20):
        hover(viewer, (30, 22 + column))
    hover(viewer, OTHER)
    started.wait()
    assert model.num_decoded - num == 2, "the first and the newest"
    assert shown(started)[OTHER]
    assert not shown(started)[INSIDE]
    hover(viewer, (-100, -100))
    started.wait()
    assert not shown(started).any(), "nothing is there"
