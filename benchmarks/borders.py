"""The same object in 64 places against the grid of tiles: how alike its masks are.

A window onto the generated slide is moved in steps of an eighth of the tile stride along y and x,
so that everything stays as it is but the grid. Every time the object is clicked on once, in its
middle, and refined to full resolution where it is larger than a tile there.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, print_table, save
from numpy.typing import NDArray

import napari_hrsam as hrsam
from napari_hrsam.geometry import Box, coarsest_level
from napari_hrsam.sample import Sample, make_sample, open_sample

COLUMNS = (
    "diameter_px",
    "level",
    "outline_level",
    "placements",
    "least_iou",
    "median_iou",
    "truth_iou",
)
STEPS = 8
CLICK_PX = 100
"""The level is the one at which the object is about so large."""


class Window:
    """A part of a level, read when it is sliced.

    Parameters
    ----------
    array : array-like of (height, width, 3)
    box : Box
        In pixels of the level.
    """

    def __init__(self, array: Any, box: Box) -> None:
        self._array = array
        self._box = box
        self.shape = (*box.shape_yx, 3)
        self.dtype = array.dtype
        self.ndim = 3

    def __getitem__(self, index: tuple[slice, slice, Any]) -> NDArray[np.uint8]:
        """Read a part."""
        rows, columns, colours = index
        y = slice(self._box.y0 + rows.start, self._box.y0 + rows.stop)
        x = slice(self._box.x0 + columns.start, self._box.x0 + columns.stop)
        pixels: NDArray[np.uint8] = self._array[y, x, colours]
        return pixels


def masks_of(
    sample: Sample, label: int, model: Any, level: int, outline_level: int
) -> list[NDArray[np.bool_]]:
    """Draw an object in every placement; masks over its box and a margin, level-0 pixels."""
    thing = sample.objects[label - 1]
    stride = model.config.tile_px // 2
    step = stride * 2**level // STEPS
    levels = range(min(len(sample.levels), coarsest_level(sample.level_shapes[0], 512) + 1))
    margin = 32
    masks = []
    for row, column in itertools.product(range(STEPS), repeat=2):
        corner = [
            max(0, int(middle) - 4 * stride * 2**level) // (STEPS * step) * STEPS * step
            + number * step
            for middle, number in zip(thing.centre_yx, (row, column), strict=True)
        ]
        side = 8 * stride * 2**level
        windows = []
        for k in levels:
            if any(edge % 2**k for edge in corner):
                break
            y0, x0 = corner[0] >> k, corner[1] >> k
            height, width = sample.level_shapes[k]
            box = Box(y0, x0, min(y0 + (side >> k), height), min(x0 + (side >> k), width))
            windows.append(Window(sample.levels[k], box))
        with hrsam.Session(model, hrsam.open_image(windows, rgb=True)) as session:
            session.outline_level = outline_level
            session.click(
                [a - b for a, b in zip(thing.centre_yx, corner, strict=True)], level=level
            )
            box = thing.box.expand(margin).shifted(-corner[0], -corner[1])
            masks.append(session.refine_outline().region.read(box))
    return masks


def row_of(sample: Sample, label: int, model: Any) -> dict[str, Any]:
    """Compare the masks of one object with each other, and with the truth."""
    thing = sample.objects[label - 1]
    level = max(0, math.ceil(math.log2(thing.diameter_px / CLICK_PX)))
    masks = np.stack([mask.ravel() for mask in masks_of(sample, label, model, level, 0)])
    truth = sample.mask(label, thing.box.expand(32)).ravel()
    pairs = [iou(a, b) for a, b in itertools.combinations(masks, 2)]
    return {
        "label": label,
        "diameter_px": float(thing.diameter_px),
        "level": level,
        "outline_level": 0,
        "placements": len(masks),
        "least_iou": min(pairs),
        "median_iou": float(np.median(pairs)),
        "truth_iou": float(np.median([iou(mask, truth) for mask in masks])),
    }


def iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union."""
    return float(np.count_nonzero(a & b) / max(1, np.count_nonzero(a | b)))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--diameters", nargs="+", type=float, default=[30, 60, 120, 240, 480, 2000])
    parser.add_argument("--objects", type=int, default=2, help="of about each diameter")
    parser.add_argument("--sample", type=Path, help="a generated slide; one is made otherwise")
    parser.add_argument("--json", type=Path, default=RESULTS / "borders.json")
    args = parser.parse_args()
    model = hrsam.load_model(args.model, device="cpu")
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.ome.zarr"
        sample = make_sample(path) if args.sample is None else open_sample(args.sample)
        for diameter in args.diameters:
            nearest = sorted(sample.objects, key=lambda o: abs(o.diameter_px - diameter))
            for thing in nearest[: args.objects]:
                rows.append(row_of(sample, thing.label, model))
                print_table(rows[-1:], COLUMNS)
    save(args.json, rows)


if __name__ == "__main__":
    main()
