"""What the scripts here share: timing, from the package, and results as tables and JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from napari_hrsam.bench.measure import environment, interleaved, peak_bytes, summary, timed

__all__ = [
    "RESULTS",
    "environment",
    "interleaved",
    "peak_bytes",
    "print_table",
    "save",
    "summary",
    "timed",
]

RESULTS = Path(__file__).parent / "results"


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows and the environment as JSON."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**environment(), "rows": rows}, indent=1) + "\n")
    print(f"\nwrote {path}")


def print_table(rows: list[dict[str, Any]], columns: Sequence[str]) -> None:
    """Print some columns of the rows; numbers with three digits."""
    cells = [list(columns)]
    cells += [[_text(row.get(column, "")) for column in columns] for row in rows]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    for line in cells:
        print("  ".join(text.rjust(width) for text, width in zip(line, widths, strict=True)))


def _text(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
