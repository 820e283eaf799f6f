"""Masks after one and two clicks, whatever level the first look at an object is taken at.

On the generated slide, objects of 10 to 30,000 px are clicked on in their middle at several levels
and at none; a second click goes to the middle of the largest error. Validation images are shown
whole in a window, and their objects clicked on at the level that the panel chooses there, and at
the one that `evaluate --view object` takes.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, print_table, save
from scipy.ndimage import distance_transform_edt

import napari_hrsam as hrsam
from napari_hrsam.geometry import Box, coarsest_level
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.sample import Sample, make_sample, open_sample
from napari_hrsam.sample.scene.scene import SceneObject
from napari_hrsam.training.clicks import next_click
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.evaluate import click_curve, view_level
from napari_hrsam.training.metrics import mask_iou

SIZES_PX = (12, 25, 60, 150, 400, 1000, 3000, 8000, 20_000, 30_000)
LEVELS = (None, 0, 2, 4, 6)
COMPARED_PX = 1500
"""Longest side of the masks that are compared: large ones at a coarser level."""

SLIDE_COLUMNS = ("size_px", "kind", "level", "iou1", "iou2", "seconds")
VALIDATION_COLUMNS = ("domain", "objects", "window", "object")


def compare(
    sample: Sample, thing: SceneObject, found: hrsam.Prediction
) -> tuple[float, tuple[tuple[float, float], bool] | None]:
    """Score a mask, and choose the next click: its place and whether it is positive."""
    region = thing.box.union(found.extent)
    level = max(0, math.ceil(math.log2(max(region.shape_yx) / COMPARED_PX)))
    scale = 2**level
    box = Box(
        region.y0 // scale, region.x0 // scale, -(-region.y1 // scale), -(-region.x1 // scale)
    )
    truth = sample.mask(thing.label, box, level)
    mask = found.multiscale.sample(level, box) > 0
    click = next_click(mask, truth, [], rng=np.random.default_rng(0))
    if click is None:
        return mask_iou(mask, truth), None
    y, x = ((place + 0.5) * scale - 0.5 for place in (click.y + box.y0, click.x + box.x0))
    return mask_iou(mask, truth), ((y, x), click.positive)


def slide_rows(model: Segmenter, sample: Sample) -> list[dict[str, Any]]:
    """Click on one object of about every size, at every level."""
    rows = []
    with hrsam.Session(model, sample.image) as session:
        for size in SIZES_PX:
            thing = min(sample.objects, key=lambda o: abs(math.log(max(o.box.shape_yx) / size)))
            for level in LEVELS:
                started = time.perf_counter()
                iou1, click = compare(sample, thing, session.click(thing.centre_yx, level=level))
                seconds = time.perf_counter() - started
                iou2 = iou1
                if click is not None:
                    place, positive = click
                    iou2, _ = compare(sample, thing, session.click(place, positive))
                session.cancel()
                rows.append(
                    {
                        "size_px": max(thing.box.shape_yx),
                        "kind": thing.kind,
                        "level": level,
                        "iou1": iou1,
                        "iou2": iou2,
                        "seconds": seconds,
                    }
                )
                print_table(rows[-1:], SLIDE_COLUMNS)
    return rows


def window_level(shape_yx: tuple[int, int], tile_px: int, window_yx: tuple[int, int]) -> int:
    """Tell the level that the panel takes for an image that is shown whole, as napari fits it."""
    zoom = 0.95 * min(window_yx[0] / shape_yx[0], window_yx[1] / shape_yx[1])
    level = math.floor(math.log2(max(1 / zoom, 0.5)))
    return min(level, coarsest_level(shape_yx, tile_px))


def validation_rows(
    model: Segmenter, data: list[str], per_domain: int, window_yx: tuple[int, int]
) -> list[dict[str, Any]]:
    """First clicks on validation objects, at the window's level and at the object's."""
    found: dict[str, list[tuple[float, float]]] = {}
    tile_px = model.config.tile_px
    for sample in open_samples(data):
        labels = sample.labels()
        shape_yx = labels.shape[0], labels.shape[1]
        with hrsam.Session(model, sample.image()) as session:
            for label in sample.objects:
                ious = found.setdefault(sample.domain, [])
                if len(ious) == per_domain:
                    break
                mask = labels == label
                levels = (
                    window_level(shape_yx, tile_px, window_yx),
                    view_level(Box.around(mask), shape_yx, tile_px),
                )
                window, thing = (
                    click_curve(
                        session, mask, level=level, num_clicks=1, rng=np.random.default_rng(0)
                    )[0]
                    for level in levels
                )
                ious.append((window, thing))
    rows = []
    for domain, ious in [*sorted(found.items()), ("mean of domains", [])]:
        mean = np.mean(ious or [(r["window"], r["object"]) for r in rows], axis=0)
        rows.append(
            {
                "domain": domain,
                "objects": len(ious) or sum(r["objects"] for r in rows),
                "window": float(mean[0]),
                "object": float(mean[1]),
            }
        )
    print_table(rows, VALIDATION_COLUMNS)
    return rows


def picture_rows(
    model: Segmenter, picture: str, truth: str, window_yx: tuple[int, int]
) -> list[dict[str, Any]]:
    """One click in the middle of every object of a picture of known objects, shown whole."""
    labels, image = np.load(truth), hrsam.open_image(picture)
    level = window_level(image.shape_yx, model.config.tile_px, window_yx)
    ious, seconds = [], []
    with hrsam.Session(model, image) as session:
        for label in np.unique(labels[labels > 0]):
            mask = labels == label
            inside = np.unravel_index(np.argmax(distance_transform_edt(mask)), mask.shape)
            started = time.perf_counter()
            found = session.click((float(inside[0]), float(inside[1])), level=level)
            seconds.append(time.perf_counter() - started)
            whole = np.zeros_like(mask)
            whole[found.box.slices] = found.mask
            ious.append(mask_iou(whole, mask))
            session.cancel()
    rows = [
        {
            "picture": Path(picture).name,
            "level": level,
            "objects": len(ious),
            "iou1": float(np.mean(ious)),
            "median_s": float(np.median(seconds)),
        }
    ]
    print_table(rows, tuple(rows[0]))
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--data", nargs="*", default=[], help="validation shards")
    parser.add_argument("--max-objects", type=int, default=8, help="per domain")
    parser.add_argument("--window", type=int, nargs=2, default=(1000, 1600), metavar=("H", "W"))
    parser.add_argument("--slide-px", type=int, default=100_000, help="0 for no slide")
    parser.add_argument(
        "--picture",
        nargs=2,
        metavar=("IMAGE", "LABELS"),
        help="a picture, and its objects as a .npy file of labels",
    )
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "first-level.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = hrsam.load_model(args.model, device="cpu")
    rows = []
    if args.slide_px:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "slide.sample.zarr"
            make_sample(path, args.slide_px)
            rows = slide_rows(model, open_sample(path))
    if args.picture:
        rows += picture_rows(model, *args.picture, tuple(args.window))
    if args.data:
        rows += validation_rows(model, args.data, args.max_objects, tuple(args.window))
    save(args.json, rows)


if __name__ == "__main__":
    main()
