"""Random crops with objects, for training.

A crop is a square of ``crop_px`` pixels in which the chosen object spans a random share of the
side, as a person would zoom: what lies outside the image has the mean colour, as in a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from torch import Tensor

from napari_hrsam.errors import ConfigError, DataError
from napari_hrsam.lru import LRU
from napari_hrsam.storage.images.tile_source import MEAN_RGB, ArrayImage
from napari_hrsam.training.datasets import Sample
from napari_hrsam.training.settings import CropConfig, CropSize

_MIN_AREA_PX = 16
_MAX_ENLARGEMENT = 4.0
_MAX_TRIES = 500
_DOMAIN_EXPONENT = 0.1875


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Crops and the objects in them.

    Attributes
    ----------
    images : (B, H, W, 3) uint8
        RGB.
    labels : (B, H, W) int64
        All objects of each crop, numbered from 1; 0 = background.
    masks : (N, H, W) bool
        One object each, of those that are clicked on.
    crop_index : (N,) int64
        The crop that each object lies in.
    """

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_]
    crop_index: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class BatchTensors:
    """A batch on a device, as `click_task.ClickTask` takes it.

    Attributes
    ----------
    images : (B, 3, H, W) float32, 0..255
    labels : (B, H, W) int64
    masks : (N, H, W) bool
    crop_index : (N,) int64
    weight : (N,) float32
        1 everywhere.
    max_id : int
        Largest number in ``labels``.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    crop_index: Tensor
    weight: Tensor
    max_id: int


def to_tensors(batch: Batch, device: torch.device | str) -> BatchTensors:
    """Copy a batch to a device."""
    images = torch.from_numpy(batch.images).to(device)
    return BatchTensors(
        images=images.permute(0, 3, 1, 2).float(),
        labels=torch.from_numpy(batch.labels).to(device),
        masks=torch.from_numpy(batch.masks).to(device),
        crop_index=torch.from_numpy(batch.crop_index).to(device),
        weight=torch.ones(len(batch.masks), device=device),
        max_id=int(batch.labels.max()),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Scene:
    """A decoded sample.

    Attributes
    ----------
    pixels : (H, W) or (H, W, 3) uint8
        With image-wide brightness limits applied.
    labels : (H, W) int32
    ids : (N,) int64
        Objects of at least 16 pixels.
    boxes : (N, 4) int64
        Their y0, x0, y1, x1.
    """

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int32]
    ids: NDArray[np.int64]
    boxes: NDArray[np.int64]


class CropSampler:
    """Draw batches of crops from samples that are decoded when they are wanted.

    A domain is drawn, then one of its images, then one of its objects. A domain's share is
    ``(images * objects) ** 0.1875``: large collections count more, but far from in proportion.

    Parameters
    ----------
    samples : sequence of Sample
    config : CropConfig

    Attributes
    ----------
    domain_shares : dict of str to float
        Share of the crops of each domain.

    Raises
    ------
    ConfigError
        If a factor is given for a domain that the samples do not have.
    """

    def __init__(self, samples: Sequence[Sample], config: CropConfig) -> None:
        self.config = config
        self._domains: dict[str, list[Sample]] = {}
        for sample in samples:
            self._domains.setdefault(sample.domain, []).append(sample)
        factors = dict(config.domain_factors)
        if unknown := sorted(set(factors) - set(self._domains)):
            raise ConfigError(
                f"domain_factors name {', '.join(unknown)}, but the data has "
                f"{', '.join(sorted(self._domains))}"
            )
        weights = {
            name: (len(found) * sum(max(1, s.instances) for s in found)) ** _DOMAIN_EXPONENT
            * factors.get(name, 1.0)
            for name, found in self._domains.items()
        }
        total = sum(weights.values())
        self.domain_shares = {name: weight / total for name, weight in weights.items()}
        self._scenes: LRU[Sample, tuple[Scene, ...]] = LRU(
            int(config.cache_mb * 2**20), _size_bytes
        )

    def batch(self, rng: np.random.Generator, done: float = 0.0) -> Batch:
        """Draw one batch; the same generator state gives the same batch.

        Parameters
        ----------
        rng : numpy.random.Generator
        done : float, 0..1
            Share of the training that is done.

        Raises
        ------
        DataError
            If no image with an object of at least 16 pixels is found.
        """
        config = self.config
        shares = np.array([s.share + (s.late_share - s.share) * done for s in config.sizes])
        size = config.sizes[int(rng.choice(len(shares), p=shares / shares.sum()))]
        span = config.wide_span
        if rng.random() >= config.wide_share:
            low = max(config.span[0], config.smallest_px / size.crop_px)
            span = (min(low, config.span[1]), config.span[1])
        images, labels = [], []
        masks: list[NDArray[np.bool_]] = []
        index: list[int] = []
        for crop in range(size.batch_size):
            image, seen, ids = self._crop(rng, size, span)
            images.append(image)
            labels.append(seen)
            masks.extend(seen == i for i in ids)
            index.extend([crop] * len(ids))
        return Batch(
            images=np.stack(images),
            labels=np.stack(labels),
            masks=np.stack(masks),
            crop_index=np.array(index, np.int64),
        )

    def _crop(
        self, rng: np.random.Generator, size: CropSize, span: tuple[float, float]
    ) -> tuple[NDArray[np.uint8], NDArray[np.int64], list[int]]:
        """Draw until the chosen object is visible (the first try nearly always is)."""
        names, shares = list(self.domain_shares), list(self.domain_shares.values())
        for _ in range(_MAX_TRIES):
            samples = self._domains[names[rng.choice(len(names), p=shares)]]
            scene = self._scene(samples[rng.integers(len(samples))], rng)
            if not scene.ids.size:
                continue
            chosen = int(rng.integers(scene.ids.size))
            image, labels = _cut(scene, scene.boxes[chosen], size.crop_px, span, rng)
            ids = _visible(labels, int(scene.ids[chosen]), size, span, rng)
            if not ids:
                continue
            turns, flip = int(rng.integers(4)), bool(rng.integers(2))
            image, labels = np.rot90(image, turns), np.rot90(labels, turns)
            if flip:
                image, labels = image[:, ::-1], labels[:, ::-1]
            config = self.config
            image = recolour(image, rng, grey=config.grey, polarity=config.polarity)
            values, numbers = np.unique(np.append(labels.ravel(), 0), return_inverse=True)
            seen = numbers[:-1].reshape(labels.shape).astype(np.int64)
            return image, seen, np.searchsorted(values, ids).tolist()
        raise DataError(
            f"none of {_MAX_TRIES} images drawn holds an object of {_MIN_AREA_PX} or more pixels; "
            "give instance masks with at least one object"
        )

    def _scene(self, sample: Sample, rng: np.random.Generator) -> Scene:
        """Decode a sample, or find it decoded; now and then with its second labels."""
        if sample not in self._scenes:
            first, second = open_scene(sample), sample.second_labels()
            self._scenes[sample] = (
                (first,) if second is None else (first, with_labels(first, second))
            )
        scenes = self._scenes[sample]
        use_second = rng.random() < self.config.second_labels
        return scenes[-1] if use_second or not scenes[0].ids.size else scenes[0]


def _size_bytes(scenes: tuple[Scene, ...]) -> int:
    return scenes[0].pixels.nbytes + sum(scene.labels.nbytes for scene in scenes)


def open_scene(sample: Sample) -> Scene:
    """Decode a sample and find its objects.

    Raises
    ------
    DataError
        If it cannot be decoded.
    """
    pixels, labels = sample.image(), sample.labels()
    if pixels.ndim == 2:
        (low, high), *_ = ArrayImage(pixels).contrast_limits
        scaled = (pixels.astype(np.float32) - low) * (255.0 / max(high - low, 1e-6))
        pixels = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return _measured(pixels, labels)


def with_labels(scene: Scene, labels: NDArray[np.int32]) -> Scene:
    """Give the same picture with other labels."""
    return _measured(scene.pixels, labels)


def _measured(pixels: NDArray[np.uint8], labels: NDArray[np.int32]) -> Scene:
    areas = np.bincount(labels.ravel())
    slices = ndimage.find_objects(labels)
    ids = [i for i in range(1, areas.size) if areas[i] >= _MIN_AREA_PX]
    boxes = [(s[0].start, s[1].start, s[0].stop, s[1].stop) for s in (slices[i - 1] for i in ids)]
    return Scene(
        pixels=pixels,
        labels=labels,
        ids=np.array(ids, np.int64),
        boxes=np.array(boxes, np.int64).reshape(-1, 4),
    )


def _cut(
    scene: Scene,
    box: NDArray[np.int64],
    crop: int,
    span: tuple[float, float],
    rng: np.random.Generator,
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Cut a square around an object and resize it to the crop."""
    y0, x0, y1, x1 = (float(v) for v in box)
    side = max(y1 - y0, x1 - x0)
    share = np.exp(rng.uniform(*np.log(span)))
    scale = min(share * crop / side, _MAX_ENLARGEMENT)
    window = crop / scale
    # The object lies anywhere in the crop as long as it is whole in it.
    free_y, free_x = max(window - (y1 - y0), 0.0), max(window - (x1 - x0), 0.0)
    top = y0 - rng.uniform(0.05, 0.95) * free_y
    left = x0 - rng.uniform(0.05, 0.95) * free_x
    return _resample(scene, top, left, window, crop)


