"""Levels of an image that are stored in arrays: NumPy, zarr, dask or the like.

Nothing here imports dask or zarr: a level is anything with ``shape``, ``dtype`` and slicing.
"""

from __future__ import annotations

import itertools
import math
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import HRSAMError, ImageError, ImageReadError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.files.bounds import MAX_CHUNK_BYTES
from napari_hrsam.storage.images.array_kinds import adapted

MAX_AT_ONCE_BYTES = 256 * 2**20
"""Chunks of more than this together are read one after the other."""

MAX_SIDE = 2**31
"""Longest axis that is believed."""

MAX_AXES = 32
"""Axes of an array; NumPy itself takes no more than 64."""

MAX_DAMAGE_SEARCH = 4096
"""Chunks tried one by one to name the one that cannot be read."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AxisOrder:
    """Which axis of an array is which; every axis has one role.

    Attributes
    ----------
    y, x : int
        The axes of rows and columns.
    channel : int or None
        The axis of channels or colours.
    planes : tuple of int
        All others, in the order in which a plane's index names them.
    """

    y: int
    x: int
    channel: int | None = None
    planes: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class StoredLevel:
    """A level in an array: NumPy, zarr, dask or the like.

    Attributes
    ----------
    data : array-like
        Has ``shape``, ``dtype`` and slicing, and maybe ``chunks``.
    order : AxisOrder
        What its axes are.
    plane_shape : tuple of int
        Number of planes along every plane axis at level 0; this level may have fewer.
    factor_yx : (float, float)
        Level-0 pixels per pixel.
    name : str
        What errors call it, such as its path.
    """

    data: Any
    order: AxisOrder
    plane_shape: tuple[int, ...] = ()
    factor_yx: tuple[float, float] = (1.0, 1.0)
    name: str = "the image"

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in pixels of this level."""
        return int(self.data.shape[self.order.y]), int(self.data.shape[self.order.x])

    @property
    def num_channels(self) -> int:
        """Number of channels; 1 without an axis for them."""
        return 1 if self.order.channel is None else int(self.data.shape[self.order.channel])

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        dtype: np.dtype[Any] = np.dtype(self.data.dtype)
        return dtype

    @property
    def native_dtype(self) -> np.dtype[Any]:
        """Type of the pixels in the file or array; `dtype` is a float where some are missing."""
        dtype: np.dtype[Any] = np.dtype(getattr(self.data, "native_dtype", self.data.dtype))
        return dtype

    @property
    def is_in_memory(self) -> bool:
        """Whether pixels are at hand (an array or a memory-mapped file), not decoded first."""
        return isinstance(self.data, np.ndarray)

    @property
    def chunk_yx(self) -> tuple[int, int]:
        """Height and width of a chunk; (1, 1) for an array in memory."""
        chunks = chunk_shape(self.data)
        return (1, 1) if chunks is None else (chunks[self.order.y], chunks[self.order.x])

    @property
    def working_dtype(self) -> type[np.floating[Any]]:
        """The float dtype in which the pixel values can be told apart."""
        exact = self.dtype.itemsize <= 2 or (self.dtype.kind == "f" and self.dtype.itemsize == 4)
        return np.float32 if exact else np.float64

    def read(self, box: Box, plane: tuple[int, ...], channels: tuple[int, ...]) -> NDArray[Any]:
        """Read a box of one plane; only the chunks under it are touched.

        Parameters
        ----------
        box : Box
            In pixels of this level, inside it.
        plane : tuple of int
            One index per plane axis, in planes of level 0.
        channels : tuple of int
            Ascending and distinct.

        Returns
        -------
        (box.height, box.width, len(channels)) in the dtype of the array; may be a view of it

        Raises
        ------
        ImageReadError
            If a chunk cannot be read or decoded.
        """
        order = self.order
        if order.channel is None:
            return self._crop(box, plane, slice(None))
        first, last = channels[0], channels[-1]
        if last - first + 1 == len(channels):
            return self._crop(box, plane, slice(first, last + 1))
        # Apart in the array: channels between them are not read.
        return np.concatenate(
            [self._crop(box, plane, slice(channel, channel + 1)) for channel in channels], axis=2
        )

    def _crop(self, box: Box, plane: tuple[int, ...], channels: slice) -> NDArray[Any]:
        order = self.order
        index: list[slice | int] = [0] * len(self.data.shape)
        index[order.y], index[order.x] = box.slices
        for axis, place, num in zip(order.planes, plane, self.plane_shape, strict=True):
            # Coarse levels of a stack may have fewer planes.
            index[axis] = place * int(self.data.shape[axis]) // num
        if order.channel is not None:
            index[order.channel] = channels
        crop = self._fetch(tuple(index))
        wanted = [axis for axis in (order.y, order.x, order.channel) if axis is not None]
        kept = sorted(wanted)
        crop = crop.transpose([kept.index(axis) for axis in wanted])
        return crop[..., np.newaxis] if order.channel is None else crop

    def _fetch(self, index: tuple[slice | int, ...]) -> NDArray[Any]:
        parts = self._parts(index)
        if len(parts) == 1:
            return self._fetch_at_once(index)
        shape = [part.stop - part.start for part in index if isinstance(part, slice)]
        values = np.empty(shape, self.dtype)
        for part in parts:
            to = tuple(
                slice(piece.start - whole.start, piece.stop - whole.start)
                for piece, whole in zip(part, index, strict=True)
                if isinstance(piece, slice) and isinstance(whole, slice)
            )
            values[to] = self._fetch_at_once(part)
        return values

    def _parts(self, index: tuple[slice | int, ...]) -> list[tuple[slice | int, ...]]:
        """Cut an index where large chunks meet: they would be in memory all at a time."""
        chunks = None if self.is_in_memory else chunk_shape(self.data)
        if chunks is None:
            return [index]
        under = _chunks_under(index, chunks)
        num_bytes = math.prod([*chunks, *map(len, under)]) * self.dtype.itemsize
        if num_bytes <= MAX_AT_ONCE_BYTES:
            return [index]
        cut = [
            [slice(max(part.start, i * n), min(part.stop, (i + 1) * n)) for i in places]
            if isinstance(part, slice)
            else [part]
            for part, places, n in zip(index, under, chunks, strict=True)
        ]
        return list(itertools.product(*cut))

    def _fetch_at_once(self, index: tuple[slice | int, ...]) -> NDArray[Any]:
        expected = tuple(part.stop - part.start for part in index if isinstance(part, slice))
        try:
            return _of_shape(np.asarray(self.data[index]), expected)
        except (HRSAMError, MemoryError):
            raise
        # Codecs answer damaged bytes with errors of any kind.
        except Exception as error:
            # The chunk that its frames hold may be large.
            traceback.clear_frames(error.__traceback__)
            raise ImageReadError(
                f"expected the pixels of {self.name} at {_shown_index(index)}, got "
                f"{type(error).__name__}: {error}; {self._where_damaged(index, type(error))}"
            ) from error

    def _where_damaged(self, index: tuple[slice | int, ...], kind: type[Exception]) -> str:
        """Say which chunk under an index cannot be read."""
        chunks = getattr(self.data, "chunks", None)
        if not chunks or not all(isinstance(length, int) for length in chunks):
            return "look at how the image was made or read"
        ranges = _chunks_under(index, chunks)
        is_one = math.prod(map(len, ranges)) == 1
        for place in itertools.islice(itertools.product(*ranges), MAX_DAMAGE_SEARCH):
            # One need not be decoded again.
            if is_one or self._fails(place, chunks, kind):
                return (
                    f"chunk {'/'.join(map(str, place))} of {self.name} is damaged or cannot be "
                    "read; copy the image again, or work on another part"
                )
        return "no single chunk is at fault; try again"

    def _fails(
        self, place: tuple[int, ...], chunks: tuple[int, ...], kind: type[Exception]
    ) -> bool:
        """Whether a pixel of a chunk cannot be read."""
        try:
            self.data[tuple(slice(i * n, i * n + 1) for i, n in zip(place, chunks, strict=True))]
        except kind:
            return True
        return False


