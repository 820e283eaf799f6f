from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from napari_hrsam.engine.prediction import mask_at_level0
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
    box, mask = mask_at_level0(logits, tile, shape)
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
    _, once = mask_at_level0(logits, Tile(3, 0, 0, 16), (120, 110))
    monkeypatch.setattr("napari_hrsam.engine.prediction.SAMPLE_PIXELS", 300)
    _, in_strips = mask_at_level0(logits, Tile(3, 0, 0, 16), (120, 110))
    np.testing.assert_array_equal(in_strips, once)
    assert 0.2 < once.mean() < 0.8


def test_a_mask_without_object_is_empty() -> None:
    _, mask = mask_at_level0(np.full((16, 16), -1, np.float32), Tile(0, 0, 0, 16), (10, 12))
    assert mask.shape == (10, 12)
    assert not mask.any()
