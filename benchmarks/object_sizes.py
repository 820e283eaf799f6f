"""One click on objects of 20 to 500 px of the tile: the generated slide, and validation images.

On the slide every object is clicked on once, in its middle, through a `Session`, at every level at
which it is about as large as asked; its mask is compared with the known one at that level. On
validation images the objects are shown at the sizes asked (`training.tile_scores`).
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, print_table, save

import napari_hrsam as hrsam
from napari_hrsam.geometry import Box
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.sample import Sample, make_sample, open_sample
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.device_crops import UNCHANGED, DeviceCrops
from napari_hrsam.training.metrics import mask_iou
from napari_hrsam.training.tile_scores import objects_to_score, summarize_scores, tile_scores
from napari_hrsam.training.validation import packed_samples

SIZES_PX = (20, 40, 80, 160, 320, 500)
SPREAD = 2**0.5
COLUMNS = ("images", "size_px", "iou1", "iou3", "iou5", "objects")


def at_level(box: Box, scale: int) -> Box:
    """Find the pixels of a level that a level-0 box touches."""
    return Box(box.y0 // scale, box.x0 // scale, -(-box.y1 // scale), -(-box.x1 // scale))


def slide_rows(model: Segmenter, sample: Sample, per_size: int) -> list[dict[str, Any]]:
    """First clicks on the generated slide, by size on the tile."""
    rows = []
    num_levels = len(sample.levels)
    for size in SIZES_PX:
        ious = []
        with hrsam.Session(model, sample.image) as session:
            for thing in sample.objects:
                longer = max(thing.box.height, thing.box.width)
                level = round(math.log2(longer / size))
                shown = longer / 2**level
                if not 0 <= level < num_levels or not size / SPREAD <= shown <= size * SPREAD:
                    continue
                found = session.click(thing.centre_yx, level=level)
                scale = found.level_downsample
                height, width = found.level_mask.shape
                shown_box = Box(0, 0, height, width).shifted(
                    found.box.y0 // scale, found.box.x0 // scale
                )
                region = shown_box.union(at_level(thing.box, scale))
                mask = np.zeros(region.shape_yx, bool)
                mask[shown_box.shifted(-region.y0, -region.x0).slices] = found.level_mask
                truth = sample.mask(thing.label, region, found.level)
                session.cancel()
                ious.append(mask_iou(mask, truth))
                if len(ious) == per_size:
                    break
        iou = float(np.mean(ious)) if ious else None
        rows.append(
            {"images": "generated slide", "size_px": size, "iou1": iou, "objects": len(ious)}
        )
        print_table(rows[-1:], COLUMNS)
    return rows


def validation_rows(model: Segmenter, data: list[str], per_domain: int) -> list[dict[str, Any]]:
    """Clicks on validation objects, by size on the tile."""
    samples = packed_samples(open_samples(data), max_images=6)
    crops = DeviceCrops(samples, "cpu", augmentation=UNCHANGED, workers=1)
    objects = objects_to_score(crops, samples, per_domain)
    rows = []
    tile_px = model.config.tile_px
    for size in SIZES_PX:
        share = min(size / tile_px, 0.95)
        with torch.inference_mode():
            found = tile_scores(
                model, crops, objects, span=(share, share), tile_px=tile_px, at_once=4
            )
        score = summarize_scores(*found, crops.object_domain[objects], crops.domains)
        rows.append({"images": "validation", "size_px": size, **score})
        print_table(rows[-1:], COLUMNS)
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--data", nargs="*", default=[], help="validation shards")
    parser.add_argument("--max-objects", type=int, default=4, help="per domain")
    parser.add_argument("--slide-px", type=int, default=20_000)
    parser.add_argument("--per-size", type=int, default=20, help="objects of the slide")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "object-sizes.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = hrsam.load_model(args.model, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "slide.sample.zarr"
        make_sample(path, args.slide_px)
        rows = slide_rows(model, open_sample(path), args.per_size)
    if args.data:
        rows += validation_rows(model, args.data, args.max_objects)
    save(args.json, rows)


if __name__ == "__main__":
    main()
