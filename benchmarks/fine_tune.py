"""Measure fine-tuning: 30 objects of a validation shard to learn from, NoC@85 on the others.

    python benchmarks/fine_tune.py --data val-phase_contrast.tar --model hrsam-tiny --minutes 8

As many objects of every image, chosen at random, are committed to labels, as a user would; the
others are never shown to the training, and its own held-out part is taken from the 30. The score is
that of `napari-hrsam evaluate` on others of the same images, before and after. Writes
``results/fine-tune.json``.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

import napari_hrsam as hrsam
from napari_hrsam.training.datasets import Sample, open_samples
from napari_hrsam.training.evaluate import evaluate, model_under_test

HERE = Path(__file__).parent
MIN_AREA_PX = 100
"""Smaller objects are neither learned nor clicked on."""


def main() -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", required=True, help="a validation shard")
    parser.add_argument("--model", default="hrsam-tiny", help="name or weight file")
    parser.add_argument("--objects", type=int, default=30)
    parser.add_argument("--scored", type=int, default=60, help="other objects that are clicked on")
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--steps", type=int, default=0)
    parser.add_argument("--whole", action="store_true")
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=HERE / "results" / "fine-tune.json")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    learned, others = deal(open_samples([args.data]), args.objects)
    config = hrsam.FineTuneConfig(
        minutes=args.minutes,
        steps=args.steps,
        whole=args.whole,
        learning_rate=args.learning_rate,
        num_scored=8,
    )
    with tempfile.TemporaryDirectory() as folder:
        os.environ["NAPARI_HRSAM_MODELS"] = folder
        before = score(args.model, others, args.scored)
        print(f"before: {before}", flush=True)
        tuned = hrsam.fine_tune(
            [committed(sample) for sample in learned],
            [sample.image() for sample in learned],
            args.model,
            save_as="tuned",
            config=config,
            device="cpu",
        )
        print(tuned, flush=True)
        after = score("tuned", others, args.scored)
    found = {
        "data": Path(args.data).name,
        "model": Path(args.model).stem,
        "objects": sum(len(sample.objects) for sample in learned),
        "learned": tuned.num_objects,
        "steps": tuned.num_steps,
        "seconds": tuned.seconds,
        "threads": args.threads,
        "whole": args.whole,
        "before": before,
        "after": after,
        "noc85_change": after["noc85"] / before["noc85"] - 1,
    }
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))


def deal(samples: list[Sample], num: int) -> tuple[list[Sample], list[Sample]]:
    """Give objects of every image to the training, and all others to the score."""
    rng = np.random.default_rng(0)
    learned, others = [], []
    for place, sample in enumerate(samples):
        ids, areas = np.unique(sample.labels(), return_counts=True)
        ids = rng.permutation(ids[(ids > 0) & (areas >= MIN_AREA_PX)])
        own = num // len(samples) + (place < num % len(samples))
        learned.append(replace(sample, noc_objects=tuple(map(int, ids[:own]))))
        others.append(replace(sample, noc_objects=tuple(map(int, ids[own:]))))
    return learned, others


def committed(sample: Sample) -> hrsam.ArrayLabels:
    """Return labels with the objects of a sample, and nothing else."""
    labels = sample.labels()
    return hrsam.ArrayLabels(np.where(np.isin(labels, sample.objects), labels, 0))


def score(model: str, samples: list[Sample], num: int) -> dict[str, Any]:
    """Click on objects that were not learned."""
    loaded = hrsam.load_model(model, device="cpu")
    found = evaluate(model_under_test(loaded), samples, max_objects=num)["overall"]
    return {name: found[name] for name in ("noc85", "noc90", "iou1", "num_objects")}


if __name__ == "__main__":
    main()
