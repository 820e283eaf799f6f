"""The pixels of a scene, chunk by chunk.

Objects are laid over the background by their coverage of every pixel: sums of coverage, of colour
and of texture strength are kept per pixel, and mixed at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box
from napari_hrsam.sample.scene.layout import Group
from napari_hrsam.sample.scene.looks import LOOKS, Coat, Look
from napari_hrsam.sample.scene.noise import fields
from napari_hrsam.sample.scene.recipe import Recipe

_PATCH_PX = (4, 8, 16, 32)
"""Objects of these sizes are painted many at a time; larger ones one by one."""

_DOT_PX = 1.0
"""Objects of a smaller diameter in pixels of the level are dots."""

_FIBRES_Y, _FIBRES_X, _MIX, _MOTTLE, _FIRST_COAT = range(5)


@dataclass(slots=True, eq=False)
class _Canvas:
    """What objects leave on a box of one level.

    ``sums`` holds, per pixel, coverage, covered red, green and blue, and covered texture.
    """

    box: Box
    level: int
    sums: NDArray[np.float32]

    @property
    def step(self) -> float:
        """Level-0 pixels per pixel."""
        return float(2**self.level)

    def offsets(self, start: int, stop: int, centre: float) -> NDArray[np.float32]:
        """Offsets of pixel centres from a level-0 place, in level-0 pixels."""
        places = (np.arange(start, stop) + 0.5) * self.step - (0.5 + centre)
        return places.astype(np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class _Dressed:
    """A group of objects with what is needed to paint them."""

    group: Group
    coat: Coat
    boxes: NDArray[np.int64]
    colours: NDArray[np.float32]
    softness: NDArray[np.float32]
    rim_width: NDArray[np.float32]
    least: NDArray[np.float32]
    areas: NDArray[np.float64]


class Painter:
    """Paints chunks of a scene.

    Parameters
    ----------
    recipe : Recipe
    groups : tuple of Group
        From `lay_out` of the recipe.
    """

    def __init__(self, recipe: Recipe, groups: tuple[Group, ...]) -> None:
        self._recipe = recipe
        self._look: Look = LOOKS[recipe.look]
        self._dressed = tuple(_dress(group, self._look.coats[group.kind.name]) for group in groups)

    def paint(self, box: Box, level: int) -> NDArray[np.uint8]:
        """Paint a box of a level; what lies beyond the image is background.

        The same box always gives the same pixels; another box may differ by one grey value where
        both hold a pixel, so an image is painted in chunks.

        Parameters
        ----------
        box : Box
            In pixels of the level.
        level : int

        Returns
        -------
        (3, box.height, box.width) uint8
        """
        layers = []
        for number, dressed in enumerate(self._dressed):
            canvas = _Canvas(box, level, np.zeros((5, *box.shape_yx), np.float32))
            if _paint_group(canvas, dressed):
                layers.append((_FIRST_COAT + number, dressed.coat, canvas.sums))
        if any(sums[0].min() == 1 for _, _, sums in layers):
            # One object is all that is seen.
            picture = np.zeros((3, *box.shape_yx), np.float32)
        else:
            picture = self._background(box, level)
        for part, coat, (coverage, *colours, strength) in layers:
            texture = fields(self._seed(part), coat.waves, box, level) * strength
            picture *= 1 - coverage
            for channel, grain in enumerate(coat.grain):
                picture[channel] += colours[channel]
                picture[channel] += texture * np.float32(grain)
        self._shade(picture, box, level)
        np.clip(picture, 0, 255, out=picture)
        return picture.astype(np.uint8)

    def _seed(self, part: int) -> int:
        return (self._recipe.seed * 16 + part) * 2654435761 % 2**20

    def _background(self, box: Box, level: int) -> NDArray[np.float32]:
        look = self._look
        along_y = fields(self._seed(_FIBRES_Y), look.fibres_y, box, level)
        along_x = fields(self._seed(_FIBRES_X), look.fibres_x, box, level)
        mix = fields(self._seed(_MIX), look.mix, box, level)
        share = np.clip(mix * np.float32(2) + np.float32(0.5), 0, 1)
        fibres = along_x + (along_y - along_x) * share
        mottle = fields(self._seed(_MOTTLE), look.mottle, box, level)
        picture = np.empty((3, *box.shape_yx), np.float32)
        for channel, (ground, colour) in enumerate(
            zip(look.ground, look.fibre_colour, strict=True)
        ):
            np.multiply(fibres, np.float32(colour), out=picture[channel])
            picture[channel] += mottle
            picture[channel] += np.float32(ground)
        return picture

    def _shade(self, picture: NDArray[np.float32], box: Box, level: int) -> None:
        """Make the light uneven, and round to the nearest."""
        scale = 2.0**level / self._recipe.size_px
        rows = (np.arange(box.y0, box.y1) * scale - 0.5) * self._look.slope[0]
        columns = (np.arange(box.x0, box.x1) * scale - 0.5) * self._look.slope[1]
        picture += (rows + 0.5).astype(np.float32)[:, np.newaxis]
        picture += columns.astype(np.float32)


def _dress(group: Group, coat: Coat) -> _Dressed:
    outlines = group.outlines
    diameters = 2 * outlines.radii
    colours = np.array(coat.colours, np.float32)
    chosen = colours[(group.variants * len(colours)).astype(np.intp)]
    shifts = group.variants * 97 % 2 - 1
    return _Dressed(
        group=group,
        coat=coat,
        boxes=outlines.boxes,
        colours=chosen + (coat.spread * shifts)[:, np.newaxis].astype(np.float32),
        softness=np.clip(0.02 * diameters, 1.5, 8).astype(np.float32),
        rim_width=np.clip(0.04 * diameters, 1, 40).astype(np.float32),
        least=outlines.least,
        areas=outlines.areas,
    )


def _paint_group(canvas: _Canvas, dressed: _Dressed) -> bool:
    """Paint what a group has in the box; tell whether that is anything."""
    step, box = canvas.step, canvas.box
    margin = 8 + step
    y0, x0, y1, x1 = dressed.boxes.T
    near = np.flatnonzero(
        (y1 + margin > box.y0 * step)
        & (y0 - margin < box.y1 * step)
        & (x1 + margin > box.x0 * step)
        & (x0 - margin < box.x1 * step)
    )
    if near.size == 0:
        return False
    sides = np.max(dressed.boxes[near, 2:] - dressed.boxes[near, :2], axis=1) / step
    _paint_dots(canvas, dressed, near[sides < _DOT_PX])
    low = _DOT_PX
    for patch in _PATCH_PX:
        high = float(patch - 3)
        _paint_patches(canvas, dressed, near[(sides >= low) & (sides < high)], patch)
        low = high
    for index in near[sides >= low]:
        _paint_one(canvas, dressed, int(index))
    return True


def _paint_dots(canvas: _Canvas, dressed: _Dressed, chosen: NDArray[np.int64]) -> None:
    """Share the area of objects smaller than a pixel among the four pixels around."""
    centres = (dressed.group.outlines.centres[chosen] + 0.5) / canvas.step - 0.5
    corners = np.floor(centres)
    parts = centres - corners
    areas = dressed.areas[chosen] / canvas.step**2
    for dy in (0, 1):
        for dx in (0, 1):
            weights = areas * np.abs(1 - dy - parts[:, 0]) * np.abs(1 - dx - parts[:, 1])
            rows = corners[:, 0].astype(np.int64) + dy
            columns = corners[:, 1].astype(np.int64) + dx
            _scatter(canvas, dressed, chosen, rows, columns, weights.astype(np.float32))


def _paint_patches(
    canvas: _Canvas, dressed: _Dressed, chosen: NDArray[np.int64], patch: int
) -> None:
    """Paint objects that fit into squares of ``patch`` pixels, all at once."""
    if chosen.size == 0:
        return
    centres = dressed.group.outlines.centres[chosen]
    corners = np.floor((centres + 0.5) / canvas.step - patch / 2 + 0.5).astype(np.int64)
    rows = corners[:, 0, np.newaxis] + np.arange(patch)
    columns = corners[:, 1, np.newaxis] + np.arange(patch)
    dy = ((rows + 0.5) * canvas.step - 0.5 - centres[:, :1]).astype(np.float32)[:, :, np.newaxis]
    dx = ((columns + 0.5) * canvas.step - 0.5 - centres[:, 1:]).astype(np.float32)[:, np.newaxis]
    index = chosen[:, np.newaxis, np.newaxis]
    coverage, rim = _cover(canvas, dressed, index, dressed.group.outlines.distance(index, dy, dx))
    shape = coverage.shape
    _scatter(
        canvas,
        dressed,
        np.broadcast_to(index, shape).reshape(-1),
        np.broadcast_to(rows[:, :, np.newaxis], shape).reshape(-1),
        np.broadcast_to(columns[:, np.newaxis], shape).reshape(-1),
        coverage.reshape(-1),
        rim.reshape(-1),
    )


def _scatter(
    canvas: _Canvas,
    dressed: _Dressed,
    index: NDArray[np.int64],
    rows: NDArray[np.int64],
    columns: NDArray[np.int64],
    coverage: NDArray[np.float32],
    rim: NDArray[np.float32] | None = None,
) -> None:
    """Add single pixels of objects to the sums; those outside the box are left out."""
    box = canvas.box
    inside = (
        (rows >= box.y0)
        & (rows < box.y1)
        & (columns >= box.x0)
        & (columns < box.x1)
        & (coverage > 0)
    )
    if not inside.any():
        return
    index, coverage = index[inside], coverage[inside]
    places = (rows[inside] - box.y0) * box.width + (columns[inside] - box.x0)
    colours = dressed.colours[index]
    if rim is not None:
        colours = colours + rim[inside][:, np.newaxis] * np.array(dressed.coat.rim, np.float32)
    values = [coverage, *(coverage * colours[:, channel] for channel in range(3)), coverage]
    for number, value in enumerate(values):
        total = np.bincount(places, value, minlength=box.area)
        canvas.sums[number] += total.reshape(box.shape_yx).astype(np.float32)


def _paint_one(canvas: _Canvas, dressed: _Dressed, index: int) -> None:
    """Paint the part of one object that lies in the box."""
    step, box = canvas.step, canvas.box
    y0, x0, y1, x1 = (int(end) for end in dressed.boxes[index])
    margin = float(dressed.softness[index]) + step
    part = Box(
        int((y0 - margin) // step),
        int((x0 - margin) // step),
        int((y1 + margin) // step) + 1,
        int((x1 + margin) // step) + 1,
    ).intersection(box)
    if part.area == 0:
        return
    centre_y, centre_x = dressed.group.outlines.centres[index]
    dy = canvas.offsets(part.y0, part.y1, centre_y)[:, np.newaxis]
    dx = canvas.offsets(part.x0, part.x1, centre_x)
    sums = canvas.sums[(slice(None), *part.shifted(-box.y0, -box.x0).slices)]
    colour = dressed.colours[index]
    farthest = np.hypot(np.abs(dy).max(), np.abs(dx).max())
    if farthest < dressed.least[index] - 8 * max(float(dressed.rim_width[index]), margin):
        # Deep inside: no edge and no rim.
        sums += np.array([1, *colour, 1], np.float32)[:, np.newaxis, np.newaxis]
        return
    distance = dressed.group.outlines.distance(index, dy, dx)
    coverage, rim = _cover(canvas, dressed, index, distance)
    sums[0] += coverage
    sums[4] += coverage
    for channel, shade in enumerate(dressed.coat.rim):
        sums[1 + channel] += coverage * (colour[channel] + rim * np.float32(shade))


def _cover(
    canvas: _Canvas,
    dressed: _Dressed,
    index: int | NDArray[np.int64],
    distance: NDArray[np.float32],
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Tell coverage (0..1, 0.5 on the outline) and the rim's strength (0..1) by the distance."""
    step = np.float32(canvas.step)
    soft = np.maximum(dressed.softness[index], step)
    coverage: NDArray[np.float32] = np.clip(distance / soft + np.float32(0.5), 0, 1)
    width = np.maximum(dressed.rim_width[index], step / np.float32(2))
    rim: NDArray[np.float32] = np.exp(np.maximum(distance, 0) / -width)
    rim *= dressed.rim_width[index] / width
    return coverage, rim
