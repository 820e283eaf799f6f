"""Box around a prediction, and the windows that it selects."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_hrsam.modeling.focus_windows import (
    box_map,
    expand_boxes,
    foreground_boxes,
    join_windows,
    select_windows,
    window_cells,
)

IMAGE_HW = (64, 96)


def logits(*parts: tuple[slice, slice]) -> Tensor:
    """(1, 1, 16, 24) logits with objects in these cells of 4 pixels."""
    out = torch.full((1, 1, 16, 24), -4.0)
    for rows, columns in parts:
        out[0, 0, rows, columns] = 4.0
    return out


def test_one_box_holds_all_parts_after_the_logits_are_resized() -> None:
    two = logits((slice(2, 4), slice(3, 6)), (slice(9, 12), slice(15, 20)))
    resized = F.interpolate(two, IMAGE_HW, mode="bilinear", align_corners=False)[0, 0] > 0
    rows, columns = resized.nonzero().unbind(1)
    expected = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    assert foreground_boxes(two, IMAGE_HW).tolist() == [[int(x) for x in expected]]


def test_an_empty_prediction_and_a_full_one_mean_the_whole_image() -> None:
    both = torch.cat([logits(), logits((slice(None), slice(None)))])
    assert foreground_boxes(both, IMAGE_HW).tolist() == [[0, 0, 96, 64]] * 2


def test_zero_is_not_above_zero() -> None:
    on_zero = torch.zeros(1, 1, 64, 96)
    on_zero[0, 0, 20:30, 40:60] = 4.0
    assert foreground_boxes(on_zero, IMAGE_HW).tolist() == [[40, 20, 60, 30]]


def test_a_single_row_or_column_at_the_border_is_found() -> None:
    corner = logits((slice(15, 16), slice(23, 24)))
    left, top, right, bottom = foreground_boxes(corner, IMAGE_HW)[0].tolist()
    assert (right, bottom) == (96, 64)
    assert 90 <= left < 96
    assert 58 <= top < 64


@pytest.mark.parametrize(
    ("box", "ratio_hw", "expected"),
    [
        ([40, 20, 60, 40], (1.4, 1.4), [36, 16, 64, 44]),
        ([40, 20, 60, 40], (1.0, 1.4), [36, 20, 64, 40]),
        ([40, 20, 60, 40], (1.4, 1.0), [40, 16, 60, 44]),
        # Clipped at each border.
        ([0, 0, 20, 20], (1.4, 1.4), [0, 0, 24, 24]),
        ([80, 50, 96, 64], (1.4, 1.4), [77, 47, 96, 64]),
        # 1.5 - 1.5 * 1.0 = 0 and halves go to the even neighbour: 5.5 -> 6, 2.5 -> 2.
        ([3, 3, 5, 5], (1.5, 1.5), [2, 2, 6, 6]),
        ([4, 4, 6, 6], (1.5, 1.5), [4, 4, 6, 6]),
    ],
)
def test_boxes_grow_around_their_centre_and_stay_inside(box, ratio_hw, expected) -> None:
    assert expand_boxes(torch.tensor([box]), IMAGE_HW, ratio_hw).tolist() == [expected]


def test_the_map_is_the_drawn_box_max_pooled() -> None:
    g = torch.Generator().manual_seed(0)
    for grid_hw in ((4, 6), (5, 7)):
        for _ in range(20):
            x = torch.randint(0, 97, (2,), generator=g).sort().values.tolist()
            y = torch.randint(0, 65, (2,), generator=g).sort().values.tolist()
            drawn = torch.zeros(1, *IMAGE_HW)
            drawn[0, y[0] : y[1], x[0] : x[1]] = 1
            box = torch.tensor([[x[0], y[0], x[1], y[1]]])
            pooled = F.adaptive_max_pool2d(drawn, grid_hw)
            assert torch.equal(box_map(box, IMAGE_HW, grid_hw), pooled > 0)


def test_a_box_crosses_into_the_next_window_only_after_it_grew() -> None:
    # Windows of 2 cells are 32 pixels wide.
    box = torch.tensor([[8, 8, 30, 24]])
    alone = select_windows(box_map(box, IMAGE_HW, (4, 6)), 2, 0)
    grown = expand_boxes(box, IMAGE_HW, (1.0, 1.4))
    both = select_windows(box_map(grown, IMAGE_HW, (4, 6)), 2, 0)
    assert alone.tolist() == [[True, False, False, False, False, False]]
    assert both.tolist() == [[True, True, False, False, False, False]]


@pytest.mark.parametrize("shift", [0, 1, 2])
def test_windows_are_cut_and_joined_without_loss(shift: int) -> None:
    x = torch.randn(2, 3, 7, 11)
    windows = window_cells(x, 4, shift)
    assert windows.shape == (2 * 2 * 3, 3, 4, 4)
    assert torch.equal(join_windows(windows, (7, 11), shift), x)


def test_shifted_windows_begin_half_a_window_in_and_wrap_around() -> None:
    x = torch.arange(1.0, 26.0).view(1, 1, 5, 5)
    first, *_, last = window_cells(x, 3, 1)[:, 0]
    padded = F.pad(x[0, 0], (0, 1, 0, 1))
    assert torch.equal(first, padded[1:4, 1:4])
    rows = columns = torch.tensor([4, 5, 0])
    assert torch.equal(last, padded[rows][:, columns])


def test_selection_follows_the_shift_and_belongs_to_each_sample() -> None:
    focus = torch.zeros(2, 4, 4, dtype=torch.bool)
    focus[0, 0, 0] = focus[1, 2:4, 1:3] = True
    assert select_windows(focus, 2, 0).tolist() == [
        [True, False, False, False],
        [False, False, True, True],
    ]
    # The first cell wraps around into the last window.
    assert select_windows(focus, 2, 1).tolist() == [
        [False, False, False, True],
        [True, False, True, False],
    ]
