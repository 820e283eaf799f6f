"""Images and label maps of any size in flat buffers of a device, and squares cut from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_hrsam.errors import ShapeError

MEAN_RGB = (124, 116, 104)
MIN_AREA_PX = 16
"""Smaller objects are not trained on; they are no background either."""
_MAX_LEVELS = 7


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


@dataclass(frozen=True, slots=True)
class LabelledObjects:
    """A label map with its objects numbered from 1, and those of at least 16 pixels.

    Attributes
    ----------
    labels : (H, W) int32
        0 = background.
    numbers : (N,) int64
        Objects of at least 16 pixels.
    boxes : (N, 4) int64, px
        Their y0, x0, y1, x1.
    areas : (N,) int64, px
    max_number : int
        Number of objects of any size.
    """

    labels: NDArray[np.int32]
    numbers: NDArray[np.int64]
    boxes: NDArray[np.int64]
    areas: NDArray[np.int64]
    max_number: int


class DeviceImages:
    """Images with their pyramids, and their label maps, on a device.

    Parameters
    ----------
    images : sequence of (H, W) or (H, W, 3) uint8
        M images.
    maps : sequence of sequence of LabelledObjects
        The label maps of each image, one or two.
    device : torch.device

    Attributes
    ----------
    max_id : int
        Largest number of an object.
    """

    def __init__(
        self,
        images: Sequence[NDArray[np.uint8]],
        maps: Sequence[Sequence[LabelledObjects]],
        device: torch.device,
    ) -> None:
        self.device = device
        self.max_id = max(m.max_number for pair in maps for m in pair)
        self._mean = torch.tensor(MEAN_RGB, dtype=torch.float32, device=device)
        self._fill_images(images)
        self._fill_labels(maps)

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

    def _fill_labels(self, maps: Sequence[Sequence[LabelledObjects]]) -> None:
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


def objects_of(sample: LabelledImage) -> list[LabelledObjects]:
    """Find and measure the objects of a sample's label maps.

    Parameters
    ----------
    sample : LabelledImage

    Returns
    -------
    list of LabelledObjects
        Of the labels and, where there are any, the second labels.

    Raises
    ------
    ShapeError
        If labels and pixels differ in size.
    """
    maps = [m for m in (sample.labels, sample.second_labels) if m is not None]
    for labels in maps:
        if labels.shape != sample.pixels.shape[:2]:
            raise ShapeError(
                f"labels must be of the image's size {sample.pixels.shape[:2]}, got {labels.shape}"
            )
    return [_find_objects(labels) for labels in maps]


def _find_objects(labels: NDArray[Any]) -> LabelledObjects:
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
    numbers = np.flatnonzero(areas >= MIN_AREA_PX)
    numbers = numbers[numbers > 0]
    return LabelledObjects(numbered, numbers, boxes[numbers], areas[numbers], values.size - 1)


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


def _clip(index: Tensor, size: Tensor) -> Tensor:
    return torch.minimum(index.clamp(min=0), size - 1)
