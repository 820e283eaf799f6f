"""Arrays that are read part by part: what NumPy, dask and viewers ask of an array."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray


class PartsArray(ABC):
    """An array of which only the part is read that is asked for; never written to.

    Attributes
    ----------
    shape, dtype, chunks
        As of a zarr array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    chunks: tuple[int, ...]

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Memory for all of it."""
        return self.size * self.dtype.itemsize

    def __len__(self) -> int:
        """Length of the first axis."""
        return self.shape[0]

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        """Read all of it."""
        if copy is False:
            raise ValueError("expected that pixels may be copied: they are read from a file")
        return np.asarray(self[...], dtype)

    def __getitem__(self, index: Any) -> NDArray[Any]:
        """Read a part; numbers, slices and one ellipsis, as of NumPy."""
        ranges: list[range] = []
        flips: list[slice | int] = []
        for part, length in zip(_whole_index(index, self.ndim), self.shape, strict=True):
            if isinstance(part, slice):
                wanted = range(*part.indices(length))
                low, high = (min(wanted), max(wanted) + 1) if wanted else (0, 0)
                ranges.append(range(low, high))
                # Backwards, from the last value read to the first one.
                flips.append(slice(None, None, wanted.step))
            else:
                place = int(part)
                if not -length <= place < length:
                    raise IndexError(f"index {place} is out of bounds for {length} values")
                ranges.append(range(place % length, place % length + 1))
                flips.append(0)
        if not all(ranges):
            values = np.empty([len(one) for one in ranges], self.dtype)
        else:
            values = self._read(ranges)
        return values[tuple(flips)]

    @abstractmethod
    def _read(self, ranges: Sequence[range]) -> NDArray[Any]:
        """Read one range of every axis, none of them empty."""


def _whole_index(index: Any, ndim: int) -> tuple[Any, ...]:
    parts = index if isinstance(index, tuple) else (index,)
    if Ellipsis in parts:
        place = parts.index(Ellipsis)
        rest = ndim - len(parts) + 1
        parts = (*parts[:place], *(slice(None),) * rest, *parts[place + 1 :])
    if len(parts) > ndim:
        raise IndexError(f"too many indices: {len(parts)} for {ndim} axes")
    return (*parts, *(slice(None),) * (ndim - len(parts)))


class OneOf(PartsArray):
    """One index along an axis of an array; read when indexed, and without that axis.

    Parameters
    ----------
    data : array-like
        Takes one slice or number per axis, and may have ``chunks``.
    axis, place : int
    """

    def __init__(self, data: Any, axis: int, place: int) -> None:
        self._data, self._axis, self._place = data, axis, place
        self.shape = tuple(n for i, n in enumerate(data.shape) if i != axis)
        self.dtype = np.dtype(data.dtype)
        # What is read at once; an array in memory has none.
        chunks = getattr(data, "chunks", None) or data.shape
        self.chunks = tuple(int(n) for i, n in enumerate(chunks) if i != axis)

    def _read(self, ranges: Sequence[range]) -> NDArray[Any]:
        index: list[slice | int] = [slice(part.start, part.stop) for part in ranges]
        index.insert(self._axis, self._place)
        return np.asarray(self._data[tuple(index)])
