"""Size, place and shape of every object of a label image, added up region by region.

Sums over regions are joined as means and squares around them, which keeps all digits wherever in a
large image an object lies.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box
from napari_hrsam.storage.labels.regions import (
    Neighbourhood,
    Progress,
    RowDone,
    neighbourhoods,
)
from napari_hrsam.storage.labels.stored import StoredLabels

MAX_PARTS = 200_000
"""Rows of partial sums that are kept before they are joined."""

_SUMS = [(name, "f8") for name in ("area", "y", "x", "yy", "xx", "xy", "rows", "columns", "across")]
_ENDS = [(name, "i8") for name in ("y0", "x0", "y1", "x1")]
_NOWHERE = np.iinfo(np.int64).max


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ObjectTable:
    """The objects of a label image, sorted by label; every array has one entry per object.

    Attributes
    ----------
    labels : (N,) integer, dtype of the label image
        Their ids; none is 0.
    area_px : (N,) int
        Number of pixels.
    centroid_yx : (N, 2) float
        Mean place in level-0 pixels, pixel centres at integers.
    covariance : (N, 3) float
        Mean squares around the centroid in level-0 pixels: yy, xx, xy.
    boxes : (N, 4) int
        Smallest box y0, x0, y1, x1 (half-open) that holds the object.
    crossings : (N, 3) int
        How often lines along rows, along columns and along both diagonals cross its outline.
    """

    labels: NDArray[Any]
    area_px: NDArray[np.int64]
    centroid_yx: NDArray[np.float64]
    covariance: NDArray[np.float64]
    boxes: NDArray[np.int64]
    crossings: NDArray[np.int64]

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.labels)

    def box(self, index: int) -> Box:
        """Return the smallest box that holds an object."""
        return Box(*self.boxes[index].tolist())

    def perimeters(self, scale_yx: tuple[float, float] = (1.0, 1.0)) -> NDArray[np.float64]:
        """Estimate the lengths of the outlines by the Crofton formula over four directions.

        Parameters
        ----------
        scale_yx : (float, float)
            Height and width of a pixel.

        Returns
        -------
        (N,) float
            In the unit of the scale.
        """
        height, width = scale_yx
        # A direction stands for the angles that are nearest to it; lines lie as far apart as the
        # pixels put them.
        angle = math.atan2(height, width)
        weights = np.array(
            [
                angle * height,
                (math.pi / 2 - angle) * width,
                math.pi / 4 * height * width / math.hypot(height, width),
            ]
        )
        lengths: NDArray[np.float64] = self.crossings @ weights / 2
        return lengths

    def axes(
        self, scale_yx: tuple[float, float] = (1.0, 1.0)
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Compute the lengths of the axes of the ellipses with the same second moments.

        A pixel counts as a point, as in scikit-image, so that one pixel has no extent.

        Returns
        -------
        (N,) float, (N,) float
            Major and minor axis, whole lengths, in the unit of the scale.
        """
        height, width = scale_yx
        yy = self.covariance[:, 0] * height**2
        xx = self.covariance[:, 1] * width**2
        xy = self.covariance[:, 2] * height * width
        middle, spread = (yy + xx) / 2, np.hypot((yy - xx) / 2, xy)
        return 4 * np.sqrt(middle + spread), 4 * np.sqrt(np.maximum(middle - spread, 0))


def measure_objects(
    labels: StoredLabels,
    plane: tuple[int, ...],
    *,
    box: Box | None = None,
    only: Collection[int] | None = None,
    progress: Progress | None = None,
) -> ObjectTable:
    """Measure every object of one plane; see `neighbourhoods` for the arguments and errors."""
    table = _Sums(labels.dtype)
    for found in neighbourhoods(labels, plane, box=box, only=only, progress=progress):
        if not isinstance(found, RowDone):
            table.add(_region_sums(found))
    return table.objects()


