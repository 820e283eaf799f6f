"""Runs on a Dask cluster of local processes, and its faults: the result is the same."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import distributed
import numpy as np
import pytest
from auto_runs import BadImage, bytes_of, run

from napari_hrsam.cluster import work
from napari_hrsam.cluster.crew import DaskCrew
from napari_hrsam.engine import tasks
from napari_hrsam.errors import ConfigError, SessionError

KILLS = int(os.environ.get("NAPARI_HRSAM_KILLS", "4")) // 4

pytestmark = [
    pytest.mark.slow,
    # What distributed says while its processes are killed.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """What one process makes in one go."""
    path = tmp_path_factory.mktemp("whole")
    run(path)
    return bytes_of(path)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two worker processes, and the address of their scheduler."""
    logging.getLogger("distributed").setLevel(logging.ERROR)
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, dashboard_address=":0", host="127.0.0.1"
    ) as made:
        yield made


@pytest.fixture
def crew(cluster: Any) -> DaskCrew:
    return DaskCrew(scheduler=cluster.scheduler_address)


def workers_of(cluster: Any) -> list[int]:
    with distributed.Client(cluster, set_as_default=False) as client:
        return list(client.run(os.getpid).values())


def test_two_workers_give_what_one_process_gives(
    tmp_path: Path, crew: DaskCrew, whole: dict[str, bytes]
) -> None:
    told: list[tuple[int, int]] = []
    report = run(tmp_path, workers=crew, progress=lambda *num: told.append(num))
    assert bytes_of(tmp_path) == whole
    assert told[0] == (0, 12)
    assert told[-1] == (12, 12)
    assert report.num_tiles >= 20
    assert report.mpx == pytest.approx(240 * 192 / 1e6)


def test_workers_killed_at_any_moment_change_nothing(
    tmp_path: Path, cluster: Any, crew: DaskCrew, whole: dict[str, bytes]
) -> None:
    chance = np.random.default_rng(1)
    num_killed = 0
    for number in range(KILLS):
        victims = workers_of(cluster)
        has_begun = threading.Event()

        def kill(victims: list[int] = victims, has_begun: threading.Event = has_begun) -> None:
            has_begun.wait(300)
            time.sleep(float(chance.uniform(0, 2)))
            os.kill(victims[int(chance.integers(len(victims)))], signal.SIGKILL)

        killer = threading.Thread(target=kill)
        killer.start()
        path = tmp_path / str(number)
        run(path, workers=crew, progress=lambda *_, begun=has_begun: begun.set())
        killer.join()
        num_killed += 1
        assert bytes_of(path) == whole
    assert num_killed == KILLS


def test_every_task_twice_at_once_on_two_workers_changes_nothing(
    tmp_path: Path, cluster: Any, monkeypatch: pytest.MonkeyPatch, whole: dict[str, bytes]
) -> None:
    submit = distributed.Client.submit
    twins = []

    def twice(self: Any, *args: Any, **options: Any) -> Any:
        one, other = list(self.scheduler_info(n_workers=-1)["workers"])[:2]
        twins.append(submit(self, *args, **options, workers=[one]))
        return submit(self, *args, **options, workers=[other])

    monkeypatch.setattr(distributed.Client, "submit", twice)
    with distributed.Client(cluster, set_as_default=False) as client:
        client.wait_for_workers(2)
    run(tmp_path, workers=DaskCrew(scheduler=cluster.scheduler_address))
    assert len(twins) == 12
    assert bytes_of(tmp_path) == whole


def test_a_block_that_cannot_be_read_is_told_and_the_others_are_done(
    tmp_path: Path, crew: DaskCrew
) -> None:
    armed = tmp_path / "armed"
    armed.touch()
    with pytest.raises(SessionError, match="4 of 12 failed several times.*the disk is bad there"):
        run(tmp_path / "a", BadImage((10, 185), armed), workers=crew)
    assert len(armed.read_bytes()) == 4 * tasks.TRIES
    armed.unlink()
    assert run(tmp_path / "a", BadImage((10, 185), armed), workers=crew).num_at_hand == 8


