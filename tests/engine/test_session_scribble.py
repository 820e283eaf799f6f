"""Freehand strokes: obeyed, told to the model as clicks, kept and redone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import napari_hrsam as hrsam
from napari_hrsam.engine.session import Session
from napari_hrsam.errors import PromptError
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Scribble

Scene = tuple[NDArray[np.uint8], NDArray[np.bool_]]
STROKE = [(45.2, 55.0), (60.0, 62.7), (66.0, 75.0)]


def on_stroke(points: Any) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The level-0 pixels that a stroke goes through."""
    places = np.floor(Scribble(points_yx=points).along(0.1) + 0.5).astype(int)
    return places[:, 0], places[:, 1]


def whole_mask(session: Session) -> NDArray[np.bool_]:
    assert session.prediction is not None
    return session.prediction.region.read(Box.of_shape(session.image.shape_yx))


@pytest.mark.parametrize("level", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("positive", [True, False])
def test_every_pixel_of_a_stroke_is_on_its_side_at_every_level(
    model: Any, scene: Scene, level: int, positive: bool
) -> None:
    session = Session(model, scene[0])
    if not positive:
        session.click((50, 60), level=level)
    # A long one, of which the model finds the colour of a few places only.
    wild = [(3, 4), (30.4, 120.3), (90.5, 10.2), (95, 150), (140.9, 2.3)]
    scale = 2.0 ** min(level, 0)
    points = np.array(wild) * scale + (30 if level < 0 else 0)
    prediction = session.scribble(points, positive, level=level)
    assert (whole_mask(session)[on_stroke(points)] == positive).all()
    assert prediction is session.prediction


def test_the_model_is_told_clicks_where_the_mask_contradicts_the_stroke(
    model: Any, scene: Scene
) -> None:
    """One suffices inside an object of one colour; on two colours the second needs its own."""
    session = Session(model, scene[0])
    session.scribble(STROKE)
    assert model.nums_points == [1, 1], "a look, and one at a finer level"
    [told] = session.prompts.scribbles[0].told_yx
    assert 45 < told[0] < 66
    mask = whole_mask(session)
    assert (mask & scene[1]).sum() > 0.9 * scene[1].sum()
    session.undo()
    image = scene[0].copy()
    image[:20] = (30, 30, 200)
    session = session.with_image(image)
    model.nums_points.clear()
    session.scribble([(30, 60), (19, 60), (3, 60), (0, 60)], level=0)
    assert model.nums_points[-1] == 2
    middle, second = session.prompts.scribbles[0].told_yx
    assert (middle[0] < 19.5) != (second[0] < 19.5)
    assert len(session.prompts) == 1
    session.click((50, 60))
    assert model.nums_points[-1] == 3
    session.undo()
    assert len(session.prompts) == 1
    assert session.undo() is None


def test_where_prompts_of_different_sign_meet_the_newer_counts(model: Any, scene: Scene) -> None:
    place, cross = (60, 62), [(60, 50), (60, 70)]
    for first, second in [("click", "scribble"), ("scribble", "click"), ("scribble", "scribble")]:
        session = Session(model, scene[0])
        session.click((45, 75), level=0)
        for number, kind in enumerate((first, second)):
            if kind == "click":
                session.click(place, positive=number == 1)
            else:
                line = cross if number == 0 else [(50, 62), (70, 62)]
                session.scribble(line, positive=number == 1)
        mask = whole_mask(session)
        assert mask[place], (first, second)
        if first == "scribble":
            assert not mask[60, [50, 55, 69]].any()
        else:
            assert mask[on_stroke([(50, 62), (70, 62)])].all()


def test_strokes_are_not_enforced_where_clicks_are_not(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0], enforce_clicks=False)
    session.click((50, 60), level=1)
    session.scribble([(100, 20), (100, 90)], positive=False)
    session.scribble([(100, 20), (10, 20)], positive=True)
    session.click((20, 90), positive=False)
    assert not whole_mask(session)[on_stroke([(100, 20), (10, 20)])].all()


def test_a_stroke_is_obeyed_in_an_outline_that_is_refined(model: Any) -> None:
    image = np.zeros((1500, 1500), np.uint8)
    image[200:1300, 200:1300] = 200
    session = Session(model, image)
    session.click((700, 700), level=0)
    strokes = [
        ([(1200, 600), (1310, 640), (1290, 700)], True),
        ([(250, 600), (210, 700), (400, 803.3)], False),
    ]
    for points, positive in strokes:
        session.scribble(points, positive)
    assert session.needs_refining
    session.outline_level = 0
    session.refine_outline()
    mask = whole_mask(session)
    for points, positive in strokes:
        assert (mask[on_stroke(points)] == positive).all()


def test_strokes_are_kept_with_the_commit_and_redone(
    model: Any, scene: Scene, tmp_path: Path
) -> None:
    def drawn(session: Session, prompts: hrsam.Prompts | None = None) -> NDArray[np.bool_]:
        session.click((50, 60), level=0)
        session.scribble(STROKE if prompts is None else prompts.scribbles[0].points_yx)
        session.click((61, 20), positive=False)
        return whole_mask(session)

    with hrsam.create_labels(tmp_path / "labels", "cells", (200, 160)) as labels:
        session = Session(model, scene[0], labels)
        mask = drawn(session)
        said = session.prompts
        session.commit()
    with hrsam.open_labels(tmp_path / "labels", "cells") as labels:
        edit = labels.newest_done()
        assert edit is not None
        assert edit.prompts == said
        assert edit.prompts.scribbles[0].told_yx
        [scribble] = edit.prompts.scribbles
        assert (scribble.points_yx, scribble.positive, scribble.num_clicks) == (
            tuple((float(y), float(x)) for y, x in STROKE),
            True,
            1,
        )
        np.testing.assert_array_equal(drawn(Session(model, scene[0]), edit.prompts), mask)


def test_a_bad_stroke_costs_a_message_and_nothing_else(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    prediction = session.click((50, 60))
    bad: list[tuple[Any, str]] = [
        ([], "a scribble of 1 to 10,000 points"),
        (np.zeros((10_001, 2)), "got 10,001"),
        ([(5, np.nan)], "a point of a scribble .* finite"),
        ([(5, 5), (5,)], "as 2 numbers"),
        ((5, 5), "as 2 numbers"),
        (7, "points .y, x., got 0"),
        ([(5, 5), (5, 160)], r"a scribble inside the image .* got \(y, x\) = \(5, 160\)"),
    ]
    for points, message in bad:
        with pytest.raises(PromptError, match=message):
            session.scribble(points)
    assert session.prediction is prediction


def test_a_stroke_over_missing_pixels_alone_is_refused(model: Any) -> None:
    image = np.full((200, 160), 100.0, np.float32)
    image[:, :50] = np.nan
    session = Session(model, hrsam.open_image(image, contrast_limits=(0, 255)))
    with pytest.raises(PromptError, match="no data here"):
        session.scribble([(50, 10), (60, 40)])
    session.scribble([(50, 10), (60, 90)])
    assert not whole_mask(session)[:, :50].any()
    session.scribble([(50, 10), (60, 40)], positive=False)


def test_a_single_point_is_a_stroke(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    session.scribble([(50, 60)])
    assert model.nums_points[-1] == 1
    assert whole_mask(session)[50, 60]
