"""Put the scores of benchmarks/results/dense-head.json into docs/howto/everything.md.

python scripts/dense_head_page.py           # writes the table
python scripts/dense_head_page.py --check   # fails if it is not what would be written
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "howto" / "everything.md"
SCORES = ROOT / "benchmarks" / "results" / "dense-head.json"
BEGIN, END = "<!-- dense-head:begin -->", "<!-- dense-head:end -->"


def table(rows: list[dict[str, Any]]) -> str:
    """Format the domains whose annotation is complete, the mean last."""
    lines = ["| model | domain | objects | Otsu and watershed | model | passes |"]
    lines.append("| --- | --- | --: | --: | --: | --- |")
    for row in rows:
        if row.get("partial"):
            continue
        passes = "yes" if row["f1_passes"] else "**no**"
        cells = (row["model"], row["domain"].replace("_", " "), str(row["objects"]))
        scores = f"{row['otsu']:.2f} | {row['both']:.2f}"
        lines.append(f"| {' | '.join(cells)} | {scores} | {passes} |")
    return "\n".join(lines)


def page(text: str, rows: list[dict[str, Any]]) -> str:
    """Replace what stands between the markers."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"expected the markers {BEGIN} and {END} in {PAGE}")
    return f"{before}{BEGIN}\n{table(rows)}\n{END}{after}"


def main() -> None:
    """Write the table, or compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="write nothing, compare")
    text = PAGE.read_text(encoding="utf-8")
    wanted = page(text, json.loads(SCORES.read_text(encoding="utf-8"))["rows"])
    if not parser.parse_args().check:
        PAGE.write_text(wanted, encoding="utf-8")
    elif wanted != text:
        sys.exit(f"{PAGE} is not up to date: run python scripts/dense_head_page.py")


if __name__ == "__main__":
    main()
