"""Put the scores of `napari-hrsam evaluate --json FILE` into the README.

    python scripts/readme_evaluation.py FILE --command "napari-hrsam evaluate ..." \
        --baselines FILE ...

Replaces what stands between the evaluation markers, so that no score is typed by hand.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- evaluation:begin -->", "<!-- evaluation:end -->"
MODEL_COLUMNS = ("iou1", "iou3", "iou5", "iou10", "noc85", "drops")
BASELINE_COLUMNS = ("iou1", "iou3", "iou5")
TITLES = {"noc85": "NoC@85", "drops": "drops"}


def insert(text: str, table: str) -> str:
    """Replace what stands between the markers.

    Raises
    ------
    ValueError
        If the markers are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected the markers {BEGIN} and {END} in the README")
    return f"{before}{BEGIN}\n{table}\n{END}{after}"


def evaluation_table(scores: dict[str, Any], command: str) -> str:
    """Format the JSON of an evaluation as a Markdown table with its command."""
    contestants = [(scores, MODEL_COLUMNS)]
    contestants += [(other, BASELINE_COLUMNS) for other in scores.get("baselines", [])]
    head = ["domain", "objects"]
    for contestant, columns in contestants:
        head += [f"{contestant['model']} {_title(name)}" for name in columns]
    rows = [_row(domain, contestants, "domains", domain) for domain in scores["domains"]]
    rows.append(_row("**mean of domains**", contestants, "mean_of_domains"))
    lines = [head, ["---", *["--:"] * (len(head) - 1)], *rows]
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return (
        f"{table}\n\nIoU@n: mean overlap after n clicks. NoC@85: clicks until the overlap is 0.85, "
        f"at most {scores['num_clicks']}. drops: share of the later clicks that lower the overlap "
        f"by more than 0.01. From\n\n```\n{command}\n```"
    )


def _title(name: str) -> str:
    return TITLES.get(name, f"IoU@{name.removeprefix('iou')}")


def _row(
    title: str, contestants: list[tuple[dict[str, Any], tuple[str, ...]]], *keys: str
) -> list[str]:
    cells: list[str] = [title]
    for contestant, columns in contestants:
        row: Any = contestant
        for key in keys:
            row = row[key]
        if len(cells) == 1:
            cells.append(str(row["num_objects"]))
        cells += ["-" if row[name] is None else f"{row[name]:.2f}" for name in columns]
    return cells


def main() -> None:
    """Read the scores and rewrite the README."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("scores", type=Path, metavar="FILE")
    parser.add_argument("--command", required=True, help="the command that made the scores")
    parser.add_argument("--baselines", nargs="*", type=Path, default=[], metavar="FILE")
    args = parser.parse_args()
    readme = Path(__file__).parents[1] / "README.md"
    scores = json.loads(args.scores.read_text(encoding="utf-8"))
    scores["baselines"] = [json.loads(path.read_text(encoding="utf-8")) for path in args.baselines]
    table = evaluation_table(scores, args.command)
    readme.write_text(insert(readme.read_text(encoding="utf-8"), table), encoding="utf-8")


if __name__ == "__main__":
    main()
