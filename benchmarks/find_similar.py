"""Proposals ranked after five decisions of each kind, beside size and mean colour alone.

Proposals of a domain's views count as those of one image; a good one has an IoU of 0.5 with an
object. Told is the share of good ones among the best ranked that hold half of all good ones, over
ten draws of the decisions. Views are those of `dense_head.py`; with lower thresholds than by
default, so that there are wrong proposals to reject.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from dense_head import PARTIAL, View, by_domain, chosen_views
from measure import RESULTS, print_table, save
from numpy.typing import NDArray

from napari_hrsam.engine.everything import ranking
from napari_hrsam.engine.everything.field import Field
from napari_hrsam.engine.everything.found import Found, find_objects, joined
from napari_hrsam.engine.everything.growing import Rules
from napari_hrsam.engine.everything.proposals import Proposals
from napari_hrsam.engine.everything.ranking import rank
from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.geometry import Box
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.training.datasets import open_samples

DECISIONS, DRAWS, LEAST = 5, 10, 12
RECALL = 0.5
RULES = Rules(
    foreground_above=0.35, centre_below=0.6, boundary_above=0.35, smallest=10, largest=250
)
KINDS = ("score", "size_and_colour", "rank")


def found_in(view: View, predictor: Predictor) -> tuple[Found, NDArray[np.bool_]]:
    """Find objects in a view, and tell which are good."""
    field = Field(open_image(np.ascontiguousarray(view.pixels)), predictor, 0)
    whole = Box.of_shape(field.shape)
    found = find_objects(field, whole, RULES)
    painted = found.paint(whole, np.arange(1, len(found) + 1))
    truth = np.zeros(field.shape, np.int64)
    truth[:] = view.labels[::2, ::2]
    pairs = np.bincount(
        (painted.astype(np.int64) * (truth.max() + 1) + truth).ravel(),
        minlength=(len(found) + 1) * (truth.max() + 1),
    ).reshape(len(found) + 1, -1)
    union = pairs.sum(1, keepdims=True) + pairs.sum(0) - pairs
    iou = (pairs / np.maximum(union, 1))[1:, 1:]
    return found, (iou.max(axis=1) >= 0.5 if iou.shape[1] else np.zeros(len(found), bool))


def precision(likeness: NDArray[Any], good: NDArray[np.bool_]) -> float:
    """Share of good ones among the best that hold `RECALL` of them."""
    hits = np.cumsum(good[np.argsort(-likeness, kind="stable")])
    last = int(np.argmax(hits >= RECALL * good.sum()))
    return float(hits[last] / (last + 1))


def size_and_colour(proposals: Proposals) -> NDArray[np.float64]:
    """Return what the comparison knows of each."""
    return np.column_stack([np.log(proposals.areas_px), proposals.mean_rgb.mean(axis=1)])


def of_domain(proposals: Proposals, good: NDArray[np.bool_]) -> dict[str, float]:
    """Average over the draws."""
    values: dict[str, list[float]] = {kind: [] for kind in KINDS}
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        accepted = rng.choice(np.flatnonzero(good), DECISIONS, replace=False)
        rejected = rng.choice(np.flatnonzero(~good), DECISIONS, replace=False)
        rest = np.ones(len(good), bool)
        rest[accepted] = rest[rejected] = False
        ranked = {"score": proposals.scores, "rank": rank(proposals, accepted, rejected)}
        with patch.object(ranking, "_table", lambda some: _standard(size_and_colour(some))):
            ranked["size_and_colour"] = rank(proposals, accepted, rejected)
        for kind in KINDS:
            values[kind].append(precision(ranked[kind][rest], good[rest]))
    return {kind: float(np.mean(values[kind])) for kind in KINDS}


def _standard(table: NDArray[np.float64]) -> NDArray[np.float64]:
    return (table - table.mean(axis=0)) / np.maximum(table.std(axis=0), 1e-6)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--data", nargs="+", required=True, help="validation shards")
    parser.add_argument("--max-tiles", type=int, default=6, help="per domain")
    parser.add_argument("--json", type=Path, default=RESULTS / "find-similar.json")
    args = parser.parse_args()
    torch.set_num_threads(1)
    predictor = Predictor(load_model(args.model, device="cpu"))
    samples = [s for s in open_samples(args.data) if s.source not in PARTIAL]
    table: list[dict[str, Any]] = []
    for (_, domain), some in by_domain(samples).items():
        views = chosen_views(some, predictor.tile_px, args.max_tiles, args.max_tiles)
        pairs = [found_in(view, predictor) for view in views]
        found = joined([one for one, _ in pairs])
        # `joined` sorts: the good ones go along.
        firsts = np.concatenate([one.first for one, _ in pairs])
        good = np.concatenate([is_good for _, is_good in pairs])
        good = good[np.lexsort((firsts[:, 1], firsts[:, 0]))]
        row = {"domain": domain, "proposals": len(good), "good": int(good.sum())}
        if min(good.sum(), (~good).sum()) >= LEAST:
            row |= of_domain(Proposals(found, (10**6, 10**6), 0), good)
        table.append(row)
    judged = [row for row in table if "rank" in row]
    mean = {kind: float(np.mean([row[kind] for row in judged])) for kind in KINDS}
    table.append({"domain": "mean", "proposals": len(judged), "good": len(judged), **mean})
    print_table(table, ["domain", "proposals", "good", *KINDS])
    save(args.json, [{"model": args.model, **row} for row in table])


if __name__ == "__main__":
    main()
