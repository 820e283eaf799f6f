"""The one thread on which models are loaded and sessions are driven."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

THREAD_NAME = "hrsam-inference"


class EngineThread:
    """Run jobs one after the other on a single persistent thread.

    Model, CUDA context and OpenMP pool live on that thread, and a `Session`, which is not
    thread-safe, is only ever touched there. Answers wait in a queue until the owner's thread calls
    `deliver`; `notify` is called on the inference thread whenever there is something to deliver
    (a panel emits a queued Qt signal there, a script without Qt polls).

    Parameters
    ----------
    notify
        Called without arguments, on the inference thread, after each finished job.
    """

    def __init__(self, notify: Callable[[], None] | None = None) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=THREAD_NAME)
        self._answers: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._notify = notify
        self._closed = threading.Event()
        self._num_pending = 0

    @property
    def num_pending(self) -> int:
        """Jobs whose answers have not been delivered yet."""
        return self._num_pending

    @property
    def is_closed(self) -> bool:
        """Whether `close` was called."""
        return self._closed.is_set()

    def set_notify(self, notify: Callable[[], None] | None) -> None:
        """Replace the function that is told about finished jobs."""
        self._notify = notify

    def submit(self, job: Callable[[], Any], receive: Callable[[Future[Any]], None]) -> None:
        """Queue a job; `receive` gets its finished future on the thread that calls `deliver`.

        After `close` the job is dropped without an answer.
        """
        if self.is_closed:
            return
        self._num_pending += 1
        future = self._pool.submit(job)
        future.add_done_callback(lambda done: self.tell(partial(self._receive, receive, done)))

    def tell(self, message: Callable[[], None]) -> None:
        """Have a function called on the thread that calls `deliver`; for a job under way."""
        if self.is_closed:
            return
        self._answers.put(message)
        notify = self._notify
        if notify is not None:
            notify()

    def deliver(self) -> None:
        """Hand finished jobs and messages, in order, to the calling thread."""
        while not self.is_closed:
            try:
                answer = self._answers.get_nowait()
            except queue.Empty:
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

    def close(self) -> None:
        """Drop queued jobs and let the thread end after the one that is running.

        Returns at once; later answers are not delivered. Closing twice is allowed.
        """
        self._closed.set()
        self._notify = None
        self._pool.shutdown(wait=False, cancel_futures=True)
