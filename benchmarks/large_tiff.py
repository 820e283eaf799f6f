"""Peak memory of opening a large TIFF by its path and of one click.

``peak_mb`` is what loading the model, opening and clicking take above the imports, ``image_mb`` the
part of it beyond a click on an image of 512 px.

The files are made here: in tiles and in strips, compressed and not, with and without levels.
Each case runs in a process of its own, because the peak of a process never falls.
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from measure import RESULTS, peak_bytes, print_table, save
from numpy.typing import NDArray

from napari_hrsam.geometry import Box

TILE_PX = 512
STRIP_ROWS = 8

LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles, Deflate": {"tile": (TILE_PX, TILE_PX), "compression": "zlib"},
    "strips, Deflate": {"rowsperstrip": STRIP_ROWS, "compression": "zlib"},
    "tiles, JPEG, levels": {"tile": (TILE_PX, TILE_PX), "compression": "jpeg"},
    "tiles, stored": {"tile": (TILE_PX, TILE_PX)},
}


def write(path: Path, side: int, layout: str) -> None:
    """Write an RGB file of discs, piece by piece; "levels" adds halves down to 1000 px."""
    options = LAYOUTS[layout]
    with tifffile.TiffWriter(path, bigtiff=True) as file:
        kept = side
        while kept == side or ("levels" in layout and kept > 1000):
            file.write(
                tiles(kept) if "tile" in options else strips(kept),
                shape=(kept, kept, 3),
                dtype=np.uint8,
                photometric="rgb",
                metadata=None,
                subfiletype=0 if kept == side else 1,
                **options,
            )
            kept = -(-kept // 2)


def tiles(side: int) -> Iterator[NDArray[np.uint8]]:
    """Go through the tiles of a picture."""
    for y, x in itertools.product(range(0, side, TILE_PX), repeat=2):
        yield discs(Box(y, x, y + TILE_PX, x + TILE_PX))


def strips(side: int) -> Iterator[bytes]:
    """Go through the strips of a picture, which tifffile wants compressed."""
    for y in range(0, side, STRIP_ROWS):
        yield zlib.compress(discs(Box(y, 0, min(y + STRIP_ROWS, side), side)).tobytes(), 1)


def discs(box: Box) -> NDArray[np.uint8]:
    """Draw bright discs of 300 px, one every 600 px."""
    y, x = np.ogrid[box.slices]
    disc = (y % 600 - 300) ** 2 + (x % 600 - 300) ** 2 < 150**2
    grey = np.where(disc, 190, 60).astype(np.uint8)
    return np.dstack([grey, grey // 2, grey])


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
        save(args.out, rows)
    print_table(rows, ["layout", "file_mb", "open_s", "click_s", "peak_mb", "image_mb", "area_px"])


if __name__ == "__main__":
    main()
