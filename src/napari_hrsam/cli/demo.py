"""``napari-hrsam demo``."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from napari_hrsam import demo
from napari_hrsam.cli.options import add_command, add_json, add_model, put_json, say

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.demo import Step


def add_commands(commands: Commands) -> None:
    """Add the command ``demo``."""
    parser = add_command(
        commands,
        "demo",
        summary="open napari with two real images and the panel; without a display, replay "
        "recorded clicks and write masks and times",
        example="napari-hrsam demo --headless --out napari-hrsam-demo",
    )
    add_model(parser)
    parser.add_argument(
        "--headless",
        action="store_true",
        help="replay the recorded clicks even if there is a display",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=demo.DEFAULT_OUT,
        metavar="DIR",
        help=f"where a replay writes its files (default {demo.DEFAULT_OUT})",
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    problem = demo.missing_display()
    if not (args.headless or problem):
        demo.open_window()
        return
    if problem and not args.headless:
        say(f"No display: {problem}. napari cannot open here; replaying recorded clicks instead.")
    from napari_hrsam.modeling.checkpoints import load_model

    model = load_model(args.model, device=args.device)
    steps, written = demo.replay_all(model, args.out, on_step=_tell)
    if args.json:
        put_json(
            args.json,
            {
                "model": args.model,
                "steps": [asdict(step) for step in steps],
                "files": [str(path) for path in written],
            },
        )
    else:
        print(demo.step_table(steps))
    for path in written:
        say(f"wrote {path}")


def _tell(step: Step) -> None:
    say(f"{step.image}: {step.action}, {step.wall_s * 1e3:.0f} ms")
