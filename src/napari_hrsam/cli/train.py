"""``napari-hrsam train``: train a model on tar shards and folders of image/mask pairs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam.cli.options import add_command, add_json, put_json, say
from napari_hrsam.errors import ConfigError

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.training.train import StepReport
    from napari_hrsam.training.train_config import TrainConfig

# Every setting of TrainConfig and CropConfig that is a number or a name; the defaults live there.
_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "steps": (int, "optimiser steps of the whole schedule"),
    "max_clicks": (int, "longest simulated sequence of clicks"),
    "click_decay": (float, "probability that a sequence goes on after a click"),
    "box_share": (float, "share of sequences that begin with a box"),
    "refine_decay": (float, "stage focus: probability that the refinement is put off by a click"),
    "point_weight": (float, "stage focus: factor on the point loss"),
    "dice_weight": (float, "stage focus: factor on the Dice loss (the paper: none)"),
    "learning_rate": (float, "peak of AdamW's learning rate"),
    "weight_decay": (float, "of AdamW"),
    "clip_norm": (float, "gradients are scaled down to this norm"),
    "warmup": (int, "steps of linear warm-up"),
    "schedule": (str, "decay after the warm-up: cosine or linear"),
    "ema_decay": (float, "of the averaged weights, which are the ones saved for use"),
    "precision": (str, "float32, or bfloat16 (autocast) where the device has it"),
    "scan": (str, "backend of the cycle scan: auto, mamba, triton, torch, numba"),
    "stage": (str, "what learns: clicks (all), decoder, focus (the refiner), distill (encoder)"),
    "seed": (int, "makes a run reproducible"),
    "checkpoint_every_s": (float, "seconds between checkpoints"),
}
_CROP_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "crop_px": (int, "side of a training crop, a multiple of 16"),
    "batch_size": (int, "crops in a step"),
    "objects_per_crop": (int, "objects trained on in a crop, at most"),
    "large_share": (float, "share of batches with crops of twice the side, a quarter as many"),
    "polarity": (float, "share of crops that are inverted"),
    "grey": (float, "share of colour crops that are made grey"),
}
_DISTILL_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "teacher": (str, "distill: model or checkpoint whose embeddings the encoder learns"),
    "num_batches": (int, "distill: batches of crops whose embeddings are computed, once"),
    "teacher_px": (int, "distill: side at which the teacher sees a crop (default: the crop's)"),
}
_REPORT_EVERY = 20


def add_commands(commands: Commands) -> None:
    """Add the command ``train``."""
    parser = add_command(
        commands,
        "train",
        summary="train a model, or fine-tune one, on tar shards and folders of image/mask pairs",
        example="napari-hrsam train --data my_images/ --init weights/hrsam-tiny.safetensors "
        "--out runs/mine --steps 500",
    )
    parser.add_argument("--model", metavar="NAME", help="which network (default hrsam-tiny)")
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
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
        "--init",
        nargs="+",
        metavar="PATH",
        help="weights to start from, of this model or a related one (default: random)",
    )
    parser.add_argument(
        "--out", required=True, metavar="DIR", help="folder of the checkpoint, log and weights"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, with its settings"
    )
    parser.add_argument(
        "--config", type=Path, metavar="FILE", help="start from the config.json of another run"
    )
    parser.add_argument(
        "--print-config", action="store_true", help="print all settings as JSON and stop"
    )
    parser.add_argument(
        "--device", help="auto, cpu, cuda, ... (default auto: a GPU if there is one)"
    )
    for name, (kind, text) in {**_SETTINGS, **_CROP_SETTINGS, **_DISTILL_SETTINGS}.items():
        metavar = {int: "N", float: "X", str: "NAME"}[kind]  # type: ignore[index]
        parser.add_argument(_flag(name), type=kind, metavar=metavar, help=text)
    parser.add_argument(
        "--span",
        nargs=2,
        type=float,
        metavar=("LOW", "HIGH"),
        help="share of the crop's side that an object's longer side takes",
    )
    add_json(parser)
    parser.set_defaults(run=lambda args: _run(parser, args))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not (args.data or args.resume or args.config):
        parser.error("expected --data, or --resume, or --config")
    from napari_hrsam.training.train import train

    config = make_config(args)
    if args.print_config:
        print(json.dumps(asdict(config), indent=2))
        return
    last: list[StepReport] = []

    def report(step: StepReport) -> None:
        last[:] = [step]
        if step.step % _REPORT_EVERY == 0 or step.step == config.steps:
            ious = (
                f"IoU after the first click {step.iou_first:.3f}, after {step.clicks}: "
                f"{step.iou_last:.3f}  "
                if step.iou_first is not None
                else ""
            )
            say(
                f"step {step.step}/{config.steps}  loss {step.loss:.4g}  {ious}{step.seconds:.0f} s"
            )

    weights = train(config, resume=args.resume, progress=report)
    if args.json:
        put_json(
            args.json,
            {"weights": str(weights), "last_step": asdict(last[0]) if last else None},
        )
    else:
        print(f"weights: {weights}")


def make_config(args: argparse.Namespace) -> TrainConfig:
    """Join the defaults, a saved configuration, and what was given on the command line.

    Raises
    ------
    ConfigError
        If the saved configuration is missing or is not one, or a setting is out of range.
    """
    from napari_hrsam.modeling.checkpoints import choose_device
    from napari_hrsam.training.batches import CropConfig
    from napari_hrsam.training.distill import DistillConfig
    from napari_hrsam.training.train_config import TrainConfig

    source = Path(args.out) / "config.json" if args.resume else args.config
    saved = _read_config(source) if source else {}
    crops = {
        **saved.pop("crops", {}),
        **_given(args, (*_CROP_SETTINGS, "span")),
    }
    distill = {**saved.pop("distill", {}), **_given(args, tuple(_DISTILL_SETTINGS))}
    names = ("model", "data", "exclude_sources", "out", "init", *_SETTINGS)
    settings = {**saved, **_given(args, names)}
    if distill.get("teacher"):
        settings.setdefault("stage", "distill")
    if args.device or "device" not in saved:
        settings["device"] = str(choose_device(args.device or "auto"))
    tuples = ((crops, "span"), *((settings, name) for name in ("data", "exclude_sources", "init")))
    for group, name in tuples:
        if name in group:
            group[name] = tuple(group[name])
    try:
        return TrainConfig(crops=CropConfig(**crops), distill=DistillConfig(**distill), **settings)
    except TypeError as error:
        raise ConfigError(
            f"expected the config.json of a training run, got unknown settings in {source} "
            f"({error}); it may be of another version"
        ) from error


def _given(args: argparse.Namespace, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: getattr(args, name) for name in names if getattr(args, name) is not None}


def _read_config(path: Path) -> dict[str, Any]:
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"expected the config.json of a training run at {path}, but it cannot be read "
            f"({error}); check the path"
        ) from error
    if not isinstance(saved, dict):
        raise ConfigError(f"expected settings in {path}, got a JSON {type(saved).__name__}")
    return saved
