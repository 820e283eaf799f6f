"""The benchmark of large images: clicks, commits, memory and encoding at several sizes.

Every case runs in a process of its own, which gives its peak memory.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from napari_hrsam.bench.settings import LABELS_NAME, Settings
from napari_hrsam.cache import EMBEDDINGS_VARIABLE
from napari_hrsam.demo import missing_display
from napari_hrsam.sample import Sample, make_sample, open_sample

Say = Callable[[str], object]
Row = dict[str, Any]

REOPEN_PX = 100_000
"""Size of the image whose label image holds thousands of objects, if it is one of the sizes."""

CASE_TIMEOUT_S = 3600

_WINDOW_CASES = ("shown", "annotated")
_CASES = ("clicks", "embedding", "commits", *_WINDOW_CASES)


def run_case(case: str, path: Path, settings: Settings) -> Row:
    """Run one case in this process.

    Raises
    ------
    HRSAMError
        If what it measures fails.
    """
    from napari_hrsam.bench import clicks, commits, window

    functions: dict[str, Callable[[Sample, Settings], Row]] = {
        "clicks": clicks.measure_clicks,
        "embedding": clicks.measure_embedding,
        "commits": commits.measure_commits,
        "objects": commits.make_objects,
        "reopening": commits.measure_reopening,
        "shown": window.measure_shown,
        "annotated": window.measure_annotated,
    }
    return functions[case](open_sample(path), settings)


def measure_gigapixel(
    settings: Settings, *, folder: Path | None = None, say: Say = lambda _text: None
) -> list[Row]:
    """Run every case at every size.

    Parameters
    ----------
    settings : Settings
    folder : Path, optional
        Where images are made, which take a few megabytes each; by default a temporary folder.
    say : callable
        Told what is going on.

    Returns
    -------
    list of dict
        One per size and case: ``size_px``, ``case``, and its figures or an ``error``.
    """
    rows: list[Row] = []
    with _working_folder(folder) as place:
        for size_px in settings.sizes_px:
            sample = make_sample(place / f"{size_px}.ome.zarr", size_px)
            for case in _CASES:
                say(f"{size_px} px: {case}")
                rows.append(_in_process(case, sample.path, settings))
                # Every case begins with no objects.
                shutil.rmtree(sample.path / "labels" / LABELS_NAME, ignore_errors=True)
                shutil.rmtree(place / "embeddings", ignore_errors=True)
            if settings.reopen_objects and size_px == _reopen_px(settings):
                for case in ("objects", "reopening"):
                    say(f"{size_px} px: {case}")
                    rows.append(_in_process(case, sample.path, settings))
            shutil.rmtree(sample.path)
    return rows


def _reopen_px(settings: Settings) -> int:
    return REOPEN_PX if REOPEN_PX in settings.sizes_px else settings.sizes_px[-1]


@contextmanager
def _working_folder(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="napari-hrsam-bench-", dir=folder) as place:
        yield Path(place)


def _in_process(case: str, path: Path, settings: Settings) -> Row:
    """Run a case in a new process and return its row."""
    row: Row = {"size_px": open_sample(path).recipe.size_px, "case": case}
    command = [sys.executable, "-m", "napari_hrsam.bench", case, str(path)]
    command.append(json.dumps(asdict(settings)))
    if case in _WINDOW_CASES and missing_display():
        virtual = shutil.which("xvfb-run")
        if virtual is None:
            return {**row, "error": f"no window can be opened: {missing_display()}"}
        command = [virtual, "-a", "-s", "-screen 0 1600x1200x24", *command]
    try:
        done = subprocess.run(  # noqa: S603  our own module, with our own arguments
            command,
            check=False,
            capture_output=True,
            text=True,
            timeout=CASE_TIMEOUT_S,
            # Embeddings of an earlier run would make cold clicks warm.
            env={**os.environ, EMBEDDINGS_VARIABLE: str(path.parent / "embeddings")},
        )
    except subprocess.TimeoutExpired:
        return {**row, "error": f"took longer than {CASE_TIMEOUT_S} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        # A path of this machine says nothing to a reader of the results.
        return {**row, "error": _last_words(done).replace(str(path), path.name)}
    figures: Row = json.loads(lines[-1])
    return {**row, **figures}


def _last_words(done: subprocess.CompletedProcess[str]) -> str:
    """Tell the error of a process that failed, and the line of code that raised it."""
    told = done.stderr.strip().splitlines()
    if not told:
        return f"ended with status {done.returncode}"
    places = re.findall(r'File "[^"]*?([^"/\\\\]+)", line (\d+)', done.stderr)
    return f"{told[-1]} ({places[-1][0]}, line {places[-1][1]})" if places else told[-1]


def summarise(rows: list[Row]) -> list[Row]:
    """Gather one row per size from the rows of its cases.

    Returns
    -------
    list of dict
        Times in seconds and milliseconds, memory in MB as the names say; ``above_mb`` is the peak
        above napari showing the image, ``growth`` that peak relative to the smallest size's.
        What failed is left out.
    """
    sizes = dict.fromkeys(row["size_px"] for row in rows)
    summed: list[Row] = []
    for size_px in sizes:
        cases = {
            row["case"]: row for row in rows if row["size_px"] == size_px and "error" not in row
        }
        summed.append({"size_px": size_px, **_figures(cases)})
    peaks = [row["peak_mb"] for row in summed if "peak_mb" in row]
    for row in summed:
        if "peak_mb" in row:
            row["growth"] = row["peak_mb"] / peaks[0] - 1
    return summed


def _figures(cases: dict[str, Row]) -> Row:
    found: Row = {}
    if "clicks" in cases:
        clicks = cases["clicks"]
        found |= {
            "first_s": clicks["first_click_s"],
            "cold_s": clicks["cold"]["median_s"],
            "overview_s": clicks["overview"]["median_s"],
            "warm_p50_ms": 1e3 * clicks["warm_p50_s"],
            "warm_p95_ms": 1e3 * clicks["warm_p95_s"],
        }
    for name, figures in cases.get("commits", {}).items():
        if name.startswith("commit_"):
            found[f"{name}_ms"] = 1e3 * figures["median_s"]
    if "embedding" in cases:
        found["embed_mpx_s"] = cases["embedding"]["image_mpx_per_s"]
    if "shown" in cases and "annotated" in cases:
        shown, annotated = (cases[case]["peak_bytes"] / 1e6 for case in _WINDOW_CASES)
        found |= {"peak_mb": annotated, "above_mb": annotated - shown}
    if "reopening" in cases:
        found["reopen_s"] = cases["reopening"]["median_s"]
    return found
