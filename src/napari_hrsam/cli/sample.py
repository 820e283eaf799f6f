"""``napari-hrsam sample``: a generated gigapixel image with known objects."""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam.cli.options import (
    add_command,
    add_json,
    positive_int,
    put_json,
    say,
    show_progress,
    table,
)
from napari_hrsam.errors import ShapeError
from napari_hrsam.geometry import Box
from napari_hrsam.sample.scene.recipe import LOOKS

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.sample import Sample


def add_commands(commands: Commands) -> None:
    """Add the command ``sample``."""
    parser = add_command(
        commands,
        "sample",
        summary="make an OME-Zarr image of any size with thousands of objects of known masks",
        example="napari-hrsam sample slide.sample.zarr --size 100000",
    )
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="where to make it; nothing may be there. napari opens it by its path if that ends in "
        ".sample.zarr",
    )
    parser.add_argument(
        "--size",
        type=positive_int,
        default=100_000,
        metavar="PX",
        help="height and width (default 100000); pixels are painted when they are read",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="another number gives other objects (default 0)"
    )
    parser.add_argument(
        "--look", choices=LOOKS, default="tissue", help="stained, or grey (default tissue)"
    )
    parser.add_argument(
        "--fill",
        type=_levels,
        default=(),
        metavar="LEVEL[,LEVEL]",
        help="levels to write to disk for other programs; 0 is the image in full (default: the "
        "coarse ones only)",
    )
    parser.add_argument(
        "--fill-box",
        type=_box,
        metavar="Y0,X0,Y1,X1",
        help="the part to write, in pixels of full size (default: all of it)",
    )
    add_json(parser)
    parser.set_defaults(run=lambda args: _run(parser, args))


def _levels(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.isdecimal() for part in parts):
        raise argparse.ArgumentTypeError(f"expected levels such as 0 or 2,3, got {text!r}")
    return tuple(int(part) for part in parts)


def _box(text: str) -> Box:
    try:
        y0, x0, y1, x1 = (int(part) for part in text.split(","))
        return Box(y0, x0, y1, x1)
    except (ValueError, ShapeError) as error:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers Y0,X0,Y1,X1 with Y0 < Y1 and X0 < X1, got {text!r}"
        ) from error


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if args.fill_box is not None and not args.fill:
        parser.error("expected --fill with --fill-box: which levels are to be written?")
    from napari_hrsam.sample import make_sample

    started = time.perf_counter()
    sample = make_sample(
        args.path,
        args.size,
        args.seed,
        args.look,
        fill=args.fill,
        fill_box=args.fill_box,
        progress=show_progress,
    )
    figures = _figures(sample, time.perf_counter() - started)
    if args.json:
        put_json(args.json, figures)
    else:
        print(_object_table(sample))
    megabytes = figures["num_bytes"] / 1e6
    say(f"wrote {args.path}: {len(sample.level_shapes)} levels, {megabytes:.1f} MB on disk")


def _figures(sample: Sample, seconds: float) -> dict[str, Any]:
    files = (path for path in sample.path.rglob("*") if path.is_file())
    return {
        "path": str(sample.path),
        "size_px": sample.recipe.size_px,
        "seed": sample.recipe.seed,
        "look": sample.recipe.look,
        "levels": [list(shape) for shape in sample.level_shapes],
        "num_objects": dict(Counter(found.kind for found in sample.objects)),
        "num_bytes": sum(path.stat().st_size for path in files),
        "seconds": seconds,
    }


def _object_table(sample: Sample) -> str:
    rows = []
    for kind in dict.fromkeys(found.kind for found in sample.objects):
        group = [found for found in sample.objects if found.kind == kind]
        diameters = [found.diameter_px for found in group]
        rows.append([kind, str(len(group)), f"{min(diameters):.0f}", f"{max(diameters):.0f}"])
        rows[-1].append(f"{group[0].label}..{group[-1].label}")
    return table(["objects", "number", "least px", "largest px", "labels"], rows)
