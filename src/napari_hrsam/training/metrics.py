"""How good a series of clicks was: IoU, number of clicks (NoC), and steps backwards."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from napari_hrsam.errors import DataError
from napari_hrsam.masks import mask_iou

__all__ = ["drop_share", "mask_iou", "mean_iou_per_click", "number_of_clicks", "summarize"]

NOC_THRESHOLDS = (0.80, 0.85, 0.90)
IOU_AFTER_CLICKS = (1, 3, 5, 10)
DROP_IOU = 0.01
"""A click is a step backwards if it lowers the IoU by more than this."""


def number_of_clicks(ious: ArrayLike, threshold: float) -> float:
    """NoC: mean number of clicks until the IoU reaches a threshold.

    Parameters
    ----------
    ious : (N, C) float, 0..1
        IoU of N objects after each of C clicks.
    threshold : float, 0..1

    Returns
    -------
    float, 1..C
        Clicks are counted from 1; an object that never gets there counts C.

    Raises
    ------
    DataError
        If there is no object or no click.
    """
    reached = _curves(ious) >= threshold
    reached[:, -1] = True
    return float(reached.argmax(axis=1).mean() + 1)


def mean_iou_per_click(ious: ArrayLike) -> NDArray[np.float64]:
    """Mean IoU over the objects after each click.

    Parameters
    ----------
    ious : (N, C) float, 0..1

    Returns
    -------
    (C,) float64

    Raises
    ------
    DataError
        If there is no object or no click.
    """
    return np.asarray(_curves(ious).mean(axis=0))


def drop_share(ious: ArrayLike) -> float:
    """Stability: share of the clicks, from the second on, that lower the IoU by more than 0.01.

    Parameters
    ----------
    ious : (N, C) float, 0..1

    Returns
    -------
    float, 0..1
        0 is best; 0 if there is only one click.

    Raises
    ------
    DataError
        If there is no object or no click.
    """
    steps = np.diff(_curves(ious), axis=1)
    return float((steps < -DROP_IOU).mean()) if steps.size else 0.0


def summarize(ious: ArrayLike) -> dict[str, float | int | None]:
    """One row of an evaluation table.

    Parameters
    ----------
    ious : (N, C) float, 0..1
        IoU of N objects after each of C clicks.

    Returns
    -------
    dict
        `noc80`, `noc85`, `noc90` (clicks), `iou1`, `iou3`, `iou5`, `iou10` (mean IoU after so many
        clicks; None if fewer were made), `drops` (share) and `num_objects`.

    Raises
    ------
    DataError
        If there is no object or no click.
    """
    curves = _curves(ious)
    mean = mean_iou_per_click(curves)
    row: dict[str, float | int | None] = {
        f"noc{round(100 * threshold)}": number_of_clicks(curves, threshold)
        for threshold in NOC_THRESHOLDS
    }
    for num in IOU_AFTER_CLICKS:
        row[f"iou{num}"] = float(mean[num - 1]) if num <= mean.size else None
    row["drops"] = drop_share(curves)
    row["num_objects"] = len(curves)
    return row


def _curves(ious: ArrayLike) -> NDArray[np.float64]:
    curves = np.asarray(ious, dtype=np.float64)
    if curves.ndim != 2 or curves.size == 0:
        raise DataError(
            "expected the IoU of at least one object after at least one click, (N, C), "
            f"got shape {curves.shape}; check that the data holds objects"
        )
    return curves