def test_workers_with_other_versions_are_refused(
    tmp_path: Path, crew: DaskCrew, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = work.versions()
    monkeypatch.setattr(work, "versions", lambda: {**here, "torch": "0.1", "zarr": "9"})
    with pytest.raises(
        SessionError, match=r"with torch \S+ \(there 0.1\), zarr \S+ \(there 9\); install the same"
    ):
        run(tmp_path, workers=crew)
    monkeypatch.undo()
    assert run(tmp_path, workers=crew).num_objects > 100


def test_an_image_that_is_another_one_for_the_workers_is_refused(
    tmp_path: Path, crew: DaskCrew
) -> None:
    with pytest.raises(
        SessionError, match="expected to work at the image .* that was asked for, got"
    ):
        run(tmp_path, Changing(), workers=crew)


class Changing(BadImage):
    """Elsewhere it shows something else, like a path that leads to another file there."""

    def __init__(self) -> None:
        super().__init__((0, 0), Path("not-there"))

    def __getitem__(self, index: Any) -> Any:
        found = super().__getitem__(index)
        return found if os.getpid() == self._ours else 255 - found


def test_stopped_it_goes_on(tmp_path: Path, crew: DaskCrew, whole: dict[str, bytes]) -> None:
    told: list[int] = []
    with pytest.raises(SessionError, match="stopped after .* of 12 blocks"):
        run(
            tmp_path,
            workers=crew,
            progress=lambda done, _: told.append(done),
            should_stop=lambda: max(told) >= 2,
        )
    assert run(tmp_path, workers=crew).num_at_hand >= 2
    assert bytes_of(tmp_path) == whole


def free_address() -> str:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{one.getsockname()[1]}"


@contextmanager
def dask_processes(address: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A scheduler and a worker, as a user starts them."""
    path = os.pathsep.join([str(Path(__file__).parents[1] / "support"), *sys.path])
    quiet = {**os.environ, "PYTHONPATH": path, "DASK_LOGGING__DISTRIBUTED": "critical"}
    host, port = address.split(":")
    commands = [
        ["dask_scheduler", "--host", host, "--port", port, "--no-dashboard", "--no-jupyter"],
        ["dask_worker", f"tcp://{address}", "--nthreads", "1", "--no-dashboard", "--no-nanny"],
    ]
    started = [
        subprocess.Popen(
            [sys.executable, "-m", f"distributed.cli.{name}", *more],
            env=quiet,
            stderr=subprocess.DEVNULL,
        )
        for name, *more in commands
    ]
    try:
        # However long that takes on a busy machine.
        while started[0].poll() is None:
            try:
                socket.create_connection((host, int(port))).close()
                break
            except ConnectionRefusedError:
                time.sleep(0.2)
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def test_a_scheduler_that_is_killed_is_told_and_another_goes_on(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    address = free_address()
    with dask_processes(address) as (scheduler, _):
        told: list[int] = []

        def kill_soon(done: int, _: int) -> None:
            told.append(done)
            if done >= 2:
                scheduler.kill()

        with pytest.raises(SessionError, match="expected the scheduler to go on, but it ended"):
            run(tmp_path, workers=DaskCrew(scheduler=f"tcp://{address}"), progress=kill_soon)
    assert not (tmp_path / "labels/auto-1").exists()
    with dask_processes(address):
        report = run(tmp_path, workers=DaskCrew(scheduler=f"tcp://{address}"))
    assert report.num_at_hand >= 2
    assert bytes_of(tmp_path) == whole


def test_a_scheduler_that_is_not_there_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.cluster.crew.CONNECT_S", 0.5)
    with pytest.raises(SessionError, match="expected a Dask scheduler at tcp://127.0.0.1:9, got"):
        run(tmp_path, workers=DaskCrew(scheduler="tcp://127.0.0.1:9"))


def test_a_file_names_the_cluster_that_is_started_and_ended(
    tmp_path: Path, whole: dict[str, bytes]
) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(
        "class: LocalCluster\n"
        "arguments: {n_workers: 0, threads_per_worker: 1, dashboard_address: ':0'}\n"
    )
    run(tmp_path / "a", workers=DaskCrew(cluster=file, workers=1))
    assert bytes_of(tmp_path / "a") == whole


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "expected class: SLURMCluster and arguments.*got"),
        ("class: os.system", "expected a class of .*SLURMCluster.*got 'os.system'"),
        ("class: SLURMCluster\nqueue: long", "other keys are not known"),
        ("class: [", "expected a YAML file with"),
        ("class: LocalCluster\narguments: [3]", "with arguments by name"),
    ],
)
def test_files_of_no_cluster_are_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message):
        DaskCrew(cluster=file)


def test_wrong_arguments_of_a_cluster_are_told(tmp_path: Path) -> None:
    file = tmp_path / "cluster.yaml"
    file.write_text("class: SLURMCluster\narguments: {queue: long}\n")
    with pytest.raises(ConfigError, match="expected arguments of SLURMCluster"):
        run(tmp_path, workers=DaskCrew(cluster=file))
    with pytest.raises(ConfigError, match="give one of them"):
        DaskCrew()
