"""Put the figures of `python benchmarks/gigapixel.py` into the README.

    python scripts/readme_gigapixel.py

Replaces what stands between the gigapixel markers, so that no figure is typed by hand.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "gigapixel-cpu.json"
BEGIN, END = "<!-- gigapixel:begin -->", "<!-- gigapixel:end -->"
# Title, name in the summary, format.
LINES = (
    ("first mask, nothing encoded, model loaded", "first_s", "{:.2f} s"),
    ("click on an encoded tile, median", "warm_p50_ms", "{:.0f} ms"),
    ("the same, 95 of 100 are faster", "warm_p95_ms", "{:.0f} ms"),
    ("commit of an object of 500 px", "commit_500_ms", "{:.0f} ms"),
    ("of 2,000 px", "commit_2000_ms", "{:.0f} ms"),
    ("of 10,000 px", "commit_10000_ms", "{:.0f} ms"),
    ("peak memory above napari showing the image", "above_mb", "{:.0f} MB"),
    ("encoding ahead", "embed_mpx_s", "{:.2f} Mpx/s"),
    ("opening labels with 10,000 objects", "reopen_s", "{:.2f} s"),
)


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


def gigapixel_table(figures: dict[str, Any]) -> str:
    """Format the results as a Markdown table, one column per size of image."""
    sizes = figures["summary"]
    head = ["", *(f"{row['size_px']:,} px" for row in sizes)]
    lines = [head, ["---", *["--:"] * len(sizes)]]
    for title, name, form in LINES:
        if any(name in row for row in sizes):
            cells = [form.format(row[name]) if name in row else "" for row in sizes]
            lines.append([title, *cells])
    table = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return (
        f"{table}\n\nOn generated images that nobody prepared, "
        f"with `{figures['settings']['model']}` "
        f"on {figures['cpu_count']} cores of an {figures['cpu']}, without a GPU. From\n\n"
        f"```\n{figures['command']}\n```"
    )


def main() -> None:
    """Write the README anew."""
    readme = ROOT / "README.md"
    figures = json.loads(RESULTS.read_text())
    readme.write_text(insert(readme.read_text(), gigapixel_table(figures)))


if __name__ == "__main__":
    main()
