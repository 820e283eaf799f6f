from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from napari_hrsam.errors import PromptError
from napari_hrsam.prompts import Prompts


def test_prompts_are_plain_frozen_values() -> None:
    points = np.array([[1, 2], [3, 4]], np.float32)
    prompts = Prompts(points_yx=points, labels=np.array([1, 0]))  # type: ignore[arg-type]
    points[:] = 0
    assert prompts.points_yx == ((1.0, 2.0), (3.0, 4.0))
    assert prompts.labels == (True, False)
    assert prompts == Prompts().with_click((1, 2), True).with_click((3, 4), False)
    assert len({prompts, Prompts(points_yx=prompts.points_yx, labels=prompts.labels)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        prompts.labels = ()  # type: ignore[misc]


def test_a_new_box_replaces_the_old_one() -> None:
    prompts = Prompts().with_box((0, 0, 5, 5)).with_click((1, 1), True).with_box((1, 2, 3, 4))
    assert prompts.box == (1.0, 2.0, 3.0, 4.0)
    assert len(prompts) == 2


def test_of_contradicting_clicks_on_one_pixel_the_newest_counts() -> None:
    prompts = (
        Prompts()
        .with_click((5.2, 5.0), True)
        .with_click((9, 9), True)
        .with_click((4.8, 5.4), False)
    )
    assert len(prompts.points_yx) == 3
    assert prompts.consistent() == Prompts(points_yx=((9, 9), (4.8, 5.4)), labels=(True, False))


def test_a_repeated_click_of_the_same_sign_is_kept() -> None:
    prompts = Prompts(points_yx=((5, 5), (5, 5)), labels=(True, True))
    assert prompts.consistent() == prompts


def test_the_extent_holds_clicks_and_corner_pixels_of_the_box() -> None:
    prompts = Prompts(points_yx=((7, 8),), labels=(True,), box=(1.5, 2, 4.5, 6))
    assert prompts.extent_yx().tolist() == [[7, 8], [1, 2], [4, 5]]


@pytest.mark.parametrize("point", [(-0.6, 3), (10, 3), (3, 19.5), (3, -1), (1e300, 0)])
def test_a_click_outside_the_image_is_refused(point: tuple[float, float]) -> None:
    message = r"inside the image of shape \(y, x\) = \(10, 20\), got \(y, x\) = \("
    with pytest.raises(PromptError, match=message):
        Prompts().with_click(point, True).inside((10, 20))


def test_a_click_on_the_outer_half_of_a_border_pixel_is_inside() -> None:
    prompts = Prompts().with_click((-0.5, 19.4), True)
    assert prompts.inside((10, 20)) == prompts


def test_a_box_is_cut_at_the_image_and_refused_beyond_it() -> None:
    assert Prompts(box=(-5, 3, 99, 8)).inside((10, 20)).box == (0, 3, 10, 8)
    with pytest.raises(PromptError, match="expected a box inside the image"):
        Prompts(box=(10, 3, 12, 8)).inside((10, 20))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_coordinates_must_be_finite(value: float) -> None:
    with pytest.raises(PromptError, match=r"a click \(y, x\) with finite coordinates"):
        Prompts().with_click((value, 0), True)
    with pytest.raises(PromptError, match="check the scale and the transform of the layer"):
        Prompts().with_box((0, 0, 1, value))


@pytest.mark.parametrize("box", [(5, 0, 5, 9), (6, 0, 5, 9), (0, 9, 5, 3)])
def test_a_box_needs_order_and_area(box: tuple[float, float, float, float]) -> None:
    with pytest.raises(PromptError, match="y0 < y1 and x0 < x1"):
        Prompts(box=box)


@pytest.mark.parametrize("point", [(1,), (1, 2, 3), 5, ("a", "b"), None])
def test_a_click_is_two_numbers(point: object) -> None:
    with pytest.raises(PromptError, match=r"expected a click \(y, x\) as 2 numbers, got"):
        Prompts().with_click(point, True)  # type: ignore[arg-type]


def test_each_point_has_a_label() -> None:
    with pytest.raises(PromptError, match="got 2 points and 1 labels"):
        Prompts(points_yx=((0, 0), (1, 1)), labels=(True,))
