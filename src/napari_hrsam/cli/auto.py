"""``napari-hrsam auto``: every object of a level into a label image of its own."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from napari_hrsam.cli.options import (
    add_command,
    add_image,
    add_json,
    add_model,
    add_workers,
    box_option,
    open_shown,
    put_json,
    say,
    table,
    workers_of,
)
from napari_hrsam.cli.progress import Progress
from napari_hrsam.errors import ConfigError, SessionError

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.engine.everything.auto import AutoReport
    from napari_hrsam.engine.everything.strokes import WantedClass


def add_commands(commands: Commands) -> None:
    """Add the command ``auto``."""
    parser = add_command(
        commands,
        "auto",
        summary="find every object of an image, or of a part of it, and make a label image of them",
        example="napari-hrsam auto slide.ome.zarr --level 1 --labels auto-1",
    )
    parser.add_argument(
        "image", metavar="IMAGE", help="an OME-Zarr image of any size (path or URL), or a picture"
    )
    parser.add_argument(
        "--level",
        type=int,
        help="zoom at which objects are 20 to 150 pixels long: 0 full size (default), 1 half, "
        "-1 double",
    )
    parser.add_argument(
        "--labels", default="auto-1", metavar="NAME", help="name of the new labels (default auto-1)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FOLDER",
        help="folder for the labels (default: the image, if it is an OME-Zarr on this computer)",
    )
    parser.add_argument(
        "--box",
        type=box_option,
        metavar="Y0,X0,Y1,X1",
        help="only objects that begin in this box, in pixels of full size, rows first",
    )
    add_image(parser)
    parser.add_argument(
        "--smallest", type=float, metavar="PX", help="smallest area, in pixels of the level"
    )
    parser.add_argument(
        "--largest",
        type=float,
        metavar="PX",
        help="longest side of an object, in pixels of the level (default: half a tile); larger "
        "ones are left out and counted",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="classes that were learned from strokes (PixelClassifier.save), by default at their "
        "level; with --class",
    )
    parser.add_argument(
        "--class", dest="wanted", metavar="NAME", help="only objects of this one of the classes"
    )
    parser.add_argument(
        "--apart",
        action="store_true",
        help="objects of the class do not touch: every connected area is one",
    )
    parser.add_argument(
        "--skip-blank",
        action="store_true",
        help="leave out tiles that show one colour and noise",
    )
    add_workers(parser)
    add_model(parser)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    workers = workers_of(args)
    wanted = _wanted(args)
    level = args.level
    if level is None:
        level = 0 if wanted is None else wanted.classifier.level
    image = open_shown(args.image, args)
    from napari_hrsam.engine.everything.auto import auto
    from napari_hrsam.modeling.checkpoints import load_model

    progress = Progress("blocks")
    try:
        report = auto(
            image,
            args.labels,
            level,
            args.box,
            path=args.out,
            plane=args.plane,
            model=load_model(args.model, device=args.device),
            smallest_px=args.smallest,
            largest_px=args.largest,
            skip_blank=args.skip_blank,
            wanted=wanted,
            workers=workers,
            shard=args.shard,
            progress=progress,
        )
    except KeyboardInterrupt as error:
        progress.end()
        raise SessionError(
            f"stopped after {progress.done} of {progress.total} blocks, which are kept; run the "
            "same command again to go on from there"
        ) from error
    _tell(args, report)


def _wanted(args: argparse.Namespace) -> WantedClass | None:
    if (args.classes is None) != (args.wanted is None):
        raise ConfigError("expected --classes and --class together, got only one of them")
    if args.classes is None:
        return None
    from napari_hrsam.engine.everything.pixel_classes import PixelClassifier
    from napari_hrsam.engine.everything.strokes import WantedClass

    classes = PixelClassifier.load(args.classes)
    return WantedClass(classifier=classes, name=args.wanted, touching=not args.apart)


def _tell(args: argparse.Namespace, report: AutoReport) -> None:
    if report.num_missing:
        say(
            f"this shard is done; {report.num_missing} of {report.num_blocks} blocks are left to "
            "others, and the last of them makes the labels"
        )
    elif not report.num_objects:
        say("no object was found: try another level, at which they are 20 to 150 pixels long")
    if report.num_too_large:
        say(
            f"{report.num_too_large} objects are too large for level {report.level} and were left "
            f"out: look for them with --level {report.level + 1}"
        )
    if args.json:
        put_json(args.json, {**asdict(report), "mpx_per_core_s": report.mpx_per_core_s})
        return
    head = ["labels", "objects", "blocks", "at hand", "tiles", "blank", "seconds", "Mpx/core-s"]
    counts = (report.num_objects, report.num_blocks, report.num_at_hand)
    tiles = (report.num_tiles, report.num_blank)
    rate = f"{report.mpx_per_core_s:.2f}" if report.num_tiles else "-"
    print(
        table(
            head,
            [[report.name, *map(str, counts + tiles), f"{report.seconds:.1f}", rate]],
        )
    )
    if not report.num_missing:
        say(f"table: {report.table}")
