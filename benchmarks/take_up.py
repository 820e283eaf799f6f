"""Objects taken up again with an error, and corrected by one click: what of the answer counts.

Each validation object has a disc of 0.6 of its own radius cut off (``bite``) or added (``bump``) at
a random place of its outline; the click goes to the middle of the error. Compared: the mask as it
is (``before``), `Session.edit` as it is (``part``), the model's whole answer (``whole``), and the
part without the click inside the mask that the model is told besides (``no anchor``).
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from measure import RESULTS, print_table, save
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

import napari_hrsam as hrsam
from napari_hrsam.engine import object_predictor
from napari_hrsam.geometry import Box
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.clicks import next_click
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.metrics import mask_iou

DISC_SHARE = 0.6
WAYS = {
    "part": nullcontext,
    "whole": lambda: patch.object(
        object_predictor, "changed_at", lambda old, *_: np.ones(old.shape, bool)
    ),
    "no anchor": lambda: patch.object(object_predictor, "anchored", lambda prompts, *_: prompts),
}


def spoiled(truth: NDArray[np.bool_], rng: np.random.Generator) -> dict[str, NDArray[np.bool_]]:
    """Cut a disc off at a place of the outline, and add it."""
    radius = DISC_SHARE * np.sqrt(truth.sum() / np.pi)
    border = np.argwhere(truth & (distance_transform_edt(np.pad(truth, 1))[1:-1, 1:-1] < 2))
    y, x = border[rng.integers(len(border))]
    rows, columns = np.ogrid[: truth.shape[0], : truth.shape[1]]
    disc = (rows - y) ** 2 + (columns - x) ** 2 < radius**2
    return {"bite": truth & ~disc, "bump": truth | disc}


def rows_of(model: Segmenter, data: list[str], per_domain: int) -> list[dict[str, Any]]:
    """Correct objects of every domain; one row per kind of error."""
    ious: dict[str, list[dict[str, float]]] = defaultdict(list)
    taken: dict[str, int] = defaultdict(int)
    rng = np.random.default_rng(0)
    for sample in open_samples(data):
        if taken[sample.domain] >= per_domain:
            continue
        labels, image = sample.labels(), sample.image()
        for label in sample.objects[: per_domain - taken[sample.domain]]:
            truth = labels == label
            taken[sample.domain] += 1
            for kind, mask in spoiled(truth, rng).items():
                click = next_click(mask, truth, [], rng=np.random.default_rng(0))
                if click is None or not mask.any():
                    continue
                found = {"before": mask_iou(mask, truth)}
                with hrsam.Session(model, image, mask.astype(np.uint32)) as session:
                    for way, patched in WAYS.items():
                        with patched():
                            session.edit(1)
                            answer = session.click((click.y, click.x), click.positive)
                            after = answer.region.read(Box.of_shape(truth.shape))
                            found[way] = mask_iou(after, truth)
                            session.cancel()
                ious[kind].append(found)
    rows = [
        {
            "error": kind,
            "objects": len(found),
            **{name: float(np.mean([one[name] for one in found])) for name in found[0]},
        }
        for kind, found in sorted(ious.items())
    ]
    print_table(rows, list(rows[0]))
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--data", nargs="+", required=True, help="validation shards")
    parser.add_argument("--max-objects", type=int, default=20, help="per domain")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "take-up.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    model = hrsam.load_model(args.model, device="cpu")
    save(args.json, rows_of(model, args.data, args.max_objects))


if __name__ == "__main__":
    main()
