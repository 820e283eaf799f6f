"""Classes of pixels from a few strokes: what is learned from, and how long a stroke takes.

In each view three objects and three places of background are stroked, 45 steps each; scored is the
foreground of everything that was not stroked. Views are those of `dense_head.py`.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dense_head import PARTIAL, View, by_domain, chosen_views
from measure import RESULTS, print_table, save
from numpy.typing import NDArray

from napari_hrsam.engine.everything.pixel_classes import BANK_FEATURES, fit_pixel_classes
from napari_hrsam.engine.everything.strokes import StrokedField
from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.geometry import Box
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.configs import DENSE_FEATURES
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.training.datasets import open_samples

STROKES, STEPS, SEEDS, LEAST_CELLS = 3, 45, 2, 30

_HEAD = slice(0, 3 + DENSE_FEATURES)
_BANK = slice(-BANK_FEATURES, None)
KINDS = {
    "bank": (_BANK,),
    "bank_stem": (slice(3 + DENSE_FEATURES, None),),
    "head": (_HEAD,),
    "all": (slice(None),),
}
"""What is learned from: the filter bank, and with it the stem's maps; the dense head's maps and
features; all of it, as `learn_classes` does."""


def stroke(mask: NDArray[np.bool_], rng: np.random.Generator) -> list[tuple[int, int]]:
    """Walk inside a mask, about straight, turning where it ends."""
    places = np.argwhere(mask)
    here, heading = places[rng.integers(len(places))].astype(float), rng.uniform(0, 2 * np.pi)
    cells = []
    for _ in range(STEPS):
        there = here + np.array([np.sin(heading), np.cos(heading)])
        y, x = np.rint(there).astype(int).tolist()
        if 0 <= y < mask.shape[0] and 0 <= x < mask.shape[1] and mask[y, x]:
            here = there
            cells.append((y, x))
        else:
            heading += rng.uniform(1, 3)
        heading += rng.normal(0, 0.2)
    return cells


def stroked(labels: NDArray[np.int32], seed: int) -> NDArray[np.int8] | None:
    """Return 1 where objects are stroked, 0 where the background is, else -1."""
    rng = np.random.default_rng(seed)
    ids = np.flatnonzero(np.bincount(labels.ravel())[1:] > LEAST_CELLS) + 1
    if len(ids) < STROKES or not (labels == 0).any():
        return None
    classes = np.full(labels.shape, -1, np.int8)
    chosen = rng.choice(ids, STROKES, replace=False)
    for value, masks in ((1, [labels == i for i in chosen]), (0, [labels == 0] * STROKES)):
        for mask in masks:
            for y, x in stroke(mask, rng):
                classes[y, x] = value
    return classes


def auc(scores: NDArray[Any], truth: NDArray[np.bool_]) -> float:
    """Probability that a cell of an object scores higher than one of the background."""
    ranks = np.empty(len(scores))
    ranks[np.argsort(scores, kind="stable")] = np.arange(1, len(scores) + 1)
    num = int(truth.sum())
    return float((ranks[truth].sum() - num * (num + 1) / 2) / (num * (len(truth) - num)))


def of_view(view: View, predictor: Predictor) -> list[dict[str, Any]]:
    """Score one view for every kind of features."""
    labels = view.labels[::2, ::2]
    image = open_image(np.ascontiguousarray(view.pixels))
    field = StrokedField(image, predictor, 0)
    started = time.process_time()
    features = field.features(Box.of_shape(field.shape))
    looked_s = time.process_time() - started
    rows = []
    for seed in range(SEEDS):
        classes = stroked(labels, seed)
        if classes is None:
            continue
        there = classes >= 0
        for name, parts in KINDS.items():
            some = np.concatenate([features[part] for part in parts])
            started = time.process_time()
            found = fit_pixel_classes(some[:, there], classes[there], ["ground", "object"])
            scores = found.probabilities(some)[1]
            stroke_s = time.process_time() - started
            rest, truth = scores[~there], (labels > 0)[~there]
            both = (rest > 0.5) & truth
            rows.append(
                {
                    "kind": name,
                    "iou": both.sum() / max(1, ((rest > 0.5) | truth).sum()),
                    "auc": auc(rest, truth),
                    "looked_s": looked_s,
                    "stroke_s": stroke_s,
                    "mpx": 4 * labels.size / 1e6,
                }
            )
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--data", nargs="+", required=True, help="validation shards")
    parser.add_argument("--max-tiles", type=int, default=3, help="per domain")
    parser.add_argument("--json", type=Path, default=RESULTS / "strokes.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    predictor = Predictor(load_model(args.model, device="cpu"))
    tile_px = predictor.tile_px
    samples = [s for s in open_samples(args.data) if s.source not in PARTIAL]
    table = []
    for (_, domain), some in by_domain(samples).items():
        views = chosen_views(some, tile_px, args.max_tiles, args.max_tiles)
        rows = [row for view in views for row in of_view(view, predictor)]
        if rows:
            table.append(
                {"domain": domain, "views": len(rows) // len(KINDS) // SEEDS, **means(rows)}
            )
    numbers = [key for key in table[0] if key not in ("domain", "views")]
    table.append(
        {
            "domain": "mean",
            "views": sum(row["views"] for row in table),
            **{key: float(np.mean([row[key] for row in table])) for key in numbers},
        }
    )
    print_table(table, list(table[0]))
    save(args.json, [{"model": args.model, **row} for row in table])


def means(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Average over the views of a domain."""
    out: dict[str, float] = {}
    for name in KINDS:
        some = [row for row in rows if row["kind"] == name]
        for key in ("iou", "auc"):
            out[f"{key}_{name}"] = float(np.mean([row[key] for row in some]))
    last = [row for row in rows if row["kind"] == "all"]
    out["looked_s"] = float(np.median([row["looked_s"] / row["mpx"] for row in last]))
    out["stroke_ms"] = 1e3 * float(np.median([row["stroke_s"] / row["mpx"] for row in last]))
    return out


if __name__ == "__main__":
    main()
