"""What happens on the inference thread: loading models and driving the session."""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_hrsam.errors import EmbeddingsError, LabelsError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.overlay.strokes import Strokes, apply_strokes
from napari_hrsam.plugin.overlay.warm_up import compile_layers
from napari_hrsam.plugin.session.loading import (
    AUTO_DEVICE,
    ModelLoader,
    ModelRequest,
    load_named_model,
)
from napari_hrsam.plugin.session.progress import Cancelled, Progress
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.kept_labels import KeptArray, KeptLabels
from napari_hrsam.storage.label_places import LabelFile, OwnPlace
from napari_hrsam.storage.label_pyramid import PyramidLabels
from napari_hrsam.storage.label_store import Edit

if TYPE_CHECKING:
    import zarr
    from numpy.typing import NDArray

    from napari_hrsam.engine.prediction import Prediction
    from napari_hrsam.engine.session import Session
    from napari_hrsam.plugin.canvas.coordinates import BoxPrompt
    from napari_hrsam.storage.embedding_store import EmbeddingStore
    from napari_hrsam.storage.layers import LayerImage

logger = logging.getLogger(__name__)

MAX_SAVED_PX = 2**28
"""Pixels of labels on disk that are saved as one TIFF: 1 GiB of uint32."""

LabelsPlace = KeptArray | LabelFile | OwnPlace
"""What receives committed objects: an array, changed in place, or a label image on disk."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class OpenedLabels:
    """A label image on disk that is open for writing.

    Attributes
    ----------
    file
        Where it is.
    levels
        Its stored arrays, finest first, for reading on any thread.
    """

    file: LabelFile
    levels: tuple[zarr.Array[Any], ...]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
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
    labels
        The label image on disk, if there is one.
    copy
        Where the objects of an array are kept, too.
    why_no_copy
        Why they are not; else empty.
    """

    model: str
    device: str
    tile_px: int
    can_undo: bool = False
    can_redo: bool = False
    labels: OpenedLabels | None = None
    copy: LabelFile | None = None
    why_no_copy: str = ""


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
    is_cancelled
        Whether the step was a commit that was given up: the object is still the current one.
    strokes
        Of a commit that was given up.
    is_shown_anew
        Whether the image is shown otherwise from this step on.
    """

    prediction: Prediction | None
    prompts: Prompts
    can_undo: bool
    can_redo: bool
    num_committed: int
    edit: Edit | None = None
    is_taken_back: bool = False
    is_cancelled: bool = False
    strokes: Strokes | None = None
    is_shown_anew: bool = False


def find_devices() -> tuple[str, ...]:
    """Devices that a model can run on, "auto" first; imports torch."""
    import torch

    return (AUTO_DEVICE, "cpu", "cuda") if torch.cuda.is_available() else (AUTO_DEVICE, "cpu")


def _embeddings() -> EmbeddingStore | None:
    """Open the user's store of embeddings; without one everything works, more slowly."""
    from napari_hrsam.storage.embedding_store import EmbeddingStore

    try:
        return EmbeddingStore()
    except EmbeddingsError as error:
        logger.warning("embeddings are kept in memory only: %s", error)
        return None


