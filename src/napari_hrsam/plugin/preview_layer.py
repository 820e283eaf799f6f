"""The editable layer that shows the current object."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from napari.layers import Labels
from napari.utils.colormaps import DirectLabelColormap

from napari_hrsam.geometry import Box
from napari_hrsam.plugin.coordinates import place, placement

if TYPE_CHECKING:
    import napari.components
    from napari.layers import Image

OBJECT_COLOR = (0.0, 0.85, 1.0, 1.0)
OPACITY = 0.45
KEEP = 2  # in an array of hand edits: the user did not paint here


class PreviewLayer:
    """One uint8 Labels layer (0 and 1) over the prediction's box, reused for every object.

    What the user paints in it is kept apart from what was predicted, so that strokes survive
    further clicks and an untouched preview is known to be the prediction itself.

    Parameters
    ----------
    viewer
        The viewer to add the layer to.
    image
        The layer whose pixel grid it shares.
    """

    def __init__(self, viewer: napari.components.ViewerModel, image: Image) -> None:
        self._image = image
        self._box: Box | None = None
        self._drawn = np.zeros((1, 1), np.uint8)
        self._edits: tuple[Box, np.ndarray] | None = None
        self._num_strokes = 0
        self._num_undone = 0
        self.layer = Labels(
            self._drawn.copy(),
            name=f"{image.name} [current]",
            colormap=DirectLabelColormap(color_dict={None: (0, 0, 0, 0), 1: OBJECT_COLOR}),
            opacity=OPACITY,
            **placement(image),
        )
        self.layer.brush_size = 8
        viewer.add_layer(self.layer)
        self.layer.events.paint.connect(self._count_stroke)

    @property
    def box(self) -> Box | None:
        """Level-0 box that the layer covers, or None while there is no object."""
        return self._box

    def show(self, mask: np.ndarray, box: Box) -> None:
        """Show a prediction, with the user's strokes on top.

        Parameters
        ----------
        mask : (box.height, box.width) bool
            The predicted object at level 0.
        box
            Where it lies, in level-0 pixels.
        """
        self._edits = self.hand_edits()
        shown = apply_edits(mask, box, self._edits).astype(np.uint8)
        self._draw(shown)
        self._box = box
        place(self.layer, self._image, (box.y0, box.x0))

    def clear(self) -> None:
        """Show no object and forget the strokes."""
        self._edits = None
        self._box = None
        self._draw(np.zeros_like(self._drawn))
        self.layer.refresh(data_displayed=False, extent=False, highlight=False)

    def move_with_image(self) -> None:
        """Follow a change of the image layer's transform."""
        offset = (0, 0) if self._box is None else (self._box.y0, self._box.x0)
        place(self.layer, self._image, offset)

    def hand_edits(self) -> tuple[Box, np.ndarray] | None:
        """Tell what the user painted for the current object.

        Returns
        -------
        tuple of Box and (box.height, box.width) uint8, or None
            0 and 1 where pixels were painted so, `KEEP` elsewhere; None if nothing was painted.
        """
        data = np.asarray(self.layer.data)
        if self._box is None or data.shape != self._drawn.shape:
            return self._edits
        present = (data != 0).astype(np.uint8)
        changed = present != self._drawn
        if not changed.any():
            return self._edits
        box = self._box if self._edits is None else self._box.union(self._edits[0])
        edits = np.full((box.height, box.width), KEEP, np.uint8)
        if self._edits is not None:
            edits[_within(self._edits[0], box)] = self._edits[1]
        edits[_within(self._box, box)][changed] = present[changed]
        return box, edits

    def take_hand_edits(self) -> tuple[Box, np.ndarray] | None:
        """Return `hand_edits` and forget them: what is shown counts as predicted from now on."""
        edits = self.hand_edits()
        self._edits = None
        if self.layer.data.shape == self._drawn.shape:
            self._drawn = (np.asarray(self.layer.data) != 0).astype(np.uint8)
        self._forget_history()
        return edits

    def put_hand_edits(self, edits: tuple[Box, np.ndarray] | None) -> None:
        """Bring back edits that were taken, to be shown with the next prediction."""
        if edits is not None:
            self._edits = edits

    def undo_stroke(self) -> bool:
        """Take back the last brush stroke since the last prediction; False if there is none."""
        if not self._num_strokes:
            return False
        self._num_strokes -= 1
        self._num_undone += 1
        self.layer.undo()
        return True

    def redo_stroke(self) -> bool:
        """Repeat the last stroke that was taken back; False if there is none."""
        if not self._num_undone:
            return False
        self._num_strokes += 1
        self._num_undone -= 1
        self.layer.redo()
        return True

    def _count_stroke(self) -> None:
        self._num_strokes += 1
        self._num_undone = 0

    def _draw(self, pixels: np.ndarray) -> None:
        self._forget_history()
        self._drawn = pixels
        if self.layer.data.shape == pixels.shape:
            self.layer.data[...] = pixels
            self.layer.refresh(thumbnail=False, extent=False, highlight=False)
        else:
            self.layer.data = pixels.copy()

    def _forget_history(self) -> None:
        # New data does not clear napari's undo steps: they would paste old pixels at a new place.
        if not self._num_strokes and not self._num_undone:
            return
        mode = self.layer.mode
        self.layer.editable = False
        self.layer.editable = True
        self.layer.mode = mode
        self._num_strokes = self._num_undone = 0


def apply_edits(mask: np.ndarray, box: Box, edits: tuple[Box, np.ndarray] | None) -> np.ndarray:
    """Put the user's strokes on a mask.

    Parameters
    ----------
    mask : (box.height, box.width) bool
        Predicted object; not changed.
    box
        Its place in level-0 pixels.
    edits
        As from `PreviewLayer.hand_edits`; strokes outside `box` are left out.

    Returns
    -------
    (box.height, box.width) bool
    """
    edited = np.array(mask, dtype=bool)
    common = None if edits is None else box.intersection(edits[0])
    if edits is None or common is None or not common.area:
        return edited
    painted = edits[1][_within(common, edits[0])]
    region = edited[_within(common, box)]
    region[painted != KEEP] = painted[painted != KEEP] != 0
    return edited


def _within(inner: Box, outer: Box) -> tuple[slice, slice]:
    return (
        slice(inner.y0 - outer.y0, inner.y1 - outer.y0),
        slice(inner.x0 - outer.x0, inner.x1 - outer.x0),
    )
