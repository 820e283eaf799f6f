"""How a scribble best reaches the model: clicks along it or where it is contradicted, or drawn.

On validation objects, a stroke along the middle 70 % of the medial line, as a first prompt, against
one click at the deepest place. Both are enforced in the mask, as a session does it. ``scribble`` is
`Session.scribble`: clicks one after the other where the mask contradicts the stroke. ``N clicks``
are told at once, evenly spread; ``+ drawn`` gives the stroke as mask prompt, too.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import RESULTS, print_table, save
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, maximum_filter
from skimage.graph import MCP_Geometric
from skimage.morphology import skeletonize

import napari_hrsam as hrsam
from napari_hrsam.engine import drawing
from napari_hrsam.engine.object_predictor import ObjectPredictor
from napari_hrsam.geometry import Box
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.prompts import Prompts
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.evaluate import view_level
from napari_hrsam.training.metrics import mask_iou

NUMS_CLICKS = (1, 2, 3, 5, 8)
STROKE_SHARE = 0.7
DRAWN_LOGIT = 8.0


def deepest(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the pixel that lies furthest inside."""
    depth = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(np.argmax(depth), mask.shape)
    return int(y), int(x)


def medial_line(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the middle of the longest way along the skeleton, from its deepest part on: (N, 2)."""
    line = skeletonize(mask)
    if not line.any():
        return np.array([deepest(mask)], float)
    costs = np.where(line, 1.0, np.inf)
    depth = np.where(line, distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1], -1)
    end = np.unravel_index(np.argmax(depth), mask.shape)
    # Furthest from anywhere is an end; furthest from that the other one.
    for _ in range(2):
        paths = MCP_Geometric(costs)
        length, _ = paths.find_costs([end])
        end = np.unravel_index(np.argmax(np.where(np.isfinite(length), length, -1)), mask.shape)
    way = np.array(paths.traceback(end), float)
    cut = int(len(way) * (1 - STROKE_SHARE) / 2)
    return way[cut : len(way) - cut]


@contextmanager
def told_as(num_clicks: int, *, is_drawn: bool) -> Iterator[None]:
    """Let the model be told so many clicks of a scribble, and the stroke as a mask prompt."""
    as_clicks, predict = Prompts.as_clicks, ObjectPredictor.predict_tile

    def told(self: Prompts) -> Prompts:
        scribbles = tuple(
            replace(one, told_yx=tuple(one.spread(num_clicks).tolist())) for one in self.scribbles
        )
        return as_clicks(replace(self, scribbles=scribbles))

    def predicted(self: ObjectPredictor, tile: Any, prompts: Any, prior: Any = None, *rest: Any):  # type: ignore[no-untyped-def]
        if prior is None:
            prior = np.zeros((tile.size_px // 4,) * 2, np.float32)
            places = np.floor(tile.to_tile(prompts.scribbles[0].along()) / 4).astype(int)
            places = places[((places >= 0) & (places < len(prior))).all(axis=1)]
            prior[tuple(places.T)] = DRAWN_LOGIT
            prior = maximum_filter(prior, 3)
        return predict(self, tile, prompts, prior, *rest)

    with ExitStack() as patches:
        patches.enter_context(patch.object(drawing, "MAX_TOLD", 1))
        patches.enter_context(patch.object(Prompts, "as_clicks", told))
        if is_drawn:
            patches.enter_context(patch.object(ObjectPredictor, "predict_tile", predicted))
        yield


def ious_of(session: hrsam.Session, mask: NDArray[np.bool_], tile_px: int) -> dict[str, float]:
    """Score every way of telling one object."""
    level = view_level(Box.around(mask), session.image.shape_yx, tile_px)
    ious = {}

    def take(name: str, found: hrsam.Prediction) -> None:
        ious[name] = mask_iou(found.region.read(Box.of_shape(mask.shape)), mask)
        session.cancel()

    take("click", session.click(deepest(mask), level=level))
    stroke = medial_line(mask)
    take("scribble", session.scribble(stroke, level=level))
    for num in NUMS_CLICKS:
        with told_as(num, is_drawn=False):
            take(f"{num} clicks", session.scribble(stroke, level=level))
    for num in (1, 5):
        with told_as(num, is_drawn=True):
            take(f"{num} + drawn", session.scribble(stroke, level=level))
    return ious


def rows_of(model: Segmenter, data: list[str], per_domain: int) -> list[dict[str, Any]]:
    """Go through validation objects; one row per domain, and their mean."""
    found: dict[str, list[dict[str, float]]] = defaultdict(list)
    for sample in open_samples(data):
        if len(found[sample.domain]) >= per_domain:
            continue
        labels = sample.labels()
        with hrsam.Session(model, sample.image()) as session:
            for label in sample.objects[: per_domain - len(found[sample.domain])]:
                found[sample.domain].append(ious_of(session, labels == label, model.config.tile_px))
    rows: list[dict[str, Any]] = []
    for domain, ious in sorted(found.items()):
        means = {name: float(np.mean([one[name] for one in ious])) for name in ious[0]}
        rows.append({"domain": domain, "objects": len(ious), **means})
    names = list(rows[0])[2:]
    mean = {name: float(np.mean([row[name] for row in rows])) for name in names}
    rows.append(
        {"domain": "mean of domains", "objects": sum(row["objects"] for row in rows), **mean}
    )
    print_table(rows, list(rows[0]))
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--data", nargs="+", required=True, help="validation shards")
    parser.add_argument("--max-objects", type=int, default=20, help="per domain")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "scribble.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = hrsam.load_model(args.model, device="cpu")
    save(args.json, rows_of(model, args.data, args.max_objects))


if __name__ == "__main__":
    main()
