"""The panel from napari's console."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from numpy.typing import NDArray

import napari_hrsam as hrsam
from napari_hrsam.plugin.session.state import Phase


def test_a_viewer_without_a_window_gets_a_controller(
    viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    viewer.add_image(pixels, rgb=True, name="scene")
    viewer.add_image(pixels[..., 0], name="other")
    controller = hrsam.segment_in(viewer, "scene")
    controller.wait()
    assert controller.image_layer is viewer.layers["scene"]
    assert controller.state.phase is Phase.READY
    controller.click((30, 30))
    controller.commit()
    controller.wait()
    assert controller.state.num_committed == 1
    controller.close()
    with pytest.raises(KeyError, match="nothing"):
        hrsam.segment_in(viewer, "nothing")


def test_the_panel_that_is_open_is_taken(
    make_napari_viewer: Any, pixels: NDArray[np.uint8], qtbot: Any
) -> None:
    viewer = make_napari_viewer()
    viewer.add_image(pixels, rgb=True, name="scene")
    controller = hrsam.segment_in(viewer)
    qtbot.waitUntil(lambda: controller.state.phase is Phase.READY, timeout=180_000)
    assert len(viewer.window.dock_widgets) == 1
    assert hrsam.segment_in(viewer, viewer.layers["scene"]) is controller
    qtbot.waitUntil(lambda: controller.state.phase is Phase.READY, timeout=180_000)
    (panel,) = viewer.window.dock_widgets.values()
    assert panel.image_box.currentText() == "scene"
    controller.close()
