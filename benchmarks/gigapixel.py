"""Clicks, commits, memory and encoding on generated images of 10k to 200k pixels.

The same as ``napari-hrsam bench gigapixel``, with its table printed and its figures kept here.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from measure import RESULTS

from napari_hrsam.cli.bench import add_settings, require_whole, run, show


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_settings(parser)
    parser.add_argument("--out", type=Path, default=RESULTS / "gigapixel-cpu.json")
    arguments = parser.parse_args()
    figures = run(arguments, " ".join(["python", *sys.argv]))
    print(show(figures))
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(figures, indent=1) + "\n")
    print(f"\nwrote {arguments.out}")
    require_whole(figures)


if __name__ == "__main__":
    main()
