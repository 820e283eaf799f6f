"""Tasks by several processes: all are done, whatever happens to the processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from napari_hrsam.engine import tasks
from napari_hrsam.engine.tasks import StoppedError, Tally, do_in_processes, part_of
from napari_hrsam.errors import ConfigError, SessionError


@dataclass(frozen=True)
class Squares:
    """Squares numbers, and writes down which process did so; some numbers are hard."""

    folder: Path
    kills: tuple[int, ...] = ()
    fails_once: tuple[int, ...] = ()
    waits_s: float = 0.0
    will_not_open: bool = False

    def open(self, step: Callable[[], None]) -> Callable[[int], int]:
        """Return what squares a number."""
        if self.will_not_open:
            raise SessionError("expected another version")

        def square(number: int) -> int:
            with (self.folder / str(number)).open("a") as file:
                file.write(f"{os.getpid()}\n")
            if number in self.kills:
                os.kill(os.getpid(), signal.SIGKILL)
            if number in self.fails_once and len(self.tries(number)) == 1:
                raise ValueError("not yet")
            until = time.monotonic() + self.waits_s
            while time.monotonic() < until:
                step()
            return number**2

        return square

    def tries(self, number: int) -> list[str]:
        """The processes that tried a number."""
        return (self.folder / str(number)).read_text().split()


def squares(job: Squares, num: int, workers: int = 2) -> Tally[int]:
    tally = Tally(range(num))
    do_in_processes(job, tally, workers, should_stop=lambda: False, done=lambda: None)
    return tally


def test_all_tasks_are_done_once_by_all_processes(tmp_path: Path) -> None:
    job = Squares(tmp_path, waits_s=0.1)
    assert squares(job, 20, 3).values == {number: number**2 for number in range(20)}
    done_by = [job.tries(number) for number in range(20)]
    assert all(len(one) == 1 for one in done_by)
    assert not multiprocessing.active_children()


def test_a_task_that_kills_its_process_is_given_up_and_one_that_fails_once_is_done(
    tmp_path: Path,
) -> None:
    job = Squares(tmp_path, kills=(3,), fails_once=(5,))
    tally = squares(job, 8)
    assert sorted(tally.values) == [0, 1, 2, 4, 5, 6, 7]
    assert list(tally.failed) == [3]
    assert "was killed (exit status -9)" in tally.failed[3].error
    assert len(set(job.tries(3))) == tasks.TRIES
    assert len(job.tries(5)) == 2


def test_a_job_that_cannot_be_opened_ends_all(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="^expected another version$"):
        squares(Squares(tmp_path, will_not_open=True), 8)
    assert not list(tmp_path.iterdir())


def test_stopped_in_the_middle_of_a_task_the_processes_end(tmp_path: Path) -> None:
    job, tally = Squares(tmp_path, waits_s=3600), Tally(range(4))
    with pytest.raises(StoppedError):
        do_in_processes(
            job,
            tally,
            2,
            should_stop=(tmp_path / "0").exists,
            done=lambda: None,
        )
    assert not multiprocessing.active_children()
    assert not tally.values


@pytest.mark.parametrize("num", [1, 3, 7, 50])
def test_shards_are_all_of_it_and_nothing_twice(num: int) -> None:
    items = list(range(20))
    assert [item for part in range(num) for item in part_of(items, (part, num))] == items
    assert part_of(items, None) == items
    with pytest.raises(ConfigError, match=r"expected a shard \(I, N\)"):
        part_of(items, (num, num))
