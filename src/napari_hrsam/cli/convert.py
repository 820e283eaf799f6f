"""``napari-hrsam convert``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from napari_hrsam.cli.options import add_command, add_json, put_json, say, table

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands


def add_commands(commands: Commands) -> None:
    """Add the command ``convert``."""
    parser = add_command(
        commands,
        "convert",
        summary="turn a checkpoint of HRSAM, HRSAM++, FocSAM, SAM, MobileSAM or BA-SAM into "
        "safetensors with a card, told by its content and verified",
        example="napari-hrsam convert iter_160000.pth --out hrsam-b.safetensors",
    )
    parser.add_argument("input", type=Path, metavar="INPUT", help="a .pth, .pt or .safetensors")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="what to write (default MODEL.safetensors here; its card ends in .md)",
    )
    parser.add_argument(
        "--model", default="", metavar="NAME", help="refuse the file if it is of another model"
    )
    parser.add_argument(
        "--channel-order",
        choices=("rgb", "bgr"),
        help="of the images it was trained on (default: rgb for SAM's files, bgr for those of "
        "HRSAM and FocSAM)",
    )
    parser.add_argument(
        "--dtype",
        choices=("float32", "float16"),
        default="float32",
        help="float32 keeps every value, float16 halves the file (default float32)",
    )
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    import torch

    from napari_hrsam.modeling.conversion import convert

    done = convert(
        args.input,
        args.out,
        model=args.model,
        channel_order=args.channel_order,
        dtype={"float32": torch.float32, "float16": torch.float16}[args.dtype],
        overwrite=args.force,
    )
    if args.json:
        put_json(args.json, asdict(done))
    else:
        rows = [
            ["model", done.model],
            ["layout", done.layout],
            ["channel order", done.channel_order],
            ["tensors", f"{done.num_tensors} of {done.num_tensors + len(done.dropped)}"],
            ["values", f"{done.num_values:,}"],
            ["licence", done.licence or "that of the source"],
        ]
        print(table(["what", "found"], rows))
    say(f"wrote {done.output} and {done.card}; every tensor reads back the same")
