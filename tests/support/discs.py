"""A mask of any size that is computed where it is asked for."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box


class Disc:
    """A disc of any size, which says what it knows and counts the pixels that are read."""

    def __init__(self, centre: tuple[int, int], radius: int) -> None:
        self.centre, self.radius = centre, radius
        (y, x), r = centre, radius
        self.box = Box(y - r, x - r, y + r, x + r)
        self.num_read = 0

    def read(self, box: Box) -> NDArray[np.bool_]:
        self.num_read += box.area
        y = np.arange(box.y0, box.y1)[:, np.newaxis] - self.centre[0]
        x = np.arange(box.x0, box.x1) - self.centre[1]
        return np.asarray(y * y + x * x < self.radius**2)

    def fills(self, box: Box) -> bool | None:
        corners = [(y, x) for y in (box.y0, box.y1 - 1) for x in (box.x0, box.x1 - 1)]
        y, x = self.centre
        if all((a - y) ** 2 + (b - x) ** 2 < self.radius**2 for a, b in corners):
            return True
        near = min(max(y, box.y0), box.y1), min(max(x, box.x0), box.x1)
        return False if (near[0] - y) ** 2 + (near[1] - x) ** 2 > self.radius**2 else None
