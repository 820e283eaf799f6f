"""Pictures of a result: masks tinted over the image, their outlines, and the clicks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ShapeError
from napari_hrsam.prompts import Prompts

# Okabe and Ito's palette: distinct for colour-blind readers too.
_COLOURS = np.array(
    [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (204, 121, 167)],
    dtype=np.float32,
)
_POSITIVE = np.array((40, 220, 60), dtype=np.uint8)
_NEGATIVE = np.array((230, 40, 40), dtype=np.uint8)


def draw_overlay(
    image: NDArray[np.uint8],
    labels: NDArray[np.integer],
    prompts: tuple[Prompts, ...] = (),
    *,
    opacity: float = 0.4,
) -> NDArray[np.uint8]:
    """Tint every object, outline it, and mark the clicks.

    Parameters
    ----------
    image : (H, W) or (H, W, 3) uint8
        Grey or RGB.
    labels : (H, W) int
        0 = background; colours repeat every six labels.
    prompts : tuple of Prompts
        Positive clicks are drawn as green discs, negative ones as red discs.
    opacity : float
        Of the tint inside the outlines, 0..1.

    Returns
    -------
    (H, W, 3) uint8

    Raises
    ------
    ShapeError
        If image and labels differ in height or width.
    """
    if image.shape[:2] != labels.shape:
        raise ShapeError(
            f"expected labels of the image's height and width {image.shape[:2]}, got {labels.shape}"
        )
    rgb = np.repeat(image[..., None], 3, axis=2) if image.ndim == 2 else image[..., :3].copy()
    inside = labels > 0
    colours = _COLOURS[(labels[inside] - 1) % len(_COLOURS)]
    rgb[inside] = np.rint((1 - opacity) * rgb[inside] + opacity * colours).astype(np.uint8)
    edge = inside & _outline(labels)
    rgb[edge] = _COLOURS[(labels[edge] - 1) % len(_COLOURS)].astype(np.uint8)
    radius = max(3, round(max(labels.shape) / 160))
    for one in prompts:
        for (y, x), positive in zip(one.points_yx, one.labels, strict=True):
            _disc(rgb, y, x, radius + 1, np.array((255, 255, 255), dtype=np.uint8))
            _disc(rgb, y, x, radius, _POSITIVE if positive else _NEGATIVE)
    return rgb


def _outline(labels: NDArray[np.integer]) -> NDArray[np.bool_]:
    """Pixels whose label differs from that of a neighbour up, down, left or right."""
    edge = np.zeros(labels.shape, dtype=bool)
    rows, cols = labels[1:] != labels[:-1], labels[:, 1:] != labels[:, :-1]
    edge[1:] |= rows
    edge[:-1] |= rows
    edge[:, 1:] |= cols
    edge[:, :-1] |= cols
    return edge


def _disc(
    rgb: NDArray[np.uint8], y: float, x: float, radius: int, colour: NDArray[np.uint8]
) -> None:
    rows, cols = np.ogrid[: rgb.shape[0], : rgb.shape[1]]
    rgb[(rows - y) ** 2 + (cols - x) ** 2 <= radius**2] = colour
