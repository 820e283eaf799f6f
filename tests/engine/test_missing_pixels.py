"""Pixels that an image lacks are in no mask, unless a user paints them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_hrsam import Session, segment
from napari_hrsam.errors import PromptError
from napari_hrsam.geometry import Box

SIDE = 1400
"""So large that an object may be looked at from far away."""


def disc(values: type) -> tuple[NDArray[Any], NDArray[np.bool_], NDArray[np.bool_]]:
    """A bright disc with a hole of missing pixels in it, the hole, and the disc."""
    y, x = np.mgrid[:SIDE, :SIDE]
    thing = (y - 200) ** 2 + (x - 210) ** 2 < 80**2
    hole = (y - 210) ** 2 + (x - 180) ** 2 < 20**2
    image = np.where(thing, 200, 30).astype(values)
    image[(y + x) % 7 == 0] += 3
    return image, hole, thing


@pytest.fixture(params=["nan", "masked"])
def lacking(request: pytest.FixtureRequest) -> tuple[Any, NDArray[np.bool_], NDArray[np.bool_]]:
    image, hole, thing = disc(np.float32 if request.param == "nan" else np.uint8)
    if request.param == "nan":
        image[hole] = np.nan
        return image, hole, thing
    return np.ma.array(image, mask=hole), hole, thing


@pytest.mark.weights
@pytest.mark.parametrize("level", [None, 0, 1, 2])
def test_missing_pixels_are_in_no_mask(lacking: Any, level: int | None) -> None:
    image, hole, thing = lacking
    clicks = [(200, 260), (180, 180)]
    mask = segment(image, clicks, level=level)
    assert not (mask & hole).any()
    assert (mask & thing).sum() > 0.5 * (thing & ~hole).sum()
    with Session("hrsam-tiny", image) as session:
        for click in clicks:
            prediction = session.click(click, level=level)
        assert not prediction.region.read(Box.of_shape(hole.shape))[hole].any()
        assert not prediction.mask[hole[prediction.box.slices]].any()
        step = prediction.level_downsample
        inner = hole[prediction.box.slices][::step, ::step]
        far = np.zeros_like(inner)
        far[2:-2, 2:-2] = inner[2:-2, 2:-2] & inner[:-4, 2:-2] & inner[4:, 2:-2]
        far &= np.roll(inner, 2, 1) & np.roll(inner, -2, 1)
        assert not prediction.level_mask[far].any()
        session.commit()
        assert not (session.labels.array[hole] > 0).any()


@pytest.mark.weights
@pytest.mark.parametrize("level", [None, 2])
def test_a_click_on_a_missing_pixel_is_refused(lacking: Any, level: int | None) -> None:
    image, _, _ = lacking
    with pytest.raises(PromptError, match=r"no data here: .* at \(210, 180\)"):
        segment(image, [(210, 180)], level=level)
    with Session("hrsam-tiny", image) as session:
        with pytest.raises(PromptError, match="no data here"):
            session.click((210, 180), level=level)
        assert session.prediction is None
        before = session.click((200, 260), level=level)
        with pytest.raises(PromptError, match="no data here"):
            session.click((210.4, 180.4), level=level)
        assert session.prediction is before
        assert len(session.prompts) == 1
        # What is to be outside the object may lie there.
        assert session.click((210, 180), positive=False, level=level).mask.any()


@pytest.mark.weights
def test_missing_pixels_that_are_painted_are_in_the_object(lacking: Any) -> None:
    image, hole, _ = lacking
    with Session("hrsam-tiny", image) as session:
        prediction = session.click((200, 260), level=0)
        painted = prediction.mask.copy()
        painted[hole[prediction.box.slices]] = True
        session.commit(painted)
        assert (session.labels.array[hole] == 1).all()
