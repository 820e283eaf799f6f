from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_hrsam.engine.click_correction import (
    MAX_RADIUS_SHARE,
    MIN_RADIUS_PX,
    enforce_clicks,
    to_low_res,
)
from napari_hrsam.errors import ShapeError

SIZE = 64


def corrected(
    logits: NDArray[np.float32],
    clicks: list[tuple[tuple[float, float], bool]],
    pixels: NDArray[np.uint8] | None = None,
) -> NDArray[np.float32]:
    pixels = np.zeros((*logits.shape, 3), np.uint8) if pixels is None else pixels
    points = np.array([point for point, _ in clicks], float).reshape(-1, 2)
    return enforce_clicks(logits, pixels, points, np.array([label for _, label in clicks], bool))


def flat(value: float, size: int = SIZE) -> NDArray[np.float32]:
    return np.full((size, size), value, np.float32)


places = st.tuples(st.integers(0, SIZE - 1), st.integers(0, SIZE - 1))
# Clicks crowd in a corner too, where they hamper each other and meet the border.
crowded = st.tuples(st.integers(0, 4), st.integers(0, 4))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.tuples(places | crowded, st.booleans()), min_size=1, max_size=15),
    st.integers(0, 1000),
    st.sampled_from([-20.0, -0.5, 0.0, 0.5, 20.0]),
)
def test_all_clicks_are_obeyed_and_the_newest_wins_on_a_pixel(
    clicks: list[tuple[tuple[int, int], bool]], seed: int, bias: float
) -> None:
    rng = np.random.default_rng(seed)
    logits = (rng.normal(size=(SIZE, SIZE)) * 4 + bias).astype(np.float32)
    pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    before = logits.copy()
    after = corrected(logits, clicks, pixels)
    for place, label in dict(clicks).items():
        assert (after[place] > 0) == label
    assert after.dtype == np.float32
    assert np.isfinite(after).all()
    np.testing.assert_array_equal(logits, before)


def test_nothing_changes_where_the_network_obeys() -> None:
    logits = flat(-1)
    logits[10:20, 10:20] = 1
    assert corrected(logits, [((12.0, 12.0), True), ((30.0, 30.0), False)]) is logits
    assert corrected(logits, []) is logits


@pytest.mark.parametrize("label", [True, False])
def test_a_correction_is_at_least_a_small_disc_and_stays_near(label: bool) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    after = corrected(flat(-9 if label else 9, 512), [((200.0, 300.0), label)], noise)
    y, x = np.mgrid[:512, :512]
    distance = np.hypot(y - 200, x - 300)
    assert ((after > 0) == label)[distance <= MIN_RADIUS_PX].all()
    assert ((after > 0) != label)[distance > MAX_RADIUS_SHARE * 512].all()


def test_a_correction_follows_the_colour() -> None:
    pixels = np.zeros((256, 256, 3), np.uint8)
    pixels[:, 128:] = 200
    after = corrected(flat(-1, 256), [((128.0, 120.0), True)], pixels)
    mask = after > 0
    assert mask[128, 110:126].all()
    assert not mask[:, 131:].any()


def test_a_correction_goes_little_beyond_the_border_of_the_mask() -> None:
    logits = flat(-3, 512)
    logits[:, 200:240] = 3
    after = corrected(logits, [((256.0, 209.0), False)])
    # The border is 10 px away from the click, so that the change ends 17.5 px away from it.
    assert (after[:, 227:] == logits[:, 227:]).all()
    assert not (after[256, 200:218] > 0).any()


def test_clicks_of_the_other_sign_limit_a_correction() -> None:
    after = corrected(flat(-3, 256), [((128.0, 128.0), True), ((128.0, 136.0), False)])
    assert after[128, 128] > 0
    assert (after[:, 134:] <= 0).all()
    neighbours = corrected(flat(-3), [((5.0, 5.0), True), ((5.0, 6.0), False), ((6.0, 5.0), False)])
    assert np.argwhere(neighbours > 0).tolist() == [[5, 5]]


def test_surer_pixels_of_the_right_sign_keep_their_logits() -> None:
    logits = flat(-3)
    logits[30:34, 34:38] = 8
    after = corrected(logits, [((32.0, 31.0), True)])
    assert (after[30:34, 34:38] == 8).all()


def test_clicks_outside_count_at_the_border() -> None:
    assert corrected(flat(-3), [((-7.0, 99.0), True)])[0, SIZE - 1] > 0


def test_the_change_at_low_resolution_is_its_mean() -> None:
    change = np.random.default_rng(0).normal(size=(8, 12)).astype(np.float32)
    assert to_low_res(change).shape == (2, 3)
    assert to_low_res(change)[1, 2] == pytest.approx(change[4:, 8:].mean())


def test_a_correction_takes_milliseconds() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (512, 512, 3), np.uint8)
    seconds = []
    for _ in range(5):
        started = time.thread_time()
        corrected(flat(-3, 512), [((256.0, 256.0), True)], pixels)
        seconds.append(time.thread_time() - started)
    # Of the processor's time: what else runs on the machine does not count.
    assert min(seconds) < 1


def test_shapes_must_belong_together() -> None:
    with pytest.raises(ShapeError, match=r"pixels \(H, W, 3\) for logits \(H, W\).*\(8, 8, 3\)"):
        enforce_clicks(flat(0), np.zeros((8, 8, 3), np.uint8), np.zeros((0, 2)), np.zeros(0, bool))
    with pytest.raises(ShapeError, match="1 points, 2 labels"):
        enforce_clicks(
            flat(0), np.zeros((64, 64, 3), np.uint8), np.zeros((1, 2)), np.zeros(2, bool)
        )