def _of_shape(values: NDArray[Any], expected: tuple[int, ...]) -> NDArray[Any]:
    """Return values of a shape; lazy arrays may be of another than they say."""
    if values.shape != expected:
        raise ValueError(f"pixels of shape {values.shape} in place of {expected}")
    return values


def _chunks_under(index: tuple[slice | int, ...], chunks: tuple[int, ...]) -> list[range]:
    """Return the numbers of the chunks that an index touches along each axis."""
    return [
        range(part.start // length, (part.stop - 1) // length + 1)
        if isinstance(part, slice)
        else range(part // length, part // length + 1)
        for part, length in zip(index, chunks, strict=True)
    ]


def chunk_shape(data: Any) -> tuple[int, ...] | None:
    """Tell the (largest) chunk of an array, None if it has none."""
    try:
        chunks = getattr(data, "chunks", None)
    # zarr has another name for chunks of different lengths.
    except NotImplementedError:
        chunks = data.read_chunk_sizes
    if not chunks:
        return None
    # dask names the length of every chunk along each axis.
    return tuple(int(max(part)) if isinstance(part, tuple) else int(part) for part in chunks)


def stored_levels(
    arrays: Sequence[Any],
    order: AxisOrder,
    *,
    factors_yx: Sequence[tuple[float, float]] | None = None,
    names: Sequence[str] = (),
) -> tuple[StoredLevel, ...]:
    """Describe arrays as the levels of one image.

    Parameters
    ----------
    arrays : sequence of array-likes
        Finest first. Masked pixels are read as NaN.
    order : AxisOrder
        Of all of them.
    factors_yx : sequence of (float, float), optional
        Level-0 pixels per pixel, one pair per array; used where the shapes bear it out. By default
        they are found from the shapes: whole numbers where those fit.
    names : sequence of str, optional
        What errors call them.

    Raises
    ------
    ImageError
        If the arrays are not levels of one image, pixels are no numbers, or a shape or chunk
        cannot be read in bounded memory.
    """
    arrays = [adapted(array) for array in arrays]
    first = arrays[0]
    plane_shape = tuple(int(first.shape[axis]) for axis in order.planes)
    levels: list[StoredLevel] = []
    for number, array in enumerate(arrays):
        name = names[number] if names else f"level {number}" if number else "the image"
        _require_readable(array, name)
        _require_level_of(first, array, order, number)
        along = []
        for index, axis in enumerate((order.y, order.x)):
            told = None if factors_yx is None else factors_yx[number][index]
            length0, length = int(first.shape[axis]), int(array.shape[axis])
            before = (length0, 1.0)
            if levels:
                before = levels[-1].shape_yx[index], levels[-1].factor_yx[index]
            along.append(_factor(length0, length, before, told))
        level = StoredLevel(
            data=array,
            order=order,
            plane_shape=plane_shape,
            factor_yx=(along[0], along[1]),
            name=name,
        )
        if (
            levels
            and min(a - b for a, b in zip(levels[-1].shape_yx, level.shape_yx, strict=True)) < 0
        ):
            raise ImageError(
                f"expected levels from the finest to the coarsest, got shape {level.shape_yx} "
                f"after {levels[-1].shape_yx}; sort them by size"
            )
        levels.append(level)
    return tuple(levels)


def _require_readable(array: Any, name: str) -> None:
    """Refuse what cannot be read, before anything is allocated for it."""
    dtype, shape = np.dtype(array.dtype), tuple(array.shape)
    if dtype.kind not in "biuf":
        raise ImageError(
            f"expected bool, integer or float pixels, got dtype {dtype}; "
            "convert the image first, e.g. numpy.abs(image) for complex numbers"
        )
    if len(shape) > MAX_AXES:
        raise ImageError(
            f"expected an image of at most {MAX_AXES} axes, got {len(shape)} in {name}; "
            "its metadata may be damaged"
        )
    if 0 in shape:
        raise ImageError(
            f"expected an image of at least 1 x 1 pixels, got shape {shape}; "
            "choose an image that holds pixels"
        )
    if max(shape) > MAX_SIDE:
        raise ImageError(
            f"expected at most {MAX_SIDE} pixels along an axis, got shape {shape} in {name}; "
            "its metadata may be damaged"
        )
    chunks = chunk_shape(array)
    if chunks is None:
        return
    if min(chunks) < 1 or math.prod(chunks) * dtype.itemsize > MAX_CHUNK_BYTES:
        raise ImageError(
            f"expected chunks of 1 pixel or more and at most {MAX_CHUNK_BYTES // 2**20} MiB, "
            f"got {chunks} of {dtype} in {name}; store the image in smaller chunks, "
            "e.g. 1024 x 1024"
        )


def _require_level_of(first: Any, array: Any, order: AxisOrder, number: int) -> None:
    same_rank = len(array.shape) == len(first.shape)
    channel = order.channel
    if same_rank and (channel is None or array.shape[channel] == first.shape[channel]):
        return
    raise ImageError(
        f"expected levels with the axes and channels of the first, of shape {first.shape}, got "
        f"shape {array.shape} for level {number}; leave out what does not belong to the image"
    )


def _factor(length0: int, length: int, before: tuple[int, float], told: float | None) -> float:
    """Find level-0 pixels per pixel along one axis.

    Sizes were rounded, so that a small level's own ratio to level 0 may be far off: the step from
    the level before (its length and factor) is rounded instead, where that fits.
    """
    if told is not None and abs(length0 / told - length) <= 2:
        return told
    stepped = before[1] * max(1, round(before[0] / length))
    return stepped if abs(length0 / stepped - length) <= 1 else length0 / length


def _shown_index(index: tuple[slice | int, ...]) -> str:
    parts = (f"{p.start}:{p.stop}" if isinstance(p, slice) else str(p) for p in index)
    return f"[{', '.join(parts)}]"
