"""All objects of a tile at once: a model's dense head beside Otsu's threshold and a watershed.

An image is seen at the scale at which its median object spans 1/7 of a tile's side, enlarged at
most four times, and cut into tiles around its middle. Objects found are compared with the labels
of the same pixels; what lies beside the image does not count.

`--tune` chooses the settings of both methods on training images instead, and prints them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import RESULTS, print_table, save
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.storage.images.tile_source import MEAN_RGB
from napari_hrsam.training.batches import Scene, open_scene
from napari_hrsam.training.datasets import Sample, open_samples
from napari_hrsam.training.instance_scores import (
    InstanceCounts,
    cell_labels,
    f1_at,
    maps_to_labels,
    otsu_watershed,
    prototype_auc,
)

Settings = dict[str, float]

SPAN = 1 / 7
"""Share of the tile's side that the longer side of an image's median object spans."""

MAX_ENLARGEMENT = 4.0
SMALLEST_PX = 20
"""Smaller pieces, cut off by a tile's border, are no objects; neither method reports any."""

MAP_STRIDE = 2
"""Maps are enlarged to this stride: at their own 4 small objects that touch grow together."""

LEAST_AUC, LEAST_MEAN_F1 = 0.85, 0.6

AUCS = ("auc", "auc_centred")

PARTIAL = {
    "amazon-forest": "forest and clearings fill the image: no background",
    "balloon": "only balloons",
    "bottles": "only bottles",
    "bsdata": "only the one or two defects",
    "hbn-flakes": "only flakes the authors chose",
    "mars-craters": "many small craters not annotated",
    "pets128": "one animal in each image",
    "pfc-neurons": "one neuron in each image",
    "s2-reservoir": "one reservoir in each image",
    "treepheno": "one trunk in each image",
    "wbc1": "one white cell in each image, no red ones",
    "wbc2": "one white cell in each image, no red ones",
}
"""Sources whose annotation leaves out things that look like objects (the data's README)."""

OTSU: Settings = {"sigma_px": 1.0, "seed_depth_px": 1.0}

