"""Synthetic checkpoints with the names and shapes of the published ones."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from napari_hrsam.modeling.models import MODELS
from napari_hrsam.modeling.segmenter import Segmenter

# Ours to the authors', the longer first.
_THEIRS = {
    "prompt_encoder.pe_layer.": "neck.pos_embed_layer.",
    "prompt_encoder.point_embeddings.": "neck.point_embeds.",
    "prompt_encoder.": "neck.",
    "image_encoder.": "backbone.",
    "mask_decoder.": "decode_head.",
    "focus_refiner.": "refine_head.",
}

MANIFESTS = Path(__file__).parents[1] / "golden" / "manifests"


def manifest(name: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a published checkpoint."""
    listed = json.loads((MANIFESTS / f"{name}.json").read_text(encoding="utf-8"))
    assert len(listed["keys"]) == listed["num_keys"]
    return {key: tuple(shape) for key, shape in listed["keys"].items()}


def mark(index: int) -> float:
    """A value that tells which tensor it is in; exact in half precision."""
    assert index < 2048
    return index / 256


def synthetic(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Tensor number i is filled with ``mark(i)`` but for a zero at its start."""
    tensors = {}
    for index, (key, shape) in enumerate(shapes.items()):
        if key.endswith("num_batches_tracked"):
            tensors[key] = torch.tensor(index)
            continue
        tensors[key] = torch.full(shape, mark(index), dtype=torch.float16)
        tensors[key].view(-1)[0] = 0
    return tensors


def tiny_state() -> dict[str, Tensor]:
    """hrsam-tiny with random weights, under our names."""
    torch.manual_seed(5)
    return {k: v.clone() for k, v in Segmenter(MODELS["hrsam-tiny"]).state_dict().items()}


def mmengine_name(key: str) -> str:
    """Name of one of our tensors in the authors' files: the inverse of `layouts.our_name`."""
    ours = next((ours for ours in _THEIRS if key.startswith(ours)), None)
    return key if ours is None else _THEIRS[ours] + key.removeprefix(ours)


def as_mmengine(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors under the authors' names."""
    return {mmengine_name(key): value for key, value in state.items()}
