"""Masks from outlines and run lengths."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from skimage.measure import grid_points_in_poly

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import RegionMask
from napari_hrsam.storage.export.coco import compressed
from napari_hrsam.storage.importing import runs
from napari_hrsam.storage.importing.rle import mask_of, uncompressed
from napari_hrsam.storage.importing.runs import PolygonShape

WHOLE = Box(0, 0, 30, 40)


def ring(*corners: tuple[float, float]) -> np.ndarray:
    return np.array(corners, float)


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), num=st.integers(3, 8))
def test_a_polygon_holds_the_pixels_whose_centres_lie_inside(seed: int, num: int) -> None:
    rng = np.random.default_rng(seed)
    # Some corners lie outside; none makes an edge through a centre.
    corners = rng.uniform((-10, -10), (40, 50), (num, 2))
    mask = PolygonShape([[corners]]).within(WHOLE)
    wanted = grid_points_in_poly(WHOLE.shape_yx, corners - 0.5)
    np.testing.assert_array_equal(mask.read(WHOLE), wanted)
    assert mask.area == wanted.sum()
    assert mask.box == Box.around(wanted) or mask.area == 0


def test_neighbours_share_no_pixel_and_leave_none_out() -> None:
    # The edge between them leads through many centres.
    left = PolygonShape([[ring((0, 0), (0, 5.5), (30, 35.5), (30, 0))]]).within(WHOLE)
    right = PolygonShape([[ring((0, 40), (30, 40), (30, 35.5), (0, 5.5))]]).within(WHOLE)
    assert (left.read(WHOLE) ^ right.read(WHOLE)).all()


def test_holes_are_left_out_and_parts_that_overlap_are_joined() -> None:
    outer = ring((2, 2), (2, 20), (20, 20), (20, 2))
    hole = ring((5, 5), (10, 5), (10, 10), (5, 10))
    other = ring((15, 15), (15, 30), (25, 30), (25, 15))
    mask = PolygonShape([[outer, hole], [other], [other + 1]]).within(WHOLE)
    wanted = np.zeros(WHOLE.shape_yx, bool)
    wanted[2:20, 2:20] = True
    wanted[5:10, 5:10] = False
    wanted[15:25, 15:30] = wanted[16:26, 16:31] = True
    np.testing.assert_array_equal(mask.read(WHOLE), wanted)
    assert isinstance(mask, RegionMask)
    assert mask.fills(Box(11, 3, 19, 19)) is True
    assert mask.fills(Box(5, 5, 10, 10)) is False
    assert mask.fills(Box(4, 4, 12, 12)) is None
    assert mask.fills(Box(-5, -5, 1, 50)) is False


@settings(deadline=None)
@given(
    pixels=arrays.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 9))),
    corner=st.tuples(st.integers(-3, 6), st.integers(-3, 6)),
    as_text=st.booleans(),
)
def test_run_lengths_come_back(pixels: np.ndarray, corner: tuple[int, int], as_text: bool) -> None:
    flat = pixels.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff(np.r_[0, edges, len(flat)])
    counts = np.r_[0, counts] if flat[0] else counts
    told = compressed(counts) if as_text else counts.tolist()
    mask, _ = mask_of({"size": list(pixels.shape), "counts": told}, (0, 0))
    np.testing.assert_array_equal(mask.read(Box.of_shape(pixels.shape)), pixels)
    # Also another box, and moved.
    moved, _ = mask_of({"size": list(pixels.shape), "counts": told}, (2, 1))
    box = Box(*corner, corner[0] + 5, corner[1] + 7)
    padded = np.pad(pixels, 20)
    wanted = padded[box.shifted(20 - 2, 20 - 1).slices]
    np.testing.assert_array_equal(moved.read(box), wanted)
    np.testing.assert_array_equal(moved.within(box).read(box), wanted)
    assert moved.within(box).area == wanted.sum()


@settings(deadline=None)
@given(counts=st.lists(st.integers(0, 2**40), max_size=9))
def test_compressed_counts_are_the_inverse_of_the_export(counts: list[int]) -> None:
    packed = compressed(np.array(counts, np.int64)) if counts else ""
    assert uncompressed(packed).tolist() == counts


@pytest.mark.parametrize(
    "told",
    [
        {"size": [4, 4], "counts": [-1, 5]},
        {"size": [4, 4], "counts": [3, 20]},
        {"size": [4, 4], "counts": [2**62, 2**62, 2**62, 2**62 + 5]},
        {"size": [4, 4], "counts": [2**70]},
        {"size": [4, 4], "counts": [1.5, 2]},
        {"size": [4, 4], "counts": [[1, 2]]},
        {"size": [4, 4], "counts": "é"},
        {"size": [4, 4], "counts": "\x7f"},
        {"size": [4, 4], "counts": "o" * 40},
        {"size": [4, 4], "counts": "p" * 40 + "0"},
        {"size": [4, 4], "counts": None},
        {"size": [0, 4], "counts": [0]},
        {"size": [4], "counts": [4]},
        {"size": "44", "counts": [4]},
        {"counts": [4]},
        {"size": [1, 2**31], "counts": [0, 2**31]},
    ],
)
def test_run_lengths_that_cannot_be_are_refused(told: dict[str, object]) -> None:
    with pytest.raises(LabelsError, match="run lengths"):
        mask_of(told, (0, 0))


def test_an_object_of_30000_px_takes_the_memory_of_its_outline() -> None:
    angle = np.linspace(0, 2 * np.pi, 5000, endpoint=False)
    circle = np.stack([np.sin(angle), np.cos(angle)], 1) * 15_000 + 20_000
    mask = PolygonShape([[circle]]).within(Box(0, 0, 10**5, 10**5))
    assert len(mask.starts) < 31_000
    assert abs(mask.area / (np.pi * 15_000**2) - 1) < 1e-4
    assert mask.fills(Box(20_000, 20_000, 20_512, 20_512)) is True
    assert mask.read(Box(4990, 19_990, 5010, 20_010)).any()


def test_an_outline_that_crosses_too_many_rows_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "MAX_RUNS", 1000)
    corners = np.array([(0, 0), (10**9, 1)] * 300, float)
    with pytest.raises(LabelsError, match="crosses rows at most 2,000 times, got 18,000"):
        PolygonShape([[corners]]).within(WHOLE)
