"""The state of work on one image: the object being drawn, its history, and the stores.

Longer than other modules because it is one class: what its methods share is the state itself.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from napari_hrsam.engine.embed import Progress
from napari_hrsam.engine.encodes_ahead import EncodesAhead
from napari_hrsam.engine.hand_edits import edits_of
from napari_hrsam.engine.multiscale_mask import MultiscaleMask
from napari_hrsam.engine.object_predictor import ObjectPredictor, TileResult
from napari_hrsam.engine.outline import Refiner, refine_outline
from napari_hrsam.engine.outline_network import OutlineNetwork
from napari_hrsam.engine.prediction import Prediction
from napari_hrsam.engine.predictor import Embedding, Predictor
from napari_hrsam.engine.tile_cache import TileCache
from napari_hrsam.errors import LabelsError, PromptError, SessionError
from napari_hrsam.geometry import (
    Box,
    Tile,
    TileGrid,
    best_level,
    filling_level,
    pixel_of,
)
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.label_store import ArrayLabels, Edit, LabelStore
from napari_hrsam.storage.opening import open_image
from napari_hrsam.storage.tile_source import PyramidImage

if TYPE_CHECKING:
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.storage.embedding_store import EmbeddingStore

__all__ = ["Edit", "Prediction", "Session"]

MAX_LABELS_PX = 2**28
"""Pixels of an image whose labels are kept in memory when none are given: 1 GiB of uint32."""


@dataclass(frozen=True, slots=True, eq=False)
class _Step:
    """The current object after one prompt.

    ``focused`` is the embedding that was refined for the object, if that is done: steps share it,
    and it goes with them. ``first_level`` is where the object was first looked at.
    """

    prompts: Prompts
    prediction: Prediction
    focused: Embedding | None
    first_level: int


class Session(EncodesAhead):
    """Draw objects on one image by clicks and boxes, and commit them to a label image.

    A session belongs to one thread at a time. It changes the label image only in `commit`, `undo`
    and `redo`, and never the image.

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
        Whether a mask that contradicts a click is corrected around it.
    max_embeddings : int
        Tiles whose embeddings are kept in memory, 1 or more; fewer if they take 512 MiB.
    embeddings : EmbeddingStore, optional
        Where embeddings are kept on disk too, for later sessions. By default they are not.
    outliner : Refiner, optional
        What draws the outlines of objects larger than a tile at finer levels; by default the
        shipped network.
    before_look : callable, optional
        Called before the model looks at a tile for a click or a box. What it raises ends the work,
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
        if labels is not None and not isinstance(labels, LabelStore):
            labels = ArrayLabels(labels)
        if labels is not None:
            _require_same_shape(self.image, labels)
        self._labels = labels
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
        self._steps: tuple[_Step, ...] = ()
        # What can be drawn again. The history of commits is the store's; those that it can make
        # again come first, until a prompt ends it.
        self._undone: list[tuple[_Step, ...]] = []
        self._offers_commits = True
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
        self._steps = ()
        self._undone.clear()
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
        other = self._successor(self._predictor.segmenter, image, self._steps)
        self.close()
        return other

    def _successor(
        self, model: Segmenter | str, image: Any, steps: tuple[_Step, ...] = ()
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
            for step in steps:
                other._draw(step.prompts, step.first_level, step.prediction.tile.plane)
        except BaseException:
            other.close()
            raise
        other._offers_commits = self._offers_commits
        return other

    def __repr__(self) -> str:
        """Tell the model, the image and the current object in one line."""
        state = "closed" if self._is_closed else f"{len(self.prompts)} prompts"
        return f"Session({self._predictor.name} on {self.image!r}, {state})"

    @property
    def labels(self) -> LabelStore:
        """Where objects are committed."""
        if self._labels is None:
            self._labels = _labels_in_memory(self.image)
        return self._labels

    @property
    def prompts(self) -> Prompts:
        """All prompts of the current object."""
        return self._steps[-1].prompts if self._steps else Prompts()

    @property
    def prediction(self) -> Prediction | None:
        """The current object, or None between objects."""
        return self._steps[-1].prediction if self._steps else None

    @property
    def can_undo(self) -> bool:
        """Whether `undo` would change something."""
        return bool(self._steps) or self._newest_done is not None

    @property
    def can_redo(self) -> bool:
        """Whether `redo` would change something."""
        return bool(self._undone) or self._next_undone is not None

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
            self._require_data(prompts.inside(self.image.shape_yx).points_yx[-1], plane)
        return self._draw(prompts, level, plane)

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

    @property
    def needs_refining(self) -> bool:
        """Whether the current object's outline is coarser than `outline_level` wants it."""
        return (
            bool(self._steps) and self._steps[-1].prediction.multiscale.level > self._wanted_outline
        )

    @property
    def _wanted_outline(self) -> int:
        """Level of the current object's final outline; enlarging it beyond level 0 adds nothing."""
        wanted = self.outline_level
        return max(0, self._steps[-1].first_level if wanted is None else wanted)

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
            If there is no current object, or the model fails.
        """
        self._require_open()
        started = time.perf_counter()
        prediction = self._required()
        step, tile = self._steps[-1], prediction.tile
        before = self._steps[-2].prediction if len(self._steps) > 1 else None
        prior = before.logits if before is not None and before.tile == tile else None
        consistent = step.prompts.consistent()
        results = self._objects.candidates(tile, consistent, prior, step.focused)
        return tuple(
            self._prediction(result, results[:1], consistent, started) for result in results
        )

    def choose(self, candidate: Prediction) -> Prediction:
        """Take one of the `candidates` for the current object, as a step that `undo` takes back.

        Raises
        ------
        SessionError
            If there is no current object, or the candidate is of another place.
        """
        current = self._required()
        if candidate.tile != current.tile:
            raise SessionError(
                "expected one of the candidates of the current object, got a prediction in "
                "another tile; call candidates() again"
            )
        self._steps = (*self._steps, replace(self._steps[-1], prediction=candidate))
        self._undone.clear()
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
        prediction = self._required()
        if not self.needs_refining:
            return prediction
        step = self._steps[-1]
        multiscale = refine_outline(
            self.image,
            self._outliner,
            prediction.multiscale,
            step.prompts.consistent() if self._objects.enforce_clicks else Prompts(),
            self._wanted_outline,
            progress,
        )
        prediction = replace(prediction, multiscale=multiscale)
        self._steps = (*self._steps[:-1], replace(step, prediction=prediction))
        return prediction

    def commit(
        self,
        mask: NDArray[Any] | None = None,
        *,
        overwrite: bool = False,
        progress: Progress | None = None,
    ) -> Edit:
        """Write the current object to the label image under a new id, and end it.

        Parameters
        ----------
        mask : bool or integer array, optional
            The predicted mask as edited by hand: of the shape of ``prediction.mask``, or of
            ``prediction.level_mask``. Where it is as predicted, the prediction counts.
        overwrite : bool
            Whether pixels of other objects are taken over; by default they stay.
        progress : callable of (done, total), optional
            As in `refine`, which is done first where it is needed.

        Raises
        ------
        SessionError
            If there is no current object, or its mask is empty.
        ShapeError
            If the given mask has neither shape.
        LabelsError
            If the label image cannot take the object. It stays current.
        """
        prediction = self._required()
        edited = None if mask is None else edits_of(mask, prediction)
        if not (prediction if edited is None else edited.any_left):
            raise SessionError(
                "expected an object with pixels, got an empty mask; add a positive click, "
                "or cancel the object"
            )
        prediction = self.refine_outline(progress)
        region = prediction.region if edited is None else edited.on(prediction.region)
        edit = self.labels.write(
            prediction.box,
            region,
            self.labels.next_label(),
            overwrite=overwrite,
            prompts=self.prompts,
            model=self._predictor.name,
            plane=() if set(self.image.plane_shape) <= {1} else prediction.tile.plane,
        )
        self._steps = ()
        self._undone.clear()
        return edit

    def cancel(self) -> None:
        """Drop the current object; `redo` brings it back until the next prompt."""
        if self._steps:
            self._undone.append(self._steps)
            self._steps = ()

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
        if self._steps:
            self._undone.append(self._steps)
            self._steps = self._steps[:-1]
            return self.prediction
        edit = self._newest_done
        if edit is not None:
            self.labels.revert(edit)
            self._offers_commits = True
        return edit

    def redo(self) -> Prediction | Edit | None:
        """Take back the last `undo`; None if there is none since the last prompt or commit."""
        edit = self._next_undone
        if edit is not None:
            self.labels.apply(edit)
            return edit
        if not self._undone:
            return None
        self._steps = self._undone.pop()
        return self.prediction

    @property
    def _newest_done(self) -> Edit | None:
        return None if self._labels is None or self._is_closed else self._labels.newest_done()

    @property
    def _next_undone(self) -> Edit | None:
        if self._labels is None or self._is_closed or not self._offers_commits:
            return None
        return self._labels.next_undone()

    @property
    def _needed(self) -> tuple[Tile, ...]:
        return () if self.prediction is None else (self.prediction.tile,)

    def _required(self) -> Prediction:
        if self.prediction is None:
            raise SessionError("expected an object to commit, got none; click on one first")
        return self.prediction

    def _draw(self, prompts: Prompts, level: int | None, plane: tuple[int, ...]) -> Prediction:
        """Predict from all prompts; only a success changes the session."""
        self._require_open()
        started = time.perf_counter()
        prompts = prompts.inside(self.image.shape_yx)
        consistent = prompts.consistent()
        step = self._steps[-1] if self._steps else None
        first_level = self._first_level(level) if step is None else step.first_level
        tile = self._tile_for(prompts, first_level, plane)
        prior = None
        if step is not None and step.prediction.tile == tile:
            prior = step.prediction.logits
        result, results = self._objects.predict(
            tile, consistent, prior, step.focused if step is not None else None, first_level
        )
        prediction = self._prediction(result, results, consistent, started)
        self._steps = (*self._steps, _Step(prompts, prediction, result.focused, first_level))
        self._undone.clear()
        self._offers_commits = False
        return prediction

    def _prediction(
        self, result: TileResult, results: list[TileResult], consistent: Prompts, started: float
    ) -> Prediction:
        clicks = [
            (point, label)
            for point, label in zip(consistent.points_yx, consistent.labels, strict=True)
            # Shown otherwise than when it was clicked on, the image may lack the pixel.
            if not label or self._is_present(point, result.tile.plane)
        ]
        multiscale = MultiscaleMask(
            result.tile,
            result.logits,
            self.image.shape_yx,
            clicks if self._objects.enforce_clicks else [],
        )
        return Prediction(
            multiscale=multiscale,
            image=self.image,
            iou=result.iou,
            logits=result.low_res,
            is_cut=self._objects.is_cut(result, consistent),
            seconds={
                "encode_s": sum(one.encode_s for one in results),
                "decode_s": sum(one.decode_s for one in results),
                "refine_s": sum(one.refine_s for one in results),
                "total_s": time.perf_counter() - started,
            },
        )

    def _require_data(self, point_yx: tuple[float, float], plane: tuple[int, ...]) -> None:
        """Refuse a place at which the model would see nothing but the fill."""
        self._require_open()
        if not self._is_present(point_yx, plane):
            raise PromptError(
                f"no data here: the image's pixel at {pixel_of(point_yx)} (y, x) is missing (NaN, "
                "infinite, masked, transparent or declared no data), so no object can be there; "
                "click on a pixel of the object, or paint it"
            )

    def _is_present(self, point_yx: tuple[float, float], plane: tuple[int, ...]) -> bool:
        """Whether the image has the pixel under a point."""
        if not self.image.may_lack_pixels:
            return True
        y, x = pixel_of(point_yx)
        return bool(self.image.present(Box(y, x, y + 1, x + 1), plane).item())

    def _first_level(self, level: int | None) -> int:
        """Return the level at which a new object is looked at."""
        wanted = self.view_level if level is None else level
        if wanted is None:
            wanted = filling_level(self.image.shape_yx, self._predictor.tile_px)
        return min(max(wanted, self.levels.start), self.levels.stop - 1)

    def _tile_for(self, prompts: Prompts, first_level: int, plane: tuple[int, ...]) -> Tile:
        """Keep the object's tile while it holds all prompts, else take the smallest that does."""
        shape, tile_px = self.image.shape_yx, self._predictor.tile_px
        extent = prompts.extent_yx()
        last = self.prediction
        if last is None:
            level = first_level
            if prompts.box is not None:
                y0, x0, y1, x1 = prompts.box
                level = best_level(max(y1 - y0, x1 - x0), shape, tile_px)
            return TileGrid(shape, tile_px, level, plane).smallest_holding(extent)
        if plane != last.tile.plane:
            raise PromptError(
                f"expected a prompt on the object's plane {last.tile.plane}, got {plane}; "
                "commit or cancel the object before you go to another plane"
            )
        if all(last.tile.box0.contains((y, x)) for y, x in extent):
            return last.tile
        return TileGrid(shape, tile_px, last.tile.level, plane).smallest_holding(extent)


def _require_same_shape(image: PyramidImage, labels: LabelStore) -> None:
    # Axes of length 1 are no difference: their one plane need not be named.
    same_planes = image.plane_shape == labels.plane_shape or (
        set(image.plane_shape) <= {1} and set(labels.plane_shape) <= {1}
    )
    if image.shape_yx != labels.shape_yx or not same_planes:
        raise LabelsError(
            f"expected labels of the image's shape {(*image.plane_shape, *image.shape_yx)}, got "
            f"{(*labels.plane_shape, *labels.shape_yx)}; give labels made for this image, or "
            "leave them out"
        )


def _labels_in_memory(image: PyramidImage) -> ArrayLabels:
    if not set(image.plane_shape) <= {1} or math.prod(image.shape_yx) > MAX_LABELS_PX:
        raise LabelsError(
            f"expected labels to commit to, got none, and an image of shape "
            f"{(*image.plane_shape, *image.shape_yx)} is a stack or too large to have them in "
            "memory; give the session labels for it: Session(model, image, labels)"
        )
    return ArrayLabels(image.shape_yx)


def _loaded(model: Segmenter | str) -> Segmenter:
    if not isinstance(model, str):
        return model
    from napari_hrsam.modeling.checkpoints import load_model

    return load_model(model)
