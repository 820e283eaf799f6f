"""Measure `hrsam.auto` on generated slides: rate, where the time goes, memory.

    python benchmarks/auto.py --sizes 4000 20000

Each slide is painted to disk first, so that reading costs what it does with files, and is run in a
process of its own, whose peak memory counts. Rates are millions of level pixels per second of one
core, in which nothing counts that other programs take. Writes ``results/auto.json``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

from measure import RESULTS, peak_bytes, print_table, save


def measured(folder: Path, workers: int) -> dict[str, Any]:
    """Run on a slide, in this process."""
    import napari_hrsam as hrsam

    model = hrsam.load_model("hrsam-tiny", device="cpu")
    report = hrsam.auto(str(folder), level=0, model=model, workers=workers, progress=_tell)
    row = {key: value for key, value in asdict(report).items() if key not in ("path", "table")}
    split = row.pop("split")
    core_s = sum(split.values())
    return {
        **row,
        **{f"{kind}_s": seconds for kind, seconds in split.items()},
        "core_s": core_s,
        "mpx_per_core_s": report.mpx_per_core_s,
        "peak_mb": peak_bytes() / 1e6,
    }


def _tell(done: int, total: int) -> None:
    print(f"{done}/{total} blocks", file=sys.stderr, flush=True)


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[4000], help="sides, in pixels")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--json", type=Path, default=RESULTS / "auto.json")
    parser.add_argument("--slide", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.slide:
        print(json.dumps(measured(args.slide, args.workers)))
        return
    from napari_hrsam.sample import make_sample

    rows = []
    for size in args.sizes:
        with tempfile.TemporaryDirectory() as folder:
            slide = Path(folder) / "slide.ome.zarr"
            make_sample(slide, size, fill=(0,))
            command = [sys.executable, __file__, "--slide", str(slide)]
            command += ["--workers", str(args.workers)]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        rows.append({"size_px": size, "workers": args.workers, **json.loads(done.stdout)})
    columns = ("size_px", "num_objects", "num_tiles", "mpx_per_core_s", "peak_mb", "read_s")
    print_table(rows, (*columns, "encode_s", "head_s", "watershed_s", "write_s"))
    save(args.json, rows)


if __name__ == "__main__":
    main()
