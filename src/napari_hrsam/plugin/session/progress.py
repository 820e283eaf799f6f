"""How far a long job is, reported across threads, and how it is given up."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

REPORT_EVERY_S = 0.1


class Cancelled(Exception):  # noqa: N818 -- it is no error: the user asked for it
    """Ends a job that was given up."""


class Progress:
    """One job under way; it is its own progress function.

    Parameters
    ----------
    report
        Called on the inference thread with what is done and what there is in all, a few times a
        second.
    """

    def __init__(self, report: Callable[[int, int], None] | None = None) -> None:
        self._report = report
        self._lock = threading.Lock()
        self._is_cancelled = False
        self._is_finished = False
        self._reported_at = -REPORT_EVERY_S

    @property
    def is_cancelled(self) -> bool:
        """Whether it was given up."""
        return self._is_cancelled

    def cancel(self) -> bool:
        """Give up; the job ends with its next step. False if it is done already."""
        with self._lock:
            self._is_cancelled = not self._is_finished
            return self._is_cancelled

    def finish(self) -> bool:
        """Take the result into use; False if the job was given up, and it is not to be used."""
        with self._lock:
            self._is_finished = not self._is_cancelled
            return self._is_finished

    def __call__(self, done: int, total: int) -> None:
        """Pass progress on.

        Raises
        ------
        Cancelled
            If the job was given up.
        """
        if self.is_cancelled:
            raise Cancelled
        now = time.monotonic()
        is_due = now - self._reported_at >= REPORT_EVERY_S or done >= total
        if self._report is not None and is_due:
            self._reported_at = now
            self._report(done, total)
