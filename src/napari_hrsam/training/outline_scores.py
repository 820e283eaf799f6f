"""How well outlines are refined: coarse masks with errors, and what the refiner makes of them."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from napari_hrsam.errors import DataError, ShapeError
from napari_hrsam.modeling.outline_refiner import OutlineRefiner
from napari_hrsam.training.batches import open_scene
from napari_hrsam.training.datasets import Sample
from napari_hrsam.training.outline_priors import PriorErrors, coarse_prior

BAND_PX = 12.0
"""Pixels at most this far from the true outline are counted."""

_CONTEXT_PX = 64
_LARGEST_PX = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlineScore:
    """Scores of one mask.

    Attributes
    ----------
    band : float, 0..1
        Share of right pixels within `BAND_PX` of the true outline.
    iou : float, 0..1
    distance_px : float
        Mean distance between the outlines, of each from the other, averaged.
    """

    band: float
    iou: float
    distance_px: float


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlineCase:
    """An object with what is around it.

    Attributes
    ----------
    domain : str
    image : (H, W, 3) uint8
        H and W multiples of 4.
    mask : (H, W) bool
    seed : int
        Of the errors of its priors.
    """

    domain: str
    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]
    seed: int


def outline_cases(
    samples: Sequence[Sample], *, per_domain: int = 12, per_image: int = 3, min_area_px: int = 2500
) -> Iterator[OutlineCase]:
    """Choose objects: the same ones for the same samples.

    Parameters
    ----------
    samples : sequence of Sample
    per_domain, per_image : int
        How many objects at most.
    min_area_px : int
        Smaller objects are left out.

    Yields
    ------
    OutlineCase
        Cut out with 64 pixels around it; objects that need more than 1024 pixels are left out.
    """
    counts: dict[str, int] = {}
    for sample in samples:
        left = per_domain - counts.get(sample.domain, 0)
        if left <= 0:
            continue
        scene = open_scene(sample)
        areas = np.bincount(scene.labels.ravel())[scene.ids]
        seed = zlib.crc32(sample.key.encode())
        order = np.random.default_rng(seed).permutation(np.flatnonzero(areas >= min_area_px))
        for index in order[: min(left, per_image)].tolist():
            y0, x0, y1, x1 = scene.boxes[index].tolist()
            rows = _around(y0, y1, scene.labels.shape[0])
            columns = _around(x0, x1, scene.labels.shape[1])
            mask = scene.labels[rows, columns] == scene.ids[index]
            if max(mask.shape) > _LARGEST_PX or mask.all():
                continue
            image = scene.pixels[rows, columns]
            image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
            counts[sample.domain] = counts.get(sample.domain, 0) + 1
            yield OutlineCase(domain=sample.domain, image=image, mask=mask, seed=seed + index)


def _around(start: int, end: int, length: int) -> slice:
    """Take a stretch around an object, a multiple of 4 long, on the grid of 4 pixels."""
    low = max(0, start - _CONTEXT_PX) // 4 * 4
    return slice(low, low + (min(length, end + _CONTEXT_PX) - low) // 4 * 4)


def score_outline(mask: NDArray[np.bool_], truth: NDArray[np.bool_]) -> OutlineScore:
    """Compare a mask with the truth.

    Parameters
    ----------
    mask, truth : (H, W) bool
        ``truth`` holds pixels of both kinds.

    Returns
    -------
    OutlineScore
        A mask without an outline is as far away as the diagonal is long.

    Raises
    ------
    ShapeError
        If the shapes differ.
    """
    if mask.shape != truth.shape:
        raise ShapeError(
            f"mask and truth must have one shape, got {mask.shape} and {truth.shape}; read both "
            "over the same box"
        )
    depth = _depth(truth)
    union = int(np.count_nonzero(mask | truth))
    if mask.any() and not mask.all():
        there, back = _along_outline(mask, depth), _along_outline(truth, _depth(mask))
        distance = float(there.mean() + back.mean()) / 2
    else:
        distance = float(np.hypot(*mask.shape))
    return OutlineScore(
        band=float((mask == truth)[np.abs(depth) < BAND_PX].mean()),
        iou=float(np.count_nonzero(mask & truth)) / union if union else 1.0,
        distance_px=distance,
    )


def _depth(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Signed distance of pixel centres from the outline, which runs between pixels."""
    depth: NDArray[np.float64] = distance_transform_edt(mask) - distance_transform_edt(~mask)
    return depth - np.where(mask, 0.5, -0.5)


def _along_outline(mask: NDArray[np.bool_], depth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distances, between neighbours of which one is in the mask and one is not."""
    found = []
    for one, other, left, right in (
        (mask[:-1], mask[1:], depth[:-1], depth[1:]),
        (mask[:, :-1], mask[:, 1:], depth[:, :-1], depth[:, 1:]),
    ):
        found.append(np.abs(left + right)[one != other] / 2)
    return np.concatenate(found)


def refined(
    refiner: OutlineRefiner, image: NDArray[np.uint8], prior: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Refine one prior.

    Parameters
    ----------
    refiner : OutlineRefiner
    image : (H, W, 3) uint8
    prior : (H, W) float32

    Returns
    -------
    (H, W) float32
        Logits.
    """
    device = next(refiner.parameters()).device
    pixels = torch.from_numpy(image.astype(np.float32)).to(device).permute(2, 0, 1)[None]
    with torch.inference_mode():
        logits = refiner(pixels, torch.from_numpy(prior).to(device)[None, None])
    found: NDArray[np.float32] = logits[0, 0].cpu().numpy()
    return found


def score_refiner(
    refiner: OutlineRefiner,
    cases: Sequence[OutlineCase],
    *,
    factor: int,
    errors: PriorErrors | None = None,
    prior_of: Callable[[OutlineCase], NDArray[np.float32]] | None = None,
) -> dict[str, dict[str, float]]:
    """Score priors, and what the refiner makes of them, per domain.

    Parameters
    ----------
    refiner : OutlineRefiner
    cases : sequence of OutlineCase
    factor : int
        Between the level of the prior and that of the image.
    errors : PriorErrors, optional
        Of the priors; by default a displacement of 1.2 coarse pixels over about 5.
    prior_of : callable, optional
        Makes the prior of a case in another way.

    Returns
    -------
    dict
        By domain, and ``"mean of domains"``: the number of ``objects``, and ``band``, ``iou`` and
        ``distance_px`` of the prior (``prior_...``) and of the refined mask (``refined_...``).

    Raises
    ------
    DataError
        If there are no cases.
    """
    if not cases:
        raise DataError("there is no object to score; give images of larger objects")
    rows: dict[str, list[dict[str, float]]] = {}
    for case in cases:
        if prior_of is not None:
            prior = prior_of(case)
        else:
            rng = np.random.default_rng([case.seed, factor])
            prior = coarse_prior(case.mask, factor, errors or PriorErrors(), rng)
        row: dict[str, float] = {}
        for what, logits in (("prior", prior), ("refined", refined(refiner, case.image, prior))):
            score = score_outline(logits > 0, case.mask)
            for name in ("band", "iou", "distance_px"):
                row[f"{what}_{name}"] = getattr(score, name)
        rows.setdefault(case.domain, []).append(row)
    scores = {
        domain: {"objects": float(len(found)), **_mean(found)}
        for domain, found in sorted(rows.items())
    }
    means = [{k: v for k, v in row.items() if k != "objects"} for row in scores.values()]
    return {**scores, "mean of domains": {"objects": float(len(cases)), **_mean(means)}}


def _mean(rows: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
