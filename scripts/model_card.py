"""Write the card of a trained model from its run folder, the data's index and its scores.

    python scripts/model_card.py --run runs/hrsam-tiny --index data/index.json \
        --scores scores.json --command "napari-hrsam evaluate ..." --hardware "2 CPU cores" \
        --train-command "napari-hrsam train ..." --started-from "a random start" \
        --out weights/hrsam-tiny.md

No figure is typed by hand: counts come from the log, settings from the run's config.json, sources
and licences from the index of the shards, scores from `napari-hrsam evaluate --json`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from safetensors import safe_open

_PLACES = ("data", "out", "init", "validation", "stem_teacher")
_TAUGHT = {"clicks": "Weights", "decoder": "Weights", "focus": "The refiner"}
COLUMNS = ("iou1", "iou3", "iou5", "iou10", "noc80", "noc85", "noc90", "drops", "num_objects")


def sources_table(config: dict[str, Any], index: dict[str, Any]) -> str:
    """List the sources of the training shards with their licences, as Markdown."""
    names = {Path(path).name for path in config["data"]}
    groups = {shard["group"] for shard in index["shards"] if shard["file"] in names}
    rows = ["| source | training images | licence | cite |", "|---|--:|---|---|"]
    for source, known in sorted(index["sources"].items()):
        images = known["counts"].get("train", {"images": 0})["images"]
        if known["group"] in groups and images and source not in config["exclude_sources"]:
            rows.append(f"| {source} | {images} | {known['licence']} | {known['citation']} |")
    return "\n".join(rows)


def scores_table(scores: dict[str, Any]) -> str:
    """Format the scores per domain as Markdown."""
    rows = [
        "| domain | " + " | ".join(COLUMNS) + " |",
        "|---|" + "--:|" * len(COLUMNS),
    ]
    parts = [*scores["domains"].items(), ("mean of domains", scores["mean_of_domains"])]
    for domain, row in [*parts, ("all objects", scores["overall"])]:
        cells = [f"{row[c]:.3f}" if isinstance(row[c], float) else str(row[c]) for c in COLUMNS]
        rows.append(f"| {domain} | " + " | ".join(cells) + " |")
    return "\n".join(rows)


def _minutes(log: list[dict[str, str]]) -> str:
    """Wall minutes of a run; the clock starts again where it was resumed."""
    seconds = [float(row["seconds"]) for row in log]
    ends = [a for a, b in zip(seconds, [*seconds[1:], 0.0], strict=True) if b < a]
    return f"{sum(ends) / 60:.0f}"


def card(
    *,
    weights: Path,
    run: Path,
    index: dict[str, Any],
    scores: dict[str, Any],
    command: str,
    train_command: str,
    hardware: str,
    started_from: str,
    notes: str,
) -> str:
    """Compose the card."""
    config = json.loads((run / "config.json").read_text(encoding="utf-8"))
    with (run / "log.csv").open(encoding="utf-8") as stream:
        log = list(csv.DictReader(stream))
    last = log[-1]
    with safe_open(weights, framework="np") as tensors:
        num = sum(tensors.get_tensor(key).size for key in tensors.keys())  # noqa: SIM118
    excluded = ", ".join(config["exclude_sources"]) or "none"
    taught = _TAUGHT[config.get("stage", "clicks")]
    return f"""# {weights.stem}

{taught} of `{config["model"]}`, trained by this project from {started_from},
BSD-3-Clause. {num / 1e6:.2f} million values, {weights.stat().st_size / 1e6:.1f} MB in half
precision.

## Data

Openly licensed training shards; sources left out for their licence: {excluded}.

{sources_table(config, index)}

The licences of balloon, pets128, amazon-forest and spacenet-rio, where they are listed, are as
their authors' pages are remembered; the repositories of the images do not restate them.

## Recipe

```
{train_command}
```

{last["step"]} steps, {last["crops"]} crops, {last["objects"]} objects with simulated clicks,
{_minutes(log)} minutes on {hardware}. The saved weights are an exponential average
(decay {config["ema_decay"]}).

{notes}

Settings (`config.json` of the run):

```json
{json.dumps({k: v for k, v in config.items() if k not in _PLACES}, indent=1)}
```

## Scores

On the validation shards, {scores["num_clicks"]} simulated clicks an object,
view "{scores["view"]}", seed {scores["seed"]}. IoU after n clicks; NoC@t is the mean number of
clicks to an IoU of t per cent ({scores["num_clicks"]} if never); drops is the share of later clicks
that lower the IoU by more than 0.01. These shards were used to choose settings: no test set.
Made with

```
{command}
```

{scores_table(scores)}

## Limits

Trained briefly and on little data: on kinds of images that are not in the table above, expect
to click more. In training an object's longer side took {config["crops"]["span"][0] * 100:.0f} to
{config["crops"]["wide_span"][1] * 100:.0f} per cent of the crop.
"""


def main() -> None:
    """Write the card."""
    parser = argparse.ArgumentParser(description="Write a model card")
    for name in ("--run", "--index", "--scores", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--command", "--train-command", "--hardware", "--started-from"):
        parser.add_argument(name, required=True)
    parser.add_argument("--notes", default="", help="what else to tell of the recipe")
    args = parser.parse_args()
    text = card(
        weights=args.out.with_suffix(".safetensors"),
        run=args.run,
        index=json.loads(args.index.read_text(encoding="utf-8")),
        scores=json.loads(args.scores.read_text(encoding="utf-8")),
        command=args.command,
        train_command=args.train_command,
        hardware=args.hardware,
        started_from=args.started_from,
        notes=args.notes,
    )
    args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
