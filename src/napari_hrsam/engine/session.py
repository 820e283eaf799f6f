"""The state of work on one image: the object being drawn, its history, and the stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine.carried import Carried
from napari_hrsam.engine.commits import Commits
from napari_hrsam.engine.drawing import Drawing, Step
from napari_hrsam.engine.embed import Progress
from napari_hrsam.engine.encodes_ahead import EncodesAhead
from napari_hrsam.engine.local_correction import STROKE_PLACES
from napari_hrsam.engine.object_edits import ObjectEdits
from napari_hrsam.engine.object_predictor import ObjectPredictor
from napari_hrsam.engine.outline import Refiner
from napari_hrsam.engine.outline_network import OutlineNetwork
from napari_hrsam.engine.over_planes import OverPlanes
from napari_hrsam.engine.parts import carried_out
from napari_hrsam.engine.prediction import Prediction
from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.engine.session_state import SessionState
from napari_hrsam.engine.taken_up import TakenUp
from napari_hrsam.engine.tile_cache import NotEncodedError, TileCache
from napari_hrsam.errors import HRSAMError
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.images.tile_source import PyramidImage
from napari_hrsam.storage.labels.edits import Edit
from napari_hrsam.storage.labels.store import LabelStore
from napari_hrsam.storage.labels.unfinished import Unfinished

if TYPE_CHECKING:
    from napari_hrsam.engine.remote_encoder import RemoteEncoder
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.storage.embeddings.store import EmbeddingStore

EditT = TypeVar("EditT", bound=Edit | None)

__all__ = ["DrawnObjects", "Edit", "Prediction", "Session"]


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnObjects:
    """What `Session.draw_each` did.

    Attributes
    ----------
    edits : tuple of Edit
        One per object that was committed, in their order.
    skipped : tuple of (int, str)
        Place of every other in the sequence that was given, and why.
    """

    edits: tuple[Edit, ...] = ()
    skipped: tuple[tuple[int, str], ...] = ()


class Session:
    """Draw objects on one image by clicks, scribbles and boxes; commit them to a label image.

    A session belongs to one thread at a time. It changes the label image only in `commit`,
    `delete`, `undo`, `redo`, and, in stacks, `continue_on`, `propagate` and `interpolate`; the
    image, never.

    Parameters
    ----------
    model : Segmenter or str
        A loaded model, or a name for `load_model`.
    image : PyramidImage, or anything that `open_image` takes
        What is annotated; its pixels are read when they are wanted.
    labels : LabelStore, (H, W) integer array, or None
        Where objects are committed: labels from `create_labels` or `open_labels`, whose earlier
        commits can be undone, or an array, which is changed in place. None: a new uint32 image in
        memory, made when it is first needed.
    enforce_clicks : bool
        Whether a mask that contradicts a click or a scribble is corrected around it.
    max_embeddings : int
        Tiles whose embeddings are kept in memory, 1 or more; fewer if they take 512 MiB.
    embeddings : EmbeddingStore, optional
        Where embeddings are kept on disk too, for later sessions. By default they are not.
    remote : RemoteEncoder, optional
        A server that encodes tiles, see ``napari-hrsam serve``; while it does not answer they are
        encoded here.
    outliner : Refiner, optional
        What draws the outlines of objects larger than a tile at finer levels; by default the
        shipped network.
    before_look : callable, optional
        Called before the model looks at a tile for a prompt. What it raises ends the work,
        and the object stays as it was.

    Attributes
    ----------
    image
        What the session works on.
    view_level : int or None
        Level of the first look at a new object when a prompt names none; None for full size, or
        the enlargement at which a small image fills the model's tile.
    outline_level : int or None
        Level at which outlines of objects larger than a tile are drawn in the end; None for the
        level at which the object was first looked at. 0 is full resolution.

    Raises
    ------
    ImageError, LabelsError
        If the image or the labels are unusable, or do not have the same shape.

    Examples
    --------
    >>> with Session("hrsam-tiny", image) as session:  # doctest: +SKIP
    ...     session.click((120, 80))
    ...     session.click((140, 95), positive=False)
    ...     edit = session.commit()
    ...     session.edit(edit.label)  # take it up again
    ...     session.scribble([(118, 70), (121, 90)], positive=False)
    ...     session.commit()
    """

    def __init__(
        self,
        model: Segmenter | str,
        image: Any,
        labels: LabelStore | NDArray[Any] | None = None,
        *,
        enforce_clicks: bool = True,
        max_embeddings: int = 64,
        embeddings: EmbeddingStore | None = None,
        remote: RemoteEncoder | None = None,
        outliner: Refiner | None = None,
        before_look: Callable[[], None] | None = None,
    ) -> None:
        self.image: PyramidImage = open_image(image)
        commits = Commits(self.image, labels)
        predictor = Predictor(loaded(model))
        self._embeddings = embeddings
        self._remote = remote
        self._tiles = TileCache(
            self.image, predictor, max_tiles=max_embeddings, store=embeddings, remote=remote
        )
        self._objects = ObjectPredictor(
            self.image,
            predictor,
            self._tiles,
            enforce_clicks=enforce_clicks,
            before_look=before_look,
        )
        self._outliner = outliner or OutlineNetwork(str(predictor.segmenter.device))
        self._drawing = Drawing(self.image, self._objects, self._outliner)
        self._state = state = SessionState(
            image=self.image,
            predictor=predictor,
            tiles=self._tiles,
            commits=commits,
            drawing=self._drawing,
        )
        self._edits = ObjectEdits(state)
        self._planes = OverPlanes(state)
        self._ahead = EncodesAhead(state)

    def __enter__(self) -> Session:
        """Return the session itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the session."""
        self.close()

    def close(self) -> None:
        """Forget the current object and the embeddings; the labels stay as committed."""
        self._drawing.end()
        self._tiles.clear()
        self._state.is_closed = True

    def with_model(self, model: Segmenter | str) -> Session:
        """Go on with another model on the same image and labels; this session is closed.

        Commits keep their undo and redo. The current object is dropped: its logits and embedding
        are the old model's.

        Parameters
        ----------
        model : Segmenter or str
            A loaded model, or a name for `load_model`.

        Returns
        -------
        Session
        """
        other = self._successor(model, self.image)
        self.close()
        return other

    def with_image(self, image: Any) -> Session:
        """Go on with the same image shown otherwise, on the same labels; this session is closed.

        Commits keep their undo and redo. The current object keeps its prompts and is looked at
        again, once for each of them, so that each can be taken back; what was taken back before
        cannot be repeated. The tiles in memory are dropped; those on disk are kept by what the
        model was shown.

        Parameters
        ----------
        image : PyramidImage, or anything that `open_image` takes
            The same pixels with other limits, colours or channels.

        Returns
        -------
        Session

        Raises
        ------
        ImageError, LabelsError, ImageReadError, SessionError
            If the image is unusable or of another shape, or the model fails. This session stays as
            it was.
        """
        other = self._successor(self._state.predictor.segmenter, image, self._drawing.steps)
        self.close()
        return other

    def _successor(
        self, model: Segmenter | str, image: Any, steps: tuple[Step, ...] = ()
    ) -> Session:
        """Begin a session that differs in model or image only, and take some steps in it."""
        other = Session(
            model,
            image,
            self.labels,
            enforce_clicks=self._objects.enforce_clicks,
            max_embeddings=self._tiles.max_tiles,
            embeddings=self._embeddings,
            remote=self._remote,
            outliner=self._outliner,
            before_look=self._objects.before_look,
        )
        other.view_level = self.view_level
        other.outline_level = self.outline_level
        try:
            other._drawing.follow(steps)
        except BaseException:
            other.close()
            raise
        other._state.commits.offers_redo = self._state.commits.offers_redo
        return other

    def __repr__(self) -> str:
        """Tell the model, the image and the current object in one line."""
        state = "closed" if self._state.is_closed else f"{len(self.prompts)} prompts"
        return f"Session({self._state.predictor.name} on {self.image!r}, {state})"

    @property
    def model_name(self) -> str:
        """Name of the model that draws."""
        return self._state.predictor.name

    @property
    def labels(self) -> LabelStore:
        """Where objects are committed."""
        return self._state.commits.labels

    @property
    def prompts(self) -> Prompts:
        """All prompts of the current object."""
        return self._drawing.prompts

    @property
    def prediction(self) -> Prediction | None:
        """The current object, or None between objects."""
        return self._drawing.prediction

    @property
    def taken(self) -> TakenUp | None:
        """The object of the label image that the current one was; None for a new one."""
        step = self._drawing.step
        return None if step is None else step.taken

    @property
    def carried(self) -> Carried | None:
        """The object of another plane that the current one continues; None if it is of its own."""
        step = self._drawing.step
        return None if step is None else step.carried

    @property
    def begun_with(self) -> Prompts:
        """The prompts that an object had when it was taken up or continued; none of a new one."""
        steps = self._drawing.steps
        return steps[0].prompts if steps and steps[0].label else Prompts()

    @property
    def unfinished(self) -> Unfinished | None:
        """The current object as a label image keeps it for a later session; None for none."""
        step = self._drawing.step
        if step is None:
            return None
        carried = step.carried
        return Unfinished(
            prompts=step.prompts,
            level=step.first_level,
            plane=step.prediction.tile.plane,
            label=0 if step.taken is None else step.taken.label,
            carried=None if carried is None else (carried.label, carried.plane),
            begun_with=self.begun_with,
            model=self.model_name,
        )

    @property
    def view_level(self) -> int | None:
        """Level of the first look at a new object when a prompt names none."""
        return self._state.view_level

    @view_level.setter
    def view_level(self, level: int | None) -> None:
        self._state.view_level = level

    @property
    def outline_level(self) -> int | None:
        """Level at which outlines of objects larger than a tile are drawn in the end."""
        return self._state.outline_level

    @outline_level.setter
    def outline_level(self, level: int | None) -> None:
        self._state.outline_level = level

    @property
    def levels(self) -> range:
        """The levels at which objects can be looked at, finest first."""
        return self._state.levels

    @property
    def can_undo(self) -> bool:
        """Whether `undo` would change something."""
        return not self._state.is_closed and bool(
            self._drawing.steps or self._state.commits.newest_done
        )

    @property
    def can_redo(self) -> bool:
        """Whether `redo` would change something."""
        return not self._state.is_closed and bool(
            self._drawing.undone or self._state.commits.next_undone
        )

    def click(
        self,
        point_yx: Sequence[float],
        positive: bool = True,
        level: int | None = None,
        plane: tuple[int, ...] = (),
    ) -> Prediction:
        """Say that a place belongs to the current object, or does not.

        Parameters
        ----------
        point_yx : (float, float)
            Level-0 pixels, pixel centres at integers. Of two contradicting clicks on one pixel
            the newer counts.
        positive : bool
            Inside the object (True) or outside (False).
        level : int, optional
            Level at which the first look at a new object is taken, the nearest that the image has.
            An object that is small or large there is looked at again at the level that shows it
            best, so that a level far off costs time, not the mask. Later prompts stay in the
            object's tile, or move to the smallest tile that holds all. After a negative click in
            the body of a large mask the object is looked for at level 0 as well: something small
            in it may have been meant.
        plane : tuple of int
            Index over the non-spatial axes; empty for a 2-D image.

        Raises
        ------
        PromptError
            If the place is malformed or outside the image, or to be inside the object where the
            image has no data.
        SessionError
            If the session is closed, or the model fails. The object stays as it was.
        """
        prompts = self.prompts.with_click(point_yx, positive)
        if positive:
            self._state.require_open()
            point = prompts.inside(self.image.shape_yx).points_yx[-1]
            self._drawing.require_data(np.array([point]), plane)
        return self._draw(prompts, level, plane)

    def peek(
        self, point_yx: Sequence[float], level: int | None = None, plane: tuple[int, ...] = ()
    ) -> Prediction | None:
        """Return what a first click would give, if nothing has to be encoded for it.

        Nothing changes: there is no step to undo, and the current object stays.

        Parameters
        ----------
        point_yx, level, plane
            As in `click`.

        Returns
        -------
        Prediction or None
            None where a tile is neither in memory nor on disk.

        Raises
        ------
        PromptError, SessionError
            As in `click`.
        """
        prompts = Prompts().with_click(point_yx, True).inside(self.image.shape_yx)
        self._state.require_open()
        self._drawing.require_data(np.array(prompts.points_yx), plane)
        try:
            with self._tiles.without_encoding():
                return self._drawing.peek(prompts, self._state.first_level(level), plane)
        except NotEncodedError:
            return None

    def box(
        self, box_yxyx: Sequence[float], level: int | None = None, plane: tuple[int, ...] = ()
    ) -> Prediction:
        """Say that the current object fills a box; it replaces an earlier box.

        Parameters
        ----------
        box_yxyx : (y0, x0, y1, x1)
            Half-open, in level-0 pixels. What reaches beyond the image is cut.
        level, plane
            As in `click`.

        Raises
        ------
        PromptError, SessionError
            As in `click`; also if the box is inverted or has no area.
        """
        return self._draw(self.prompts.with_box(box_yxyx), level, plane)

    def scribble(
        self,
        points_yx: Sequence[Sequence[float]] | NDArray[Any],
        positive: bool = True,
        level: int | None = None,
        plane: tuple[int, ...] = (),
    ) -> Prediction:
        """Say by a freehand stroke what belongs to the current object, or does not.

        SAM's prompt encoder knows no strokes. The model is told up to five clicks, one after the
        other as a user would make them: in the middle of the longest part of the stroke that the
        mask contradicts, until there is none (`benchmarks/scribble.py` compares other ways). Then
        every pixel of the stroke is put on its side. `prompts` tells these clicks, too.

        Parameters
        ----------
        points_yx : (N, 2) float
            Level-0 pixels, pixel centres at integers; 1 to 10,000 points, joined by straight
            lines. Where it crosses an earlier click or scribble of the other sign, the newer
            counts.
        positive : bool
            Inside the object (True) or outside (False).
        level, plane
            As in `click`.

        Raises
        ------
        PromptError, SessionError
            As in `click`; also if there is no point, or there are too many.
        """
        prompts = self.prompts.with_scribble(points_yx, positive)
        if positive:
            self._state.require_open()
            scribble = prompts.inside(self.image.shape_yx).scribbles[-1]
            self._drawing.require_data(scribble.spread(STROKE_PLACES), plane)
        return self._draw(prompts, level, plane)

    def lasso(
        self,
        points_yx: Sequence[Sequence[float]] | NDArray[Any],
        level: int | None = None,
        plane: tuple[int, ...] = (),
    ) -> Prediction:
        """Say by an outline drawn around it where the current object is.

        It counts as its box, which replaces an earlier one, and a click at its deepest place
        inside: one step.

        Parameters
        ----------
        points_yx : (N, 2) float
            Level-0 pixels, pixel centres at integers; 3 to 10,000 points. It closes by itself.
        level, plane
            As in `click`.

        Raises
        ------
        PromptError, SessionError
            As in `click`; also if it encloses nothing.
        """
        prompts = self.prompts.with_lasso(points_yx)
        self._state.require_open()
        inside = prompts.inside(self.image.shape_yx)
        self._drawing.require_data(np.array(inside.points_yx[-1:]), plane)
        return self._draw(prompts, level, plane)

    def draw(
        self, prompts: Prompts, level: int | None = None, plane: tuple[int, ...] = ()
    ) -> Prediction:
        """Draw a new object from prompts that are all known, as if they were given one by one.

        Parameters
        ----------
        prompts : Prompts
            One or more; the box first, then clicks and scribbles in their order.
        level, plane
            As in `click`.

        Raises
        ------
        PromptError, SessionError
            As in `click`; also if there is a current object. There is none then.
        """
        self._state.require_none("draw another one")
        prompts = prompts.inside(self.image.shape_yx)
        inside = np.array(prompts.points_yx).reshape(-1, 2)[np.array(prompts.labels, bool)]
        if len(inside):
            self._drawing.require_data(inside, plane)
        try:
            for told in prompts.one_by_one():
                prediction = self._draw(told, level, plane)
        except BaseException:
            self.cancel()
            raise
        return prediction

    def draw_each(
        self,
        several: Sequence[Prompts],
        level: int | None = None,
        plane: tuple[int, ...] = (),
        *,
        object_class: str | None = None,
        progress: Progress | None = None,
        on_commit: Callable[[Edit], None] | None = None,
    ) -> DrawnObjects:
        """Draw and commit several objects, one after the other; each is one step to undo.

        One that cannot be drawn or committed is skipped, and told; the others are drawn. Pixels of
        objects that are there stay theirs.

        Parameters
        ----------
        several : sequence of Prompts
            Those of each object, such as ``Prompts().with_click((120, 80), True)`` or
            ``Prompts().with_box((30, 40, 90, 110))``.
        level, plane
            As in `click`.
        object_class : str, optional
            As in `commit`.
        progress : callable of (done, total), optional
            Called before every object. What it raises ends the work; what was committed stays.
        on_commit : callable of Edit, optional
            Called after every commit.

        Returns
        -------
        DrawnObjects

        Raises
        ------
        SessionError
            If there is a current object, or the session is closed.
        """
        edits: list[Edit] = []
        skipped: list[tuple[int, str]] = []
        self._state.require_none("draw others")
        for number, prompts in enumerate(several):
            if progress is not None:
                progress(number, len(several))
            try:
                self.draw(prompts, level, plane)
                edit = self.commit(object_class=object_class)
            except HRSAMError as error:
                skipped.append((number, str(error)))
            else:
                edits.append(edit)
                if on_commit is not None:
                    on_commit(edit)
            finally:
                self._drawing.end()
        return DrawnObjects(edits=tuple(edits), skipped=tuple(skipped))

    def model_input(self) -> NDArray[np.uint8]:
        """Return what the model sees of the tile of the current object.

        Returns
        -------
        (size, size, 3) uint8
            Red, green, blue; of ``prediction.tile``, filled outside the image.

        Raises
        ------
        SessionError
            If there is no current object.
        ImageReadError
            If its pixels cannot be read.
        """
        return self._tiles.pixels(self._drawing.required().prediction.tile).read()

    @property
    def needs_refining(self) -> bool:
        """Whether the current object's outline is coarser than `outline_level` wants it."""
        step = self._drawing.step
        return step is not None and step.prediction.multiscale.level > self._state.wanted_outline(
            step
        )

    def candidates(self) -> tuple[Prediction, ...]:
        """Return the masks that the prompts of the current object may mean, likeliest first.

        One click may mean a part, the object, or what holds it; `choose` takes one of them.

        Returns
        -------
        tuple of Prediction
            Three, in the tile of the current prediction.

        Raises
        ------
        SessionError
            If there is no current object, it has no prompt, or the model fails.
        """
        self._state.require_open()
        return self._drawing.candidates()

    def choose(self, candidate: Prediction) -> Prediction:
        """Take one of the `candidates` for the current object, as a step that `undo` takes back.

        Raises
        ------
        SessionError
            If there is no current object, or the candidate is of another place.
        """
        self._drawing.choose(candidate)
        return candidate

    # Its parts carry these out; what they take and return is told there.
    refine_outline = carried_out("_state", SessionState.refine_outline)
    commit = carried_out("_state", SessionState.commit)
    edit = carried_out("_edits", ObjectEdits.edit)
    edit_at = carried_out("_edits", ObjectEdits.edit_at)
    delete = carried_out("_edits", ObjectEdits.delete)
    merge = carried_out("_edits", ObjectEdits.merge)
    split = carried_out("_edits", ObjectEdits.split)
    fill_holes = carried_out("_edits", ObjectEdits.fill_holes)
    smooth = carried_out("_edits", ObjectEdits.smooth)
    change_properties = carried_out("_edits", ObjectEdits.change_properties)
    continue_on = carried_out("_planes", OverPlanes.continue_on)
    propagate = carried_out("_planes", OverPlanes.propagate)
    interpolate = carried_out("_planes", OverPlanes.interpolate)
    gaps = carried_out("_planes", OverPlanes.gaps)
    embed = carried_out("_ahead", EncodesAhead.embed)
    read_ahead = carried_out("_ahead", EncodesAhead.read_ahead)

    def cancel(self) -> None:
        """Drop the current object; `redo` brings it back until the next prompt."""
        self._drawing.cancel()

    def undo(self) -> Prediction | Edit | None:
        """Take back the last prompt of the current object, else the last commit.

        Returns
        -------
        Prediction or None
            After a prompt was taken back: the object as it was before, None if nothing is left.
        Edit
            The commit that was taken back.

        Raises
        ------
        LabelsError
            If the label image cannot be written to; the commit stays.
        """
        if self._drawing.steps:
            self._drawing.undo()
            return self.prediction
        return None if self._state.is_closed else self._state.commits.undo()

    def redo(self) -> Prediction | Edit | None:
        """Take back the last `undo`; None if there is none since the last prompt or commit."""
        if self._state.is_closed:
            return None
        edit = self._state.commits.redo()
        if edit is not None:
            return edit
        if not self._drawing.undone:
            return None
        self._drawing.redo()
        return self.prediction

    def _draw(self, prompts: Prompts, level: int | None, plane: tuple[int, ...]) -> Prediction:
        """Predict from all prompts; only a success changes the session."""
        self._state.require_open()
        prediction = self._drawing.draw(prompts, self._state.first_level(level), plane)
        self._state.commits.offers_redo = False
        return prediction


def loaded(model: Segmenter | str) -> Segmenter:
    """Return a model that was given as one or by its name."""
    if not isinstance(model, str):
        return model
    from napari_hrsam.modeling.checkpoints import load_model

    return load_model(model)
