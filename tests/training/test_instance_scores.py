"""Labels from dense maps, their scores, and the classical baseline, on drawn discs."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy import ndimage

from napari_hrsam.errors import DataError, ShapeError
from napari_hrsam.training.instance_scores import (
    InstanceCounts,
    cell_labels,
    f1_at,
    maps_to_labels,
    otsu_watershed,
    prototype_auc,
)

# Row, column, radius: two pairs that touch, one alone, one cut by the border.
DISCS = ((30, 30, 14), (30, 55, 13), (80, 40, 10), (95, 52, 11), (85, 90, 12), (40, 119, 15))
SIZE = (128, 128)


def drawn(discs: tuple[tuple[int, int, int], ...] = DISCS) -> np.ndarray:
    """Labels; a pixel of two discs belongs to the one it lies deeper in."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    depth = np.stack([r - np.hypot(y - cy, x - cx) for cy, cx, r in discs])
    return np.where(depth.max(0) > 0, 1 + depth.argmax(0), 0)


def pictured(labels: np.ndarray, inside: float, outside: float) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 8, (*labels.shape, 3))
    picture = np.where(labels > 0, inside, outside)[..., None] + noise
    return picture.clip(0, 255).astype(np.uint8)


def maps(labels: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What a perfect head would tell."""
    centre, boundary = np.ones(labels.shape), np.zeros(labels.shape)
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]]
    for label in range(1, labels.max() + 1):
        mask = labels == label
        depth = ndimage.distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
        away = np.hypot(y - y[mask].mean(), x - x[mask].mean())
        centre[mask], boundary[mask] = away[mask] / away[mask].max(), depth[mask] / depth.max()
    return (labels > 0).astype(np.float32), centre, boundary


# ---------------------------------------------------------------------------------------- F1
def test_equal_labels_with_other_numbers_are_all_found() -> None:
    labels = drawn()
    other = np.array([0, 40, 7, 12, 90, 3, 5])[labels]
    assert f1_at(other, labels) == InstanceCounts(tp=6)
    assert f1_at(other, labels, 1.0).f1 == 1


def test_merged_split_missed_and_made_up_objects_are_counted() -> None:
    true = np.zeros((4, 20), int)
    true[:, 0:4], true[:, 4:8], true[:, 10:14], true[:, 15:16] = 1, 2, 3, 4
    pred = np.zeros_like(true)
    pred[:, 0:7] = 1  # merges 1 and 2: IoU 4/7 with the first, 3/8 with the second
    pred[:2, 10:14], pred[2:, 10:14] = 2, 3  # halves 3: IoU 0.5 each, one of them counts
    pred[:, 18:19] = 5
    assert f1_at(pred, true) == InstanceCounts(tp=2, fp=2, fn=2)
    assert f1_at(pred, true, 0.51) == InstanceCounts(tp=1, fp=3, fn=3)
    assert f1_at(pred, true).f1 == pytest.approx(2 * 2 / (4 + 4))


def test_below_a_half_the_best_pair_goes_first_and_nothing_is_matched_twice() -> None:
    true, pred = np.zeros((1, 30), int), np.zeros((1, 30), int)
    true[0, :10] = 1
    pred[0, :4], pred[0, 4:10] = 1, 2
    assert f1_at(pred, true, 0.3) == InstanceCounts(tp=1, fp=1, fn=0)
    assert f1_at(true, pred, 0.3) == InstanceCounts(tp=1, fp=0, fn=1)
    # 2..13 has 0.57 with 0..9 and 0.22 with 10..19; 0..1 has 0.2 with 0..9, which is taken.
    true, pred = np.repeat([1, 2], 10)[None], np.zeros((1, 20), int)
    pred[0, :2], pred[0, 2:14] = 1, 2
    assert f1_at(pred, true, 0.19) == InstanceCounts(tp=1, fp=1, fn=1)


def test_nothing_to_find_and_nothing_found_is_perfect_and_counts_add_up() -> None:
    nothing = np.zeros((4, 4), int)
    assert f1_at(nothing, nothing).f1 == 1
    assert f1_at(nothing + 1, nothing) == InstanceCounts(fp=1)
    assert f1_at(nothing, nothing + 1).f1 == 0
    pooled = InstanceCounts(tp=1, fp=2) + InstanceCounts(tp=2, fn=3)
    assert pooled == InstanceCounts(tp=3, fp=2, fn=3)


def test_f1_refuses_other_shapes_and_thresholds() -> None:
    with pytest.raises(ShapeError, match=r"one shape, got \(2, 2\) and \(2, 3\)"):
        f1_at(np.zeros((2, 2), int), np.zeros((2, 3), int))
    with pytest.raises(DataError, match="above 0 and at most 1, got 0"):
        f1_at(np.zeros((2, 2), int), np.zeros((2, 2), int), 0)


# ------------------------------------------------------------------------------- the baseline
@pytest.mark.parametrize(("inside", "outside"), [(190, 60), (60, 190)])
def test_baseline_separates_touching_discs_whatever_is_brighter(inside, outside) -> None:
    true = drawn()
    found = otsu_watershed(pictured(true, inside, outside))
    assert found.dtype == np.int32
    assert f1_at(found, true, 0.8) == InstanceCounts(tp=len(DISCS))


def test_baseline_takes_the_border_for_background_though_objects_cover_most() -> None:
    true = np.zeros(SIZE, int)
    true[6:122, 6:122] = 1
    found = otsu_watershed(pictured(true, 60, 190)[..., 0], seed_depth_px=5)
    assert f1_at(found, true, 0.9) == InstanceCounts(tp=1)


def test_baseline_fills_holes_and_keeps_objects_whole_that_the_border_cuts() -> None:
    true = drawn(((0, 64, 20), (70, 64, 22)))
    picture = pictured(np.where(drawn(((70, 64, 12),)) > 0, 0, true), 190, 60)
    assert f1_at(otsu_watershed(picture), true, 0.9) == InstanceCounts(tp=2)


def test_baseline_merges_peaks_that_are_shallower_than_asked_and_drops_small_objects() -> None:
    true = drawn(DISCS[:2])
    picture = pictured(true, 190, 60)
    assert otsu_watershed(picture).max() == 2
    assert otsu_watershed(picture, seed_depth_px=13).max() == 1
    small_too = drawn((*DISCS[:2], (90, 90, 4)))
    assert otsu_watershed(pictured(small_too, 190, 60), seed_depth_px=13).max() == 2
    area = np.bincount(true.ravel())[1:].min()
    kept = otsu_watershed(picture, smallest_px=int(area + 40))
    assert np.array_equal(np.unique(kept), [0, 1])
    assert not otsu_watershed(picture, smallest_px=10_000).any()


def test_baseline_finds_nothing_in_an_even_image_and_refuses_what_is_none() -> None:
    assert not otsu_watershed(np.full((20, 30), 7, np.uint16)).any()
    with pytest.raises(ShapeError, match="image must be"):
        otsu_watershed(np.zeros((2, 3, 4, 5)))
    with pytest.raises(DataError, match="must be finite"):
        otsu_watershed(np.array([[0, np.nan]]))


# ----------------------------------------------------------------------------------- the maps
def test_perfect_maps_give_the_objects_back_touching_or_not() -> None:
    true = drawn()
    assert ndimage.label(true > 0)[1] == 4
    found = maps_to_labels(*maps(true))
    assert found.dtype == np.int32
    assert sorted(np.unique(found)) == list(range(len(DISCS) + 1))
    assert f1_at(found, true, 0.9) == InstanceCounts(tp=len(DISCS))
    assert np.array_equal(found > 0, true > 0)


def test_noisy_maps_still_separate_touching_discs() -> None:
    true = drawn()
    rng = np.random.default_rng(1)
    noisy = [m + ndimage.gaussian_filter(rng.normal(0, 0.3, SIZE), 2) for m in maps(true)]
    assert f1_at(maps_to_labels(*noisy), true, 0.8) == InstanceCounts(tp=len(DISCS))


def test_each_map_is_needed_for_seeds() -> None:
    true = drawn(DISCS[:2])
    foreground, centre, boundary = maps(true)
    same = np.ones(SIZE)
    assert maps_to_labels(foreground, centre, boundary).max() == 2
    assert not maps_to_labels(foreground, same, boundary).any()
    assert not maps_to_labels(foreground, centre, 0 * same).any()
    assert not maps_to_labels(0 * same, centre, boundary).any()
    assert maps_to_labels(foreground, 0 * same, 1 * same).max() == 1
    left_out = foreground * (true != 2)
    assert f1_at(maps_to_labels(left_out, centre, boundary), true) == InstanceCounts(tp=1, fn=1)


def test_small_objects_of_the_maps_are_dropped_and_the_rest_numbered_on() -> None:
    true = drawn()
    areas = np.bincount(true.ravel())[1:]
    found = maps_to_labels(*maps(true), smallest_px=int(areas.min()) + 1)
    assert sorted(np.unique(found)) == list(range(len(DISCS)))


def test_maps_of_other_shapes_or_with_nan_are_refused() -> None:
    square, nan = np.zeros((4, 4)), np.full((4, 4), np.nan)
    with pytest.raises(ShapeError, match="one shape"):
        maps_to_labels(square, square, np.zeros((4, 5)))
    with pytest.raises(DataError, match="must be finite"):
        maps_to_labels(square, nan, square)


# ------------------------------------------------------------------------------- the embedding
def test_cells_take_the_object_that_covers_them_most() -> None:
    labels = np.zeros((4, 8), int)
    labels[:, :3], labels[:, 3:5], labels[:, 6] = 7, 2, 9
    assert cell_labels(labels, (1, 2)).tolist() == [[7, 2]]
    assert cell_labels(labels, (1, 2), share=0.6).tolist() == [[7, 0]]
    assert cell_labels(labels, (1, 4)).tolist() == [[7, 2, 2, 9]]
    assert cell_labels(labels, (1, 4), share=0.0).tolist() == [[7, 2, 2, 9]]
    assert not cell_labels(0 * labels, (2, 4), share=0.0).any()
    with pytest.raises(ShapeError, match=r"multiples of \(3, 4\)"):
        cell_labels(labels, (3, 4))


def test_separable_embedding_has_auc_one_and_a_reversed_one_zero() -> None:
    cells = cell_labels(drawn(), (32, 32))
    rng = np.random.default_rng(0)
    inside, outside = rng.normal(size=(2, 8))
    embedding = np.where(cells > 0, inside[:, None, None], outside[:, None, None])
    embedding = embedding * rng.uniform(0.5, 2, cells.shape) + rng.normal(0, 0.01, (8, 32, 32))
    assert prototype_auc(embedding, cells) == 1
    assert prototype_auc(embedding, cells, 3) == 1
    odd_one = np.where(cells == 3, outside[:, None, None], embedding)
    assert prototype_auc(odd_one, cells, 3) == 0


def test_noise_has_auc_one_half() -> None:
    cells = cell_labels(drawn(), (64, 64))
    embedding = np.random.default_rng(0).normal(size=(16, 64, 64))
    assert prototype_auc(embedding, cells) == pytest.approx(0.5, abs=0.03)
    assert prototype_auc(np.ones((4, 64, 64)), cells) == pytest.approx(0.5)
    assert prototype_auc(np.zeros((4, 64, 64)), cells) == pytest.approx(0.5)


def test_auc_is_the_share_of_pairs_in_the_right_order_ties_counted_half() -> None:
    cells = np.array([[1, 2, 2, 3, 0, 0, 0]])
    angle = np.array([0.0, 0.1, 0.5, 0.9, 0.5, 1.2, 0.3])
    embedding = np.stack([np.cos(angle), np.sin(angle)])[:, None]
    others, outside = angle[[1, 2, 3]], angle[[4, 5, 6]]
    closer = (others[:, None] < outside) + 0.5 * (others[:, None] == outside)
    assert prototype_auc(embedding, cells, 1) == pytest.approx(closer.mean())


def test_auc_refuses_what_cannot_be_told_apart() -> None:
    embedding, cells = np.ones((2, 1, 3)), np.array([[1, 2, 0]])
    with pytest.raises(ShapeError, match="embedding must be"):
        prototype_auc(embedding, cells[0])
    with pytest.raises(DataError, match="prototype must be one of the objects.*got 3"):
        prototype_auc(embedding, cells, 3)
    with pytest.raises(DataError, match="two objects or more"):
        prototype_auc(embedding, np.array([[1, 1, 0]]))
    with pytest.raises(DataError, match="and 0 cells outside"):
        prototype_auc(embedding, np.array([[1, 2, 2]]))
    with pytest.raises(DataError, match="must be finite"):
        prototype_auc(embedding * np.inf, cells)


def test_module_loads_no_torch() -> None:
    code = "import sys, napari_hrsam.training.instance_scores; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