# A search begins with the value in the middle of each.
MAP_GRID: Mapping[str, Sequence[float]] = {
    "boundary_above": (0.3, 0.4, 0.5, 0.6, 0.7),
    "centre_below": (0.3, 0.4, 0.5, 0.6, 0.8),
    "foreground_above": (0.3, 0.4, 0.5, 0.6, 0.7),
    "sigma_px": (0.5, 1.0, 2.0, 3.0),
    "smallest_px": (10, 20, 40, 80),
}
OTSU_GRID: Mapping[str, Sequence[float]] = {
    "sigma_px": (1.0, 2.0, 4.0),
    "seed_depth_px": (1.0, 2.0, 4.0),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class View:
    """What a tile shows of an image.

    Attributes
    ----------
    sample : Sample
    tile : (S, S, 3) uint8
        The mean colour where there is no image.
    labels : (h, w) int32
        Of the part with image, which is the tile's upper left one.
    """

    sample: Sample
    tile: NDArray[np.uint8]
    labels: NDArray[np.int32]

    @property
    def pixels(self) -> NDArray[np.uint8]:
        """The part of the tile with image, (h, w, 3)."""
        height, width = self.labels.shape
        return self.tile[:height, :width]


@dataclass(frozen=True, kw_only=True, slots=True)
class Encoded:
    """A view, and what the model says of it.

    Attributes
    ----------
    view : View
    embedding : (C, S / 16, S / 16) float32
    maps : dict of str to (3, S / 2, S / 2) float32
        By what they were made from, "embedding" or "both"; enlarged.
    """

    view: View
    embedding: NDArray[np.float32]
    maps: dict[str, NDArray[np.float32]]


# --------------------------------------------------------------------------------------- views
def views(sample: Sample, tile_px: int) -> Iterator[View]:
    """Cut an image into tiles side by side, the ones near its middle first."""
    scene = open_scene(sample)
    if not scene.ids.size:
        return
    spans = (scene.boxes[:, 2:] - scene.boxes[:, :2]).max(axis=1)
    scale = min(SPAN * tile_px / float(np.median(spans)), MAX_ENLARGEMENT)
    # Less than a cell of the embedding is no image to look at.
    full = np.maximum(np.rint(np.array(scene.labels.shape) * scale), 16).astype(int)
    num = np.maximum(full // tile_px, 1)
    first = np.maximum(full - num * tile_px, 0) // 2
    corners = first + tile_px * np.indices(num).reshape(2, -1).T
    off_middle = np.abs(corners + tile_px / 2 - full / 2).sum(axis=1)
    for corner in corners[np.argsort(off_middle, kind="stable")]:
        yield _view(sample, scene, full, corner, tile_px)


def _view(
    sample: Sample, scene: Scene, full: NDArray[Any], corner: NDArray[Any], tile_px: int
) -> View:
    height, width = (int(v) for v in np.minimum(full - corner, tile_px))
    scale = full / scene.labels.shape
    (top, left), (bottom, right) = corner / scale, (corner + np.array([height, width])) / scale
    bottom, right = min(bottom, scene.labels.shape[0]), min(right, scene.labels.shape[1])

    def seen(array: NDArray[Any], how: Image.Resampling) -> NDArray[Any]:
        picture = Image.fromarray(array)
        return np.asarray(picture.resize((width, height), how, box=(left, top, right, bottom)))

    tile = np.empty((tile_px, tile_px, 3), np.uint8)
    tile[:] = MEAN_RGB
    pixels = seen(scene.pixels, Image.Resampling.BILINEAR)
    tile[:height, :width] = pixels if pixels.ndim == 3 else pixels[..., None]
    labels = seen(scene.labels, Image.Resampling.NEAREST)
    areas = np.bincount(labels.ravel())
    labels = np.where(areas[labels] >= SMALLEST_PX, labels, 0)
    return View(sample=sample, tile=tile, labels=labels.astype(np.int32))


def chosen_views(
    samples: Sequence[Sample], tile_px: int, max_images: int, max_tiles: int
) -> Iterator[View]:
    """Take images spread over the samples: a view of each, then a second one, and so on."""
    num = min(max_images, len(samples))
    spread = [samples[i * len(samples) // num] for i in range(num)]
    turns = zip_longest(*(views(sample, tile_px) for sample in spread))
    seen = (view for view in chain.from_iterable(turns) if view is not None)
    yield from (view for view, _ in zip(seen, range(max_tiles), strict=False))


def by_domain(samples: Sequence[Sample]) -> dict[tuple[bool, str], list[Sample]]:
    """Group samples by whether their annotation leaves things out, and by domain."""
    groups: dict[tuple[bool, str], list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.source in PARTIAL, sample.domain), []).append(sample)
    return dict(sorted(groups.items()))


# ------------------------------------------------------------------------------------- methods
def encoded(model: Segmenter, view: View, made_from: Sequence[str]) -> Encoded:
    """Encode a view and compute its maps."""
    image = torch.from_numpy(view.tile).permute(2, 0, 1)[None].float()
    with torch.inference_mode():
        features = model.encode(image)
        alone = replace(features, stride8=None, stride4=None)
        maps = {}
        for name in made_from:
            small = model.dense_maps(features if name == "both" else alone)
            side = view.tile.shape[0] // MAP_STRIDE
            maps[name] = F.interpolate(small, (side, side), mode="bilinear")[0].numpy()
    return Encoded(view=view, embedding=features.embedding[0].numpy(), maps=maps)


def from_maps(item: Encoded, name: str, **settings: Any) -> NDArray[np.int32]:
    """Objects that a dense head finds in the image part of a view, (h / 2, w / 2)."""
    height, width = item.view.labels.shape
    cells = slice(-(-height // MAP_STRIDE)), slice(-(-width // MAP_STRIDE))
    return maps_to_labels(*(map_[cells] for map_ in item.maps[name]), **settings)


def enlarged(labels: NDArray[np.int32], shape_yx: tuple[int, ...]) -> NDArray[np.int32]:
    """Bring labels of the maps to the pixels of the view."""
    full = labels.repeat(MAP_STRIDE, 0).repeat(MAP_STRIDE, 1)
    return full[: shape_yx[0], : shape_yx[1]]


def aucs(item: Encoded) -> tuple[float, float] | None:
    """Score the embedding, and the embedding less its mean over the view, by `prototype_auc`.

    What all cells share hides their differences from a cosine. None where there are not two
    objects and ground.
    """
    stride = item.view.tile.shape[0] // item.embedding.shape[1]
    rows, columns = (side // stride for side in item.view.labels.shape)
    labels = item.view.labels[: rows * stride, : columns * stride]
    if not labels.size:
        return None
    cells = cell_labels(labels, (rows, columns))
    if len(np.unique(cells[cells != 0])) < 2 or (cells != 0).all():
        return None
    embedding = item.embedding[:, :rows, :columns]
    centred = embedding - embedding.mean(axis=(1, 2), keepdims=True)
    return prototype_auc(embedding, cells), prototype_auc(centred, cells)


# ------------------------------------------------------------------------------------- scores
def domain_row(
    items: Sequence[Encoded], made_from: Sequence[str], found_too: bool
) -> dict[str, Any]:
    """Score the views of a domain: objects are pooled, prototypes are averaged over views."""
    counts = {name: InstanceCounts() for name in ("otsu", *made_from)}
    for item in items:
        labels, pixels = item.view.labels, item.view.pixels
        counts["otsu"] += f1_at(otsu_watershed(pixels, **OTSU), labels)  # type: ignore[arg-type]
        for name in made_from:
            counts[name] += f1_at(enlarged(from_maps(item, name), labels.shape), labels)
    values = [pair for item in items if (pair := aucs(item)) is not None]
    auc, centred = np.mean(values, axis=0).tolist() if values else (None, None)
    row: dict[str, Any] = {
        "domain": items[0].view.sample.domain,
        "images": len({item.view.sample.key for item in items}),
        "tiles": len(items),
        "objects": counts["otsu"].tp + counts["otsu"].fn,
        **{name: count.f1 for name, count in counts.items()},
        "auc": auc,
        "auc_centred": centred,
    }
    if found_too:
        row |= {f"found_{k}": c.tp / max(1, c.tp + c.fn) for k, c in counts.items()}
        row["note"] = "; ".join(sorted({PARTIAL[item.view.sample.source] for item in items}))
    else:
        row["f1_passes"] = row[made_from[0]] > row["otsu"]
        row["auc_passes"] = None if row["auc"] is None else row["auc"] >= LEAST_AUC
    return row


def mean_row(rows: Sequence[Mapping[str, Any]], made_from: Sequence[str]) -> dict[str, Any]:
    """Mean over domains, each of the same weight."""
    mean: dict[str, Any] = {"domain": "mean"}
    for name in ("images", "tiles", "objects"):
        mean[name] = sum(row[name] for row in rows)
    for name in ("otsu", *made_from, *AUCS):
        values = [row[name] for row in rows if row[name] is not None]
        mean[name] = float(np.mean(values)) if values else None
    mean["f1_passes"] = bool(
        mean[made_from[0]] >= LEAST_MEAN_F1 and all(row["f1_passes"] for row in rows)
    )
    mean["auc_passes"] = mean["auc"] is not None and mean["auc"] >= LEAST_AUC
    return mean


def scores(
    model: Segmenter,
    samples: Sequence[Sample],
    *,
    made_from: Sequence[str] = ("both", "embedding"),
    max_images: int = 8,
    max_tiles: int = 8,
) -> list[dict[str, Any]]:
    """Score a model on every domain and print the tables.

    Parameters
    ----------
    model : Segmenter
        With a dense head.
    samples : sequence of Sample
    made_from : sequence of {"both", "embedding"}
        What the maps are made from: the embedding, with or without the stem's finer maps. The
        first is the one that must pass.
    max_images, max_tiles : int
        In each domain.

    Returns
    -------
    list of dict
        A row for each domain with full annotation, their mean, then those without.
    """
    rows: list[dict[str, Any]] = []
    for (partial, _), group in by_domain(samples).items():
        seen = chosen_views(group, model.config.tile_px, max_images, max_tiles)
        items = [encoded(model, view, made_from) for view in seen]
        if items:
            rows.append({**domain_row(items, made_from, partial), "partial": partial})
    whole, rest = ([row for row in rows if row["partial"] is is_] for is_ in (False, True))
    columns = ("domain", "images", "tiles", "objects", "otsu", *made_from, *AUCS)
    if whole:
        whole.append(mean_row(whole, made_from))
        print("F1 at an IoU of 0.5, and AUC of a prototype on the embedding")
        print_table(whole, (*columns, "f1_passes", "auc_passes"))
    if rest:
        print("\nnot everything is annotated: F1 means little, found is the share of the annotated")
        print_table(rest, (*columns, *(f"found_{n}" for n in ("otsu", *made_from)), "note"))
    return whole + rest


# -------------------------------------------------------------------------------------- tuning
def tune(model: Segmenter, samples: Sequence[Sample], num_images: int) -> list[dict[str, Any]]:
    """Choose the settings of both methods for the best mean F1 of domains, and print them."""
    groups = [group for (partial, _), group in by_domain(samples).items() if not partial]
    each = -(-num_images // len(groups))
    items: dict[str, list[Encoded]] = {}
    for group in groups:
        for view in chosen_views(group, model.config.tile_px, each, each):
            items.setdefault(view.sample.domain, []).append(encoded(model, view, ("both",)))

    def mean_f1(count: Callable[[Encoded], InstanceCounts], step: int) -> float:
        pooled = [sum(map(count, group[::step]), InstanceCounts()) for group in items.values()]
        return float(np.mean([counts.f1 for counts in pooled]))

    def by_maps(settings: Settings) -> float:
        def count(item: Encoded) -> InstanceCounts:
            # A quarter of the pixels is enough to compare settings.
            truth = item.view.labels[::MAP_STRIDE, ::MAP_STRIDE]
            return f1_at(from_maps(item, "both", **settings), truth)

        return mean_f1(count, 1)

    def by_otsu(settings: Settings) -> float:
        def count(item: Encoded) -> InstanceCounts:
            return f1_at(otsu_watershed(item.view.pixels, **settings), item.view.labels)  # type: ignore[arg-type]

        # Ten times slower than the maps: every second view.
        return mean_f1(count, 2)

    rows: list[dict[str, Any]] = []
    searches = (("maps", MAP_GRID, by_maps), ("otsu", OTSU_GRID, by_otsu))
    for method, grid, score in searches:
        best = best_settings(grid, score)
        rows.append({"method": method, **best})
        print_table(rows[-1:], list(rows[-1]))
    return rows


def best_settings(
    grid: Mapping[str, Sequence[float]], score: Callable[[Settings], float]
) -> Settings:
    """Search a grid one setting at a time until nothing gets better.

    Parameters
    ----------
    grid : mapping of str to sequence of float
    score : callable
        To be made as large as possible.

    Returns
    -------
    dict
        The best settings, and their score as ``f1``.
    """
    known: dict[tuple[float, ...], float] = {}

    def scored(settings: Settings) -> float:
        key = tuple(settings.values())
        if key not in known:
            known[key] = score(settings)
        return known[key]

    best = {name: values[len(values) // 2] for name, values in grid.items()}
    before = -np.inf
    while scored(best) > before:
        before = scored(best)
        for name, values in grid.items():
            best = max(({**best, name: value} for value in values), key=scored)
    return {**best, "f1": scored(best)}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--data", nargs="+", required=True, help="validation shards")
    parser.add_argument(
        "--from",
        dest="made_from",
        nargs="+",
        choices=("both", "embedding"),
        default=["both", "embedding"],
        help="what the maps are made from; the first one must pass",
    )
    parser.add_argument("--max-images", type=int, help="per domain (8); in all with --tune (60)")
    parser.add_argument("--max-tiles", type=int, default=8, help="per domain")
    parser.add_argument("--tune", action="store_true", help="choose settings; give training shards")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "dense-head.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model, samples = load_model(args.model, device="cpu"), open_samples(args.data)
    if args.tune:
        tune(model, samples, args.max_images or 60)
        return
    rows = scores(
        model,
        samples,
        made_from=args.made_from,
        max_images=args.max_images or 8,
        max_tiles=args.max_tiles,
    )
    save(args.json, [{"model": args.model, **row} for row in rows])


if __name__ == "__main__":
    main()
