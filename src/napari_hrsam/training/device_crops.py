"""Random crops with objects, drawn, cut and coloured on the device in one batch.

The rules are those of `batches`: a domain is drawn, then one of its images, then one of its
objects, and a square is cut so that the object spans a random share of it. All images lie in one
buffer of the device, and no step asks the device for a value, so that the host only queues work.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_hrsam.errors import ConfigError, DataError, ShapeError

MEAN_RGB = (124, 116, 104)
_MIN_AREA_PX = 16
_MAX_ENLARGEMENT = 4.0
_MAX_LEVELS = 7
_LUMA = (0.299, 0.587, 0.114)
_TABLE_VALUES = 2**26
"""Values of the largest temporary of `dense_targets`."""


class LabelledImage(Protocol):
    """What `DeviceCrops` needs to know of a sample; `pack.PackedSample` is one.

    Attributes
    ----------
    domain : str
    pixels : (H, W) or (H, W, 3) uint8
    labels, second_labels : (H, W) whole numbers; the second may be None
    """

    @property
    def domain(self) -> str: ...  # noqa: D102
    @property
    def pixels(self) -> NDArray[np.uint8]: ...  # noqa: D102
    @property
    def labels(self) -> NDArray[Any]: ...  # noqa: D102
    @property
    def second_labels(self) -> NDArray[Any] | None: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """How crops are changed.

    Attributes
    ----------
    turn : bool
        Turn by multiples of 90 degrees and flip.
    warp : float
        Share of crops that are turned by any angle, stretched and sheared by up to 20 %.
    second_labels : float
        Share of crops with the second labels, of samples that have them.
    tone : float
        Strength of gamma, gain and offset; 1 = as in `batches.recolour`, 0 = none.
    grey, polarity, permute, blur, noise : float
        Shares of crops that are made grey, inverted, given other channels' colours, blurred by a
        3 x 3 mean, and made noisy.
    """

    turn: bool = True
    warp: float = 0.25
    second_labels: float = 0.3
    tone: float = 1.0
    grey: float = 0.2
    polarity: float = 0.15
    permute: float = 0.05
    blur: float = 0.12
    noise: float = 0.3


UNCHANGED = Augmentation(
    turn=False,
    warp=0,
    second_labels=0,
    tone=0,
    grey=0,
    polarity=0,
    permute=0,
    blur=0,
    noise=0,
)
"""Crops as they are."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceBatch:
    """Crops and objects in them: B crops, K objects of each, N = B K.

    Attributes
    ----------
    images : (B, 3, S, S) float32, 0..255
        RGB.
    labels : (B, S, S) int64
        Objects of each crop, numbered as in its image; 0 = background.
    masks : (N, S, S) bool
        One object each; the first of a crop is the one that it was cut for.
    crop_index : (N,) int64
        The crop that each object lies in.
    ids : (N,) int64
        The objects' values in `labels`.
    weight : (N,) float32
        1, or 0 for an object of which fewer than 16 pixels are seen.
    domain_index : (B,) int64
        Where each crop's domain stands in `DeviceCrops.domains`.
    object_index : (B,) int64
        Row of the object that each crop was cut for in the tables of `DeviceCrops`.
    max_id : int
        No value of `labels` is larger.
    """

    images: Tensor
    labels: Tensor
    masks: Tensor
    crop_index: Tensor
    ids: Tensor
    weight: Tensor
    domain_index: Tensor
    object_index: Tensor
    max_id: int


@dataclass(frozen=True, slots=True)
class _Objects:
    """A label map with its objects numbered from 1, and those of at least 16 pixels."""

    labels: NDArray[np.int32]
    numbers: NDArray[np.int64]
    boxes: NDArray[np.int64]
    areas: NDArray[np.int64]
    max_number: int


