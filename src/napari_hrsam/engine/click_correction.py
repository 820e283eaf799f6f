"""Every click and scribble is obeyed: a positive one ends inside the mask, a negative one outside.

Where the network's mask disagrees with a click, a patch around the click is changed: as far as
the colour stays similar, and little further than the mask's own border, because a user clicks in
the middle of the mistake.

The constants were chosen on validation objects with simulated clicks, on masks that were wrong by
smooth random errors: a longer reach gained nothing and made more masks worse, and so did a larger
disc around every click; `MAX_RADIUS_SHARE` and `EDGE_COST` hardly mattered. What obeying does to
the clicks that a shipped model needs is measured by ``napari-hrsam evaluate``, with and without
``--no-click-correction``.

A scribble is corrected as the clicks that the model is told of it; then every pixel of the stroke,
and those beside it, are put on its side.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.graph import MCP_Geometric

from napari_hrsam.errors import ShapeError
from napari_hrsam.geometry import Tile
from napari_hrsam.prompts import Prompts, Scribble

MIN_RADIUS_PX = 1.0
"""A correction changes at least the pixels this near, if no click of the other sign is near."""

BORDER_SHARE = 1.75
"""A correction fades out at this multiple of the distance to where the mask agrees already."""

MAX_RADIUS_SHARE = 1 / 16
"""A correction reaches at most this share of the tile's side."""

OPPOSITE_SHARE = 0.75
"""Share of the way to the nearest click of the other sign that a correction may take."""

EDGE_COST = 4.0
"""Extra length of a step over a pixel whose colour is one noise unit beyond the click's own."""

MIN_NOISE = 6.0
"""Least colour difference (0..255) that counts as one noise unit."""

NOISE_RADIUS_PX = 3
"""The noise unit is the usual difference from the click's colour this near to it."""

CONFIDENCE = 2.0
"""Logit given to the click itself: sure, but not so sure that it drowns the next answer."""


def enforce_prompts(
    logits: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    tile: Tile,
    prompts: Prompts,
    *,
    only_inside: bool = False,
) -> NDArray[np.float32]:
    """Change the logits of a tile around the clicks, and along the scribbles, that they contradict.

    Parameters
    ----------
    logits, pixels
        As in `enforce_clicks`.
    tile : Tile
        Where they lie. What lies outside of it of a scribble is left out.
    prompts : Prompts
        Without contradictions; see `Prompts.consistent`.
    only_inside : bool
        Whether clicks outside of the tile are left out, not moved to its border.

    Returns
    -------
    (H, W) float32
        The same array if everything is obeyed already. Where prompts of different sign meet, the
        newer one is obeyed.
    """
    told = prompts.as_clicks()
    clicks = [
        (point, label)
        for point, label in zip(told.points_yx, told.labels, strict=True)
        if not only_inside or tile.box0.contains(point)
    ]
    changed = logits
    if clicks:
        points = tile.to_tile([point for point, _ in clicks])
        changed = enforce_clicks(logits, pixels, points, np.array([label for _, label in clicks]))
    for number, scribble in enumerate(prompts.scribbles):
        changed = _put_on_side(changed, *_stroke(scribble, tile), scribble.positive)
        later = prompts.scribbles[number + 1 :]
        until = later[0].num_clicks if later else len(prompts.points_yx)
        for place in range(scribble.num_clicks, until):
            y, x = np.floor(tile.to_tile(prompts.points_yx[place]) + 0.5).astype(int)
            changed = _put_on_side(changed, y, x, prompts.labels[place])
    return changed


def _put_on_side(
    logits: NDArray[np.float32], rows: Any, columns: Any, positive: bool
) -> NDArray[np.float32]:
    """Give pixels of a tile the sign of a prompt; those outside are left out."""
    rows, columns = np.atleast_1d(rows), np.atleast_1d(columns)
    height, width = logits.shape
    inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    places = rows[inside], columns[inside]
    if ((logits[places] > 0) == positive).all():
        return logits
    changed = logits.copy()
    if positive:
        changed[places] = np.maximum(changed[places], CONFIDENCE)
    else:
        changed[places] = np.minimum(changed[places], -CONFIDENCE)
    return changed


