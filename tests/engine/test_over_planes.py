"""Objects continued on other planes, propagated over a stack, and interpolated between planes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import napari_hrsam as hrsam
from napari_hrsam.engine.carried import Carried, shape_between
from napari_hrsam.engine.over_planes import Stop
from napari_hrsam.engine.session import Session
from napari_hrsam.errors import LabelsError, PromptError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import ArrayMask

NUM, SHAPE, SIDE = 7, (200, 160), 32
GONE = 6
"""The first plane without the object."""


def place(z: int) -> Box:
    """Where the object lies: it moves by 4 pixels per plane."""
    return Box(40, 24 + 4 * z, 40 + SIDE, 24 + 4 * z + SIDE)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    """A (7, 200, 160, 3) stack: a red square that moves, on green, gone on the last plane."""
    stack = np.zeros((NUM, *SHAPE, 3), np.uint8)
    stack[..., 1] = 120
    for z in range(GONE):
        stack[z][place(z).slices] = (230, 10, 10)
    return stack


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[hrsam.LabelWriter]:
    with hrsam.create_labels(tmp_path / "labels", "cells", (NUM, *SHAPE)) as made:
        yield made


@pytest.fixture
def session(model: Any, image: NDArray[np.uint8], labels: hrsam.LabelWriter) -> Session:
    return Session(model, image, labels)


def everything(labels: Any) -> NDArray[Any]:
    return np.stack([labels.read(plane=(z,)) for z in range(labels.plane_shape[0])])


def iou(labels: Any, z: int, label: int) -> float:
    there = np.zeros(SHAPE, bool)
    there[place(z).slices] = True
    mask = labels.read(plane=(z,)) == label
    return float((mask & there).sum() / (mask | there).sum())


def drawn(session: Session, z: int = 1) -> int:
    """Commit the object on a plane, exactly."""
    label = session.labels.next_label()
    box = place(z)
    session.labels.write(box, np.ones(box.shape_yx, bool), label, plane=(z,))
    return label


# ------------------------------------------------------------------ one plane further


def test_a_committed_object_is_continued_under_its_id(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    label = drawn(session)
    before = everything(session.labels)
    looks: list[tuple[Any, ...]] = []
    predict = session._objects.predict

    def spied(*given: Any) -> Any:
        looks.append(given)
        return predict(*given)

    monkeypatch.setattr(session._objects, "predict", spied)
    # Whatever the click alone gives, the mask is asked with, too.
    monkeypatch.setattr("napari_hrsam.engine.drawing.SAME_OVERLAP", 2.0)
    prediction = session.continue_on((2,), label, (1,))
    assert prediction is session.prediction
    assert prediction.tile.plane == (2,)
    # The model sees where it was.
    [(_, _, nothing, *_), (tile, prompts, prior, *_)] = looks
    assert nothing is None
    assert prompts == session.prompts
    assert prompts.labels == (True,)
    rows, columns = np.nonzero(prior > 0)
    scale = 4 * tile.downsample
    assert abs((rows.mean() + 0.5) * scale + tile.box0.y0 - 56) <= scale / 2
    assert abs((columns.mean() + 0.5) * scale + tile.box0.x0 - 44) <= scale / 2
    np.testing.assert_array_equal(everything(session.labels), before)
    assert session.carried is not None
    assert (session.carried.label, session.carried.plane) == (label, (1,))
    edit = session.commit()
    assert (edit.label, edit.plane, edit.model) == (label, (2,), "colour")
    assert len(edit.prompts), "what the model was told is kept"
    assert iou(session.labels, 2, label) > 0.9
    np.testing.assert_array_equal(
        np.delete(everything(session.labels), 2, 0), np.delete(before, 2, 0)
    )
    session.undo()
    np.testing.assert_array_equal(everything(session.labels), before)


def test_the_current_object_is_committed_and_continued(session: Session) -> None:
    session.click((50, 40), plane=(1,))
    edits: list[hrsam.Edit] = []
    session.continue_on((0,), on_commit=edits.append)
    assert [(edit.label, edit.plane) for edit in edits] == [(1, (1,))]
    assert iou(session.labels, 1, 1) > 0.9
    assert not session.labels.read(plane=(0,)).any()
    # And once more from there, along the way.
    session.continue_on((2,), on_commit=edits.append)
    assert [(edit.label, edit.plane) for edit in edits] == [(1, (1,)), (1, (0,))]
    assert session.commit().label == 1
    assert session.labels.next_label() == 2
    for _ in range(3):
        session.undo()
    assert not everything(session.labels).any()


def test_what_was_continued_is_corrected_and_taken_back_step_by_step(session: Session) -> None:
    label = drawn(session)
    session.continue_on((2,), label, (1,))
    num = len(session.prompts)
    before = session.prediction.mask.sum()  # type: ignore[union-attr]
    session.click((10, 150), positive=False, plane=(2,))
    assert len(session.prompts) == num + 1
    with pytest.raises(PromptError, match=r"on the object's plane \(2,\)"):
        session.click((50, 40), plane=(1,))
    session.undo()
    assert session.prediction.mask.sum() == before  # type: ignore[union-attr]
    session.undo()
    assert session.prediction is None
    session.redo()
    assert session.commit().label == label


def test_a_cancelled_one_leaves_all_as_it_was(session: Session) -> None:
    label = drawn(session)
    before = everything(session.labels)
    session.continue_on((2,), label, (1,))
    session.cancel()
    assert session.carried is None
    np.testing.assert_array_equal(everything(session.labels), before)
    session.redo()
    assert session.commit().label == label


def test_a_continued_object_goes_along_when_the_image_is_shown_otherwise(
    session: Session, image: NDArray[np.uint8]
) -> None:
    label = drawn(session)
    session.continue_on((2,), label, (1,))
    session.click((10, 150), positive=False, plane=(2,))
    carried = session.carried
    other = session.with_image(image // 2)
    assert other.carried is carried
    assert len(other.prompts) == 2
    edit = other.commit()
    assert (edit.label, edit.plane) == (label, (2,))


def test_a_click_is_not_put_where_the_image_has_no_data(
    model: Any, labels: hrsam.LabelWriter
) -> None:
    image = np.full((NUM, *SHAPE), 100.0, np.float32)
    image[2][50:62, 38:50] = np.nan
    session = Session(model, hrsam.open_image(image, contrast_limits=(0, 255)), labels)
    label = drawn(session)
    session.continue_on((2,), label, (1,))
    assert not session.prompts.points_yx


def test_what_cannot_be_continued_is_refused_with_a_message(session: Session) -> None:
    label = drawn(session)
    before = everything(session.labels)
    with pytest.raises(SessionError, match="expected an object to continue, got none"):
        session.continue_on((2,))
    for wrong in ((NUM,), (-1,), (), (1, 2)):
        with pytest.raises(PromptError, match="expected a plane of the image"):
            session.continue_on(wrong, label, (1,))
        with pytest.raises(PromptError, match="expected a plane of the image"):
            session.continue_on((1,), label, wrong)
    with pytest.raises(PromptError, match="differ along one axis"):
        session.continue_on((1,), label, (1,))
    with pytest.raises(LabelsError, match="expected the id of an object"):
        session.continue_on((2,), label + 1, (1,))
    with pytest.raises(LabelsError, match="expected the id of an object"):
        session.continue_on((2,), label, (0,))
    session.click((50, 40), plane=(1,))
    with pytest.raises(SessionError, match="commit or cancel it"):
        session.continue_on((2,), label, (1,))
    with pytest.raises(PromptError, match="expected a plane of the image"):
        session.continue_on((NUM,))
    assert session.prediction is not None, "it was not committed"
    session.cancel()
    np.testing.assert_array_equal(everything(session.labels), before)


def test_an_object_that_is_drawn_there_already_is_not_drawn_over(session: Session) -> None:
    label = drawn(session)
    session.labels.write(Box(0, 0, 5, 5), np.ones((5, 5), bool), label, plane=(2,))
    before = everything(session.labels)
    with pytest.raises(LabelsError, match=r"session.edit\(1, plane=\(2,\)\)"):
        session.continue_on((2,), label, (1,))
    session.edit(label, (1,))
    session.click((10, 150), positive=False, plane=(1,))
    with pytest.raises(LabelsError, match="not drawn yet"):
        session.continue_on((2,))
    assert session.prediction is not None
    np.testing.assert_array_equal(everything(session.labels), before)


def test_a_flat_image_has_no_other_plane(model: Any, image: NDArray[np.uint8]) -> None:
    session = Session(model, image[0])
    session.click((50, 40))
    with pytest.raises(SessionError, match="expected a stack"):
        session.continue_on((1,))
    with pytest.raises(PromptError, match="number of planes"):
        session.propagate(1)
    assert session.prediction is not None


def test_of_several_axes_one_is_followed(
    model: Any, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    stack = np.stack([image, image])
    with hrsam.create_labels(tmp_path / "labels", "cells", stack.shape[:-1]) as labels:
        session = Session(model, stack, labels)
        session.click((50, 40), plane=(0, 1))
        with pytest.raises(PromptError, match="one axis at a time"):
            session.continue_on((1, 2))
        session.continue_on((1, 1))
        session.commit()
        assert labels.read(plane=(1, 1)).any()
        report = session.propagate(2, 1, (1, 1))
        assert report.planes == ((1, 2), (1, 3))
        report = session.propagate(-1, 1, (1, 3), axis=0)
        assert report.planes == ((0, 3),)
        with pytest.raises(PromptError, match="differ along one axis"):
            session.interpolate(1, (0, 1), (1, 3))


# ------------------------------------------------------------------ several planes


def test_an_object_is_propagated_until_it_is_gone(session: Session) -> None:
    label = drawn(session)
    seen: list[tuple[int, int]] = []
    report = session.propagate(10, label, (1,), progress=lambda *at: seen.append(at))
    assert report.planes == ((2,), (3,), (4,), (5,))
    assert report.stop is not Stop.DONE
    assert report.stopped_at == (GONE,)
    assert seen == [(done, 10) for done in range(5)]
    assert min(iou(session.labels, z, label) for z in range(1, GONE)) > 0.9
    assert not session.labels.read(plane=(0,)).any()
    assert not session.labels.read(plane=(GONE,)).any()
    assert session.prediction is None
    assert [edit.plane for edit in report.edits] == list(report.planes)
    session.undo()
    assert not session.labels.read(plane=(5,)).any()
    assert session.labels.read(plane=(4,)).any()


def test_the_current_object_is_propagated_and_the_stack_ends(session: Session) -> None:
    session.click((50, 50), plane=(3,))
    report = session.propagate(-5)
    assert (report.label, report.stop, report.stopped_at) == (1, Stop.END, None)
    assert report.planes == ((2,), (1,), (0,))
    assert [edit.plane for edit in report.edits] == [(3,), (2,), (1,), (0,)]
    assert session.propagate(1, 1, (3,)).stop is Stop.DONE


@pytest.mark.parametrize(
    ("limits", "name"), [({"min_iou": 0.95}, "iou"), ({"min_overlap": 0.99}, "overlap")]
)
def test_it_ends_where_the_model_is_not_sure(
    session: Session, limits: dict[str, float], name: str
) -> None:
    label = drawn(session)
    before = everything(session.labels)
    report = session.propagate(3, label, (1,), **limits)
    assert (report.planes, report.stop, report.stopped_at) == ((), Stop.DOUBTFUL, (2,))
    assert getattr(report, name) < next(iter(limits.values()))
    np.testing.assert_array_equal(everything(session.labels), before)
    assert session.prediction is None


def test_it_ends_at_what_is_there_already(session: Session) -> None:
    label = drawn(session)
    session.labels.write(Box(0, 0, 5, 5), np.ones((5, 5), bool), label, plane=(4,))
    other = drawn(session, 0)
    report = session.propagate(3, label, (1,))
    assert (report.planes, report.stop, report.stopped_at) == (((2,), (3,)), Stop.DRAWN, (4,))
    before = everything(session.labels)
    report = session.propagate(-3, label, (1,))
    assert (report.planes, report.stop, report.stopped_at) == ((), Stop.COVERED, (0,))
    np.testing.assert_array_equal(everything(session.labels), before)
    assert other != label


def test_what_ends_it_from_outside_keeps_the_planes_done(session: Session) -> None:
    label = drawn(session)

    def stop(done: int, _: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    edits: list[hrsam.Edit] = []
    with pytest.raises(KeyboardInterrupt):
        session.propagate(4, label, (1,), progress=stop, on_commit=edits.append)
    assert [edit.plane for edit in edits] == [(2,), (3,)]
    assert session.labels.read(plane=(3,)).any()
    assert not session.labels.read(plane=(4,)).any()
    assert session.prediction is None
    assert session.propagate(1, label, (3,)).planes == ((4,),)


def test_wrong_numbers_are_refused(session: Session) -> None:
    label = drawn(session)
    for number, more in [(0, {}), (1, {"axis": 1}), (1, {"axis": -2}), (1, {"min_iou": 2}),
                         (1, {"min_overlap": float("nan")})]:  # fmt: skip
        with pytest.raises(PromptError, match="other than 0, an axis from -1 to 0 and limits"):
            session.propagate(number, label, (1,), **more)  # type: ignore[arg-type]


# ------------------------------------------------------------------ between planes


def carried(mask: NDArray[np.bool_], box: Box) -> Carried:
    return Carried(label=1, plane=(), mask=ArrayMask(box, mask), box=box)


def test_a_shape_between_two_lies_and_measures_between_them() -> None:
    first, last = Box(10, 10, 20, 20), Box(50, 50, 80, 80)
    shapes = [carried(np.ones(box.shape_yx, bool), box) for box in (first, last)]
    for share, (y0, side) in [(0.0, (10, 10)), (1.0, (50, 30)), (0.5, (30, 20))]:
        between = shape_between(*shapes, share, (100, 100))
        assert abs(between.box.y0 - y0) <= 1
        assert abs(between.box.height - side) <= 1
        assert between.mask.read(between.box).mean() > 0.95
    between = shape_between(shapes[0], shapes[1], 0.5, (100, 40))
    assert between.box.x1 <= 40


def test_shapes_that_are_too_large_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_hrsam.engine.carried.MAX_BETWEEN_PX", 99)
    shape = carried(np.ones((10, 10), bool), Box(0, 0, 10, 10))
    with pytest.raises(SessionError, match="at most 99 pixels"):
        shape_between(shape, shape, 0.5, (100, 100))


@pytest.mark.parametrize("refine", [False, True])
def test_an_object_is_interpolated_between_two_planes(session: Session, refine: bool) -> None:
    label = drawn(session, 1)
    session.labels.write(place(5), np.ones((SIDE, SIDE), bool), label, plane=(5,))
    seen: list[tuple[int, int]] = []
    report = session.interpolate(
        label, (5,), (1,), refine=refine, progress=lambda *at: seen.append(at)
    )
    assert report.planes == ((4,), (3,), (2,))
    assert report.stop is Stop.DONE
    assert seen == [(0, 3), (1, 3), (2, 3)]
    assert min(iou(session.labels, z, label) for z in range(1, 6)) > 0.9
    assert {edit.model for edit in report.edits} == {"colour" if refine else "interpolated"}
    assert not session.labels.read(plane=(0,)).any()
    for _ in range(3):
        session.undo()
    assert not session.labels.read(plane=(3,)).any()


def test_a_refined_shape_of_which_the_model_is_not_sure_counts_as_it_is(session: Session) -> None:
    label = drawn(session, 1)
    session.labels.write(place(3), np.ones((SIDE, SIDE), bool), label, plane=(3,))
    report = session.interpolate(label, (1,), (3,), refine=True, min_iou=0.95)
    assert [edit.model for edit in report.edits] == ["interpolated"]


def test_what_lies_between_already_stays(session: Session) -> None:
    label = drawn(session, 1)
    session.labels.write(place(5), np.ones((SIDE, SIDE), bool), label, plane=(5,))
    other = drawn(session, 2)
    half = Box(40, 36, 56, 68)
    session.labels.write(half, np.ones(half.shape_yx, bool), other, plane=(3,))
    session.labels.write(Box(0, 0, 5, 5), np.ones((5, 5), bool), label, plane=(4,))
    before = everything(session.labels)
    report = session.interpolate(label, (1,), (5,))
    assert (report.planes, report.stop, report.stopped_at) == (((3,),), Stop.COVERED, (2,))
    after = everything(session.labels)
    np.testing.assert_array_equal(after[before > 0], before[before > 0])
    assert (after[3] == label).any()


def test_planes_that_are_none_between_are_refused(session: Session) -> None:
    label = drawn(session, 1)
    with pytest.raises(PromptError, match="others between them"):
        session.interpolate(label, (1,), (2,))
    with pytest.raises(PromptError, match="differ along one axis"):
        session.interpolate(label, (1,), (1,))
    with pytest.raises(LabelsError, match="expected the id of an object"):
        session.interpolate(label, (1,), (4,))
    with pytest.raises(PromptError, match="expected a plane of the image"):
        session.interpolate(label, (1,), (NUM,))
    session.click((50, 40), plane=(1,))
    with pytest.raises(SessionError, match="commit or cancel it before you interpolate"):
        session.interpolate(label, (1,), (4,))
