"""Score a model on tiles that show objects at given sizes, many objects at once on its device.

This is the validation score of a training run: no session, no levels, no correction of clicks,
half the tile's resolution. `evaluate` measures what a user gets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter
from napari_hrsam.training.click_rounds import LOSS_STRIDE, per_object, pooled
from napari_hrsam.training.device_clicks import next_clicks
from napari_hrsam.training.device_crops import DeviceCrops
from napari_hrsam.training.losses import batch_iou
from napari_hrsam.training.pack import PackedSample

Ablation = Literal["none", "embedding", "fine"]
"""What is taken away: nothing, the embedding (zeros in its place), or the fine correction."""

SPANS: tuple[tuple[float, float], ...] = ((0.06, 0.125), (0.125, 0.25), (0.3, 0.5), (0.5, 0.9))
"""Shares of the tile's side that the object's longer side takes."""

_MIN_AREA = 4


def tile_scores(
    model: Segmenter,
    crops: DeviceCrops,
    objects: Tensor,
    *,
    span: tuple[float, float],
    tile_px: int = 512,
    num_clicks: int = 5,
    ablation: Ablation = "none",
    at_once: int = 16,
    seed: int = 1,
) -> tuple[Tensor, Tensor]:
    """Click on objects that span a share of a tile.

    Parameters
    ----------
    model : Segmenter
        On the device of the crops.
    crops : DeviceCrops
        Without augmentation.
    objects : (P,) int64
        Rows of its tables of objects.
    span : (float, float)
        Smallest and largest share of the tile's side.
    tile_px, num_clicks : int
    ablation : {"none", "embedding", "fine"}
    at_once : int
        Tiles in one batch.
    seed : int
        Of place, size and clicks, the same for every model.

    Returns
    -------
    ious : (P, num_clicks) float32
    valid : (P,) bool
        False for objects too small to be shown at the size, and for those that cover fewer than 4
        cells; their rows mean nothing.
    """
    device = crops.device
    generator = torch.Generator(device).manual_seed(seed)
    ious, valid = [], []
    for chosen in objects.split(at_once):
        to_source, spans = crops.place(generator, crops.boxes[chosen], tile_px, span)
        sample = crops.object_sample[chosen]
        images, labels = crops.images.cut(sample, crops.object_layer[chosen], to_source, tile_px)
        gt = pooled(labels == crops.object_ids[chosen, None, None], LOSS_STRIDE)
        features = model.encode(images)
        if ablation == "embedding":
            features = replace(features, embedding=torch.zeros_like(features.embedding))
        ious.append(_curves(model, features, gt, generator, num_clicks, ablation == "fine"))
        valid.append((spans >= 0.9 * span[0]) & (gt.flatten(1).sum(1) >= _MIN_AREA))
    return torch.cat(ious), torch.cat(valid)


def _curves(
    model: Segmenter,
    features: ImageFeatures,
    gt: Tensor,
    generator: torch.Generator,
    num_clicks: int,
    coarse: bool,
) -> Tensor:
    num, device = len(gt), gt.device
    features = per_object(features, torch.arange(num, device=device))
    coords = torch.zeros(num, 0, 2, device=device)
    signs = torch.zeros(num, 0, dtype=torch.long, device=device)
    predicted, prior = torch.zeros_like(gt), None
    ious = []
    for _ in range(num_clicks):
        place_yx, positive, found = next_clicks(predicted, gt, generator, k=1.0)
        place_xy = (place_yx.flip(1) + 0.5) * LOSS_STRIDE - 0.5
        coords = torch.cat([coords, place_xy[:, None]], 1)
        signs = torch.cat([signs, torch.where(found, positive.long(), -1)[:, None]], 1)
        decoded = model.decode_all(
            features, point_coords_xy=coords, point_labels=signs, mask_logits=prior
        )
        prior = (decoded.coarse if coarse else decoded.masks)[:, :1].float()
        resized = F.interpolate(prior, gt.shape[1:], mode="bilinear", align_corners=False)
        ious.append(batch_iou(resized, gt.long()))
        predicted = resized[:, 0] > 0
    return torch.stack(ious, 1)


def score_sizes(
    model: Segmenter,
    crops: DeviceCrops,
    objects: Tensor,
    *,
    tile_px: int = 512,
    ablation: Ablation = "none",
    at_once: int = 4,
) -> dict[str, Any]:
    """Score a model at all sizes of `SPANS`.

    Parameters
    ----------
    model, crops, objects, tile_px, ablation, at_once
        As in `tile_scores`.

    Returns
    -------
    dict
        ``iou1``, ``iou3``, ``iou5`` and ``drops``, each the mean over the sizes of the mean over
        the domains; ``spans``: what `summarize_scores` says of each size.
    """
    spans: dict[str, Any] = {}
    for span in SPANS:
        ious, valid = tile_scores(
            model, crops, objects, span=span, tile_px=tile_px, ablation=ablation, at_once=at_once
        )
        spans[f"{span[0]}-{span[1]}"] = summarize_scores(
            ious, valid, crops.object_domain[objects], crops.domains
        )
    found = [row for row in spans.values() if row["objects"]]
    keys = ("iou1", "iou3", "iou5", "drops")
    mean = {k: round(float(np.mean([row[k] for row in found])), 4) for k in keys}
    return {**mean, "spans": spans}


def quality(score: dict[str, Any]) -> float:
    """Give the number by which weights are chosen: mean of IoU@1 and IoU@5 of `score_sizes`."""
    return round(0.5 * (float(score["iou1"]) + float(score["iou5"])), 4)


def objects_to_score(crops: DeviceCrops, samples: Sequence[PackedSample], at_most: int) -> Tensor:
    """Choose what to click on: listed objects, up to ``at_most`` of every domain.

    Parameters
    ----------
    crops : DeviceCrops
        Made of the samples.
    samples : sequence of PackedSample
    at_most : int

    Returns
    -------
    (P,) int64
        Rows of the tables of ``crops``.
    """
    wanted = []
    for sample in (samples[i] for i in crops.sample_index.tolist()):
        values = np.union1d(np.unique(sample.labels), [0])
        wanted.append(set(np.searchsorted(values, sample.noc_objects).tolist()))
    table = zip(
        crops.object_sample.tolist(),
        crops.object_ids.tolist(),
        crops.object_layer.tolist(),
        strict=True,
    )
    rows = [
        row
        for row, (sample, number, layer) in enumerate(table)
        if layer == 0 and number in wanted[sample]
    ]
    chosen = torch.tensor(rows, dtype=torch.long, device=crops.device)
    return chosen[spread_over_domains(crops.object_domain[chosen], at_most)]


def summarize_scores(
    ious: Tensor, valid: Tensor, domain: Tensor, names: Sequence[str]
) -> dict[str, Any]:
    """Average per domain, then over the domains.

    Parameters
    ----------
    ious : (P, K) float
    valid : (P,) bool
    domain : (P,) int64
        Where each object's domain stands in ``names``.
    names : sequence of str

    Returns
    -------
    dict
        ``iou1``, ``iou3``, ``iou5`` as far as there are that many clicks, ``drops`` (share of the
        clicks after the first that lower the IoU by more than 0.01), ``objects``; the mean over
        the domains; and ``domains``, the same for each.
    """
    curves = ious.float().cpu().numpy()
    kept, where = valid.cpu().numpy(), domain.cpu().numpy()
    domains = {}
    for index, name in enumerate(names):
        rows = curves[kept & (where == index)]
        if len(rows):
            domains[name] = _summary(rows)
    keys = next(iter(domains.values()), {})
    mean: dict[str, Any] = {
        key: round(float(np.mean([row[key] for row in domains.values()])), 4) for key in keys
    }
    return {**mean, "objects": int(kept.sum()), "domains": domains}


def _summary(rows: NDArray[np.float32]) -> dict[str, float]:
    wanted = [k for k in (1, 3, 5, 10) if k <= rows.shape[1]]
    drops = np.diff(rows, axis=1) < -0.01
    return {
        **{f"iou{k}": round(float(rows[:, k - 1].mean()), 4) for k in wanted},
        "drops": round(float(drops.mean()), 4) if drops.size else 0.0,
        "objects": len(rows),
    }


def spread_over_domains(domain: Tensor, at_most: int, seed: int = 0) -> Tensor:
    """Choose up to ``at_most`` objects of every domain, at random: rows of the table, (P,) int64.

    Parameters
    ----------
    domain : (P,) int64
        Of every object.
    at_most : int
    seed : int
    """
    rng = np.random.default_rng(seed)
    where = domain.cpu().numpy()
    rows = [rng.permutation(np.flatnonzero(where == d))[:at_most] for d in np.unique(where)]
    return torch.from_numpy(np.sort(np.concatenate(rows))).to(domain.device)
