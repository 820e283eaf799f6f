"""``napari-hrsam evaluate``: a model and classical baselines in one table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam.cli.options import (
    add_command,
    add_json,
    add_model,
    positive_int,
    put_json,
    say,
    show_progress,
    table,
)

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.training.evaluate import Evaluated

_BASELINES = ("random-walker", "geodesic", "grabcut")
_COLUMNS = ("noc80", "noc85", "noc90", "iou1", "iou3", "iou5", "iou10", "drops", "num_objects")


def add_commands(commands: Commands) -> None:
    """Add the command ``evaluate``."""
    parser = add_command(
        commands,
        "evaluate",
        summary="score a model or classical baselines with simulated clicks",
        example="napari-hrsam evaluate --model hrsam-tiny --baseline random-walker "
        "--data val-blood.tar my_images/ --json scores.json",
    )
    add_model(parser, default=None)
    parser.add_argument(
        "--baseline",
        dest="baselines",
        action="append",
        default=[],
        choices=_BASELINES,
        help="a classical method that takes the same clicks; repeatable. Alone it is scored "
        "without a model; without it the model is hrsam-tiny unless --model says otherwise",
    )
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        required=True,
        action="extend",
        metavar="PATH",
        help="tar shards, or folders with images/ and masks/, or with NAME.png and NAME_mask.png",
    )
    parser.add_argument(
        "--view",
        choices=("object", "image"),
        default="object",
        help="object: zoomed so that the object spans 1/8 to 1/4 of the tile, never less than the "
        "whole object; image: the whole image (default object)",
    )
    parser.add_argument(
        "--clicks", type=positive_int, default=20, help="clicks per object (default 20)"
    )
    parser.add_argument("--seed", type=int, default=42, help="of the click simulation (default 42)")
    parser.add_argument(
        "--max-objects",
        type=positive_int,
        metavar="N",
        help="objects per domain at most (default: all that are listed)",
    )
    parser.add_argument(
        "--no-click-correction",
        action="store_true",
        help="leave out the local corrections that make the model's mask obey every click",
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    from napari_hrsam.training.datasets import open_samples
    from napari_hrsam.training.evaluate import evaluate

    # The data are opened before the model is loaded: a wrong path is told at once.
    samples = open_samples(args.data)
    scores = []
    for evaluated in _contestants(args):
        say(f"{evaluated.name}: {len(samples)} images, {args.clicks} clicks per object")
        scores.append(
            evaluate(
                evaluated,
                samples,
                view=args.view,
                num_clicks=args.clicks,
                seed=args.seed,
                max_objects=args.max_objects,
                progress=show_progress,
            )
        )
    if args.json:
        first, *others = scores
        put_json(args.json, {**first, "baselines": others} if others else first)
    else:
        print(_table(scores))


def _contestants(args: argparse.Namespace) -> list[Evaluated]:
    from napari_hrsam.training.baselines import BASELINES
    from napari_hrsam.training.evaluate import model_under_test

    chosen: list[Evaluated] = []
    if args.model or not args.baselines:
        from napari_hrsam.modeling.checkpoints import load_model

        model = load_model(args.model or "hrsam-tiny", device=args.device)
        chosen.append(model_under_test(model, enforce_clicks=not args.no_click_correction))
    return [*chosen, *(BASELINES[name]() for name in args.baselines)]


def _table(scores: list[dict[str, Any]]) -> str:
    """Lay out one row per contestant and domain, the means last."""
    domains = list(scores[0]["domains"])
    rows = [
        [score["model"], domain, *_cells(score["domains"][domain])]
        for domain in domains
        for score in scores
    ]
    rows += [
        [score["model"], name, *_cells(score[key])]
        for name, key in (("mean of domains", "mean_of_domains"), ("all objects", "overall"))
        for score in scores
    ]
    return table(["model", "domain", *_COLUMNS], rows)


def _cells(row: dict[str, Any]) -> list[str]:
    digits = {"noc80": 2, "noc85": 2, "noc90": 2, "num_objects": 0}
    return [
        "-" if row[name] is None else f"{row[name]:.{digits.get(name, 3)}f}" for name in _COLUMNS
    ]
