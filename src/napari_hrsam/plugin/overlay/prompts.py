"""The layer that shows the prompts of the current object: clicks, the box, scribbles."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import napari.layers
import numpy as np

from napari_hrsam.plugin.canvas.coordinates import box_corners_yx, in_plane, place, placement
from napari_hrsam.prompts import Prompts, Scribble

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari.components
    from napari.layers import Image
    from numpy.typing import NDArray

POSITIVE_COLOR = "#00d26a"
NEGATIVE_COLOR = "#ff4b4b"
LINE_COLOR = "#ffd23f"
POINT_SIZE_ON_SCREEN = 12
DOT_SIZE_ON_SCREEN = 4
DOT_STEP_ON_SCREEN = 5
MAX_DOTS = 2000
"""Dots of one line; a longer one has them farther apart."""

NEGATIVE, POSITIVE, LINE = 0, 1, 2
"""What the feature "label" says of a point: part of a negative or positive prompt, or of a line."""


class Points(napari.layers.Points):  # type: ignore[misc]
    """Points that take no room beyond their places.

    napari lets the size of a point count along every axis: a click on one plane of a stack would
    stretch the slider to planes that there are not. The name counts for icons and controls.
    """

    @property
    def _extent_data_augmented(self) -> NDArray[np.float64]:
        extent: NDArray[np.float64] = self._extent_data
        return extent


_Shown = tuple[Prompts, tuple[int, ...], tuple[tuple[float, float], ...]]


class PromptsDisplay:
    """One Points layer with all prompts, also those that are being drawn.

    Green discs are positive clicks, red crosses negative ones; dots in these colours are scribbles,
    yellow ones the box or an outline that is being drawn. A layer of lines beside it would
    make the first Start longer. It only shows: prompts come from the viewer, so the layer
    never takes part in mouse handling.
    """

    def __init__(self, viewer: napari.components.ViewerModel, image: Image) -> None:
        self._image = image
        self._shown: _Shown = (Prompts(), (), ())
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
        self._screen_px = 1.0
        viewer.add_layer(self.layer)
        self.layer.events.visible.connect(self._show_again)

    def show(
        self,
        prompts: Prompts,
        pixels_per_screen_pixel: float,
        plane: Sequence[int] = (),
        outline: Sequence[tuple[float, float]] = (),
    ) -> None:
        """Show exactly these prompts.

        Parameters
        ----------
        prompts
            In level-0 pixels.
        pixels_per_screen_pixel
            Level-0 pixels under a screen pixel, for the size of what is drawn.
        plane
            Where they lie along the axes before y and x.
        outline : (N, 2) float
            A closed line that is being drawn, in level-0 pixels.
        """
        self._shown, self._screen_px = (
            (prompts, tuple(plane), tuple(outline)),
            pixels_per_screen_pixel,
        )
        # napari draws of a hidden layer what was in view before: points that are gone by then.
        if not self.layer.visible:
            return
        clicks = np.array(prompts.points_yx, float).reshape(-1, 2)
        dots, kinds = _dots(prompts, outline, DOT_STEP_ON_SCREEN * pixels_per_screen_pixel)
        if not len(clicks) + len(dots) + len(self.layer.data):
            return
        self.layer.data = in_plane(np.concatenate([clicks, dots]), plane)
        self.layer.selected_data = set()
        labels = np.concatenate([np.array(prompts.labels, np.int64), kinds])
        self.layer.features = {"label": labels}
        if not len(labels):
            return
        is_click = np.arange(len(labels)) < len(clicks)
        colors = np.array([NEGATIVE_COLOR, POSITIVE_COLOR, LINE_COLOR])[labels]
        is_filled = is_click & (labels == POSITIVE)
        self.layer.symbol = np.where(is_click & (labels == NEGATIVE), "x", "disc").tolist()
        self.layer.border_color = colors.tolist()
        self.layer.face_color = np.where(is_filled, "white", colors).tolist()
        sizes = np.where(is_click, POINT_SIZE_ON_SCREEN, DOT_SIZE_ON_SCREEN)
        self.layer.size = sizes * pixels_per_screen_pixel

    def rescale(self, pixels_per_screen_pixel: float) -> None:
        """Keep the size on screen after a change of zoom."""
        prompts, plane, outline = self._shown
        if len(self.layer.data):
            self.show(prompts, pixels_per_screen_pixel, plane, outline)

    def _show_again(self) -> None:
        prompts, plane, outline = self._shown
        self.show(prompts, self._screen_px, plane, outline)

    def move_with_image(self) -> None:
        """Follow a change of the image layer's transform."""
        place(self.layer, self._image)


def _dots(
    prompts: Prompts, outline: Sequence[tuple[float, float]], step: float
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return dots (N, 2) along all lines, and of what kind they are."""
    lines = [(scribble, int(scribble.positive)) for scribble in prompts.scribbles]
    if prompts.box is not None:
        corners = box_corners_yx(prompts.box)
        lines.append((Scribble(points_yx=(*corners, corners[0])), LINE))
    if outline:
        lines.append((Scribble(points_yx=(*outline, outline[0])), LINE))
    dots, kinds = [np.zeros((0, 2))], [np.zeros(0, np.int64)]
    for line, kind in lines:
        num = min(MAX_DOTS, 1 + math.ceil(line.length_px / max(step, 1e-6)))
        found = line.evenly(num)
        dots.append(found)
        kinds.append(np.full(len(found), kind))
    return np.concatenate(dots), np.concatenate(kinds)
