"""Pixels of TIFF pages, read segment by segment: only the strips and tiles under a box."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_hrsam.errors import ImageReadError
from napari_hrsam.lru import LRU
from napari_hrsam.storage.images.array_kinds import float_like, with_nan
from napari_hrsam.storage.images.parts_array import PartsArray
from napari_hrsam.storage.images.tiff_colours import Samples

MAX_CACHE_BYTES = 48 * 2**20
"""Memory for the decoded segments kept of one file; one is kept whatever its size."""

Place = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class _Segments:
    """Where the segments of one page lie."""

    path: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]
    options: dict[str, Any]


class SegmentCache:
    """The decoded segments seen lately of one file. Several threads may use it at a time.

    Attributes
    ----------
    file_lock : threading.Lock
        Held while tifffile looks up pages of the file.
    """

    def __init__(self) -> None:
        self.file_lock = threading.Lock()
        self._segments: LRU[tuple[object, ...], NDArray[Any]] = LRU(
            MAX_CACHE_BYTES, lambda segment: segment.nbytes
        )
        self._lock = threading.Lock()

    def get(self, key: tuple[object, ...]) -> NDArray[Any] | None:
        """Return a segment if it is kept."""
        with self._lock:
            return self._segments.get(key)

    def put(self, key: tuple[object, ...], segment: NDArray[Any]) -> None:
        """Keep a segment; those not seen for the longest time make room."""
        with self._lock:
            self._segments[key] = segment


class TiffLevel(PartsArray):
    """One level of a TIFF image as an array that is read part by part.

    Several threads may read at a time.

    Parameters
    ----------
    series : tifffile.TiffPageSeries
        Its pages; their axes are its last ones.
    samples : Samples
        What the samples mean.
    cache : SegmentCache
        Shared by the levels of a file.
    mask : TiffLevel, optional
        A level of the same height and width, 0 where pixels are missing.

    Attributes
    ----------
    shape, dtype, chunks
        As of a zarr array. A float dtype where pixels may be missing, which are NaN.
    axes : str
        One letter per axis: Y, X, S for the samples of a pixel, others as tifffile has them.
    native_dtype : numpy.dtype
        Of the values before some became NaN.
    """

    def __init__(
        self,
        series: tifffile.TiffPageSeries,
        samples: Samples,
        cache: SegmentCache,
        mask: TiffLevel | None = None,
    ) -> None:
        self._series = series
        self._key = series.keyframe
        self._samples = samples
        self._cache = cache
        self._mask = mask
        self._pages: LRU[int, _Segments] = LRU(_MAX_PAGES, lambda _: 1)
        page_axes = "".join(axis for axis in self._key.axes if axis in "YXS")
        self._lead = tuple(series.shape[: len(series.shape) - len(page_axes)])
        self.axes, self._order = _shown_axes(page_axes, samples)
        self.axes = series.axes[: len(self._lead)] + self.axes
        height, width = self._key.imagelength, self._key.imagewidth
        sizes = {"Y": height, "X": width, "S": samples.num_shown}
        own = self.axes[len(self._lead) :]
        self.shape = (*self._lead, *(sizes[axis] for axis in own))
        self.native_dtype = samples.dtype
        self.may_lack = samples.may_lack or mask is not None
        self.dtype = float_like(self.native_dtype) if self.may_lack else self.native_dtype
        self._contiguous = None if series.is_multifile else series.dataoffset
        rows, columns = self._segment_shape
        sizes.update(Y=min(rows, height), X=min(columns, width))
        self.chunks = (*(1 for _ in self._lead), *(sizes[axis] for axis in own))

    @property
    def _segment_shape(self) -> tuple[int, int]:
        """Height and width of what is decoded at once."""
        if self._contiguous is not None:
            return 256, 256
        if self._key.is_tiled:
            return self._key.tilelength, self._key.tilewidth
        return min(self._key.rowsperstrip, self._key.imagelength), self._key.imagewidth

    @property
    def piece_bytes(self) -> int:
        """Memory for what is decoded at once; 0 where pixels lie in the file as they are."""
        if self._contiguous is not None:
            return 0
        rows, columns = self._segment_shape
        contig = self._key.shaped[-1]
        return rows * columns * contig * self._samples.raw_dtype.itemsize

    @property
    def num_bytes(self) -> int:
        """Memory for all of it."""
        return math.prod(self.shape) * self.native_dtype.itemsize

    def _read(self, ranges: Sequence[range]) -> NDArray[Any]:
        lead, own = (
            ranges[: len(self._lead)],
            dict(zip(self.axes[len(self._lead) :], ranges[len(self._lead) :], strict=True)),
        )
        rows, columns, samples = own["Y"], own["X"], own.get("S", range(1))
        parts = np.empty(
            (*(len(part) for part in lead), len(rows), len(columns), len(samples)), self.dtype
        )
        for place in itertools.product(*(range(len(part)) for part in lead)):
            page = tuple(part[i] for part, i in zip(lead, place, strict=True))
            parts[place] = self._shown(page, rows, columns)[..., samples.start : samples.stop]
        if "S" not in own:
            parts = parts[..., 0]
        num = len(self._lead)
        return parts.transpose(*range(num), *(num + axis for axis in self._order))

    def probe(self) -> None:
        """Decode one segment, so that what cannot be decoded at all is told at once.

        Raises
        ------
        Exception
            Of any kind, as codecs raise them.
        """
        if self._contiguous is not None:
            return
        segments = self._segments(0)
        stored = next((i for i, size in enumerate(segments.sizes) if size), None)
        if stored is not None:
            with open(segments.path, "rb") as file:  # noqa: PTH123  a path of tifffile's
                self._decode(segments, stored, file, 0)

    def _shown(self, page: Place, rows: range, columns: range) -> NDArray[Any]:
        """Read (rows, columns, samples) of a page in the colours that are shown."""
        raw = self._raw(page, rows, columns)
        shown = self._samples.convert(raw)
        if not self.may_lack:
            return shown
        missing = self._samples.missing(raw)
        if self._mask is not None:
            missing = missing | ~self._mask.raw_at(rows, columns).astype(np.bool_)
        return with_nan(shown, missing)

    def raw_at(self, rows: range, columns: range) -> NDArray[Any]:
        """Read (rows, columns, all samples) of the first page as they are stored."""
        return self._raw((0,) * len(self._lead), rows, columns)

    def _raw(self, page: Place, rows: range, columns: range) -> NDArray[Any]:
        number = int(np.ravel_multi_index(page, self._lead)) if self._lead else 0
        if self._contiguous is not None:
            return self._mapped(number, rows, columns)
        segments = self._segments(number)
        separate, _, height, width, contig = self._key.shaped
        raw = np.empty((len(rows), len(columns), separate * contig), self._samples.raw_dtype)
        deep, wide = self._segment_shape
        across, down = math.ceil(width / wide), math.ceil(height / deep)
        with open(segments.path, "rb") as file:  # noqa: PTH123  a path of tifffile's
            for plane, i, j in itertools.product(
                range(separate),
                range(rows.start // deep, math.ceil(rows.stop / deep)),
                range(columns.start // wide, math.ceil(columns.stop / wide)),
            ):
                y0, y1 = max(i * deep, rows.start), min((i + 1) * deep, rows.stop)
                x0, x1 = max(j * wide, columns.start), min((j + 1) * wide, columns.stop)
                to = raw[
                    y0 - rows.start : y1 - rows.start,
                    x0 - columns.start : x1 - columns.start,
                    plane * contig : (plane + 1) * contig,
                ]
                index = (plane * down + i) * across + j
                segment = self._segment(segments, number, index, file)
                # A segment without bytes is empty: the file leaves it out.
                to[:] = (
                    self._samples.empty
                    if segment is None
                    else segment[y0 - i * deep : y1 - i * deep, x0 - j * wide : x1 - j * wide]
                )
        return raw

    def _segment(
        self, segments: _Segments, page: int, index: int, file: Any
    ) -> NDArray[Any] | None:
        if index >= len(segments.sizes) or segments.sizes[index] == 0:
            return None
        key = (id(self), page, index)
        found = self._cache.get(key)
        if found is None:
            found = self._decode(segments, index, file, page)
            self._cache.put(key, found)
        return found

    def _decode(self, segments: _Segments, index: int, file: Any, page: int) -> NDArray[Any]:
        """Read and decode one segment as (rows, columns, samples)."""
        file.seek(segments.offsets[index])
        data = file.read(segments.sizes[index])
        if len(data) < segments.sizes[index]:
            raise ImageReadError(
                f"expected {segments.sizes[index]} bytes for part {index} of page {page} of "
                f"{segments.path}, got {len(data)}; the file is truncated, copy it again"
            )
        decoded, _, _ = self._key.decode(data, index, **segments.options)
        if decoded is None:
            raise ImageReadError(
                f"expected pixels in part {index} of page {page} of {segments.path}, got none; "
                "the file may be damaged, copy it again"
            )
        values: NDArray[Any] = decoded[0]
        return values

    def _segments(self, number: int) -> _Segments:
        """Look up where the segments of a page lie; tifffile is asked by one thread at a time."""
        with self._cache.file_lock:
            if number in self._pages:
                return self._pages[number]
            page = self._series[number]
            assert page is not None
            options: dict[str, Any] = {}
            handle = page.parent.filehandle
            if self._key.compression in _JPEG:
                was_closed = handle.closed
                if was_closed:
                    handle.open()
                options = {"jpegtables": page.jpegtables, "jpegheader": self._key.jpegheader}
                if was_closed:
                    handle.close()
            found = _Segments(
                handle.path, tuple(page.dataoffsets), tuple(page.databytecounts), options
            )
            self._pages[number] = found
            return found

    def _mapped(self, number: int, rows: range, columns: range) -> NDArray[Any]:
        """Copy a part of a page that lies in the file as it is; the mapping ends with the copy."""
        separate, depth, height, width, contig = self._key.shaped
        parent = self._series.keyframe.parent
        mapped = np.memmap(
            parent.filehandle.path,
            mode="r",
            dtype=self._samples.raw_dtype.newbyteorder(parent.byteorder),
            shape=(max(1, math.prod(self._lead)), separate, depth, height, width, contig),
            offset=self._contiguous or 0,
        )
        part = mapped[number, :, 0, rows.start : rows.stop, columns.start : columns.stop]
        raw: NDArray[Any] = np.moveaxis(part, 0, 2).reshape(len(rows), len(columns), -1)
        return np.array(raw, self._samples.raw_dtype)


_JPEG = frozenset({6, 7, 34892, 33007})
_MAX_PAGES = 64


def _shown_axes(page_axes: str, samples: Samples) -> tuple[str, tuple[int, ...]]:
    """Return the axes of a page as shown, and how (Y, X, S) is transposed to them."""
    if samples.num_shown == 1 and not samples.keeps_axis:
        axes = "YX"
    else:
        axes = page_axes if "S" in page_axes else page_axes + "S"
    return axes, tuple("YXS".index(axis) for axis in axes)
