"""The layer that shows proposals while they are reviewed."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Labels
from napari.utils.colormaps import CyclicLabelColormap

from napari_hrsam.geometry import Box
from napari_hrsam.plugin.canvas.coordinates import place, placement
from napari_hrsam.plugin.overlay.preview import OBJECT_COLOR

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Image
    from numpy.typing import NDArray

COLORS = {
    "hidden": (0.0, 0.0, 0.0, 0.0),
    "left": (1.0, 0.85, 0.1, 0.45),
    "accepted": (0.1, 0.8, 0.35, 0.6),
    "rejected": (0.9, 0.15, 0.45, 0.35),
    "ring": (*OBJECT_COLOR, 1.0),
}
HIDDEN, LEFT, ACCEPTED, REJECTED, RING = range(len(COLORS))

RING_PX = 2.5
"""Width on screen of the ring around the current one."""

MAX_RING = 12
"""Its width at most, in pixels of the layer."""


class ProposalsLayer:
    """One Labels layer over the part of the image that was looked at.

    Parameters
    ----------
    viewer
        The viewer to add the layer to; the active layer stays.
    image
        The layer whose pixel grid it shares; of a stack it covers one plane.
    numbers : (h, w) uint32
        The proposals, drawn as 1, 2, ...
    box, step, plane
        Where that lies: level-0 box, level-0 pixels per pixel, place along the axes before.
    """

    def __init__(
        self,
        viewer: napari.components.ViewerModel,
        image: Image,
        numbers: NDArray[np.uint32],
        box: Box,
        step: int,
        plane: tuple[int, ...],
    ) -> None:
        # Room for the ring around those at the border.
        self._image, self._numbers = image, np.pad(numbers, MAX_RING)
        self._box, self._step, self._plane = box.expand(MAX_RING * step), step, plane
        self._states = np.zeros(1, np.uint8)
        self._current: tuple[int, Box] | None = None
        active = viewer.layers.selection.active
        self.layer = Labels(
            np.zeros((*(1,) * (image.ndim - 2), *self._numbers.shape), np.uint8),
            name=f"{image.name} [proposals]",
            colormap=CyclicLabelColormap(colors=np.array([*COLORS.values()], np.float32)),
            opacity=1.0,
            **self._placement(),
        )
        self.layer.editable = False
        viewer.add_layer(self.layer)
        viewer.layers.selection.active = active

    def show(
        self, states: NDArray[np.uint8], current: tuple[int, Box] | None, screen_px: float
    ) -> None:
        """Draw the proposals.

        Parameters
        ----------
        states : (N,) uint8
            HIDDEN, LEFT, ACCEPTED or REJECTED of each.
        current
            Index and level-0 box of the one that gets a ring.
        screen_px
            Level-0 pixels under a pixel of the screen.
        """
        self._states, self._current = np.concatenate([[HIDDEN], states]).astype(np.uint8), current
        self.rescale(screen_px)

    def rescale(self, screen_px: float) -> None:
        """Draw the ring as wide on screen as before a change of zoom."""
        pixels = self.layer.data.reshape(self._numbers.shape)
        np.take(self._states, self._numbers, out=pixels)
        if self._current is not None:
            self._draw_ring(pixels, *self._current, screen_px)
        self.layer.refresh(thumbnail=False, extent=False, highlight=False)

    def number_at(self, point_yx: tuple[float, float]) -> int:
        """Return the number of the proposal that is drawn at a place of the image; 0 for none."""
        y = int((point_yx[0] + 0.5 - self._box.y0) // self._step)
        x = int((point_yx[1] + 0.5 - self._box.x0) // self._step)
        height, width = self._numbers.shape
        if not (0 <= y < height and 0 <= x < width):
            return 0
        number = int(self._numbers[y, x])
        return number if self._states[number] != HIDDEN else 0

    def move_with_image(self) -> None:
        """Follow a change of the image layer's transform."""
        offset = self._box.y0, self._box.x0
        place(self.layer, self._image, offset, step=self._step, plane=self._plane)

    def _placement(self) -> dict[str, object]:
        offset = self._box.y0, self._box.x0
        return placement(self._image, offset, step=self._step, plane=self._plane)

    def _draw_ring(self, pixels: NDArray[np.uint8], index: int, box: Box, screen_px: float) -> None:
        width = int(np.clip(round(RING_PX * screen_px / self._step), 1, MAX_RING))
        inside = box.shifted(-self._box.y0, -self._box.x0)
        around = Box(
            inside.y0 // self._step,
            inside.x0 // self._step,
            -(-inside.y1 // self._step),
            -(-inside.x1 // self._step),
        )
        part = around.expand(width).clip(self._numbers.shape).slices
        mask = self._numbers[part] == index + 1
        grown = mask
        for _ in range(width):
            grown = _grown(grown)
        pixels[part][grown & ~mask] = RING


def _grown(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Add the pixels beside a mask."""
    grown = mask.copy()
    grown[1:] |= mask[:-1]
    grown[:-1] |= mask[1:]
    grown[:, 1:] |= mask[:, :-1]
    grown[:, :-1] |= mask[:, 1:]
    return grown
