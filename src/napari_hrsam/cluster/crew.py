"""Workers of a Dask cluster do the tasks of a job."""

from __future__ import annotations

import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from napari_hrsam._optional import require
from napari_hrsam.engine.tasks import POLL_S, Job, Problem, StoppedError, Tally, pickled
from napari_hrsam.errors import ConfigError, SessionError

logger = logging.getLogger(__name__)

WINDOW = 4
"""Tasks that the scheduler holds for each worker; the rest waits here."""

NEWS_S = 60.0
"""So often it is said that no worker is there."""

CONNECT_S = 30.0

COUNT_S = 2.0
"""So often workers are counted."""


class DaskCrew:
    """The workers of a cluster, each of which should have one thread.

    Image, model and the folder of the run must lie under the same paths everywhere, on a file
    system that all machines share.

    Parameters
    ----------
    scheduler : str, optional
        Address of a scheduler that runs, such as ``"tcp://10.0.0.1:8786"``.
    cluster : path, optional
        YAML file of a cluster to be started and ended: ``class`` names one of dask-jobqueue, such
        as ``SLURMCluster``, or ``LocalCluster``; ``arguments`` are those of the class.
    workers : int, optional
        How many workers, or jobs, to ask for; only with ``cluster``.

    Raises
    ------
    ConfigError
        If the file is none of a cluster.
    MissingExtraError
        If the extra ``cluster`` is not installed.
    """

    def __init__(
        self,
        *,
        scheduler: str | None = None,
        cluster: Path | None = None,
        workers: int | None = None,
    ) -> None:
        if (scheduler is None) == (cluster is None):
            raise ConfigError(
                f"expected the address of a scheduler or the file of a cluster, got {scheduler} "
                f"and {cluster}; give one of them"
            )
        self._distributed = require("distributed", extra="cluster")
        self._scheduler, self._workers = scheduler, workers
        self._make = None if cluster is None else _cluster_of(cluster)

    def do(
        self,
        job: Job,
        tally: Tally[Any],
        *,
        should_stop: Callable[[], bool],
        done: Callable[[], None],
    ) -> None:
        """Do all tasks, and call ``done`` after each.

        What the scheduler says of workers that died again and again at one task is taken as its
        fault: it is given up, and the others are done.

        Raises
        ------
        ConfigError
            If the job cannot be given to others.
        SessionError
            If the scheduler does not answer, or all tasks would fail.
        StoppedError
            If it should stop; tasks that were begun are ended.
        """
        from napari_hrsam.cluster.work import JobPlugin

        name = f"hrsam-{uuid.uuid4().hex}"
        plugin = JobPlugin(name, pickled(job))
        with self._client() as client:
            client.register_plugin(plugin)
            try:
                with client.as_current():
                    _Run(client, name, tally).go(should_stop, done)
            finally:
                if client.status == "running":
                    client.unregister_worker_plugin(name)

    @contextmanager
    def _client(self) -> Iterator[Any]:
        distributed = self._distributed
        if self._make is None:
            try:
                client = distributed.Client(
                    self._scheduler, timeout=CONNECT_S, set_as_default=False
                )
            except (OSError, ValueError) as error:
                raise SessionError(
                    f"expected a Dask scheduler at {self._scheduler}, got {error}; start one "
                    "(dask scheduler), and see that this machine reaches it"
                ) from error
            with client:
                yield client
            return
        with self._make() as cluster:
            if self._workers is not None:
                cluster.scale(self._workers)
            with distributed.Client(cluster, set_as_default=False) as client:
                yield client


class _Run:
    """The tasks that the scheduler was given."""

    def __init__(self, client: Any, name: str, tally: Tally[Any]) -> None:
        self._client, self._name, self._tally = client, name, tally
        self._running: dict[Any, Any] = {}
        self._said = time.monotonic()
        self._num_workers, self._counted = 0, -math.inf

    def go(self, should_stop: Callable[[], bool], done: Callable[[], None]) -> None:
        try:
            while self._tally.left or self._running:
                self._fill()
                for future in self._ready():
                    item = self._running.pop(future)
                    outcome = _outcome(future)
                    future.release()
                    self._tally.take(item, outcome)
                    done()
                if should_stop():
                    raise StoppedError
        finally:
            if self._running and self._client.status == "running":
                self._client.cancel(list(self._running))

    def _fill(self) -> None:
        """Have the scheduler hold a few tasks for each worker."""
        from napari_hrsam.cluster.work import do_task

        num = self._count_workers()
        while self._tally.left and len(self._running) < WINDOW * max(1, num):
            item = self._tally.left.popleft()
            future = self._client.submit(do_task, self._name, item, pure=False)
            self._running[future] = item

    def _count_workers(self) -> int:
        """Return how many there are, as of a moment ago: a scheduler has better things to do."""
        now = time.monotonic()
        if self._client.status != "running":
            raise _lost(self._client.status)
        if now - self._counted > COUNT_S:
            try:
                self._num_workers, self._counted = len(self._client.nthreads()), now
            except OSError as error:
                raise _lost(error) from error
        if self._num_workers:
            self._said = now
        elif now - self._said > NEWS_S:
            self._said = now
            logger.warning("no worker is at the scheduler; waiting for one")
        return self._num_workers

    def _ready(self) -> list[Any]:
        from distributed import wait

        try:
            wait(list(self._running), timeout=POLL_S, return_when="FIRST_COMPLETED")
        except TimeoutError:
            return []
        except CancelledError:
            # The scheduler is gone, which `_outcome` tells.
            pass
        return [future for future in self._running if future.done()]


def _outcome(future: Any) -> Any:
    """Return what came of a task; raise SessionError if the scheduler is gone."""
    if future.status == "finished":
        return future.result()
    if future.status == "error":
        error = future.exception()
        # Its worker died several times, or could not read the task.
        return Problem(f"{type(error).__name__}: {error}", is_final=True)
    raise _lost(future.status)


def _lost(why: object) -> SessionError:
    return SessionError(
        f"expected the scheduler to go on, but it ended or lost a task ({why}); what is done is "
        "kept: start it again, and run the same again to go on from there"
    )


def _cluster_of(path: Path) -> Callable[[], Any]:
    """Return what starts the cluster that a file describes."""
    import yaml

    form = "class: SLURMCluster and arguments: {cores: 1, memory: 4GB, ...}"
    try:
        told = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"expected a YAML file with {form} at {path}, got {error}") from error
    if not isinstance(told, dict) or set(told) - {"class", "arguments"} or "class" not in told:
        raise ConfigError(f"expected {form} in {path}, got {told!r}; other keys are not known")
    name, arguments = told["class"], told.get("arguments") or {}
    module = require("distributed", extra="cluster")
    known = ["LocalCluster"]
    if name != "LocalCluster":
        module = require("dask_jobqueue", extra="cluster")
        known += [
            one for one in dir(module) if one.endswith("Cluster") and one != "JobQueueCluster"
        ]
    if name not in known or not isinstance(arguments, dict):
        raise ConfigError(
            f"expected a class of {', '.join(sorted(set(known)))} with arguments by name in "
            f"{path}, got {name!r} with {arguments!r}"
        )

    def make() -> Any:
        try:
            return getattr(module, name)(**arguments)
        # RuntimeError: what went wrong while it was started.
        except (TypeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"expected arguments of {name} in {path}, got {error}; its documentation lists them"
            ) from error

    return make
