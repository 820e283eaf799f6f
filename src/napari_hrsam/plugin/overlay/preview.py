"""The editable layer that shows the current object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Labels
from napari.utils.colormaps import CyclicLabelColormap

from napari_hrsam.geometry import Box
from napari_hrsam.plugin.canvas.coordinates import place, placement
from napari_hrsam.plugin.overlay.strokes import KEEP, Strokes, apply_strokes, grid_box

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Image
    from numpy.typing import NDArray

OBJECT_COLOR = (0.0, 0.85, 1.0)
OPACITY = 0.45


class PreviewLayer:
    """One uint8 Labels layer (0 and 1) over the prediction's box, reused for every object.

    Whatever label the user paints with, it looks alike and counts as the object; only 0 does not.

    At coarse levels its pixels are those of the level. What the user paints in it is kept apart
    from what was predicted, so that strokes survive further clicks and an untouched preview is
    known to be the prediction itself.

    Parameters
    ----------
    viewer
        The viewer to add the layer to.
    image
        The layer whose pixel grid it shares; of a stack it covers one plane.
    """

    def __init__(self, viewer: napari.components.ViewerModel, image: Image) -> None:
        self._image = image
        self._axes = (1,) * (image.ndim - 2)
        self._box: Box | None = None
        self._step = 1
        self._plane: tuple[int, ...] = ()
        self._drawn = np.zeros((1, 1), np.uint8)
        self._edits: Strokes | None = None
        self._num_strokes = 0
        self._num_undone = 0
        self.layer = Labels(
            self._drawn.reshape(*self._axes, 1, 1).copy(),
            name=f"{image.name} [current]",
            colormap=_of_one_color(OBJECT_COLOR),
            opacity=OPACITY,
            **placement(image),
        )
        self.layer.brush_size = 8
        viewer.add_layer(self.layer)
        self.layer.events.paint.connect(self._count_stroke)

    def set_color(self, color: tuple[float, float, float]) -> None:
        """Show the object in a colour: red, green and blue from 0 to 1."""
        self.layer.colormap = _of_one_color(color)

    @property
    def box(self) -> Box | None:
        """Level-0 box that the layer covers, or None while there is no object."""
        return self._box

    @property
    def step(self) -> int:
        """Level-0 pixels per pixel of the layer."""
        return self._step

    @property
    def num_pixels(self) -> int:
        """Level-0 pixels of the object that is shown, strokes included."""
        return int(np.count_nonzero(self.pixels)) * self._step**2

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """What is shown, (height, width), without the axes of planes; a view."""
        data = np.asarray(self.layer.data)
        pixels: NDArray[np.uint8] = data.reshape(data.shape[-2:])
        return pixels

    def show(
        self,
        mask: NDArray[np.bool_],
        box: Box,
        step: int = 1,
        plane: tuple[int, ...] = (),
    ) -> None:
        """Show a prediction, with the user's strokes on top.

        Parameters
        ----------
        mask : (ceil(box.height / step), ceil(box.width / step)) bool
            The predicted object.
        box
            Where it lies, in level-0 pixels, beginning on a multiple of ``step``.
        step
            Level-0 pixels per pixel of the mask.
        plane
            Where it lies along the axes before y and x.
        """
        self._edits = self.strokes()
        shown = apply_strokes(mask, box, self._edits, step).astype(np.uint8)
        self._draw(shown)
        self._box, self._step, self._plane = box, step, plane
        self.move_with_image()

    def clear(self) -> None:
        """Show no object and forget the strokes."""
        self._edits = None
        self._box = None
        self.layer.selected_label = 1
        self._draw(np.zeros_like(self._drawn))
        self.layer.refresh(data_displayed=False, extent=False, highlight=False)

    def move_with_image(self) -> None:
        """Follow a change of the image layer's transform."""
        offset = (0, 0) if self._box is None else (self._box.y0, self._box.x0)
        place(self.layer, self._image, offset, step=self._step, plane=self._plane)

    def take_brush_on(self, plane: tuple[int, ...] | None) -> None:
        """Let napari's brush work where the layer has pixels only: it fails on other planes.

        Parameters
        ----------
        plane
            The one that is shown; None for no plane of the image.
        """
        is_here = plane == (self._plane or (0,) * len(self._axes))
        # Not its `editable`: napari would forget how strokes are undone.
        if not is_here and str(self.layer.mode) != "pan_zoom":
            self.layer.mode = "pan_zoom"

    def strokes(self) -> Strokes | None:
        """Return what the user painted for the current object; None if nothing was painted."""
        pixels = self.pixels
        if self._box is None or pixels.shape != self._drawn.shape:
            return self._edits
        present = (pixels != 0).astype(np.uint8)
        changed = present != self._drawn
        if not changed.any():
            return self._edits
        values = np.where(changed, present, np.uint8(KEEP))
        newer = Strokes(grid_box(self._box, self._step), values, self._step)
        return newer if self._edits is None else self._edits.with_newer(newer)

    def take_strokes(self) -> Strokes | None:
        """Return `strokes` and forget them: what is shown counts as predicted from now on."""
        edits = self.strokes()
        self._edits = None
        if self.pixels.shape == self._drawn.shape:
            self._drawn = (self.pixels != 0).astype(np.uint8)
        self._forget_history()
        return edits

    def put_strokes(self, edits: Strokes | None) -> None:
        """Bring back edits that were taken, to be shown with the next prediction."""
        if edits is not None:
            self._edits = edits

    def undo_stroke(self) -> bool:
        """Undo the last brush stroke since the last prediction; False if there is none."""
        if not self._num_strokes:
            return False
        self._num_strokes -= 1
        self._num_undone += 1
        self.layer.undo()
        return True

    def redo_stroke(self) -> bool:
        """Redo the last stroke that was undone; False if there is none."""
        if not self._num_undone:
            return False
        self._num_strokes += 1
        self._num_undone -= 1
        self.layer.redo()
        return True

    def _count_stroke(self) -> None:
        self._num_strokes += 1
        self._num_undone = 0

    def _draw(self, pixels: NDArray[np.uint8]) -> None:
        self._forget_history()
        self._drawn = pixels
        if self.pixels.shape == pixels.shape:
            self.layer.data[...] = pixels
            self.layer.refresh(thumbnail=False, extent=False, highlight=False)
        else:
            self.layer.data = pixels.reshape(*self._axes, *pixels.shape).copy()

    def _forget_history(self) -> None:
        # New data does not clear napari's undo steps: they would paste old pixels at a new place.
        if not self._num_strokes and not self._num_undone:
            return
        mode = self.layer.mode
        self.layer.editable = False
        self.layer.editable = True
        self.layer.mode = mode
        self._num_strokes = self._num_undone = 0


def _of_one_color(color: tuple[float, float, float]) -> CyclicLabelColormap:
    # Every label gets it. A direct map would be compiled for seconds, in each process, on the
    # thread that draws.
    return CyclicLabelColormap(colors=np.array([(0, 0, 0, 0), (*color, 1.0)], np.float32))