class SessionJobs:
    """The session, its model and its labels; every method runs on the inference thread.

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
        self._store: PyramidLabels | None = None
        self._opened_labels: OpenedLabels | None = None
        self._copy: LabelFile | None = None
        self._why_no_copy = ""
        self._outline_level: int | None = None
        self._num_committed = 0
        self._is_warm = False
        self._given_up: threading.Event | None = None
        self._hurry = threading.Event()

    def hurry(self) -> None:
        """End soon, called on another thread: only commits are made from now on.

        What is not needed for them is left at its next step, and so is the finer outline of an
        object that is being committed.
        """
        self._hurry.set()

    def warm_up(self) -> None:
        """Have ready what a session's layers need; see `compile_layers`."""
        if self._is_warm:
            return
        for _ in compile_layers():
            if self._hurry.is_set():
                return
        self._is_warm = True

    def open(
        self, image: LayerImage, place: LabelsPlace, request: ModelRequest, loading: Progress
    ) -> Opened | None:
        """Load the model, unless it is loaded, and begin a session; None if cancelled meanwhile.

        Parameters
        ----------
        image
            What to annotate; pixels are read here.
        place
            Receives committed objects.
        request
            The model.
        loading
            Told how it goes; the GUI thread gives up through it.
        """
        self.close()
        if self._hurry.is_set():
            return None
        try:
            opened = self._open(image, place, request, loading)
        except BaseException:
            self.close()
            raise
        if opened is None:
            self.close()
        return opened

    def _open(
        self, image: LayerImage, place: LabelsPlace, request: ModelRequest, loading: Progress
    ) -> Opened | None:
        from napari_hrsam.engine.session import Session

        pixels = image.open()
        if isinstance(place, OwnPlace):
            place = place.of(image)
        labels: Any = place
        if isinstance(place, KeptArray):
            labels = self._open_kept(place, image)
        if isinstance(place, LabelFile):
            # Before the model: that it is open elsewhere is told at once.
            self._store = labels = place.open(pixels)
            self._opened_labels = OpenedLabels(file=place, levels=labels.levels)
        if not self._load(request, loading):
            return None
        self._session = Session(
            self._model,
            pixels,
            labels,
            embeddings=_embeddings(),
            before_look=self._require_wanted,
        )
        self._session.outline_level = self._outline_level
        self._num_committed = 0
        return self._opened(request)

    def _open_kept(self, place: KeptArray, image: LayerImage) -> KeptLabels | np.ndarray:
        """Return labels of which a copy is made, or the array alone if that cannot be."""
        file = place.file(image)
        try:
            self._store = file.open(image.shape_yx)
            kept = KeptLabels(place.array, self._store, takes_up=place.is_new)
        except LabelsError as error:
            logger.warning("objects are kept in memory only: %s", error)
            self._why_no_copy = str(error)
            return place.array
        self._copy = file
        return kept

    def use_model(self, request: ModelRequest, loading: Progress) -> Opened | None:
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
            self._session.outline_level = self._outline_level
        return self._opened(request)

    def _load(self, request: ModelRequest, loading: Progress) -> bool:
        """Whether the model is there; the one before it stays until then."""
        if loading.is_cancelled or self._hurry.is_set():
            return False
        key = request.key
        if self._model_key == key:
            return loading.finish()
        try:
            model = self._load_model(
                request.model, request.device, download=request.download, progress=loading
            )
        except Cancelled:
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
            labels=self._opened_labels,
            copy=self._copy,
            why_no_copy=self._why_no_copy,
        )

    def close(self) -> None:
        """End the session and let others write its labels; the model stays for the next one."""
        session, store = self._session, self._store
        self._session = self._store = self._opened_labels = self._copy = None
        self._why_no_copy = ""
        if session is not None:
            session.close()
        if store is not None:
            store.close()

    def snapshot(self) -> Answer:
        """Describe the session as it is."""
        return self._answer(None)

    def show(self, image: LayerImage, outdated: threading.Event) -> Answer:
        """Go on with the image as it is shown now, and look at the current object again.

        Parameters
        ----------
        image
            The session's image, shown otherwise.
        outdated
            Set once it is shown otherwise again: then there is nothing to do.
        """
        try:
            with self._until(outdated):
                self._session = self._current.with_image(image.open())
        except Cancelled:
            logger.debug("not looked at again: shown otherwise once more")
        return self._answer(None, is_shown_anew=True)

    def click(
        self,
        point_yx: tuple[float, float],
        positive: bool,
        level: int,
        plane: tuple[int, ...],
        cancelled: threading.Event,
    ) -> Answer:
        """Add a click; `level` counts for the first prompt of an object."""
        level_or_none = self._first_level(level)
        try:
            with self._until(cancelled):
                self._current.click(point_yx, positive=positive, level=level_or_none, plane=plane)
        except Cancelled:
            logger.debug("a click was passed over: its object was given up")
        return self.snapshot()

    def box(
        self,
        box_yxyx: BoxPrompt,
        level: int,
        plane: tuple[int, ...],
        cancelled: threading.Event,
    ) -> Answer:
        """Set the box; `level` counts for the first prompt of an object."""
        try:
            with self._until(cancelled):
                self._current.box(box_yxyx, level=self._first_level(level), plane=plane)
        except Cancelled:
            logger.debug("a box was passed over: its object was given up")
        return self.snapshot()

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

    def read_labels(self) -> NDArray[Any]:
        """Read all labels on disk, (..., height, width).

        Raises
        ------
        LabelsError
            If they are larger than `MAX_SAVED_PX` or cannot be read.
        """
        store = self._store
        assert store is not None
        shape = (*store.plane_shape, *store.shape_yx)
        if math.prod(shape) > MAX_SAVED_PX:
            raise LabelsError(
                f"expected labels of at most {MAX_SAVED_PX:,} pixels for one TIFF, got shape "
                f"{shape}; choose 'a folder ...' for the objects, or export them with napari-hrsam "
                f"labels export {store.folder}"
            )
        labels = np.zeros(shape, store.dtype)
        box = Box.of_shape(store.shape_yx)
        for plane in np.ndindex(store.plane_shape):
            labels[plane] = store.read(box, plane=plane)
        return labels

    def commit(self, strokes: Strokes | None, progress: Progress) -> Answer:
        """Write the current object, with the user's strokes on it if there are any.

        Parameters
        ----------
        strokes
            What the user painted.
        progress
            Told how far the outline of a large object is; gives up through it.
        """
        prediction = self._current.prediction
        mask = None
        if prediction is not None and strokes is not None:
            mask = apply_strokes(
                prediction.level_mask, prediction.box, strokes, prediction.level_downsample
            )
        try:
            edit = self._commit(mask, progress)
        except Cancelled:
            return self._answer(None, is_cancelled=True, strokes=strokes)
        finally:
            progress.finish()
        self._num_committed += 1
        return self._answer(edit)

    def _commit(self, mask: NDArray[np.bool_] | None, progress: Progress) -> Edit:
        def go_on(done: int, total: int) -> None:
            if self._hurry.is_set():
                raise Cancelled
            progress(done, total)

        try:
            return self._current.commit(mask=mask, progress=go_on)
        except Cancelled:
            if progress.is_cancelled:
                raise
        # No time for the outline: the object is kept as it was seen.
        prediction = self._current.prediction
        assert prediction is not None
        self._current.outline_level = prediction.field.level
        return self._current.commit(mask=mask)

    def cancel(self) -> Answer:
        """Give up the current object."""
        self._current.cancel()
        return self.snapshot()

    def set_outline(self, level: int | None) -> None:
        """Set the level at which outlines of large objects are refined, also of later sessions."""
        self._outline_level = level
        if self._session is not None:
            self._session.outline_level = level

    def read_ahead(self, box0: Box, level: int, plane: tuple[int, ...]) -> bool:
        """Encode a tile of the view ahead; False if there is nothing to do."""
        if self._session is None or self._hurry.is_set():
            return False
        return self._session.read_ahead(box0, level, plane)

    @property
    def _current(self) -> Session:
        if self._session is None:
            raise SessionError("expected a started session, got none; press Start")
        return self._session

    @contextmanager
    def _until(self, given_up: threading.Event) -> Iterator[None]:
        """Leave what is done here, by `Cancelled`, once it is given up."""
        self._given_up = given_up
        try:
            self._require_wanted()
            yield
        finally:
            self._given_up = None

    def _require_wanted(self) -> None:
        if self._given_up is not None and self._given_up.is_set():
            raise Cancelled

    def _first_level(self, level: int) -> int | None:
        return level if self._current.prediction is None else None

    def _answer(self, step: Any, **more: Any) -> Answer:
        session = self._current
        prediction = session.prediction
        if prediction is not None:
            # Computed here, so that the viewer need not wait for it.
            _ = prediction.level_mask
        return Answer(
            prediction=prediction,
            prompts=session.prompts,
            can_undo=session.can_undo,
            can_redo=session.can_redo,
            num_committed=self._num_committed,
            edit=step if isinstance(step, Edit) else None,
            **more,
        )
