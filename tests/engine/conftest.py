"""Models that find pixels of the clicked colour, so that the right mask is known."""

from __future__ import annotations

import numpy as np
import pytest
from colour_segmenter import ColourSegmenter, FocusedSegmenter, SizedSegmenter
from numpy.typing import NDArray


@pytest.fixture
def model() -> ColourSegmenter:
    return ColourSegmenter()


@pytest.fixture
def sized_model() -> SizedSegmenter:
    return SizedSegmenter()


@pytest.fixture
def focused_model() -> FocusedSegmenter:
    return FocusedSegmenter()


@pytest.fixture
def scene() -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """A (200, 160) image with a red square on green, and the mask of the square."""
    image = np.zeros((200, 160, 3), np.uint8)
    image[..., 1] = 120
    image[40:72, 48:80] = (230, 10, 10)
    return image, image[..., 0] > 128
