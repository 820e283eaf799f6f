"""Timing, memory, and the record of a run."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from napari_hrsam.bench.measure import (
    environment,
    interleaved,
    percentile,
    summary,
    timed,
    told_command,
)


def test_a_summary_holds_medians_and_least_values() -> None:
    assert summary([(1.0, 0.5), (5.0, 0.1), (2.0, 0.2)]) == {
        "median_s": 2.0,
        "least_s": 1.0,
        "median_cpu_s": 0.2,
        "least_cpu_s": 0.1,
        "rounds": 3,
    }


def test_waiting_takes_wall_time_only() -> None:
    wall, cpu = timed(lambda: time.sleep(0.3))
    assert wall >= 0.3
    assert cpu < 0.15


def test_functions_are_timed_in_turns_after_a_first_call() -> None:
    calls: list[str] = []
    found = interleaved({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert found["a"]["rounds"] == 2


@pytest.mark.parametrize(
    ("share", "expected"), [(0.5, 10), (0.95, 19), (0.96, 20), (1.0, 20), (0.0, 1)]
)
def test_a_percentile_is_one_of_the_values(share: float, expected: int) -> None:
    assert percentile(range(20, 0, -1), share) == expected


def test_the_peak_counts_memory_that_was_given_back() -> None:
    code = (
        "from napari_hrsam.bench.measure import peak_bytes\n"
        "before = peak_bytes()\n"
        "block = bytes(range(256)) * 400_000\n"
        "del block\n"
        "print(peak_bytes() - before)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert 90e6 < int(done.stdout) < 130e6


def test_the_record_names_command_versions_and_processor() -> None:
    found = environment("napari-hrsam bench gigapixel")
    assert found["command"] == "napari-hrsam bench gigapixel"
    assert found["versions"]["napari-hrsam"] != "not installed"
    assert found["cpu_count"] >= 1
    assert str(Path.home()) not in str(found)


def test_a_command_is_told_without_the_folders_of_the_machine() -> None:
    argv = ["/home/me/project/benchmarks/gui.py", "--data", "/data/val-a.tar", "--size", "0.5", "."]
    told = "python benchmarks/gui.py --data val-a.tar --size 0.5 ."
    assert told_command(argv) == told
