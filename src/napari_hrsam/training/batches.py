"""Random crops with objects, for training.

A crop is a square of ``crop_px`` pixels in which the chosen object spans a random share of the
side, as a person would zoom: what lies outside the image has the mean colour, as in a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from napari_hrsam.errors import ConfigError, DataError
from napari_hrsam.storage.tile_source import MEAN_RGB, ArrayImage
from napari_hrsam.training.datasets import Sample

_MIN_AREA_PX = 16
_MAX_ENLARGEMENT = 4.0


@dataclass(frozen=True, kw_only=True, slots=True)
class CropConfig:
    """How crops are drawn.

    Attributes
    ----------
    crop_px : int
        Side of a crop, a multiple of 16.
    batch_size : int
        Crops in a batch.
    objects_per_crop : int
        At most this many objects of a crop are trained on.
    span : (float, float)
        Smallest and largest share of the side that the chosen object's longer side takes;
        drawn log-uniformly.
    polarity : float
        Share of crops that are inverted.
    grey : float
        Share of colour crops that are made grey.
    large_share : float
        Share of batches with crops of twice the side and a quarter of them, with objects from half
        the smallest span (the same size in pixels) on: the model then works on more than one
        length of sequence.
    """

    crop_px: int = 256
    batch_size: int = 8
    objects_per_crop: int = 3
    span: tuple[float, float] = (0.08, 0.6)
    polarity: float = 0.15
    grey: float = 0.2
    large_share: float = 0.3

    def __post_init__(self) -> None:
        """Check the values."""
        if self.crop_px % 16 or self.crop_px <= 0:
            raise ConfigError(f"crop_px must be a positive multiple of 16, got {self.crop_px}")
        if not 0 < self.span[0] <= self.span[1] <= 1:
            raise ConfigError(f"span must be 0 < smallest <= largest <= 1, got {self.span}")
        if self.batch_size < 1 or self.objects_per_crop < 1:
            raise ConfigError(
                "batch_size and objects_per_crop must be at least 1, got "
                f"{self.batch_size} and {self.objects_per_crop}"
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Crops and the objects in them.

    Attributes
    ----------
    images : (B, H, W, 3) uint8
        RGB.
    masks : (N, H, W) bool
        One object each.
    crop_index : (N,) int64
        The crop that each object lies in.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    crop_index: NDArray[np.int64]


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
    """Draw batches of crops, domains balanced by the square root of their number of objects.

    Parameters
    ----------
    samples : sequence of Sample
        All are decoded once and kept (8 bits a channel).
    config : CropConfig

    Raises
    ------
    DataError
        If no sample holds an object of at least 16 pixels.
    """

    def __init__(self, samples: Sequence[Sample], config: CropConfig) -> None:
        self.config = config
        self._domains: dict[str, list[Scene]] = {}
        for sample in samples:
            scene = open_scene(sample)
            if scene.ids.size:
                self._domains.setdefault(sample.domain, []).append(scene)
        if not self._domains:
            raise DataError(
                f"none of the {len(samples)} samples holds an object of {_MIN_AREA_PX} or more "
                "pixels; give instance masks with at least one object"
            )
        counts = np.array(
            [sum(s.ids.size for s in scenes) for scenes in self._domains.values()], float
        )
        self.domain_shares = dict(
            zip(self._domains, np.sqrt(counts) / np.sqrt(counts).sum(), strict=True)
        )

    def batch(self, rng: np.random.Generator) -> Batch:
        """Draw one batch; the same generator state gives the same batch."""
        images, masks, index = [], [], []
        config = self.config
        if rng.random() < config.large_share:
            config = replace(
                config,
                crop_px=2 * config.crop_px,
                batch_size=max(1, config.batch_size // 4),
                objects_per_crop=2 * config.objects_per_crop,
                span=(config.span[0] / 2, config.span[1]),
            )
        for crop in range(config.batch_size):
            image, objects = self._crop(rng, config)
            images.append(image)
            masks.extend(objects)
            index.extend([crop] * len(objects))
        return Batch(
            images=np.stack(images),
            masks=np.stack(masks),
            crop_index=np.array(index, np.int64),
        )

    def _crop(
        self, rng: np.random.Generator, config: CropConfig
    ) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
        """Draw until the chosen object is visible (the first try nearly always is)."""
        names, shares = list(self.domain_shares), list(self.domain_shares.values())
        while True:
            scenes = self._domains[names[rng.choice(len(names), p=shares)]]
            scene = scenes[rng.integers(len(scenes))]
            chosen = int(rng.integers(scene.ids.size))
            image, labels = _cut(scene, scene.boxes[chosen], config, rng)
            ids = _visible(labels, int(scene.ids[chosen]), config, rng)
            if ids:
                break
        turns, flip = int(rng.integers(4)), bool(rng.integers(2))
        image, labels = np.rot90(image, turns), np.rot90(labels, turns)
        if flip:
            image, labels = image[:, ::-1], labels[:, ::-1]
        return recolour(image, rng, grey=config.grey, polarity=config.polarity), [
            labels == i for i in ids
        ]


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
    scene: Scene, box: NDArray[np.int64], config: CropConfig, rng: np.random.Generator
) -> tuple[NDArray[np.uint8], NDArray[np.int32]]:
    """Cut a square around an object and resize it to the crop."""
    y0, x0, y1, x1 = (float(v) for v in box)
    side, crop = max(y1 - y0, x1 - x0), config.crop_px
    span = np.exp(rng.uniform(*np.log(config.span)))
    scale = min(span * crop / side, _MAX_ENLARGEMENT)
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
    labels: NDArray[np.int32], chosen: int, config: CropConfig, rng: np.random.Generator
) -> list[int]:
    """Pick the chosen object and random others of a fitting size; nothing if it is hidden."""
    areas = np.bincount(labels.ravel(), minlength=chosen + 1)
    low = (0.5 * config.span[0] * config.crop_px) ** 2
    high = (config.span[1] * config.crop_px) ** 2
    if areas[chosen] < _MIN_AREA_PX:
        return []
    others = [
        i for i in np.flatnonzero((areas > low) & (areas < high)).tolist() if i not in (0, chosen)
    ]
    rng.shuffle(others)
    return [chosen, *others[: config.objects_per_crop - 1]]


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
