"""The inference thread."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from napari_hrsam.plugin.engine_thread import THREAD_NAME, EngineThread


@pytest.fixture
def engine() -> Iterator[EngineThread]:
    engine = EngineThread()
    yield engine
    engine.close()


def test_jobs_run_in_order_on_one_thread(engine: EngineThread) -> None:
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


def test_answers_come_on_the_thread_that_delivers(engine: EngineThread) -> None:
    rung, receivers = threading.Event(), []
    engine.set_notify(rung.set)
    engine.submit(lambda: 1, lambda _: receivers.append(threading.current_thread()))
    assert rung.wait(10)
    assert receivers == []
    engine.deliver()
    assert receivers == [threading.current_thread()]


def test_errors_come_with_the_future(engine: EngineThread) -> None:
    futures: list[Future[Any]] = []
    engine.submit(lambda: 1 / 0, futures.append)
    assert engine.wait(10)
    assert isinstance(futures[0].exception(), ZeroDivisionError)


def test_wait_gives_up_in_time(engine: EngineThread) -> None:
    release = threading.Event()
    engine.submit(lambda: release.wait(20), lambda _: None)
    assert not engine.wait(0.05)
    release.set()
    assert engine.wait(10)


def test_closing_drops_waiting_jobs_and_tells_nothing() -> None:
    engine = EngineThread()
    begun, release, ran = threading.Event(), threading.Event(), []

    def slow() -> None:
        begun.set()
        release.wait(20)

    engine.submit(slow, ran.append)
    engine.submit(lambda: ran.append("second"), ran.append)
    assert begun.wait(10)
    engine.close()
    engine.submit(lambda: ran.append("third"), ran.append)
    release.set()
    threads = [t for t in threading.enumerate() if t.name.startswith(THREAD_NAME)]
    for thread in threads:
        thread.join(10)
    engine.deliver()
    assert ran == []
    assert not any(thread.is_alive() for thread in threads)
