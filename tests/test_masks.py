"""Masks that are read part by part."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_hrsam.errors import ShapeError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import BLOCK_PX, ArrayMask, BlockMask, RegionMask


def discs(box: Box) -> np.ndarray:
    """A large disc with a hole: full, mixed and empty blocks."""
    y, x = np.mgrid[box.y0 : box.y1, box.x0 : box.x1]
    distance = np.hypot(y - 1200, x - 1100)
    return (distance < 800) & (distance > 40)


def block_mask(box: Box) -> BlockMask:
    return BlockMask(box, discs)


boxes = st.tuples(*(st.integers(-50, 2600) for _ in range(4))).map(
    lambda n: Box(min(n[0], n[2]), min(n[1], n[3]), max(n[0], n[2]) + 1, max(n[1], n[3]) + 1)
)
OWN = Box(10, 7, 2410, 2309)
MASK = block_mask(OWN)
WHOLE = discs(OWN)


def expected(box: Box) -> np.ndarray:
    dense = np.zeros(box.shape_yx, bool)
    common = box.intersection(OWN)
    if common.area:
        dense[common.shifted(-box.y0, -box.x0).slices] = WHOLE[
            common.shifted(-OWN.y0, -OWN.x0).slices
        ]
    return dense


@pytest.mark.parametrize("mask", [MASK, ArrayMask(OWN, WHOLE)], ids=["blocks", "array"])
@settings(max_examples=40, deadline=None)
@given(box=boxes)
def test_any_box_reads_as_the_dense_mask_does(mask: RegionMask, box: Box) -> None:
    np.testing.assert_array_equal(mask.read(box), expected(box))


@pytest.mark.parametrize("mask", [MASK, ArrayMask(OWN, WHOLE)], ids=["blocks", "array"])
@settings(max_examples=80, deadline=None)
@given(box=boxes)
def test_what_a_mask_knows_of_a_box_is_true(mask: RegionMask, box: Box) -> None:
    known = mask.fills(box)
    if known is not None:
        assert (expected(box) == known).all()


def test_full_and_empty_blocks_are_known_without_reading() -> None:
    assert MASK.fills(Box(1100, 600, 1400, 900)) is True
    assert MASK.fills(Box(0, 0, 300, 300)) is False
    assert MASK.fills(Box(1190, 1090, 1210, 1110)) is None
    assert MASK.fills(Box(3000, 3000, 3100, 3100)) is False


def test_only_the_blocks_of_the_outline_take_memory() -> None:
    bare = np.count_nonzero(
        [
            MASK.fills(Box(y, x, y + 1, x + 1)) is None
            for y in range(11, 2400, BLOCK_PX)
            for x in range(8, 2300, BLOCK_PX)
        ]
    )
    assert MASK.num_bytes <= bare * BLOCK_PX**2 // 8
    assert MASK.num_bytes < WHOLE.size / 8


def test_blocks_that_are_known_are_not_read() -> None:
    read: list[Box] = []

    def reader(box: Box) -> np.ndarray:
        read.append(box)
        return np.zeros(box.shape_yx, bool)

    mask = BlockMask(Box(0, 0, 1024, 512), reader, lambda box: True if box.y0 == 0 else None)
    assert read == [Box(512, 0, 1024, 512)]
    assert mask.fills(Box(0, 0, 512, 512)) is True
    assert not mask.read(Box(512, 0, 1024, 512)).any()


def test_an_array_that_does_not_fit_its_box_is_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected a mask of the shape of its box \(2, 3\)"):
        ArrayMask(Box(0, 0, 2, 3), np.zeros((3, 2), bool))