class _Sums:
    """Partial sums, joined now and then so that their number stays that of the objects."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self._dtype = np.dtype([("label", dtype), *_SUMS, *_ENDS])
        self._parts: list[NDArray[Any]] = []
        self._num = 0
        self._limit = MAX_PARTS

    def add(self, part: NDArray[Any]) -> None:
        self._parts.append(part)
        self._num += len(part)
        if self._num > self._limit:
            self._parts = [_joined(np.concatenate(self._parts))]
            self._num = len(self._parts[0])
            self._limit = MAX_PARTS + 2 * self._num

    def objects(self) -> ObjectTable:
        sums = _joined(np.concatenate(self._parts or [np.empty(0, self._dtype)]))
        area = sums["area"]
        covariance = np.stack([sums[name] / area for name in ("yy", "xx", "xy")], axis=1)
        ends = np.stack([sums[name] for name in ("y0", "x0", "y1", "x1")], axis=1)
        counts = np.stack([sums[name] for name in ("rows", "columns", "across")], axis=1)
        return ObjectTable(
            labels=sums["label"].copy(),
            area_px=area.astype(np.int64),
            centroid_yx=np.stack([sums["y"], sums["x"]], axis=1),
            covariance=covariance,
            boxes=ends,
            crossings=counts.astype(np.int64),
        )


def _joined(parts: NDArray[Any]) -> NDArray[Any]:
    """Join the sums of equal labels: ``y`` and ``x`` are means, ``yy`` and such around them."""
    if not len(parts):
        return parts
    parts = parts[np.argsort(parts["label"], kind="stable")]
    is_first = np.r_[True, parts["label"][1:] != parts["label"][:-1]]
    starts = np.flatnonzero(is_first)
    group = np.cumsum(is_first) - 1
    joined = np.empty(len(starts), parts.dtype)
    joined["label"] = parts["label"][starts]
    for name in ("area", "rows", "columns", "across"):
        joined[name] = np.add.reduceat(parts[name], starts)
    for name in ("y0", "x0"):
        joined[name] = np.minimum.reduceat(parts[name], starts)
    for name in ("y1", "x1"):
        joined[name] = np.maximum.reduceat(parts[name], starts)
    away = {}
    for name in ("y", "x"):
        # Relative to the first part: the products stay exact far from the image's corner.
        first = parts[name][starts][group]
        shift = np.add.reduceat(parts["area"] * (parts[name] - first), starts)
        area = np.maximum(joined["area"], 1)
        joined[name] = parts[name][starts] + shift / area
        away[name] = parts[name] - joined[name][group]
    for name in ("yy", "xx", "xy"):
        moved = parts["area"] * away[name[0]] * away[name[1]]
        joined[name] = np.add.reduceat(parts[name] + moved, starts)
    return joined


def _region_sums(found: Neighbourhood) -> NDArray[Any]:
    """Add up one region."""
    values = found.values
    label, y, x, length = _runs(values[1:, 1:])
    crossed = [
        _crossed(values[1:, :-1], values[1:, 1:]),
        _crossed(values[:-1, 1:], values[1:, 1:]),
        np.concatenate(
            [
                _crossed(values[:-1, :-1], values[1:, 1:]),
                _crossed(values[:-1, 1:], values[1:, :-1]),
            ]
        ),
    ]
    names = np.unique(np.concatenate([label, *map(np.unique, crossed)]))
    sums = np.zeros(len(names), np.dtype([("label", values.dtype), *_SUMS, *_ENDS]))
    sums["label"] = names
    for name, labels in zip(("rows", "columns", "across"), crossed, strict=True):
        sums[name] = np.bincount(np.searchsorted(names, labels), minlength=len(names))
    _add_moments(sums, np.searchsorted(names, label), y, x, length)
    _add_ends(sums, np.searchsorted(names, label), y, x, length)
    for name in ("y", "y0", "y1"):
        sums[name] += found.y0
    for name in ("x", "x0", "x1"):
        sums[name] += found.x0
    _clear_ends(sums)
    return sums


def _runs(
    values: NDArray[Any],
) -> tuple[NDArray[Any], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Cut rows into runs of one label: label, row, first column and length, background left out."""
    is_first = np.ones(values.shape, bool)
    np.not_equal(values[:, 1:], values[:, :-1], out=is_first[:, 1:])
    places = np.flatnonzero(is_first)
    label = values[is_first]
    length = np.diff(places, append=values.size)
    kept = label != 0
    y, x = np.divmod(places[kept], values.shape[1])
    return label[kept], y, x, length[kept]


def _crossed(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """Return the labels of the pairs of pixels that differ, each label of a pair on its own."""
    differ = first != second
    both = np.concatenate([first[differ], second[differ]])
    labels: NDArray[Any] = both[both != 0]
    return labels


def _add_moments(
    sums: NDArray[Any],
    group: NDArray[np.intp],
    y: NDArray[np.int64],
    x: NDArray[np.int64],
    length: NDArray[np.int64],
) -> None:
    """Fill in area, means and squares around them; whole numbers until the division."""

    def total(values: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.bincount(group, values, minlength=len(sums)).astype(np.float64, copy=False)

    along = x * length + length * (length - 1) // 2
    squares = length * x * x + x * length * (length - 1)
    squares += (length - 1) * length * (2 * length - 1) // 6
    sums["area"] = area = total(length)
    some = np.maximum(area, 1)
    sum_y, sum_x = total(length * y), total(along)
    sums["y"], sums["x"] = sum_y / some, sum_x / some
    sums["yy"] = total(length * y * y) - sum_y * sums["y"]
    sums["xx"] = total(squares) - sum_x * sums["x"]
    sums["xy"] = total(along * y) - sum_y * sums["x"]


def _add_ends(
    sums: NDArray[Any],
    group: NDArray[np.intp],
    y: NDArray[np.int64],
    x: NDArray[np.int64],
    length: NDArray[np.int64],
) -> None:
    """Fill in the smallest boxes."""
    for name in ("y0", "x0"):
        sums[name] = np.iinfo(np.int32).max
    np.minimum.at(sums["y0"], group, y)
    np.minimum.at(sums["x0"], group, x)
    np.maximum.at(sums["y1"], group, y + 1)
    np.maximum.at(sums["x1"], group, x + length)


def _clear_ends(sums: NDArray[Any]) -> None:
    """Let the box of what has no pixel here, only a neighbour's border, count for nothing."""
    absent = sums["area"] == 0
    for name in ("y0", "x0"):
        sums[name][absent] = _NOWHERE
    for name in ("y1", "x1"):
        sums[name][absent] = -1
