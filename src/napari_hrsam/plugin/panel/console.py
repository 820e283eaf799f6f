"""The panel from napari's console, or from a script that opens a viewer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.plugin.session.loading import AUTO_DEVICE, DEFAULT_MODEL

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Image

    from napari_hrsam.plugin.session.image_input import ChannelLayers
    from napari_hrsam.plugin.session.targets import Target

PLUGIN, WIDGET = "napari-hrsam", "Segment by clicking"


def segment_in(
    viewer: napari.components.ViewerModel,
    layer: Image | str | None = None,
    *,
    model: str = DEFAULT_MODEL,
    channels: ChannelLayers | None = None,
    target: Target | None = None,
    device: str = AUTO_DEVICE,
) -> SegmentController:
    """Open the panel of a viewer, or take the one that is open, and start on an image.

    Parameters
    ----------
    viewer
        A napari viewer. A `napari.components.ViewerModel` without a window gets no panel.
    layer : Image layer or str, optional
        What to annotate, or its name; by default the active image layer, else the first visible
        one.
    model, channels, target, device
        As in `SegmentController.start`.

    Returns
    -------
    SegmentController
        Does by methods what mouse and keys do: `click`, `box`, `scribble`, `lasso`, `commit`,
        `edit`, `delete`, `undo`, ...; `wait` has everything answered.

    Raises
    ------
    ImageError, LabelsError
        As in `SegmentController.start`.
    KeyError
        If there is no layer of that name.

    Examples
    --------
    >>> controller = hrsam.segment_in(viewer, "slide")  # doctest: +SKIP
    >>> controller.click((7000, 79500))  # doctest: +SKIP
    >>> controller.commit()  # doctest: +SKIP
    """
    image = viewer.layers[layer] if isinstance(layer, str) else layer
    window = getattr(viewer, "window", None)
    if window is None:
        controller = SegmentController(viewer)
    else:
        _, panel = window.add_plugin_dock_widget(PLUGIN, WIDGET)
        controller = panel.controller
    controller.start(image, model, channels=channels, target=target, device=device)
    return controller
