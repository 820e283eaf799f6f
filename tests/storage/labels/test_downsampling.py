from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.labels.downsampling import AxisRatio, majority


def coarser(labels: NDArray[np.generic], shape: tuple[int, int]) -> NDArray[np.generic]:
    rows, columns = (AxisRatio(*sizes) for sizes in zip(labels.shape, shape, strict=True))
    return majority(labels, rows.edges(0, shape[0]), columns.edges(0, shape[1]))


def by_hand(labels: NDArray[np.generic], shape: tuple[int, int]) -> NDArray[np.generic]:
    """One block after the other, as the text says it."""
    rows, columns = (AxisRatio(*sizes) for sizes in zip(labels.shape, shape, strict=True))
    result = np.zeros(shape, labels.dtype)
    y, x = rows.edges(0, shape[0]), columns.edges(0, shape[1])
    for i in range(shape[0]):
        for j in range(shape[1]):
            block = labels[y[i] : y[i + 1], x[j] : x[j + 1]]
            found, counts = np.unique(block[block != 0], return_counts=True)
            result[i, j] = found[counts.argmax()] if found.size else 0
    return result


def test_background_has_no_vote_and_the_smaller_of_equals_wins() -> None:
    labels = np.array([[0, 0, 9, 0], [0, 7, 3, 0], [5, 4, 0, 0], [4, 5, 0, 0]], np.uint32)
    np.testing.assert_array_equal(coarser(labels, (2, 2)), [[7, 3], [4, 0]])


def test_a_line_of_one_pixel_survives_every_level() -> None:
    labels = np.zeros((64, 64), np.uint32)
    labels[:, 37] = 2**32 - 1
    for size in (32, 16, 8, 4, 2, 1):
        labels = coarser(labels, (size, size))  # type: ignore[assignment]
        assert (labels.max(axis=1) == 2**32 - 1).all()


@settings(deadline=None, max_examples=80)
@given(
    st.integers(0, 10_000),
    st.tuples(st.integers(1, 23), st.integers(1, 23)),
    st.tuples(st.floats(1, 6), st.floats(1, 6)),
    st.sampled_from(["u4", "i2", ">u2", "u1", "i8"]),
)
def test_any_ratio_and_dtype_agrees_with_the_text(
    seed: int, shape: tuple[int, int], ratios: tuple[float, float], dtype: str
) -> None:
    labels = np.random.default_rng(seed).integers(0, 4, shape).astype(dtype)
    small = max(1, int(shape[0] / ratios[0])), max(1, int(shape[1] / ratios[1]))
    result = coarser(labels, small)
    assert result.dtype == labels.dtype
    np.testing.assert_array_equal(result, by_hand(labels, small))


def test_negative_labels_are_labels_too() -> None:
    labels = np.array([[-1, -1], [3, 0]], np.int32)
    assert coarser(labels, (1, 1)) == -1


@settings(deadline=None)
@given(st.integers(1, 400), st.data())
def test_every_fine_pixel_belongs_to_one_coarse_pixel(fine: int, data: st.DataObject) -> None:
    ratio = AxisRatio(fine, data.draw(st.integers(1, fine)))
    edges = ratio.edges(0, ratio.coarse)
    assert (edges[0], edges[-1]) == (0, fine)
    assert (np.diff(edges) > 0).all()
    start = data.draw(st.integers(0, fine - 1))
    stop = data.draw(st.integers(start + 1, fine))
    first, last = ratio.covering(start, stop)
    assert edges[first] <= start < edges[first + 1]
    assert edges[last - 1] < stop <= edges[last]
    np.testing.assert_array_equal(ratio.edges(first, last), edges[first : last + 1])


@pytest.mark.parametrize(("coarse", "factor"), [(50, 2), (51, 2), (34, 3), (33, 3), (40, 0)])
def test_whole_factors_are_found_whether_sizes_are_rounded_up_or_down(
    coarse: int, factor: int
) -> None:
    assert AxisRatio(101 if factor else 100, coarse).factor == factor


def test_levels_that_grow_are_refused() -> None:
    with pytest.raises(LabelsError, match="levels that shrink.*got 10 and then 11 pixels"):
        AxisRatio(10, 11)
