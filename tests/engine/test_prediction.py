"""What a prediction tells of a mask that may be larger than memory."""

from __future__ import annotations

import numpy as np
import pytest

from napari_hrsam.engine.multiscale_mask import MultiscaleMask
from napari_hrsam.engine.prediction import Prediction
from napari_hrsam.errors import SessionError
from napari_hrsam.geometry import Box, Tile


def prediction(level: int, shape: tuple[int, int], clicks: object = ()) -> Prediction:
    logits = np.full((64, 64), -1, np.float32)
    logits[10:30, 20:45] = 2
    field = MultiscaleMask(Tile(level, 32, 0, 64), logits, shape, clicks)  # type: ignore[arg-type]
    return Prediction(
        multiscale=field,
        iou=0.5,
        logits=logits[::4, ::4],
        is_cut=False,
        seconds={},
    )


@pytest.mark.parametrize("level", [-2, 0, 2, 5])
def test_the_level_mask_is_the_mask_in_pixels_of_the_level(level: int) -> None:
    found = prediction(level, (2500, 1300))
    step = 2 ** max(level, 0)
    assert found.level_downsample == step
    middles = found.mask[step // 2 :: step, step // 2 :: step]
    height, width = found.level_mask.shape
    assert (height, width) == tuple(-(-side // step) for side in found.box.shape_yx)
    inside = found.level_mask[: middles.shape[0], : middles.shape[1]]
    np.testing.assert_array_equal(middles, inside)
    assert bool(found)


def test_a_mask_of_billions_of_pixels_is_told_in_parts_only() -> None:
    found = prediction(10, (100_000, 100_000), [((40_000, 70), False), ((70_000, 50_000), True)])
    with pytest.raises(SessionError, match="at most 268,435,456 pixels.*level_mask"):
        _ = found.mask
    assert found.region.read(Box(60_000, 30_000, 60_100, 30_100)).all()
    assert found.level_mask.shape == (64, 64)
    assert found.level_mask[(70_000 - 32 * 1024) // 1024, 50_000 // 1024]
    assert found.extent.contains((60_000, 30_000))
    assert not found.extent.contains((35_000, 30_000))


def test_masks_cannot_be_changed_by_accident() -> None:
    found = prediction(2, (2500, 1300))
    for mask in (found.mask, found.level_mask):
        with pytest.raises(ValueError, match="read-only"):
            mask[0, 0] = True


def test_a_mask_without_object_is_false_and_of_no_extent() -> None:
    logits = np.full((64, 64), -1, np.float32)
    field = MultiscaleMask(Tile(2, 0, 0, 64), logits, (900, 900))
    found = Prediction(multiscale=field, iou=0.0, logits=logits[::4, ::4], is_cut=False, seconds={})
    assert not found
    assert found.extent.area == 0
