"""What the parts of a session share: image, model, label image, and the object being drawn."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from napari_hrsam.engine.commits import Commits
from napari_hrsam.engine.drawing import Drawing, Step
from napari_hrsam.engine.embed import Progress
from napari_hrsam.engine.hand_edits import edits_of
from napari_hrsam.engine.prediction import Prediction
from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.engine.taken_up import TakenUp
from napari_hrsam.engine.tile_cache import TileCache
from napari_hrsam.errors import SessionError
from napari_hrsam.geometry import FINEST_LEVEL, coarsest_level, filling_level
from napari_hrsam.storage.images.tile_source import PyramidImage
from napari_hrsam.storage.labels.edits import DrawnAs, Edit


@dataclass(kw_only=True, eq=False)
class SessionState:
    """What a session is made of; it is the same for all of its parts.

    Attributes
    ----------
    image, view_level, outline_level
        As of `Session`.
    predictor
        The model.
    tiles
        Embeddings of the image's tiles.
    commits
        The label image and its history.
    drawing
        The current object.
    is_closed
        Whether the session was closed.
    """

    image: PyramidImage
    predictor: Predictor
    tiles: TileCache
    commits: Commits
    drawing: Drawing
    view_level: int | None = None
    outline_level: int | None = None
    is_closed: bool = False

    @property
    def levels(self) -> range:
        """The levels at which objects can be looked at, finest first."""
        return range(FINEST_LEVEL, coarsest_level(self.image.shape_yx, self.tiles.tile_px) + 1)

    def require_open(self) -> None:
        """Check that the session was not closed."""
        if self.is_closed:
            raise SessionError("expected an open session, got a closed one; make a new Session")

    def require_none(self, what: str) -> None:
        """Check that there is no current object.

        Parameters
        ----------
        what : str
            What is to be done to others: the end of "commit or cancel it before you ...".
        """
        self.require_open()
        if self.drawing.steps:
            raise SessionError(
                f"expected no current object, got one with {len(self.drawing.prompts)} prompts; "
                f"commit or cancel it before you {what}"
            )

    def first_level(self, level: int | None) -> int:
        """Return the level at which a new object is looked at."""
        wanted = self.view_level if level is None else level
        if wanted is None:
            wanted = filling_level(self.image.shape_yx, self.predictor.tile_px)
        return min(max(wanted, self.levels.start), self.levels.stop - 1)

    def wanted_outline(self, step: Step) -> int:
        """Level of the current object's final outline; enlarging it beyond level 0 adds nothing."""
        wanted = self.outline_level
        return max(0, step.first_level if wanted is None else wanted)

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
        step = self.drawing.required()
        return self.drawing.refine_outline(self.wanted_outline(step), progress)

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
        step = self.drawing.required()
        prediction = step.prediction
        edited = None if mask is None else edits_of(mask, prediction)
        if not (prediction if edited is None else edited.any_left):
            raise SessionError(
                "expected an object with pixels, got an empty mask; add a positive click, "
                "or cancel the object"
            )
        prediction = self.refine_outline(progress)
        region = prediction.region if edited is None else edited.on(prediction.region)
        edit = self.commits.put(
            prediction.box,
            region,
            self._replaced(replaces) if replaces else step.taken,
            step.label,
            overwrite=overwrite,
            plane=prediction.tile.plane,
            drawn=DrawnAs(
                prompts=self.drawing.prompts,
                model=self.predictor.name,
                object_class=object_class,
                level=prediction.level,
                # What was taken up and left as it was has no estimate of the model.
                score=float(prediction.iou) if len(self.drawing.prompts) else None,
                first_level=step.first_level,
            ),
        )
        self.drawing.end()
        return edit

    def _replaced(self, label: int) -> TakenUp:
        step = self.drawing.required()
        if step.label:
            raise SessionError(
                f"expected a new object to replace {label}, got one that is object {step.label} "
                "of the label image already; commit it without `replaces`"
            )
        return self.commits.take_up(label, step.prediction.tile.plane)
