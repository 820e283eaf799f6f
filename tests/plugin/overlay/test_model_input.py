"""What the model sees, shown in the viewer."""

from __future__ import annotations

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image
from numpy.typing import NDArray

from napari_hrsam.plugin.canvas.coordinates import is_image
from napari_hrsam.plugin.session.controller import SegmentController

INSIDE = (30, 30)


def shown(viewer: ViewerModel) -> Image | None:
    found = [layer for layer in viewer.layers if "[model input" in layer.name]
    assert len(found) <= 1
    return found[0] if found else None


def test_the_tile_is_shown_as_the_model_gets_it(
    started: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    started.settings.show_model_input(True)
    started.wait()
    assert shown(viewer) is None, "there is no object yet"
    active = viewer.layers.selection.active
    started.click(INSIDE)
    started.wait()
    layer = shown(viewer)
    assert layer is not None
    assert "level 0" in layer.name
    np.testing.assert_array_equal(layer.data, pixels)
    assert viewer.layers.index(layer) == 1, "right above the image, below all of ours"
    assert viewer.layers.selection.active is active
    assert not is_image(layer)
    started.click((5, 5), positive=False)
    started.wait()
    assert shown(viewer) is layer, "made once"
    started.commit()
    started.wait()
    assert shown(viewer) is None
    started.click(INSIDE)
    started.settings.show_model_input(False)
    started.wait()
    assert shown(viewer) is None


def test_the_model_does_not_see_its_own_input(
    started: SegmentController, viewer: ViewerModel
) -> None:
    """It lies on the image's pixel grid, opaque: taken for the image, nothing would change."""
    started.settings.show_model_input(True)
    started.click(INSIDE)
    started.wait()
    viewer.layers["scene"].gamma = 3.0
    started.wait()
    layer = shown(viewer)
    assert layer is not None
    assert layer.data[30, 30, 0] < 230 - 10, "darker, as the image is shown now"
    assert started.overlay is not None
    assert started.overlay.image.seen == (viewer.layers["scene"],)


def test_a_tile_of_an_enlarged_level_lies_where_it_belongs(
    started: SegmentController, viewer: ViewerModel
) -> None:
    started.settings.show_model_input(True)
    started.settings.pin_level(-1)
    started.click(INSIDE)
    started.wait()
    layer = shown(viewer)
    assert layer is not None
    np.testing.assert_allclose(layer.scale, 0.5)
    overlay = started.overlay
    assert overlay is not None
    inside = layer.world_to_data(INSIDE)
    assert layer.data[tuple(np.round(inside).astype(int))].tolist() == [230, 10, 10]


def test_whoever_removes_it_does_not_end_the_session(
    started: SegmentController, viewer: ViewerModel
) -> None:
    started.settings.show_model_input(True)
    started.click(INSIDE)
    started.wait()
    viewer.layers.remove(shown(viewer))
    started.click((5, 5), positive=False)
    started.wait()
    assert shown(viewer) is not None
    started.stop()
    started.wait()
    assert shown(viewer) is None
    assert started.state.shows_input, "the user's setting stays"


@pytest.mark.parametrize("is_shown", [True, False])
def test_the_setting_holds_for_the_next_session(
    is_shown: bool, started: SegmentController, viewer: ViewerModel
) -> None:
    started.settings.show_model_input(is_shown)
    started.stop()
    started.start()
    started.wait()
    started.click(INSIDE)
    started.wait()
    assert (shown(viewer) is not None) is is_shown
