"""What a model's masks come from: scores by size of the object with parts taken away.

The parts: the image embedding (zeros in its place), the fine correction (the coarse mask alone,
which the embedding and the prompts draw), the encoder's blocks (passed by, so that the stem's own
map is all that the embedding is made of). A part that costs nothing when it is missing brings
nothing.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, print_table, save
from torch import Tensor, nn

from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.hrsam import HRSAMEncoder
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.device_crops import UNCHANGED, DeviceCrops
from napari_hrsam.training.tile_scores import (
    Ablation,
    objects_to_score,
    summarize_scores,
    tile_scores,
)
from napari_hrsam.training.validation import packed_samples

SPANS = ((0.125, 0.25), (0.3, 0.5), (0.5, 0.9))
COLUMNS = ("model", "taken away", "span", "iou1", "iou3", "iou5", "drops", "objects")


class _PassedBy(nn.Module):
    """A block that leaves its tokens as they are."""

    def forward(self, x: Tensor, *_: object) -> Tensor:
        """Return the tokens."""
        return x


def without_blocks(model: Segmenter) -> Segmenter:
    """Make a copy whose encoder's blocks and scans do nothing."""
    other = copy.deepcopy(model)
    assert isinstance(other.image_encoder, HRSAMEncoder)
    for name, blocks in other.image_encoder.named_children():
        if name == "blocks" or name.endswith("mamba_blocks"):
            passed = nn.ModuleList(_PassedBy() for _ in blocks.children())
            setattr(other.image_encoder, name, passed)
    return other


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["hrsam-tiny"])
    parser.add_argument("--data", nargs="+", required=True, help="validation shards")
    parser.add_argument("--max-objects", type=int, default=6, help="per domain")
    parser.add_argument("--max-images", type=int, default=6, help="per domain")
    parser.add_argument("--tile-px", type=int, default=512)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "embedding-share.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    samples = packed_samples(open_samples(args.data), max_images=args.max_images)
    crops = DeviceCrops(samples, "cpu", augmentation=UNCHANGED, workers=1)
    objects = objects_to_score(crops, samples, args.max_objects)
    rows: list[dict[str, Any]] = []
    for name in args.models:
        model = load_model(name, device="cpu")
        variants: list[tuple[str, Segmenter, Ablation]] = [
            ("nothing", model, "none"),
            ("embedding", model, "embedding"),
            ("fine correction", model, "fine"),
        ]
        if isinstance(model.image_encoder, HRSAMEncoder):
            variants.append(("blocks", without_blocks(model), "none"))
        for what, segmenter, ablation in variants:
            for span in SPANS:
                with torch.inference_mode():
                    found = tile_scores(
                        segmenter,
                        crops,
                        objects,
                        span=span,
                        tile_px=args.tile_px,
                        ablation=ablation,
                        at_once=4,
                    )
                score = summarize_scores(*found, crops.object_domain[objects], crops.domains)
                rows.append(
                    {"model": name, "taken away": what, "span": f"{span[0]}-{span[1]}", **score}
                )
                print_table(rows[-1:], COLUMNS)
    save(args.json, rows)


if __name__ == "__main__":
    main()
