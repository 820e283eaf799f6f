"""Tell whether an image is the one that was opened before, without reading all of it.

The answer depends on what the model is shown: size, levels, and for each colour its limits, its
look and a sample of its pixels. It does not depend on where the image lies, on its times, on the
order of its axes, or on what reads it, so it is the same for a copy on another machine, and for a
file opened by its path and the same file shown in napari.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box
from napari_hrsam.storage.images.limits import telling_level
from napari_hrsam.storage.images.tile_source import MEAN_RGB, PyramidImage

if TYPE_CHECKING:
    from napari_hrsam.storage.images.stored import StoredLevel

PIXELS_VERSION = 1
"""Of how pixels are read from an image: raised when a tile of the same image would differ."""

MAX_WHOLE_BYTES = 2**22
"""An array in memory up to this size is looked at as a whole."""

MAX_SAMPLES = 150_000
"""Values looked at in a larger one, spread evenly."""

MAX_WHOLE_PX = 2**20
"""Pixels of a coarse level up to which planes are looked at as a whole."""

PLANES = 3
"""Planes of a stack that are looked at: the first, the last, and between."""

WINDOWS, WINDOW_PX = 8, 64
"""Windows that are read of a larger one, and their side."""


@dataclass(frozen=True, slots=True)
class ImageIdentity:
    """What an image looks like to a model.

    Attributes
    ----------
    digest : str
        24 hex digits; differs where anything that the model sees is known to differ.
    shape_yx : (int, int)
        Of the image in level-0 pixels.
    plane_shape : tuple of int
        Number of planes along each other axis. Axes of length 1 count for nothing.
    """

    digest: str
    shape_yx: tuple[int, int]
    plane_shape: tuple[int, ...]


def identify(image: PyramidImage, fill: tuple[int, int, int] = MEAN_RGB) -> ImageIdentity:
    """Fingerprint an open image; takes about the same time whatever its size.

    Content is looked at in places: arrays in memory up to 4 MiB as a whole, larger ones at a grid
    of 150,000 values; of all others a coarse level, or windows of it if it is large. A change
    at other places only is not noticed.

    Parameters
    ----------
    image : PyramidImage
    fill : (red, green, blue)
        Colour shown outside the image.

    Returns
    -------
    ImageIdentity

    Raises
    ------
    ImageReadError
        If the pixels looked at cannot be read.
    """
    levels = image.stored_levels
    # What is not shown counts for nothing; a channel shown as several colours is looked at once.
    used = list(dict.fromkeys(channel for channel in image.shown if channel is not None))
    shown = zip(image.shown, image.contrast_limits, strict=True)
    facts: dict[str, Any] = {
        "pixels": PIXELS_VERSION,
        "fill": fill,
        "shown": [None if c is None else (used.index(c), _plain(limits)) for c, limits in shown],
        "planes": [size for size in image.plane_shape if size > 1],
        "levels": [
            (level.shape_yx, level.dtype.kind, level.dtype.itemsize, _rounded(level.factor_yx))
            for level in levels
        ],
    }
    if image.looks:
        # Left out where channels are shown as they are, so that what was kept before is found.
        facts["looks"] = [look.facts for look in image.looks]
    digest = hashlib.sha256(json.dumps(facts).encode())
    for part in _sample(levels, used):
        digest.update(_little(part))
    return ImageIdentity(digest.hexdigest()[:24], image.shape_yx, image.plane_shape)


def _plain(values: tuple[float, float]) -> list[float]:
    return [float(value) for value in values]


def _rounded(factor_yx: tuple[float, float]) -> list[float]:
    """Factors found from scales and from shapes differ in their last digits."""
    return [float(f"{factor:.6g}") for factor in factor_yx]


def _little(values: NDArray[Any]) -> bytes:
    """Bytes of an array, the same on every machine."""
    return values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def _sample(levels: tuple[StoredLevel, ...], channels: list[int]) -> Iterator[NDArray[Any]]:
    """Yield pixels of some channels."""
    if all(level.is_in_memory and not _is_mapped(level.data) for level in levels):
        for level in levels:
            yield from _grid(level, channels)
    else:
        yield from _places(telling_level(levels), channels)


def _read(
    level: StoredLevel, box: Box, plane: tuple[int, ...], channels: list[int]
) -> NDArray[Any]:
    """Read (box.height, box.width, len(channels)) pixels, the channels in any order."""
    pixels = level.read(box, plane, tuple(sorted(channels)))
    return pixels if channels == sorted(channels) else pixels[..., np.argsort(np.argsort(channels))]


def _is_mapped(array: NDArray[Any]) -> bool:
    """Whether pixels are read from a file when they are touched."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return isinstance(base, mmap.mmap)


def _grid(level: StoredLevel, channels: list[int]) -> Iterator[NDArray[Any]]:
    """Yield pixels of all planes of an array in memory, every n-th along each long axis."""
    num = len(channels) * math.prod(level.shape_yx) * math.prod(level.plane_shape)
    step = 1
    if num * level.dtype.itemsize > MAX_WHOLE_BYTES:
        long = 2 + sum(size > 8 for size in level.plane_shape)
        step = math.ceil((num / MAX_SAMPLES) ** (1 / long))
    box = Box.of_shape(level.shape_yx)
    along = [range(0, size, step if size > 8 else 1) for size in level.plane_shape]
    for plane in itertools.product(*along):
        yield _read(level, box, plane, channels)[::step, ::step]


def _places(level: StoredLevel, channels: list[int]) -> Iterator[NDArray[Any]]:
    """Yield some planes of a small level, or some windows of a larger one."""
    height, width = level.shape_yx
    planes = sorted({_plane(level.plane_shape, place / (PLANES - 1)) for place in range(PLANES)})
    if height * width * len(planes) <= MAX_WHOLE_PX:
        for plane in planes:
            yield _read(level, Box.of_shape(level.shape_yx), plane, channels)
        return
    for place in range(WINDOWS):
        # Spread over rows and columns alike: no two windows share a row or a column.
        share, other = (place + 0.5) / WINDOWS, (place * 5 % WINDOWS + 0.5) / WINDOWS
        y, x = int(share * height), int(other * width)
        box = Box(y, x, y + WINDOW_PX, x + WINDOW_PX).clip((height, width))
        yield _read(level, box, planes[place % len(planes)], channels)


def _plane(sizes: tuple[int, ...], share: float) -> tuple[int, ...]:
    return tuple(round(share * (size - 1)) for size in sizes)
