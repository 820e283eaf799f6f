"""How models do on inputs longer than those they were trained on.

Every image is resized as a whole so that its longer side has the input size (area average down,
bilinear up), padded to a square with the mean colour, and encoded once; its objects are drawn with
simulated clicks, as in the papers' protocol, and the masks compared at the image's own size. Images
whose longer side is below ``--min-side`` are left out.

With ``--against MODEL`` the embeddings are compared instead with those of MODEL, a teacher that the
models were distilled from: their mean squared difference over the variance of the teacher's.

Variants of SAM's encoder follow a colon: ``sam-tiny:scale`` (BA-SAM's scaling factor),
``sam-tiny:bias0.5`` (distance penalty of that slope), ``sam-tiny:scale+bias0.5`` (both).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from measure import RESULTS, print_table, save
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.geometry import Box, Tile
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.modeling.configs import BASAMConfig, ViTConfig
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.storage.images.tile_source import ArrayImage
from napari_hrsam.training.datasets import Sample, open_samples
from napari_hrsam.training.evaluate import evaluate

COLUMNS = ("model", "input_px", "iou1", "iou3", "iou5", "noc80", "num_objects")


@dataclass(frozen=True)
class WholeImage:
    """A model that sees whole images at one input size, for `evaluate`."""

    name: str
    segmenter: Segmenter
    input_px: int

    @property
    def tile_px(self) -> int:
        """The input size."""
        return self.input_px

    def open_session(self, image: NDArray[np.uint8]) -> nullcontext[WholeImageSession]:
        """Encode an image."""
        return nullcontext(WholeImageSession(self.segmenter, image, self.input_px))


@dataclass(frozen=True)
class Whole:
    """A mask of the whole image."""

    mask: NDArray[np.bool_]

    @property
    def box(self) -> Box:
        """The image."""
        return Box(0, 0, *self.mask.shape)


class WholeImageSession:
    """Clicks on one image that was encoded as a whole."""

    def __init__(self, segmenter: Segmenter, image: NDArray[np.uint8], input_px: int) -> None:
        self.segmenter, self.input_px = segmenter, input_px
        self.shape = image.shape[:2]
        scale = input_px / max(self.shape)
        self.resized = tuple(max(1, int(scale * n + 0.5)) for n in self.shape)
        whole = ArrayImage(image).read(Tile(0, 0, 0, max(self.shape)))
        pixels = np.ascontiguousarray(whole[: self.shape[0], : self.shape[1]])
        kind = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
        small = Image.fromarray(pixels).resize(self.resized[::-1], kind)
        square = torch.tensor(segmenter.config.pixel_mean)[:, None, None].repeat(
            1, input_px, input_px
        )
        square[:, : self.resized[0], : self.resized[1]] = torch.from_numpy(
            np.asarray(small, np.float32)
        ).permute(2, 0, 1)
        with torch.inference_mode():
            self.features = segmenter.encode(square[None])
        self.cancel()

    def click(
        self, point_yx: tuple[float, float], positive: bool = True, level: int | None = None
    ) -> Whole:
        """Add a click to the current object."""
        del level  # The whole image is looked at in one size.
        factor = np.array(self.resized) / np.array(self.shape)
        y, x = (np.array(point_yx) + 0.5) * factor - 0.5
        self.points.append((float(x), float(y)))
        self.labels.append(int(positive))
        with torch.inference_mode():
            logits, _ = self.segmenter.decode(
                self.features,
                point_coords_xy=torch.tensor([self.points]),
                point_labels=torch.tensor([self.labels]),
                mask_logits=self.previous,
            )
            self.previous = logits
            square = F.interpolate(logits, (self.input_px,) * 2, mode="bilinear")
            cut = square[:, :, : self.resized[0], : self.resized[1]]
            whole = F.interpolate(cut, self.shape, mode="bilinear")
        return Whole((whole[0, 0] > 0).numpy())

    def cancel(self) -> None:
        """Forget the current object."""
        self.points: list[tuple[float, float]] = []
        self.labels: list[int] = []
        self.previous: torch.Tensor | None = None


def embedding_error(
    student: Segmenter, teacher: Segmenter, samples: Sequence[Sample], input_px: int
) -> float:
    """Mean over the images of the squared difference, over the teacher's variance there."""
    errors = []
    for sample in samples:
        one, other = (
            WholeImageSession(model, sample.image(), input_px) for model in (student, teacher)
        )
        height, width = (-(-n // 16) for n in one.resized)
        mine, theirs = (
            session.features.embedding[..., :height, :width] for session in (one, other)
        )
        errors.append(float(((mine - theirs) ** 2).mean() / theirs.var()))
    return float(np.mean(errors))


def load(name: str) -> Segmenter:
    """Load a model, or a weight file, with a variant of BA-SAM behind a colon."""
    source, _, variant = name.partition(":")
    segmenter = load_model(source, device="cpu")
    if not variant:
        return segmenter
    encoder = segmenter.config.image_encoder
    if not isinstance(encoder, ViTConfig):
        raise SystemExit(f"{variant!r} needs one of SAM's ViT encoders, got {source!r}")
    slope = float(variant.partition("bias")[2] or 0)
    ba = BASAMConfig(scale="scale" in variant, distance_slope=slope)
    changed = Segmenter(replace(segmenter.config, image_encoder=replace(encoder, ba=ba)))
    changed.load_state_dict(segmenter.state_dict())
    return changed.eval().requires_grad_(False)


def large_samples(data: Sequence[str], min_side: int) -> list[Sample]:
    """Open the images whose longer side has at least so many pixels."""
    return [s for s in open_samples(data) if max(s.image().shape[:2]) >= min_side]


def compare_embeddings(args: argparse.Namespace, samples: Sequence[Sample]) -> None:
    """Measure and print the errors of all models at all sizes."""
    teacher, rows = load(args.against), []
    for name in args.models:
        student = load(name)
        for size in args.sizes:
            error = embedding_error(student, teacher, samples, size)
            rows.append({"model": name, "input_px": size, "error": error, "images": len(samples)})
            print_table(rows[-1:], ("model", "input_px", "error", "images"))
    save(args.json, rows)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--models", nargs="+", default=["hrsam-tiny", "hrsam++-tiny"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[512, 1024, 1536, 2048])
    parser.add_argument("--data", nargs="+", required=True, help="validation shards")
    parser.add_argument("--min-side", type=int, default=1000)
    parser.add_argument("--max-objects", type=int, help="per domain")
    parser.add_argument("--clicks", type=int, default=10)
    parser.add_argument("--against", help="compare embeddings with this model's instead")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--json", type=Path, default=RESULTS / "input-length.json")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    samples = large_samples(args.data, args.min_side)
    if args.against:
        compare_embeddings(args, samples)
        return
    rows: list[dict[str, Any]] = []
    for name in args.models:
        segmenter = load(name)
        for size in args.sizes:
            found = evaluate(
                WholeImage(name, segmenter, size),
                samples,
                num_clicks=args.clicks,
                max_objects=args.max_objects,
            )
            rows.append({"model": name, "input_px": size, **found["overall"]})
            rows[-1]["domains"] = found["domains"]
            print_table(rows[-1:], COLUMNS)
    print_table(rows, COLUMNS)
    save(args.json, rows)


if __name__ == "__main__":
    main()
