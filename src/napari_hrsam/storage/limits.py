"""Brightness limits of a whole image, found from a coarse stored level."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.colours import Shown
from napari_hrsam.storage.stored import StoredLevel

MAX_SAMPLE = 1_000_000
"""Pixels looked at to find the brightness limits."""

MAX_WHOLE = 4_000_000
"""Pixels of a level that is not in memory up to which it is read whole."""

WINDOWS = ((8, 128), (24, 64))
"""Windows along each axis and their side, for a level too large to be read: first try, second."""

MAX_JOINED = 2**22
"""Pixels of one chunk that are looked at together."""

MIN_PIXELS = 2**14
"""Pixels of a level that stand for an image: means over fewer do not reach its extremes."""

MAX_PLANES = 4
"""Planes of a stack that are looked at."""

STRIP_PIXELS = 2_000_000
"""Pixels looked at together when a whole array in memory is searched."""


def telling_level(levels: Sequence[StoredLevel]) -> StoredLevel:
    """Choose the coarsest level that has enough pixels to stand for the image.

    Parameters
    ----------
    levels : sequence of StoredLevel
        Finest first.
    """
    return next(
        (level for level in reversed(levels) if math.prod(level.shape_yx) >= MIN_PIXELS), levels[0]
    )


def find_limits(
    levels: Sequence[StoredLevel], shown: Shown, *, separate: bool
) -> tuple[tuple[float, float], ...]:
    """Choose the values shown as black and white for each colour.

    Parameters
    ----------
    levels : sequence of StoredLevel
        All of the image, finest first; the coarsest with `MIN_PIXELS` is looked at.
    shown : (red, green, blue)
        The channel shown as each colour.
    separate : bool
        Whether channels are separate, so that each has limits of its own.

    Returns
    -------
    ((low, high), (low, high), (low, high))
        uint8 RGB as it is, bool from False to True, else the 0.1 and 99.9 percentiles of a sample.
        Missing pixels do not count. A level that is neither in memory nor small is sampled in
        windows spread over it.

    Raises
    ------
    ImageError
        If no pixel looked at is finite.
    """
    level = telling_level(levels)
    dtype = level.native_dtype
    if dtype == np.bool_ or (dtype == np.uint8 and len(set(shown)) > 1 and not separate):
        return ((0.0, 1.0 if dtype == np.bool_ else 255.0),) * 3
    found: dict[int, tuple[float, float]] = {}
    together = [channel for channel in dict.fromkeys(shown) if channel is not None]
    for group in [[channel] for channel in together] if separate else [together]:
        channels = tuple(sorted(group))
        limits = _in_memory(level, channels) if level.is_in_memory else _lazy(level, channels)
        found.update(dict.fromkeys(group, limits))
    return tuple((0.0, 1.0) if channel is None else found[channel] for channel in shown)


def _in_memory(level: StoredLevel, channels: tuple[int, ...]) -> tuple[float, float]:
    planes = _planes(level.plane_shape)
    step = max(1, math.ceil(math.sqrt(math.prod(level.shape_yx) * len(planes) / MAX_SAMPLE)))
    whole = Box.of_shape(level.shape_yx)
    parts = [level.read(whole, plane, channels)[::step, ::step] for plane in planes]
    low, high = _percentiles(np.concatenate([part.reshape(-1) for part in parts]))
    if low < high:
        return low, high
    # Nearly all of the sample is one value: the few others may lie between the sampled pixels.
    rows = max(1, STRIP_PIXELS // level.shape_yx[1])
    strips = (
        level.read(Box(y, 0, min(y + rows, whole.y1), whole.x1), plane, channels)
        for plane in planes
        for y in range(0, whole.y1, rows)
    )
    return _widened(*_finite_range(strips, level))


def _lazy(level: StoredLevel, channels: tuple[int, ...]) -> tuple[float, float]:
    planes = _planes(level.plane_shape)
    if math.prod(level.shape_yx) <= MAX_WHOLE:
        boxes = [[Box.of_shape(level.shape_yx)]]
    else:
        boxes = [
            _once_a_chunk(_windows(level.shape_yx, num, side), level.chunk_yx)
            for num, side in WINDOWS
        ]
    for tried in boxes:
        num_px = sum(box.area for box in tried) * len(planes)
        step = max(1, math.ceil(math.sqrt(num_px / MAX_SAMPLE)))
        parts = [
            level.read(box, plane, channels)[::step, ::step].copy()  # lets go of the rest
            for plane in planes
            for box in tried
        ]
        low, high = _percentiles(np.concatenate([part.reshape(-1) for part in parts]))
        if low < high:
            return low, high
    if any(np.isfinite(part).any() for part in parts):
        return _widened(*_finite_range(iter(parts), level))
    # All that was looked at is missing: what there is lies between the windows.
    return _widened(*_finite_range(_first_finite(level, planes, channels), level))


def _first_finite(
    level: StoredLevel, planes: list[tuple[int, ...]], channels: tuple[int, ...]
) -> Iterator[NDArray[np.generic]]:
    """Go through a level until enough of it is finite; yield those parts."""
    height, width = level.shape_yx
    rows = max(level.chunk_yx[0], STRIP_PIXELS // width, 1)
    num_found = 0
    for plane, y in itertools.product(planes, range(0, height, rows)):
        part = level.read(Box(y, 0, min(y + rows, height), width), plane, channels)
        num_finite = int(np.isfinite(part).sum())
        if num_finite:
            yield part
        num_found += num_finite
        if num_found >= MIN_PIXELS:
            return


def _planes(plane_shape: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Choose a few planes spread over a stack."""
    num = math.prod(plane_shape)
    chosen = np.unique(np.linspace(0, num - 1, min(num, MAX_PLANES)).round().astype(int))
    return [tuple(int(i) for i in np.unravel_index(place, plane_shape)) for place in chosen]


