"""World positions, level-0 pixels and the level that fits the view, from public viewer state."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from napari.layers import Image
from napari.utils.transforms import Affine

from napari_hrsam.geometry import coarsest_level

if TYPE_CHECKING:
    from collections.abc import Sequence

    import napari.components
    from napari.layers import Layer
    from numpy.typing import ArrayLike

BoxPrompt = tuple[float, float, float, float]
"""(y0, x0, y1, x1), half open, level-0 pixels."""


def layer_position(
    viewer: napari.components.ViewerModel, layer: Layer, world: ArrayLike
) -> np.ndarray:
    """Level-0 pixel position in `layer` of a world position.

    Unlike ``layer.world_to_data`` this holds when the layers' length units differ: the viewer
    then works in the finest of them, which the layer's transform does not know.

    Parameters
    ----------
    viewer
        The viewer, for the units of its world.
    layer
        Any layer of the viewer.
    world : (viewer.dims.ndim,) float
        World position, as given by mouse events.

    Returns
    -------
    (layer.ndim,) float
        Data position; pixel centres at integers.
    """
    position = np.asarray(world, dtype=float)[-layer.ndim :] * _layer_units(viewer, layer)
    return np.asarray(layer.world_to_data(position), dtype=float)


def world_position(
    viewer: napari.components.ViewerModel, layer: Layer, position: ArrayLike
) -> np.ndarray:
    """World position of a data position in `layer`: `layer_position` the other way round.

    Returns
    -------
    (layer.ndim,) float
        Along the last axes of the viewer's world.
    """
    world = np.asarray(layer.data_to_world(np.asarray(position, dtype=float)), dtype=float)
    return np.asarray(world / _layer_units(viewer, layer), dtype=float)


def pixel_area(layer: Layer) -> tuple[float, str]:
    """Return the area of a pixel of a layer, and its unit of length; (1, "") without one."""
    unit = layer.units[-1]
    if str(unit) == "pixel" or layer.units[-2] != unit:
        return 1.0, ""
    return float(abs(layer.scale[-2] * layer.scale[-1])), str(unit)


def _layer_units(viewer: napari.components.ViewerModel, layer: Layer) -> np.ndarray:
    """Return (layer.ndim,) lengths of the layer's world per length of the viewer's."""
    factors = np.ones(layer.ndim)
    units = viewer.layers.extent.units
    if units:
        for axis, (world_unit, layer_unit) in enumerate(
            zip(units[-layer.ndim :], layer.units, strict=True)
        ):
            same_kind = world_unit.dimensionality == layer_unit.dimensionality
            if world_unit != layer_unit and same_kind:
                factors[axis] = float((1 * world_unit).to(layer_unit).magnitude)
    return factors


def pixels_per_screen_pixel(viewer: napari.components.ViewerModel, layer: Layer) -> float:
    """Level-0 pixels of `layer` under one logical screen pixel, the larger of both axes."""
    start = np.asarray(viewer.dims.point, dtype=float)
    origin = layer_position(viewer, layer, start)
    lengths = []
    for axis in viewer.dims.displayed[-2:]:
        step = start.copy()
        step[axis] += 1 / viewer.scene.camera.zoom
        lengths.append(float(np.linalg.norm(layer_position(viewer, layer, step) - origin)))
    return max(lengths)


def view_level(
    viewer: napari.components.ViewerModel,
    layer: Layer,
    shape_yx: tuple[int, int],
    tile_px: int,
) -> int:
    """Level of the first look at what is on screen: the coarsest that is as fine as the screen.

    It does not depend on the size of the window. The session looks again at objects that are small
    or large at this level. Beyond twofold enlargement, a first look finds parts of the object.

    Parameters
    ----------
    viewer, layer
        Where the image is shown.
    shape_yx : (H, W) int
        Level-0 size of the image.
    tile_px
        Side of the model's tile in level pixels.

    Returns
    -------
    int
        From -1 (level 0 enlarged twice) to the level at which the image fits into one tile.
    """
    level = math.floor(math.log2(max(pixels_per_screen_pixel(viewer, layer), 0.5)))
    return min(level, coarsest_level(shape_yx, tile_px))


MODEL_INPUT_KEY = "napari-hrsam model input"
"""Metadata of a layer of ours that shows what the model sees: it is none of the user's images."""


def is_image(layer: Layer) -> TypeGuard[Image]:
    """Whether a layer is an image of the user's."""
    return isinstance(layer, Image) and MODEL_INPUT_KEY not in layer.metadata


def placement(
    layer: Layer,
    offset_yx: Sequence[float] = (0.0, 0.0),
    *,
    step: float = 1,
    plane: Sequence[int] = (),
) -> dict[str, Any]:
    """Layer attributes that put an array on the pixel grid of `layer`.

    Parameters
    ----------
    layer
        The layer whose scale, translate, rotate, shear, affine, units and axis labels are copied.
    offset_yx : (y, x) float
        Upper left corner of the array: the position in `layer`, in its pixels, of the level-0
        pixel on which the array's pixel (0, 0) begins.
    step : float
        Level-0 pixels per pixel of the array along y and x.
    plane : sequence of int
        Place of the array along the axes before y and x; by default 0.

    Returns
    -------
    dict
        Keyword arguments of every ``viewer.add_*`` method.
    """
    linear = Affine(scale=layer.scale, rotate=layer.rotate, shear=layer.shear).linear_matrix
    place = np.zeros(layer.ndim)
    if len(plane):
        place[:-2] = plane
    # The centre of a coarse pixel lies between the centres of its fine ones.
    place[-2:] = np.asarray(offset_yx, dtype=float) + (step - 1) / 2
    steps = np.ones(layer.ndim)
    steps[-2:] = step
    return {
        "scale": np.asarray(layer.scale) * steps,
        "translate": np.asarray(layer.translate) + linear @ place,
        "rotate": np.array(layer.rotate),
        "shear": np.array(layer.shear),
        "affine": np.array(layer.affine.affine_matrix),
        "units": layer.units,
        "axis_labels": layer.axis_labels,
    }


def place(
    layer: Layer,
    like: Layer,
    offset_yx: Sequence[float] = (0.0, 0.0),
    *,
    step: float = 1,
    plane: Sequence[int] = (),
) -> None:
    """Move an existing layer onto the pixel grid of `like`; see `placement`."""
    for name, value in placement(like, offset_yx, step=step, plane=plane).items():
        if not np.array_equal(np.asarray(getattr(layer, name)), np.asarray(value)):
            setattr(layer, name, value)


def box_between(first_yx: ArrayLike, second_yx: ArrayLike) -> BoxPrompt:
    """Box prompt (y0, x0, y1, x1), half open, with two level-0 positions as opposite corners."""
    corners = np.array([np.asarray(first_yx), np.asarray(second_yx)], dtype=float) + 0.5
    (y0, x0), (y1, x1) = corners.min(axis=0), corners.max(axis=0)
    return float(y0), float(x0), float(y1), float(x1)


def box_corners_yx(box: BoxPrompt) -> np.ndarray:
    """Positions (4, 2) at which to draw the corners of a half-open box prompt."""
    y0, x0, y1, x1 = (edge - 0.5 for edge in box)
    return np.array([[y0, x0], [y0, x1], [y1, x1], [y1, x0]])


def in_plane(points_yx: ArrayLike, plane: Sequence[int]) -> np.ndarray:
    """Put the index of a plane before (N, 2) positions: (N, len(plane) + 2)."""
    points = np.asarray(points_yx, dtype=float).reshape(-1, 2)
    return np.hstack([np.tile(np.asarray(plane, dtype=float), (len(points), 1)), points])
