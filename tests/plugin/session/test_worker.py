"""The worker: which answers count, and what gives a command up."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest

from napari_hrsam.errors import SessionError
from napari_hrsam.plugin.session import commands
from napari_hrsam.plugin.session.progress import Progress
from napari_hrsam.plugin.session.worker import Worker

CLICK = commands.Click((1.0, 2.0), True, 0, ())


class FakeSession:
    """Answers with the command; waits at a gate; fails where it is asked to."""

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.begun = threading.Event()
        self.failing: set[type] = set()
        self.applied: list[tuple[Any, Progress]] = []

    def apply(self, command: Any, progress: Progress) -> Any:
        self.begun.set()
        assert self.gate.wait(20)
        self.applied.append((command, progress))
        if type(command) in self.failing:
            raise SessionError("expected a session")
        return command


@pytest.fixture
def session() -> FakeSession:
    return FakeSession()


@pytest.fixture
def worker(session: FakeSession) -> Iterator[Worker]:
    worker = Worker()
    worker._session = session  # type: ignore[assignment]
    worker._hurry = session.gate
    yield worker
    worker.close()


@pytest.fixture
def answers(worker: Worker) -> list[tuple[Any, bool, bool]]:
    found: list[tuple[Any, bool, bool]] = []
    worker.answered.connect(lambda *answer: found.append(answer))
    return found


def test_every_step_is_answered_and_the_last_is_the_newest(
    worker: Worker, answers: list[Any]
) -> None:
    for step in (CLICK, commands.Undo(), CLICK):
        worker.send(step)
    assert worker.is_busy
    assert worker.wait(10)
    assert answers == [
        (CLICK, False, False),
        (commands.Undo(), False, False),
        (CLICK, True, False),
    ]


def test_a_step_that_failed_is_followed_by_the_session_as_it_is(
    worker: Worker, session: FakeSession, answers: list[Any]
) -> None:
    failures: list[Any] = []
    worker.failed.connect(lambda *failure: failures.append(failure))
    session.failing = {commands.Undo}
    worker.send(commands.Undo())
    assert worker.wait(10)
    [(command, error, is_newest)] = failures
    assert (command, is_newest) == (commands.Undo(), True)
    assert isinstance(error, SessionError)
    assert answers == [(commands.Describe(), True, True)]
    session.failing = {commands.Undo, commands.Describe}
    worker.send(commands.Undo())
    assert worker.wait(10)
    assert len(failures) == 3, "a description that fails is not asked for again"


def test_cancelling_gives_up_the_prompts_of_this_object_alone(
    worker: Worker, session: FakeSession
) -> None:
    worker.send(CLICK)
    worker.send(commands.Commit(None))
    worker.send(CLICK)
    worker.send(commands.Cancel())
    worker.send(CLICK)
    assert worker.wait(10)
    clicks = [progress for command, progress in session.applied if command == CLICK]
    assert [progress.is_cancelled for progress in clicks] == [False, True, False]


def test_only_the_newest_way_to_be_shown_counts(worker: Worker, session: FakeSession) -> None:
    for image in ("once", "again"):
        worker.send(commands.Show(image))  # type: ignore[arg-type]
    assert worker.wait(10)
    assert [progress.is_cancelled for _, progress in session.applied] == [True, False]


def test_of_a_closed_session_answers_come_but_are_not_to_be_shown(
    worker: Worker, session: FakeSession, answers: list[Any]
) -> None:
    done: list[Any] = []
    session.gate.clear()
    worker.send(commands.Commit(None))
    worker.send(commands.Close(), done.append)
    session.gate.set()
    assert worker.wait(10)
    [(_, is_shown, _)] = answers
    assert not is_shown
    assert done == [commands.Close()]


def test_a_session_that_was_closed_while_it_opened_is_not_reported(
    worker: Worker, session: FakeSession
) -> None:
    heard: list[Any] = []
    worker.failed.connect(lambda *failure: heard.append(failure))
    session.failing = {commands.Open}
    session.gate.clear()
    worker.send(commands.Open(None, None, None), heard.append)  # type: ignore[arg-type]
    worker.send(commands.Close())
    session.gate.set()
    assert worker.wait(10)
    assert heard == []
    assert session.applied[0][1].is_cancelled


def test_a_commit_is_cancelled_until_it_is_made(worker: Worker, session: FakeSession) -> None:
    assert not worker.cancel_commit()
    session.gate.clear()
    worker.send(commands.Commit(None))
    assert worker.cancel_commit()
    session.gate.set()
    assert worker.wait(10)
    session.applied[0][1].finish()
    worker.send(commands.Commit(None))
    assert worker.wait(10)
    session.applied[1][1].finish()
    assert not worker.cancel_commit()


def test_progress_is_emitted_by_deliver_until_the_command_is_cancelled(
    worker: Worker, session: FakeSession
) -> None:
    told: list[Any] = []
    worker.progress.connect(lambda *numbers: told.append(numbers))
    commit = commands.Commit(None)
    worker.send(commit)
    assert worker.wait(10)
    progress = session.applied[0][1]
    progress(4, 4)
    assert told == []
    worker.deliver()
    assert told == [(commit, 4, 4)]
    progress(4, 4)
    assert worker.cancel_commit()
    worker.deliver()
    assert len(told) == 1
