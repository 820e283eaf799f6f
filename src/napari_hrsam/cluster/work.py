"""What a worker of the cluster does: it is told of a job once, and does tasks of it."""

from __future__ import annotations

import pickle
import platform
import threading
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from distributed import WorkerPlugin

from napari_hrsam.engine.tasks import Problem, Task, outcome_of

PACKAGES = (
    "napari-hrsam", "numpy", "scikit-image", "scipy", "shapely", "torch", "zarr",
)  # fmt: skip
"""With other versions of these, tasks might be read wrongly, or make something else."""


def versions() -> dict[str, str]:
    """Return the versions on which it depends what a task makes."""
    found = {"python": ".".join(platform.python_version_tuple()[:2])}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "none"
    return found


@dataclass(slots=True)
class _Told:
    """What this worker knows of a job."""

    versions: dict[str, str]
    job: bytes
    task: Task | Problem | None = None


_JOBS: dict[str, _Told] = {}
_ONE_TASK = threading.Lock()
"""Tasks share what they keep, and each has the processor to itself."""


class JobPlugin(WorkerPlugin):
    """Tells every worker of a job, also those that come later, or again.

    Parameters
    ----------
    name : str
        Of the job.
    job : bytes
        It, pickled; read only by workers that have the same versions.
    """

    def __init__(self, name: str, job: bytes) -> None:
        self.name, self._job, self._versions = name, job, versions()

    def setup(self, worker: Any) -> None:
        """Take what the worker is told; it is opened by the first task."""
        del worker
        _JOBS[self.name] = _Told(self._versions, self._job)

    def teardown(self, worker: Any) -> None:
        """Forget it."""
        del worker
        _JOBS.pop(self.name, None)


def do_task(name: str, item: Any) -> Any:
    """Do a task of a job; return something small, or the `Problem`."""
    with _ONE_TASK:
        told = _JOBS[name]
        if told.task is None:
            told.task = _opened(told)
        return told.task if isinstance(told.task, Problem) else outcome_of(told.task, item)


def _opened(told: _Told) -> Task | Problem:
    here = versions()
    other = [
        f"{name} {here[name]} (there {wanted})"
        for name, wanted in told.versions.items()
        if here[name] != wanted
    ]
    if other:
        return Problem(
            f"expected workers with the versions of the machine that asks them, got one on "
            f"{platform.node()} with {', '.join(other)}; install the same on all machines",
            ends_run=True,
        )
    try:
        # It comes from the user of this cluster, who may run any program on it.
        return pickle.loads(told.job).open(lambda: None)  # type: ignore[no-any-return]  # noqa: S301
    except Exception as error:  # noqa: BLE001  told to the machine that asks
        return Problem.of(error, ends_run=True)
