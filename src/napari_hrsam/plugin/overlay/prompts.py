"""The layers that show the prompts of the current object: clicks and the box."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Points, Shapes

from napari_hrsam.plugin.canvas.coordinates import box_corners_yx, in_plane, place, placement

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari.components
    from napari.layers import Image

    from napari_hrsam.plugin.canvas.coordinates import BoxPrompt

POSITIVE_COLOR = "#00d26a"
NEGATIVE_COLOR = "#ff4b4b"
POINT_SIZE_ON_SCREEN = 12
BOX_COLOR = "#ffd23f"
BOX_EDGE_ON_SCREEN = 2.0


class PointsDisplay:
    """One Points layer with all clicks: green discs are positive, red crosses negative.

    It only shows: clicks come from the viewer, so the layer never takes part in mouse handling.
    """

    def __init__(self, viewer: napari.components.ViewerModel, image: Image) -> None:
        self._image = image
        self.layer = Points(
            np.zeros((0, image.ndim)),
            ndim=image.ndim,
            name=f"{image.name} [prompts]",
            features={"label": np.zeros(0, np.int64)},
            size=POINT_SIZE_ON_SCREEN,
            face_color="white",
            border_width=0.25,
            # Where no point is in view napari draws an unseen one of size 0, which must stay so.
            canvas_size_limits=(0, POINT_SIZE_ON_SCREEN + 1),
            **placement(image),
        )
        viewer.add_layer(self.layer)

    def show(
        self,
        points_yx: Sequence[tuple[float, float]],
        labels: Sequence[bool],
        pixels_per_screen_pixel: float,
        plane: Sequence[int] = (),
    ) -> None:
        """Show exactly these clicks.

        Parameters
        ----------
        points_yx : (N, 2) float
            Level-0 pixels.
        labels : (N,) bool
            True for positive clicks.
        pixels_per_screen_pixel
            Level-0 pixels under a screen pixel, for the size of the symbols.
        plane
            Where they lie along the axes before y and x.
        """
        data = in_plane(points_yx, plane)
        if len(data) == 0 and len(self.layer.data) == 0:
            return
        is_positive = np.asarray(labels, dtype=bool).reshape(-1)
        self.layer.data = data
        self.layer.selected_data = set()
        self.layer.features = {"label": is_positive.astype(np.int64)}
        if len(data):
            self.layer.symbol = ["disc" if positive else "x" for positive in is_positive]
            colors = [POSITIVE_COLOR if positive else NEGATIVE_COLOR for positive in is_positive]
            self.layer.border_color = colors
            self.layer.face_color = [
                "white" if positive else NEGATIVE_COLOR for positive in is_positive
            ]
            self.rescale(pixels_per_screen_pixel)

    def rescale(self, pixels_per_screen_pixel: float) -> None:
        """Keep the size on screen after a change of zoom."""
        if len(self.layer.data):
            self.layer.size = POINT_SIZE_ON_SCREEN * pixels_per_screen_pixel

    def move_with_image(self) -> None:
        """Follow a change of the image layer's transform."""
        place(self.layer, self._image)


class BoxDisplay:
    """One Shapes layer with the box prompt, also while it is being drawn."""

    def __init__(self, viewer: napari.components.ViewerModel, image: Image) -> None:
        self._image = image
        self._box: BoxPrompt | None = None
        self._plane: tuple[int, ...] = ()
        self._edge_width = 1.0
        self.layer = Shapes(ndim=image.ndim, name=f"{image.name} [box]", **placement(image))
        viewer.add_layer(self.layer)

    def show(
        self,
        box: BoxPrompt | None,
        pixels_per_screen_pixel: float,
        plane: Sequence[int] = (),
    ) -> None:
        """Show a box, or none.

        Parameters
        ----------
        box : (y0, x0, y1, x1) float or None
            Level-0 pixels, half open.
        pixels_per_screen_pixel
            Level-0 pixels under a screen pixel, for the width of the line.
        plane
            Where it lies along the axes before y and x.
        """
        edge_width = max(BOX_EDGE_ON_SCREEN * pixels_per_screen_pixel, 1e-6)
        known = (self._box, self._edge_width, self._plane)
        if (box, edge_width, tuple(plane)) == known:
            return
        self._box, self._edge_width, self._plane = box, edge_width, tuple(plane)
        self.layer.data = []
        if box is not None:
            self.layer.add_rectangles(
                in_plane(box_corners_yx(box), plane),
                edge_width=edge_width,
                edge_color=BOX_COLOR,
                face_color="transparent",
            )
            self.layer.selected_data = set()

    def rescale(self, pixels_per_screen_pixel: float) -> None:
        """Keep the line's width on screen after a change of zoom."""
        if self._box is not None:
            self.show(self._box, pixels_per_screen_pixel, self._plane)

    def move_with_image(self) -> None:
        """Follow a change of the image layer's transform."""
        place(self.layer, self._image)
