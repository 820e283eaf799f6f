"""Random fields that agree between levels and chunks."""

from __future__ import annotations

import numpy as np
import pytest

from napari_hrsam.geometry import Box
from napari_hrsam.sample.scene.noise import field, fields, hashed, lattice
from napari_hrsam.storage.resample import block_mean


@pytest.mark.parametrize("cell", [(4, 4), (32, 4), (64, 512), (4096, 4096)])
@pytest.mark.parametrize("level", [1, 2])
def test_a_coarse_pixel_is_the_mean_of_its_fine_ones(cell: tuple[int, int], level: int) -> None:
    step = 2**level
    fine = field(7, (*cell, 10.0), Box(64, 128, 320, 384), 0)
    coarse = field(7, (*cell, 10.0), Box(64 // step, 128 // step, 320 // step, 384 // step), level)
    assert fine is not None
    assert coarse is not None
    np.testing.assert_allclose(coarse, block_mean(fine[..., None], (step, step))[..., 0], atol=1e-4)


def test_a_field_is_the_same_in_every_box() -> None:
    whole = field(3, (16, 64, 1.0), Box(0, 0, 300, 300), 1)
    part = field(3, (16, 64, 1.0), Box(101, 57, 203, 300), 1)
    assert whole is not None
    assert part is not None
    np.testing.assert_array_equal(part, whole[101:203, 57:300])


def test_a_field_keeps_its_amplitude_and_varies_with_place_and_seed() -> None:
    box = Box(0, 0, 512, 512)
    values, other = field(1, (2, 2, 5.0), box, 0), field(2, (2, 2, 5.0), box, 0)
    assert values is not None
    assert other is not None
    assert np.abs(values).max() <= 5
    assert 1 < values.std() < 3
    assert abs(values.mean()) < 0.1
    assert abs(np.corrcoef(values.ravel(), other.ravel())[0, 1]) < 0.02


def test_cells_smaller_than_a_pixel_average_out() -> None:
    box = Box(0, 0, 8, 8)
    assert field(1, (4, 64, 1.0), box, 3) is None
    assert fields(1, [(4, 64, 1.0), (2, 2, 1.0)], box, 3) == 0
    both = fields(1, [(4, 64, 1.0), (64, 64, 1.0)], box, 3)
    np.testing.assert_array_equal(both, field(1 * 64 + 1, (64, 64, 1.0), box, 3))


def test_hashed_places_are_spread_and_differ_from_their_neighbours() -> None:
    values = lattice(5, np.arange(-200, 200), np.arange(1000, 1400))
    assert values.dtype == np.float32
    assert -1 <= values.min() < -0.999
    assert 0.999 < values.max() <= 1
    for axis in (0, 1):
        near = np.corrcoef(values.ravel(), np.roll(values, 1, axis).ravel())[0, 1]
        assert abs(near) < 0.01
    assert len(np.unique(hashed(np.arange(100_000, dtype=np.uint32)))) == 100_000