class DeviceCrops:
    """All images of a data set on a device, and batches of crops from them.

    Parameters
    ----------
    samples : sequence of LabelledImage
        Copied to the device; M of them hold objects.
    device : torch.device or str
    domain_factors : mapping of str to float, optional
        Factors on the shares of domains; 1 for those not named.
    domain_exponent : float
        A domain's share is (objects * images) to this power, times its factor.
    augmentation : Augmentation
    workers : int
        Threads that look for the objects.

    Attributes
    ----------
    domains : tuple of str
        Names, sorted.
    domain_shares : dict of str to float
        Share of the crops of each domain.
    boxes : (P, 4) float32, px
        y0, x0, y1, x1 of every object of at least 16 pixels, on the device.
    areas : (P,) int64, px
    object_ids, object_sample, object_domain, object_layer : (P,) int64
        Each object's number in `labels`, its row in the tables of images, its domain, and 1 for
        one of the second labels.
    sample_index : (M,) int64
        Which of `samples` each row of the tables of images is.
    max_id : int
        Largest number of an object.

    Raises
    ------
    DataError
        If no sample holds an object of at least 16 pixels.
    ShapeError
        If labels and pixels of a sample differ in size.
    """

    def __init__(
        self,
        samples: Sequence[LabelledImage],
        device: torch.device | str,
        *,
        domain_factors: Mapping[str, float] | None = None,
        domain_exponent: float = 0.1875,
        augmentation: Augmentation | None = None,
        workers: int = 8,
    ) -> None:
        self.device = torch.device(device)
        self.augmentation = augmentation or Augmentation()
        with ThreadPoolExecutor(max(1, workers)) as pool:
            found = list(pool.map(_objects_of, samples))
        kept = [i for i, maps in enumerate(found) if any(m.numbers.size for m in maps)]
        if not kept:
            raise DataError(
                f"none of the {len(samples)} samples holds an object of {_MIN_AREA_PX} or more "
                "pixels; give instance masks with at least one object"
            )
        # The images of a domain lie side by side, so that one is drawn with one number.
        kept.sort(key=lambda i: samples[i].domain)
        maps = [found[i] for i in kept]
        self.sample_index = torch.tensor(kept)
        self.max_id = max(m.max_number for pair in maps for m in pair)
        self._fill_images([samples[i].pixels for i in kept])
        self._fill_labels(maps)
        domains = self._fill_objects(maps, [samples[i].domain for i in kept])
        self._fill_shares(domains, domain_factors or {}, domain_exponent)
        self._mean = torch.tensor(MEAN_RGB, dtype=torch.float32, device=self.device)
        self._luma = torch.tensor(_LUMA, device=self.device)[:, None, None]

    def to(self, device: torch.device | str) -> DeviceCrops:
        """Copy everything to another device."""
        other = copy.copy(self)
        other.device = torch.device(device)
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(other, name, value.to(other.device))
        return other

    def batch(
        self,
        generator: torch.Generator | None,
        *,
        crop_px: int,
        num_crops: int,
        objects_per_crop: int,
        span: tuple[float, float] = (0.08, 0.6),
    ) -> DeviceBatch:
        """Draw one batch; the same generator state gives the same batch.

        Parameters
        ----------
        generator : torch.Generator
            On the device of the crops.
        crop_px : int
            Side S of a crop.
        num_crops, objects_per_crop : int
            B and K.
        span : (float, float)
            Smallest and largest share of the side that the chosen object's longer side takes;
            drawn log-uniformly. An object is enlarged up to 4 times, and a warped one shown
            smaller where it would not fit.

        Returns
        -------
        DeviceBatch

        Raises
        ------
        ConfigError
            If a number is out of range.
        """
        if not 0 < span[0] <= span[1] <= 1:
            raise ConfigError(f"span must be 0 < smallest <= largest <= 1, got {span}")
        if min(crop_px, num_crops, objects_per_crop) < 1:
            raise ConfigError(
                "crop_px, num_crops and objects_per_crop must be at least 1, got "
                f"{crop_px}, {num_crops} and {objects_per_crop}"
            )
        domain, sample, layer, chosen = self._choose(generator, num_crops)
        to_source, _ = self.place(generator, self.boxes[chosen], crop_px, span)
        images, labels = self.cut(sample, layer, to_source, crop_px)
        images = self.recolour(images, generator)
        low = (0.5 * span[0] * crop_px) ** 2
        high = (span[1] * crop_px) ** 2
        ids, weight = self._pick(
            labels, self.object_ids[chosen], generator, objects_per_crop, (low, high)
        )
        crop_index = torch.arange(num_crops * objects_per_crop, device=self.device)
        crop_index = crop_index // objects_per_crop
        masks = labels[crop_index] == ids[:, None, None]
        return DeviceBatch(
            images=images,
            labels=labels,
            masks=masks,
            crop_index=crop_index,
            ids=ids,
            weight=weight,
            domain_index=domain,
            object_index=chosen,
            max_id=self.max_id,
        )

    def cut(
        self, sample: Tensor, layer: Tensor, to_source: Tensor, crop_px: int
    ) -> tuple[Tensor, Tensor]:
        """Cut given squares, colours unchanged.

        Parameters
        ----------
        sample : (B,) int64
            Rows of the tables of images.
        layer : (B,) int64
            0 = labels, 1 = second labels (of a sample that has them).
        to_source : (B, 2, 3) float32
            Crop pixels to image pixels, (y, x, 1), both counted from the corner of the corner
            pixel: the centre of the first pixel is (0.5, 0.5).
        crop_px : int
            Side S of a crop.

        Returns
        -------
        images : (B, 3, S, S) float32, 0..255
            Bilinear, from the level of the pyramid that is nearest in size; the mean colour
            outside the image.
        labels : (B, S, S) int64
            Of the nearest pixel; 0 outside the image.
        """
        centres = torch.arange(crop_px, device=self.device) + 0.5
        matrix = to_source[:, :, :, None, None]
        rows, columns = centres[:, None], centres[None, :]
        y = matrix[:, 0, 0] * rows + matrix[:, 0, 1] * columns + matrix[:, 0, 2]
        x = matrix[:, 1, 0] * rows + matrix[:, 1, 1] * columns + matrix[:, 1, 2]
        height, width = (self._sizes[sample, 0, i, None, None] for i in (0, 1))
        inside = (y >= 0) & (y < height) & (x >= 0) & (x < width)
        pixel = _clip(y.floor().long(), height) * width + _clip(x.floor().long(), width)
        labels = self._labels[self._label_starts[sample, layer, None, None] + pixel].long()
        images = self._bilinear(sample, to_source, y, x)
        images = torch.where(inside[..., None], images, self._mean)
        return images.permute(0, 3, 1, 2).contiguous(), labels * inside

    def recolour(self, images: Tensor, generator: torch.Generator | None) -> Tensor:
        """Change intensity, contrast, colour, polarity, noise and sharpness.

        Parameters
        ----------
        images : (B, 3, S, S) float32, 0..255
        generator : torch.Generator
            On the device of the images.

        Returns
        -------
        (B, 3, S, S) float32, 0..255
            Whole numbers.
        """
        config, num = self.augmentation, len(images)
        share = torch.rand((6, num, 1, 1, 1), generator=generator, device=self.device)
        normal = torch.randn((7, num, 1, 1, 1), generator=generator, device=self.device)
        x = images / 255
        x = torch.where(share[0] < config.grey, (x * self._luma).sum(1, keepdim=True), x)
        x = x ** torch.exp(0.25 * config.tone * normal[0])
        gain = torch.exp(
            config.tone * (0.2 * normal[1] + 0.07 * normal[2:5].permute(4, 1, 0, 2, 3)[0])
        )
        x = (x - 0.5) * gain + (0.5 + 0.08 * config.tone * normal[5])
        x = torch.where(share[1] < config.polarity, 1 - x, x)
        order = torch.rand((num, 3), generator=generator, device=self.device).argsort(1)
        permuted = x.gather(1, order[:, :, None, None].expand_as(x))
        x = torch.where(share[2] < config.permute, permuted, x)
        blurred = F.avg_pool2d(F.pad(x, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
        x = torch.where(share[3] < config.blur, blurred, x)
        noise = torch.randn(x.shape, generator=generator, device=self.device)
        # Most noise is the same in all channels, as of a grey camera.
        noise = torch.where(share[5] < 0.7, noise[:, :1], noise)
        strength = 0.04 * normal[6].abs() * (share[4] < config.noise)
        return ((x + strength * noise) * 255).round().clamp(0, 255)

    def _choose(
        self, generator: torch.Generator | None, num: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Draw domain, image, label map and object of each crop."""
        u = torch.rand((4, num), generator=generator, device=self.device)
        domain = torch.searchsorted(self._cumulated, u[0].contiguous(), right=True)
        domain = domain.clamp(max=len(self.domains) - 1)
        sample = self._domain_first[domain] + _below(u[1], self._domain_num[domain])
        counts = self._object_num[sample]
        wanted = u[2] < self.augmentation.second_labels
        layer = ((wanted & (counts[:, 1] > 0)) | (counts[:, 0] == 0)).long()
        chosen = self._object_first[sample, layer] + _below(u[3], self._object_num[sample, layer])
        return domain, sample, layer, chosen

    def place(
        self,
        generator: torch.Generator | None,
        boxes: Tensor,
        crop_px: int,
        span: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        """Draw where boxes lie in their crops.

        Parameters
        ----------
        generator : torch.Generator
            On the device of the crops.
        boxes : (B, 4) float
            y0, x0, y1, x1 in image pixels.
        crop_px, span
            As in `batch`.

        Returns
        -------
        to_source : (B, 2, 3) float32
            As `cut` takes it.
        spans : (B,) float32
            Shares of the side that the boxes' longer sides take.
        """
        num = len(boxes)
        u = torch.rand((10, num), generator=generator, device=self.device)
        linear = self._turned(u[3:])
        low, high = math.log(span[0]), math.log(span[1])
        size = boxes[:, 2:] - boxes[:, :2]
        extent = (linear.abs() * size[:, None, :]).sum(2)
        scale = torch.exp(low + (high - low) * u[0]) * crop_px / size.amax(1)
        scale = torch.minimum(scale.clamp(max=_MAX_ENLARGEMENT), crop_px / extent.amax(1))
        extent = extent * scale[:, None]
        free = (crop_px - extent).clamp(min=0)
        centre = (0.05 + 0.9 * u[1:3].T) * free + extent / 2
        (a, b), (c, d) = linear[:, 0].unbind(1), linear[:, 1].unbind(1)
        # torch.linalg.inv would wait for the device.
        inverse = torch.stack([d, -b, -c, a], 1) / ((a * d - b * c) * scale)[:, None]
        inverse = inverse.reshape(num, 2, 2)
        middle = (boxes[:, :2] + boxes[:, 2:]) / 2
        offset = middle - (inverse * centre[:, None, :]).sum(2)
        spans = scale * size.amax(1) / crop_px
        return torch.cat([inverse, offset[:, :, None]], 2), spans

    def _turned(self, u: Tensor) -> Tensor:
        """Draw turns, flips and warps, (B, 2, 2), from 7 uniform numbers a crop."""
        config = self.augmentation
        warped = u[0] < config.warp
        angle = torch.where(warped, (2 * u[1] - 1) * math.pi, 0.0)
        stretch = torch.where(warped, 0.4 * u[2] - 0.2, 0.0).exp().sqrt()
        shear = torch.where(warped, 0.4 * u[3] - 0.2, 0.0)
        cos, sin = angle.cos(), angle.sin()
        # A turn after a shear and a stretch that keep the area.
        rows = [
            torch.stack([cos * stretch, cos * shear - sin / stretch], 1),
            torch.stack([sin * stretch, sin * shear + cos / stretch], 1),
        ]
        linear = torch.stack(rows, 1)
        if not config.turn:
            return linear
        swap = (u[4] < 0.5)[:, None, None]
        linear = torch.where(swap, linear.flip(1), linear)
        flips = torch.where(u[5:7] < 0.5, -1.0, 1.0)
        return linear * flips.T[:, :, None]

    def _bilinear(self, sample: Tensor, to_source: Tensor, y: Tensor, x: Tensor) -> Tensor:
        """Colours at places of the images, (B, S, S, 3) float32."""
        a, b, c, d = to_source[:, :, :2].reshape(-1, 4).unbind(1)
        step = (a * d - b * c).abs().sqrt()
        level = (step.log2() + 0.5).floor().clamp(min=0).long()
        level = torch.minimum(level, self._num_levels[sample] - 1)
        factor = torch.exp2(-level.float())[:, None, None]
        start = self._image_starts[sample, level, None, None]
        height, width = (self._sizes[sample, level, i, None, None] for i in (0, 1))
        y, x = y * factor - 0.5, x * factor - 0.5
        top, left = y.floor(), x.floor()
        below, right = (y - top)[..., None], (x - left)[..., None]
        top, left = top.long(), left.long()
        rows = [start + _clip(top + i, height) * width for i in (0, 1)]
        columns = [_clip(left + i, width) for i in (0, 1)]
        upper, lower = (
            torch.lerp(self._colours(row + columns[0]), self._colours(row + columns[1]), right)
            for row in rows
        )
        return torch.lerp(upper, lower, below)

    def _colours(self, index: Tensor) -> Tensor:
        """Colours of pixels of the buffer, (..., 3) float32."""
        # One 32-bit value a pixel is one read; three bytes would be three.
        colours = self._texels[index].view(torch.uint8)
        return colours.reshape(*index.shape, 4)[..., :3].float()

    def _pick(
        self,
        labels: Tensor,
        chosen: Tensor,
        generator: torch.Generator | None,
        num: int,
        limits: tuple[float, float],
    ) -> tuple[Tensor, Tensor]:
        """Take each crop's object and random others of a fitting size: (N,) ids and weights."""
        num_crops = len(labels)
        areas = torch.zeros(
            (num_crops, max(self.max_id + 1, num)), dtype=torch.int32, device=self.device
        )
        flat = labels.reshape(num_crops, -1)
        areas.scatter_add_(1, flat, torch.ones_like(flat, dtype=torch.int32))
        scores = torch.rand(areas.shape, generator=generator, device=self.device)
        scores = torch.where((areas > limits[0]) & (areas < limits[1]), scores, -1.0)
        scores[:, 0].fill_(-1)
        scores.scatter_(1, chosen[:, None], torch.full_like(chosen, 2, dtype=scores.dtype)[:, None])
        best = scores.topk(num, dim=1)
        ids = torch.where(best.values >= 0, best.indices, chosen[:, None])
        weight = (areas.gather(1, ids) >= _MIN_AREA_PX).float()
        return ids.reshape(-1), weight.reshape(-1)

    def _fill_images(self, images: Sequence[NDArray[np.uint8]]) -> None:
        """Copy the images and their pyramids to the device."""
        starts = np.zeros((len(images), _MAX_LEVELS), np.int64)
        sizes = np.zeros((len(images), _MAX_LEVELS, 2), np.int64)
        num_levels = np.zeros(len(images), np.int64)
        total = 0
        for i, image in enumerate(images):
            height, width = image.shape[:2]
            for level in range(_MAX_LEVELS):
                starts[i, level], sizes[i, level] = total, (height, width)
                total += height * width
                num_levels[i] = level + 1
                if max(height, width) <= 4:
                    break
                height, width = -(-height // 2), -(-width // 2)
        self._texels = torch.empty(total, dtype=torch.int32, device=self.device)
        for i, image in enumerate(images):
            for level, colours in enumerate(_pyramid(image, int(num_levels[i]), self.device)):
                start = int(starts[i, level])
                self._texels[start : start + len(colours)] = colours
        self._image_starts = torch.from_numpy(starts).to(self.device)
        self._sizes = torch.from_numpy(sizes).to(self.device)
        self._num_levels = torch.from_numpy(num_levels).to(self.device)

    def _fill_labels(self, maps: Sequence[Sequence[_Objects]]) -> None:
        """Copy the label maps to the device."""
        total = sum(m.labels.size for pair in maps for m in pair)
        narrow = self.max_id <= np.iinfo(np.int16).max
        dtype = torch.int16 if narrow else torch.int32
        self._labels = torch.empty(total, dtype=dtype, device=self.device)
        starts = np.zeros((len(maps), 2), np.int64)
        place = 0
        for i, pair in enumerate(maps):
            for layer, m in enumerate(pair):
                starts[i, layer] = place
                flat = torch.from_numpy(m.labels.reshape(-1))
                self._labels[place : place + flat.numel()] = flat.to(self.device).to(dtype)
                place += flat.numel()
        self._label_starts = torch.from_numpy(starts).to(self.device)

    def _fill_objects(
        self, maps: Sequence[Sequence[_Objects]], domains: Sequence[str]
    ) -> list[int]:
        """Make the tables of objects; the domain of every image."""
        self.domains = tuple(sorted(set(domains)))
        numbers = [self.domains.index(d) for d in domains]
        first, num = np.zeros((2, len(maps), 2), np.int64)
        columns: list[list[NDArray[np.int64]]] = [[], [], [], [], [], []]
        place = 0
        for i, pair in enumerate(maps):
            for layer, m in enumerate(pair):
                first[i, layer], num[i, layer] = place, m.numbers.size
                place += m.numbers.size
                same = (np.full(m.numbers.size, v, np.int64) for v in (i, numbers[i], layer))
                for column, values in zip(
                    columns, (m.boxes, m.areas, m.numbers, *same), strict=True
                ):
                    column.append(values)
        tables = [torch.from_numpy(np.concatenate(c)).to(self.device) for c in columns]
        self.boxes, self.areas = tables[0].float(), tables[1]
        self.object_ids, self.object_sample, self.object_domain, self.object_layer = tables[2:]
        self._object_first = torch.from_numpy(first).to(self.device)
        self._object_num = torch.from_numpy(num).to(self.device)
        return numbers

    def _fill_shares(
        self, domains: Sequence[int], factors: Mapping[str, float], exponent: float
    ) -> None:
        """Make the tables of domains."""
        unknown = sorted(set(factors) - set(self.domains))
        if unknown:
            raise ConfigError(f"unknown domains {unknown}; expected some of {self.domains}")
        num_images = np.bincount(domains, minlength=len(self.domains))
        counts = torch.bincount(self.object_domain, minlength=len(self.domains)).cpu().numpy()
        weights = (counts * num_images.astype(float)) ** exponent
        weights = weights * [factors.get(name, 1.0) for name in self.domains]
        shares = weights / weights.sum()
        self.domain_shares = dict(zip(self.domains, shares.tolist(), strict=True))
        self._cumulated = torch.from_numpy(np.cumsum(shares)).float().to(self.device)
        self._domain_num = torch.from_numpy(num_images).to(self.device)
        self._domain_first = self._domain_num.cumsum(0) - self._domain_num


def dense_targets(labels: Tensor, *, max_id: int | None = None) -> Tensor:
    """Make the maps that a head for automatic segmentation learns, at half the resolution.

    Parameters
    ----------
    labels : (B, S, S) int64, S even
        0 = background. A cell of 2 x 2 pixels belongs to whichever label it holds most of, to an
        object before the background.
    max_id : int, optional
        No label is larger. Without it the device is asked, which takes a wait.

    Returns
    -------
    (B, 3, S / 2, S / 2) float32, 0..1
        Foreground; distance to the object's centre, 0 there and 1 at the furthest pixel; distance
        to the nearest pixel of another label, 1 at the deepest pixel. All 0 in the background.
        The centre is the pixel nearest to the centroid among those of at least 0.9 of the
        object's depth. The crop's border is no boundary: an object that it cuts goes on beyond.

    Raises
    ------
    ShapeError
        If `labels` is not (B, S, S) with an even S.
    """
    if labels.ndim != 3 or labels.shape[1] % 2 or labels.shape[2] % 2:
        raise ShapeError(f"labels must be (B, S, S) with an even S, got {tuple(labels.shape)}")
    cells = _halved(labels)
    num, height, width = cells.shape
    rows_per_crop = (int(labels.max()) if max_id is None else max_id) + 1
    crop = torch.arange(num, device=labels.device)[:, None, None]
    index = (crop * rows_per_crop + cells).reshape(-1)
    groups = _Groups(index, num * rows_per_crop)
    is_object = (cells > 0).reshape(-1)
    depth = _squared_distance_to_other(cells).reshape(-1).float().sqrt()
    to_boundary = depth / groups.largest(depth)
    y = torch.arange(height, device=labels.device)[:, None].expand(num, height, width).reshape(-1)
    x = torch.arange(width, device=labels.device).expand(num, height, width).reshape(-1)
    area = groups.total(torch.ones_like(index))
    off_centroid = (y - groups.total(y) / area) ** 2 + (x - groups.total(x) / area) ** 2
    off_centroid = torch.where(to_boundary >= 0.9, off_centroid, math.inf)
    # Of equally near pixels the first in row-major order is the centre.
    place = y * width + x
    place = torch.where(off_centroid == groups.smallest(off_centroid), place, height * width)
    centre = groups.smallest(place)
    to_centre = (y - centre // width) ** 2 + (x - centre % width) ** 2
    to_centre = to_centre.float().sqrt()
    to_centre = to_centre / groups.largest(to_centre).clamp(min=1)
    maps = torch.stack([torch.ones_like(depth), to_centre, to_boundary]) * is_object
    return maps.reshape(3, num, height, width).transpose(0, 1).contiguous()


class _Groups:
    """Sums and extremes of values over groups of pixels, given back for every pixel."""

    def __init__(self, index: Tensor, num: int) -> None:
        self.index, self.num = index, num

    def total(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.num).scatter_add_(0, self.index, values)[self.index]

    def largest(self, values: Tensor) -> Tensor:
        return self._extreme(values, "amax")

    def smallest(self, values: Tensor) -> Tensor:
        return self._extreme(values, "amin")

    def _extreme(self, values: Tensor, which: str) -> Tensor:
        out = values.new_zeros(self.num)
        out = out.scatter_reduce(0, self.index, values, which, include_self=False)
        return out[self.index]


def _halved(labels: Tensor) -> Tensor:
    """Label of every cell of 2 x 2 pixels: the most frequent one, an object before background."""
    corners = [labels[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    four = torch.stack(corners)
    votes = torch.stack([(four == corner).sum(0) for corner in corners])
    best = (2 * votes + (four > 0)).argmax(0, keepdim=True)
    return four.gather(0, best)[0]


def _squared_distance_to_other(labels: Tensor) -> Tensor:
    """Square of the distance to the nearest pixel of another label.

    Parameters
    ----------
    labels : (B, H, W) int64

    Returns
    -------
    (B, H, W) int32, px^2
        (H + W)^2, more than any distance, where there is no other label.
    """
    num, height, width = labels.shape
    far = height + width
    in_row = torch.minimum(_to_change(labels, far), _to_change(labels.flip(2), far).flip(2)).clamp(
        max=far
    )
    in_row = in_row**2
    rows = torch.arange(height, dtype=torch.int32, device=labels.device)
    step = (rows[:, None] - rows) ** 2
    nearest = torch.empty_like(in_row)
    # Whatever lies in another row counts at its own row if its label differs, and at the end of
    # its run if it is the same.
    at_once = max(1, _TABLE_VALUES // (height * height * width))
    for start in range(0, num, at_once):
        part = slice(start, start + at_once)
        same = labels[part, None] == labels[part, :, None]
        table = torch.where(same, in_row[part, None], 0) + step[:, :, None]
        nearest[part] = table.amin(2)
    return nearest.clamp(max=far**2)


def _to_change(labels: Tensor, far: int) -> Tensor:
    """Distance to the last pixel of another label to the left, in px; int32."""
    columns = torch.arange(labels.shape[2], dtype=torch.int32, device=labels.device)
    changes = F.pad(labels[..., 1:] != labels[..., :-1], (1, 0))
    last = torch.where(changes, columns - 1, -far).cummax(2).values
    return columns - last


def _pyramid(image: NDArray[np.uint8], num_levels: int, device: torch.device) -> list[Tensor]:
    """Pixels of an image and of its halvings, one 32-bit value each: red, green, blue, nothing."""
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"])).to(device)
    pixels = pixels[..., None].expand(-1, -1, 3) if pixels.ndim == 2 else pixels
    x = pixels.permute(2, 0, 1)[None].float()
    levels = []
    for level in range(num_levels):
        if level:
            # The mean of the pixels that there are, at the edge of an odd side too.
            x = F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False)
        colours = F.pad(x[0].round().to(torch.uint8).permute(1, 2, 0), (0, 1)).contiguous()
        levels.append(colours.view(torch.int32).reshape(-1))
    return levels


def _objects_of(sample: LabelledImage) -> list[_Objects]:
    maps = (
        [sample.labels] if sample.second_labels is None else [sample.labels, sample.second_labels]
    )
    for labels in maps:
        if labels.shape != sample.pixels.shape[:2]:
            raise ShapeError(
                f"labels must be of the image's size {sample.pixels.shape[:2]}, got {labels.shape}"
            )
    return [_find_objects(labels) for labels in maps]


def _find_objects(labels: NDArray[Any]) -> _Objects:
    """Give the objects of a label map numbers, and measure them run by run of equal pixels."""
    starts = np.ones(labels.shape, bool)
    np.not_equal(labels[:, 1:], labels[:, :-1], out=starts[:, 1:])
    first = np.flatnonzero(starts)
    length = np.diff(first, append=labels.size)
    values, number = np.unique(labels.reshape(-1)[first], return_inverse=True)
    if not (values.size and values[0] == 0):
        values, number = np.insert(values, 0, 0), number + 1
    y, x = np.divmod(first, labels.shape[1])
    numbered = np.repeat(number, length).astype(np.int32).reshape(labels.shape)
    areas = np.bincount(number, length, minlength=values.size).astype(np.int64)
    boxes = np.zeros((values.size, 4), np.int64)
    boxes[:, :2] = max(labels.shape)
    np.minimum.at(boxes[:, 0], number, y)
    np.minimum.at(boxes[:, 1], number, x)
    np.maximum.at(boxes[:, 2], number, y + 1)
    np.maximum.at(boxes[:, 3], number, x + length)
    numbers = np.flatnonzero(areas >= _MIN_AREA_PX)
    numbers = numbers[numbers > 0]
    return _Objects(numbered, numbers, boxes[numbers], areas[numbers], values.size - 1)


def _clip(index: Tensor, size: Tensor) -> Tensor:
    return torch.minimum(index.clamp(min=0), size - 1)


def _below(u: Tensor, num: Tensor) -> Tensor:
    """Whole numbers from 0 to num - 1 from uniform numbers."""
    return torch.minimum((u * num).long(), num - 1)
