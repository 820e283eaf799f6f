"""Time and weigh `napari-hrsam labels` on a label image with thousands of objects.

By default 10,000 discs, every third with a hole, are drawn into a label image of 100,000 x 100,000
pixels: one of 20,000 pixels across, the others from 10 pixels to 0.9 cells of a grid. The coarser
levels are left to `labels verify --repair`, the first line of the table. Each command runs in a
process of its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from measure import RESULTS, peak_bytes, print_table, save

from napari_hrsam import create_labels
from napari_hrsam.cli import main as run_command
from napari_hrsam.geometry import Box

NAME = "cells"
REGION_PX = 1024
COMMANDS = (
    ("verify", "--repair"),
    ("verify",),
    ("export", "--out", "all.csv"),
    ("export", "--out", "all.geojson"),
    ("export", "--out", "simple.geojson", "--simplify", "1"),
    ("export", "--out", "all.json"),
    ("export", "--out", "all.tif"),
    ("export", "--out", "level4.tif", "--level", "4"),
    ("compact", "--out", "compact.zarr"),
)

Disc = tuple[int, float, float, float]
"""Label, centre y and x, radius."""


def discs(side: int, num: int) -> list[Disc]:
    """Place one large disc and many small ones that do not overlap."""
    rng = np.random.default_rng(0)
    large = 0.35 * side, 0.35 * side, 0.1 * side
    found: list[Disc] = [(1, *large)]
    cells = int(np.ceil(np.sqrt(num * 1.05)))
    cell = side / cells
    for number in range(cells * cells):
        y, x = (number // cells + 0.5) * cell, (number % cells + 0.5) * cell
        if np.hypot(y - large[0], x - large[1]) > large[2] + cell and len(found) < num:
            diameter = np.exp(rng.uniform(np.log(10), np.log(0.9 * cell)))
            found.append((len(found) + 1, y, x, diameter / 2))
    return found


def draw(path: Path, side: int, num: int) -> int:
    """Draw the discs at level 0, region by region, as another program may."""
    create_labels(path, NAME, (side, side)).close()
    array = zarr.open_array(path / "labels" / NAME / "0", mode="r+")
    regions: dict[tuple[int, int], list[Disc]] = defaultdict(list)
    drawn = discs(side, num)
    for disc in drawn:
        _, y, x, radius = disc
        for row in range(int(y - radius) // REGION_PX, int(y + radius) // REGION_PX + 1):
            for column in range(int(x - radius) // REGION_PX, int(x + radius) // REGION_PX + 1):
                regions[row, column].append(disc)
    for (row, column), inside in regions.items():
        y0, x0 = row * REGION_PX, column * REGION_PX
        region = Box(y0, x0, y0 + REGION_PX, x0 + REGION_PX).clip((side, side))
        values = np.zeros(region.shape_yx, np.uint32)
        for label, y, x, radius in inside:
            ends = (y - radius, x - radius, y + radius + 1, x + radius + 1)
            part = Box(*(max(0, int(end)) for end in ends)).intersection(region)
            dy = np.arange(part.y0, part.y1)[:, np.newaxis] - y
            dx = np.arange(part.x0, part.x1) - x
            squared = dy * dy + dx * dx
            inner = radius / 3 if label % 3 == 0 else 0
            mask = (squared < radius**2) & (squared >= inner**2)
            values[part.shifted(-region.y0, -region.x0).slices][mask] = label
        array[region.slices] = values
    return len(drawn)


def measured(path: Path, name: str, command: tuple[str, ...], folder: Path) -> dict[str, Any]:
    """Run one command in a process of its own."""
    verb, *options = command
    options = [str(folder / text) if "." in text else text for text in options]
    done = subprocess.run(
        [sys.executable, __file__, "--one", verb, str(path), name, *options],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    row: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    out = folder / next((text for text in command if "." in text), "none")
    if out.is_file():
        row["file_mb"] = out.stat().st_size / 1e6
    if out.is_dir():
        row["num_files"] = sum(1 for file in out.rglob("*") if file.is_file())
    return {"command": " ".join(command), **row}


def one(arguments: list[str]) -> None:
    """Be the process of one command; its figures are the last line."""
    before = peak_bytes()
    start = time.perf_counter()
    status = run_command(["labels", *arguments])
    seconds = time.perf_counter() - start
    used = resource.getrusage(resource.RUSAGE_SELF)
    print(
        json.dumps(
            {
                "exit": status,
                "seconds": seconds,
                "cpu_seconds": used.ru_utime + used.ru_stime,
                "peak_mib": peak_bytes() / 2**20,
                "above_start_mib": (peak_bytes() - before) / 2**20,
            }
        )
    )


def main() -> None:
    """Make or take a label image, run every command, and write the figures."""
    if sys.argv[1:2] == ["--one"]:
        one(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--side", type=int, default=100_000, help="pixels (default 100000)")
    parser.add_argument("--num", type=int, default=10_000, help="objects (default 10000)")
    parser.add_argument(
        "--labels", nargs=2, metavar=("PATH", "NAME"), help="measure these instead of drawing some"
    )
    parser.add_argument("--json", type=Path, default=RESULTS / "label-tools-cpu.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        path, name = folder / "drawn.zarr", NAME
        if args.labels:
            path, name = Path(args.labels[0]), args.labels[1]
        else:
            print(draw(path, args.side, args.num), "objects drawn", flush=True)
        rows = []
        for command in COMMANDS:
            rows.append(measured(path, name, command, folder))
            print(rows[-1], flush=True)
    columns = ("command", "seconds", "cpu_seconds", "peak_mib", "above_start_mib", "file_mb")
    print_table(rows, columns)
    save(args.json, rows)


if __name__ == "__main__":
    main()
