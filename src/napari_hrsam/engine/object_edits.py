"""The part of a session that changes committed objects, in edits that can be undone."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from napari_hrsam.engine.prediction import Prediction
from napari_hrsam.engine.session_state import SessionState
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, pixel_of
from napari_hrsam.masks import ArrayMask, BlockMask
from napari_hrsam.prompts import Prompts, Scribble
from napari_hrsam.storage.labels.edits import DrawnAs, Edit
from napari_hrsam.storage.labels.properties import Properties, PropertiesChange
from napari_hrsam.storage.labels.store import LabelStore

MAX_OBJECT_PX = 2**26
"""Pixels of the box of an object that is split, filled or smoothed: it is held as a whole."""

SMALLEST_PART = 0.01
"""Share of an object below which a piece beside a cut is a crumb of its neighbour."""

SMOOTHING = 0.03
"""Default radius of smoothing, as a share of the root of the object's area."""

_Mask = NDArray[np.bool_]

EditsT = TypeVar("EditsT", bound=Edit | tuple[Edit, ...] | None)


class ObjectEdits:
    """Takes up, deletes, merges, splits, fills and smooths committed objects.

    Parameters
    ----------
    state : SessionState
        What the session is made of.
    """

    def __init__(self, state: SessionState) -> None:
        self._state = state

    def edit(self, label: int, plane: tuple[int, ...] = ()) -> Prediction:
        """Take up an object of the label image again: its mask becomes the current object.

        Any object will do, of any size, also one that another program drew. The prediction is
        exactly its mask. A click or scribble corrects it: the model sees the mask as its prior, in
        a tile that holds the object, and its answer counts in the part around the prompt where it
        differs from the mask; the rest stays, to the pixel. A box has all of it drawn anew.
        `commit` replaces it under the same id, as one step to undo;
        `cancel` leaves it as it is. `prompts` are those of its last commit if they are known and
        its mask agrees with all of them; otherwise there are none.

        Parameters
        ----------
        label : int
            The object's id.
        plane : tuple of int
            As in `click`.

        Returns
        -------
        Prediction
            With a predicted IoU of 1.

        Raises
        ------
        LabelsError
            If there is no such object on the plane, or the labels cannot be read; it names the
            ids next to it.
        SessionError
            If there is a current object, or the session is closed.
        """
        self._state.require_none("take up another one")
        prediction = self._state.drawing.take_up(
            self._state.commits.labels,
            label,
            plane,
            self._state.commits.plane(plane),
            self._state.first_level(None),
        )
        self._state.commits.offers_redo = False
        return prediction

    def edit_at(self, point_yx: Sequence[float], plane: tuple[int, ...] = ()) -> Prediction:
        """Take up the object under a point again; see `edit`.

        Parameters
        ----------
        point_yx : (float, float)
            Level-0 pixels, pixel centres at integers.
        plane : tuple of int
            As in `click`.

        Raises
        ------
        LabelsError, SessionError
            As in `edit`; also if there is no object under the point.
        PromptError
            If the point is malformed or outside the image.
        """
        self._state.require_none("take up another one")
        point = Prompts().with_click(point_yx, True).inside(self._state.image.shape_yx).points_yx[0]
        y, x = pixel_of(point)
        pixel = Box(y, x, y + 1, x + 1)
        label = int(
            self._state.commits.labels.read(pixel, plane=self._state.commits.plane(plane)).item()
        )
        if label == 0:
            raise LabelsError(
                f"expected an object at (y, x) = ({y}, {x}), got background; point at a pixel of "
                "the object, or name its id: session.edit(label)"
            )
        return self.edit(label, plane)

    def delete(self, label: int, plane: tuple[int, ...] = ()) -> Edit:
        """Take an object out of the label image, as one step to undo; its pixels become background.

        Parameters
        ----------
        label : int
            The object's id; any object, also one that another program drew.
        plane : tuple of int
            As in `click`.

        Returns
        -------
        Edit

        Raises
        ------
        LabelsError
            If there is no such object on the plane, or the label image cannot be written to.
        SessionError
            If there is a current object, or the session is closed.
        """
        self._state.require_none("delete one")
        return self._ended(self._state.commits.delete(label, plane))

    def merge(self, labels: Sequence[int], plane: tuple[int, ...] = ()) -> Edit:
        """Make one object of several: all their pixels go to the first id, as one step to undo.

        Parameters
        ----------
        labels : sequence of int
            Two or more ids of the label image, of objects of any size.
        plane : tuple of int
            As in `click`.

        Raises
        ------
        LabelsError
            If one is not there, or the labels cannot be read or written.
        SessionError
            If there is a current object, or the session is closed.
        """
        self._state.require_none("merge others")
        stored, plane = self._begun(plane)
        distinct = list(dict.fromkeys(labels))
        if len(distinct) < 2:
            raise LabelsError(f"expected two or more objects to merge, got {distinct}; name others")
        whole = Box(0, 0, 0, 0)
        for label in distinct:
            whole = whole.union(stored.find(label, plane))
        mask = BlockMask(whole, lambda part: np.isin(stored.read(part, plane=plane), distinct))
        edit = stored.replace(distinct[0], whole, mask, overwrite=True, plane=plane)
        assert edit is not None, "the others' pixels change"
        return self._ended(edit)

    def split(
        self,
        label: int,
        line_yx: Sequence[Sequence[float]] | NDArray[Any],
        plane: tuple[int, ...] = (),
    ) -> tuple[Edit, ...]:
        """Cut an object along a line; the largest piece keeps its id, others get new ones.

        Parameters
        ----------
        label : int
            Id of an object whose box has at most `object_edits.MAX_OBJECT_PX` pixels.
        line_yx : (N, 2) float
            Level-0 pixels, joined by straight lines; from outside the object to outside.
        plane : tuple of int
            As in `click`.

        Returns
        -------
        tuple of Edit
            One per new object, each one step to undo.

        Raises
        ------
        LabelsError
            If the line cuts nothing; otherwise as `merge`.
        PromptError
            If the line is malformed.
        SessionError
            As in `merge`.
        """
        self._state.require_none("split one")
        labels, plane = self._begun(plane)
        box, mask = _object(labels, label, plane)
        stroke = Scribble(points_yx=line_yx)  # type: ignore[arg-type]  # copied and checked
        parts = _parts(mask, np.floor(stroke.along(0.5) + 0.5).astype(int) - (box.y0, box.x0))
        if parts is None:
            raise LabelsError(
                f"expected a line that cuts object {label} in two, got one that leaves it in one "
                "piece; draw it from outside the object to outside"
            )
        edits = tuple(
            labels.write(
                box,
                part,
                labels.next_label(),
                overwrite=True,
                plane=plane,
                # Every piece is of the class of the whole.
                drawn=DrawnAs(object_class=labels.properties.of(label).object_class),
            )
            for part in parts
        )
        return self._ended(edits)

    def fill_holes(self, label: int, plane: tuple[int, ...] = ()) -> Edit | None:
        """Fill the holes of an object, but for pixels of others, as one step to undo.

        Parameters
        ----------
        label, plane
            As in `split`.

        Returns
        -------
        Edit or None
            None if there is nothing to fill.

        Raises
        ------
        LabelsError, SessionError
            As in `merge`.
        """
        self._state.require_none("fill one")
        labels, plane = self._begun(plane)
        box, mask = _object(labels, label, plane)
        filled = ndimage.binary_fill_holes(mask)
        return self._ended(labels.replace(label, box, ArrayMask(box, filled), plane=plane))

    def smooth(
        self, label: int, radius_px: float | None = None, plane: tuple[int, ...] = ()
    ) -> Edit | None:
        """Smooth the outline of an object, as one step to undo; others keep their pixels.

        Parameters
        ----------
        label, plane
            As in `split`.
        radius_px : float, optional
            In level-0 pixels; by default 3 % of the root of the area, 1 or more.

        Returns
        -------
        Edit or None
            None if that changes nothing.

        Raises
        ------
        LabelsError, SessionError
            As in `merge`; also if nothing would be left.
        """
        self._state.require_none("smooth one")
        labels, plane = self._begun(plane)
        box, mask = _object(labels, label, plane)
        radius = max(1.0, SMOOTHING * math.sqrt(mask.sum())) if radius_px is None else radius_px
        if not 0 < radius <= max(box.shape_yx):
            raise LabelsError(
                f"expected a radius above 0 and at most the object's {max(box.shape_yx)} px, got "
                f"{radius_px}"
            )
        wide = box.expand(math.ceil(3 * radius)).clip(labels.shape_yx)
        room = np.zeros(wide.shape_yx, np.float32)
        room[box.shifted(-wide.y0, -wide.x0).slices] = mask
        # Beyond the image nothing is known: its border is no outline.
        smoothed = ndimage.gaussian_filter(room, radius, mode="nearest", truncate=3) > 0.5
        if not smoothed.any():
            raise LabelsError(
                f"expected an object that smoothing by {radius:.1f} px leaves something of, got "
                f"{int(mask.sum())} pixels; choose a smaller radius"
            )
        return self._ended(labels.replace(label, wide, ArrayMask(wide, smoothed), plane=plane))

    def change_properties(self, make: Callable[[Properties], PropertiesChange]) -> Edit | None:
        """Change classes of the label image, or those of objects, as one step to undo.

        Parameters
        ----------
        make : callable
            Makes the change of what is told now, such as
            ``lambda told: told.setting_class([3, 5], "nucleus")``.

        Returns
        -------
        Edit or None
            None if all of it is so already.

        Raises
        ------
        LabelsError
            If the class is unusable, or the label image cannot be written to.
        SessionError
            If the session is closed.
        """
        self._state.require_open()
        return self._state.commits.labels.change_properties(
            make(self._state.commits.labels.properties)
        )

    def _begun(self, plane: tuple[int, ...]) -> tuple[LabelStore, tuple[int, ...]]:
        """Return the label image, and a plane of the image as one of it."""
        return self._state.commits.labels, self._state.commits.plane(plane)

    def _ended(self, edit: EditsT) -> EditsT:
        # What could be drawn again belongs to labels that are no more.
        self._state.drawing.end()
        return edit


