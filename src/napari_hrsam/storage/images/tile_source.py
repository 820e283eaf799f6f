"""Pixels of one tile from an image of any size, as the models want them.

Only the part of the image under the tile is ever read, and the image is never changed. Brightness
limits belong to the whole image, never to a tile, so that neighbouring tiles agree.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError, PromptError
from napari_hrsam.geometry import Box, Tile, level_shape
from napari_hrsam.storage.images.arrange import arrange
from napari_hrsam.storage.images.colours import Channels, Limits, Look, Shown, spread_limits
from napari_hrsam.storage.images.limits import find_limits
from napari_hrsam.storage.images.pyramid import Level, level_for, with_coarse_levels
from napari_hrsam.storage.images.resample import area_mean, block_mean, enlarge
from napari_hrsam.storage.images.stored import StoredLevel, stored_levels

if TYPE_CHECKING:
    from napari_hrsam.storage.images.georeference import Georeference
    from napari_hrsam.storage.images.ome_metadata import OmeImage

MEAN_RGB = (124, 116, 104)
"""Colour shown outside the image: the mean of natural photographs, which models normalise to 0."""

STRIP_PIXELS = 2_000_000
"""Stored pixels converted at a time, so that a coarse tile needs little memory."""


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


class PyramidImage:
    """An image of any size in levels, read tile by tile; made by `open_image`.

    Parameters
    ----------
    stored : sequence of StoredLevel
        Finest first, level 0 at full size.
    shown : (red, green, blue)
        The channel shown as each colour; with looks, the channel of each of them.
    contrast_limits : (low, high), optional
        As in `open_image`.
    looks : sequence of Look, optional
        How channels are coloured and laid together, the lowest first; by default `shown` says it.
    separate : bool
        Whether channels are separate, so that each has limits of its own.
    ome : OmeImage, optional
        What a file says of itself.
    plane_names : sequence of str, optional
        What its source calls the axes before y and x.
    georeference : Georeference, optional
        Where the pixels of a map lie.

    Attributes
    ----------
    ome : OmeImage or None
        Path, axes, scales and units of an OME-Zarr image, or of a TIFF that tells its pixel size.
    plane_names : tuple of str
        One per axis of `plane_shape`, such as ``("t",)``; empty where no viewer tells them.
    georeference : Georeference or None
        Where the pixels of a map lie.

    Raises
    ------
    ImageError
        If the limits are malformed, or no pixel looked at is finite.
    """

    def __init__(
        self,
        stored: Sequence[StoredLevel],
        shown: Shown,
        contrast_limits: Limits | None = None,
        *,
        looks: Sequence[Look] = (),
        separate: bool = False,
        ome: OmeImage | None = None,
        plane_names: Sequence[str] = (),
        georeference: Georeference | None = None,
    ) -> None:
        self.ome = ome
        self.georeference = georeference
        self.plane_names = tuple(plane_names)
        self._stored = tuple(stored)
        self._levels = with_coarse_levels(self._stored)
        self._shown = shown
        self._looks = tuple(looks)
        self._channels = tuple(sorted({channel for channel in shown if channel is not None}))
        if contrast_limits is None:
            self._limits = find_limits(self._stored, shown, separate=separate)
        else:
            num_shown = sum(channel is not None for channel in shown)
            self._limits = spread_limits(contrast_limits, num_shown, shown)

    def __repr__(self) -> str:
        """Tell size, planes and stored levels in one line."""
        height, width = self.shape_yx
        planes = f", planes {self.plane_shape}" if self.plane_shape else ""
        levels = f", {len(self._stored)} levels" if len(self._stored) > 1 else ""
        return f"{type(self).__name__}({height} x {width} px{planes}{levels})"

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in level-0 pixels."""
        return self._stored[0].shape_yx

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Number of planes along each axis besides rows, columns and channels, such as (t, z)."""
        return self._stored[0].plane_shape

    @property
    def level_shapes(self) -> list[tuple[int, int]]:
        """Height and width of every stored level, finest first."""
        return [level.shape_yx for level in self._stored]

    @property
    def num_levels(self) -> int:
        """Number of levels from full size (0) down to a single pixel."""
        return 1 + math.ceil(math.log2(max(self.shape_yx)))

    @property
    def stored_levels(self) -> tuple[StoredLevel, ...]:
        """The arrays that hold the image, finest first."""
        return self._stored

    @property
    def shown(self) -> Shown:
        """The channel shown as red, green and blue (None where none is), or that of each look."""
        return self._shown

    @property
    def looks(self) -> tuple[Look, ...]:
        """How the shown channels are coloured and laid together; empty: as `shown` says."""
        return self._looks

    @property
    def contrast_limits(self) -> tuple[tuple[float, float], ...]:
        """The values shown as black and white, one pair per shown channel."""
        return self._limits

    def read(self, tile: Tile, fill: tuple[int, int, int] = MEAN_RGB) -> NDArray[np.uint8]:
        """Read the pixels of one tile.

        Parameters
        ----------
        tile : Tile
            Where to read. At level k >= 0 each pixel is the mean over its 2^k x 2^k block (or the
            part of it inside the image) of the coarsest level that is fine enough; below 0 the
            image is enlarged bilinearly. ``tile.plane`` holds one index per axis of `plane_shape`;
            it may be left out where every such axis has length 1.
        fill : (red, green, blue)
            Colour of everything outside the image.

        Returns
        -------
        (size, size, 3) uint8

        Raises
        ------
        PromptError
            If there is no such plane.
        ImageReadError
            If pixels cannot be read.
        """
        return self.read_present(tile, fill)[0]

    @property
    def may_lack_pixels(self) -> bool:
        """Whether pixels may be missing: NaN, infinite, masked or declared to be no data."""
        return self._stored[0].dtype.kind == "f"

    def read_present(
        self, tile: Tile, fill: tuple[int, int, int] = MEAN_RGB
    ) -> tuple[NDArray[np.uint8], NDArray[np.bool_] | None]:
        """Read the pixels of one tile, and tell which are present.

        Parameters
        ----------
        tile, fill
            As in `read`.

        Returns
        -------
        pixels : (size, size, 3) uint8
        present : (size, size) bool, or None
            False where everything under a pixel is missing; True outside the image. None: no pixel
            of the image can be missing.

        Raises
        ------
        PromptError, ImageReadError
            As in `read`.
        """
        plane = self._checked_plane(tile.plane)
        pixels = np.empty((tile.size_px, tile.size_px, 3), np.uint8)
        pixels[:] = fill
        present = np.ones(pixels.shape[:2], np.bool_) if self.may_lack_pixels else None
        if tile.box0.clip(self.shape_yx).area == 0:
            return pixels, present
        parts = self._averaged(tile, plane) if tile.level >= 0 else self._enlarged(tile, plane)
        for (row, column), values in parts:
            height, width = values.shape[:2]
            place = slice(row, row + height), slice(column, column + width)
            pixels[place] = np.rint(values[..., :3] * 255.0)
            if present is not None:
                # Enlarged pixels are between those that are present and those that are not.
                present[place] = values[..., 3] > (0 if tile.level >= 0 else 0.5)
        return pixels, present

    def present(self, box: Box, plane: tuple[int, ...] = ()) -> NDArray[np.bool_]:
        """Tell which level-0 pixels are present.

        Parameters
        ----------
        box : Box
            Level-0 pixels, inside the image.
        plane : tuple of int
            As in ``Tile.plane``.

        Returns
        -------
        (box.height, box.width) bool
            False where every shown channel is missing.

        Raises
        ------
        PromptError, ImageReadError
            As in `read`.
        """
        plane = self._checked_plane(plane)
        if not self.may_lack_pixels:
            return np.ones(box.shape_yx, np.bool_)
        return _any_finite(self._stored[0].read(box, plane, self._channels))

    def num_stored_px(self, tile: Tile) -> int:
        """Count the stored pixels under a tile at the level that it would be read from.

        Many, where an image that lacks coarse levels is looked at from far away.
        """
        factor = level_for(self._stored, tile.downsample).factor_yx
        box = tile.box0.clip(self.shape_yx)
        return round(box.height / factor[0]) * round(box.width / factor[1])

    def _checked_plane(self, plane: tuple[int, ...]) -> tuple[int, ...]:
        sizes = self.plane_shape
        if plane == () and set(sizes) <= {1}:
            return (0,) * len(sizes)
        if len(plane) == len(sizes) and all(
            0 <= place < size for place, size in zip(plane, sizes, strict=True)
        ):
            return plane
        if not sizes:
            raise PromptError(
                f"expected plane=() for a 2-D image, got {plane}; "
                "give the session the 2-D slice, such as image[t, z]"
            )
        raise PromptError(
            f"expected a plane with one index per axis of lengths {sizes}, got {plane}; say e.g. "
            f"plane={tuple(size // 2 for size in sizes)} (--plane "
            f"{','.join(str(size // 2) for size in sizes)} on the command line), or if one of "
            "these axes holds channels, open the image with channel_axis (--channel-axis)"
        )

    def _averaged(
        self, tile: Tile, plane: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int, int], NDArray[np.float32]]]:
        """Yield ((row, column), (rows, columns, 3) values in 0..1) of area means, part by part."""
        level = level_for(self._levels, tile.downsample)
        ratio = (tile.downsample / level.factor_yx[0], tile.downsample / level.factor_yx[1])
        whole = Box(tile.y0, tile.x0, tile.y0 + tile.size_px, tile.x0 + tile.size_px)
        for part in _parts(whole.clip(level_shape(self.shape_yx, tile.level)), level, ratio):
            yield (part.y0 - tile.y0, part.x0 - tile.x0), self._means(level, part, ratio, plane)

    def _means(
        self, level: Level, part: Box, ratio: tuple[float, float], plane: tuple[int, ...]
    ) -> NDArray[np.float32]:
        """Read ``part``, in pixels of ``ratio`` level pixels each."""
        edges = [
            _edges(first, last, step, length)
            for first, last, step, length in zip(
                (part.y0, part.x0), (part.y1, part.x1), ratio, level.shape_yx, strict=True
            )
        ]
        (y0, y1), (x0, x1) = ((math.floor(e[0, 0]), math.ceil(e[-1, 1])) for e in edges)
        values = self._values(level, Box(y0, x0, y1, x1), plane)
        whole = tuple(round(step) for step in ratio)
        if all(
            (e[:, 0] == np.arange(first, last) * step).all()
            for e, first, last, step in zip(
                edges, (part.y0, part.x0), (part.y1, part.x1), whole, strict=True
            )
        ):
            return block_mean(values, (whole[0], whole[1]))
        return area_mean(area_mean(values, 0, edges[0] - y0), 1, edges[1] - x0)

    def _enlarged(
        self, tile: Tile, plane: tuple[int, ...]
    ) -> Iterator[tuple[tuple[int, int], NDArray[np.float32]]]:
        """Yield the one part ((0, 0), (rows, columns, 3) values) of a tile below level 0."""
        inside, factor = tile.box0.clip(self.shape_yx), 2**-tile.level
        read = inside.expand(1).clip(self.shape_yx)
        values = self._values(self._stored[0], read, plane)
        values = enlarge(values, 0, factor, inside.y0 - read.y0, inside.height)
        yield (0, 0), enlarge(values, 1, factor, inside.x0 - read.x0, inside.width)

    def _values(self, level: Level, box: Box, plane: tuple[int, ...]) -> NDArray[np.float32]:
        """Read a box as (rows, columns, 3) float32 between the limits (0) and (1).

        Where pixels may be missing, a fourth value is 1 for those that are present.
        """
        values = np.zeros((*box.shape_yx, 4 if self.may_lack_pixels else 3), np.float32)
        pixels = level.read(box, plane, self._channels)
        if self.may_lack_pixels:
            values[..., 3] = _any_finite(pixels)
        if self._looks:
            picture = None
            for place, look in enumerate(self._looks):
                picture = look.lay(self._scaled(pixels, place, level), picture)
            values[..., :3] = picture
            return values
        grey = len(set(self._shown)) == 1
        for colour, channel in enumerate(self._shown):
            if channel is None:
                continue
            if grey and colour > 0:
                values[..., colour] = values[..., 0]
                continue
            values[..., colour] = self._scaled(pixels, colour, level)
        return values

    def _scaled(self, pixels: NDArray[Any], place: int, level: Level) -> NDArray[np.float32]:
        """Bring one of the shown channels between its limits: (rows, columns), 0..1."""
        channel = self._shown[place]
        assert channel is not None
        low, high = self._limits[place]
        crop = pixels[..., self._channels.index(channel)].astype(level.working_dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            crop -= low
            crop /= high - low
        np.nan_to_num(crop, copy=False, nan=0.0, posinf=0.0, neginf=0.0)
        return np.clip(crop, 0.0, 1.0).astype(np.float32, copy=False)


class ArrayImage(PyramidImage):
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
        if not isinstance(array, np.ndarray):
            raise ImageError(
                f"expected a NumPy array, got {type(array).__module__}."
                f"{type(array).__qualname__}; convert it with numpy.asarray(image), or open other "
                "images with open_image"
            )
        order, shown = arrange(array.shape, rgb, channel_axis, channels)
        if order.planes:
            raise ImageError(
                f"expected an array of shape (H, W), or (H, W, 3 or 4) for RGB, got {array.shape} "
                f"with rgb={rgb}; take a 2-D slice of a stack, e.g. image[t], open it with "
                "open_image, or name the axis of separate channels, e.g. channel_axis=0"
            )
        super().__init__(
            stored_levels([array], order),
            shown,
            contrast_limits,
            separate=channel_axis is not None,
        )


def _any_finite(pixels: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether any channel of a pixel is finite, for (rows, columns, channels)."""
    finite: NDArray[np.bool_] = np.isfinite(pixels).any(axis=2)
    return finite


