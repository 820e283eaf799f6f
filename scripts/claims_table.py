"""Write benchmarks/claims.md: what the papers claim, measured with our small models.

    python scripts/claims_table.py

Every figure comes from a JSON in benchmarks/results; the command that made it is in that file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
LENGTH_COLUMNS = ("iou1", "iou3", "iou5", "noc80")
SHARE_COLUMNS = ("iou1", "iou3", "iou5")
STABILITY_COLUMNS = ("iou1", "iou3", "iou5", "iou10", "noc80", "noc85", "noc90", "drops")
TITLES = {
    **{f"iou{n}": f"IoU@{n}" for n in (1, 3, 5, 10)},
    **{f"noc{t}": f"NoC@{t}" for t in (80, 85, 90)},
    "drops": "clicks that lower IoU by > 0.01",
}


def table(head: list[str], rows: list[list[str]]) -> str:
    """Format a Markdown table whose columns behind the second are numbers."""
    rule = ["---", *["--:"] * (len(head) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, rule, *rows))


def number(value: float | None) -> str:
    """Three digits behind the point; a dash for nothing."""
    return "-" if value is None else f"{value:.3f}"


def length_table(measured: dict[str, Any], columns: tuple[str, ...]) -> str:
    """One row for every model and input size."""
    rows = [
        [row["model"], str(row["input_px"]), *(number(row[c]) for c in columns)]
        for row in measured["rows"]
    ]
    titles = [TITLES[c] + (" of 5" if c.startswith("noc") else "") for c in columns]
    return table(["model", "input px", *titles], rows)


def stability_table(scores: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """One row for every model: the mean over the domains."""
    rows = [[one["model"], *(number(one["mean_of_domains"][c]) for c in columns)] for one in scores]
    return table(["model", *(TITLES[c] for c in columns)], rows)


def read(name: str) -> dict[str, Any]:
    """Read a result."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Write the file."""
    text = (ROOT / "benchmarks" / "claims.md").read_text(encoding="utf-8")
    shares = [
        [row["model"], row["embedding"], *(number(row[c]) for c in SHARE_COLUMNS)]
        for row in read("embedding-share.json")["rows"]
    ]
    errors = [
        [row["model"], str(row["input_px"]), number(row["error"])]
        for row in read("ba-sam-embeddings.json")["rows"]
    ]
    parts = {
        "share": table(["model", "embedding", *(TITLES[c] for c in SHARE_COLUMNS)], shares),
        "embeddings": table(["model", "input px", "error"], errors),
        "length": length_table(read("input-length.json"), LENGTH_COLUMNS),
        "ba-sam": length_table(read("ba-sam.json"), LENGTH_COLUMNS),
        "stability": stability_table(
            [
                read("evaluate-hrsam-tiny.json"),
                read("evaluate-hrsam-tiny+focus-part2.json"),
                read("evaluate-hrsam-tiny+focus.json"),
            ],
            STABILITY_COLUMNS,
        ),
    }
    for name, filled in parts.items():
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        before, found, rest = text.partition(begin)
        _, closing, after = rest.partition(end)
        if not (found and closing):
            raise SystemExit(f"expected the markers {begin} and {end} in benchmarks/claims.md")
        text = f"{before}{begin}\n{filled}\n{end}{after}"
    (ROOT / "benchmarks" / "claims.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
