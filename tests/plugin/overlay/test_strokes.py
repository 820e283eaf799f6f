"""Brush strokes on grids of different pixels."""

from __future__ import annotations

import numpy as np
import pytest

from napari_hrsam.geometry import Box
from napari_hrsam.plugin.overlay.strokes import KEEP, Strokes, apply_strokes

SOME = Strokes(Box(2, 3, 4, 5), np.array([[1, KEEP], [KEEP, 0]], np.uint8), 4)


def painted(strokes: Strokes) -> dict[tuple[int, int], int]:
    """Value of every painted level-0 pixel."""
    return {
        (int(y), int(x)): int(strokes.values[y // strokes.step, x // strokes.step])
        for y, x in np.argwhere(
            np.kron(strokes.values != KEEP, np.ones((strokes.step, strokes.step)))
        )
    }


@pytest.mark.parametrize("step", [1, 2])
def test_on_a_finer_grid_strokes_cover_the_same_pixels(step: int) -> None:
    fine = SOME.at(step)
    assert fine.step == step
    times = 4 // step
    assert fine.box == Box(2 * times, 3 * times, 4 * times, 5 * times)
    assert painted(fine) == painted(SOME)
    np.testing.assert_array_equal(fine.at(4).values, SOME.values)


def test_on_a_coarser_grid_any_stroke_in_a_pixel_counts_and_painting_beats_erasing() -> None:
    fine = Strokes(
        Box(3, 3, 5, 9),
        np.array([[1, KEEP, 0, KEEP, KEEP, 1], [KEEP] * 4 + [0, 0]], np.uint8),
        1,
    )
    coarse = fine.at(4)
    assert coarse.box == Box(0, 0, 2, 3)
    np.testing.assert_array_equal(coarse.values, [[1, 0, 1], [KEEP, 0, 0]])


def test_newer_strokes_lie_on_top_on_their_own_grid() -> None:
    newer = Strokes(Box(2, 3, 3, 4), np.array([[0]], np.uint8), 8)
    both = SOME.with_newer(newer)
    assert both.step == 8
    assert both.box == Box(1, 1, 3, 4)
    np.testing.assert_array_equal(both.values, [[1, 0, KEEP], [KEEP, KEEP, 0]])


def test_coarse_strokes_far_from_fine_ones_take_no_memory() -> None:
    coarse = Strokes(Box(0, 0, 1000, 1000), np.ones((1000, 1000), np.uint8), 256)
    newer = Strokes(Box(5000, 5000, 5010, 5010), np.zeros((10, 10), np.uint8), 1)
    both = coarse.with_newer(newer)
    assert both.values.size <= (2 * 256) ** 2
    inside = both.box.shifted(-both.box.y0, -both.box.x0)
    assert both.values.shape == inside.shape_yx
    assert (both.values == 0).sum() == 100
    assert (both.values == 1).sum() == both.values.size - 100


@pytest.mark.parametrize("step", [1, 4, 16])
def test_strokes_are_put_on_a_mask_of_any_step(step: int) -> None:
    box = Box(0, 0, 32, 32)
    mask = np.zeros((32 // step, 32 // step), bool)
    mask[-1, -1] = True
    edited = apply_strokes(mask, box, SOME, step)
    expected = mask.copy()
    for (y, x), value in painted(SOME).items():
        row, column = (y + 2 * 4) // step, (x + 3 * 4) // step
        expected[row, column] = expected[row, column] or value == 1
    np.testing.assert_array_equal(edited, expected)
    assert mask.sum() == 1, "the mask itself is not changed"
