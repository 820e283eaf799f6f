"""Arrays of other libraries as levels: NumPy's types, known shapes, missing pixels as NaN."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError


def adapted(array: Any) -> Any:
    """Return what reads like an array of NumPy: the array itself where it does already.

    Parameters
    ----------
    array : array-like
        Has ``shape``, ``dtype`` and slicing. Of another library, or a masked array of NumPy or
        dask, whose masked pixels are read as NaN.

    Raises
    ------
    ImageError
        If its shape is not known yet, or its pixels are no numbers that NumPy can take.
    """
    known_shape(array)
    if isinstance(array, NanWhere):
        return array
    # dask shows by a small array of its own what its blocks are.
    if isinstance(getattr(array, "_meta", array), np.ma.MaskedArray):
        return NanWhere(array, np.ma.getmaskarray)
    try:
        np.dtype(array.dtype)
    except TypeError:
        return _Foreign(array)
    return array


def known_shape(array: Any) -> tuple[int, ...]:
    """Return the shape of an array as whole numbers.

    Raises
    ------
    ImageError
        If a length is not known, as in a dask array after a selection by values.
    """
    shape = tuple(array.shape)
    # NaN is what dask says of a length that it does not know; others say None.
    if any(length is None or np.isnan(length) for length in shape):
        raise ImageError(
            f"expected an array of known shape, got {shape}; have it computed first, e.g. "
            "image.compute_chunk_sizes() of dask"
        )
    return tuple(int(length) for length in shape)


def float_like(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Choose the float type that tells the numbers of a type apart and has NaN besides."""
    if dtype.kind == "f":
        return dtype
    return np.dtype(np.float32 if dtype.itemsize <= 2 else np.float64)


def with_nan(values: NDArray[Any], missing: NDArray[np.bool_]) -> NDArray[np.floating[Any]]:
    """Return values as floats, NaN where they are missing; ``missing`` is broadcast."""
    floats = np.array(values, float_like(values.dtype))
    floats[np.broadcast_to(missing, floats.shape)] = np.nan
    return floats


class NanWhere:
    """An array of which some pixels are missing; these are read as NaN.

    Parameters
    ----------
    data : array-like
    missing : callable of array to bool array
        Tells which values of a part of ``data`` are missing; broadcast to its shape.
    whole_axis : int, optional
        An axis along which ``missing`` needs all of the data, such as that of colours and alpha.

    Attributes
    ----------
    native_dtype : numpy.dtype
        Type of the values before.
    """

    def __init__(
        self,
        data: Any,
        missing: Callable[[NDArray[Any]], NDArray[np.bool_]],
        whole_axis: int | None = None,
    ) -> None:
        self._data = data
        self._missing = missing
        self._whole_axis = whole_axis
        self.shape = known_shape(data)
        self.ndim = len(self.shape)
        self.native_dtype = np.dtype(data.dtype)
        self.dtype = float_like(self.native_dtype)
        self.chunks = getattr(data, "chunks", None)

    def __getitem__(self, index: tuple[slice | int, ...]) -> NDArray[np.floating[Any]]:
        """Read a part; one slice or number per axis."""
        if self._whole_axis is None:
            values = _computed(self._data[index])
            return with_nan(np.ma.getdata(values), self._missing(values))
        axis, full = self._whole_axis, list(index)
        full[axis] = slice(None)
        values = self._data[tuple(full)]
        floats = with_nan(values, self._missing(values))
        # Numbers before the axis take theirs away.
        place = axis - sum(isinstance(part, int) for part in index[:axis])
        chosen: NDArray[np.floating[Any]] = floats[(slice(None),) * place + (index[axis],)]
        return chosen


def _computed(values: Any) -> Any:
    """Compute a part of a lazy array; ``numpy.asarray`` would drop its mask."""
    return values.compute() if hasattr(values, "compute") else values


class _Foreign:
    """An array whose dtype is another library's, such as torch or tensorstore."""

    def __init__(self, data: Any) -> None:
        self._data = data
        self.shape = known_shape(data)
        self.ndim = len(self.shape)
        self.chunks = None
        # What NumPy makes of one pixel is its type; an empty array has none.
        self.dtype = self[tuple(slice(0, 1) for _ in self.shape)].dtype

    def __getitem__(self, index: tuple[slice | int, ...]) -> NDArray[Any]:
        """Read a part; one slice or number per axis."""
        try:
            return np.asarray(self._data[index])
        # Every library has errors of its own for what NumPy cannot take.
        except Exception as error:
            raise ImageError(
                f"expected an array whose pixels NumPy can take, got a "
                f"{type(self._data).__module__}.{type(self._data).__qualname__} of dtype "
                f"{self._data.dtype} ({type(error).__name__}: {error}); convert it first, e.g. "
                "image.detach().cpu().float().numpy() of torch"
            ) from error
