"""The one thread on which models are loaded and sessions are driven."""

from __future__ import annotations

import atexit
import logging
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

from napari_hrsam.errors import HRSAMError

logger = logging.getLogger(__name__)

THREAD_NAME = "hrsam-inference"
REST_S = 0.25
"""Quiet before spare time is used: a person who goes on clicking must not wait for it."""

EXIT_TIMEOUT_S = 60.0
"""Time for what was asked for at the end of Python."""

SpareWork = Callable[[], bool]
"""Does a little and returns whether there is more to do."""


class InferenceThread:
    """Run jobs one after the other on a single persistent thread.

    Model, CUDA context and OpenMP pool live on that thread, and a `Session`, which is not
    thread-safe, is only ever touched there. When nothing was asked for a while, it does spare
    work, piece by piece, and gives way to the next job after the piece under way. Answers wait in
    a queue until the owner's thread calls `deliver`; `notify` is called on the inference thread
    whenever there is something to deliver (a panel emits a queued Qt signal there, a script
    without Qt polls).

    Parameters
    ----------
    notify
        Called without arguments, on the inference thread, after each finished job.
    """

    def __init__(self, notify: Callable[[], None] | None = None) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._answers: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._notify = notify
        self._closed = threading.Event()
        self._num_pending = 0
        self._spare_work: SpareWork | None = None
        self._busy_at = 0.0
        self._thread = threading.Thread(target=self._run, name=f"{THREAD_NAME}_0", daemon=True)
        self._thread.start()
        # A thread that works while the interpreter is taken apart may crash it.
        atexit.register(self._end)

    @property
    def num_pending(self) -> int:
        """Jobs whose answers have not been delivered yet."""
        return self._num_pending

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def set_notify(self, notify: Callable[[], None] | None) -> None:
        """Replace the function that is called after finished jobs."""
        self._notify = notify

    def submit(self, job: Callable[[], Any], receive: Callable[[Future[Any]], None]) -> None:
        """Queue a job; `receive` gets its finished future on the thread that calls `deliver`.

        After `close` the job is dropped without an answer.
        """
        if self.is_closed:
            return
        self._num_pending += 1
        future: Future[Any] = Future()
        future.add_done_callback(lambda done: self.call(partial(self._receive, receive, done)))
        self._jobs.put((job, future))

    def use_spare_time(self, work: SpareWork | None) -> None:
        """Set what is done while nothing is asked for; it begins `REST_S` after this call.

        Parameters
        ----------
        work
            Called on the inference thread again and again until it returns False, a job comes, or
            this is called again; None for nothing.
        """
        self._spare_work = work
        self._busy_at = time.monotonic()
        self._jobs.put(None)

    def call(self, function: Callable[[], None]) -> None:
        """Have a function called on the thread that calls `deliver`; for a job under way."""
        if self.is_closed:
            return
        self._answers.put(function)
        notify = self._notify
        if notify is not None:
            notify()

    def deliver(self) -> None:
        """Hand what is finished by now, jobs and messages, in order, to the calling thread.

        What comes of it is for the next call: between them a window gets its turn.
        """
        for _ in range(self._answers.qsize()):
            if self.is_closed:
                return
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
                # A dialog ran an event loop of its own, in which it was handed on.
                return
            answer()

    def _receive(self, receive: Callable[[Future[Any]], None], future: Future[Any]) -> None:
        self._num_pending -= 1
        receive(future)

    def wait(self, timeout_s: float) -> bool:
        """Deliver answers until no job is pending.

        Parameters
        ----------
        timeout_s
            Seconds to wait at most.

        Returns
        -------
        bool
            Whether every job was delivered in time.
        """
        end = time.monotonic() + timeout_s
        while self._num_pending and not self.is_closed:
            left_s = end - time.monotonic()
            if left_s <= 0:
                return False
            self.deliver()
            if self._num_pending:
                time.sleep(min(0.005, left_s))
        return True

    def close(self, last: Callable[[], Any] | None = None) -> None:
        """Let the thread end after the jobs that were submitted; returns at once.

        No answer is delivered from now on. Closing twice is allowed.

        Parameters
        ----------
        last
            One more job for the end.
        """
        if self.is_closed:
            return
        self._closed.set()
        self._notify = None
        self._spare_work = None
        if last is not None:
            self._jobs.put((last, Future()))
        self._jobs.put(None)

    def join(self, timeout_s: float) -> bool:
        """Wait for the thread to end after `close`; False if it did not in time."""
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        has_spare_work = False
        while True:
            try:
                item = self._jobs.get(timeout=self._rest_left() if has_spare_work else None)
            except queue.Empty:
                has_spare_work = self._use_spare_time()
                continue
            if item is not None:
                self._carry_out(*item)
                self._busy_at = time.monotonic()
            elif self.is_closed and self._jobs.empty():
                atexit.unregister(self._end)
                return
            has_spare_work = self._spare_work is not None

    def _rest_left(self) -> float:
        return max(0.0, self._busy_at + REST_S - time.monotonic())

    def _use_spare_time(self) -> bool:
        work = self._spare_work
        try:
            return work is not None and work()
        # Nobody asked for it: whoever asks for the same later gets the error.
        except (HRSAMError, OSError, RuntimeError, ValueError):
            logger.warning("spare work failed", exc_info=True)
            return False

    def _carry_out(self, job: Callable[[], Any], future: Future[Any]) -> None:
        try:
            result = job()
        # Whatever it is, it is for the one who asked.
        except BaseException as error:
            if self.is_closed:
                logger.exception("a job failed while nobody listens any more")
            future.set_exception(error)
        else:
            future.set_result(result)

    def _end(self) -> None:
        self.close()
        self.join(EXIT_TIMEOUT_S)
