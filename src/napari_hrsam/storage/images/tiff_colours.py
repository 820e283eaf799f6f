"""What the samples of a TIFF page mean: brightness, colours, inks, indices, alpha, no data."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError

_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _PALETTE, _MASK, _INKS, _YCBCR = range(7)
_LINEAR_RAW = 34892
_DECODED_TO_RGB = frozenset({6, 7, 34892, 33007, 34933, 34934, 22610, 50001, 50002, 52546})
"""Compressions whose decoders give red, green and blue for YCbCr."""
_APERIO_YCBCR = 33003
_REFUSED = {
    8: "CIE L*a*b* colours",
    9: "ICC L*a*b* colours",
    10: "ITU L*a*b* colours",
    32803: "a camera's raw sensor mosaic",
    32844: "LogL brightness",
    32845: "LogLuv colours",
}
_NODATA, _EXTRA_ALPHA, _CMYK = 42113, frozenset({1, 2}), 1

Convert = Callable[[NDArray[Any]], NDArray[Any]]


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Samples:
    """The samples of a page, and what is shown of them.

    Attributes
    ----------
    raw_dtype, dtype : numpy.dtype
        Of the samples as stored, and as shown.
    num_shown : int
        Values per pixel after `convert`.
    is_colour : bool
        Whether these are red, green and blue.
    keeps_axis : bool
        Whether they have an axis of their own even where there is one.
    convert : callable of (..., samples) to (..., num_shown)
        Gives what is shown.
    num_main : int
        Samples before those that are alpha or the like.
    alpha : int or None
        The sample that is 0 where a pixel is transparent.
    nodata : float or None
        Value of samples that were not measured.
    empty : float
        Value of parts that the file leaves out.
    """

    raw_dtype: np.dtype[Any]
    dtype: np.dtype[Any]
    num_shown: int
    is_colour: bool
    keeps_axis: bool
    convert: Convert
    num_main: int
    alpha: int | None
    nodata: float | None
    empty: float

    @property
    def may_lack(self) -> bool:
        """Whether pixels may be missing."""
        return self.alpha is not None or self.nodata is not None

    def missing(self, raw: NDArray[Any]) -> NDArray[np.bool_]:
        """Tell which samples as stored are missing, to be broadcast over those shown.

        Returns
        -------
        (..., 1) bool; (..., samples) for samples that are channels
        """
        gone = np.zeros((*raw.shape[:-1], 1), np.bool_)
        if self.nodata is not None:
            equal = raw[..., : self.num_main] == self.raw_dtype.type(self.nodata)
            # Colours: one of three may well have the value by chance.
            gone = equal if self.keeps_axis else equal.all(axis=-1, keepdims=True)
        if self.alpha is not None:
            gone = gone | (raw[..., self.alpha : self.alpha + 1] == 0)
        return gone


def samples_of(page: tifffile.TiffPage, *, as_stored: bool = False) -> Samples:
    """Find out what the samples of a page mean.

    Parameters
    ----------
    page : tifffile.TiffPage
    as_stored : bool
        Whether samples are taken as channels, whatever the file says of them.

    Raises
    ------
    ImageError
        If they mean what cannot be shown.
    """
    separate, contig = page.shaped[0], page.shaped[-1]
    total = separate * contig
    raw_dtype = np.dtype(page.dtype)
    nodata = _nodata(page, raw_dtype)
    photometric = int(page.photometric)
    extra = tuple(int(kind) for kind in page.extrasamples)
    convert: Convert = _as_is
    dtype, shown, is_colour = raw_dtype, total, False
    main = max(1, total - len(extra))
    if as_stored:
        main, extra = total, ()
    elif photometric in _REFUSED:
        raise ImageError(
            f"expected grey, RGB, CMYK, YCbCr or palette pixels, got {_REFUSED[photometric]}; "
            "save the image as RGB"
        )
    elif photometric == _PALETTE and page.colormap is not None:
        table = np.asarray(page.colormap).T
        # Some writers put bytes where the format wants 16 bits.
        shift = 0 if table.max(initial=0) < 256 else 8
        convert = _Palette((table >> shift).astype(np.uint8))
        dtype, shown, is_colour, main = np.dtype(np.uint8), 3, True, 1
    elif photometric == _INKS:
        ink_set = page.tags.valueof(332, _CMYK)
        if total < 4 or ink_set != _CMYK or raw_dtype.kind != "u":
            raise ImageError(
                f"expected the four inks C, M, Y and K, got {total} of another set; save the image "
                "as RGB, or name the axis that holds the inks with channel_axis"
            )
        convert, shown, is_colour, main = _Inks(raw_dtype), 3, True, 4
    elif photometric in {_RGB, _YCBCR, _LINEAR_RAW} and total >= 3:
        shown, is_colour, main = 3, True, 3
        convert = _First(3)
        compression = int(page.compression)
        if compression == _APERIO_YCBCR or (
            photometric == _YCBCR and compression not in _DECODED_TO_RGB
        ):
            convert = _YCbCr(raw_dtype)
    elif main > 1 or set(extra) - _EXTRA_ALPHA:
        # Samples of no meaning that the file tells are channels.
        main, extra = total, ()
    else:
        shown, convert = 1, _First(1)
        if photometric == _WHITE_IS_ZERO:
            convert = _Inverted(raw_dtype, page.bitspersample)
    alpha = next(
        (main + i for i, kind in enumerate(extra) if kind in _EXTRA_ALPHA and main + i < total),
        None,
    )
    return Samples(
        raw_dtype=raw_dtype,
        dtype=dtype,
        num_shown=shown,
        is_colour=is_colour,
        keeps_axis=not is_colour and shown > 1,
        convert=convert,
        num_main=main,
        alpha=alpha,
        nodata=nodata,
        empty=0 if nodata is None else nodata,
    )


def _nodata(page: tifffile.TiffPage, dtype: np.dtype[Any]) -> float | None:
    """Return GDAL's value for no data, if pixels of the type can have it."""
    try:
        value = float(str(page.tags.valueof(_NODATA, "nan")).strip(" \0") or "nan")
    except ValueError:
        return None
    if math.isnan(value):
        return None
    if dtype.kind == "f":
        return value
    if dtype.kind == "b" or not value.is_integer():
        return None
    info = np.iinfo(dtype)
    return value if info.min <= value <= info.max else None


