"""Brightness limits of arrays that are read in parts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_hrsam.storage.opening import open_image

SIDE = 4000


class Lazy:
    """An array in chunks that counts how often it is read."""

    def __init__(self, chunk: int) -> None:
        self.shape, self.dtype, self.ndim = (SIDE, SIDE), np.dtype(np.uint16), 2
        self.chunks = (chunk, chunk)
        self.num_read = 0

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[np.uint16]:
        self.num_read += 1
        rows, columns = (np.arange(SIDE)[part] for part in index)
        picture: NDArray[np.uint16] = ((rows[:, None] * 7 + columns * 3) % 1000).astype(np.uint16)
        return picture


@pytest.mark.parametrize(("chunk", "most"), [(SIDE, 1), (2000, 4), (250, 64)])
def test_no_chunk_is_decoded_for_the_limits_more_than_once(chunk: int, most: int) -> None:
    array = Lazy(chunk)
    image = open_image(array)
    assert array.num_read <= most
    assert image.contrast_limits[0] == pytest.approx((0, 999), abs=3)
