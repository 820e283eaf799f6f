"""Simulated clicks: where a careful user would correct a mask next.

References
----------
HRSAM evaluation protocol: the click goes to the middle of the larger of the two error regions
(missed foreground or wrong foreground), measured by the Euclidean distance to the region's edge.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from napari_hrsam.errors import ConfigError, DataError, ShapeError
from napari_hrsam.geometry import Box

_K_EPS = 1.19e-7


@dataclass(frozen=True, slots=True)
class Click:
    """One click on a pixel.

    Attributes
    ----------
    y, x : int
        Pixel of the mask that was clicked.
    positive : bool
        True to add to the object, False to take away from it.
    """

    y: int
    x: int
    positive: bool


@dataclass(frozen=True, slots=True)
class ClickCandidates:
    """The pixels between which the next click is drawn.

    Attributes
    ----------
    positive : bool or None
        Sign of the next click; None when nothing is left to correct.
    mask : (H, W) bool
        Candidate pixels; all False when `positive` is None.
    distance_false_negative, distance_false_positive : (H, W) float32, px
        Distance of each wrong pixel to the edge of its error region, the image's border being an
        edge; 0 on pixels that are right or were clicked.
    """

    positive: bool | None
    mask: NDArray[np.bool_]
    distance_false_negative: NDArray[np.float32]
    distance_false_positive: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _ErrorRegion:
    """Distances inside the box that holds one error map; every pixel outside it is 0."""

    box: Box
    distance: NDArray[np.float64]

    @property
    def depth(self) -> float:
        return float(self.distance.max()) if self.distance.size else 0.0

    def whole(self, shape_yx: tuple[int, int]) -> NDArray[np.float32]:
        distance = np.zeros(shape_yx, np.float32)
        distance[self.box.slices] = self.distance
        return distance


def click_candidates(
    pred: NDArray[np.bool_],
    gt: NDArray[np.bool_],
    clicked_yx: Iterable[tuple[int, int]] = (),
    *,
    k: float = 1.0,
) -> ClickCandidates:
    """Find where the next click may go.

    Parameters
    ----------
    pred, gt : (H, W) bool
        Predicted and true mask; any non-zero value is foreground.
    clicked_yx : iterable of (y, x) int
        Pixels that were clicked already; they are no longer counted as wrong.
    k : float
        How far from the deepest point a click may fall: pixels with a distance above
        `depth / k`. 1 = the deepest pixels only, 1.7 = the inner part (training), negative = the
        whole error region.

    Returns
    -------
    ClickCandidates

    Raises
    ------
    ShapeError
        If the masks are not of one 2-D shape.
    ConfigError
        If 0 <= k < 1.
    """
    pred, gt = _as_masks(pred, gt)
    missed, wrong = _error_regions(pred, gt, clicked_yx)
    positive, chosen, inner = _choose(missed, wrong, k)
    mask = np.zeros(gt.shape, bool)
    if positive is not None:
        mask[chosen.box.slices] = inner
    return ClickCandidates(positive, mask, missed.whole(gt.shape), wrong.whole(gt.shape))


def next_click(
    pred: NDArray[np.bool_],
    gt: NDArray[np.bool_],
    clicked_yx: Iterable[tuple[int, int]] = (),
    *,
    k: float = 1.0,
    rng: np.random.Generator,
) -> Click | None:
    """Draw the next corrective click.

    Parameters
    ----------
    pred, gt : (H, W) bool
        Predicted and true mask. At the first click `pred` is empty.
    clicked_yx : iterable of (y, x) int
        Pixels clicked so far.
    k : float
        See `click_candidates`.
    rng : numpy.random.Generator
        Decides between the candidates, which are numbered in row-major order.

    Returns
    -------
    Click or None
        None if the prediction is perfect (but for clicked pixels).

    Raises
    ------
    DataError
        If `gt` is empty at the first click.
    ShapeError
        If the masks are not of one 2-D shape.
    ConfigError
        If 0 <= k < 1.
    """
    pred, gt = _as_masks(pred, gt)
    clicked = list(clicked_yx)
    if not clicked and not gt.any():
        raise DataError(
            "cannot place a first click: expected a ground-truth mask with at least one pixel, "
            "got an empty one; leave this object out"
        )
    positive, chosen, inner = _choose(*_error_regions(pred, gt, clicked), k)
    if positive is None:
        return None
    flat = np.flatnonzero(inner)
    row, column = divmod(int(flat[rng.integers(flat.size)]), inner.shape[1])
    return Click(chosen.box.y0 + row, chosen.box.x0 + column, positive)


def _as_masks(
    pred: NDArray[np.bool_], gt: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    if pred.ndim != 2 or pred.shape != gt.shape:
        raise ShapeError(
            f"pred and gt must be two (H, W) masks of one shape, got {pred.shape} and {gt.shape}"
        )
    return pred.astype(bool, copy=False), gt.astype(bool, copy=False)


def _error_regions(
    pred: NDArray[np.bool_], gt: NDArray[np.bool_], clicked_yx: Iterable[tuple[int, int]]
) -> tuple[_ErrorRegion, _ErrorRegion]:
    missed, wrong = gt & ~pred, pred & ~gt
    for y, x in clicked_yx:
        # A click may lie outside a window into the image; it corrects nothing there.
        if 0 <= y < gt.shape[0] and 0 <= x < gt.shape[1]:
            missed[y, x] = wrong[y, x] = False
    return _error_region(missed), _error_region(wrong)


def _error_region(error: NDArray[np.bool_]) -> _ErrorRegion:
    box = Box.around(error)
    if box.area == 0:
        return _ErrorRegion(box, np.zeros((0, 0)))
    # Outside this box there is no error pixel, and beyond the image's border all counts as
    # background: one ring of background gives the distances of the whole image exactly.
    distance = distance_transform_edt(np.pad(error[box.slices], 1))
    return _ErrorRegion(box, distance[1:-1, 1:-1])


def _choose(
    missed: _ErrorRegion, wrong: _ErrorRegion, k: float
) -> tuple[bool | None, _ErrorRegion, NDArray[np.bool_]]:
    if 0 <= k < 1:
        raise ConfigError(
            f"k must be >= 1, or negative for the whole error region, got {k}; "
            "use 1.0 to evaluate and 1.7 to train"
        )
    chosen, positive = (missed, True) if missed.depth > wrong.depth else (wrong, False)
    if chosen.depth == 0:
        return None, chosen, np.zeros(chosen.distance.shape, bool)
    threshold = max(chosen.depth / (k + _K_EPS), 0.0)
    return positive, chosen, chosen.distance > threshold
