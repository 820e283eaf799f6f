"""Pack shards into one small file for training on a GPU machine.

    python scripts/pack_for_gpu.py --train data/train-000.tar data/train-001.tar \
        --val data/val-grains.tar data/val-trees2.tar --exclude-source wbc1 \
        --exclude-source wbc2 --max-mib 40 --out pack.zip

The quality of the images is the best that keeps the file within the limit. Label maps are kept
exactly, and no image is made smaller, so that no small object is lost. Excluded sources are left
out of training only: what a model has not learnt from may still test it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.training.batches import open_scene
from napari_hrsam.training.datasets import Sample, open_samples
from napari_hrsam.training.pack import (
    PackedSample,
    encode_image,
    encode_sample,
    write_pack,
)

_BEST_QUALITY, _WORST_QUALITY = 90, 20
_VAL_QUALITY = 80
"""Validation images are few, and are kept closer to the originals that they stand for."""
_MIB = 2**20
_EVERY = 8
"""The size at a quality is estimated from every eighth image."""


def choose_val(
    samples: Sequence[Sample], *, max_images: int, max_objects: int
) -> list[tuple[Sample, tuple[int, ...]]]:
    """Choose a few images of each domain, evenly over the list, and a few objects in each.

    Parameters
    ----------
    samples : sequence of Sample
    max_images, max_objects : int
        Of a domain.

    Returns
    -------
    list of (Sample, tuple of int)
        The images, and the ids of their objects to evaluate.
    """
    domains: dict[str, list[Sample]] = {}
    for sample in samples:
        domains.setdefault(sample.domain, []).append(sample)
    chosen = []
    for group in domains.values():
        num = min(max_images, len(group))
        picks = [group[i * len(group) // num] for i in range(num)]
        left = max_objects
        for i, sample in enumerate(picks):
            ids = sample.objects[: -(-left // (num - i))]
            left -= len(ids)
            chosen.append((sample, ids))
    return chosen


def load(sample: Sample, split: str, ids: tuple[int, ...] = ()) -> PackedSample:
    """Decode a sample, its brightness stretched as training does."""
    scene = open_scene(sample)
    pixels = scene.pixels
    if pixels.ndim == 3 and (pixels == pixels[..., :1]).all():
        pixels = np.ascontiguousarray(pixels[..., 0])
    return PackedSample(
        key=sample.key,
        domain=sample.domain,
        source=sample.source,
        licence=sample.licence,
        split=split,
        pixels=pixels,
        labels=scene.labels,
        second_labels=sample.second_labels(),
        noc_objects=ids,
    )


def best_quality(images: Sequence[NDArray[np.uint8]], budget_bytes: float) -> int:
    """Find the best quality at which the images fit a budget, by bisection."""
    low, high = _WORST_QUALITY, _BEST_QUALITY
    while low < high:
        middle = (low + high + 1) // 2
        size = sum(len(encode_image(image, quality=middle)) for image in images)
        low, high = (middle, high) if size <= budget_bytes else (low, middle - 1)
    return low


def pack(
    train: Sequence[Sample],
    val: Sequence[tuple[Sample, tuple[int, ...]]],
    *,
    max_bytes: int,
    out: Path,
) -> int:
    """Write the pack and return the quality of the training images."""
    fixed = [encode_sample(load(sample, "val", ids), quality=_VAL_QUALITY) for sample, ids in val]
    probe = [load(sample, "train").pixels for sample in train[::_EVERY]]
    # All images take about as many times the bytes of the probe; the first pass measures it.
    ratio, room, tried = len(train) / max(1, len(probe)), 0.85 * max_bytes, 0
    while True:
        quality = best_quality(probe, room / ratio)
        if tried and quality >= tried:
            quality = tried - 1
        encoded = [encode_sample(load(sample, "train"), quality=quality) for sample in train]
        size = write_pack(out, [*encoded, *fixed])
        sys.stdout.write(f"quality {quality}: {size / _MIB:.2f} MiB\n")
        images = sum(len(sample.parts["image"]) for sample in encoded)
        ratio = images / max(1, sum(len(encode_image(p, quality=quality)) for p in probe))
        room = 0.998 * (max_bytes - (size - images))
        better = best_quality(probe, room / ratio)
        if size <= max_bytes and (better <= quality or quality + 1 == tried):
            return quality
        if size > max_bytes:
            if quality <= _WORST_QUALITY:
                out.unlink()
                sys.exit(f"even at quality {quality} the pack is over {max_bytes / _MIB} MiB")
            tried = quality


def main() -> None:
    """Parse the command line and write the pack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--train", type=Path, nargs="+", required=True, metavar="SHARD")
    parser.add_argument("--val", type=Path, nargs="*", default=[], metavar="SHARD")
    parser.add_argument("--exclude-source", action="append", default=[], metavar="NAME")
    parser.add_argument("--max-mib", type=float, default=40)
    parser.add_argument("--val-images", type=int, default=6, help="of a domain")
    parser.add_argument("--val-objects", type=int, default=12, help="of a domain")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    train = open_samples(args.train, exclude_sources=args.exclude_source)
    val = choose_val(
        open_samples(args.val) if args.val else [],
        max_images=args.val_images,
        max_objects=args.val_objects,
    )
    quality = pack(train, val, max_bytes=int(args.max_mib * _MIB), out=args.out)
    summary = {
        "mib": round(args.out.stat().st_size / _MIB, 2),
        "quality": quality,
        "train_images": Counter(s.domain for s in train),
        "val_images": Counter(s.domain for s, _ in val),
        "val_objects": sum(len(ids) for _, ids in val),
    }
    sys.stdout.write(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