def _resample(
    scene: Scene, top: float, left: float, window: float, crop: int
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    height, width = scene.labels.shape
    image = np.empty((crop, crop, 3), np.uint8)
    image[:] = MEAN_RGB
    labels = np.zeros((crop, crop), np.int32)
    scale = crop / window
    # Whole crop pixels whose source lies inside the image.
    r0, c0 = max(0, int(np.ceil(-top * scale))), max(0, int(np.ceil(-left * scale)))
    r1 = min(crop, int(np.floor((height - top) * scale)))
    c1 = min(crop, int(np.floor((width - left) * scale)))
    if r1 <= r0 or c1 <= c0:
        return image, labels
    source = (left + c0 / scale, top + r0 / scale, left + c1 / scale, top + r1 / scale)
    source = (
        max(source[0], 0.0),
        max(source[1], 0.0),
        min(source[2], float(width)),
        min(source[3], float(height)),
    )
    # PIL resizes only the part that is passed; cutting first keeps big images cheap.
    y_a, y_b = int(source[1]), int(np.ceil(source[3]))
    x_a, x_b = int(source[0]), int(np.ceil(source[2]))
    inner = (source[0] - x_a, source[1] - y_a, source[2] - x_a, source[3] - y_a)
    size = (c1 - c0, r1 - r0)
    pixels = Image.fromarray(np.ascontiguousarray(scene.pixels[y_a:y_b, x_a:x_b]))
    resized = np.asarray(pixels.resize(size, Image.Resampling.BILINEAR, box=inner))
    image[r0:r1, c0:c1] = resized if resized.ndim == 3 else resized[..., None]
    part = Image.fromarray(np.ascontiguousarray(scene.labels[y_a:y_b, x_a:x_b]))
    labels[r0:r1, c0:c1] = np.asarray(part.resize(size, Image.Resampling.NEAREST, box=inner))
    return image, labels


def _visible(
    labels: NDArray[np.int32],
    chosen: int,
    size: CropSize,
    span: tuple[float, float],
    rng: np.random.Generator,
) -> list[int]:
    """Pick the chosen object and random others of a fitting size; nothing if it is hidden."""
    areas = np.bincount(labels.ravel(), minlength=chosen + 1)
    low = (0.5 * span[0] * size.crop_px) ** 2
    high = (span[1] * size.crop_px) ** 2
    if areas[chosen] < _MIN_AREA_PX:
        return []
    others = [
        i for i in np.flatnonzero((areas > low) & (areas < high)).tolist() if i not in (0, chosen)
    ]
    rng.shuffle(others)
    return [chosen, *others[: size.objects_per_crop - 1]]


def recolour(
    image: NDArray[np.uint8], rng: np.random.Generator, *, grey: float, polarity: float
) -> NDArray[np.uint8]:
    """Change intensity, contrast, colour, polarity, noise and sharpness.

    Parameters
    ----------
    image : (H, W, 3) uint8
    rng : Generator
    grey, polarity : float, 0..1
        How often the image is made grey, and inverted.

    Returns
    -------
    (H, W, 3) uint8
    """
    x = image.astype(np.float32) / 255.0
    if rng.random() < grey:
        x = np.repeat(x @ np.array([[0.299], [0.587], [0.114]], np.float32), 3, axis=2)
    x **= np.float32(np.exp(rng.normal(0, 0.25)))
    gain = np.exp(rng.normal(0, 0.2)) * np.exp(rng.normal(0, 0.07, 3))
    x = (x - 0.5) * gain.astype(np.float32) + np.float32(0.5 + rng.normal(0, 0.08))
    if rng.random() < polarity:
        x = 1.0 - x
    if rng.random() < 0.05:
        x = x[..., rng.permutation(3)]
    if rng.random() < 0.12:
        x = ndimage.uniform_filter(x, (3, 3, 0))
    if rng.random() < 0.3:
        noise = rng.standard_normal((*x.shape[:2], 1 if rng.random() < 0.7 else 3), np.float32)
        x = x + noise * np.float32(abs(rng.normal(0, 0.04)))
    pixels: NDArray[np.uint8] = np.clip(np.rint(x * 255.0), 0, 255).astype(np.uint8)
    return pixels
