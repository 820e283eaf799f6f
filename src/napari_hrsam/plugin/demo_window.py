"""The window that the demo opens: two real images and the started panel."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_hrsam.plugin.sample_data import micrograph, photograph
from napari_hrsam.plugin.segment_widget import SegmentWidget

if TYPE_CHECKING:
    import napari

GAP_PX = 40
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
    viewer.reset_view()
    panel = SegmentWidget(viewer)
    viewer.window.add_dock_widget(panel, name=PANEL_NAME, area="right")
    panel.controller.guard(panel.start)
    return viewer
