"""One job at a time, with progress and cancel, without Qt."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from napari_hrsam.errors import LabelsError
from napari_hrsam.plugin.forms.jobs import Progress
from napari_hrsam.plugin.forms.runner import Runner

TIMEOUT_S = 60.0


class Watched:
    """A runner that writes down what it is told."""

    def __init__(self) -> None:
        self.progress: list[tuple[int, int]] = []
        self.ended: list[tuple[Any, BaseException | None]] = []
        self.runner = Runner(
            lambda: None,
            lambda *at: self.progress.append(at),
            lambda *end: self.ended.append(end),
        )

    def wait(self, until: Callable[[], Any]) -> None:
        end = time.monotonic() + TIMEOUT_S
        while not until():
            assert time.monotonic() < end
            self.runner.deliver()
            time.sleep(0.002)


@pytest.fixture
def watched() -> Iterator[Watched]:
    watched = Watched()
    yield watched
    watched.runner.close()


def test_a_job_runs_elsewhere_and_its_result_is_delivered_here(watched: Watched) -> None:
    threads: list[threading.Thread] = []

    def job(progress: Progress) -> int:
        threads.append(threading.current_thread())
        progress(3, 3)
        return 7

    watched.runner.start(job)
    assert watched.runner.is_busy
    watched.wait(lambda: watched.ended)
    assert watched.ended == [(7, None)]
    assert watched.progress[-1] == (3, 3)
    assert threads[0] is not threading.current_thread()
    assert not watched.runner.is_busy


def test_a_failed_job_leaves_the_runner_usable(watched: Watched) -> None:
    def fails(_: Progress) -> None:
        raise LabelsError("no")

    watched.runner.start(fails)
    watched.wait(lambda: watched.ended)
    assert isinstance(watched.ended[0][1], LabelsError)
    watched.runner.start(lambda _: 1)
    watched.wait(lambda: len(watched.ended) == 2)
    assert watched.ended[1] == (1, None)


def test_a_cancelled_job_is_given_up_at_once_and_ends_with_its_next_step(watched: Watched) -> None:
    begun, go_on, reached = threading.Event(), threading.Event(), []

    def job(progress: Progress) -> None:
        begun.set()
        assert go_on.wait(TIMEOUT_S)
        progress(1, 2)
        reached.append("past the step")

    watched.runner.start(job)
    assert begun.wait(TIMEOUT_S)
    assert watched.runner.cancel()
    assert not watched.runner.is_busy, "while the step is still under way"
    watched.runner.start(lambda _: "next")
    go_on.set()
    watched.wait(lambda: watched.ended)
    assert watched.ended == [("next", None)], "nothing is told of the cancelled one"
    assert reached == []


def test_what_is_done_cannot_be_cancelled(watched: Watched) -> None:
    done = threading.Event()
    watched.runner.start(lambda _: 5)
    watched.runner._thread.submit(done.set, lambda _: None)
    assert done.wait(TIMEOUT_S)
    assert not watched.runner.cancel()
    watched.wait(lambda: watched.ended)
    assert watched.ended == [(5, None)]


def test_nothing_to_cancel(watched: Watched) -> None:
    assert not watched.runner.cancel()
