"""The part of a session that carries objects over the planes of a stack, in space or time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.carried import Carried, shape_between
from napari_hrsam.engine.embed import Progress
from napari_hrsam.engine.prediction import Prediction
from napari_hrsam.engine.session_state import SessionState
from napari_hrsam.engine.taken_up import take_up
from napari_hrsam.errors import LabelsError, PromptError, SessionError
from napari_hrsam.geometry import Grid
from napari_hrsam.masks import RegionMask
from napari_hrsam.storage.labels.arguments import NoSuchLabelError, require_fits
from napari_hrsam.storage.labels.edits import DrawnAs, Edit

MIN_IOU = 0.7
"""Predicted IoU below which an object is not carried on by itself."""

MIN_OVERLAP = 0.5
"""IoU with the plane before below which an object is not carried on by itself."""

MAX_COVERED = 0.5
"""Share of an object that may lie on other objects; beyond it, it has run into them."""

_GRID = Grid((1024, 1024))


class Stop(StrEnum):
    """Why an object was carried no further."""

    DONE = "all planes are done"
    END = "the stack ends here"
    DOUBTFUL = "the model is not sure of it here"
    NOTHING = "nothing was found here"
    COVERED = "other objects are here"
    DRAWN = "it is drawn here already"


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlanesReport:
    """On which planes an object was drawn by itself, and why no further.

    Attributes
    ----------
    label : int
        Its id.
    edits : tuple of Edit
        What was committed, in this order; each can be undone. The first one may be of the object
        that was being drawn.
    planes : tuple of tuple of int
        Planes of the image on which it was drawn.
    stop : Stop
        Why no further.
    stopped_at : tuple of int or None
        The first plane on which it was not drawn; None if all are done, or the stack ends.
    iou, overlap : float or None
        There: what the model thinks of its mask, and the IoU of that with the plane before.
    """

    label: int
    edits: tuple[Edit, ...]
    planes: tuple[tuple[int, ...], ...]
    stop: Stop
    stopped_at: tuple[int, ...] | None = None
    iou: float | None = None
    overlap: float | None = None


class OverPlanes:
    """Continues the objects of a session on other planes.

    Parameters
    ----------
    state : SessionState
        What the session is made of.
    """

    def __init__(self, state: SessionState) -> None:
        self._state = state

    def continue_on(
        self,
        plane: tuple[int, ...],
        label: int | None = None,
        from_plane: tuple[int, ...] = (),
        *,
        mask: NDArray[Any] | None = None,
        on_commit: Callable[[Edit], None] | None = None,
    ) -> Prediction:
        """Continue an object on another plane of the stack, where it becomes the current object.

        The model is asked with a click in the middle of its mask, on the pixels of the other plane
        (where these lack it, with a box); where the answer is not like the mask, also with the mask
        as a prior, and what is more like it counts. Prompts correct what it finds; `commit`
        writes it under the same id; the plane that it comes from stays as it is. `prompts` begin
        with that click.

        Parameters
        ----------
        plane : tuple of int
            Where to: it differs from the object's plane along one axis.
        label : int, optional
            Id of a committed object. By default the current object is continued, which is
            committed first.
        from_plane : tuple of int
            Plane of the committed object.
        mask : bool or integer array, optional
            The current object as edited by hand, as in `commit`.
        on_commit : callable of Edit, optional
            Called after the commit of the current object, if there is something to commit.

        Returns
        -------
        Prediction
            With the model's own estimate of its IoU.

        Raises
        ------
        PromptError
            If there is no such plane, or it is none along one axis from the other.
        LabelsError
            If there is no such object, it is drawn on that plane already, or the labels cannot be
            read or written.
        SessionError
            If there is neither a current object nor a label, or both; or the model fails. The
            current object is committed then.
        """
        label, from_plane = self._source(label, from_plane)
        self._axis_between(from_plane, plane)
        if label and self._is_drawn(label, plane):
            raise LabelsError(
                f"expected a plane on which object {label} is not drawn yet, got {plane}; change "
                f"it there: session.edit({label}, plane={plane})"
            )
        label = self._committed(label, mask, on_commit)
        return self._carry(label, from_plane, plane)

    def propagate(
        self,
        num_planes: int,
        label: int | None = None,
        plane: tuple[int, ...] = (),
        *,
        axis: int = -1,
        min_iou: float = MIN_IOU,
        min_overlap: float = MIN_OVERLAP,
        mask: NDArray[Any] | None = None,
        progress: Progress | None = None,
        on_commit: Callable[[Edit], None] | None = None,
    ) -> PlanesReport:
        """Continue an object plane by plane, while the model is sure of it, and commit it there.

        Each plane is one commit under the object's id, to be undone by itself. Nothing is drawn
        over: it ends where the object is drawn already, or where most of it would lie on others.
        The plane on which it ends is left as it is.

        Parameters
        ----------
        num_planes : int
            How many, 1 or more; negative: towards plane 0.
        label, plane
            A committed object and its plane. By default the current object, which is committed
            first.
        axis : int
            Axis of the plane along which to go; the last one, usually z, by default.
        min_iou : float
            It ends where the model thinks less of its own mask, 0..1.
        min_overlap : float
            It ends where the IoU with the plane before is less, 0..1.
        mask : bool or integer array, optional
            The current object as edited by hand, as in `commit`.
        progress : callable of (done, total), optional
            Called before every plane. What it raises ends the work; what is committed stays.
        on_commit : callable of Edit, optional
            Called after every commit.

        Returns
        -------
        PlanesReport

        Raises
        ------
        PromptError
            If the number is 0, or there is no such axis, limit or plane.
        LabelsError, SessionError
            As in `continue_on`. What was committed before stays.
        """
        num_planes = index(num_planes)
        axes = len(self._state.image.plane_shape)
        limits_fit = 0 <= min_iou <= 1 and 0 <= min_overlap <= 1
        if num_planes == 0 or not -axes <= axis < axes or not limits_fit:
            raise PromptError(
                f"expected a number of planes other than 0, an axis from {-axes} to {axes - 1} and "
                f"limits from 0 to 1, got {num_planes}, axis {axis}, min_iou {min_iou:g} and "
                f"min_overlap {min_overlap:g}; the image has planes of shape "
                f"{self._state.image.plane_shape}"
            )
        label, plane = self._source(label, plane)
        edits: list[Edit] = []

        def note(edit: Edit) -> None:
            edits.append(edit)
            if on_commit is not None:
                on_commit(edit)

        label = self._committed(label, mask, note)
        reached: list[tuple[int, ...]] = []
        found: dict[str, Any] = {"stop": Stop.DONE}
        for done in range(abs(num_planes)):
            if progress is not None:
                progress(done, abs(num_planes))
            following = list(plane)
            following[axis] += 1 if num_planes > 0 else -1
            if not 0 <= following[axis] < self._state.image.plane_shape[axis]:
                found = {"stop": Stop.END}
                break
            found = self._go_on(label, plane, tuple(following), min_iou, min_overlap, note)
            if found["stop"] is not Stop.DONE:
                break
            plane = tuple(following)
            reached.append(plane)
        return PlanesReport(label=label, edits=tuple(edits), planes=tuple(reached), **found)

    def interpolate(
        self,
        label: int,
        first_plane: tuple[int, ...],
        last_plane: tuple[int, ...],
        *,
        refine: bool = False,
        min_iou: float = MIN_IOU,
        min_overlap: float = MIN_OVERLAP,
        progress: Progress | None = None,
        on_commit: Callable[[Edit], None] | None = None,
    ) -> PlanesReport:
        """Draw an object on the planes between two on which it is drawn, and commit it there.

        Its shape changes evenly from one to the other (signed distances from the outlines). Each
        plane is one commit under the object's id. Planes on which it is drawn already stay as they
        are, and so do pixels of other objects; where these leave none, it is not drawn.

        Parameters
        ----------
        label : int
            The object's id.
        first_plane, last_plane : tuple of int
            They differ along one axis.
        refine : bool
            Whether the model looks at each shape as at one that is continued; where it is not sure
            of its answer (``min_iou``, ``min_overlap`` with the shape), the shape counts.
        min_iou, min_overlap, progress, on_commit
            As in `propagate`.

        Returns
        -------
        PlanesReport
            Its ``stopped_at`` is the first plane that was left out, if one was.

        Raises
        ------
        PromptError, LabelsError, SessionError
            As in `propagate`; also if there is a current object, no plane lies between, or the
            object is too large.
        """
        self._state.require_none("interpolate one")
        axis = self._axis_between(first_plane, last_plane)
        start, end = first_plane[axis], last_plane[axis]
        if abs(end - start) < 2:
            raise PromptError(
                f"expected two planes with others between them, got {first_plane} and {last_plane}"
                "; give planes that lie farther apart"
            )
        ends = [self._carried(label, plane) for plane in (first_plane, last_plane)]
        edits: list[Edit] = []
        reached: list[tuple[int, ...]] = []
        left_out: dict[str, Any] = {"stop": Stop.DONE}
        step = 1 if end > start else -1
        between = range(start + step, end, step)
        for done, place in enumerate(between):
            if progress is not None:
                progress(done, len(between))
            plane = (*first_plane[:axis], place, *first_plane[axis + 1 :])
            shape = shape_between(
                ends[0], ends[1], (place - start) / (end - start), self._state.image.shape_yx
            )
            stop = Stop.DRAWN if self._is_drawn(label, plane) else Stop.DONE
            if stop is Stop.DONE and self._share_covered(shape.mask, plane) == 1:
                stop = Stop.COVERED
            if stop is not Stop.DONE:
                left_out = (
                    left_out if "stopped_at" in left_out else {"stop": stop, "stopped_at": plane}
                )
                continue
            edit = self._refined(shape, plane, min_iou, min_overlap) if refine else None
            if edit is None:
                edit = self._state.commits.labels.write(
                    shape.box,
                    shape.mask,
                    label,
                    drawn=DrawnAs(model="interpolated"),
                    plane=self._state.commits.plane(plane),
                )
            edits.append(edit)
            reached.append(plane)
            if on_commit is not None:
                on_commit(edit)
        self._state.drawing.end()
        return PlanesReport(label=label, edits=tuple(edits), planes=tuple(reached), **left_out)

    def gaps(
        self, label: int, plane: tuple[int, ...], *, axis: int = -1
    ) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Return the pairs of planes between which an object is missing, for `interpolate`.

        Parameters
        ----------
        label : int
            The object's id.
        plane : tuple of int
            One on which it is drawn: it is one of each pair; the other is the nearest along the
            axis, towards either end, on which the object is drawn, if that is not the next one.
        axis : int
            As in `propagate`.

        Raises
        ------
        PromptError, LabelsError
            If there is no such plane, or the object is not drawn on it.
        """
        self._carried(label, plane)
        found = []
        for places in (
            range(plane[axis] + 1, self._state.image.plane_shape[axis]),
            range(plane[axis] - 1, -1, -1),
        ):
            others = ((*plane[:axis], at, *plane[axis:][1:]) for at in places)
            other = next((one for one in others if self._is_drawn(label, one)), None)
            if other is not None and abs(other[axis] - plane[axis]) > 1:
                found.append((plane, other))
        return found

    # ------------------------------------------------------------------ inside

    def _source(self, label: int | None, plane: tuple[int, ...]) -> tuple[int, tuple[int, ...]]:
        """Return id (0: none yet) and plane of the object that is to be continued."""
        self._state.require_open()
        if set(self._state.image.plane_shape) <= {1}:
            raise SessionError(
                "expected a stack, got an image of one plane; there is no other one to go to"
            )
        if label is not None:
            self._state.require_none("continue another one")
            require_fits(label, np.dtype(np.uint64))
            self._require_plane(plane)
            return index(label), plane
        step = self._state.drawing.step
        if step is None:
            raise SessionError(
                "expected an object to continue, got none; draw one, or name a committed one: "
                "its id and its plane"
            )
        return step.label, step.prediction.tile.plane

    def _committed(
        self,
        label: int,
        mask: NDArray[Any] | None,
        on_commit: Callable[[Edit], None] | None,
    ) -> int:
        """Commit the current object, if there is one; return its id."""
        if self._state.drawing.step is None:
            return label
        edit = self._state.commit(mask)
        if on_commit is not None and not edit.is_empty:
            on_commit(edit)
        return edit.label

    def _carried(self, label: int, plane: tuple[int, ...]) -> Carried:
        """Read an object."""
        self._require_plane(plane)
        taken, mask = take_up(self._state.commits.labels, label, self._state.commits.plane(plane))
        return Carried(label=label, plane=plane, mask=mask, box=taken.box)

    def _carry(self, label: int, from_plane: tuple[int, ...], plane: tuple[int, ...]) -> Prediction:
        prediction = self._state.drawing.carry(
            self._carried(label, from_plane), self._state.first_level(None), plane
        )
        self._state.commits.offers_redo = False
        return prediction

    def _go_on(
        self,
        label: int,
        plane: tuple[int, ...],
        following: tuple[int, ...],
        min_iou: float,
        min_overlap: float,
        on_commit: Callable[[Edit], None],
    ) -> dict[str, Any]:
        """Draw an object on the next plane and commit it; return why not, and what was found."""
        if self._is_drawn(label, following):
            return {"stop": Stop.DRAWN, "stopped_at": following}
        try:
            prediction = self._carry(label, plane, following)
            found = self._look_at(prediction, min_iou, min_overlap)
            if found["stop"] is Stop.DONE:
                on_commit(self._state.commit())
                return {"stop": Stop.DONE}
        finally:
            self._state.drawing.end()
        return {"stopped_at": following, **found}

    def _look_at(
        self, prediction: Prediction, min_iou: float, min_overlap: float
    ) -> dict[str, Any]:
        """Judge what was found of the current object, which was carried here."""
        step = self._state.drawing.required()
        assert step.carried is not None
        overlap = step.carried.overlap(prediction.tile, prediction.multiscale.logits)
        stop = Stop.DONE
        if not prediction:
            stop = Stop.NOTHING
        elif prediction.iou < min_iou or overlap < min_overlap:
            stop = Stop.DOUBTFUL
        elif self._share_covered(prediction.region, prediction.tile.plane) > MAX_COVERED:
            stop = Stop.COVERED
        return {"stop": stop, "iou": prediction.iou, "overlap": overlap}

    def _refined(
        self, shape: Carried, plane: tuple[int, ...], min_iou: float, min_overlap: float
    ) -> Edit | None:
        """Let the model look at a shape, and commit its answer if it is sure of that."""
        try:
            prediction = self._state.drawing.carry(shape, self._state.first_level(None), plane)
            if self._look_at(prediction, min_iou, min_overlap)["stop"] is Stop.DONE:
                return self._state.commit()
        finally:
            self._state.drawing.end()
        return None

    def _share_covered(self, mask: RegionMask, plane: tuple[int, ...]) -> float:
        """Return the share of a mask that lies on committed objects, 0..1."""
        stored = self._state.commits.plane(plane)
        num_px = num_covered = 0
        for part in _GRID.parts(mask.box):
            if mask.fills(part) is False:
                continue
            inside = mask.read(part)
            num_px += int(np.count_nonzero(inside))
            num_covered += int(
                np.count_nonzero(self._state.commits.labels.read(part, plane=stored)[inside])
            )
        return num_covered / num_px if num_px else 0.0

    def _is_drawn(self, label: int, plane: tuple[int, ...]) -> bool:
        try:
            self._state.commits.labels.find(label, self._state.commits.plane(plane))
        except NoSuchLabelError:
            return False
        return True

    def _require_plane(self, plane: tuple[int, ...]) -> None:
        shape = self._state.image.plane_shape
        if len(plane) != len(shape) or not all(
            0 <= place < size for place, size in zip(plane, shape, strict=True)
        ):
            raise PromptError(
                f"expected a plane of the image, which has planes of shape {shape}, got {plane}; "
                "give one index per axis before y and x"
            )

    def _axis_between(self, plane: tuple[int, ...], other: tuple[int, ...]) -> int:
        """Return the one axis along which two planes differ."""
        self._require_plane(plane)
        self._require_plane(other)
        axes = [axis for axis, (a, b) in enumerate(zip(plane, other, strict=True)) if a != b]
        if len(axes) != 1:
            raise PromptError(
                f"expected two planes that differ along one axis, got {plane} and {other}; go "
                "along one axis at a time"
            )
        return axes[0]
