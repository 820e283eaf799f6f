"""Laws of the simulated clicks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from napari_hrsam.errors import ConfigError, DataError, ShapeError
from napari_hrsam.training.clicks import Click, click_candidates, next_click

Mask = NDArray[np.bool_]
masks = st.tuples(st.integers(1, 12), st.integers(1, 12)).flatmap(
    lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape))
)


def distances(error: Mask) -> NDArray[np.float64]:
    """Straight from the definition: over the whole image, with a border of background."""
    return distance_transform_edt(np.pad(error, 1))[1:-1, 1:-1]


def draw(pred: Mask, gt: Mask, clicked: list[tuple[int, int]], seed: int = 0) -> Click | None:
    return next_click(pred, gt, clicked, rng=np.random.default_rng(seed))


@given(masks, st.sampled_from([1.0, 1.7, 2.5, -1.0]), st.data())
@settings(deadline=None)
def test_candidates_are_those_of_the_definition(
    pair: tuple[Mask, Mask], k: float, data: st.DataObject
) -> None:
    pred, gt = pair
    places = st.tuples(st.integers(0, gt.shape[0] - 1), st.integers(0, gt.shape[1] - 1))
    clicked = data.draw(st.lists(places, max_size=4))
    fresh = np.ones(gt.shape, bool)
    for place in clicked:
        fresh[place] = False
    missed, wrong = distances(gt & ~pred & fresh), distances(pred & ~gt & fresh)
    found = click_candidates(pred, gt, clicked, k=k)
    np.testing.assert_allclose(found.distance_false_negative, missed, atol=1e-5)
    np.testing.assert_allclose(found.distance_false_positive, wrong, atol=1e-5)
    if missed.max() == wrong.max() == 0:
        assert found.positive is None
        assert not found.mask.any()
        return
    assert found.positive == (missed.max() > wrong.max())
    chosen = missed if found.positive else wrong
    expected = chosen > (0 if k < 0 else chosen.max() / (k + 1.19e-7))
    np.testing.assert_array_equal(found.mask, expected)


@given(masks, st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_a_click_corrects_an_error_and_is_a_candidate(pair: tuple[Mask, Mask], seed: int) -> None:
    pred, gt = pair
    if not gt.any():
        return
    click = draw(pred, gt, [], seed)
    if (pred == gt).all():
        assert click is None
        return
    assert click is not None
    assert gt[click.y, click.x] == click.positive
    assert pred[click.y, click.x] != click.positive
    assert click_candidates(pred, gt).mask[click.y, click.x]


@given(masks, st.integers(0, 5), st.integers(0, 5), st.integers(0, 99))
@settings(deadline=None)
def test_a_window_that_holds_all_errors_gives_the_click_of_the_whole_image(
    pair: tuple[Mask, Mask], top: int, left: int, seed: int
) -> None:
    pred, gt = pair
    gt = gt.copy()
    gt[0, 0] = True
    margin = ((top, 5 - top), (left, 5 - left))
    in_window = draw(pred, gt, [(0, 0)], seed)
    in_image = draw(np.pad(pred, margin), np.pad(gt, margin), [(top, left)], seed)
    if in_window is None:
        assert in_image is None
    else:
        assert in_image == Click(in_window.y + top, in_window.x + left, in_window.positive)


def test_the_image_border_is_an_edge_of_the_error() -> None:
    gt = np.zeros((9, 20), bool)
    gt[:, :10] = True
    found = click_candidates(np.zeros_like(gt), gt)
    assert set(map(tuple, np.argwhere(found.mask).tolist())) == {(4, 4), (4, 5)}
    assert found.distance_false_negative[4, 4] == 5


def test_a_tie_is_clicked_negative() -> None:
    pred, gt = np.zeros((5, 13), bool), np.zeros((5, 13), bool)
    pred[1:4, 1:4] = True
    gt[1:4, 8:11] = True
    assert draw(pred, gt, []) == Click(2, 2, False)


def test_clicked_pixels_are_no_longer_wrong() -> None:
    gt = np.zeros((7, 7), bool)
    gt[1:6, 1:6] = True
    assert draw(np.zeros_like(gt), gt, []) == Click(3, 3, True)
    again = click_candidates(np.zeros_like(gt), gt, [(3, 3)])
    assert not again.mask[3, 3]
    assert again.distance_false_negative[3, 3] == 0
    assert again.distance_false_negative[2, 3] == 1


def test_clicks_outside_a_window_change_nothing() -> None:
    gt = np.zeros((7, 7), bool)
    gt[1:6, 1:6] = True
    found = click_candidates(np.zeros_like(gt), gt, [(-4, 3), (3, 99)])
    np.testing.assert_array_equal(found.mask, click_candidates(np.zeros_like(gt), gt).mask)


def test_every_candidate_is_drawn_about_equally_often() -> None:
    gt = np.ones((2, 3), bool)
    clicks = [draw(np.zeros_like(gt), gt, [], seed) for seed in range(600)]
    counts = [sum(c == Click(y, x, True) for c in clicks) for y in range(2) for x in range(3)]
    assert sum(counts) == 600
    assert min(counts) > 60


def test_one_seed_gives_one_click() -> None:
    gt = np.ones((2, 30), bool)
    assert draw(~gt, gt, [], 5) == draw(~gt, gt, [], 5)


def test_a_perfect_mask_gets_no_click_and_neither_does_an_emptied_object() -> None:
    gt = np.zeros((4, 4), bool)
    assert draw(gt, gt, [(1, 1)]) is None
    gt[1, 1] = True
    assert draw(gt, gt, []) is None
    assert draw(np.zeros_like(gt), gt, [(1, 1)]) is None


def test_masks_are_left_as_they_are() -> None:
    pred, gt = np.zeros((4, 4), bool), np.ones((4, 4), bool)
    click_candidates(pred, gt, [(1, 1)])
    assert gt.all()
    assert not pred.any()


def test_an_empty_object_is_refused_at_the_first_click() -> None:
    with pytest.raises(DataError, match="ground-truth mask with at least one pixel"):
        draw(np.ones((3, 3), bool), np.zeros((3, 3), bool), [])


@pytest.mark.parametrize("k", [0.0, 0.5, 0.999])
def test_a_k_below_one_is_refused(k: float) -> None:
    with pytest.raises(ConfigError, match="k must be >= 1, or negative"):
        click_candidates(np.zeros((3, 3), bool), np.ones((3, 3), bool), k=k)


@pytest.mark.parametrize("shapes", [((3, 3), (3, 4)), ((3, 3, 1), (3, 3, 1))])
def test_masks_of_different_shapes_are_refused(shapes: tuple[tuple[int, ...], ...]) -> None:
    with pytest.raises(ShapeError, match="two \\(H, W\\) masks of one shape"):
        click_candidates(np.zeros(shapes[0], bool), np.zeros(shapes[1], bool))
