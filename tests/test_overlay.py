"""Pictures of a result."""

from __future__ import annotations

import numpy as np
import pytest

from napari_hrsam.errors import ShapeError
from napari_hrsam.overlay import draw_overlay
from napari_hrsam.prompts import Prompts

GREY = np.full((40, 60), 100, np.uint8)


def one_square() -> np.ndarray:
    labels = np.zeros((40, 60), np.uint32)
    labels[10:20, 10:30] = 1
    return labels


def test_background_is_left_as_it_is() -> None:
    labels = one_square()
    drawn = draw_overlay(GREY, labels)
    assert drawn.shape == (40, 60, 3)
    assert (drawn[labels == 0] == 100).all()
    assert (drawn[labels == 1] != 100).any(axis=1).all()


def test_outline_is_drawn_in_the_full_colour() -> None:
    drawn = draw_overlay(GREY, one_square(), opacity=0.0)
    assert (drawn[10, 15] == (230, 159, 0)).all()
    assert (drawn[15, 15] == 100).all()


def test_neighbours_get_different_colours() -> None:
    labels = one_square()
    labels[10:20, 30:40] = 2
    drawn = draw_overlay(GREY, labels, opacity=1.0)
    assert (drawn[15, 15] != drawn[15, 35]).any()


def test_image_is_not_changed() -> None:
    image = np.full((40, 60, 3), 7, np.uint8)
    draw_overlay(image, one_square(), (Prompts(points_yx=((5, 5),), labels=(True,)),))
    assert (image == 7).all()


def test_clicks_are_green_inside_and_red_outside() -> None:
    prompts = Prompts(points_yx=((15.0, 20.0), (30.0, 50.0)), labels=(True, False))
    drawn = draw_overlay(GREY, one_square(), (prompts,)).astype(int)
    assert drawn[15, 20, 1] > 2 * drawn[15, 20, 0]
    assert drawn[30, 50, 0] > 2 * drawn[30, 50, 1]


def test_labels_of_another_size_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"\(40, 60\).*\(4, 6\)"):
        draw_overlay(GREY, np.zeros((4, 6), np.uint8))
