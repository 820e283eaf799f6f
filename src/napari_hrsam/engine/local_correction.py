"""A mask that exists is corrected where a prompt says so, and stays as it is elsewhere.

`benchmarks/take_up.py` compares: objects with a disc cut off or added, corrected by one click. The
whole answer of the model, with the mask as its prior, is worse than no correction. The part at the
click alone is better; without a click inside, a negative click makes most of the mask vanish.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from scipy.ndimage import label as label_components

from napari_hrsam.geometry import Box, Tile
from napari_hrsam.prompts import Prompts

RIM_PX = 4, 1, 0
"""Where an answer differs from an object that was taken up by at most twice as many pixels, that is
a rim; a prompt at which nothing else differs takes the next smaller."""

BODY = 0.5
"""Share of a mask's greatest depth from which on a place lies in its body."""

STROKE_PLACES = 64
"""Places along a stroke that are looked at."""


def anchored(prompts: Prompts, prior: NDArray[np.float32], tile: Tile) -> Prompts:
    """Add a click at the deepest place of a mask, which models need to keep what is there."""
    inside = prior > 0
    clicks = prompts.as_clicks()
    for point, positive in zip(clicks.points_yx, clicks.labels, strict=True):
        row, column = (int(place) for place in tile.to_tile(point) // 4)
        if not positive and 0 <= row < len(inside) and 0 <= column < len(inside):
            inside[row, column] = False
    if not inside.any():
        return prompts
    depth = distance_transform_edt(np.pad(inside, 1))[1:-1, 1:-1]
    y, x = (
        (place * 4 + 2 + corner) * tile.downsample - 0.5
        for place, corner in zip(
            np.unravel_index(np.argmax(depth), depth.shape), (tile.y0, tile.x0), strict=True
        )
    )
    return Prompts(
        points_yx=((float(y), float(x)), *prompts.points_yx),
        labels=(True, *prompts.labels),
        box=prompts.box,
        scribbles=tuple(
            replace(scribble, num_clicks=scribble.num_clicks + 1) for scribble in prompts.scribbles
        ),
    )


def is_deep(point_yx: tuple[float, float], mask: NDArray[np.float32], tile: Tile) -> bool:
    """Whether a point lies in the body of a low-resolution mask, not near its outline."""
    row, column = (int(place) for place in tile.to_tile(point_yx) // 4)
    if not (0 <= row < len(mask) and 0 <= column < len(mask)):
        return False
    depth = distance_transform_edt(np.pad(mask > 0, 1))[1:-1, 1:-1]
    return bool(depth[row, column] >= max(1, BODY * depth.max()))


def changed_at(
    old: NDArray[np.bool_], answer: NDArray[np.bool_], new: Prompts, tile: Tile
) -> NDArray[np.bool_]:
    """Return the parts of the difference between a mask and an answer that prompts lie at.

    A part ends where the difference is thin: at a rim along the outline, which is elsewhere, too.
    """
    places = [*zip(new.points_yx, new.labels, strict=True)]
    for scribble in new.scribbles:
        places += [((y, x), scribble.positive) for y, x in scribble.spread(STROKE_PLACES).tolist()]
    changed = np.zeros(old.shape, np.bool_)
    for positive in (True, False):
        points = [point for point, label in places if label == positive]
        different = (old != answer) & (answer == positive)
        box = Box.around(different)
        if not points or box.area == 0:
            continue
        pixels = np.floor(tile.to_tile(points) + 0.5).astype(np.intp)
        part = different[box.slices]
        changed[box.slices] |= _parts_at(part, pixels - (box.y0, box.x0))
    return changed


def _parts_at(different: NDArray[np.bool_], pixels: NDArray[np.intp]) -> NDArray[np.bool_]:
    depth = distance_transform_edt(np.pad(different, 1))[1:-1, 1:-1]
    found = np.zeros(different.shape, np.bool_)
    for radius in RIM_PX:
        parts, num = label_components(depth > radius, np.ones((3, 3)))
        if num == 0 or len(pixels) == 0:
            continue
        _, nearest = distance_transform_edt(parts == 0, return_indices=True)
        inside = np.clip(pixels, 0, np.array(different.shape) - 1)
        at = nearest[:, inside[:, 0], inside[:, 1]]
        is_near = np.linalg.norm(at.T - pixels, axis=1) <= 3 * radius + 3
        if is_near.any():
            is_chosen = np.isin(parts, parts[tuple(at[:, is_near])])
            found |= different & (distance_transform_edt(~is_chosen) <= radius + 1)
        pixels = pixels[~is_near]
    return found
