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
SHARE_COLUMNS = ("iou1", "iou3", "iou5", "drops")
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


def share_table(measured: dict[str, Any]) -> str:
    """One row for every part that is taken away and every size."""
    rows = [
        [row["taken away"], row["span"], *(number(row[c]) for c in SHARE_COLUMNS)]
        for row in measured["rows"]
    ]
    return table(
        ["taken away", "object's share of the tile", *map(TITLES.get, SHARE_COLUMNS)], rows
    )


def sizes_table(measured: dict[str, Any]) -> str:
    """One row for every size of an object on the tile, the kinds of image side by side."""
    kinds = list(dict.fromkeys(row["images"] for row in measured["rows"]))
    sizes = list(dict.fromkeys(row["size_px"] for row in measured["rows"]))
    found = {(row["images"], row["size_px"]): row for row in measured["rows"]}
    rows = [
        [str(size), *(_iou_and_count(found.get((kind, size))) for kind in kinds)] for size in sizes
    ]
    return table(["px of a 512 px tile", *kinds], rows)


def _iou_and_count(row: dict[str, Any] | None) -> str:
    if row is None or row["iou1"] is None:
        return "-"
    return f"{row['iou1']:.3f} ({row['objects']})"


def designs_table(measured: dict[str, Any]) -> str:
    """One row for every design that was trained beside the others."""
    rows = []
    for name, found in measured["designs"].items():
        whole, zero = found["score"]["none"], found["score"]["embedding"]
        large = whole["spans"]["0.5-0.9"]
        cells = (whole["iou1"], whole["iou5"], large["iou1"], zero["iou1"])
        rows.append([name, str(found["step"]), str(found["crops"]), *map(number, cells)])
    titles = ["IoU@1", "IoU@5", "IoU@1 at 0.5-0.9", "IoU@1, embedding zero"]
    return table(["design", "steps", "crops", *titles], rows)


def windows_table(measured: dict[str, Any]) -> str:
    """One row for every width and precision of a shifted window layer on a GPU."""
    rows = [
        [
            f"{row['channels']} x {row['batch']}, {row['precision']}",
            *(number(row.get(c)) for c in ("padded_ms", "kv_only_ms", "triton_ms")),
            number(row.get("triton_ratio")),
            number(row.get("graph_triton_ratio")),
        ]
        for row in measured["sections"]["shifted windows"]["rows"]
    ]
    titles = [
        "padded queries, ms",
        "KV-only with SDPA, ms",
        "KV-only in our kernel, ms",
        "ratio",
        "as a graph",
    ]
    return table(["channels x batch", *titles], rows)


def scan_table(measured: dict[str, Any]) -> str:
    """One row for every size and backend of the cycle scan on a GPU."""
    rows = [
        [
            f"{row['size']}, {row['mode']}",
            row["backend"],
            *(number(row.get(c)) for c in ("one_ms", "three_ms", "ratio")),
        ]
        for row in measured["sections"]["scan"]["rows"]
        if row.get("three_ms")
    ]
    return table(["tokens of", "backend", "one pass, ms", "three passes, ms", "ratio"], rows)


def stability_table(scores: list[dict[str, Any]], columns: tuple[str, ...]) -> str:
    """One row for every model: the mean over the domains."""
    rows = [[one["model"], *(number(one["mean_of_domains"][c]) for c in columns)] for one in scores]
    return table(["model", *(TITLES[c] for c in columns)], rows)


def length_table(measured: dict[str, Any]) -> str:
    """One row for every model and size of the input."""
    columns = ("iou1", "iou3", "num_objects")
    rows = [
        [
            row["model"].replace(".safetensors", ""),
            str(row["input_px"]),
            *(number(row[c]) if c.startswith("iou") else str(row[c]) for c in columns),
        ]
        for row in measured["rows"]
    ]
    return table(["model", "input px", "IoU@1", "IoU@3", "objects"], rows)


def read(name: str) -> dict[str, Any]:
    """Read a result."""
    found: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return found


def main() -> None:
    """Write the file."""
    text = (ROOT / "benchmarks" / "claims.md").read_text(encoding="utf-8")
    gpu = read("gpu-h100.json")
    parts = {
        "share": share_table(read("embedding-share.json")),
        "sizes": sizes_table(read("object-sizes.json")),
        "designs": designs_table(read("train-h100.json")),
        "windows": windows_table(gpu),
        "scan": scan_table(gpu),
        "stability": stability_table(
            [read("evaluate-hrsam-tiny-15.json"), read("evaluate-hrsam-tiny+focus-15.json")],
            STABILITY_COLUMNS,
        ),
        "length": length_table(read("input-length.json")),
        "ba-sam": length_table(read("ba-sam.json")),
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
