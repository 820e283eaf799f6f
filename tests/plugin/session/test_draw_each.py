"""Points and shapes of a user's layer, each drawn as an object of its own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from numpy.typing import NDArray

from napari_hrsam.errors import PromptError, SessionError
from napari_hrsam.plugin.session.controller import SegmentController

FIRST, SECOND = (slice(8, 24), slice(8, 24)), (slice(36, 56), slice(30, 54))


@pytest.fixture
def started(controller: SegmentController, viewer: ViewerModel) -> SegmentController:
    image = np.zeros((64, 64, 3), np.uint8)
    image[..., 1] = 120
    image[FIRST] = (230, 10, 10)
    image[SECOND] = (10, 10, 230)
    viewer.add_image(image, rgb=True, name="image", scale=(2, 2), translate=(10, -6))
    viewer.scene.camera.zoom = 1.0
    controller.start()
    controller.wait()
    return controller


def labels(controller: SegmentController) -> NDArray[Any]:
    assert controller.overlay is not None
    return np.asarray(controller.overlay.target.data)


def test_every_point_of_the_selected_layer_becomes_an_object_where_it_is_seen(
    started: SegmentController, viewer: ViewerModel
) -> None:
    # In the world's own pixels, not the image's; the last lies beside the image.
    world = np.array([(16, 16), (46, 42), (300, 300)]) * 2.0 + (10, -6)
    viewer.add_points(world, name="seeds")
    started.objects.draw_layer()
    started.wait()
    drawn = labels(started)
    assert (drawn[FIRST] == 1).mean() > 0.75
    assert (drawn[SECOND] == 2).mean() > 0.75
    assert "2 of 3 objects drawn and committed" in started.state.message
    assert "Not number 3" in started.state.message
    assert started.state.num_committed == 2
    assert len(started.objects.list) == 2
    started.undo()
    started.wait()
    assert set(np.unique(labels(started))) == {0, 1}


def test_shapes_are_boxes_outlines_and_strokes(
    started: SegmentController, viewer: ViewerModel
) -> None:
    shapes = viewer.add_shapes(
        [np.array([(7, 7), (7, 24), (24, 24), (24, 7)]), np.array([(40, 34), (50, 50)])],
        shape_type=["rectangle", "line"],
        scale=(2, 2),
        translate=(10, -6),
    )
    seen: list[Any] = []
    draw = started.objects.draw_each
    started.objects.draw_each = lambda several: (seen.extend(several), draw(several))  # type: ignore[method-assign]
    started.objects.draw_layer(shapes)
    started.wait()
    box, stroke = seen
    assert box.box == (7.5, 7.5, 24.5, 24.5)
    assert stroke.scribbles[0].points_yx == ((40, 34), (50, 50))
    drawn = labels(started)
    assert drawn[46, 42] == 2
    shapes.add([np.array([(8, 8), (8, 20), (20, 20)])], shape_type="polygon")
    started.objects.draw_layer(shapes)
    assert seen[-1].box is not None
    assert len(seen[-1].points_yx) == 1


def test_points_on_other_planes_are_left_out(
    controller: SegmentController, viewer: ViewerModel
) -> None:
    stack = np.zeros((3, 64, 64, 3), np.uint8)
    stack[..., 1] = 120
    stack[1][FIRST] = (230, 10, 10)
    viewer.add_image(stack, rgb=True, name="stack")
    controller.start()
    controller.wait()
    assert controller.overlay is not None
    controller.overlay.view.show_plane((1,))
    viewer.add_points([(0, 16, 16), (1, 16, 16)], name="seeds")
    controller.objects.draw_layer()
    controller.wait()
    assert "1 of 1 objects drawn" in controller.state.message
    viewer.add_points([(2, 16, 16)], name="elsewhere")
    with pytest.raises(PromptError, match="on this plane, got none"):
        controller.objects.draw_layer()


def test_what_is_no_layer_of_points_or_shapes_is_refused(
    started: SegmentController, viewer: ViewerModel
) -> None:
    with pytest.raises(PromptError, match="select a Points layer of yours"):
        started.objects.draw_layer()
    with pytest.raises(PromptError, match="got 'image'"):
        started.objects.draw_layer(viewer.layers["image"])
    viewer.add_points([(40, 30)])
    started.click((16, 16))
    with pytest.raises(SessionError, match="drawing others"):
        started.objects.draw_layer()
