"""One case of a benchmark in a process of its own: ``python -m napari_hrsam.bench CASE PATH JSON``.

The figures are the last line on standard output.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from napari_hrsam.bench.gigapixel import run_case
from napari_hrsam.bench.settings import Settings


def main() -> None:
    """Run the case that the arguments name."""
    case, path, text = sys.argv[1:]
    wishes: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in json.loads(text).items()
    }
    figures = run_case(case, Path(path), Settings(**wishes))
    sys.stdout.write(f"\n{json.dumps(figures)}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
