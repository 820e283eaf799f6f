"""Faults while several processes work at a run: the result is the same, byte for byte."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import re
import signal
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from auto_runs import BadImage, bytes_of, run

from napari_hrsam.engine import tasks
from napari_hrsam.engine.everything import blocks as blocks_module
from napari_hrsam.engine.everything import found as found_module
from napari_hrsam.engine.everything.plan import Records
from napari_hrsam.engine.tasks import Problem, Tally, do_one_by_one
from napari_hrsam.errors import ConfigError, SessionError
from napari_hrsam.storage.files.safe_files import write_once

KILLS = int(os.environ.get("NAPARI_HRSAM_KILLS", "8")) // 4


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes in one go."""
    path = tmp_path_factory.mktemp("whole")
    report = run(path)
    assert report.num_blocks == 12
    assert report.num_objects > 100
    return bytes_of(path)


def problems_until_done(path: Path, **options: Any) -> list[str]:
    """Run again and again until it is done."""
    problems: list[str] = []
    while len(problems) < 50:
        try:
            run(path, **options)
        except SessionError as error:
            problems.append(str(error))
        else:
            break
    return problems


def failed_of_file(path: Path) -> Path:
    return path / "labels/auto-1/.auto/failed.json"


def table_of(files: dict[str, bytes]) -> bytes:
    return files[".auto/objects.csv"]


def failed_of(path: Path, name: str = "failed.json") -> list[dict[str, Any]]:
    told = json.loads((path / "labels/.auto-1.run.partial" / name).read_text())
    failed: list[dict[str, Any]] = told["failed"]
    return failed


@pytest.mark.slow
def test_a_run_in_which_workers_are_killed_at_any_moment_gives_the_same(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    chance = np.random.default_rng(0)
    has_ended = threading.Event()
    killed: list[int] = []

    def kill_now_and_then() -> None:
        while len(killed) < KILLS and not has_ended.wait(float(chance.uniform(0.5, 4))):
            team = multiprocessing.active_children()
            if team:
                victim = team[int(chance.integers(len(team)))]
                os.kill(victim.pid, signal.SIGKILL)  # type: ignore[arg-type]
                killed.append(victim.pid)  # type: ignore[arg-type]

    killer = threading.Thread(target=kill_now_and_then)
    killer.start()
    try:
        for number in range(100):
            # A block that is at work when its process is killed three times is given up.
            problems = problems_until_done(tmp_path / str(number), workers=2)
            assert all("was killed" in problem for problem in problems)
            assert bytes_of(tmp_path / str(number)) == whole
            if len(killed) >= KILLS:
                break
    finally:
        has_ended.set()
        killer.join()
    assert len(killed) >= KILLS


@pytest.mark.slow
def test_blocks_that_kill_their_process_are_given_up_and_the_others_are_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    monkeypatch.setattr(tasks, "TRIES", 1)
    armed = tmp_path / "armed"
    armed.touch()
    # The tile in the corner is looked at for four blocks.
    image = BadImage((10, 185), armed, kills=True)
    with pytest.raises(SessionError, match="4 of 12 failed.*was killed.*failed.json names all"):
        run(tmp_path / "a", image, workers=2)
    failed = failed_of(tmp_path / "a")
    assert [one["block"] for one in failed] == [[0, 1], [0, 2], [1, 1], [1, 2]]
    assert failed[1]["box"] == [0, 128, 64, 192]
    assert len(armed.read_bytes()) == 4
    assert not (tmp_path / "a/labels/auto-1").exists()
    armed.unlink()
    report = run(tmp_path / "a", image)
    assert report.num_at_hand == 8
    assert not failed_of_file(tmp_path / "a").exists()
    assert table_of(bytes_of(tmp_path / "a")) == table_of(whole)


def test_a_block_that_cannot_be_read_is_tried_thrice_and_told_by_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    tried = []
    find = blocks_module.find_objects

    def find_or_fail(field: Any, core: Any, *more: Any, **options: Any) -> Any:
        if core.y0 == 32 and core.x0 == 0:
            tried.append(core)
            raise ValueError("a codec fell over")
        return find(field, core, *more, **options)

    monkeypatch.setattr(blocks_module, "find_objects", find_or_fail)
    with pytest.raises(
        SessionError, match=r"1 of 12 failed.*\(64, 0, 128, 64\) by ValueError: a co"
    ):
        run(tmp_path)
    assert len(tried) == 3
    (failed,) = failed_of(tmp_path)
    assert "find_or_fail" in failed["traceback"]
    monkeypatch.undo()
    assert run(tmp_path).num_at_hand == 11
    assert bytes_of(tmp_path) == whole


def test_where_every_block_fails_the_run_ends_soon() -> None:
    def fail(item: int) -> None:
        raise ValueError(f"nobody home at {item}")

    tally = Tally(range(1000))
    with pytest.raises(SessionError, match="expected few tasks to fail, but 21 did.*nobody home"):
        do_one_by_one(fail, tally, lambda: None)
    assert len(tally.failed) == tasks.MAX_FAILED + 1


def test_a_full_disk_ends_the_run_and_what_is_done_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    written = []

    def write(path: Path, data: bytes) -> bool:
        if len(written) == 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written.append(path)
        return write_once(path, data)

    monkeypatch.setattr(found_module, "write_once", write)
    with pytest.raises(SessionError, match=r"No space left.*check the space on the disk"):
        run(tmp_path)
    monkeypatch.undo()
    assert run(tmp_path).num_at_hand == 5
    assert bytes_of(tmp_path) == whole


@pytest.mark.parametrize("share", [0.05, 0.3])
def test_a_store_that_fails_now_and_then_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes], share: float
) -> None:
    chance = np.random.default_rng(3)
    num_failures = 0

    def write(path: Path, data: bytes) -> bool:
        nonlocal num_failures
        if chance.random() < share:
            num_failures += 1
            raise OSError(errno.EIO, "the store is away")
        return write_once(path, data)

    monkeypatch.setattr(found_module, "write_once", write)
    assert all("the store is away" in problem for problem in problems_until_done(tmp_path))
    assert num_failures or share < 0.1
    assert bytes_of(tmp_path) == whole


