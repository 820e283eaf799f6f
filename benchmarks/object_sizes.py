"""One click on objects of 20 to 500 px of the tile: the generated slide, and validation images.

Through a `Session`. On the slide every object is clicked on once, in its middle, at every level at
which it is about as large as asked; its mask is compared with the known one at that level.
Validation images are scaled so that an object is as large as asked, and it is clicked on at full
size; the mean over the domains counts.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, print_table, save
from numpy.typing import NDArray
from PIL import Image

import napari_hrsam as hrsam
from napari_hrsam.geometry import Box
from napari_hrsam.masks import mask_iou
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.sample import Sample as Slide
from napari_hrsam.sample import make_sample, open_sample
from napari_hrsam.training.clicks import next_click
from napari_hrsam.training.datasets import Sample, open_samples

SIZES_PX = (20, 40, 80, 160, 320, 500)
SPREAD = 2**0.5
COLUMNS = ("images", "size_px", "iou1", "objects")
MAX_ENLARGED = 4.0
MAX_SHOWN_PX = 6000
MIN_AREA = 64
"""Pixels of an object; of a thinner one a mask at this size tells nothing."""

Picture = NDArray[np.uint8]
Mask = NDArray[np.bool_]


def at_level(box: Box, scale: int) -> Box:
    """Find the pixels of a level that a level-0 box touches."""
    return Box(box.y0 // scale, box.x0 // scale, -(-box.y1 // scale), -(-box.x1 // scale))


def slide_rows(model: Segmenter, sample: Slide, per_size: int) -> list[dict[str, Any]]:
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


def shown_at(sample: Sample, label: int, size_px: int) -> tuple[Picture, Mask] | None:
    """Scale a validation image so that an object is `size_px` long; None if that is too far."""
    mask = sample.labels() == label
    rows, columns = np.nonzero(mask.any(1))[0], np.nonzero(mask.any(0))[0]
    scale = size_px / (max(np.ptp(rows), np.ptp(columns)) + 1)
    height, width = (round(side * scale) for side in mask.shape)
    if scale > MAX_ENLARGED or max(height, width) > MAX_SHOWN_PX:
        return None
    # Averages when shrunk, so that nothing is aliased.
    shown = Image.fromarray(sample.image()).resize((width, height), Image.Resampling.BILINEAR)
    truth = Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST)
    if np.count_nonzero(truth) < MIN_AREA:
        return None
    return np.asarray(shown), np.asarray(truth)


def validation_rows(model: Segmenter, data: list[str], per_domain: int) -> list[dict[str, Any]]:
    """First clicks on validation objects at full size of an image scaled to show them so."""
    domains: dict[str, list[tuple[Sample, int]]] = defaultdict(list)
    for sample in open_samples(data):
        domains[sample.domain] += [(sample, label) for label in sample.objects]
    rng = np.random.default_rng(0)
    chosen = {
        domain: [things[i] for i in sorted(rng.permutation(len(things))[:per_domain])]
        for domain, things in sorted(domains.items())
    }
    rows = []
    for size in SIZES_PX:
        means, num = [], 0
        for things in chosen.values():
            ious = []
            for sample, label in things:
                shown = shown_at(sample, label, size)
                if shown is None:
                    continue
                image, truth = shown
                click = next_click(np.zeros_like(truth), truth, [], rng=rng)
                assert click is not None
                with hrsam.Session(model, image) as session:
                    found = session.click((click.y, click.x), level=0)
                ious.append(mask_iou(found.region.read(Box.of_shape(truth.shape)), truth))
            if ious:
                means.append(float(np.mean(ious)))
                num += len(ious)
        iou = float(np.mean(means)) if means else None
        rows.append({"images": "validation", "size_px": size, "iou1": iou, "objects": num})
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
