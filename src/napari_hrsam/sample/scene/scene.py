"""A scene: its objects, their masks, and its pixels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError
from napari_hrsam.geometry import Box
from napari_hrsam.sample.scene.layout import Group, lay_out
from napari_hrsam.sample.scene.painter import Painter
from napari_hrsam.sample.scene.recipe import CHUNK_PX, Recipe

_STRIP_PX = 2**20


@dataclass(frozen=True, slots=True)
class SceneObject:
    """One object of a scene.

    Attributes
    ----------
    label : int
        1 or more, larger objects first.
    kind : str
        ``"lesion"``, ``"lobule"``, ``"gland"`` or ``"nucleus"``.
    centre_yx : (float, float)
        A place inside, in level-0 pixels, pixel centres at integers.
    diameter_px : float
        Twice the mean radius, in level-0 pixels.
    box : Box
        Holds the object, in level-0 pixels.
    """

    label: int
    kind: str
    centre_yx: tuple[float, float]
    diameter_px: float
    box: Box


class Scene:
    """All objects and pixels that a recipe gives.

    Parameters
    ----------
    recipe : Recipe

    Attributes
    ----------
    recipe : Recipe
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self._groups = lay_out(recipe)
        self._painter = Painter(recipe, self._groups)

    @cached_property
    def objects(self) -> tuple[SceneObject, ...]:
        """Every object, in the order of the labels."""
        found: list[SceneObject] = []
        for group in self._groups:
            rows = zip(
                group.outlines.centres.tolist(),
                group.outlines.radii.tolist(),
                group.outlines.boxes.tolist(),
                strict=True,
            )
            for number, (centre, radius, box) in enumerate(rows):
                found.append(
                    SceneObject(
                        group.first_label + number,
                        group.kind.name,
                        (centre[0], centre[1]),
                        2 * radius,
                        Box(*box),
                    )
                )
        return tuple(found)

    def object(self, label: int) -> SceneObject:
        """Return the object of a label.

        Raises
        ------
        ImageError
            If there is none.
        """
        self._find(label)
        return self.objects[label - 1]

    def chunk(self, level: int, row: int, column: int) -> NDArray[np.uint8]:
        """Paint one chunk of a level.

        Returns
        -------
        (3, CHUNK_PX, CHUNK_PX) uint8
            What lies beyond the image is background.
        """
        y0, x0 = row * CHUNK_PX, column * CHUNK_PX
        return self._painter.paint(Box(y0, x0, y0 + CHUNK_PX, x0 + CHUNK_PX), level)

    def mask(self, label: int, box: Box, level: int = 0) -> NDArray[np.bool_]:
        """Tell which pixels of a box belong to an object: those whose centre lies inside.

        Parameters
        ----------
        label : int
        box : Box
            In pixels of the level; may reach beyond the image.
        level : int

        Returns
        -------
        (box.height, box.width) bool

        Raises
        ------
        ImageError
            If there is no such object.
        """
        group, index = self._find(label)
        mask = np.zeros(box.shape_yx, bool)
        for part, inside in _insides(group, index, box, level):
            mask[part.shifted(-box.y0, -box.x0).slices] = inside
        return mask

    def labels(self, box: Box, level: int = 0) -> NDArray[np.uint32]:
        """Tell the label of every pixel of a box, 0 for background; see `mask`."""
        labels = np.zeros(box.shape_yx, np.uint32)
        step = 2**level
        for group in self._groups:
            y0, x0, y1, x1 = group.outlines.boxes.T
            near = (y1 > box.y0 * step) & (y0 < box.y1 * step)
            near &= (x1 > box.x0 * step) & (x0 < box.x1 * step)
            for index in np.flatnonzero(near):
                for part, inside in _insides(group, int(index), box, level):
                    found = labels[part.shifted(-box.y0, -box.x0).slices]
                    found[inside] = group.first_label + index
        return labels

    def _find(self, label: int) -> tuple[Group, int]:
        for group in self._groups:
            if 0 <= label - group.first_label < len(group.outlines):
                return group, label - group.first_label
        last = self._groups[-1]
        most = last.first_label + len(last.outlines) - 1
        raise ImageError(f"expected a label of 1 to {most}, got {label}; see Sample.objects")


def _insides(
    group: Group, index: int, box: Box, level: int
) -> Iterator[tuple[Box, NDArray[np.bool_]]]:
    """Yield the part of a box under an object, strip by strip, and which pixels are inside."""
    step = 2**level
    y0, x0, y1, x1 = (int(end) for end in group.outlines.boxes[index])
    whole = Box(y0 // step, x0 // step, -(-y1 // step), -(-x1 // step)).intersection(box)
    centre_y, centre_x = group.outlines.centres[index]
    rows = max(1, _STRIP_PX // max(1, whole.width))
    for start in range(whole.y0, whole.y1 if whole.width else whole.y0, rows):
        part = Box(start, whole.x0, min(start + rows, whole.y1), whole.x1)
        dy = ((np.arange(part.y0, part.y1) + 0.5) * step - (0.5 + centre_y)).astype(np.float32)
        dx = ((np.arange(part.x0, part.x1) + 0.5) * step - (0.5 + centre_x)).astype(np.float32)
        yield part, group.outlines.distance(index, dy[:, np.newaxis], dx) > 0