def _parts(whole: Box, level: Level, ratio: tuple[float, float]) -> Iterator[Box]:
    """Cut a box into parts of about `STRIP_PIXELS` level pixels that follow the level's chunks."""
    steps = [max(1, math.ceil(n / r)) for n, r in zip(level.chunk_yx, ratio, strict=True)]
    budget = STRIP_PIXELS / (ratio[0] * ratio[1])
    columns = steps[1] * max(
        1, min(math.ceil(whole.width / steps[1]) + 1, int(budget / math.prod(steps)))
    )
    rows = steps[0] * max(1, int(budget / (steps[0] * columns)))
    for y, x in itertools.product(
        range(whole.y0 // steps[0] * steps[0], whole.y1, rows),
        range(whole.x0 // steps[1] * steps[1], whole.x1, columns),
    ):
        # Parts begin where chunks do, so that a chunk is not read for two of them.
        part = Box(y, x, y + rows, x + columns).intersection(whole)
        if part.area:
            yield part


def _edges(first: int, last: int, step: float, length: int) -> NDArray[np.float64]:
    """Give start and end of pixels first .. last - 1 of ``step`` level pixels each.

    A stored level may end one pixel early, where its size was rounded down: its last pixel then
    stands for the rest.
    """
    starts = np.minimum(np.arange(first, last) * step, length - 1)
    ends = np.minimum(np.arange(first + 1, last + 1) * step, length)
    return np.stack([starts, ends], axis=1)
