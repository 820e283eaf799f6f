"""CZI files of ZEISS microscopes, read part by part: levels, channels, planes and pixel size."""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam._optional import require
from napari_hrsam.errors import HRSAMError, ImageError, ImageReadError
from napari_hrsam.storage.images.file_image import FileImage
from napari_hrsam.storage.images.ome_metadata import OmeChannel
from napari_hrsam.storage.images.parts_array import PartsArray
from napari_hrsam.storage.images.pictures import unreadable

logger = logging.getLogger(__name__)

MAX_CACHE_BYTES = 64 * 2**20
"""Memory for the decoded parts that libCZI keeps of one file."""

BAND_BYTES = 64 * 2**20
"""Memory for what libCZI gives at once."""

CHUNK_PX = 512
"""Side of what is read at once; the parts of a file may be of any size and overlap."""

COARSE_STEP, OVERVIEW_PX = 4, 4096
"""A file above this side that holds no coarser levels gets some: every 4th pixel, every 16th."""

_DTYPES = {
    "Gray8": np.uint8,
    "Gray16": np.uint16,
    "Gray32Float": np.float32,
    "Bgr24": np.uint8,
    "Bgr48": np.uint16,
}


def is_czi(path: Path) -> bool:
    """Whether a file begins as CZI files do.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return file.read(10) == b"ZISRAWFILE"
    except OSError as error:
        raise unreadable(path, error) from error


def open_czi(path: Path) -> FileImage:
    """Open a CZI file; scenes are the parts of one image, as they lie on the stage.

    Parameters
    ----------
    path : Path

    Returns
    -------
    FileImage
        Of axes T, Z and C as far as there are several, Y, X, and S where pixels are RGB. What lies
        between the scenes is white in RGB, else 0.

    Raises
    ------
    MissingExtraError
        If the extra ``slides`` is not installed.
    ImageError
        If it cannot be read, or its channels are of several kinds.
    """
    file = _CziFile(path)
    lead = "".join(axis for axis in "TZC" if file.sizes[axis] > 1)
    levels = tuple(CziLevel(file, factor, lead) for factor in file.factors)
    return FileImage(
        levels=levels,
        axes=lead + ("YXS" if file.is_colour else "YX"),
        is_colour=file.is_colour,
        pixel_size=_pixel_size(file.xml),
        channels=_channels(file.xml, file.sizes["C"]) if "C" in lead else (),
    )


class _CziFile:
    """A file that libCZI reads, closed when no level of it is in use any more.

    One thread reads at a time; a process that was forked opens it anew.
    """

    def __init__(self, path: Path) -> None:
        self._czi: Any = require("pylibCZIrw.czi", extra="slides")
        self.path = path
        self._lock = threading.Lock()
        self._pid = -1
        self._reader: Any = None
        try:
            self._facts(self._opened())
        except HRSAMError:
            raise
        # libCZI answers damaged files with errors of any kind.
        except Exception as error:
            raise unreadable(path, error) from error

    def _facts(self, reader: Any) -> None:
        box = reader.total_bounding_box
        self.sizes = {axis: int(box[axis][1]) for axis in "TZC"}
        more = {axis: box[axis][1] for axis in "RIHVB" if axis in box and box[axis][1] > 1}
        if more:
            logger.warning(
                "%s has several images along %s; the first one is opened",
                self.path,
                ", ".join(f"{axis} ({num})" for axis, num in more.items()),
            )
        bounds = reader.total_bounding_rectangle_no_pyramid
        self.origin_xy = (int(bounds.x), int(bounds.y))
        self.shape_yx = (int(bounds.h), int(bounds.w))
        if min(self.shape_yx) < 1:
            raise ImageError(f"expected an image, got a CZI file without pixels at {self.path}")
        kinds = set(reader.pixel_types.values())
        if len(kinds) != 1 or not kinds <= set(_DTYPES):
            raise ImageError(
                f"expected channels of one kind of pixels, {', '.join(_DTYPES)}, got "
                f"{', '.join(sorted(map(str, kinds)))} in {self.path}; save the channels that you "
                "want as a file of their own"
            )
        kind = kinds.pop()
        self.is_colour = kind.startswith("Bgr")
        if self.is_colour and self.sizes["C"] > 1:
            raise ImageError(
                f"expected one channel of RGB, or several grey ones, got {self.sizes['C']} of RGB "
                f"in {self.path}; save the channel that you want as a file of its own"
            )
        self.dtype = np.dtype(_DTYPES[kind])
        self.xml = str(reader.raw_metadata)
        self.factors = self._stored_factors(reader)

    def _stored_factors(self, reader: Any) -> list[int]:
        """Find the levels that the file holds, from the headers of its parts."""
        found = {1}

        def note(_: int, block: Any) -> bool:
            if block.physicalSize.w and block.physicalSize.h:
                ratio = max(
                    block.logicalRect.w / block.physicalSize.w,
                    block.logicalRect.h / block.physicalSize.h,
                )
                found.add(max(1, round(ratio)))
            return True

        reader.enumerate_subblocks(note)
        longest = max(self.shape_yx)
        factors = sorted(factor for factor in found if longest // factor >= 1)
        while longest // factors[-1] > OVERVIEW_PX:
            factors.append(factors[-1] * COARSE_STEP)
        return factors

    def _opened(self) -> Any:
        if self._reader is None or self._pid != os.getpid():
            cache = self._czi.CacheOptions(max_memory_usage=MAX_CACHE_BYTES)
            self._reader = self._czi.CziReader(str(self.path), cache_options=cache)
            self._pid = os.getpid()
        return self._reader

    def read(self, plane: dict[str, int], factor: int, rows: range, columns: range) -> NDArray[Any]:
        """Read (rows, columns, 1 or 3) pixels of a level, colours as RGB.

        Raises
        ------
        ImageReadError
            If a part of it is damaged.
        """
        x, y = self.origin_xy
        # One more each way: libCZI rounds sizes down.
        more = 0 if factor == 1 else 1
        roi = (
            x + columns.start * factor,
            y + rows.start * factor,
            (len(columns) + more) * factor,
            (len(rows) + more) * factor,
        )
        level = 1.0 if self.is_colour else 0.0
        try:
            with self._lock:
                # The array is libCZI's memory: it is copied before it is cut.
                read = self._opened().read(
                    roi=roi,
                    plane=plane,
                    zoom=1 / factor,
                    background_pixel=(level, level, level),
                )
        # libCZI answers damaged bytes with errors of any kind.
        except Exception as error:
            raise ImageReadError(
                f"expected pixels of {self.path} at {roi}, plane {plane}, got "
                f"{type(error).__name__}: {error}; this part of the file is damaged: copy it "
                "again, or work on another part"
            ) from error
        pixels: NDArray[Any] = np.array(read[: len(rows), : len(columns)])
        # The file has them as blue, green, red.
        return pixels[..., ::-1] if self.is_colour else pixels


class CziLevel(PartsArray):
    """One level of a CZI file.

    Parameters
    ----------
    file : _CziFile
    factor : int
        Level-0 pixels per pixel.
    lead : str
        The axes before Y and X.
    """

    def __init__(self, file: _CziFile, factor: int, lead: str) -> None:
        self._file, self._factor, self._lead = file, factor, lead
        # What is left over at the end is no whole pixel.
        height, width = (max(1, length // factor) for length in file.shape_yx)
        colours = (3,) if file.is_colour else ()
        self.shape = (*(file.sizes[axis] for axis in lead), height, width, *colours)
        self.dtype = file.dtype
        self.chunks = (
            *(1 for _ in lead),
            min(CHUNK_PX, height),
            min(CHUNK_PX, width),
            *colours,
        )

    def _read(self, ranges: Sequence[range]) -> NDArray[Any]:
        lead, (rows, columns, *rest) = ranges[: len(self._lead)], ranges[len(self._lead) :]
        colours = rest[0] if rest else range(1)
        pixels = np.empty([*map(len, lead), len(rows), len(columns), len(colours)], self.dtype)
        depth = (3 if self._file.is_colour else 1) * self.dtype.itemsize
        step = max(1, BAND_BYTES // (depth * len(columns)))
        for place in np.ndindex(*map(len, lead)):
            plane = {axis: part[i] for axis, part, i in zip(self._lead, lead, place, strict=True)}
            for row in range(rows.start, rows.stop, step):
                band = range(row, min(row + step, rows.stop))
                read = self._file.read(plane, self._factor, band, columns)
                to = slice(band.start - rows.start, band.stop - rows.start)
                pixels[(*place, to)] = read[..., colours.start : colours.stop]
        return pixels if rest else pixels[..., 0]


def _pixel_size(xml: str) -> dict[str, tuple[float, str]]:
    """Find the size of a pixel, which CZI files tell in metres."""
    sizes = {}
    for axis, told in re.findall(
        r'<Distance\s+Id="([XYZ])"[^>]*>\s*<Value>\s*([^<\s]+)\s*</Value>', xml
    ):
        try:
            size = float(told) * 1e6
        except ValueError:
            continue
        if 0 < size < float("inf"):
            sizes[axis] = (float(f"{size:.12g}"), "micrometer")
    return sizes


def _channels(xml: str, num: int) -> tuple[OmeChannel, ...]:
    """Find names and colours of the channels; empty where the file does not tell them."""
    names: dict[int, str] = {}
    colours: dict[int, str] = {}
    for number, name in re.findall(r'<Channel\s+Id="Channel:(\d+)"\s+Name="([^"]*)"', xml):
        names.setdefault(int(number), name)
    for number, body in re.findall(
        r'<Channel\s+Id="Channel:(\d+)"[^>/]*>(.*?)</Channel>', xml, flags=re.DOTALL
    ):
        colour = re.search(r"<Color>\s*#(?:[0-9a-fA-F]{2})?([0-9a-fA-F]{6})\s*</Color>", body)
        if colour:
            colours[int(number)] = colour[1]
    return tuple(OmeChannel(name=names.get(i, ""), colour=colours.get(i, "")) for i in range(num))
