"""Pixels of one tile from an image of any size, as the models want them.

Only the part of the array under the tile is ever read, and the array is never changed. Brightness
limits belong to the whole image, never to a tile, so that neighbouring tiles agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError, PromptError
from napari_hrsam.geometry import Tile

MEAN_RGB = (124, 116, 104)
"""Colour shown outside the image: the mean of natural photographs, which models normalise to 0."""

MAX_SAMPLE = 1_000_000
"""Pixels looked at to find the brightness limits."""

STRIP_PIXELS = 2_000_000
"""Level-0 pixels converted at a time, so that a coarse tile needs little memory."""

Channels = Mapping[str, int] | Sequence[int | None]
Limits = tuple[float, float] | Sequence[tuple[float, float]]


class TileSource(Protocol):
    """An image that can be read tile by tile."""

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in level-0 pixels."""

    @property
    def num_levels(self) -> int:
        """Number of levels that can be read: 0 .. ``num_levels - 1``, and -1 and -2 besides."""

    def read(self, tile: Tile, fill: tuple[int, int, int] = MEAN_RGB) -> NDArray[np.uint8]:
        """Read one tile as (size, size, 3) RGB, 0..255, with ``fill`` outside the image."""


class ArrayImage:
    """A 2-D image in a NumPy array (or a ``numpy.memmap``), read tile by tile.

    Parameters
    ----------
    array : (H, W), (H, W, 3), (H, W, 4) or 3-D with a channel axis
        Bool, integer or float of any byte order. NaN and infinite pixels are shown as the lower
        limit. The alpha channel of RGBA is not shown.
    rgb : bool, optional
        Whether the last axis holds the colours. By default it does in a 3-D array whose last axis
        has 3 or 4 entries, unless `channel_axis` is given.
    channel_axis : int, optional
        The axis of a 3-D array that holds separate channels.
    channels : mapping or sequence, optional
        Which channel is shown as which colour: ``{"red": 2, "green": 0}``, or up to three channel
        numbers for red, green, blue (None: not shown). One channel is shown grey; two are shown
        red and green unless this says otherwise; three or more need it.
    contrast_limits : (low, high), optional
        Values shown as black and white; or one such pair per shown channel. By default uint8 RGB
        is used as it is and bool runs from False to True; all else runs from the 0.1 to the 99.9
        percentile of a sample of the whole image, per channel for separate channels.

    Raises
    ------
    ImageError
        If the array is not one of these, is empty, has no finite pixel, or needs `channels`.
    """

    def __init__(
        self,
        array: NDArray[Any],
        rgb: bool | None = None,
        channel_axis: int | None = None,
        channels: Channels | None = None,
        contrast_limits: Limits | None = None,
    ) -> None:
        _require_numeric(array)
        self._array, self._shown = _arrange(array, rgb, channel_axis, channels)
        if self._array.size == 0:
            raise ImageError(
                f"expected an image of at least 1 x 1 pixels, got shape {array.shape}; "
                "choose an image that holds pixels"
            )
        self._limits = self._find_limits(contrast_limits, separate=channel_axis is not None)

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._array.shape[0], self._array.shape[1]

    @property
    def num_levels(self) -> int:
        """Number of levels from full size (0) down to a single pixel."""
        return 1 + math.ceil(math.log2(max(self.shape_yx)))

    @property
    def contrast_limits(self) -> tuple[tuple[float, float], ...]:
        """The values shown as black and white, one pair per shown channel."""
        return self._limits

    def read(self, tile: Tile, fill: tuple[int, int, int] = MEAN_RGB) -> NDArray[np.uint8]:
        """Read the pixels of one tile.

        Parameters
        ----------
        tile : Tile
            Where to read. At level k >= 0 each pixel is the exact mean over its 2^k x 2^k block
            (or the part of it inside the image); below 0 the image is enlarged bilinearly.
        fill : (red, green, blue)
            Colour of everything outside the image.

        Returns
        -------
        (size, size, 3) uint8

        Raises
        ------
        PromptError
            If the tile belongs to a plane, which a 2-D image does not have.
        """
        if tile.plane != ():
            raise PromptError(
                f"expected plane=() for a 2-D image, got {tile.plane}; "
                "give the session the 2-D slice, such as image[t, z]"
            )
        pixels = np.empty((tile.size_px, tile.size_px, 3), np.uint8)
        pixels[:] = fill
        inside = tile.box0.clip(self.shape_yx)
        if inside.area == 0:
            return pixels
        rows = self._averaged(tile) if tile.level >= 0 else self._enlarged(tile)
        for first_row, values in rows:
            height, width = values.shape[:2]
            pixels[first_row : first_row + height, :width] = np.rint(values * 255.0)
        return pixels

    def _averaged(self, tile: Tile) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield (first row, (rows, width, 3) values in 0..1) of area means, strip by strip."""
        inside, factor = tile.box0.clip(self.shape_yx), 2**tile.level
        step = factor * max(1, STRIP_PIXELS // (factor * inside.width))
        for y0 in range(inside.y0, inside.y1, step):
            y1 = min(y0 + step, inside.y1)
            values = self._values(slice(y0, y1), slice(inside.x0, inside.x1))
            yield (y0 - inside.y0) // factor, _block_mean(values, factor)

    def _enlarged(self, tile: Tile) -> Iterator[tuple[int, NDArray[np.float32]]]:
        """Yield the one strip (0, (rows, width, 3) values in 0..1) of a tile below level 0."""
        inside, factor = tile.box0.clip(self.shape_yx), 2**-tile.level
        read = inside.expand(1).clip(self.shape_yx)
        values = self._values(*read.slices)
        values = _enlarge(values, 0, factor, inside.y0 - read.y0, inside.height)
        yield 0, _enlarge(values, 1, factor, inside.x0 - read.x0, inside.width)

    def _values(self, rows: slice, columns: slice) -> NDArray[np.float32]:
        """Read a crop as (rows, columns, 3) float32 between the limits (0) and (1)."""
        values = np.zeros((rows.stop - rows.start, columns.stop - columns.start, 3), np.float32)
        grey = len(set(self._shown)) == 1
        for colour, channel in enumerate(self._shown):
            if channel is None:
                continue
            if grey and colour > 0:
                values[..., colour] = values[..., 0]
                continue
            low, high = self._limits[colour]
            crop = self._array[rows, columns, channel].astype(self._working_dtype)
            with np.errstate(over="ignore", invalid="ignore"):
                crop -= low
                crop /= high - low
            np.nan_to_num(crop, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
            values[..., colour] = np.clip(crop, 0.0, 1.0)
        return values

    @property
    def _working_dtype(self) -> type[np.floating[Any]]:
        """The float dtype in which the pixel values can be told apart."""
        dtype = self._array.dtype
        exact = dtype.itemsize <= 2 or (dtype.kind == "f" and dtype.itemsize == 4)
        return np.float32 if exact else np.float64

    def _find_limits(
        self, given: Limits | None, *, separate: bool
    ) -> tuple[tuple[float, float], ...]:
        if given is not None:
            return _spread(given, sum(channel is not None for channel in self._shown), self._shown)
        dtype = self._array.dtype
        if dtype == np.bool_ or (dtype == np.uint8 and len(set(self._shown)) > 1 and not separate):
            return ((0.0, 1.0 if dtype == np.bool_ else 255.0),) * 3
        found: dict[int, tuple[float, float]] = {}
        together = [channel for channel in dict.fromkeys(self._shown) if channel is not None]
        for group in [[channel] for channel in together] if separate else [together]:
            found.update(dict.fromkeys(group, _limits_of(self._array, group)))
        return tuple((0.0, 1.0) if shown is None else found[shown] for shown in self._shown)


def open_image(
    source: NDArray[Any],
    rgb: bool | None = None,
    channel_axis: int | None = None,
    channels: Channels | None = None,
    contrast_limits: Limits | None = None,
) -> ArrayImage:
    """Open a 2-D NumPy array as an image to annotate; see `ArrayImage` for the arguments."""
    return ArrayImage(source, rgb, channel_axis, channels, contrast_limits)


def _require_numeric(array: object) -> None:
    if not isinstance(array, np.ndarray):
        raise ImageError(
            f"expected a NumPy array, got {type(array).__module__}.{type(array).__qualname__}; "
            "convert it with numpy.asarray(image)"
        )
    if array.dtype.kind not in "biuf":
        raise ImageError(
            f"expected bool, integer or float pixels, got dtype {array.dtype}; "
            "convert the image first, e.g. numpy.abs(image) for complex numbers"
        )


def _arrange(
    array: NDArray[Any], rgb: bool | None, channel_axis: int | None, channels: Channels | None
) -> tuple[NDArray[Any], tuple[int | None, ...]]:
    """View the array as (H, W, C); tell which channel is shown as red, green and blue."""
    if channel_axis is None:
        if channels is not None:
            raise ImageError(
                f"expected channel_axis together with channels={channels!r}, got none; "
                "say which axis holds the channels, e.g. channel_axis=0"
            )
        return _arrange_colours(array, rgb)
    if rgb:
        raise ImageError(
            f"expected either rgb=True or channel_axis, got both (channel_axis={channel_axis}); "
            "leave one out"
        )
    if array.ndim != 3 or not -3 <= channel_axis < 3:
        raise ImageError(
            f"expected a 3-D array with channel_axis in -3..2, got shape {array.shape} and "
            f"channel_axis={channel_axis}; take a 2-D slice of stacks first, e.g. image[t]"
        )
    moved = np.moveaxis(array, channel_axis, -1)
    return moved, _shown_channels(moved.shape[2], channels)


def _arrange_colours(
    array: NDArray[Any], rgb: bool | None
) -> tuple[NDArray[Any], tuple[int | None, ...]]:
    has_colours = array.ndim == 3 and array.shape[2] in {3, 4}
    if has_colours and rgb is not False:
        return array, (0, 1, 2)
    if array.ndim == 2 and not rgb:
        return array[:, :, np.newaxis], (0, 0, 0)
    wanted = "(H, W, 3) or (H, W, 4)" if rgb else "(H, W), or (H, W, 3 or 4) for RGB"
    raise ImageError(
        f"expected an array of shape {wanted}, got {array.shape} with rgb={rgb}; "
        "take a 2-D slice of a stack, e.g. image[t], or name the axis of separate channels, "
        "e.g. channel_axis=0"
    )


def _shown_channels(num_channels: int, channels: Channels | None) -> tuple[int | None, ...]:
    if channels is None:
        if num_channels > 2:
            raise ImageError(
                f"expected a mapping of the {num_channels} channels to colours, got none; "
                'give e.g. channels={"red": 0, "green": 1, "blue": 2}, or channels=[0] for one '
                "channel in grey"
            )
        return (0, 1, None) if num_channels == 2 else (0, 0, 0)
    if isinstance(channels, Mapping):
        unknown = set(channels) - {"red", "green", "blue"}
        chosen = [channels.get(colour) for colour in ("red", "green", "blue")]
    else:
        unknown = set()
        chosen = list(channels)
    used = [channel for channel in chosen if channel is not None]
    if unknown or not used or len(chosen) > 3 or not all(0 <= c < num_channels for c in used):
        raise ImageError(
            f"expected channels as up to three of 0..{num_channels - 1} for red, green and blue, "
            f'got {channels!r}; give e.g. channels={{"red": 0, "green": 1}}'
        )
    if len(chosen) == 1:
        chosen *= 3
    return tuple(chosen + [None] * (3 - len(chosen)))


def _spread(
    given: Limits, num_shown: int, shown: tuple[int | None, ...]
) -> tuple[tuple[float, float], ...]:
    """Check the user's limits and give each of the three colours its pair."""
    try:
        pairs = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError):
        pairs = np.empty(0)
    if pairs.shape == (2,):
        pairs = np.tile(pairs, (num_shown, 1))
    if len(set(shown)) == 1 and pairs.shape == (1, 2):
        pairs = np.tile(pairs, (3, 1))
    if (
        pairs.shape != (num_shown, 2)
        or not np.isfinite(pairs).all()
        or (pairs[:, 0] >= pairs[:, 1]).any()
    ):
        raise ImageError(
            "expected contrast_limits as (low, high) with low < high, or one such pair per shown "
            f"channel, got {given!r}; leave it out to have them found"
        )
    rest = iter(pairs.tolist())
    return tuple((0.0, 1.0) if channel is None else tuple(next(rest)) for channel in shown)


