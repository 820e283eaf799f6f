"""Sends steps to the inference thread, and tells which of the answers is the newest."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from napari_hrsam.plugin.engine_thread import EngineThread
from napari_hrsam.plugin.loading import Loading, ModelLoader, ModelRequest
from napari_hrsam.plugin.session_jobs import Answer, Opened, SessionJobs

if TYPE_CHECKING:
    import numpy as np

    from napari_hrsam.plugin.coordinates import BoxPrompt
    from napari_hrsam.plugin.image_input import ImageInput
    from napari_hrsam.plugin.session_jobs import HandEdits

logger = logging.getLogger(__name__)


class SessionListener(Protocol):
    """Hears what became of the steps; called on the viewer's thread."""

    def opened(self, opened: Opened) -> None:
        """Take note that the session is ready."""

    def open_failed(self, error: BaseException) -> None:
        """Take note that no session could be opened."""

    def model_ready(self, opened: Opened) -> None:
        """Take note that another model is in use."""

    def model_failed(self, error: BaseException) -> None:
        """Take note that another model could not be loaded; the one before is still in use."""

    def progressed(self, done_bytes: int, total_bytes: int) -> None:
        """Take note of how far a download is."""

    def answered(self, answer: Answer, *, is_newest: bool, follows_error: bool) -> None:
        """Take an answer; only the newest one is to be shown, but every edit counts."""

    def step_failed(self, error: BaseException, hand_edits: HandEdits | None) -> None:
        """Take an error; an answer with the session's unchanged state follows."""

    def submitted(self) -> None:
        """Take note that there is work for the inference thread."""


class SessionLink:
    """The viewer's end of the session.

    Steps are taken in order and none is dropped, except that prompts of a cancelled object that
    have not been looked at yet are passed over. Answers that belong to an ended session are not
    told.

    Parameters
    ----------
    load_model
        Makes a model from its name and device.
    listener
        Told about answers and errors.
    """

    def __init__(self, load_model: ModelLoader, listener: SessionListener) -> None:
        self.engine = EngineThread()
        self._jobs = SessionJobs(load_model)
        self._listener = listener
        self._generation = 0
        self._opening = threading.Event()
        self._loading = Loading()
        self._object_cancelled = threading.Event()

    @property
    def is_busy(self) -> bool:
        """Whether anything has not been answered yet."""
        return self.engine.num_pending > 0

    def open(self, image: ImageInput, labels: np.ndarray, request: ModelRequest) -> None:
        """Load a model and begin a session; see `SessionJobs.open`."""
        self._opening = opening = threading.Event()
        self._object_cancelled = threading.Event()
        self.submit(
            partial(self._jobs.open, image, labels, request, self._new_loading()),
            partial(self._receive_opened, opening),
        )

    def use_model(self, request: ModelRequest) -> None:
        """Load a model, and let the session go on with it; see `SessionJobs.use_model`."""
        loading = self._new_loading()
        self.submit(
            partial(self._jobs.use_model, request, loading),
            partial(self._receive_model, self._opening, loading),
        )

    def cancel_loading(self) -> bool:
        """Give up the loading of a model; False if it is done and its answer is on the way."""
        return self._loading.cancel()

    def end(self, then: Callable[[], None]) -> None:
        """End the session after the steps asked for; `then` is called once that is done."""
        self._opening.set()
        self._loading.cancel()
        self._object_cancelled.set()

        def receive(future: Future[Any]) -> None:
            future.result()
            then()

        self.submit(self._jobs.close, receive)

    def close(self) -> None:
        """End the thread after what it is doing; returns at once, nothing is told any more."""
        self.engine.close()
        self._opening.set()
        self._loading.cancel()
        self._object_cancelled.set()

    def click(self, point_yx: tuple[float, float], positive: bool, level: int) -> None:
        """Add a click to the current object."""
        self._post(partial(self._jobs.click, point_yx, positive, level, self._object_cancelled))

    def box(self, box_yxyx: BoxPrompt, level: int) -> None:
        """Set the box of the current object."""
        self._post(partial(self._jobs.box, box_yxyx, level, self._object_cancelled))

    def undo(self) -> None:
        """Take back the last prompt or commit."""
        self._post(self._jobs.undo)

    def redo(self) -> None:
        """Repeat what was taken back."""
        self._post(self._jobs.redo)

    def commit(self, hand_edits: HandEdits | None) -> None:
        """Write the current object; prompts from now on belong to the next one."""
        self._object_cancelled = threading.Event()
        self._post(partial(self._jobs.commit, hand_edits), hand_edits=hand_edits)

    def cancel(self) -> None:
        """Give up the current object and pass over its prompts that are still waiting."""
        self._object_cancelled.set()
        self._object_cancelled = threading.Event()
        self._post(self._jobs.cancel)

    def submit(self, job: Callable[[], Any], receive: Callable[[Future[Any]], None]) -> None:
        """Run any job on the inference thread."""
        self.engine.submit(job, receive)
        self._listener.submitted()

    def _post(self, job: Callable[[], Answer], hand_edits: HandEdits | None = None) -> None:
        self._generation += 1
        self.submit(
            job, partial(self._receive, self._opening, self._generation, hand_edits=hand_edits)
        )

    def _new_loading(self) -> Loading:
        # Of a loading that was given up nothing more is told.
        def tell(done_bytes: int, total_bytes: int) -> None:
            if not loading.is_cancelled:
                self._listener.progressed(done_bytes, total_bytes)

        loading = Loading(lambda *numbers: self.engine.tell(partial(tell, *numbers)))
        self._loading = loading
        return loading

    def _receive_model(
        self, opening: threading.Event, loading: Loading, future: Future[Any]
    ) -> None:
        error = future.exception()
        if error is not None:
            if loading.is_cancelled:
                logger.info("the cancelled loading ended with an error", exc_info=error)
            else:
                self._listener.model_failed(error)
        elif future.result() is not None and self._opening is opening:
            self._listener.model_ready(future.result())

    def _receive_opened(self, opening: threading.Event, future: Future[Any]) -> None:
        if opening.is_set():
            return
        error = future.exception()
        if error is not None:
            self._listener.open_failed(error)
        else:
            self._listener.opened(future.result())

    def _receive(
        self,
        opening: threading.Event,
        generation: int,
        future: Future[Any],
        *,
        hand_edits: HandEdits | None = None,
        follows_error: bool = False,
    ) -> None:
        error = future.exception()
        is_newest = generation == self._generation
        if error is None:
            self._listener.answered(
                future.result(),
                is_newest=is_newest and not opening.is_set(),
                follows_error=follows_error,
            )
            return
        self._listener.step_failed(error, hand_edits if is_newest else None)
        if not follows_error and not opening.is_set():
            self.submit(
                self._jobs.snapshot,
                partial(self._receive, opening, self._generation, follows_error=True),
            )
