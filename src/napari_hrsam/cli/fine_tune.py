"""``napari-hrsam fine-tune``: a model of the user's own, taught by committed objects."""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from napari_hrsam.cli.options import (
    add_command,
    add_image,
    add_json,
    add_model,
    open_shown,
    put_json,
    say,
)
from napari_hrsam.cli.settings import add_settings, given
from napari_hrsam.training.settings import FineTuneConfig

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.training.fine_tuned import FineTuned

SAY_EVERY_S = 1.0


def add_commands(commands: Commands) -> None:
    """Add the command ``fine-tune``."""
    parser = add_command(
        commands,
        "fine-tune",
        summary="teach a model your committed objects, and keep it as a model of your own",
        example="napari-hrsam fine-tune slide.ome.zarr cells --save-as my-cells\n"
        "  napari-hrsam segment slide.ome.zarr --model my-cells --point 1200,3400",
    )
    parser.add_argument(
        "path", nargs="?", metavar="PATH", help="an OME-Zarr image, or a folder of labels alone"
    )
    parser.add_argument("name", nargs="?", metavar="NAME", help="name of the label image in it")
    parser.add_argument(
        "--image", help="what the objects were drawn on (default: the image at PATH)"
    )
    parser.add_argument(
        "--samples",
        type=Path,
        metavar="DIR",
        help="learn from the samples that an earlier run left in its --out, in place of PATH NAME",
    )
    parser.add_argument(
        "--save-as", required=True, metavar="NEW", help="name of the new model, e.g. my-cells"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace a model of yours of this name"
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="keep samples, log and checkpoint in this folder (default: remove them)",
    )
    add_model(parser)
    add_settings(parser, FineTuneConfig, "training")
    add_image(parser, plane=False)
    add_json(parser)
    parser.set_defaults(run=lambda args: _run(parser, args))


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if bool(args.samples) == bool(args.path and args.name):
        parser.error("expected PATH and NAME of a label image, or --samples")
    from napari_hrsam.storage.label_image import open_labels
    from napari_hrsam.training.fine_tune import fine_tune, fine_tune_on

    config = FineTuneConfig(**given(args, FineTuneConfig))
    told = Countdown()
    if args.samples:
        tuned = fine_tune_on(
            args.samples,
            args.model,
            save_as=args.save_as,
            config=config,
            device=args.device,
            overwrite=args.overwrite,
            progress=told,
        )
    else:
        tuned = fine_tune(
            open_labels(args.path, args.name, mode="r"),
            open_shown(args.image or args.path, args),
            args.model,
            save_as=args.save_as,
            config=config,
            device=args.device,
            overwrite=args.overwrite,
            out=args.out,
            progress=told,
        )
    told.end()
    if args.json:
        put_json(args.json, {**asdict(tuned), "path": str(tuned.path)})
    else:
        _show(tuned)


def _show(tuned: FineTuned) -> None:
    print(
        f"{tuned.name}: {tuned.base} taught {tuned.num_objects} objects in {tuned.num_steps} "
        f"steps, {tuned.seconds:.0f} s\n"
        f"on {tuned.num_held_out} held-out objects: NoC@85 {tuned.before.noc85:.2f} before, "
        f"{tuned.after.noc85:.2f} after; IoU after one click {tuned.before.iou1:.3f}, "
        f"{tuned.after.iou1:.3f}\n"
        f"saved as {tuned.path}; use it with --model {tuned.name}"
    )
    if tuned.after.noc85 > tuned.before.noc85:
        say("it needs more clicks than before: more objects, or other ones, may help")


class Countdown:
    """Progress on stderr: the part, how much of it is done, and the time it still takes.

    One line, rewritten, on a terminal; else a line a second at most, ``PART: DONE/TOTAL``, which
    the panel reads.
    """

    def __init__(self) -> None:
        self._part, self._began, self._told = "", 0.0, 0.0
        self._is_open = False

    def __call__(self, part: str, done: int, total: int) -> None:
        """Take progress as `fine_tune` tells it."""
        now = time.monotonic()
        if part != self._part:
            self.end()
            self._part, self._began, self._told = part, now, 0.0
        if done < total and now - self._told < SAY_EVERY_S:
            return
        self._told = now
        text = f"{part}: {done}/{total}"
        if 0 < done < total:
            left_s = (now - self._began) * (total - done) / done
            text += f", {max(1, round(left_s))} s left"
        if sys.stderr.isatty():
            print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)
            self._is_open = True
        else:
            say(text)

    def end(self) -> None:
        """End the line that is rewritten."""
        if self._is_open:
            print(file=sys.stderr, flush=True)
        self._is_open = False
