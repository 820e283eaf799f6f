"""Points and shapes of a user's layer as prompts, one object each."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Points, Shapes

from napari_hrsam.errors import PromptError
from napari_hrsam.plugin.canvas.coordinates import box_between, world_position
from napari_hrsam.prompts import Prompts

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Layer
    from numpy.typing import ArrayLike, NDArray

    from napari_hrsam.plugin.canvas.view import ImageView


def prompts_of_layer(
    viewer: napari.components.ViewerModel, layer: Layer, view: ImageView
) -> list[Prompts]:
    """Return the prompts of every point or shape of a layer on the plane that is shown.

    A point is a click, a rectangle or an ellipse a box, a polygon an outline around the object, a
    line or a path a stroke along it.

    Parameters
    ----------
    viewer
        The viewer.
    layer
        A Points or Shapes layer, placed as it is.
    view
        The image.

    Raises
    ------
    PromptError
        If it is another layer, or an outline encloses nothing.
    """
    plane = view.plane()
    if isinstance(layer, Points):
        shapes: list[tuple[str, ArrayLike]] = [("point", point[None]) for point in layer.data]
    elif isinstance(layer, Shapes):
        shapes = list(zip(layer.shape_type, layer.data, strict=True))
    else:
        raise PromptError(
            f"expected a Points or a Shapes layer, got '{layer.name}'; draw points or shapes in a "
            "layer of your own, and select it"
        )
    found = []
    for kind, places in shapes:
        points = _on_plane(viewer, layer, view, plane, np.asarray(places, float))
        if points is not None:
            found.append(_prompts(kind, points))
    return found


def _on_plane(
    viewer: napari.components.ViewerModel,
    layer: Layer,
    view: ImageView,
    plane: tuple[int, ...],
    places: NDArray[np.float64],
) -> NDArray[np.float64] | None:
    """Return places as (N, 2) level-0 pixels of the image; None if they lie on another plane."""
    points = []
    for place in places:
        # A layer of fewer axes lies on every plane, as napari shows it.
        world = np.array(viewer.dims.point, float)
        known = world_position(viewer, layer, place)[-len(world) :]
        world[len(world) - len(known) :] = known
        try:
            position = view.position(world.tolist())
        except PromptError:
            return None
        if position.plane != plane:
            return None
        points.append(position.point_yx)
    return np.array(points)


def _prompts(kind: str, points: NDArray[np.float64]) -> Prompts:
    if kind == "point":
        return Prompts().with_click(points[0].tolist(), True)
    if kind in ("rectangle", "ellipse"):
        return Prompts().with_box(box_between(points.min(axis=0), points.max(axis=0)))
    if kind == "polygon":
        return Prompts().with_lasso(points)
    return Prompts().with_scribble(points, True)
