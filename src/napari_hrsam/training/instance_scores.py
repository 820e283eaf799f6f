"""All objects of an image at once: labels from dense maps, their scores, a classical baseline.

Labels are (H, W) integers, 0 for background. Nothing here needs torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from skimage.morphology import local_maxima, reconstruction
from skimage.segmentation import watershed

from napari_hrsam.engine.everything.growing import Rules, grow
from napari_hrsam.errors import DataError, ShapeError

_EIGHT = np.ones((3, 3), bool)


@dataclass(frozen=True, kw_only=True, slots=True)
class InstanceCounts:
    """Objects found, made up and missed; add the counts of images to pool them.

    Attributes
    ----------
    tp, fp, fn : int
        Predicted objects with a true one, predicted ones without, true ones without.
    """

    tp: int = 0
    fp: int = 0
    fn: int = 0

    def __add__(self, other: InstanceCounts) -> InstanceCounts:
        """Add the counts of other images."""
        return InstanceCounts(tp=self.tp + other.tp, fp=self.fp + other.fp, fn=self.fn + other.fn)

    @property
    def f1(self) -> float:
        """F1 in 0..1; 1 where there is nothing to find and nothing was found."""
        wrong = self.fp + self.fn
        return 2 * self.tp / (2 * self.tp + wrong) if self.tp or wrong else 1.0


def f1_at(
    pred_labels: NDArray[Any], true_labels: NDArray[Any], threshold: float = 0.5
) -> InstanceCounts:
    """Count objects that are found: one to one, best IoU first.

    Above 0.5 no object has two partners to choose from; below, the choice is greedy.

    Parameters
    ----------
    pred_labels, true_labels : (H, W) int
        0 is background; numbers need not follow one another.
    threshold : float, above 0 and at most 1
        Least IoU of a pair.

    Returns
    -------
    InstanceCounts
        With the score as ``.f1``.

    Raises
    ------
    ShapeError
        If the shapes differ.
    DataError
        If the threshold is not above 0 and at most 1.
    """
    if pred_labels.shape != true_labels.shape:
        raise ShapeError(
            "pred_labels and true_labels must have one shape, "
            f"got {pred_labels.shape} and {true_labels.shape}"
        )
    if not 0 < threshold <= 1:
        raise DataError(f"threshold must be above 0 and at most 1, got {threshold}")
    pred_ids, pred = np.unique(pred_labels, return_inverse=True)
    true_ids, true = np.unique(true_labels, return_inverse=True)
    pred_areas, true_areas = np.bincount(pred.ravel()), np.bincount(true.ravel())
    pairs, shared = np.unique(
        pred.ravel().astype(np.int64) * len(true_ids) + true.ravel(), return_counts=True
    )
    p, t = np.divmod(pairs, len(true_ids))
    iou = shared / (pred_areas[p] + true_areas[t] - shared)
    candidates = np.flatnonzero((pred_ids[p] != 0) & (true_ids[t] != 0) & (iou >= threshold))
    used_pred: set[int] = set()
    used_true: set[int] = set()
    for index in candidates[np.argsort(-iou[candidates], kind="stable")]:
        if p[index] not in used_pred and t[index] not in used_true:
            used_pred.add(int(p[index]))
            used_true.add(int(t[index]))
    tp = len(used_pred)
    num_pred, num_true = int(np.count_nonzero(pred_ids)), int(np.count_nonzero(true_ids))
    return InstanceCounts(tp=tp, fp=num_pred - tp, fn=num_true - tp)


def otsu_watershed(
    image: NDArray[Any],
    *,
    sigma_px: float = 1.0,
    seed_depth_px: float = 1.0,
    smallest_px: int = 20,
) -> NDArray[np.int32]:
    """Objects of an image by classical means: Otsu's threshold, then a watershed of distances.

    Objects may be brighter or darker than what is around them: the class that most of the image's
    border belongs to is the background.

    Parameters
    ----------
    image : (H, W) or (H, W, C), any number type
        Channels are averaged.
    sigma_px : float
        Smoothing of the image and of the distances.
    seed_depth_px : float
        Two peaks of the distance to the edge are two objects if the saddle between them lies more
        than this below the lower one.
    smallest_px : int
        Objects with fewer pixels are dropped.

    Returns
    -------
    (H, W) int32
        Objects 1, 2, ...; all 0 for an image of one value.

    Raises
    ------
    ShapeError
        If the image is neither (H, W) nor (H, W, C), or has no pixels.
    DataError
        If it holds values that are not finite.
    """
    if image.ndim not in (2, 3) or not image.size:
        raise ShapeError(f"image must be (H, W) or (H, W, C) with pixels, got {image.shape}")
    grey = image.astype(np.float64)
    grey = grey.mean(axis=2) if grey.ndim == 3 else grey
    if not np.isfinite(grey).all():
        raise DataError("image must be finite, got NaN or infinite values; replace them")
    if grey.min() == grey.max():
        return np.zeros(grey.shape, np.int32)
    smooth = ndimage.gaussian_filter(grey, sigma_px)
    bright = smooth > threshold_otsu(smooth)
    border = np.concatenate([bright[0], bright[-1], bright[1:-1, 0], bright[1:-1, -1]])
    mask = ~bright if border.mean() > 0.5 else bright
    mask = ndimage.binary_fill_holes(mask)
    # The image's border is no edge: an object that it cuts is as deep there as beside it.
    distance = ndimage.distance_transform_edt(mask)
    smooth = ndimage.gaussian_filter(distance, sigma_px)
    # The ground lies deeper than any saddle, so that objects shallower than the depth keep a peak.
    ground = -1 - seed_depth_px
    lowered = np.where(mask, smooth - seed_depth_px, ground)
    cut = reconstruction(lowered, np.where(mask, smooth, ground))
    seeds, _ = ndimage.label(local_maxima(cut, connectivity=2) & mask, structure=_EIGHT)
    return _without_small(watershed(-smooth, seeds, mask=mask), smallest_px)


def maps_to_labels(
    foreground: NDArray[Any],
    centre_distance: NDArray[Any],
    boundary_distance: NDArray[Any],
    *,
    # The defaults are the best of a search on 60 training images, with maps at stride 2 of tiles:
    # `benchmarks/dense_head.py --tune --data train-000.tar train-open2_000.tar`.
    foreground_above: float = 0.5,
    centre_below: float = 0.5,
    boundary_above: float = 0.5,
    sigma_px: float = 1.0,
    smallest_px: int = 40,
) -> NDArray[np.int32]:
    """Objects from the three maps of a dense head.

    Seeds are the connected areas that are foreground, near a centre and far from a boundary; a
    watershed of the boundary distance grows them through the foreground. Foreground that holds no
    seed is left out.

    Parameters
    ----------
    foreground : (H, W) float, 0..1
        Probability.
    centre_distance : (H, W) float, 0..1
        Distance to the object's centre: 0 there, 1 at its farthest pixel.
    boundary_distance : (H, W) float, 0..1
        Distance to the object's edge: 0 there, 1 at its deepest pixel.
    foreground_above, centre_below, boundary_above : float
        Thresholds of the maps; objects cover the foreground, the other two are for seeds.
    sigma_px : float
        Smoothing of the boundary distance before the watershed.
    smallest_px : int
        Objects with fewer pixels are dropped.

    Returns
    -------
    (H, W) int32
        Objects 1, 2, ...

    Raises
    ------
    ShapeError
        If the maps are not (H, W) of one shape.
    DataError
        If a map holds values that are not finite.

    References
    ----------
    Archit et al., "Segment Anything for Microscopy", 2025: the three maps.
    """
    maps = (foreground, centre_distance, boundary_distance)
    if foreground.ndim != 2 or any(map_.shape != foreground.shape for map_ in maps):
        raise ShapeError(f"the maps must be (H, W) of one shape, got {[m.shape for m in maps]}")
    rules = Rules(
        foreground_above=foreground_above,
        centre_below=centre_below,
        boundary_above=boundary_above,
        sigma=sigma_px,
        smallest=smallest_px,
        largest=4096,
    )
    return grow(np.stack(maps), rules).labels


def _without_small(labels: NDArray[Any], smallest_px: int) -> NDArray[np.int32]:
    """Drop objects with fewer pixels and number the others 1, 2, ..."""
    areas = np.bincount(labels.ravel())
    kept = areas >= smallest_px
    kept[0] = False
    numbers = np.where(kept, np.cumsum(kept), 0).astype(np.int32)
    renumbered: NDArray[np.int32] = numbers[labels]
    return renumbered


def cell_labels(
    labels: NDArray[Any], grid_hw: tuple[int, int], share: float = 0.5
) -> NDArray[np.int64]:
    """Label of every cell of an embedding.

    Parameters
    ----------
    labels : (H, W) int
    grid_hw : tuple of int
        Cells, height and width; H and W are multiples.
    share : float, 0..1
        A cell is inside if objects cover at least this share of it.

    Returns
    -------
    (h, w) int64
        The object with the most pixels in the cell (of equal ones the smaller number); 0 outside.

    Raises
    ------
    ShapeError
        If the labels cannot be cut into so many equal cells.
    """
    if labels.ndim != 2 or any(
        cells < 1 or size % cells for size, cells in zip(labels.shape, grid_hw, strict=True)
    ):
        raise ShapeError(f"labels must be (H, W) in multiples of {grid_hw}, got {labels.shape}")
    (height, width), (rows, columns) = labels.shape, grid_hw
    ids, index = np.unique(labels, return_inverse=True)
    blocks = index.reshape(rows, height // rows, columns, width // columns)
    cells = blocks.transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    # Counted object by object in every cell: (cells, objects).
    flat = np.arange(rows * columns)[:, None] * len(ids) + cells
    counts = np.bincount(flat.ravel(), minlength=rows * columns * len(ids)).reshape(-1, len(ids))
    counts[:, ids == 0] = 0
    inside = (counts.sum(axis=1) >= share * cells.shape[1]) & counts.any(axis=1)
    found = np.where(inside, ids[counts.argmax(axis=1)], 0)
    return found.astype(np.int64).reshape(grid_hw)


def prototype_auc(
    embedding: NDArray[Any], cells: NDArray[Any], prototype: int | None = None
) -> float:
    """How well one object's embedding tells the other objects from the background.

    Every cell is compared with the mean embedding of the prototype's cells, by cosine similarity.

    Parameters
    ----------
    embedding : (C, h, w) float
    cells : (h, w) int
        Label of every cell, 0 outside (see `cell_labels`).
    prototype : int or None
        The object; None for the mean over every object in turn.

    Returns
    -------
    float, 0..1
        Probability that a cell of another object is more similar than a cell of the background,
        equal ones counted half. 0.5 is chance.

    Raises
    ------
    ShapeError
        If embedding and cells do not belong together.
    DataError
        If the prototype has no cell, there is no other object or no background, or the embedding
        is not finite.
    """
    if embedding.ndim != 3 or cells.shape != embedding.shape[1:]:
        raise ShapeError(
            f"embedding must be (C, h, w) and cells (h, w), got {embedding.shape} and {cells.shape}"
        )
    vectors = embedding.reshape(embedding.shape[0], -1).T.astype(np.float64)
    if not np.isfinite(vectors).all():
        raise DataError("embedding must be finite, got NaN or infinite values")
    objects = np.unique(cells[cells != 0])
    if len(objects) < 2 or (cells != 0).all():
        raise DataError(
            "cells must hold two objects or more and background, "
            f"got objects {objects.tolist()} and {np.count_nonzero(cells == 0)} cells outside"
        )
    if prototype is not None and prototype not in objects:
        raise DataError(f"prototype must be one of the objects {objects.tolist()}, got {prototype}")
    flat = cells.ravel()
    lengths = np.linalg.norm(vectors, axis=1)
    values = []
    for one in objects if prototype is None else (prototype,):
        mean = vectors[flat == one].mean(axis=0)
        scale = lengths * np.linalg.norm(mean)
        similarity = np.divide(vectors @ mean, scale, out=np.zeros(len(flat)), where=scale > 0)
        others = (flat != 0) & (flat != one)
        values.append(_auc(similarity[others], similarity[flat == 0]))
    return float(np.mean(values))


def _auc(positive: NDArray[np.float64], negative: NDArray[np.float64]) -> float:
    """Area under the curve by the sum of ranks, equal values sharing their mean rank."""
    _, index, counts = np.unique(
        np.concatenate([positive, negative]), return_inverse=True, return_counts=True
    )
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[index]
    n, m = len(positive), len(negative)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))