def _windows(shape_yx: tuple[int, int], num: int, side: int) -> list[Box]:
    """Spread num x num windows over a level, each in the middle of its part."""
    starts = [
        sorted({max(0, int((i + 0.5) * length / num - side / 2)) for i in range(num)})
        for length in shape_yx
    ]
    return [Box(y, x, y + side, x + side).clip(shape_yx) for y, x in itertools.product(*starts)]


def _once_a_chunk(windows: list[Box], chunk_yx: tuple[int, int]) -> list[Box]:
    """Join the windows that begin in one chunk, which has to be decoded whole for any of them."""
    chunks: dict[tuple[int, int], Box] = {}
    for window in windows:
        place = window.y0 // chunk_yx[0], window.x0 // chunk_yx[1]
        chunks[place] = chunks.get(place, window).union(window)
    joined = []
    for box in chunks.values():
        rows = max(1, MAX_JOINED // box.width)
        middle = max(box.y0, (box.y0 + box.y1 - rows) // 2)
        joined.append(Box(middle, box.x0, min(box.y1, middle + rows), box.x1))
    return joined


def _percentiles(sample: NDArray[np.generic]) -> tuple[float, float]:
    values = sample.astype(np.float64)
    finite = values[np.isfinite(values)]
    low, high = np.percentile(finite, (0.1, 99.9)) if finite.size else (0.0, 0.0)
    return float(low), float(high)


def _finite_range(parts: Iterator[NDArray[np.generic]], level: StoredLevel) -> tuple[float, float]:
    low, high = math.inf, -math.inf
    for part in parts:
        finite = part[np.isfinite(part)]
        if finite.size:
            low, high = min(low, float(finite.min())), max(high, float(finite.max()))
    if low > high:
        raise ImageError(
            f"expected at least one finite pixel, got only NaN or infinity in an array of shape "
            f"{level.shape_yx}; check how the image was computed or read"
        )
    return low, high


def _widened(low: float, high: float) -> tuple[float, float]:
    return (low, high) if low < high else (low, low + max(1.0, abs(low)))
