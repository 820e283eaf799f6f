from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from napari_hrsam.engine.segment import segment
from napari_hrsam.engine.session import Session
from napari_hrsam.errors import ImageError, PromptError
from napari_hrsam.storage.tile_source import ArrayImage


def test_it_draws_what_a_session_draws(model: Any, scene: Any) -> None:
    image = scene[0]
    points, labels = [(50, 60), (50, 70), (90, 70)], [1, 0, 0]
    mask = segment(image, points, labels, (30, 40, 80, 90), model)
    session = Session(model, image)
    session.box((30, 40, 80, 90))
    for point, label in zip(points, labels, strict=True):
        session.click(point, bool(label))
    prediction = session.refine_outline()
    assert mask.shape == (200, 160)
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask[prediction.box.slices], prediction.mask)
    assert mask.sum() == prediction.mask.sum() > 0


def test_points_are_positive_unless_said_otherwise_and_may_be_an_array(
    model: Any, scene: Any
) -> None:
    mask = segment(ArrayImage(scene[0]), np.array([[50, 60], [55.0, 65]]), model=model, level=1)
    assert (mask & scene[1]).sum() / (mask | scene[1]).sum() > 0.8


def test_a_box_alone_is_enough(model: Any, scene: Any) -> None:
    assert segment(scene[0], box=np.array([40, 48, 72, 80]), model=model).sum() > 500


def test_an_image_too_large_for_one_array_is_refused(model: Any) -> None:
    image = np.lib.stride_tricks.as_strided(np.zeros(1, np.uint8), (20_000, 20_000), (0, 0))
    with pytest.raises(ImageError, match="at most 268,435,456 pixels.*use a Session"):
        segment(image, [(5, 5)], model=model)


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ({}, "at least one point or a box, got none"),
        ({"points": []}, "say where the object is"),
        ({"points": [(5, 5)], "point_labels": [1, 0]}, "got 1 points and 2 labels"),
        ({"points": [(5, 5)], "point_labels": [2]}, r"1 \(inside\) or 0 \(outside\), got \[2\]"),
        ({"points": (5, 5)}, r"got one point \(5, 5\); write points=\[\(5, 5\)\]"),
        ({"points": [(5, 500)]}, r"inside the image of shape \(y, x\) = \(200, 160\)"),
        ({"box": (5, 5, 2, 9)}, "y0 < y1 and x0 < x1"),
        ({"box": 7}, r"a box \(y0, x0, y1, x1\) as 4 numbers, got 7"),
    ],
)
def test_wrong_prompts_are_refused_before_the_model_runs(
    model: Any, scene: Any, prompts: Any, message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        segment(scene[0], **prompts, model=model)
    assert model.num_encoded == 0


def test_a_wrong_image_is_refused(model: Any) -> None:
    with pytest.raises(ImageError, match="take a 2-D slice of the stack"):
        segment(np.zeros((3, 4, 5, 6)), [(1, 1)], model=model)
