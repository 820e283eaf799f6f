"""All objects of a part of the image: proposed, reviewed, committed as one step."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from drawn_field import DrawnPredictor
from everything_stand_in import CELLS, SHAPE, Asked
from napari.components import ViewerModel
from numpy.typing import NDArray

from napari_hrsam.engine.everything import proposals as module
from napari_hrsam.engine.everything import ranking
from napari_hrsam.engine.everything.proposals import propose
from napari_hrsam.errors import ConfigError, LabelsError, PromptError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.overlay.proposals import ACCEPTED, REJECTED, RING
from napari_hrsam.plugin.session.controller import SegmentController


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """The objects of `touching_discs` are found, whatever the model."""
    return Asked(monkeypatch)


@pytest.fixture
def started(
    controller: SegmentController,
    viewer: ViewerModel,
    asked: Asked,  # noqa: ARG001
) -> SegmentController:
    image = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)
    viewer.add_image(image, rgb=True, name="discs", scale=(2, 2), translate=(10, -6))
    viewer.canvas.size = (400, 400)
    viewer.scene.camera.zoom = 0.5
    viewer.scene.camera.center = (0, 270, 230)
    controller.start()
    controller.wait()
    return controller


@pytest.fixture
def reviewing(started: SegmentController) -> SegmentController:
    started.everything.propose(level=0)
    started.wait()
    return started


def labels(controller: SegmentController) -> NDArray[Any]:
    assert controller.overlay is not None
    return np.asarray(controller.overlay.target.data)


def shown(controller: SegmentController) -> NDArray[Any]:
    assert controller.overlay is not None
    assert controller.overlay.proposals is not None
    return np.asarray(controller.overlay.proposals.layer.data)


def names(viewer: ViewerModel) -> list[str]:
    return [layer.name for layer in viewer.layers]


def press(controller: SegmentController, key: str) -> None:
    controller.canvas.actions[key]()
    controller.wait()


def test_the_accepted_ones_of_the_view_are_committed_as_one_step(
    reviewing: SegmentController, viewer: ViewerModel, asked: Asked
) -> None:
    review = reviewing.everything.review
    assert review is not None
    assert asked.calls == [(Box(0, 0, *SHAPE), 0)]
    num = len(review)
    assert num > 15
    assert f"{num} objects found" in reviewing.state.message
    assert "discs [proposals]" in names(viewer)
    proposals, first = review.proposals, review.current
    press(reviewing, "A")
    second = review.current
    press(reviewing, "A")
    press(reviewing, "X")
    assert (len(review.accepted), len(review.rejected)) == (2, 1)
    assert review.current not in (*review.accepted, *review.rejected)
    press(reviewing, "C")
    assert "2 objects were committed" in reviewing.state.message
    assert "discs [proposals]" not in names(viewer)
    assert not reviewing.state.is_reviewing
    drawn = proposals.labels()
    assert first is not None
    assert second is not None
    expected = (drawn == first + 1) | (drawn == second + 1)
    assert np.array_equal(labels(reviewing) > 0, expected)
    assert len(reviewing.objects.list) == reviewing.state.num_committed == 2
    reviewing.undo()
    reviewing.wait()
    assert not labels(reviewing).any()
    reviewing.redo()
    reviewing.wait()
    assert np.array_equal(labels(reviewing) > 0, expected)


def test_five_hundred_are_reviewed_by_keys_alone(
    started: SegmentController, viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = np.zeros((520, 520), np.int32)
    y, x = np.indices((14, 14))
    for number in range(529):
        at = slice(22 * (number // 23), None), slice(22 * (number % 23), None)
        disc = np.hypot(y - 6.5, x - 6.5) < 7
        cells[at][:14, :14][disc] = number + 1
    image = np.zeros((1040, 1040, 3), np.uint8)
    model = DrawnPredictor(cells, noise=0.02)
    found = propose(image, model=model, largest_px=80, level=0)  # type: ignore[arg-type]
    assert len(found) >= 500
    started.stop()
    viewer.layers.clear()
    viewer.add_image(image, rgb=True, name="many")
    monkeypatch.setattr(module, "propose", lambda *_, **__: found)
    started.start()
    started.wait()
    started.everything.propose((0, 0, 1040, 1040))
    started.wait()
    review = started.everything.review
    assert review is not None
    for number in range(len(found)):
        press(started, "X" if number % 5 == 4 else "A")
    assert len(review.accepted) + len(review.rejected) == len(found)
    assert "None is left" in started.state.message
    press(started, "C")
    assert len(np.unique(labels(started))) - 1 == sum(n % 5 != 4 for n in range(len(found)))


def test_keys_of_a_review_are_bound_while_it_goes_on(
    started: SegmentController, viewer: ViewerModel
) -> None:
    own = {"Right", "Left", "A", "X", "Shift+A", "Up", "Down"}
    assert not own & set(started.canvas.actions)
    before = set(viewer.keymap)
    started.everything.propose(level=0)
    started.wait()
    assert own <= set(started.canvas.actions)
    assert started.overlay is not None
    assert started.overlay.proposals is not None
    layers = [viewer, started.overlay.proposals.layer, started.overlay.preview.layer]
    for owner in layers:
        assert {"Right", "A"} <= {str(key) for key in owner.keymap}
    press(started, "Escape")
    assert set(viewer.keymap) == before
    assert not own & set(started.canvas.actions)


def test_next_and_previous_go_through_all_and_the_view_follows(
    reviewing: SegmentController, viewer: ViewerModel
) -> None:
    review, overlay = reviewing.everything.review, reviewing.overlay
    assert review is not None
    assert overlay is not None
    viewer.scene.camera.zoom = 2.0
    seen = []
    for _ in range(len(review)):
        box = Box(*review.proposals.boxes[review.current].tolist())
        view = overlay.view.box0()
        if seen:
            assert view.intersection(box) == box
        seen.append(review.current)
        press(reviewing, "Right")
    assert sorted(seen) == list(range(len(review)))  # type: ignore[type-var]
    assert review.current == seen[-1], "it ends there"
    press(reviewing, "Left")
    assert review.current == seen[-2]


def test_a_decision_is_undone_and_made_again(reviewing: SegmentController) -> None:
    review = reviewing.everything.review
    assert review is not None
    first = review.current
    press(reviewing, "A")
    press(reviewing, "X")
    press(reviewing, "Ctrl+Z")
    press(reviewing, "Ctrl+Z")
    assert review.current == first
    assert not review.decisions.any()
    press(reviewing, "Ctrl+Z")
    assert "no decision to undo" in reviewing.state.message
    press(reviewing, "Ctrl+Shift+Z")
    assert review.accepted == [first]
    # Decided otherwise, and that undone: what was decided first counts again.
    # (The order is that of likeness, in which another one may be before the next.)
    review.go_to(first)
    press(reviewing, "X")
    assert review.rejected == [first]
    press(reviewing, "Ctrl+Z")
    assert review.accepted == [first]


def test_all_above_are_accepted_as_one_decision(reviewing: SegmentController) -> None:
    everything, review = reviewing.everything, reviewing.everything.review
    assert review is not None
    scores = review.proposals.scores
    press(reviewing, "X")
    (rejected,) = review.rejected
    everything.set_threshold(float(np.median(scores)))
    above = set(np.flatnonzero(scores >= everything.threshold).tolist()) - {rejected}
    press(reviewing, "Shift+A")
    assert set(review.accepted) == above
    assert f"{len(above)} accepted at once" in reviewing.state.message
    press(reviewing, "Ctrl+Z")
    assert review.accepted == []
    everything.set_threshold(1.0)
    press(reviewing, "Up")
    assert everything.threshold == 1.0
    press(reviewing, "Down")
    assert everything.threshold == pytest.approx(0.95)
    everything.set_threshold(1.0)
    press(reviewing, "Shift+A")
    assert review.accepted == []
    assert "None is at or above" in reviewing.state.message


def test_limits_hide_others_and_leave_decisions(reviewing: SegmentController) -> None:
    everything, review = reviewing.everything, reviewing.everything.review
    assert review is not None
    areas = review.proposals.areas_px
    smallest = int(areas.argmin())
    review.go_to(smallest)
    press(reviewing, "A")
    everything.set_limits(min_px=float(np.median(areas)))
    assert review.is_left.sum() == (areas >= np.median(areas)).sum()
    assert review.accepted == [smallest]
    assert review.current is not None
    assert areas[review.current] >= np.median(areas)
    drawn = shown(reviewing)
    assert (drawn == ACCEPTED).any()
    everything.set_limits(min_score=1.01)
    assert review.is_left.sum() == 0
    press(reviewing, "Shift+A")
    assert review.accepted == [smallest]
    everything.set_limits()
    assert review.is_left.sum() == len(review) - 1


def test_what_is_drawn_tells_decisions_and_the_current_one(reviewing: SegmentController) -> None:
    review = reviewing.everything.review
    assert review is not None
    press(reviewing, "A")
    press(reviewing, "X")
    drawn = shown(reviewing)
    assert {ACCEPTED, REJECTED, RING} <= set(np.unique(drawn))
    overlay = reviewing.overlay
    assert overlay is not None
    assert overlay.proposals is not None
    ring = np.argwhere(drawn == RING)
    box = review.proposals.boxes[review.current]
    on_image = ring * 2 + (overlay.proposals._box.y0, overlay.proposals._box.x0)
    assert (on_image >= box[:2] - 26).all()
    assert (on_image <= box[2:] + 26).all()


def test_the_order_is_renewed_after_each_decision_and_the_current_one_stays(
    reviewing: SegmentController, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = reviewing.everything.review
    assert review is not None
    asked_with = []

    def rank(proposals: Any, accepted: Any, rejected: Any) -> NDArray[np.float32]:
        asked_with.append((len(proposals), accepted, rejected))
        # Small ones are alike, now.
        areas = proposals.areas_px
        return (1 - areas / areas.max()).astype(np.float32)

    monkeypatch.setattr(ranking, "rank", rank)
    first = review.current
    reviewing.everything.accept()
    current = review.current
    reviewing.wait()
    assert asked_with == [(len(review), (first,), ())]
    assert review.current == current, "nobody is sent elsewhere"
    left = review.listed()[1:]
    assert (np.diff(review.proposals.areas_px[left]) >= 0).all()
    reviewing.everything.reject()
    assert review.current == left[0] if left[0] != current else left[1]
    reviewing.wait()
    assert asked_with[-1] == (len(review), (first,), (current,))
    reviewing.everything.sort_by("size")
    areas = review.proposals.areas_px[review.listed()[2:]]
    assert (np.diff(areas) <= 0).all()
    with pytest.raises(ConfigError, match="expected one of likeness"):
        reviewing.everything.sort_by("colour")


def test_earlier_decisions_count_for_the_order_of_later_proposals(
    reviewing: SegmentController, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked_with = []

    def rank(proposals: Any, accepted: Any, rejected: Any) -> NDArray[np.float32]:
        asked_with.append((len(proposals), accepted, rejected))
        return proposals.scores

    monkeypatch.setattr(ranking, "rank", rank)
    press(reviewing, "A")
    press(reviewing, "X")
    press(reviewing, "C")
    asked_with.clear()
    reviewing.everything.propose(level=0)
    reviewing.wait()
    review = reviewing.everything.review
    assert review is not None
    num = len(review)
    assert asked_with == [(num + 2, (num,), (num + 1,))]
    assert review.likeness is not None
    assert len(review.likeness) == num


def test_a_review_that_was_left_is_gone_on_with(
    reviewing: SegmentController, viewer: ViewerModel
) -> None:
    review = reviewing.everything.review
    assert review is not None
    press(reviewing, "A")
    press(reviewing, "Escape")
    assert reviewing.everything.review is None
    assert "[proposals]" not in " ".join(names(viewer))
    assert "left with 1 decision" in reviewing.state.message
    assert not labels(reviewing).any()
    press(reviewing, "Ctrl+Z")
    assert reviewing.everything.review is review
    # A layer that the user removes is no decision lost either.
    assert reviewing.overlay is not None
    assert reviewing.overlay.proposals is not None
    viewer.layers.remove(reviewing.overlay.proposals.layer)
    assert reviewing.everything.review is None
    assert reviewing.overlay is not None, "the session goes on"
    # Another object does not end it, but is what Ctrl+Z is about from then on.
    reviewing.click((250, 2))
    reviewing.wait()
    reviewing.commit()
    reviewing.wait()
    press(reviewing, "Ctrl+Z")
    assert reviewing.everything.review is None
    assert not labels(reviewing).any()
    reviewing.everything.resume()
    press(reviewing, "C")
    assert labels(reviewing).any()


@pytest.mark.parametrize("how", ["stop", "close"])
def test_what_was_accepted_is_committed_when_the_session_ends(
    reviewing: SegmentController, how: str
) -> None:
    press(reviewing, "A")
    drawn = labels(reviewing)
    getattr(reviewing, how)()
    if how == "close":
        assert reviewing.worker.join()
    else:
        reviewing.wait()
    assert drawn.any()


def test_a_commit_that_fails_leaves_the_review_as_it_was(
    reviewing: SegmentController, monkeypatch: pytest.MonkeyPatch
) -> None:
    review = reviewing.everything.review
    assert review is not None

    def fail(*_: Any) -> None:
        raise LabelsError("the disk is full")

    press(reviewing, "A")
    monkeypatch.setattr(module.Proposals, "accept", fail)
    reviewing.commit()
    with pytest.raises(LabelsError, match="the disk is full"):
        reviewing.wait()
    assert reviewing.everything.review is review
    assert len(review.accepted) == 1
    monkeypatch.undo()
    press(reviewing, "C")
    assert labels(reviewing).any()


def test_a_search_is_cancelled_and_clicks_are_taken_again(
    started: SegmentController, asked: Asked
) -> None:
    asked.before = started.worker.cancel_proposing
    started.everything.propose(level=0)
    assert started.state.is_proposing
    with pytest.raises(SessionError, match="objects are being looked for"):
        started.click((20, 20))
    started.wait()
    assert not started.state.is_proposing
    assert "nothing is proposed" in started.state.message
    assert started.everything.review is None
    started.click((20, 20))
    started.wait()
    assert started.state.has_object


def test_progress_tells_the_time_that_is_left(started: SegmentController) -> None:
    told = []
    started.state.changed.connect(lambda: told.append(started.state.message))
    started.everything.propose(level=0)
    started.wait()
    assert any(" tiles" in message for message in told)
    assert started.state.progress is None


def test_nothing_else_is_drawn_while_proposals_are_reviewed(reviewing: SegmentController) -> None:
    review = reviewing.everything.review
    assert review is not None
    with pytest.raises(SessionError, match="C finishes that, Esc leaves it"):
        reviewing.click((20, 20))
    with pytest.raises(SessionError, match="are being reviewed"):
        reviewing.everything.propose()
    # The mouse goes to the proposal that it points at.
    last = len(review) - 1
    y, x = np.argwhere(review.proposals.labels() == last + 1).mean(axis=0)
    assert reviewing.image_layer is not None
    reviewing.click_world(reviewing.image_layer.data_to_world((y, x)))
    assert review.current == last


def test_where_to_look_is_a_box_that_is_drawn_or_a_shape(
    started: SegmentController, viewer: ViewerModel, asked: Asked
) -> None:
    started.everything.await_box(level=0)
    assert started.state.drag_tool == "box"
    started._take_box((10.5, 20.0, 90.0, 100.2))
    assert started.state.drag_tool == "pan"
    started.wait()
    assert asked.calls[-1] == (Box(10, 20, 90, 101), 0)
    started.cancel()
    corners = np.array([(30, 40), (30, 90), (120, 90), (120, 40)])
    shapes = viewer.add_shapes([corners], scale=(2, 2), translate=(10, -6))
    started.everything.propose_in_layer(shapes, level=0)
    started.wait()
    assert asked.calls[-1][0] == Box(30, 40, 121, 91)
    started.cancel()
    points = viewer.add_points([(1, 1)])
    with pytest.raises(PromptError, match="no shape to look in"):
        started.everything.propose_in_layer(points)
    with pytest.raises(PromptError, match="got none of it"):
        started.everything.propose((400, 400, 500, 500))
    with pytest.raises(PromptError, match="y0 < y1"):
        started.everything.propose((40, 40, 40, 50))
    started.everything.await_box()
    started.cancel()
    assert not started.everything.awaits_box
    assert started.state.drag_tool == "pan"


def test_why_there_is_nothing_to_review_is_told(started: SegmentController, asked: Asked) -> None:
    everything = started.everything
    everything.propose(level=0)
    started.wait()
    everything.accept_above(0.0)
    everything.finish()
    started.wait()
    num = started.state.num_committed
    everything.propose(level=0)
    started.wait()
    assert f"All {num} objects found here are covered" in started.state.message
    asked.cells = np.zeros(CELLS, np.int32)
    everything.propose(level=0)
    started.wait()
    assert "No objects were found here at level 0" in started.state.message
    asked.cells[10:100, 10:100] = 1
    everything.propose(level=0)
    started.wait()
    assert "1 is too large for level 0: look from further away" in started.state.message
    assert not started.state.is_error


def test_a_model_that_finds_no_objects_by_itself_is_named(
    started: SegmentController, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConfigError("expected a model with a dense head, got 'vit'; choose one of a, b")

    monkeypatch.setattr(module, "propose", fail)
    started.everything.propose()
    with pytest.raises(ConfigError, match="dense head"):
        started.wait()
    assert not started.state.is_proposing
    assert started.state.is_error
    started.click((20, 20))
    started.wait()


def test_a_search_of_a_session_that_ended_shows_nothing(
    started: SegmentController, viewer: ViewerModel
) -> None:
    started.everything.propose(level=0)
    started.stop()
    started.wait()
    assert not any("proposals" in name for name in names(viewer))
    assert started.everything.review is None
