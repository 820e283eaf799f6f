"""Random crops with objects, drawn, cut and coloured on the device in one batch.

The rules are those of `batches`: a domain is drawn, then one of its images, then one of its
objects, and a square is cut so that the object spans a random share of it. All images lie in one
buffer of the device, and no step asks the device for a value, so that the host only queues work.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_hrsam.errors import ConfigError, DataError
from napari_hrsam.training.device_images import (
    MIN_AREA_PX,
    DeviceImages,
    LabelledImage,
    LabelledObjects,
    objects_of,
)

_MAX_ENLARGEMENT = 4.0
_LUMA = (0.299, 0.587, 0.114)


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
    measured : sequence of list of LabelledObjects, optional
        What `objects_of` finds in the samples, where that is known already.
    workers : int
        Threads that look for the objects otherwise.

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
    images : DeviceImages
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
        measured: Sequence[list[LabelledObjects]] | None = None,
        workers: int = 8,
    ) -> None:
        self.device = torch.device(device)
        self.augmentation = augmentation or Augmentation()
        if measured is None:
            with ThreadPoolExecutor(max(1, workers)) as pool:
                measured = list(pool.map(objects_of, samples))
        found = measured
        kept = [i for i, maps in enumerate(found) if any(m.numbers.size for m in maps)]
        if not kept:
            raise DataError(
                f"none of the {len(samples)} samples holds an object of {MIN_AREA_PX} or more "
                "pixels; give instance masks with at least one object"
            )
        # The images of a domain lie side by side, so that one is drawn with one number.
        kept.sort(key=lambda i: samples[i].domain)
        maps = [found[i] for i in kept]
        self.sample_index = torch.tensor(kept)
        self.images = DeviceImages([samples[i].pixels for i in kept], maps, self.device)
        self.max_id = self.images.max_id
        domains = self._fill_objects(maps, [samples[i].domain for i in kept])
        self._fill_shares(domains, domain_factors or {}, domain_exponent)
        self._luma = torch.tensor(_LUMA, device=self.device)[:, None, None]

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
        images, labels = self.images.cut(sample, layer, to_source, crop_px)
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
            As `DeviceImages.cut` takes it.
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
        weight = (areas.gather(1, ids) >= MIN_AREA_PX).float()
        return ids.reshape(-1), weight.reshape(-1)

    def _fill_objects(
        self, maps: Sequence[Sequence[LabelledObjects]], domains: Sequence[str]
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


def _below(u: Tensor, num: Tensor) -> Tensor:
    """Whole numbers from 0 to num - 1 from uniform numbers."""
    return torch.minimum((u * num).long(), num - 1)
