"""``napari-hrsam train``: train a model on tar shards and folders of image/mask pairs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam.cli.options import add_command, add_json, put_json, say
from napari_hrsam.cli.settings import add_settings, from_saved, given
from napari_hrsam.errors import ConfigError
from napari_hrsam.training.settings import (
    OUTLINE_MODEL,
    ClickConfig,
    CropConfig,
    CropSize,
    DistillConfig,
    FocusTaskConfig,
    OutlineTaskConfig,
    TrainConfig,
)

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.training.train import StepReport

_PARTS: Mapping[str, tuple[type, str]] = {
    "crops": (CropConfig, ""),
    "clicks": (ClickConfig, ""),
    "focus": (FocusTaskConfig, ""),
    "distill": (DistillConfig, ""),
    "outline": (OutlineTaskConfig, "outline_"),
}
"""Parts of the settings, and what their options begin with."""

_ONE_SIZE = {"crop_px": 256, "batch_size": 4, "objects_per_crop": 2}
"""Of crops of one size in place of the several, where an option names only some of these."""

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
    parser.add_argument(
        "--exclude-source",
        dest="exclude_sources",
        action="append",
        metavar="NAME",
        help="leave a source of the shards out, for example for its licence; repeatable",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="tar shards, or folders with images/ and masks/, or with NAME.png and NAME_mask.png",
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
    own = frozenset({"data", "exclude_sources", "out"})
    add_settings(parser, TrainConfig, "settings", leave_out=own)
    for part, (settings, prefix) in _PARTS.items():
        add_settings(parser, settings, part, prefix=prefix)
    shares = frozenset({"share", "late_share"})
    add_settings(parser, CropSize, "crops of one size, in place of several", leave_out=shares)
    add_json(parser)
    parser.set_defaults(run=lambda args: _run(parser, args))


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

    source = Path(args.out) / "config.json" if args.resume else args.config
    saved = _read_config(source) if source else {}
    settings = {**saved, **given(args, TrainConfig)}
    for part, (kind, prefix) in _PARTS.items():
        settings[part] = {**saved.get(part, {}), **given(args, kind, prefix=prefix)}
    one_size = given(args, CropSize)
    if one_size:
        settings["crops"]["sizes"] = [{**_ONE_SIZE, **one_size}]
    if settings["distill"].get("teacher"):
        settings.setdefault("stage", "distill")
    if settings.get("stage") == "outline":
        settings.setdefault("model", OUTLINE_MODEL)
    if args.device or "device" not in saved:
        settings["device"] = str(choose_device(args.device or "auto"))
    try:
        config: TrainConfig = from_saved(TrainConfig, settings)
    except (TypeError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(
            f"expected the config.json of a training run, got unknown settings in {source} "
            f"({error}); it may be of another version"
        ) from error
    return config


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
