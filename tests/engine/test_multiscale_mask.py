from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from napari_hrsam.engine.multiscale_mask import QUANTUM, MultiscaleMask, OutlineLayer, to_block
from napari_hrsam.geometry import Box, Tile


@settings(deadline=None, max_examples=60)
@given(st.integers(-2, 3), st.integers(0, 3), st.integers(0, 3), st.integers(0, 500))
def test_the_mask_is_the_thresholded_bilinear_interpolation(
    level: int, row: int, column: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = np.full((16, 16), -0.1, np.float32)
    y, x = rng.integers(0, 14, 2)
    logits[y : y + 3, x : x + 3] = rng.normal(size=(3, 3)) + 3
    tile = Tile(level, 8 * row, 8 * column, 16)
    shape = int(rng.integers(1, 200)), int(rng.integers(1, 200))
    field = MultiscaleMask(tile, logits, shape)
    box, mask = field.box, field.read(field.box)
    assert box == tile.box0.clip(shape)
    size = tile.box0.height
    whole = interpolate(torch.from_numpy(logits)[None, None], (size, size), mode="bilinear")
    part = box.shifted(-tile.box0.y0, -tile.box0.x0) if box.area else Box(0, 0, 0, 0)
    expected = whole[0, 0].numpy()[part.slices]
    certain = np.abs(expected) > 1e-4
    assert mask.shape == box.shape_yx
    assert ((mask if box.area else mask[:0, :0]) == (expected > 0))[certain].all()


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    field = MultiscaleMask(Tile(3, 0, 0, 16), logits, (120, 110))
    once = field.read(field.box)
    monkeypatch.setattr("napari_hrsam.engine.multiscale_mask.BLOCK_PX", 8)
    in_strips = field.read(field.box)
    np.testing.assert_array_equal(in_strips, once)
    assert 0.2 < once.mean() < 0.8


def test_a_mask_without_object_is_empty() -> None:
    mask = MultiscaleMask(Tile(0, 0, 0, 16), np.full((16, 16), -1, np.float32), (10, 12)).read(
        Box(0, 0, 10, 12)
    )
    assert mask.shape == (10, 12)
    assert not mask.any()


def layered(seed: int) -> MultiscaleMask:
    """A disc of 9 pixels at level 3, with a level-1 layer of random blocks over a part of it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:16, :16]
    logits = (4.5 - np.hypot(y - 7.6, x - 8.2)).astype(np.float32)
    field = MultiscaleMask(
        Tile(3, 8, 0, 16), logits, (190, 125), [((100, 60), True), ((100, 61), False)]
    )
    blocks = {
        (int(row), int(column)): to_block(rng.normal(size=(8, 8)).astype(np.float32))
        for row, column in rng.integers(0, 8, (9, 2))
    }
    return field.with_layer(OutlineLayer(1, 8, blocks))


boxes0 = st.tuples(
    st.integers(-9, 200), st.integers(-9, 130), st.integers(1, 90), st.integers(1, 90)
).map(lambda n: Box(n[0], n[1], n[0] + n[2], n[1] + n[3]))


@settings(deadline=None, max_examples=80)
@given(st.integers(0, 20), boxes0)
def test_a_field_reads_the_same_whole_and_in_parts(seed: int, box: Box) -> None:
    field = layered(seed)
    whole = np.zeros((400, 400), bool)
    whole[field.box.shifted(20, 20).slices] = field.read(field.box)
    np.testing.assert_array_equal(field.read(box), whole[box.shifted(20, 20).slices])


@settings(deadline=None, max_examples=120)
@given(st.integers(0, 20), boxes0)
def test_what_a_field_knows_of_a_box_is_true(seed: int, box: Box) -> None:
    field = layered(seed)
    known = field.fills(box)
    if known is not None:
        assert (field.read(box) == known).all()


def test_a_field_knows_large_parts_of_an_object_without_reading() -> None:
    logits = np.full((16, 16), -3, np.float32)
    logits[3:13, 3:13] = 3
    field = MultiscaleMask(Tile(3, 0, 0, 16), logits, (128, 128))
    assert field.fills(Box(40, 40, 80, 80)) is True
    assert field.fills(Box(0, 0, 20, 20)) is False
    assert field.fills(Box(20, 20, 40, 40)) is None
    assert field.fills(Box(-5, 40, 80, 80)) is None
    assert field.fills(Box(200, 0, 300, 20)) is False


def test_finer_cells_replace_the_coarse_logits_exactly_where_they_are() -> None:
    field = MultiscaleMask(Tile(2, 0, 0, 16), np.full((16, 16), -1, np.float32), (64, 64))
    block = np.full((8, 8), -2, np.float32)
    block[2:5, 1:7] = 0.01
    fine = field.with_layer(OutlineLayer(0, 8, {(2, 3): to_block(block)}))
    expected = np.zeros((64, 64), bool)
    expected[18:21, 25:31] = True
    np.testing.assert_array_equal(fine.read(fine.box), expected)
    assert (field.level, fine.level) == (2, 0)


@given(st.floats(-30, 30, width=32))
def test_cells_keep_the_sign_of_every_logit(value: float) -> None:
    block = to_block(np.full((1, 1), value, np.float32))
    assert (block[0, 0] > 0) == (np.float32(value) > 0)
    assert abs(block[0, 0] * QUANTUM - np.clip(value, -127 / 16, 127 / 16)) <= QUANTUM


def test_clicked_pixels_are_as_clicked() -> None:
    field = layered(0)
    assert field.read(Box(100, 60, 101, 62)).tolist() == [[True, False]]
