"""Write the card of the outline refiner from its run folder, the data's index and its scores.

    python scripts/outline_card.py --run runs/outline --index data/index.json \
        --scores benchmarks/results/outline.json --hardware "one core" \
        --train-command "napari-hrsam train --stage outline ..." --started-from "nothing" \
        --out weights/outline.md

No figure is typed by hand: counts come from the log, settings from the run's config.json, sources
and licences from the index of the shards, scores from `benchmarks/outline.py`.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

from model_card import sources_table
from safetensors import safe_open

_PRIORS = {
    "errors": "True masks with errors: an outline displaced by 1.2 coarse pixels (standard "
    "deviation) over lengths of about 5, corners rounded.",
    "clicked": "Masks that `hrsam-tiny` draws on the coarse image after up to 4 simulated clicks.",
}


def scores_table(rows: list[dict[str, Any]]) -> str:
    """Format scores per domain as Markdown."""
    names = ("band", "iou", "distance_px")
    lines = [
        "| coarse at | domain | objects | band accuracy | IoU | outline distance, px |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for row in rows:
        cells = [f"{row[f'prior_{name}']:.3f} → {row[f'refined_{name}']:.3f}" for name in names]
        start = f"| 1/{row['factor']} | {row['domain']} | {row['objects']:.0f} | "
        lines.append(start + " | ".join(cells) + " |")
    return "\n".join(lines)


def card(
    *,
    weights: Path,
    run: Path,
    index: dict[str, Any],
    scores: dict[str, Any],
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
        kept = tensors.metadata()["trained_on"].rpartition("; ")[2]
    tables = "\n\n".join(
        f"{text}\n\n{scores_table([r for r in scores['rows'] if r['prior'] == prior])}"
        for prior, text in _PRIORS.items()
    )
    tile_s = scores["rows"][-1]["cpu_s_per_512px_tile"]
    excluded = ", ".join(config["exclude_sources"]) or "none"
    unused = ("data", "validation", "out", "init", "crops", "clicks", "focus", "distill")
    settings = {k: v for k, v in config.items() if k not in unused}
    return f"""# outline

Weights of the outline refiner (`napari_hrsam.modeling.outline_refiner`), trained by this project
from {started_from}, BSD-3-Clause.
{num:,} values, {weights.stat().st_size / 1e6:.2f} MB in half precision.
It moves the outline of an object that was found at a coarser level of a pyramid onto the edge that
the image shows; the coarse mask says which object is meant. It knows no kinds of objects. A tile
of 512 x 512 pixels takes {tile_s:.3f} s of CPU time ({scores["cpu"]}).

## Data

Outlines of objects of {config["outline"]["min_area_px"]} or more pixels, at half to double size, in
openly licensed training shards; sources left out for their licence: {excluded}.
{config["outline"]["drawn_share"]:.0%} of the crops are drawn by a program (textured regions with
exact masks).

{sources_table(config, index)}

Coarse masks are the true ones at a half and a quarter of the size with errors: displaced outlines,
rounded corners, missing and surplus pieces, weak and strong logits; some have none, some are far
off.

## Recipe

```
{train_command}
```

{last["step"]} steps, {last["crops"]} crops, {float(last["seconds"]) / 60:.0f} minutes on
{hardware}. Kept is the exponential average
(decay {config["ema_decay"]}) that was best on four objects a domain of the validation shards: that
after {kept}.

{notes}

Settings (`config.json` of the run):

```json
{json.dumps(settings, indent=1)}
```

## Scores

On objects of 2500 or more pixels of the validation shards: the coarse mask interpolated, and →
refined. Band accuracy is the share of right pixels within 12 px of the true outline; the distance
is the mean one between the two outlines. These shards were used to choose the weights: no test
set. Made with

```
{scores["command"]}
```

{tables}

## Limits

Labels drawn by people are off by a pixel or two, and so is what was learned from them. Outlines
that are off by much more than two coarse pixels are not found again. In domains where a column
above gets worse, the coarse outline is better left alone. What the network sees of a place ends 44
pixels from it.
"""


def main() -> None:
    """Write the card."""
    parser = argparse.ArgumentParser(description="Write the card of the outline refiner")
    for name in ("--run", "--index", "--scores", "--out"):
        parser.add_argument(name, type=Path, required=True)
    for name in ("--train-command", "--hardware", "--started-from"):
        parser.add_argument(name, required=True)
    parser.add_argument("--notes", default="", help="what else to tell of the recipe")
    args = parser.parse_args()
    text = card(
        weights=args.out.with_suffix(".safetensors"),
        run=args.run,
        index=json.loads(args.index.read_text(encoding="utf-8")),
        scores=json.loads(args.scores.read_text(encoding="utf-8")),
        train_command=args.train_command,
        hardware=args.hardware,
        started_from=args.started_from,
        notes=args.notes,
    )
    args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
