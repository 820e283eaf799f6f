"""``napari-hrsam bench``: measurements that can be repeated on any machine."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam.bench.settings import SIZES_PX, Settings
from napari_hrsam.cli.options import (
    add_command,
    add_json,
    add_model,
    positive_int,
    put_json,
    say,
    table,
)
from napari_hrsam.errors import HRSAMError

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands

_COLUMNS = {
    "size_px": ("size px", 0),
    "first_s": ("first click s", 2),
    "cold_s": ("cold s", 2),
    "overview_s": ("overview s", 2),
    "warm_p50_ms": ("warm p50 ms", 0),
    "warm_p95_ms": ("warm p95 ms", 0),
    "peak_mb": ("peak MB", 0),
    "above_mb": ("above napari MB", 0),
    "growth": ("growth", 3),
    "embed_mpx_s": ("embed Mpx/s", 3),
    "reopen_s": ("reopen s", 3),
}


def add_commands(commands: Commands) -> None:
    """Add the command ``bench``."""
    parser = add_command(
        commands,
        "bench",
        summary="measure clicks, commits, memory and encoding on generated images of any size",
        example="napari-hrsam bench gigapixel --sizes 10000 100000 --json gigapixel.json",
    )
    parser.add_argument("what", choices=("gigapixel",), help="what to measure")
    add_settings(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def add_settings(parser: argparse.ArgumentParser) -> None:
    """Add the options that make a `Settings`."""
    standard = Settings()
    parser.add_argument(
        "--sizes",
        type=positive_int,
        nargs="+",
        default=list(SIZES_PX),
        metavar="PX",
        help=f"sides of the images (default {' '.join(map(str, SIZES_PX))})",
    )
    numbers = {
        "rounds": "how often cold clicks, and commits of a size, are timed",
        "warm": "clicks on a warm tile",
        "objects": "objects committed in napari while memory is watched",
        "reopen": "objects in the label image that is opened again; 0 leaves this out",
        "embed-px": "side of the part that is encoded ahead",
    }
    for name, told in numbers.items():
        default = getattr(standard, _FIELDS[name])
        kind = int if name == "reopen" else positive_int
        parser.add_argument(
            f"--{name}", type=kind, default=default, metavar="N", help=f"{told} (default {default})"
        )
    parser.add_argument(
        "--folder",
        type=Path,
        metavar="DIR",
        help="where the images are made, a few megabytes each (default: a temporary folder)",
    )
    add_model(parser, default=standard.model)


_FIELDS = {
    "rounds": "rounds",
    "warm": "num_warm",
    "objects": "num_objects",
    "reopen": "reopen_objects",
    "embed-px": "embed_px",
}


def settings_of(args: argparse.Namespace) -> Settings:
    """Read the options of `add_settings`."""
    numbers = {field: getattr(args, name.replace("-", "_")) for name, field in _FIELDS.items()}
    return Settings(sizes_px=tuple(args.sizes), model=args.model, device=args.device, **numbers)


def run(args: argparse.Namespace, command: str) -> dict[str, Any]:
    """Measure, and gather the figures with the settings and what is known of the machine."""
    from napari_hrsam.bench.gigapixel import measure_gigapixel, summarise
    from napari_hrsam.bench.measure import environment

    settings = settings_of(args)
    about = environment(command)
    rows = measure_gigapixel(settings, folder=args.folder, say=say)
    return {**about, "settings": asdict(settings), "summary": summarise(rows), "rows": rows}


def show(figures: dict[str, Any]) -> str:
    """Lay out one row per size."""
    summed = figures["summary"]
    columns = dict(_COLUMNS)
    for row in summed:
        # One column per size of committed objects, which the settings choose.
        columns |= {
            name: (f"commit {name.split('_')[1]} px ms", 0)
            for name in row
            if name.startswith("commit_")
        }
    shown = [name for name in columns if any(name in row for row in summed)]
    cells = [
        [f"{row[name]:.{columns[name][1]}f}" if name in row else "-" for name in shown]
        for row in summed
    ]
    return table([columns[name][0] for name in shown], cells)


def require_whole(figures: dict[str, Any]) -> None:
    """Refuse figures of which some are missing.

    Raises
    ------
    HRSAMError
        If a case failed; the others are written by then.
    """
    failed = [row for row in figures["rows"] if "error" in row]
    if failed:
        told = "; ".join(f"{row['case']} at {row['size_px']} px: {row['error']}" for row in failed)
        raise HRSAMError(
            f"expected every case to be measured, got errors: {told}; run them again with --sizes"
        )


def _run(args: argparse.Namespace) -> None:
    sizes = " ".join(map(str, args.sizes))
    figures = run(args, f"napari-hrsam bench {args.what} --sizes {sizes}")
    if args.json:
        put_json(args.json, figures)
    else:
        print(show(figures))
    require_whole(figures)
