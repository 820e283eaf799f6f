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


def slide_rows(model: Segmenter, sample: Sample, per_size: int) -> list[dict[str, Any]]:
    """First clicks on the generated slide, by size on the tile."""
    rows = []
    num_levels = len(sample.levels)
    for size in SIZES_PX:
        ious = []
        with hrsam.Session(model, sample.image()) as session:
            for thing in sample.objects:
                longer = max(thing.box.height, thing.box.width)
                level = round(math.log2(longer / size))
                shown = longer / 2**level
                if not 0 <= level < num_levels or not size / SPREAD <= shown <= size * SPREAD:
                    continue
                found = session.click(thing.centre_yx, level=level)
                region = thing.box.union(found.region.box)
                truth = sample.mask(thing.label, region, level)
                mask = found.level_mask(region, level)
                session.cancel()
                ious.append(mask_iou(mask, truth))
                if len(ious) == per_size:
                    break
        iou = float(np.mean(ious)) if ious else None
        rows.append({"images": "generated slide", "size_px": size, "iou1": iou, "objects": len(ious)})
        print_table(rows[-1:], COLUMNS)
    return rows
