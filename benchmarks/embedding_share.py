"""How much of a model's masks comes from the image embedding: scores with it, and with zeros.

A mask decoder that also reads the stem's fine maps and the drawn prompts may learn to do without
the embedding that the encoder works for. This tells whether it did.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, print_table, save

from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.evaluate import evaluate, model_under_test

COLUMNS = ("model", "embedding", "iou1", "iou3", "iou5", "num_objects")


class WithoutEmbedding(Segmenter):
    """The same model, whose embedding is zero everywhere."""

    def encode(self, image: torch.Tensor) -> ImageFeatures:
        """Encode, and forget the embedding."""
        features = super().encode(image)
        return replace(features, embedding=torch.zeros_like(features.embedding))


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["hrsam-tiny", "hrsam++-tiny"])
    parser.add_argument("--data", nargs="+", required=True, help="validation shards")
    parser.add_argument("--max-objects", type=int, default=6, help="per domain")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "embedding-share.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    samples, rows = open_samples(args.data), list[dict[str, Any]]()
    for name in args.models:
        model = load_model(name, device="cpu")
        without = WithoutEmbedding(model.config).eval()
        without.load_state_dict(model.state_dict())
        for what, segmenter in (("as it is", model), ("zero", without)):
            found = evaluate(
                model_under_test(segmenter), samples, num_clicks=5, max_objects=args.max_objects
            )
            rows.append({"model": name, "embedding": what, **found["mean_of_domains"]})
            print_table(rows[-1:], COLUMNS)
    save(args.json, rows)


if __name__ == "__main__":
    main()
