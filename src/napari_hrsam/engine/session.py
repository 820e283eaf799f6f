"""The state of work on one image: the object being drawn, its history, and the stores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.engine import object_edits
from napari_hrsam.engine.carried import Carried
from napari_hrsam.engine.commits import Commits
from napari_hrsam.engine.drawing import Drawing, Step
from napari_hrsam.engine.embed import Progress
from napari_hrsam.engine.encodes_ahead import EncodesAhead
from napari_hrsam.engine.hand_edits import edits_of
from napari_hrsam.engine.local_correction import STROKE_PLACES
from napari_hrsam.engine.object_predictor import ObjectPredictor
from napari_hrsam.engine.outline import Refiner
from napari_hrsam.engine.outline_network import OutlineNetwork
from napari_hrsam.engine.over_planes import OverPlanes
from napari_hrsam.engine.prediction import Prediction
from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.engine.taken_up import TakenUp
from napari_hrsam.engine.tile_cache import NotEncodedError, TileCache
from napari_hrsam.errors import LabelsError, SessionError
from napari_hrsam.geometry import Box, Tile, filling_level, pixel_of
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.images.tile_source import PyramidImage
from napari_hrsam.storage.labels.properties import Properties, PropertiesChange
from napari_hrsam.storage.labels.store import DrawnAs, Edit, LabelStore

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.storage.embeddings.store import EmbeddingStore

EditT = TypeVar("EditT", bound=Edit | None)

__all__ = ["Edit", "Prediction", "Session"]


class Session(EncodesAhead, OverPlanes):
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
        outliner: Refiner | None = None,
        before_look: Callable[[], None] | None = None,
    ) -> None:
        self.image: PyramidImage = open_image(image)
        self._commits = Commits(self.image, labels)
        self.view_level: int | None = None
        self.outline_level: int | None = None
        self._predictor = Predictor(_loaded(model))
        self._embeddings = embeddings
        self._tiles = TileCache(
            self.image, self._predictor, max_tiles=max_embeddings, store=embeddings
        )
        self._objects = ObjectPredictor(
            self.image,
            self._predictor,
            self._tiles,
            enforce_clicks=enforce_clicks,
            before_look=before_look,
        )
        self._outliner = outliner or OutlineNetwork(str(self._predictor.segmenter.device))
        self._drawing = Drawing(self.image, self._objects, self._outliner)
        self._is_closed = False

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
        self._is_closed = True

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
        other = self._successor(self._predictor.segmenter, image, self._drawing.steps)
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
        other._commits.offers_redo = self._commits.offers_redo
        return other

    def __repr__(self) -> str:
        """Tell the model, the image and the current object in one line."""
        state = "closed" if self._is_closed else f"{len(self.prompts)} prompts"
        return f"Session({self._predictor.name} on {self.image!r}, {state})"

    @property
    def model_name(self) -> str:
        """Name of the model that draws."""
        return self._predictor.name

    @property
    def labels(self) -> LabelStore:
        """Where objects are committed."""
        return self._commits.labels

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
    def can_undo(self) -> bool:
        """Whether `undo` would change something."""
        return not self._is_closed and bool(self._drawing.steps or self._commits.newest_done)

    @property
    def can_redo(self) -> bool:
        """Whether `redo` would change something."""
        return not self._is_closed and bool(self._drawing.undone or self._commits.next_undone)

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
            object's tile, or move to the smallest tile that holds all.
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
            self._require_open()
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
        self._require_open()
        self._drawing.require_data(np.array(prompts.points_yx), plane)
        try:
            with self._tiles.without_encoding():
                return self._drawing.peek(prompts, self._first_level(level), plane)
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
            self._require_open()
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
        self._require_open()
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
        self._require_none("draw another one")
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
        self._require_none("take up another one")
        prediction = self._drawing.take_up(
            self.labels, label, plane, self._commits.plane(plane), self._first_level(None)
        )
        self._commits.offers_redo = False
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
        self._require_none("take up another one")
        point = Prompts().with_click(point_yx, True).inside(self.image.shape_yx).points_yx[0]
        y, x = pixel_of(point)
        pixel = Box(y, x, y + 1, x + 1)
        label = int(self.labels.read(pixel, plane=self._commits.plane(plane)).item())
        if label == 0:
            raise LabelsError(
                f"expected an object at (y, x) = ({y}, {x}), got background; point at a pixel of "
                "the object, or name its id: session.edit(label)"
            )
        return self.edit(label, plane)

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
        return step is not None and step.prediction.multiscale.level > self._wanted_outline(step)

    def _wanted_outline(self, step: Step) -> int:
        """Level of the current object's final outline; enlarging it beyond level 0 adds nothing."""
        wanted = self.outline_level
        return max(0, step.first_level if wanted is None else wanted)

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
        self._require_open()
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

    def refine_outline(self, progress: Progress | None = None) -> Prediction:
        """Draw the outline of an object that is larger than a tile at the level where it is wanted.

        The tiles that the outline crosses are looked at one by one, the coarse mask as prior.
        `commit` does it too; there is nothing to do for an object that fits a tile.

        Parameters
        ----------
        progress : callable of (done, total), optional
            Called before every tile. What it raises ends the work, and the object stays as it was.

        Raises
        ------
        SessionError
            If there is no current object, or the model fails.
        ImageReadError
            If pixels cannot be read. The object stays as it was.
        """
        step = self._drawing.required()
        return self._drawing.refine_outline(self._wanted_outline(step), progress)

    def commit(
        self,
        mask: NDArray[Any] | None = None,
        *,
        overwrite: bool = False,
        object_class: str | None = None,
        replaces: int = 0,
        progress: Progress | None = None,
    ) -> Edit:
        """Write the current object to the label image, and end it.

        It gets a new id. One that was continued from another plane keeps its id. One that was
        taken up by `edit` keeps its own, too: its pixels that are no longer in the mask become
        background, in the same edit. If it is as it was, nothing is written, and the edit that is
        returned `is_empty`.

        Parameters
        ----------
        mask : bool or integer array, optional
            The predicted mask as edited by hand: of the shape of ``prediction.mask``, or of
            ``prediction.level_mask``. Where it is as predicted, the prediction counts.
        overwrite : bool
            Whether pixels of other objects are taken over; by default they stay.
        object_class : str, optional
            Name of its class, which is added to the label image if there is none; "" for none. By
            default an object that was taken up keeps its own, and a new one has none.
        replaces : int, optional
            Id of an object of the label image whose place a new object takes, as one step to undo,
            whatever pixels either has; 0 for none.
        progress : callable of (done, total), optional
            As in `refine_outline`, which is done first where it is needed.

        Raises
        ------
        SessionError
            If there is no current object, its mask is empty (`delete` takes an object away), or it
            has an id already and is to replace another one.
        ShapeError
            If the given mask has neither shape.
        LabelsError
            If the label image cannot take the object. It stays current.
        """
        step = self._drawing.required()
        prediction = step.prediction
        edited = None if mask is None else edits_of(mask, prediction)
        if not (prediction if edited is None else edited.any_left):
            raise SessionError(
                "expected an object with pixels, got an empty mask; add a positive click, "
                "or cancel the object"
            )
        prediction = self.refine_outline(progress)
        region = prediction.region if edited is None else edited.on(prediction.region)
        edit = self._commits.put(
            prediction.box,
            region,
            self._replaced(replaces) if replaces else step.taken,
            step.label,
            overwrite=overwrite,
            prompts=self.prompts,
            model=self._predictor.name,
            plane=prediction.tile.plane,
            drawn=DrawnAs(
                object_class=object_class,
                level=prediction.level,
                # What was taken up and left as it was has no estimate of the model.
                score=float(prediction.iou) if len(self.prompts) else None,
                first_level=step.first_level,
            ),
        )
        self._drawing.end()
        return edit

    def _replaced(self, label: int) -> TakenUp:
        step = self._drawing.required()
        if step.label:
            raise SessionError(
                f"expected a new object to replace {label}, got one that is object {step.label} "
                "of the label image already; commit it without `replaces`"
            )
        return self._commits.take_up(label, step.prediction.tile.plane)

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
        self._require_none("delete one")
        edit = self._commits.delete(label, plane)
        self._drawing.end()
        return edit

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
        self._require_none("merge others")
        return self._edited(object_edits.merge(self.labels, labels, self._commits.plane(plane)))

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
        self._require_none("split one")
        edits = object_edits.split(self.labels, label, line_yx, self._commits.plane(plane))  # type: ignore[arg-type]
        self._drawing.end()
        return edits

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
        self._require_none("fill one")
        return self._edited(object_edits.fill_holes(self.labels, label, self._commits.plane(plane)))

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
        self._require_none("smooth one")
        return self._edited(
            object_edits.smooth(self.labels, label, radius_px, self._commits.plane(plane))
        )

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
        self._require_open()
        return self.labels.change_properties(make(self.labels.properties))

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
        return None if self._is_closed else self._commits.undo()

    def redo(self) -> Prediction | Edit | None:
        """Take back the last `undo`; None if there is none since the last prompt or commit."""
        if self._is_closed:
            return None
        edit = self._commits.redo()
        if edit is not None:
            return edit
        if not self._drawing.undone:
            return None
        self._drawing.redo()
        return self.prediction

    def _edited(self, edit: EditT) -> EditT:
        # What could be drawn again belongs to labels that are no more.
        self._drawing.end()
        return edit

    @property
    def _needed(self) -> tuple[Tile, ...]:
        return () if self.prediction is None else (self.prediction.tile,)

    def _require_none(self, what: str) -> None:
        self._require_open()
        if self._drawing.steps:
            raise SessionError(
                f"expected no current object, got one with {len(self.prompts)} prompts; commit or "
                f"cancel it before you {what}"
            )

    def _draw(self, prompts: Prompts, level: int | None, plane: tuple[int, ...]) -> Prediction:
        """Predict from all prompts; only a success changes the session."""
        self._require_open()
        prediction = self._drawing.draw(prompts, self._first_level(level), plane)
        self._commits.offers_redo = False
        return prediction

    def _first_level(self, level: int | None) -> int:
        """Return the level at which a new object is looked at."""
        wanted = self.view_level if level is None else level
        if wanted is None:
            wanted = filling_level(self.image.shape_yx, self._predictor.tile_px)
        return min(max(wanted, self.levels.start), self.levels.stop - 1)


def _loaded(model: Segmenter | str) -> Segmenter:
    if not isinstance(model, str):
        return model
    from napari_hrsam.modeling.checkpoints import load_model

    return load_model(model)