def _as_is(raw: NDArray[Any]) -> NDArray[Any]:
    return raw


@dataclass(frozen=True, slots=True)
class _First:
    """The first samples; others are alpha or of no known meaning."""

    num: int

    def __call__(self, raw: NDArray[Any]) -> NDArray[Any]:
        return raw[..., : self.num]


@dataclass(frozen=True, slots=True)
class _Palette:
    """Colours of a table."""

    table: NDArray[np.uint8]

    def __call__(self, raw: NDArray[Any]) -> NDArray[Any]:
        places = np.minimum(raw[..., 0], len(self.table) - 1).astype(np.intp)
        colours: NDArray[np.uint8] = self.table[places]
        return colours


@dataclass(frozen=True, slots=True)
class _Inverted:
    """Brightness of what is dark where it is large."""

    dtype: np.dtype[Any]
    bits: Any

    def __call__(self, raw: NDArray[Any]) -> NDArray[Any]:
        grey = raw[..., :1]
        if self.dtype.kind == "f":
            return -grey
        if self.dtype.kind == "u":
            inverted: NDArray[Any] = self.dtype.type(2 ** int(self.bits) - 1) - grey
            return inverted
        return ~grey


@dataclass(frozen=True, slots=True)
class _Inks:
    """Red, green and blue of cyan, magenta, yellow and black."""

    dtype: np.dtype[Any]

    def __call__(self, raw: NDArray[Any]) -> NDArray[Any]:
        full = np.iinfo(self.dtype).max
        paper = full - raw[..., :4].astype(np.float64)
        return np.rint(paper[..., :3] * paper[..., 3:] / full).astype(self.dtype)


@dataclass(frozen=True, slots=True)
class _YCbCr:
    """Red, green and blue of brightness and two colour differences.

    References
    ----------
    ITU-R BT.601, with the full range of JFIF.
    """

    dtype: np.dtype[Any]

    def __call__(self, raw: NDArray[Any]) -> NDArray[Any]:
        full = np.iinfo(self.dtype).max
        values = raw[..., :3].astype(np.float64)
        y, blue, red = (
            values[..., 0],
            values[..., 1] - (full + 1) / 2,
            values[..., 2] - (full + 1) / 2,
        )
        rgb = np.stack(
            [y + 1.402 * red, y - 0.344136 * blue - 0.714136 * red, y + 1.772 * blue], axis=-1
        )
        return np.rint(np.clip(rgb, 0, full)).astype(self.dtype)
