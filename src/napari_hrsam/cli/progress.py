"""Progress of long work on stderr: how much is done, and how long the rest will take."""

from __future__ import annotations

import math
import sys
import time

from napari_hrsam.cli.options import say

SAY_EVERY_S = 10.0
"""Pause between two lines of progress where they are not rewritten in place."""


class Progress:
    """Tell on stderr how far the work is and how long the rest will take.

    Rewritten in place on a terminal, a line now and then otherwise.

    Parameters
    ----------
    unit : str
        What is counted, such as "tiles".
    """

    def __init__(self, unit: str) -> None:
        self._unit = unit
        self.done = 0
        self.total = 0
        self._at_hand = 0
        self._started = 0.0
        self._said = -math.inf

    def __call__(self, done: int, total: int) -> None:
        """Take what is done and how much it is in all; the first call tells what was at hand."""
        now = time.monotonic()
        if not self._started:
            self._started, self._at_hand = now, done
        self.done, self.total = done, total
        text = f"{done}/{total} {self._unit}{self._rest(now)}"
        if sys.stderr.isatty():
            end = "\n" if done == total else ""
            print(f"\r{text:<60}", end=end, file=sys.stderr, flush=True)
        elif done == total or now - self._said >= SAY_EVERY_S:
            self._said = now
            say(text)

    def end(self) -> None:
        """Leave the line that is rewritten in place."""
        if sys.stderr.isatty():
            print(file=sys.stderr)

    def _rest(self, now: float) -> str:
        num = self.done - self._at_hand
        if num == 0 or self.done == self.total:
            return f", {self._at_hand} of them at hand" if self._at_hand else ""
        seconds = (now - self._started) / num * (self.total - self.done)
        return f", {_duration(seconds)} left"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
