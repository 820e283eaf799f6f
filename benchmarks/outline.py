"""How much nearer the outline refiner brings coarse outlines to the true ones.

Two kinds of coarse masks, at 1/2 and 1/4 of the size, of the same objects: true masks with made-up
errors, and masks that a model draws on the coarse image after a few clicks. Scored on full size:
interpolated as they are, and refined.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measure import RESULTS, save
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from napari_hrsam.engine.session import Session
from napari_hrsam.geometry import Box
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.outline_refiner import OutlineRefiner, load_outline_refiner
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.outline_crops import FACTORS
from napari_hrsam.training.outline_scores import OutlineCase, outline_cases, score_refiner

SCORES = ("band", "iou", "distance_px")
NUM_CLICKS = 4


def clicked(segmenter: Segmenter, case: OutlineCase, factor: int) -> NDArray[np.float32]:
    """Draw the object on the coarse image with a few clicks; interpolated as sessions do."""
    coarse = case.image.reshape(
        case.mask.shape[0] // factor, factor, case.mask.shape[1] // factor, factor, 3
    )
    shape = coarse.shape[0], coarse.shape[2]
    image = np.rint(coarse.mean((1, 3))).astype(np.uint8)
    truth = case.mask.reshape(shape[0], factor, shape[1], factor).mean((1, 3)) > 0.5
    drawn = np.zeros(shape, np.bool_)
    with Session(segmenter, image) as session:
        for _ in range(NUM_CLICKS):
            depth = distance_transform_edt(np.pad(drawn != truth, 1))[1:-1, 1:-1]
            place = np.unravel_index(np.argmax(depth), shape)
            if depth[place] == 0:
                break
            point = (float(place[0]), float(place[1]))
            prediction = session.click(point, positive=bool(truth[place]))
            drawn = prediction.region.read(Box(0, 0, *shape))
        level = 1 - factor.bit_length()
        return prediction.multiscale.sample(level, Box(0, 0, *case.mask.shape)).copy()


def seconds_per_tile(refiner: OutlineRefiner) -> float:
    """CPU seconds for a tile of 512 x 512, the least of five."""
    image, prior = torch.zeros((1, 3, 512, 512)), torch.zeros((1, 1, 512, 512))
    turns = []
    with torch.inference_mode():
        for _ in range(6):
            start = time.process_time()
            refiner(image, prior)
            turns.append(time.process_time() - start)
    return min(turns[1:])


def rows_of(scores: dict[str, dict[str, float]], **told: Any) -> list[dict[str, Any]]:
    """Make and print rows of the table."""
    rows = []
    for domain, row in scores.items():
        rows.append({**told, "domain": domain, **row})
        pairs = "  ".join(
            f"{name} {row[f'prior_{name}']:.3f} -> {row[f'refined_{name}']:.3f}" for name in SCORES
        )
        print(f"{told['prior']:8}  1/{told['factor']}  {domain:20} {row['objects']:4.0f}  {pairs}")
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, help="validation shards")
    parser.add_argument("--weights", type=Path, help="of a refiner (default: the shipped one)")
    parser.add_argument("--model", default="hrsam-tiny", help="that draws the clicked masks")
    parser.add_argument("--per-domain", type=int, default=12, help="objects at most")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "outline.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    refiner = load_outline_refiner(path=args.weights)
    segmenter = load_model(args.model, device="cpu")
    cases = list(outline_cases(open_samples(args.data), per_domain=args.per_domain))
    rows: list[dict[str, Any]] = []
    for factor in FACTORS:
        rows += rows_of(score_refiner(refiner, cases, factor=factor), prior="errors", factor=factor)
    for factor in FACTORS:
        scores = score_refiner(
            refiner,
            cases,
            factor=factor,
            prior_of=lambda case, by=factor: clicked(segmenter, case, by),
        )
        rows += rows_of(scores, prior="clicked", factor=factor)
    rows.append({"prior": "none", "cpu_s_per_512px_tile": seconds_per_tile(refiner)})
    print(f"a tile of 512 x 512 takes {rows[-1]['cpu_s_per_512px_tile']:.3f} s of CPU")
    save(args.json, rows)


if __name__ == "__main__":
    main()
