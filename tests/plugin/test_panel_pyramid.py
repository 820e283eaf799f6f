"""The panel's work on images far larger than memory, without Qt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image

from napari_hrsam.plugin.controller import SegmentController

SMALL, MIDDLE, LARGE = (4992, 6016), (20_480, 9216), (16_384, 24_576)
SCREEN_PX = 64


@pytest.fixture
def slide(viewer: ViewerModel, discs: list[Any]) -> Image:
    """The picture of discs as a layer."""
    return viewer.add_image(discs, rgb=True, multiscale=True, name="slide", scale=(0.5, 0.5))


@pytest.fixture
def running(controller: SegmentController, slide: Image) -> SegmentController:
    controller.start(slide)
    controller.wait()
    return controller


def zoom_to(viewer: ViewerModel, level: int) -> None:
    """Show a model tile of a level on the whole screen."""
    viewer.scene.camera.zoom = 1 / (0.5 * 2**level)


def committed(controller: SegmentController, label: int) -> list[float]:
    """Area of an object, in level-0 pixels, at every level of the shown pyramid."""
    assert controller.layers is not None
    levels = list(controller.layers.target.data)
    return [
        float((np.asarray(level[:, :]) == label).sum()) * 4.0**k
        for k, level in enumerate(levels)
        if k >= 3
    ]


def test_a_gigapixel_pyramid_is_never_read_as_a_whole(
    running: SegmentController, viewer: ViewerModel, discs: list[Any]
) -> None:
    zoom_to(viewer, 0)
    before = [level.num_read for level in discs]
    running.click(SMALL)
    running.wait()
    assert running.state.level == 0
    read = sum(level.num_read for level in discs) - sum(before)
    assert read <= 64 * 512 * 512 * 3


@pytest.mark.parametrize(("level", "place", "radius"), [(5, MIDDLE, 600), (8, LARGE, 5000)])
def test_a_commit_shows_at_every_zoom(
    level: int, place: tuple[int, int], radius: int, running: SegmentController, viewer: ViewerModel
) -> None:
    zoom_to(viewer, level)
    assert running.state.level == level
    running.click(place)
    running.wait()
    assert running.layers is not None
    preview = running.layers.preview
    assert preview.step == 2**level
    assert preview.layer.data.shape[0] <= 64
    running.commit()
    running.wait()
    expected = np.pi * radius**2
    for area in committed(running, 1):
        assert area == pytest.approx(expected, rel=0.25)
    running.undo()
    running.wait()
    assert committed(running, 1) == [0.0] * 4


def test_the_preview_lies_on_its_object_at_a_coarse_level(
    running: SegmentController, viewer: ViewerModel
) -> None:
    zoom_to(viewer, 5)
    running.click(MIDDLE)
    running.wait()
    assert running.layers is not None
    preview, image = running.layers.preview, running.image_layer
    assert image is not None
    assert preview.box is not None
    first = np.array([preview.box.y0, preview.box.x0]) + (2**5 - 1) / 2
    np.testing.assert_allclose(
        preview.layer.data_to_world((0, 0)), image.data_to_world(first), err_msg="half a pixel off"
    )
    centre = np.argwhere(preview.pixels).mean(axis=0)
    world = preview.layer.data_to_world(centre)
    np.testing.assert_allclose(image.world_to_data(world), MIDDLE, atol=16)
