"""Many tasks of one kind, some of which may fail: one by one, or by several processes at once.

A task writes what it makes to a store, as one object, and makes the same whenever and wherever it
is done; what it returns is small. So a task that is done twice does no harm, and one that was
interrupted is done again.
"""

from __future__ import annotations

import math
import multiprocessing
import pickle
import signal
import traceback
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from napari_hrsam.errors import ConfigError, SessionError
from napari_hrsam.storage.images.fingerprint import identify

if TYPE_CHECKING:
    from napari_hrsam.engine.predictor import Predictor
    from napari_hrsam.storage.images.tile_source import PyramidImage

Item = TypeVar("Item", bound=Hashable)

Task = Callable[[Any], Any]
"""Does the task of an item, and returns something small."""

TRIES = 3
"""So often a task that fails, or whose process is killed, is done before it is left out."""

MAX_FAILED = 20
"""More tasks than these do not fail each for a reason of its own: the work is ended."""

POLL_S = 0.3
"""Pause between two looks at whether the work should stop."""

END_S = 30.0
"""A process that was asked to end is given so long."""


class StoppedError(Exception):
    """Somebody asked for the end of the work."""


class EndOfRunError(SessionError):
    """A task met what all the others would meet, too, such as a full disk."""


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a task was not done.

    Attributes
    ----------
    error : str
    trace : str
        Where in the program; empty if its process was killed.
    ends_run : bool
        Whether the other tasks need not be tried.
    is_final : bool
        Whether this one need not be tried again.
    """

    error: str
    trace: str = ""
    ends_run: bool = False
    is_final: bool = False

    @classmethod
    def of(cls, error: Exception, *, ends_run: bool = False) -> Problem:
        """Tell of what was raised, in words that any process can read."""
        told = "".join(traceback.format_exception(error))
        is_end = ends_run or isinstance(error, EndOfRunError)
        kind = "" if isinstance(error, SessionError) else f"{type(error).__name__}: "
        return cls(f"{kind}{error}", told, is_end)


class Job(Protocol):
    """What a worker is told once; it is pickled, and opened where the work is done."""

    def open(self, step: Callable[[], None]) -> Task:
        """Return what does a task and calls ``step`` often; raise what any task would meet."""


Shard = tuple[int, int]
"""One of so many equal parts of the work, counted from 0."""


def part_of(items: list[Item], shard: Shard | None) -> list[Item]:
    """Return the items of a shard: neighbours, which share what they need; all without one.

    Raises
    ------
    ConfigError
        If there is no such shard.
    """
    if shard is None:
        return items
    part, num = shard
    if not 0 <= part < num:
        raise ConfigError(
            f"expected a shard (I, N) with I from 0 to N - 1, got {shard}; the first of three is "
            "(0, 3)"
        )
    return items[part * len(items) // num : (part + 1) * len(items) // num]


class Tally(Generic[Item]):
    """What is left to do, what was done, and what failed for good.

    Parameters
    ----------
    items : iterable
        One for each task.

    Attributes
    ----------
    left : deque
        Tasks that nobody works at.
    values : dict
        What the tasks returned that were done.
    failed : dict of Problem
        Those that were given up.
    """

    def __init__(self, items: Iterable[Item]) -> None:
        self.left: deque[Item] = deque(items)
        self.values: dict[Item, Any] = {}
        self.failed: dict[Item, Problem] = {}
        self._tries: Counter[Item] = Counter()

    def take(self, item: Item, outcome: Any) -> None:
        """Take what came of a task: a `Problem`, or what it returned.

        Raises
        ------
        SessionError
            If the others need not be tried.
        """
        if not isinstance(outcome, Problem):
            self.values[item] = outcome
            return
        if outcome.ends_run:
            raise SessionError(outcome.error)
        self._tries[item] += 1
        if self._tries[item] < TRIES and not outcome.is_final:
            # Last: at another time, and perhaps by another process.
            self.left.append(item)
            return
        self.failed[item] = outcome
        if len(self.failed) > MAX_FAILED:
            raise SessionError(
                f"expected few tasks to fail, but {len(self.failed)} did, the last one by "
                f"{outcome.error}; mend the cause and run the same again to go on from there"
            )


class Crew(Protocol):
    """Workers that are not processes of this one, such as those of a cluster."""

    def do(
        self,
        job: Job,
        tally: Tally[Any],
        *,
        should_stop: Callable[[], bool],
        done: Callable[[], None],
    ) -> None:
        """Do all tasks, as `do_in_processes`."""


def do_by_others(
    workers: int | Crew,
    job: Job,
    tally: Tally[Any],
    *,
    should_stop: Callable[[], bool] = lambda: False,
    done: Callable[[], None],
) -> None:
    """Do all tasks by several processes, as `do_in_processes`, or by a crew."""
    if isinstance(workers, int):
        do_in_processes(
            job, tally, min(workers, len(tally.left)), should_stop=should_stop, done=done
        )
    else:
        workers.do(job, tally, should_stop=should_stop, done=done)


def fingerprints_of(image: PyramidImage, predictor: Predictor) -> tuple[str, str]:
    """Tell image and model from others."""
    return identify(image, predictor.fill).digest, predictor.fingerprint


def require_same_work(image: PyramidImage, predictor: Predictor, wanted: tuple[str, str]) -> None:
    """Refuse work at another image or model than was asked for.

    Raises
    ------
    EndOfRunError
        If `fingerprints_of` them are other ones.
    """
    found = fingerprints_of(image, predictor)
    for kind, there, here in zip(("image", "model"), wanted, found, strict=True):
        if there != here:
            raise EndOfRunError(
                f"expected to work at the {kind} {there} that was asked for, got {here}; see that "
                "images and models are the same under the same paths on all machines"
            )


def do_one_by_one(task: Task, tally: Tally[Any], done: Callable[[], None]) -> None:
    """Do all tasks in this process, and call ``done`` after each."""
    while tally.left:
        item = tally.left.popleft()
        tally.take(item, outcome_of(task, item))
        done()


def outcome_of(task: Task, item: Any) -> Any:
    """Do a task; return what it returns, or the `Problem`."""
    try:
        return task(item)
    except StoppedError:
        raise
    # One task of thousands may fail in any way: it is told, and the others are done.
    except Exception as error:  # noqa: BLE001
        return Problem.of(error)


def pickled(job: Job) -> bytes:
    """Turn a job to bytes for other processes.

    Raises
    ------
    ConfigError
        If its image is one that they cannot read.
    """
    try:
        return pickle.dumps(job)
    # What cannot be pickled says so with errors of many kinds.
    except Exception as error:
        raise ConfigError(
            f"expected an image that other processes can read, such as an OME-Zarr, got one that "
            f"cannot be given to them ({error}); use one worker"
        ) from error


def do_in_processes(
    job: Job,
    tally: Tally[Any],
    workers: int,
    *,
    should_stop: Callable[[], bool],
    done: Callable[[], None],
) -> None:
    """Do all tasks in several processes of one thread each, and call ``done`` after each.

    A process that is killed is replaced; the task that it was at is done again, `TRIES` times at
    most.

    Raises
    ------
    ConfigError
        As `pickled`.
    SessionError
        If all tasks would fail.
    StoppedError
        If it should stop; within one step.
    """
    context = multiprocessing.get_context("spawn")
    told = pickled(job)
    # Neighbours go to one process, which need not make what they share twice.
    length = max(1, math.ceil(len(tally.left) / (2 * workers)))
    whole = [tally.left.popleft() for _ in range(len(tally.left))]
    rows = deque(deque(whole[at : at + length]) for at in range(0, len(whole), length))
    team: list[_Process] = []
    try:
        while True:
            rows += [deque([tally.left.popleft()]) for _ in range(len(tally.left))]
            for process in team:
                process.begin(rows)
            while rows and len(team) < workers:
                team.append(_Process(context, told))
                team[-1].begin(rows)
            busy = [process for process in team if process.item is not None]
            if not busy:
                break
            ready = wait([one for process in busy for one in process.signs], POLL_S)
            if should_stop():
                raise StoppedError
            for process in [one for one in busy if set(one.signs) & set(ready)]:
                item, process.item = process.item, None
                outcome = process.outcome()
                if not process.is_alive:
                    team.remove(process)
                    rows += [process.row] if process.row else []
                tally.take(item, outcome)
                done()
    finally:
        for process in team:
            process.stop()
        for process in team:
            process.end()


class _Process:
    """A worker process, and the tasks that it is given one after the other."""

    def __init__(self, context: Any, job: bytes) -> None:
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_work, args=(theirs, job), daemon=True)
        self._process.start()
        theirs.close()
        self.row: deque[Any] = deque()
        self.item: Any = None
        self.is_alive = True

    @property
    def signs(self) -> list[Any]:
        """What there is to wait for."""
        return [self._pipe, self._process.sentinel]

    def begin(self, rows: deque[deque[Any]]) -> None:
        """Begin a task, of the own row or of the next, unless there is one or none is left."""
        if self.item is not None:
            return
        if not self.row and rows:
            self.row = rows.popleft()
        if self.row:
            self.item = self.row.popleft()
            # It may have been killed meanwhile, which `outcome` finds out.
            with suppress(OSError):
                self._pipe.send(self.item)

    def outcome(self) -> Any:
        """Return what came of the task."""
        with suppress(EOFError, OSError):
            if self._pipe.poll(0):
                return self._pipe.recv()
        self.is_alive = False
        self.end()
        return Problem(
            f"its process was killed (exit status {self._process.exitcode}), perhaps for lack of "
            "memory: use fewer workers"
        )

    def stop(self) -> None:
        """Ask the process to end."""
        self._pipe.close()

    def end(self) -> None:
        """Wait until it has ended, or end it."""
        self.stop()
        self._process.join(END_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _work(pipe: Connection, job: bytes) -> None:
    """Do tasks until the other end of the pipe is closed."""
    # Ctrl-C reaches all processes of a terminal; it is the first that decides.
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def step() -> None:
        # Nothing is sent during a task: the other end was closed. A lock, such as that of an
        # event, would stay locked for all if one of them were killed with it.
        if pipe.poll():
            raise StoppedError

    task: Task | None = None
    try:
        while True:
            item = pipe.recv()
            if task is None:
                try:
                    # It comes from the process that started this one.
                    task = pickle.loads(job).open(step)  # noqa: S301
                except Exception as error:  # noqa: BLE001  told to the first process
                    pipe.send(Problem.of(error, ends_run=True))
                    continue
            pipe.send(outcome_of(task, item))
    except (EOFError, OSError, StoppedError):
        return
