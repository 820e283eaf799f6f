"""``napari-hrsam train``: train a model on tar shards and folders of image/mask pairs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam.cli.options import add_command, add_json, put_json, say
from napari_hrsam.errors import ConfigError

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.training.train import StepReport
    from napari_hrsam.training.train_config import TrainConfig

# Every setting that is a number or a name; the defaults live in the dataclasses.
_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "steps": (int, "optimiser steps of the whole schedule"),
    "learning_rate": (float, "peak of AdamW's learning rate"),
    "weight_decay": (float, "of AdamW"),
    "clip_norm": (float, "gradients are scaled down to this norm"),
    "warmup": (int, "steps of linear warm-up"),
    "hold": (float, "share of the training at full rate, before the decay"),
    "schedule": (str, "decay: cosine or linear"),
    "stem_teacher": (str, "weights of the pretrained stem, for --stem-weight"),
    "stem_at": (float, "share of the training after which the stem learns too; 1: never"),
    "stem_factor": (float, "factor on the stem's learning rate"),
    "ema_decay": (float, "of the averaged weights, which are the ones saved for use"),
    "precision": (str, "float32, bfloat16 (autocast), or auto: bfloat16 where the device has it"),
    "scan": (str, "backend of the cycle scan: auto, mamba, triton, torch, numba"),
    "stage": (str, "what learns: clicks (all), decoder, focus (the refiner), distill (encoder)"),
    "seed": (int, "makes a run reproducible"),
    "checkpoint_every_s": (float, "seconds between checkpoints"),
    "validate_every_s": (float, "seconds between scores on the validation data"),
    "validation_objects": (int, "objects of each domain that are scored"),
    "validation_px": (int, "side of the tiles on which they are shown"),
}
_CROP_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "wide_share": (float, "share of batches with objects that fill the crop"),
    "smallest_px": (float, "smallest object in a crop, its longer side in pixels"),
    "polarity": (float, "share of crops that are inverted"),
    "grey": (float, "share of colour crops that are made grey"),
    "second_labels": (float, "share of crops with the second labels of a sample"),
    "cache_mb": (float, "memory for decoded images"),
}
_SIZE_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "crop_px": (int, "side of the training crops, a multiple of 16 (default: several sizes)"),
    "batch_size": (int, "crops in a step, of one size"),
    "objects_per_crop": (int, "objects trained on in a crop, at most, of one size"),
}
_CLICK_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "max_clicks": (int, "longest simulated sequence of clicks"),
    "click_decay": (float, "probability that a sequence goes on after a click"),
    "first_share": (float, "share of batches whose loss is that of the first click"),
    "box_share": (float, "share of sequences that begin with a box"),
    "coarse_weight": (float, "factor on the loss of the coarse mask"),
    "candidate_weight": (float, "factor on the loss of the best candidate of a first click"),
    "iou_weight": (float, "factor on the error of the predicted IoU"),
    "dense_weight": (float, "factor on the loss of the dense head"),
    "stem_weight": (float, "factor on the loss of the stem's wide map, at the start"),
    "stem_until": (float, "share of the training at which that factor has fallen to 0"),
}
_FOCUS_SETTINGS: Mapping[str, tuple[Callable[[str], Any], str]] = {
    "refine_decay": (float, "stage focus: probability that the refinement is put off by a click"),
    "point_weight": (float, "stage focus: factor on the point loss"),
    "dice_weight": (float, "stage focus: factor on the Dice loss (the paper: none)"),
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
        "--init-partly",
        action="store_const",
        const=True,
        help="let tensors that do not fit start from new values (after a change of the network)",
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
    parser.add_argument(
        "--validation",
        nargs="+",
        metavar="PATH",
        help="shards or folders that the run is scored on; its best weights are kept",
    )
    groups = (
        _SETTINGS,
        _SIZE_SETTINGS,
        _CROP_SETTINGS,
        _CLICK_SETTINGS,
        _FOCUS_SETTINGS,
        _DISTILL_SETTINGS,
    )
    for name, (kind, text) in {k: v for group in groups for k, v in group.items()}.items():
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
    from napari_hrsam.modeling.devices import choose_device
    from napari_hrsam.training.batches import CropConfig, CropSize
    from napari_hrsam.training.click_rounds import ClickConfig
    from napari_hrsam.training.distill import DistillConfig
    from napari_hrsam.training.focus_rounds import FocusTaskConfig
    from napari_hrsam.training.train_config import TrainConfig

    source = Path(args.out) / "config.json" if args.resume else args.config
    saved = _read_config(source) if source else {}
    crops = {**saved.pop("crops", {}), **_given(args, (*_CROP_SETTINGS, "span"))}
    clicks = {**saved.pop("clicks", {}), **_given(args, tuple(_CLICK_SETTINGS))}
    focus = {**saved.pop("focus", {}), **_given(args, tuple(_FOCUS_SETTINGS))}
    distill = {**saved.pop("distill", {}), **_given(args, tuple(_DISTILL_SETTINGS))}
    names = (
        "model",
        "data",
        "exclude_sources",
        "out",
        "init",
        "init_partly",
        "validation",
        *_SETTINGS,
    )
    settings = {**saved, **_given(args, names)}
    if distill.get("teacher"):
        settings.setdefault("stage", "distill")
    if args.device or "device" not in saved:
        settings["device"] = str(choose_device(args.device or "auto"))
    for name in ("data", "exclude_sources", "init", "validation"):
        if name in settings:
            settings[name] = tuple(settings[name])
    try:
        for name in ("span", "wide_span"):
            if name in crops:
                crops[name] = tuple(crops[name])
        if "domain_factors" in crops:
            crops["domain_factors"] = tuple((k, v) for k, v in crops["domain_factors"])
        one_size = _given(args, tuple(_SIZE_SETTINGS))
        if one_size:
            first = CropSize(crop_px=256, batch_size=4, objects_per_crop=2)
            crops["sizes"] = (replace(first, **one_size),)
        elif "sizes" in crops:
            crops["sizes"] = tuple(CropSize(**size) for size in crops["sizes"])
        return TrainConfig(
            crops=CropConfig(**crops),
            clicks=ClickConfig(**clicks),
            focus=FocusTaskConfig(**focus),
            distill=DistillConfig(**distill),
            **settings,
        )
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
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
