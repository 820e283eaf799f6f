"""Crops along outlines of objects with coarse masks as priors: what the refiner learns from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.errors import DataError
from napari_hrsam.storage.images.tile_source import MEAN_RGB
from napari_hrsam.training.batches import Scene, open_scene, recolour
from napari_hrsam.training.datasets import Sample
from napari_hrsam.training.outline_drawings import draw_regions
from napari_hrsam.training.outline_priors import PriorErrors, coarse_prior
from napari_hrsam.training.settings import OutlineTaskConfig

FACTORS = (2, 4)
"""Steps between levels that the refiner is trained for."""

_LARGEST_SCALE = 2.0
_INSIDE_SHARE = 0.85  # of crops that do not reach beyond the image where they need not


@dataclass(frozen=True, kw_only=True, slots=True)
class OutlineBatch:
    """Crops with priors.

    Attributes
    ----------
    images : (B, H, W, 3) uint8
        RGB.
    priors : (B, H, W) float32
        Logits.
    masks : (B, H, W) bool
        The truth.
    known : (B, H, W) bool
        Where there is an image; beyond its border nothing is learned.
    """

    images: NDArray[np.uint8]
    priors: NDArray[np.float32]
    masks: NDArray[np.bool_]
    known: NDArray[np.bool_]


class OutlineSampler:
    """Draw batches of crops, domains balanced by the square root of their number of objects.

    Parameters
    ----------
    samples : sequence of Sample
        All are decoded once and kept (8 bits a channel).
    config : OutlineTaskConfig

    Raises
    ------
    DataError
        If no sample holds an object that is large enough.
    """

    def __init__(self, samples: Sequence[Sample], config: OutlineTaskConfig) -> None:
        self.config = config
        self._domains: dict[str, list[tuple[Scene, NDArray[np.int64], NDArray[np.int64]]]] = {}
        smallest = config.min_area_px / _LARGEST_SCALE**2
        counts: dict[str, int] = {}
        for sample in samples:
            scene = open_scene(sample)
            areas = np.bincount(scene.labels.ravel())[scene.ids]
            large = np.flatnonzero(areas >= smallest)
            if large.size:
                entry = (scene, large.astype(np.int64), areas[large].astype(np.int64))
                self._domains.setdefault(sample.domain, []).append(entry)
                counts[sample.domain] = counts.get(sample.domain, 0) + large.size
        if not counts:
            raise DataError(
                f"none of the {len(samples)} samples holds an object of {smallest:.0f} or more "
                "pixels; give images of larger objects, or lower min_area_px"
            )
        roots = np.sqrt(list(counts.values()))
        self.domain_shares = dict(zip(counts, roots / roots.sum(), strict=True))

    def batch(self, rng: np.random.Generator) -> OutlineBatch:
        """Draw one batch; the same generator state gives the same batch."""
        images, priors, masks, known = [], [], [], []
        for _ in range(self.config.batch_size):
            if rng.random() < self.config.drawn_share:
                image, mask = draw_regions(self.config.crop_px, rng)
                inside = np.ones(mask.shape, np.bool_)
            else:
                image, mask, inside = self._photographed(rng)
            turns, step = int(rng.integers(4)), -1 if rng.integers(2) else 1
            image = np.rot90(image, turns)[:, ::step]
            mask, inside = (np.rot90(each, turns)[:, ::step] for each in (mask, inside))
            factor = int(rng.choice(FACTORS))
            images.append(
                recolour(image, rng, grey=self.config.grey, polarity=self.config.polarity)
            )
            priors.append(coarse_prior(mask, factor, PriorErrors.draw(rng), rng))
            masks.append(mask)
            known.append(inside)
        return OutlineBatch(
            images=np.stack(images),
            priors=np.stack(priors),
            masks=np.stack(masks),
            known=np.stack(known),
        )

    def _photographed(
        self, rng: np.random.Generator
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
        """Cut a crop around a place on an outline; returns image, mask, and what is known."""
        names, shares = list(self.domain_shares), list(self.domain_shares.values())
        while True:
            scenes = self._domains[names[rng.choice(len(names), p=shares)]]
            scene, large, areas = scenes[rng.integers(len(scenes))]
            number = int(rng.integers(large.size))
            scale = _draw_scale(float(areas[number]), self.config.min_area_px, rng)
            index = large[number]
            centre = _outline_place(scene, int(index), rng)
            image, mask, inside = _cut(
                scene, int(scene.ids[index]), centre, scale, self.config.crop_px, rng
            )
            if mask.any() and not mask[inside].all():
                return image, mask, inside


def _draw_scale(area_px: float, min_area_px: int, rng: np.random.Generator) -> float:
    """Native resolution often; coarser, where labels are sharper; finer, with soft edges."""
    kind = rng.random()
    if kind < 0.45:
        scale = 1.0
    elif kind < 0.65:
        scale = 0.5
    else:
        scale = float(2 ** rng.uniform(-1, 1))
    return min(max(scale, float(np.sqrt(min_area_px / area_px))), _LARGEST_SCALE)


def _outline_place(scene: Scene, index: int, rng: np.random.Generator) -> tuple[float, float]:
    """Draw a pixel of an object that has a neighbour outside it."""
    y0, x0, y1, x1 = scene.boxes[index].tolist()
    mask = np.pad(scene.labels[y0:y1, x0:x1] == scene.ids[index], 1)
    inner = mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    rows, columns = np.nonzero(mask[1:-1, 1:-1] & ~inner)
    chosen = int(rng.integers(rows.size))
    return float(y0 + rows[chosen]), float(x0 + columns[chosen])


def _cut(
    scene: Scene,
    chosen: int,
    centre_yx: tuple[float, float],
    scale: float,
    crop_px: int,
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.bool_], NDArray[np.bool_]]:
    """Cut and resize a square that has the place somewhere in its middle."""
    window = round(crop_px / scale)
    top, left = (round(middle - window * rng.uniform(0.3, 0.7)) for middle in centre_yx)
    height, width = scene.labels.shape
    if rng.random() < _INSIDE_SHARE:
        top, left = max(0, min(top, height - window)), max(0, min(left, width - window))
    rows = np.clip(np.arange(top, top + window), 0, height - 1)
    columns = np.clip(np.arange(left, left + window), 0, width - 1)
    # Beyond the border the object goes on as at the border, as interpolated logits do.
    part = np.ix_(rows, columns)
    image = _resize(scene.pixels[part], crop_px)
    image = image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    mask = _resize((scene.labels[part] == chosen).astype(np.uint8) * np.uint8(255), crop_px) > 127
    where = [
        (start + (np.arange(crop_px) + 0.5) * window / crop_px, length)
        for start, length in ((top, height), (left, width))
    ]
    inside = [(at >= 0) & (at < length) for at, length in where]
    known = inside[0][:, None] & inside[1]
    if not known.all():
        image = image.copy()
        image[~known] = MEAN_RGB
    return image, mask, known


def _resize(array: NDArray[np.uint8], side: int) -> NDArray[np.uint8]:
    if array.shape[0] == side:
        return array
    return np.asarray(Image.fromarray(array).resize((side, side), Image.Resampling.BILINEAR))
