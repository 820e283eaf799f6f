"""Timing of functions side by side, and the record of where and how it was done."""

from __future__ import annotations

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_PACKAGES = ("napari-hrsam", "numpy", "torch", "numba", "segment-anything")


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
    """Median and least wall time, and least CPU time, in seconds."""
    wall, cpu = zip(*turns, strict=True)
    return {
        "median_s": statistics.median(wall),
        "least_s": min(wall),
        "least_cpu_s": min(cpu),
        "rounds": len(turns),
    }


def environment() -> dict[str, Any]:
    """Command, versions, processor and load of this run."""
    import torch

    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": " ".join(["python", *sys.argv]),
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


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows and the environment as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**environment(), "rows": rows}, indent=1) + "\n")
    print(f"\nwrote {path}")


def print_table(rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print some columns of the rows; numbers with three digits."""
    cells = [list(columns)]
    cells += [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
