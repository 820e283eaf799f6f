"""What of an image is on screen: places under the mouse, the plane, the level, the part seen."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Image

from napari_hrsam.errors import PromptError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.canvas.coordinates import (
    is_image,
    layer_position,
    pixels_per_screen_pixel,
    view_level,
    world_position,
)
from napari_hrsam.storage.images.layers import hides_below

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari.components

    from napari_hrsam.plugin.session.image_input import ImageInput


MIN_SHOWN_PX = 24
"""Pixels of the image that are shown at least when the view goes to an object."""

SURROUNDINGS = 3.0
"""How many times larger than the object what is shown then is."""

MIN_SHARE, MAX_SHARE = 0.02, 0.6
"""Shares of the view that a box may take up when the view follows it without a change of zoom."""

MARGIN = 0.1
"""Share of the view, at each side, where a box is not well inside."""


@dataclass(frozen=True, slots=True)
class Position:
    """A place in an image.

    Attributes
    ----------
    point_yx
        Level-0 pixels, pixel centres at integers.
    plane
        One index per axis before y and x.
    """

    point_yx: tuple[float, float]
    plane: tuple[int, ...]


class ImageView:
    """The viewer's view of the image of a session, in the image's own pixels.

    Parameters
    ----------
    viewer
        Where the image is shown.
    image
        The image.

    Attributes
    ----------
    image
        As it is shown now.
    """

    def __init__(self, viewer: napari.components.ViewerModel, image: ImageInput) -> None:
        self._viewer = viewer
        self.image = image
        self._layer = image.layer
        self._shape_yx = image.shape_yx
        self._plane_shape = image.image.plane_shape

    def position(self, world: Sequence[float]) -> Position:
        """Return the place at a world position; it may lie outside the image.

        Raises
        ------
        PromptError
            If the plane shown there is none of the image, or the view shows other axes.
        """
        found = layer_position(self._viewer, self._layer, world)
        return Position((float(found[-2]), float(found[-1])), self._checked_plane(found))

    def plane(self) -> tuple[int, ...]:
        """Return the plane that is shown.

        Raises
        ------
        PromptError
            As `position`.
        """
        return self._checked_plane(self._centre())

    def show_plane(self, plane: tuple[int, ...]) -> None:
        """Move the sliders to a plane."""
        position = self._centre()
        position[:-2] = plane
        world = world_position(self._viewer, self._layer, position)
        first = self._viewer.dims.ndim - self._layer.ndim
        for axis in range(len(plane)):
            self._viewer.dims.set_point(first + axis, float(world[axis]))

    def show_box(self, box: Box) -> None:
        """Move the view so that a box, in level-0 pixels, and some of its surroundings fill it."""
        position = self._centre()
        corners = []
        for place in ((box.y0 - 0.5, box.x0 - 0.5), (box.y1 - 0.5, box.x1 - 0.5)):
            position[-2:] = place
            world = world_position(self._viewer, self._layer, position)
            corners.append(np.asarray(world, dtype=float)[-2:])
        first, last = corners
        side = max(float(np.abs(last - first).max()), MIN_SHOWN_PX * self._pixel_world())
        camera = self._viewer.scene.camera
        camera.center = (0.0, *((first + last) / 2))
        camera.zoom = min(self._viewer.canvas.size) / (side * SURROUNDINGS)

    def follow_box(self, box: Box) -> None:
        """Move the view to a box, in level-0 pixels, but only as far as it must.

        Nothing moves while the box is well inside the view; the zoom stays unless the box would be
        too large or too small on the screen.
        """
        seen = self.box0()
        share = max(box.height / max(seen.height, 1), box.width / max(seen.width, 1))
        if not MIN_SHARE <= share <= MAX_SHARE:
            self.show_box(box)
            return
        margin_y, margin_x = round(MARGIN * seen.height), round(MARGIN * seen.width)
        inner = Box(seen.y0 + margin_y, seen.x0 + margin_x, seen.y1 - margin_y, seen.x1 - margin_x)
        # At the image's border there is nothing beyond to make room for.
        inner = Box(
            0 if seen.y0 == 0 else inner.y0,
            0 if seen.x0 == 0 else inner.x0,
            self._shape_yx[0] if seen.y1 == self._shape_yx[0] else inner.y1,
            self._shape_yx[1] if seen.x1 == self._shape_yx[1] else inner.x1,
        )
        if inner.intersection(box) == box:
            return
        here = self._centre()
        there = here.copy()
        there[-2] += min(box.y0 - inner.y0, 0) or max(box.y1 - inner.y1, 0)
        there[-1] += min(box.x0 - inner.x0, 0) or max(box.x1 - inner.x1, 0)
        move = world_position(self._viewer, self._layer, there) - world_position(
            self._viewer, self._layer, here
        )
        camera = self._viewer.scene.camera
        camera.center = (0.0, *(np.asarray(camera.center, dtype=float)[-2:] + move[-2:]))

    def _pixel_world(self) -> float:
        """Return the side of a level-0 pixel in the viewer's world."""
        position = self._centre()
        first = world_position(self._viewer, self._layer, position)
        position[-2:] += 1
        return float(np.abs(world_position(self._viewer, self._layer, position) - first)[-2:].max())

    def plane_name(self, plane: tuple[int, ...]) -> str:
        """Name a plane as napari's sliders do, such as "z 11"; empty for a flat image."""
        labels = self._layer.axis_labels[: len(plane)]
        long = [
            (label, index)
            for label, index, size in zip(labels, plane, self._plane_shape, strict=True)
            if size > 1
        ]
        return ", ".join(f"{_axis_name(label, len(long))} {index}" for label, index in long)

    def covering(self, world: Sequence[float]) -> Image | None:
        """Return the image layer that hides this one at a world position, if there is one."""
        layers = list(self._viewer.layers)
        for other in reversed(layers[layers.index(self._layer) + 1 :]):
            if not is_image(other) or other in self.image.seen or not other.visible:
                continue
            if hides_below(other) and _holds(self._viewer, other, world):
                return other
        return None

    def holds(self, point_yx: tuple[float, float]) -> bool:
        """Whether a place lies on a pixel of the image."""
        return Box.of_shape(self._shape_yx).contains(point_yx)

    def screen_px(self) -> float:
        """Return the level-0 pixels under a pixel of the screen."""
        return pixels_per_screen_pixel(self._viewer, self._layer)

    def level(self, tile_px: int) -> int:
        """Choose the level to work at; see `view_level`."""
        return view_level(self._viewer, self._layer, self._shape_yx, tile_px)

    def box0(self) -> Box:
        """Return the part of the image that is on screen, in level-0 pixels; maybe empty."""
        displayed = list(self._viewer.dims.displayed)[-2:]
        half = np.asarray(self._viewer.canvas.size) / 2 / self._viewer.scene.camera.zoom
        centre = np.asarray(self._viewer.scene.camera.center, dtype=float)[-2:]
        corners = []
        for signs in itertools.product((-1, 1), repeat=2):
            world = np.asarray(self._viewer.dims.point, dtype=float).copy()
            world[displayed] = centre + half * signs
            corners.append(layer_position(self._viewer, self._layer, world)[-2:])
        low, high = np.min(corners, axis=0), np.max(corners, axis=0)
        height, width = self._shape_yx
        # Far away from the image, the numbers may be larger than any integer.
        low, high = np.clip(low, 0, (height, width)), np.clip(high + 1, 0, (height, width))
        return Box(*(math.floor(n) for n in low), *(math.ceil(n) for n in high))

    def _centre(self) -> np.ndarray:
        return layer_position(self._viewer, self._layer, self._viewer.dims.point)

    def _checked_plane(self, position: np.ndarray) -> tuple[int, ...]:
        ndim = self._viewer.dims.ndim
        if tuple(self._viewer.dims.displayed[-2:]) != (ndim - 2, ndim - 1):
            raise PromptError(
                f"expected a view of rows and columns of '{self._layer.name}', got its axes "
                f"{tuple(self._viewer.dims.displayed)}; roll the axes back (Ctrl+E), then click"
            )
        plane = tuple(round(float(place)) for place in position[:-2])
        if not all(0 <= place < size for place, size in zip(plane, self._plane_shape, strict=True)):
            raise PromptError(
                f"expected a plane of '{self._layer.name}', which has {self._plane_shape}, got "
                f"{plane}; move the sliders below the image"
            )
        return plane


def _holds(viewer: napari.components.ViewerModel, layer: Image, world: Sequence[float]) -> bool:
    """Whether a layer has a pixel at a world position."""
    shape = (layer.data[0] if layer.multiscale else layer.data).shape[: layer.ndim]
    if layer.ndim > len(world):
        return False
    position = layer_position(viewer, layer, world)
    return bool(((position > -0.5) & (position < np.asarray(shape) - 0.5)).all())


def _axis_name(label: str, num_axes: int) -> str:
    """Name an axis; the labels that napari makes up are numbers."""
    number = label.removeprefix("axis ")
    if not number.lstrip("-").isdigit():
        return label
    return "plane" if num_axes == 1 else f"axis {number}"
