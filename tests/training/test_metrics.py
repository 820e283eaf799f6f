"""The rows of an evaluation table."""

from __future__ import annotations

import numpy as np
import pytest

from napari_hrsam.errors import DataError, ShapeError
from napari_hrsam.training.metrics import (
    drop_share,
    mask_iou,
    mean_iou_per_click,
    number_of_clicks,
    summarize,
)

CURVES = np.array(
    [
        [0.50, 0.85, 0.80, 0.95, 0.95, 0.95, 0.95, 0.95, 0.95, 0.95],
        [0.70, 0.70, 0.695, 0.60, 0.60, 0.60, 0.60, 0.60, 0.60, 0.79],
    ]
)


def test_iou_counts_any_non_zero_value() -> None:
    pred = np.array([[0, 2, 2, 0]])
    gt = np.array([[False, True, False, True]])
    assert mask_iou(pred, gt) == pytest.approx(1 / 3)
    assert mask_iou(gt, gt) == 1


def test_iou_of_two_empty_masks_is_zero() -> None:
    assert mask_iou(np.zeros((2, 2), bool), np.zeros((2, 2), bool)) == 0


def test_iou_refuses_masks_of_two_shapes() -> None:
    with pytest.raises(ShapeError, match="must have one shape"):
        mask_iou(np.zeros((2, 2)), np.zeros((1, 2)))


@pytest.mark.parametrize(("threshold", "expected"), [(0.80, 6), (0.85, 6), (0.90, 7), (0.60, 1.5)])
def test_noc_counts_from_one_and_failures_as_all_clicks(threshold: float, expected: float) -> None:
    assert number_of_clicks(CURVES, threshold) == expected


def test_noc_does_not_change_its_input() -> None:
    curves = CURVES.copy()
    number_of_clicks(curves, 0.99)
    np.testing.assert_array_equal(curves, CURVES)


def test_drops_are_counted_beyond_one_percent_only() -> None:
    assert drop_share(CURVES) == pytest.approx(2 / 18)
    assert drop_share([[0.4]]) == 0


def test_mean_iou_is_per_click() -> None:
    np.testing.assert_allclose(mean_iou_per_click(CURVES)[:2], [0.6, 0.775])


def test_a_row_has_the_published_columns() -> None:
    row = summarize(CURVES)
    assert list(row) == [
        *("noc80", "noc85", "noc90"),
        *("iou1", "iou3", "iou5", "iou10"),
        *("drops", "num_objects"),
    ]
    assert row["iou3"] == pytest.approx(0.7475)
    assert row["iou10"] == pytest.approx(0.87)
    assert (row["noc90"], row["num_objects"]) == (7, 2)


def test_columns_beyond_the_last_click_are_none() -> None:
    row = summarize(CURVES[:, :4])
    assert (row["iou3"] is None, row["iou5"], row["iou10"]) == (False, None, None)


@pytest.mark.parametrize("curves", [[], [[]], [0.5, 0.6]])
def test_nothing_to_score_is_refused(curves: list[object]) -> None:
    with pytest.raises(DataError, match="at least one object after at least one click"):
        summarize(curves)
