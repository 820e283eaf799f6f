"""The inference thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from napari_hrsam.errors import ImageReadError
from napari_hrsam.plugin.session.inference_thread import REST_S, THREAD_NAME, InferenceThread


@pytest.fixture
def engine() -> Iterator[InferenceThread]:
    engine = InferenceThread()
    yield engine
    engine.close()


def test_jobs_run_in_order_on_one_thread(engine: InferenceThread) -> None:
    answers: list[Any] = []
    for number in range(5):
        engine.submit(
            lambda n=number: (n, threading.current_thread().name),
            lambda future: answers.append(future.result()),
        )
    assert engine.num_pending == 5
    assert engine.wait(10)
    assert engine.num_pending == 0
    assert [number for number, _ in answers] == [0, 1, 2, 3, 4]
    assert {name for _, name in answers} == {f"{THREAD_NAME}_0"}


def test_answers_come_on_the_thread_that_delivers(engine: InferenceThread) -> None:
    rung, receivers = threading.Event(), []
    engine.set_notify(rung.set)
    engine.submit(lambda: 1, lambda _: receivers.append(threading.current_thread()))
    assert rung.wait(10)
    assert receivers == []
    engine.deliver()
    assert receivers == [threading.current_thread()]


def test_errors_come_with_the_future(engine: InferenceThread) -> None:
    futures: list[Future[Any]] = []
    engine.submit(lambda: 1 / 0, futures.append)
    assert engine.wait(10)
    assert isinstance(futures[0].exception(), ZeroDivisionError)


def test_wait_gives_up_in_time(engine: InferenceThread) -> None:
    release = threading.Event()
    engine.submit(lambda: release.wait(20), lambda _: None)
    assert not engine.wait(0.05)
    release.set()
    assert engine.wait(10)


def test_closing_does_what_was_asked_for_and_tells_nothing() -> None:
    engine = InferenceThread()
    begun, release, ran, told = threading.Event(), threading.Event(), [], []

    def slow() -> None:
        begun.set()
        release.wait(20)

    engine.submit(slow, told.append)
    engine.use_spare_time(None)
    engine.submit(lambda: ran.append("second"), told.append)
    assert begun.wait(10)
    engine.close(lambda: ran.append("last"))
    engine.submit(lambda: ran.append("too late"), told.append)
    assert not engine.join(0.01)
    release.set()
    assert engine.join(10)
    engine.deliver()
    assert ran == ["second", "last"]
    assert told == []


def test_spare_time_is_used_after_a_rest_and_until_there_is_nothing_to_do(
    engine: InferenceThread,
) -> None:
    done, finished = [], threading.Event()

    def work() -> bool:
        done.append(time.monotonic())
        if len(done) == 3:
            finished.set()
        return len(done) < 3

    begin = time.monotonic()
    engine.use_spare_time(work)
    assert finished.wait(10)
    assert done[0] - begin >= REST_S * 0.9
    time.sleep(2 * REST_S)
    assert len(done) == 3
    assert engine.num_pending == 0


def test_spare_work_gives_way_to_a_job_after_the_piece_under_way(engine: InferenceThread) -> None:
    begun, release, order = threading.Event(), threading.Event(), []

    def work() -> bool:
        begun.set()
        release.wait(20)
        order.append("spare")
        return True

    engine.use_spare_time(work)
    assert begun.wait(10)
    engine.submit(lambda: order.append("job"), lambda _: None)
    engine.use_spare_time(None)
    release.set()
    assert engine.wait(10)
    assert order == ["spare", "job"]


def test_spare_work_that_fails_stops_and_disturbs_nobody(
    engine: InferenceThread, caplog: pytest.LogCaptureFixture
) -> None:
    failed = threading.Event()

    def work() -> bool:
        failed.set()
        raise ImageReadError("expected a chunk, got none")

    engine.use_spare_time(work)
    assert failed.wait(10)
    answers: list[Any] = []
    engine.submit(lambda: 1, lambda future: answers.append(future.result()))
    assert engine.wait(10)
    assert answers == [1]
    assert "spare work failed" in caplog.text