def _object(labels: LabelStore, label: int, plane: tuple[int, ...]) -> tuple[Box, _Mask]:
    """Return the tight box and the pixels of an object."""
    found = labels.find(label, plane)
    if found.area > MAX_OBJECT_PX:
        raise LabelsError(
            f"expected an object in a box of at most {MAX_OBJECT_PX:,} pixels for this, got "
            f"{found.height} x {found.width} of object {label}; take it up (edit) and correct it "
            "by prompts"
        )
    mask = labels.read(found, plane=plane) == label
    tight = Box.around(mask)
    return tight.shifted(found.y0, found.x0), mask[tight.slices]


def _parts(mask: _Mask, line: NDArray[Any]) -> list[_Mask] | None:
    """Return the pieces that a line cuts off, the largest left out; None if it cuts nothing."""
    inside = ((line >= 0) & (line < mask.shape)).all(axis=1)
    line = line[inside]
    drawn = np.zeros(mask.shape, bool)
    drawn[line[:, 0], line[:, 1]] = True
    # Thick enough that no corner connects both sides.
    drawn = ndimage.binary_dilation(drawn, np.ones((3, 3), bool)) & mask
    pieces = ndimage.label(mask, np.ones((3, 3), int))[0]
    touched = [n for n in np.unique(pieces[drawn]) if n]
    cut, num = ndimage.label(np.isin(pieces, touched) & ~drawn)
    sizes = np.bincount(cut.ravel(), minlength=num + 1)
    whole = int(np.isin(pieces, touched).sum())
    kept = [n for n in range(1, num + 1) if sizes[n] >= SMALLEST_PART * whole]
    if not touched or len(kept) < 2:
        return None
    # The pixels of the line, and crumbs, go to the nearest piece.
    seeds = np.where(np.isin(cut, kept), cut, 0)
    nearest = ndimage.distance_transform_edt(
        seeds == 0, return_distances=False, return_indices=True
    )
    owners = np.where(np.isin(pieces, touched), seeds[tuple(nearest)], 0)
    areas = np.bincount(owners.ravel(), minlength=num + 1)
    largest = max(kept, key=lambda n: areas[n])
    return [owners == n for n in kept if n != largest]
