"""Peak memory of napari showing a large image, alone and while objects are drawn on it."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_hrsam._optional import require
from napari_hrsam.bench.clicks import level_for_object
from napari_hrsam.bench.measure import peak_bytes
from napari_hrsam.bench.settings import LABELS_NAME, Settings
from napari_hrsam.sample import Sample
from napari_hrsam.sample.scene.scene import SceneObject
from napari_hrsam.sample.slide import PIXEL_UM

if TYPE_CHECKING:
    import napari

WINDOW_PX = (1200, 900)
WAIT_S = 600.0
DIAMETERS_PX = (2000.0, 20.0)
"""Of the objects that are drawn: an image of 10,000 px holds such objects too."""


def measure_shown(sample: Sample, settings: Settings) -> dict[str, Any]:
    """Show the image alone, at the places and zooms at which objects would be drawn."""
    viewer = show_slide(sample)
    for found in chosen_objects(sample, settings.num_objects):
        _look_at(viewer, found)
    figures = {"peak_bytes": peak_bytes()}
    viewer.close()
    return figures


def measure_annotated(sample: Sample, settings: Settings) -> dict[str, Any]:
    """Show the image, and click on and commit objects with the panel's controller."""
    from napari_hrsam.plugin.session.controller import SegmentController
    from napari_hrsam.storage.labels.places import LabelFile

    viewer = show_slide(sample)
    controller = SegmentController(viewer)
    controller.start(
        viewer.layers[0],
        settings.model,
        target=LabelFile(sample.path, LABELS_NAME),
        device=settings.device,
    )
    controller.wait(WAIT_S)
    seconds = []
    chosen = chosen_objects(sample, settings.num_objects)
    for found in chosen:
        _look_at(viewer, found)
        started = time.perf_counter()
        controller.click(found.centre_yx)
        controller.wait(WAIT_S)
        controller.commit()
        controller.wait(WAIT_S)
        seconds.append(time.perf_counter() - started)
        _draw(0.1)
    num_committed = controller.state.num_committed
    figures = {
        "num_committed": num_committed,
        "diameters_px": [round(found.diameter_px) for found in chosen],
        "longest_object_s": max(seconds),
        "peak_bytes": peak_bytes(),
    }
    controller.stop()
    # Reading ahead ends first: the process is not to end in the middle of it.
    controller.wait(WAIT_S)
    controller.close()
    viewer.close()
    return figures


def chosen_objects(sample: Sample, num: int) -> list[SceneObject]:
    """Choose objects of about the same diameters whatever the image's size, the largest first.

    Each is the nearest to one of `num` diameters that are evenly spread, by their logarithms, over
    `DIAMETERS_PX`; none is chosen twice.
    """
    left = list(sample.objects)
    chosen = []
    for wanted in np.geomspace(*DIAMETERS_PX, num):
        nearest = min(left, key=lambda found: abs(math.log(found.diameter_px / wanted)))
        left.remove(nearest)
        chosen.append(nearest)
    return chosen


def show_slide(sample: Sample) -> napari.Viewer:
    """Open a window that shows a slide."""
    require("qtpy.QtWidgets", extra="all")
    napari = require("napari", extra="all")
    viewer = napari.Viewer()
    viewer.window.resize(*WINDOW_PX)
    viewer.add_image(
        list(sample.levels),
        name="slide",
        rgb=True,
        multiscale=True,
        scale=(PIXEL_UM, PIXEL_UM),
        units=("micrometer", "micrometer"),
    )
    _draw(1.0)
    return viewer


def _look_at(viewer: napari.Viewer, found: SceneObject) -> None:
    """Zoom to the level that suits an object, and have napari draw it."""
    viewer.scene.camera.center = tuple(PIXEL_UM * place for place in found.centre_yx)
    viewer.scene.camera.zoom = 1 / (PIXEL_UM * 2.0 ** level_for_object(found))
    _draw(0.3)


def _draw(seconds: float) -> None:
    """Let the window work for a while."""
    from qtpy.QtWidgets import QApplication

    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        QApplication.processEvents()
        time.sleep(0.01)
