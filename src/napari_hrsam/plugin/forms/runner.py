"""One job at a time on a thread of its own, with progress and cancel; knows no Qt."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from napari_hrsam.plugin.forms.jobs import Job
from napari_hrsam.plugin.session.inference_thread import InferenceThread
from napari_hrsam.plugin.session.progress import Cancelled, Progress


class Runner:
    """Runs the jobs of a form.

    Parameters
    ----------
    notify
        Called on the job's thread when there is something to `deliver`.
    progressed
        Called by `deliver` with what is done and what there is in all.
    ended
        Called by `deliver` with the result, or the exception, of a job that was not cancelled.
    """

    def __init__(
        self,
        notify: Callable[[], None],
        progressed: Callable[[int, int], None],
        ended: Callable[[Any, BaseException | None], None],
    ) -> None:
        self._thread = InferenceThread(notify)
        self._progressed, self._ended = progressed, ended
        self._current: Progress | None = None

    @property
    def is_busy(self) -> bool:
        """Whether a job is under way that was not cancelled."""
        return self._current is not None

    def start(self, job: Job[Any]) -> None:
        """Begin a job; after a cancelled one whose last step is still under way."""
        progress: Progress

        def report(done: int, total: int) -> None:
            self._thread.call(partial(self._report, progress, done, total))

        progress = self._current = Progress(report)
        self._thread.submit(partial(_carry_out, job, progress), partial(self._receive, progress))

    def cancel(self) -> bool:
        """Give the job up at once; it ends with its next step. False if there is none."""
        current = self._current
        # What is finished counts: its result is on the way.
        if current is None or not current.cancel():
            return False
        self._current = None
        return True

    def deliver(self) -> None:
        """Hand on what came, on the calling thread."""
        self._thread.deliver()

    def close(self) -> None:
        """Cancel, and let the thread end."""
        self.cancel()
        self._thread.close()

    def _report(self, progress: Progress, done: int, total: int) -> None:
        if progress is self._current:
            self._progressed(done, total)

    def _receive(self, progress: Progress, future: Future[Any]) -> None:
        if progress is not self._current:
            return
        self._current = None
        error = future.exception()
        self._ended(None if error else future.result(), error)


def _carry_out(job: Job[Any], progress: Progress) -> Any:
    # It may have been cancelled while it waited.
    if progress.is_cancelled:
        raise Cancelled
    result = job(progress)
    if not progress.finish():
        raise Cancelled
    return result
