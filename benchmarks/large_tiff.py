"""Peak memory of opening a large TIFF by its path and of one click.

``peak_mb`` is what loading the model, opening and clicking take above the imports, ``image_mb`` the
part of it beyond a click on an image of 512 px.

The files are made here: tiled and in strips, compressed and not, with and without coarser levels.
Each case runs in a process of its own, because the peak of a process never falls.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from measure import RESULTS, peak_bytes, print_table, save
from numpy.typing import NDArray

LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles, Deflate": {"tile": (512, 512), "compression": "zlib"},
    "tiles, stored": {"tile": (512, 512)},
    "tiles, JPEG, levels": {"tile": (512, 512), "compression": "jpeg"},
    "strips, LZW": {"rowsperstrip": 8, "compression": "lzw"},
    "one strip, stored": {"rowsperstrip": None},
}


def write(path: Path, side: int, layout: str) -> None:
    """Write an RGB file of discs, piece by piece; "levels" adds halves down to 1000 px."""
    options = LAYOUTS[layout]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        kept, is_first = side, True
        while is_first or ("levels" in layout and kept > 1000):
            high, wide = options.get("tile", (options.get("rowsperstrip") or 64, kept))
            file.write(
                pieces(kept, high, wide),
                shape=(kept, kept, 3),
                dtype=np.uint8,
                photometric="rgb",
                metadata=None,
                subfiletype=0 if is_first else 1,
                **(options if options.get("rowsperstrip", 0) is not None else {}),
            )
            kept, is_first = -(-kept // 2), False


def pieces(side: int, high: int, wide: int) -> Iterator[NDArray[np.uint8]]:
    """Go through tiles, or strips, of a picture of discs."""
    for y in range(0, side, high):
        for x in range(0, side, wide):
            rows = min(high, side - y) if wide == side else high
            yy, xx = np.ogrid[y : y + rows, x : x + wide]
            disc = (yy % 600 - 300) ** 2 + (xx % 600 - 300) ** 2 < 150**2
            grey = np.where(disc, 190, 60).astype(np.uint8)
            yield np.dstack([grey, grey // 2, grey])


def measure(path: Path, side: int) -> dict[str, float]:
    """Open a file and click once in its middle; runs in a process of its own."""
    from napari_hrsam import Session, open_image
    from napari_hrsam.modeling.checkpoints import load_model

    imported = peak_bytes()
    model = load_model("hrsam-tiny", device="cpu")
    with Session(model, np.zeros((512, 512, 3), np.uint8)) as session:
        session.click((256, 256))
    before, started = peak_bytes(), time.perf_counter()
    image = open_image(path)
    opened = time.perf_counter()
    middle = side // 2 // 600 * 600 + 300
    with Session(model, image) as session:
        prediction = session.click((middle, middle))
    return {
        "open_s": opened - started,
        "click_s": time.perf_counter() - opened,
        "peak_mb": (peak_bytes() - imported) / 2**20,
        "image_mb": (peak_bytes() - before) / 2**20,
        "area_px": float(prediction.region.read(prediction.box).sum()),
    }


def main() -> None:
    """Measure every layout and save the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", type=int, default=30_000)
    parser.add_argument("--layouts", nargs="+", choices=list(LAYOUTS), default=list(LAYOUTS))
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "large-tiff.json")
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(measure(args.measure, args.side)))
        return
    rows: list[dict[str, Any]] = []
    for layout in args.layouts:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "large.tif")
            write(path, args.side, layout)
            done = subprocess.run(
                [sys.executable, __file__, "--measure", path, "--side", str(args.side)],
                capture_output=True,
                text=True,
                check=True,
            )
            facts = {"layout": layout, "side_px": args.side, "file_mb": path.stat().st_size / 2**20}
            rows.append({**facts, **json.loads(done.stdout)})
    print_table(rows, ["layout", "file_mb", "open_s", "click_s", "peak_mb", "image_mb", "area_px"])
    save(args.out, rows)


if __name__ == "__main__":
    main()
