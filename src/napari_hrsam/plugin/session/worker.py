"""Sends steps to the inference thread, and tells which of the answers is the newest."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

from napari_hrsam.plugin.session.inference import Answer, Opened, SessionJobs
from napari_hrsam.plugin.session.loading import ModelLoader, ModelRequest
from napari_hrsam.plugin.session.progress import Progress
from napari_hrsam.plugin.session.thread import EngineThread

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from napari_hrsam.geometry import Box
    from napari_hrsam.plugin.canvas.coordinates import BoxPrompt
    from napari_hrsam.plugin.overlay.strokes import Strokes
    from napari_hrsam.plugin.session.inference import LabelsPlace
    from napari_hrsam.storage.layers import LayerImage

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

    def outlined(self, done: int, total: int) -> None:
        """Take note of how far the outline of an object being committed is."""

    def answered(self, answer: Answer, *, is_newest: bool, follows_error: bool) -> None:
        """Take an answer; only the newest one is to be shown, but every edit counts."""

    def step_failed(self, error: BaseException, strokes: Strokes | None) -> None:
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
        self._loading = Progress()
        self._commit: Progress | None = None
        self._object_cancelled = threading.Event()
        self._outdated = threading.Event()

    @property
    def is_busy(self) -> bool:
        """Whether anything has not been answered yet."""
        return self.engine.num_pending > 0

    def open(self, image: LayerImage, place: LabelsPlace, request: ModelRequest) -> None:
        """Load a model and begin a session; see `SessionJobs.open`."""
        self._opening = opening = threading.Event()
        self._object_cancelled = threading.Event()
        self.warm_up()
        self.submit(
            partial(self._jobs.open, image, place, request, self._new_loading()),
            partial(self._receive_opened, opening),
        )

    def warm_up(self) -> None:
        """Have ready what a session's layers need; see `SessionJobs.warm_up`."""
        self.submit(self._jobs.warm_up, lambda future: future.result())

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
        self.engine.use_spare_time(None)

        def receive(future: Future[Any]) -> None:
            future.result()
            then()

        self.submit(self._jobs.close, receive)

    def close(self) -> None:
        """End the thread after the commits asked for; returns at once, nothing is told any more.

        The current object, which was not committed, is given up; the labels are closed. Nothing
        else is finished; see `SessionJobs.hurry`.
        """
        self._jobs.hurry()
        self._opening.set()
        self._loading.cancel()
        self._object_cancelled.set()
        self._outdated.set()
        self.engine.close(self._jobs.close)

    def click(
        self, point_yx: tuple[float, float], positive: bool, level: int, plane: tuple[int, ...]
    ) -> None:
        """Add a click to the current object."""
        cancelled = self._object_cancelled
        self._post(partial(self._jobs.click, point_yx, positive, level, plane, cancelled))

    def box(self, box_yxyx: BoxPrompt, level: int, plane: tuple[int, ...]) -> None:
        """Set the box of the current object."""
        self._post(partial(self._jobs.box, box_yxyx, level, plane, self._object_cancelled))

    def show(self, image: LayerImage) -> None:
        """Go on with the image as it is shown now; see `SessionJobs.show`."""
        self._outdated.set()
        self._outdated = threading.Event()
        self._post(partial(self._jobs.show, image, self._outdated))

    def set_outline(self, level: int | None) -> None:
        """Set the level at which outlines of large objects are refined."""
        self.submit(partial(self._jobs.set_outline, level), lambda future: future.result())

    def read_ahead(self, box0: Box, level: int, plane: tuple[int, ...]) -> None:
        """Encode tiles around a part of the image while nothing else is asked for."""
        self.engine.use_spare_time(partial(self._jobs.read_ahead, box0, level, plane))

    def rest(self) -> None:
        """Encode nothing ahead."""
        self.engine.use_spare_time(None)

    def undo(self) -> None:
        """Take back the last prompt or commit."""
        self._post(self._jobs.undo)

    def redo(self) -> None:
        """Repeat what was taken back."""
        self._post(self._jobs.redo)

    def commit(self, strokes: Strokes | None) -> None:
        """Write the current object; prompts from now on belong to the next one."""
        self._object_cancelled = threading.Event()
        progress = Progress(self._told(lambda: progress.is_cancelled, self._listener.outlined))
        self._commit = progress
        self._post(partial(self._jobs.commit, strokes, progress), strokes=strokes)

    def cancel_commit(self) -> bool:
        """Give up the newest commit if it is not made yet; its object is the current one again."""
        return self._commit is not None and self._commit.cancel()

    def cancel(self) -> None:
        """Give up the current object and pass over its prompts that are still waiting."""
        self._object_cancelled.set()
        self._object_cancelled = threading.Event()
        self._post(self._jobs.cancel)

    def save(
        self,
        array: NDArray[np.integer] | None,
        write: Callable[[NDArray[np.integer]], None],
        receive: Callable[[Future[None]], None],
    ) -> None:
        """Write the objects, as they are after the commits asked for, to a file.

        Parameters
        ----------
        array
            The labels, if they are in memory.
        write
            Does it.
        receive
            Gets the finished future.
        """
        self.submit(lambda: write(self._jobs.read_labels() if array is None else array), receive)

    def submit(self, job: Callable[[], Any], receive: Callable[[Future[Any]], None]) -> None:
        """Run any job on the inference thread."""
        self.engine.submit(job, receive)
        self._listener.submitted()

    def _post(self, job: Callable[[], Answer], strokes: Strokes | None = None) -> None:
        self._generation += 1
        self.submit(job, partial(self._receive, self._opening, self._generation, strokes=strokes))

    def _new_loading(self) -> Progress:
        # Of a loading that was given up nothing more is told.
        loading = Progress(self._told(lambda: loading.is_cancelled, self._listener.progressed))
        self._loading = loading
        return loading

    def _told(
        self, is_silent: Callable[[], bool], hear: Callable[[int, int], None]
    ) -> Callable[[int, int], None]:
        """Return a function for the inference thread that tells numbers on the viewer's thread."""

        def tell(done: int, total: int) -> None:
            if not is_silent():
                hear(done, total)

        return lambda done, total: self.engine.tell(partial(tell, done, total))

    def _receive_model(
        self, opening: threading.Event, loading: Progress, future: Future[Any]
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
        strokes: Strokes | None = None,
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
        self._listener.step_failed(error, strokes if is_newest else None)
        if not follows_error and not opening.is_set():
            self.submit(
                self._jobs.snapshot,
                partial(self._receive, opening, self._generation, follows_error=True),
            )
