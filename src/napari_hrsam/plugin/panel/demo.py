"""The window that the demo opens: two real images and the started panel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qtpy.QtCore import QTimer
from qtpy.QtGui import QGuiApplication

from napari_hrsam.plugin.contrib.samples import micrograph, photograph
from napari_hrsam.plugin.panel.widget import SegmentWidget

if TYPE_CHECKING:
    import napari

GAP_PX = 40
WINDOW_PX = (1500, 950)
LAYOUT_MS = 300
PANEL_NAME = "Segment by clicking"


def open_demo() -> napari.Viewer:
    """Open napari with a photograph and a micrograph side by side, and the panel started on one.

    Returns
    -------
    napari.Viewer
        The viewer; call ``napari.run()`` to hand over to the user.
    """
    import napari

    viewer = napari.Viewer(title="napari-hrsam")
    [(micro, micro_options, _)] = micrograph()
    [(photo, photo_options, _)] = photograph()
    beside = (0, photo.shape[1] + GAP_PX)
    viewer.add_image(micro, translate=beside, **micro_options)
    image = viewer.add_image(photo, **photo_options)
    viewer.layers.selection.active = image
    panel = SegmentWidget(viewer)
    viewer.window.add_dock_widget(panel, name=PANEL_NAME, area="right")
    panel.controller.state.guard(panel.start)
    screen = QGuiApplication.primaryScreen().availableGeometry()
    viewer.window.resize(min(WINDOW_PX[0], screen.width()), min(WINDOW_PX[1], screen.height()))
    # The canvas gets its size when the window is laid out; fitted earlier, the images are cut off.
    QTimer.singleShot(LAYOUT_MS, viewer.reset_view)
    return viewer