def _stroke(scribble: Scribble, tile: Tile) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the tile pixels of a stroke and those beside it.

    So all that a level-0 pixel of the stroke is interpolated from lies on one side.
    """
    pixels0 = np.floor(scribble.along(max(1.0, tile.downsample) / 2) + 0.5)
    on = np.unique(np.floor(tile.to_tile(pixels0) + 0.5).astype(np.intp), axis=0)
    beside = np.stack(np.meshgrid([-1, 0, 1], [-1, 0, 1]), axis=-1).reshape(1, 9, 2)
    rows, columns = (on[:, np.newaxis] + beside).reshape(-1, 2).T
    return rows, columns


def enforce_clicks(
    logits: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    points_yx: NDArray[np.float64],
    labels: NDArray[np.bool_],
) -> NDArray[np.float32]:
    """Change logits around the clicks that they contradict.

    Parameters
    ----------
    logits : (H, W) float32
        At tile resolution; above 0 is object. Not changed.
    pixels : (H, W, 3) uint8
        What the tile shows.
    points_yx : (N, 2) float
        Clicks in tile pixels, oldest first; those outside the tile are moved to its border.
    labels : (N,) bool
        True for "inside the object".

    Returns
    -------
    (H, W) float32
        The same array if every click is obeyed already. Of two clicks of different sign on one
        pixel the newer one is obeyed.

    Raises
    ------
    ShapeError
        If the shapes do not belong together.
    """
    if pixels.shape != (*logits.shape, 3) or len(points_yx) != len(labels):
        raise ShapeError(
            f"expected pixels (H, W, 3) for logits (H, W) and a label per point, got pixels "
            f"{pixels.shape}, logits {logits.shape}, {len(points_yx)} points, {len(labels)} labels"
        )
    clicks = _newest_by_pixel(points_yx, labels, logits.shape)
    changed = logits
    for place, positive in clicks.items():
        if (changed[place] > 0) != positive:
            opposite = [other for other, sign in clicks.items() if sign != positive]
            if changed is logits:
                changed = logits.copy()
            _correct(changed, pixels, place, positive, opposite)
    return changed


def to_low_res(change: NDArray[np.float32]) -> NDArray[np.float32]:
    """Average a (H, W) change of logits over 4 x 4 pixels, to (H / 4, W / 4)."""
    height, width = change.shape
    mean: NDArray[np.float32] = change.reshape(height // 4, 4, width // 4, 4).mean(axis=(1, 3))
    return mean


def _newest_by_pixel(
    points_yx: NDArray[np.float64], labels: NDArray[np.bool_], shape: tuple[int, ...]
) -> dict[tuple[int, int], bool]:
    newest: dict[tuple[int, int], bool] = {}
    for (y, x), label in zip(points_yx, labels, strict=True):
        row = min(max(math.floor(y + 0.5), 0), shape[0] - 1)
        column = min(max(math.floor(x + 0.5), 0), shape[1] - 1)
        newest[row, column] = bool(label)
    return newest


def _correct(
    logits: NDArray[np.float32],
    pixels: NDArray[np.uint8],
    place: tuple[int, int],
    positive: bool,
    opposite: list[tuple[int, int]],
) -> None:
    """Pull the logits around one click, in place, to the click's side of 0."""
    free = OPPOSITE_SHARE * min((math.dist(place, other) for other in opposite), default=math.inf)
    limit = max(2 * MIN_RADIUS_PX, MAX_RADIUS_SHARE * max(logits.shape))
    window, centre = _window(place, math.ceil(limit), logits.shape)
    local = logits[window]
    rows, columns = np.ogrid[: local.shape[0], : local.shape[1]]
    straight = np.hypot(rows - centre[0], columns - centre[1])
    agreeing = straight[(local > 0) == positive].min(initial=math.inf)
    reach = min(free, limit, BORDER_SHARE * agreeing)
    pull = _fade(_path_length(pixels[window], centre), reach)
    pull[straight <= min(free, MIN_RADIUS_PX)] = 1
    target = CONFIDENCE if positive else -CONFIDENCE
    pulled = local + pull * (target - local)
    # Pixels that are already further on the click's side keep what the network said.
    local[:] = np.maximum(local, pulled) if positive else np.minimum(local, pulled)


def _window(
    place: tuple[int, int], radius: int, shape: tuple[int, ...]
) -> tuple[tuple[slice, slice], tuple[int, int]]:
    """Cut a square around a pixel at the borders of the tile; tell where the pixel lies in it."""
    y0, x0 = max(place[0] - radius, 0), max(place[1] - radius, 0)
    y1, x1 = min(place[0] + radius + 1, shape[0]), min(place[1] + radius + 1, shape[1])
    return (slice(y0, y1), slice(x0, x1)), (place[0] - y0, place[1] - x0)


def _fade(distance: NDArray[np.float64], reach: float) -> NDArray[np.float64]:
    """Fall from 1 (up to half of the reach) smoothly to 0 (from the reach on)."""
    share = np.clip(2 * distance / max(reach, 1e-6) - 1, 0, 1)
    fall: NDArray[np.float64] = 0.5 + 0.5 * np.cos(np.pi * share)
    return fall


def _path_length(pixels: NDArray[np.uint8], centre: tuple[int, int]) -> NDArray[np.float64]:
    """Length in pixels of the way from the centre; colours unlike the centre's make it longer."""
    smooth = gaussian_filter(pixels.astype(np.float32), sigma=(1, 1, 0))
    difference = np.linalg.norm(smooth - smooth[centre], axis=-1)
    near, _ = _window(centre, NOISE_RADIUS_PX, difference.shape)
    noise = max(MIN_NOISE, 1.5 * float(np.median(difference[near])))
    costs = 1 + EDGE_COST * np.clip(difference / noise - 1, 0, None)
    length: NDArray[np.float64] = MCP_Geometric(costs).find_costs([centre])[0]
    return length
