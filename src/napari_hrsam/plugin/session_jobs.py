"""What happens on the inference thread: loading models and driving the session."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_hrsam.errors import SessionError
from napari_hrsam.plugin.loading import (
    AUTO_DEVICE,
    Loading,
    LoadingCancelled,
    ModelLoader,
    ModelRequest,
    load_named_model,
)
from napari_hrsam.plugin.preview_layer import apply_edits
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.label_store import Edit

if TYPE_CHECKING:
    from napari_hrsam.engine.prediction import Prediction
    from napari_hrsam.engine.session import Session
    from napari_hrsam.geometry import Box
    from napari_hrsam.plugin.coordinates import BoxPrompt
    from napari_hrsam.plugin.image_input import ImageInput

logger = logging.getLogger(__name__)

HandEdits = tuple["Box", np.ndarray]


@dataclass(frozen=True, kw_only=True, slots=True)
class Opened:
    """A model is loaded, and the session on it, if there is one, is ready.

    Attributes
    ----------
    model
        Its name or path, as it was asked for.
    device
        Where the model runs, such as "cpu" or "cuda:0".
    tile_px
        Side of the model's tile in level pixels.
    can_undo, can_redo
        Whether the session has a step to take back or to repeat.
    """

    model: str
    device: str
    tile_px: int
    can_undo: bool = False
    can_redo: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The session after a step.

    Attributes
    ----------
    prediction
        Of the current object; None if it has no prompts.
    prompts
        Of the current object.
    can_undo, can_redo
        Whether there is a step to take back or to repeat.
    num_committed
        Objects committed in this session and not taken back.
    edit
        What this step changed in the label image, if anything.
    is_taken_back
        Whether `edit` was undone by this step.
    """

    prediction: Prediction | None
    prompts: Prompts
    can_undo: bool
    can_redo: bool
    num_committed: int
    edit: Edit | None = None
    is_taken_back: bool = False


def find_devices() -> tuple[str, ...]:
    """Devices that a model can run on, "auto" first; imports torch."""
    import torch

    return (AUTO_DEVICE, "cpu", "cuda") if torch.cuda.is_available() else (AUTO_DEVICE, "cpu")


class SessionJobs:
    """The session and its model; every method runs on the inference thread.

    Parameters
    ----------
    load_model
        Makes a model; see `ModelLoader`.
    """

    def __init__(self, load_model: ModelLoader = load_named_model) -> None:
        self._load_model = load_model
        self._model_key: tuple[str, str, float] | None = None
        self._model: Any = None
        self._session: Session | None = None
        self._num_committed = 0

    def open(
        self, image: ImageInput, labels: np.ndarray, request: ModelRequest, loading: Loading
    ) -> Opened | None:
        """Load the model, unless it is loaded, and begin a session; None if cancelled meanwhile.

        Parameters
        ----------
        image
            What to annotate; its pixels are read here.
        labels : (H, W) integer
            Receives committed objects in place.
        request
            The model.
        loading
            Told how it goes; the GUI thread gives up through it.
        """
        from napari_hrsam.engine.session import Session
        from napari_hrsam.storage.tile_source import ArrayImage

        self.close()
        pixels = ArrayImage(np.asarray(image.data), rgb=image.rgb)
        if not self._load(request, loading):
            return None
        self._session = Session(self._model, pixels, labels)
        self._num_committed = 0
        return self._opened(request)

    def use_model(self, request: ModelRequest, loading: Loading) -> Opened | None:
        """Load a model, and let the session, if there is one, go on with it; None if cancelled.

        Commits and their undo stay. After an error, or when cancelled, everything is as before.

        Raises
        ------
        SessionError
            If an object is being drawn: it belongs to the model that drew it.
        """
        if self._session is not None and self._session.prediction is not None:
            raise SessionError(
                "expected no object being drawn; commit or cancel it before you change the model"
            )
        if not self._load(request, loading):
            return None
        if self._session is not None:
            self._session = self._session.with_model(self._model)
        return self._opened(request)

    def _load(self, request: ModelRequest, loading: Loading) -> bool:
        """Whether the model is there; the one before it stays until then."""
        if loading.is_cancelled:
            return False
        key = request.key
        if self._model_key == key:
            return loading.finish()
        try:
            model = self._load_model(
                request.model, request.device, download=request.download, progress=loading
            )
        except LoadingCancelled:
            logger.info("loading of %s was cancelled", request.model)
            return False
        if not loading.finish():
            return False
        self._model, self._model_key = model, key
        return True

    def _opened(self, request: ModelRequest) -> Opened:
        return Opened(
            model=request.model,
            device=str(self._model.device),
            tile_px=int(self._model.config.tile_px),
            can_undo=self._session is not None and self._session.can_undo,
            can_redo=self._session is not None and self._session.can_redo,
        )

    def close(self) -> None:
        """End the session; the model stays loaded for the next one."""
        if self._session is not None:
            self._session.close()
        self._session = None

    def snapshot(self) -> Answer:
        """Describe the session as it is."""
        return self._answer(None)

    def click(
        self, point_yx: tuple[float, float], positive: bool, level: int, cancelled: threading.Event
    ) -> Answer:
        """Add a click; `level` counts for the first prompt of an object."""
        if cancelled.is_set():
            return self.snapshot()
        return self._answer(
            self._current.click(point_yx, positive=positive, level=self._first_level(level))
        )

    def box(
        self,
        box_yxyx: BoxPrompt,
        level: int,
        cancelled: threading.Event,
    ) -> Answer:
        """Set the box; `level` counts for the first prompt of an object."""
        if cancelled.is_set():
            return self.snapshot()
        return self._answer(self._current.box(box_yxyx, level=self._first_level(level)))

    def undo(self) -> Answer:
        """Take back the last prompt of the current object, else the last commit."""
        step = self._current.undo()
        self._num_committed -= isinstance(step, Edit)
        return self._answer(step, is_taken_back=True)

    def redo(self) -> Answer:
        """Repeat what was taken back last."""
        step = self._current.redo()
        self._num_committed += isinstance(step, Edit)
        return self._answer(step)

    def commit(self, hand_edits: HandEdits | None) -> Answer:
        """Write the current object, with the user's strokes on it if there are any."""
        prediction = self._current.prediction
        mask = None
        if prediction is not None and hand_edits is not None:
            mask = apply_edits(prediction.mask, prediction.box, hand_edits)
        edit = self._current.commit(mask=mask)
        self._num_committed += 1
        return self._answer(edit)

    def cancel(self) -> Answer:
        """Give up the current object."""
        self._current.cancel()
        return self.snapshot()

    @property
    def _current(self) -> Session:
        if self._session is None:
            raise SessionError("expected a started session, got none; press Start")
        return self._session

    def _first_level(self, level: int) -> int | None:
        return level if self._current.prediction is None else None

    def _answer(self, step: Any, *, is_taken_back: bool = False) -> Answer:
        session = self._current
        return Answer(
            prediction=session.prediction,
            prompts=session.prompts,
            can_undo=session.can_undo,
            can_redo=session.can_redo,
            num_committed=self._num_committed,
            edit=step if isinstance(step, Edit) else None,
            is_taken_back=is_taken_back,
        )
