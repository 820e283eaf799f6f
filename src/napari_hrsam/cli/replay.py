"""``napari-hrsam replay``: committed objects drawn again by another model, and compared."""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING

from napari_hrsam.cli.labels import MAX_ROWS, ids_option
from napari_hrsam.cli.options import (
    add_command,
    add_image,
    add_json,
    add_model,
    add_workers,
    open_shown,
    put_json,
    say,
    show_progress,
    table,
    workers_of,
)

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.engine.replay import Replayed


def add_commands(commands: Commands) -> None:
    """Add the command ``replay``."""
    parser = add_command(
        commands,
        "replay",
        summary="draw committed objects again from their prompts with another model, and compare",
        example="napari-hrsam replay slide.ome.zarr cells --model hrsam++-tiny\n"
        "  napari-hrsam replay objects.zarr cells --image slide.svs --model sam-b --write",
    )
    parser.add_argument(
        "path", metavar="PATH", help="an OME-Zarr image, or a folder of labels alone"
    )
    parser.add_argument("name", metavar="NAME", help="name of the label image in it")
    parser.add_argument(
        "--image", help="what the objects were drawn on (default: the image at PATH)"
    )
    parser.add_argument(
        "--labels", type=ids_option, metavar="ID[,ID...]", help="only these objects, e.g. 3,8,1-20"
    )
    parser.add_argument(
        "--write",
        action="store_true",
        help="put the new masks in the place of the committed ones, each as one step that can be "
        "taken back (default: change nothing)",
    )
    add_workers(parser)
    add_model(parser)
    add_image(parser, plane=False)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    from napari_hrsam.engine.replay import replay
    from napari_hrsam.modeling.checkpoints import load_model
    from napari_hrsam.storage.label_image import LabelImage, open_labels

    workers = workers_of(args)
    if args.write and workers != 1:
        args.misused("expected one worker with --write, got several: compare with them first")
    image = open_shown(args.image or args.path, args)
    model = load_model(args.model, device=args.device)

    def done(labels: LabelImage) -> Replayed:
        return replay(
            labels,
            image,
            model,
            objects=args.labels,
            write=args.write,
            workers=workers,
            shard=args.shard,
            progress=show_progress,
        )

    if args.write:
        with open_labels(args.path, args.name) as labels:
            replayed = done(labels)
    else:
        replayed = done(open_labels(args.path, args.name, mode="r"))
    if args.json:
        put_json(args.json, _figures(replayed))
    else:
        _show(replayed)
    for problem, num in Counter(one.problem for one in replayed.objects if one.problem).items():
        say(f"{num} of {len(replayed.objects)} objects were not drawn: {problem}")
    if replayed.num_written:
        say(f"replaced {replayed.num_written} objects; each can be taken back")
    return 0 if replayed.ious else 1


def _figures(replayed: Replayed) -> dict[str, object]:
    return {
        "mean_iou": replayed.mean_iou,
        "median_iou": replayed.median_iou,
        "num_written": replayed.num_written,
        **asdict(replayed),
    }


def _show(replayed: Replayed) -> None:
    rows = [
        [
            str(one.label),
            ",".join(map(str, one.plane)),
            one.object_class,
            one.model,
            str(one.num_prompts),
            "" if one.iou is None else f"{one.iou:.3f}",
        ]
        for one in replayed.objects[:MAX_ROWS]
    ]
    head = ["object", "plane", "class", "drawn by", "prompts", f"IoU with {replayed.model}"]
    print(table(head, rows))
    if len(replayed.objects) > MAX_ROWS:
        print(f"and {len(replayed.objects) - MAX_ROWS} more; --json lists all")
    if replayed.mean_iou is not None:
        print(f"mean IoU {replayed.mean_iou:.3f}, median {replayed.median_iou:.3f}")
