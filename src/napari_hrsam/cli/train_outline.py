"""``napari-hrsam train-outline``: train the refiner of outlines of objects larger than a tile."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from napari_hrsam.cli.options import add_command, add_json, put_json, say

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.training.outline import OutlineReport, OutlineTrainConfig

# Settings of OutlineTrainConfig and OutlineCropConfig; the defaults live there.
_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "steps": (int, "optimiser steps of the whole schedule"),
    "learning_rate": (float, "peak of AdamW's learning rate"),
    "weight_decay": (float, "of AdamW"),
    "warmup": (int, "steps of linear warm-up, before a cosine decay"),
    "ema_decay": (float, "of the averaged weights, which are the ones saved for use"),
    "clip_norm": (float, "gradients are scaled down to this norm"),
    "dice_weight": (float, "factor on the Dice loss beside the cross-entropy"),
    "precision": (str, "float32, or bfloat16 (autocast) where the device has it"),
    "seed": (int, "makes a run reproducible"),
    "checkpoint_every_s": (float, "seconds between checkpoints"),
}
_CROP_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "crop_px": (int, "side of a training crop, a multiple of 4"),
    "batch_size": (int, "crops in a step"),
    "min_area_px": (int, "smallest area of the objects whose outline is learned from"),
    "drawn_share": (float, "share of crops that are drawn, with exact masks"),
    "polarity": (float, "share of crops that are inverted"),
    "grey": (float, "share of colour crops that are made grey"),
}
_REPORT_EVERY = 20


def add_commands(commands: Commands) -> None:
    """Add the command ``train-outline``."""
    parser = add_command(
        commands,
        "train-outline",
        summary="train the small network that refines outlines of objects larger than a tile",
        example="napari-hrsam train-outline --data my_images/ --init weights/outline.safetensors "
        "--out runs/outline --steps 500",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        required=True,
        metavar="PATH",
        help="tar shards, or folders with images/ and masks/, or with NAME.png and NAME_mask.png",
    )
    parser.add_argument(
        "--exclude-source",
        dest="exclude_sources",
        action="append",
        metavar="NAME",
        help="leave a source of the shards out, for example for its licence; repeatable",
    )
    parser.add_argument(
        "--validation",
        nargs="+",
        metavar="PATH",
        help="shards or folders to choose the best checkpoint by (default: the last is kept)",
    )
    parser.add_argument(
        "--init", metavar="PATH", help="weights of an outline refiner to start from"
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the checkpoint, log and weights"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="go on with the run in --out; give the same settings again",
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print all settings as JSON and stop"
    )
    parser.add_argument(
        "--device",
        default="auto",
        help="auto, cpu, cuda, ... (default auto: a GPU if there is one)",
    )
    for name, (kind, text) in {**_SETTINGS, **_CROP_SETTINGS}.items():
        metavar = {int: "N", float: "X", str: "NAME"}[kind]  # type: ignore[index]
        parser.add_argument("--" + name.replace("_", "-"), type=kind, metavar=metavar, help=text)
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from napari_hrsam.training.outline import train_outline

    config = make_config(args)
    if args.print_config:
        print(json.dumps(asdict(config), indent=2))
        return
    last: list[OutlineReport] = []

    def report(done: OutlineReport) -> None:
        last[:] = [done]
        if done.step % _REPORT_EVERY == 0 or done.validation is not None:
            line = f"step {done.step}/{config.steps}  loss {done.loss:.4g}  {done.seconds:.0f} s"
            if done.validation is not None:
                line += f"  band accuracy {done.validation:.4f}"
            say(line)

    weights = train_outline(config, resume=args.resume, progress=report)
    if args.json:
        last_step = asdict(last[0]) if last else None
        put_json(args.json, {"weights": str(weights), "last_step": last_step})
    else:
        print(f"weights: {weights}")


def make_config(args: argparse.Namespace) -> OutlineTrainConfig:
    """Join the defaults and what was given on the command line.

    Raises
    ------
    ConfigError
        If a setting is out of range.
    """
    from napari_hrsam.modeling.devices import choose_device
    from napari_hrsam.training.outline import OutlineTrainConfig
    from napari_hrsam.training.outline_crops import OutlineCropConfig

    settings = _given(args, ("out", "init", *_SETTINGS))
    for name, paths in _given(args, ("data", "exclude_sources", "validation")).items():
        settings[name] = tuple(paths)
    return OutlineTrainConfig(
        crops=OutlineCropConfig(**_given(args, tuple(_CROP_SETTINGS))),
        device=str(choose_device(args.device)),
        **settings,
    )


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}
