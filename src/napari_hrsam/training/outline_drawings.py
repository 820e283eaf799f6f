"""Drawn images of textured regions whose masks are exact, for the outline refiner.

Labels drawn by people are off by a pixel or two; here the edge is where the mask says. The regions
touch, hold things of their own, are bright or dim, sharp or blurred, broad or thin.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

_SHAPES = ("tissue", "pebbles", "strands", "polygons")


def draw_regions(
    side_px: int, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Draw a square image and the mask of one region in it.

    Parameters
    ----------
    side_px : int
        At least 16.
    rng : Generator

    Returns
    -------
    image : (side_px, side_px, 3) uint8
    mask : (side_px, side_px) bool
        With pixels of both kinds.
    """
    while True:
        shape = _SHAPES[rng.choice(4, p=(0.35, 0.3, 0.15, 0.2))]
        labels = _labels(shape, side_px, rng)
        # The region in the middle, so that its outline is likely seen.
        y, x = rng.integers(side_px // 4, side_px - side_px // 4, 2)
        chosen = 1 if shape == "strands" else labels[y, x]
        mask = labels == chosen
        if 0.03 < mask.mean() < 0.97:
            return _paint(labels, rng), mask


def _field(side_px: int, cell_px: float, rng: np.random.Generator) -> NDArray[np.float32]:
    """Smooth noise of about unit variance, whose hills are about ``cell_px`` wide."""
    cells = int(np.ceil(side_px / cell_px)) + 4
    values = Image.fromarray(rng.standard_normal((cells, cells), np.float32))
    low = rng.uniform(1, 2, 2)
    span = side_px / cell_px
    box = (low[0], low[1], low[0] + span, low[1] + span)
    grown = values.resize((side_px, side_px), Image.Resampling.BICUBIC, box=box)
    return np.asarray(grown, np.float32) * np.float32(1.4)


def _labels(shape: str, side_px: int, rng: np.random.Generator) -> NDArray[np.intp]:
    labels: NDArray[np.intp] = np.zeros((side_px, side_px), np.intp)
    if shape == "tissue":
        cell = rng.uniform(25, 100)
        fields = np.stack([_field(side_px, cell, rng) for _ in range(rng.integers(2, 5))])
        fields[0] += np.float32(0.25) * _field(side_px, cell / 5, rng)  # one is ragged
        labels = np.argmax(fields, axis=0)
    elif shape == "strands":
        width = rng.uniform(0.08, 0.3)
        labels[np.abs(_field(side_px, rng.uniform(40, 120), rng)) < width] = 1
    elif shape == "polygons":
        centres = rng.uniform(-0.1, 1.1, (int(rng.integers(3, 16)), 2)) * side_px
        labels = np.argmin(_squared_distances(side_px, centres), axis=0)
    else:
        wobble = _field(side_px, rng.uniform(15, 60), rng) * rng.uniform(0, 0.25)
        for number in range(1, int(rng.integers(2, 14))):
            centre = rng.uniform(-0.1, 1.1, (1, 2)) * side_px
            radius = rng.uniform(0.08, 0.45) * side_px
            stretch = np.exp(rng.normal(0, 0.25))
            distances = _squared_distances(side_px, centre, stretch)[0]
            labels[distances < (radius * (1 + wobble)) ** 2] = number
    return labels


def _squared_distances(
    side_px: int, centres: NDArray[np.float64], stretch: float = 1.0
) -> NDArray[np.float64]:
    rows, columns = np.ogrid[:side_px, :side_px]
    y, x = centres[:, 0, None, None], centres[:, 1, None, None]
    squared: NDArray[np.float64] = (rows - y) ** 2 * stretch + (columns - x) ** 2 / stretch
    return squared


def _paint(labels: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Colour regions, give them texture, contents and rims, and photograph it all."""
    side, num = len(labels), int(labels.max()) + 1
    contrast = rng.uniform(8, 70)
    base = rng.uniform(60, 195)
    if rng.random() < 0.5:
        # Background and objects, as a microscope shows them, rather than a patchwork.
        levels = np.where(np.arange(num) > 0, 1.0, -1.0) * contrast + rng.normal(0, 6, num)
    else:
        levels = rng.normal(0, contrast, num)
    colours = base + levels[:, None] + rng.normal(0, rng.uniform(0, 25), (num, 3))
    image = colours[labels].astype(np.float32)
    for _ in range(int(rng.integers(1, 4))):
        strength = rng.uniform(0, 14, num)  # each region has its own grain
        texture = _field(side, np.exp(rng.uniform(np.log(1.5), np.log(20))), rng)
        image += (strength[labels] * texture)[..., None]
    if rng.random() < 0.4:
        contents = _field(side, rng.uniform(8, 30), rng) > rng.uniform(0.7, 1.6)
        image[contents] += rng.normal(0, 30, 3).astype(np.float32)
    if rng.random() < 0.35:
        image += _rim(labels, rng)[..., None] * rng.normal(0, 60, 3).astype(np.float32)
    image += (rng.uniform(0, 15) * _field(side, side, rng))[..., None]
    blur = rng.uniform(0.4, 1.8)
    image = gaussian_filter(image, (blur, blur, 0))
    image += rng.standard_normal(image.shape, np.float32) * np.float32(rng.uniform(0, 10))
    pixels: NDArray[np.uint8] = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    return pixels


def _rim(labels: NDArray[np.intp], rng: np.random.Generator) -> NDArray[np.float32]:
    """Lines along the borders of regions, 0..1."""
    rim = np.zeros(labels.shape, np.float32)
    rim[1:] = labels[1:] != labels[:-1]
    rim[:, 1:] = np.maximum(rim[:, 1:], labels[:, 1:] != labels[:, :-1])
    width = rng.uniform(0.5, 1.5)
    wide: NDArray[np.float32] = np.minimum(gaussian_filter(rim, width) * (2 * width), 1)
    return wide