def _limits_of(array: NDArray[Any], channels: list[int]) -> tuple[float, float]:
    """Find the 0.1 and 99.9 percentiles over the whole image from a strided sample."""
    step = max(1, math.ceil(math.sqrt(array.shape[0] * array.shape[1] / MAX_SAMPLE)))
    sample = array[::step, ::step, channels].astype(np.float64)
    finite = sample[np.isfinite(sample)]
    low, high = np.percentile(finite, (0.1, 99.9)) if finite.size else (0.0, 0.0)
    if low < high:
        return float(low), float(high)
    # Nearly all of the sample is one value: the few others may lie between the sampled pixels.
    low, high = _finite_range(array, channels)
    return (low, high) if low < high else (low, low + max(1.0, abs(low)))


def _finite_range(array: NDArray[Any], channels: list[int]) -> tuple[float, float]:
    step = max(1, STRIP_PIXELS // array.shape[1])
    low, high = math.inf, -math.inf
    for y0 in range(0, array.shape[0], step):
        strip = array[y0 : y0 + step][..., channels]
        strip = strip[np.isfinite(strip)]
        if strip.size:
            low, high = min(low, float(strip.min())), max(high, float(strip.max()))
    if low > high:
        raise ImageError(
            f"expected at least one finite pixel, got only NaN or infinity in an array of shape "
            f"{array.shape[:2]}; check how the image was computed or read"
        )
    return low, high


def _block_mean(values: NDArray[np.float32], factor: int) -> NDArray[np.float32]:
    """Average (H, W, 3) over factor x factor blocks; blocks at the end may be cut."""
    if factor == 1:
        return values
    height, width = values.shape[:2]
    rows, columns = np.arange(0, height, factor), np.arange(0, width, factor)
    sums = np.add.reduceat(np.add.reduceat(values, rows, axis=0), columns, axis=1)
    heights = np.minimum(factor, height - rows).astype(np.float32)
    widths = np.minimum(factor, width - columns).astype(np.float32)
    mean: NDArray[np.float32] = sums / (heights[:, np.newaxis] * widths)[..., np.newaxis]
    return mean


def _enlarge(
    values: NDArray[np.float32], axis: int, factor: int, start: int, length: int
) -> NDArray[np.float32]:
    """Enlarge ``length`` pixels from ``start`` bilinearly along one axis, clamped at the ends."""
    places = (np.arange(length * factor) + 0.5) / factor - 0.5 + start
    places = np.clip(places, 0, values.shape[axis] - 1)
    low = np.floor(places).astype(np.intp)
    high = np.minimum(low + 1, values.shape[axis] - 1)
    share = (places - low).astype(np.float32).reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    enlarged: NDArray[np.float32] = (
        np.take(values, low, axis) * (1 - share) + np.take(values, high, axis) * share
    )
    return enlarged
