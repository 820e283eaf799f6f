"""Time commits of large objects to label images of 10k to 200k pixels, and their undo and redo.

Each round draws a disc at a random place of its own, takes it back and draws it again. The same is
timed once more with files that are not forced onto the disk, which is what a promise that holds
only for a killed program would take.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from measure import RESULTS, print_table, save, summary, timed
from numpy.typing import NDArray

from napari_hrsam import create_labels
from napari_hrsam.geometry import Box
from napari_hrsam.masks import BlockMask
from napari_hrsam.storage.label_image import LabelWriter

SIDES = (10_000, 50_000, 100_000, 200_000)
DIAMETERS = (500, 2_000, 10_000, 30_000)
HUGE_PX = 5_000


def disc(centre: tuple[int, int], diameter: int) -> BlockMask:
    """Make a disc as the session gives objects: sparse."""
    (y, x), radius = centre, diameter // 2

    def read(box: Box) -> NDArray[np.bool_]:
        dy = np.arange(box.y0, box.y1)[:, np.newaxis] - y
        dx = np.arange(box.x0, box.x1) - x
        return np.asarray(dy * dy + dx * dx < radius * radius)

    def fills(box: Box) -> bool | None:
        far = max(y - box.y0, box.y1 - 1 - y), max(x - box.x0, box.x1 - 1 - x)
        if far[0] ** 2 + far[1] ** 2 < radius**2:
            return True
        near = max(box.y0 - y, y - box.y1, 0), max(box.x0 - x, x - box.x1, 0)
        return False if near[0] ** 2 + near[1] ** 2 > radius**2 else None

    return BlockMask(Box(y - radius, x - radius, y + radius, x + radius), read, fills)


@contextmanager
def forced(*, is_forced: bool) -> Iterator[None]:
    """Let files be forced onto the disk, or not."""
    if is_forced:
        yield
    else:
        with patch("os.fsync"):
            yield


def measure(
    labels: LabelWriter, diameter: int, rounds: int, rng: np.random.Generator
) -> dict[str, Any]:
    """Time some rounds of one size of object."""
    turns: dict[str, list[tuple[float, float]]] = {"commit": [], "undo": [], "redo": []}
    for _ in range(rounds):
        low, high = diameter // 2, labels.shape_yx[0] - diameter // 2
        y, x = (int(n) for n in rng.integers(low, high + 1, 2))
        mask, label, edits = disc((y, x), diameter), labels.next_label(), []

        def commit(mask: BlockMask = mask, label: int = label, edits: list[Any] = edits) -> None:
            edits.append(labels.write(mask.box, mask, label, overwrite=True))

        turns["commit"].append(timed(commit))
        turns["undo"].append(timed(lambda edits=edits: labels.revert(edits[0])))
        turns["redo"].append(timed(lambda edits=edits: labels.apply(edits[0])))
    return {name: summary(values) for name, values in turns.items()}


def num_bytes(folder: Path) -> int:
    """Bytes that the files of a folder hold."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def row(folder: Path, side: int, diameter: int, rounds: int, *, is_forced: bool) -> dict[str, Any]:
    """Measure one size of object in a label image of its own."""
    path = folder / f"{side}-{diameter}-{is_forced}"
    with create_labels(path, "cells", (side, side)) as labels, forced(is_forced=is_forced):
        found = measure(labels, diameter, rounds, np.random.default_rng(0))
        place = labels.folder
    journal = num_bytes(place / ".journal")
    return {
        "image_px": side,
        "object_px": diameter,
        "forced": is_forced,
        "commit_ms": 1e3 * found["commit"]["median_s"],
        "commit_least_ms": 1e3 * found["commit"]["least_s"],
        "commit_cpu_ms": 1e3 * found["commit"]["least_cpu_s"],
        "undo_ms": 1e3 * found["undo"]["median_s"],
        "redo_ms": 1e3 * found["redo"]["median_s"],
        "labels_kb": (num_bytes(place) - journal) / 1e3 / rounds,
        "journal_kb": journal / 1e3 / rounds,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        **found,
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sides", type=int, nargs="+", default=SIDES)
    parser.add_argument("--objects", type=int, nargs="+", default=DIAMETERS)
    parser.add_argument("--rounds", type=int, default=11, help="a third of it for huge objects")
    parser.add_argument("--folder", type=Path, help="on the disk to be measured")
    parser.add_argument("--out", type=Path, default=RESULTS / "labels.json")
    arguments = parser.parse_args()
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as place:
        for diameter in arguments.objects:
            rounds = arguments.rounds if diameter <= HUGE_PX else max(1, arguments.rounds // 3)
            for side in (side for side in arguments.sides if side >= 2 * diameter):
                rows += [
                    row(Path(place), side, diameter, rounds, is_forced=is_forced)
                    for is_forced in (True, False)
                ]
        os.sync()
    columns = ["image_px", "object_px", "forced", "commit_ms", "commit_least_ms", "commit_cpu_ms"]
    columns += ["undo_ms", "redo_ms", "labels_kb", "journal_kb", "peak_mb"]
    print_table(rows, columns)
    save(arguments.out, rows)


if __name__ == "__main__":
    main()
