"""Timing of functions, peak memory, and the record of where and how it was measured."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

_PACKAGES = ("napari-hrsam", "numpy", "torch", "zarr", "napari", "numba", "segment-anything")


def interleaved(
    functions: Mapping[str, Callable[[], object]], *, rounds: int
) -> dict[str, dict[str, float]]:
    """Time functions in turns, so that a busy moment of the machine hits all of them.

    Parameters
    ----------
    functions : mapping of str to callable
        What to time; each is called once before the clock starts.
    rounds : int
        Number of turns.

    Returns
    -------
    dict of str to dict
        For each name the `summary` of its turns.
    """
    for function in functions.values():
        function()
    turns: dict[str, list[tuple[float, float]]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            turns[name].append(timed(function))
    return {name: summary(values) for name, values in turns.items()}


def timed(function: Callable[[], object]) -> tuple[float, float]:
    """Call once; return wall seconds and CPU seconds over all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def summary(turns: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Median and least wall time, median and least CPU time, in seconds."""
    wall, cpu = zip(*turns, strict=True)
    return {
        "median_s": statistics.median(wall),
        "least_s": min(wall),
        "median_cpu_s": statistics.median(cpu),
        "least_cpu_s": min(cpu),
        "rounds": len(turns),
    }


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least ``share`` (0..1) of the values do not exceed."""
    ordered = sorted(values)
    # 0.95 * 20 is a little more than 19 in floating point.
    place = -(-round(share * len(ordered) * 1e6) // 1_000_000)
    return ordered[min(len(ordered), max(1, place)) - 1]


def peak_bytes() -> int:
    """Most memory this process ever held."""
    status = Path("/proc/self/status")
    if status.is_file():
        for line in status.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return 0
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def told_command(argv: Sequence[str]) -> str:
    """Return a command without the folders of this machine: files by their names alone.

    Parameters
    ----------
    argv : sequence of str
        As in `sys.argv`; the script stays under its folder, as in ``benchmarks/gui.py``.
    """
    script = "/".join(Path(argv[0]).parts[-2:])
    return " ".join(["python", script, *(Path(part).name or part for part in argv[1:])])


def environment(command: str | None = None) -> dict[str, Any]:
    """Tell command, versions, processor and load of this run.

    Parameters
    ----------
    command : str, optional
        By default that of this process.
    """
    import torch

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": command or told_command(sys.argv),
        "date": time.strftime("%Y-%m-%d %H:%M %z"),
        "cpu": cpu_model(),
        "cpu_count": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "versions": versions,
    }


def cpu_model() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
