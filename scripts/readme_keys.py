"""Put the panel's table of mouse and keys into the README, from which the site takes its page.

    python scripts/readme_keys.py

Replaces what stands between the keys markers: the table is the one that the panel itself shows.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))

from napari_hrsam.plugin.canvas.key_table import KeyMap  # noqa: E402  the path comes first

BEGIN, END = "<!-- keys:begin -->", "<!-- keys:end -->"


def keys_table() -> str:
    """Format the table as Markdown."""
    rows = [f"| {keys} | {effect} |" for keys, effect in KeyMap().rows()]
    return "\n".join(["| input | does |", "|---|---|", *rows])


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


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(insert(readme.read_text(encoding="utf-8"), keys_table()), encoding="utf-8")