def test_three_shards_in_any_order_are_one_run(tmp_path: Path, whole: dict[str, bytes]) -> None:
    told: list[tuple[int, int]] = []
    for part, missing in ((2, 8), (0, 4), (0, 4)):
        report = run(tmp_path, shard=(part, 3), progress=lambda *num: told.append(num))
        assert report.num_missing == missing
        assert not (tmp_path / "labels/auto-1").exists()
    assert told[-1] == (4, 4)
    last = run(tmp_path, shard=(1, 3))
    assert last.num_missing == 0
    assert last.num_objects > 100
    assert bytes_of(tmp_path) == whole
    assert run(tmp_path, shard=(0, 3)).num_at_hand == 12
    with pytest.raises(ConfigError, match=r"expected a shard \(I, N\)"):
        run(tmp_path, shard=(3, 3))


def test_shards_that_fail_name_their_own_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ValueError("no")

    monkeypatch.setattr(blocks_module, "find_objects", fail)
    for part in range(2):
        with pytest.raises(SessionError, match="6 of 6 failed"):
            run(tmp_path, shard=(part, 2))
    assert len(failed_of(tmp_path, "failed-1-of-2.json")) == 6
    assert len(failed_of(tmp_path, "failed-0-of-2.json")) == 6


def twice(path: Path, barrier: Any) -> None:
    """All of a run, whose blocks others begin at the same moment."""
    find = blocks_module.find_objects

    def find_together(*args: Any, **options: Any) -> Any:
        # At the last blocks the other one may have ended.
        with suppress(threading.BrokenBarrierError):
            barrier.wait(20)
        return find(*args, **options)

    blocks_module.find_objects = find_together  # type: ignore[assignment]
    run(path)


@pytest.mark.slow
def test_every_block_done_twice_at_once_does_no_harm(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=twice, args=(tmp_path, barrier)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert bytes_of(tmp_path) == whole


def test_plans_begun_at_once_are_one_plan(tmp_path: Path) -> None:
    """Two programs with blocks of two sizes keep to those of the one that was faster."""
    run(tmp_path / "a")
    plan = Records(tmp_path / "a/labels/auto-1/.auto", read_plan_of(tmp_path / "a")).plan
    others = [type(plan)(**{**fields_of(plan), "block": side}) for side in (32, 48, 64, 96) * 4]
    together = threading.Barrier(len(others))
    got: list[int] = []

    def begin(one: Any) -> None:
        together.wait()
        got.append(Records(tmp_path / "b", one).plan.block)

    threads = [threading.Thread(target=begin, args=(one,)) for one in others]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == len(others)
    assert len(set(got)) == 1


def read_plan_of(path: Path) -> Any:
    from napari_hrsam.engine.everything.plan import read_plan

    return read_plan(path / "labels/auto-1/.auto")


def fields_of(plan: Any) -> dict[str, Any]:
    return {name: getattr(plan, name) for name in type(plan).__slots__}


def test_problems_that_are_final_are_not_tried_again() -> None:
    tally = Tally([1, 2])
    tally.left.clear()
    tally.take(1, Problem("dead", is_final=True))
    tally.take(2, Problem("away"))
    assert list(tally.left) == [2]
    assert re.match("dead", tally.failed[1].error)


def test_an_image_that_cannot_be_given_to_others_needs_one_worker(tmp_path: Path) -> None:
    class Local(BadImage):
        """Its class is known here only."""

    image = Local((0, 0), tmp_path / "not-armed")
    with pytest.raises(ConfigError, match="expected an image that other processes can read"):
        run(tmp_path, image, workers=2)


def test_stopped_processes_end(tmp_path: Path) -> None:
    began = time.monotonic()
    with pytest.raises(SessionError, match="stopped after 0 of 12 blocks"):
        run(tmp_path, workers=2, should_stop=lambda: time.monotonic() - began > 0)
    assert not multiprocessing.active_children()
