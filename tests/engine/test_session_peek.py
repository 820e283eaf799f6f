"""Looks that change nothing, what the model sees, and outlines drawn around objects."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_hrsam.engine.session import Session
from napari_hrsam.errors import PromptError, SessionError
from napari_hrsam.prompts import Prompts

Scene = tuple[NDArray[np.uint8], NDArray[np.bool_]]
ON = (50.0, 60.0)


def test_a_look_changes_nothing_and_encodes_nothing(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    assert session.peek(ON, level=0) is None
    assert model.num_encoded == 0
    session.click(ON, level=0)
    session.cancel()
    assert session.can_redo
    num = model.num_encoded
    seen = session.peek(ON, level=0)
    assert seen is not None
    assert model.num_encoded == num
    assert session.prediction is None
    assert not session.can_undo
    assert session.can_redo, "what was cancelled can still be brought back"
    clicked = session.click(ON, level=0)
    assert clicked.box == seen.box
    np.testing.assert_array_equal(clicked.mask, seen.mask)
    session.click((45.0, 55.0))
    prompts = session.prompts
    assert session.peek(ON, level=0) is not None
    assert session.prompts == prompts
    assert session.peek(ON, level=2) is None, "another tile, not encoded"
    session.click((20.0, 20.0), positive=False)
    with pytest.raises(PromptError, match="inside the image"):
        session.peek((-5, 5))
    session.close()
    with pytest.raises(SessionError):
        session.peek(ON)


def test_the_model_input_is_the_tile(model: Any, scene: Scene) -> None:
    session = Session(model, scene[0])
    with pytest.raises(SessionError, match="click on one first"):
        session.model_input()
    box = session.click(ON, level=0).box
    picture = session.model_input()
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture[: box.height, : box.width], scene[0][box.slices])


def test_an_outline_is_one_step(model: Any, scene: Scene) -> None:
    image, truth = scene
    session = Session(model, image)
    y, x = np.nonzero(truth)
    low, high = (y.min() - 3, x.min() - 3), (y.max() + 3, x.max() + 3)
    corners = [low, (low[0], high[1]), high, (high[0], low[1])]
    prediction = session.lasso(corners, level=0)
    box = session.prompts.box
    assert box == (low[0] - 0.5, low[1] - 0.5, high[0] + 0.5, high[1] + 0.5)
    assert len(session.prompts.points_yx) == 1
    found = prediction.mask & truth[prediction.box.slices]
    assert found.sum() > 0.9 * truth.sum()
    session.undo()
    assert session.prediction is None


@pytest.mark.parametrize(
    "points",
    [[], [(3, 3)], [(3, 3), (9, 9)], [(3, 3), (3, 9), (3, 20)], [(1, 1), (np.nan, 2), (5, 5)]],
)
def test_an_outline_that_encloses_nothing_is_refused(points: list[tuple[float, float]]) -> None:
    with pytest.raises(PromptError):
        Prompts().with_lasso(points)


def test_the_click_of_an_outline_lies_deep_inside_whatever_its_shape() -> None:
    """Of a ring that is open on one side, the middle is outside."""
    angles = np.linspace(0.3, 2 * np.pi - 0.3, 200)
    outer = np.stack([100 + 50 * np.sin(angles), 100 + 50 * np.cos(angles)], axis=1)
    inner = np.stack([100 + 30 * np.sin(angles), 100 + 30 * np.cos(angles)], axis=1)[::-1]
    (point,) = Prompts().with_lasso(np.concatenate([outer, inner])).points_yx
    assert abs(np.hypot(point[0] - 100, point[1] - 100) - 40) < 3
