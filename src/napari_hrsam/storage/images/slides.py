"""Files of slide scanners: which library reads which, and those of OpenSlide part by part."""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_hrsam._optional import require
from napari_hrsam.errors import HRSAMError, ImageError, ImageReadError
from napari_hrsam.storage.images.czi_files import is_czi, open_czi
from napari_hrsam.storage.images.file_image import FileImage
from napari_hrsam.storage.images.parts_array import PartsArray
from napari_hrsam.storage.images.pictures import unreadable
from napari_hrsam.storage.images.tiff_pages import SegmentCache

SUFFIXES = frozenset({".mrxs", ".vms", ".vmu", ".svslide"})
"""Files that OpenSlide alone reads, whatever is in them. It tells the others by their content."""

_BLOCK_PX = 256, 1024
"""Shortest and longest side of what is read at once; between them, that of the file's tiles."""

_WHITE = (255, 255, 255)


def is_slide(path: Path) -> bool:
    """Whether a file, or a folder of DICOM files, is read by OpenSlide or libCZI.

    Those TIFF files are left out whose pages are what they seem: SVS, NDPI, OME-TIFF and others
    are read as TIFF. The tiles and regions of BIF, SCN, Philips and Trestle are moved, overlap or
    stand beside each other.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    if path.is_dir():
        return _dicom_of(path) is not None
    return path.suffix.lower() in SUFFIXES or is_czi(path) or _is_dicom(path) or _is_placed(path)


def open_slide(path: Path) -> FileImage:
    """Open a slide; its pixels are read part by part later, by several threads at a time.

    Parameters
    ----------
    path : Path
        A file of `is_slide`, or a folder of DICOM files.

    Returns
    -------
    FileImage
        Of OpenSlide: RGB, laid on the colour that the slide's background has.

    Raises
    ------
    MissingExtraError
        If the extra ``slides`` is not installed.
    ImageError
        If it cannot be read, or a file or folder that belongs to it is missing.
    """
    if not path.is_dir() and is_czi(path):
        return open_czi(path)
    found = _dicom_of(path) if path.is_dir() else path
    assert found is not None
    slide = _Slide(found)
    cache = SegmentCache()
    levels = tuple(SlideLevel(slide, number, cache) for number in range(slide.num_levels))
    size_um = {"Y": slide.number("openslide.mpp-y"), "X": slide.number("openslide.mpp-x")}
    return FileImage(
        levels=levels,
        axes="YXS",
        is_colour=True,
        pixel_size={axis: (size, "micrometer") for axis, size in size_um.items() if size},
        background=slide.background,
    )


class _Slide:
    """A slide of OpenSlide, closed when no level of it is in use any more.

    Several threads may read at a time. A process that was forked opens it anew; so does the next
    reader after an error, which OpenSlide would repeat for ever.
    """

    def __init__(self, path: Path) -> None:
        self._openslide: Any = require("openslide", extra="slides")
        self.path = path
        self._lock = threading.Lock()
        self._pid = -1
        self._handle: Any = None
        handle = self._opened()
        self.properties: dict[str, str] = dict(handle.properties)
        self.sizes_xy: tuple[tuple[int, int], ...] = tuple(handle.level_dimensions)
        self.downsamples: tuple[float, ...] = tuple(handle.level_downsamples)
        self.num_levels = len(self.sizes_xy)
        # What stitches the tiles may be missing, as in a BIF that was cut.
        if not self.sizes_xy or min(min(size) for size in self.sizes_xy) < 1:
            raise ImageError(
                f"expected levels of 1 x 1 pixels or more, got {self.sizes_xy} in {path}; it may "
                "be damaged: copy it again, or save it as OME-TIFF"
            )

    def _opened(self) -> Any:
        with self._lock:
            if self._handle is None or self._pid != os.getpid():
                self._handle, self._pid = self._open(), os.getpid()
            return self._handle

    def _open(self) -> Any:
        unsupported = self._openslide.OpenSlideUnsupportedFormatError
        try:
            return self._openslide.OpenSlide(self.path)
        except unsupported as error:
            siblings = self.path.with_suffix("")
            if self.path.suffix.lower() == ".mrxs" and not siblings.is_dir():
                raise ImageError(
                    f"expected the folder {siblings.name!r} beside {self.path}, which holds its "
                    "pixels, got none; copy both into one folder, and keep their names"
                ) from error
            raise ImageError(
                f"expected a slide that OpenSlide reads, got {self.path}, which it does not know; "
                "it may be damaged or of a new version: copy it again with all that belongs to "
                "it, or save it as OME-TIFF"
            ) from error
        except (self._openslide.OpenSlideError, OSError) as error:
            raise unreadable(self.path, error) from error

    def read(self, level: int, place_xy: tuple[int, int], size_xy: tuple[int, int]) -> Any:
        """Read a part of a level as a picture of Pillow, RGBA.

        Raises
        ------
        ImageReadError
            If a tile of it is damaged.
        """
        handle = self._opened()
        try:
            return handle.read_region(place_xy, level, size_xy)
        except self._openslide.OpenSlideError as error:
            with self._lock:
                if self._handle is handle:
                    self._handle = None
            raise ImageReadError(
                f"expected pixels of level {level} of {self.path} at {place_xy}, got: {error}; "
                "this part of the file is damaged: copy it again, or work on another part"
            ) from error

    def number(self, name: str) -> float | None:
        """Return a property that is a number above 0, None if there is none."""
        try:
            value = float(self.properties.get(name, ""))
        except ValueError:
            return None
        return value if 0 < value < float("inf") else None

    @property
    def background(self) -> tuple[int, int, int]:
        """Colour of what was not scanned."""
        told = self.properties.get("openslide.background-color", "")
        if not re.fullmatch(r"[0-9a-fA-F]{6}", told):
            return _WHITE
        red, green, blue = bytes.fromhex(told)
        return red, green, blue


class SlideLevel(PartsArray):
    """One level of a slide that OpenSlide reads, as RGB on the slide's background colour.

    It is read block by block of a fixed grid, so that a pixel is the same whatever is read with
    it: OpenSlide takes places at full size, and moves pixels between them by less than one.
    """

    def __init__(self, slide: _Slide, number: int, cache: SegmentCache) -> None:
        self._slide, self._number, self._cache = slide, number, cache
        width, height = slide.sizes_xy[number]
        self.shape = (height, width, 3)
        self.dtype = np.dtype(np.uint8)
        rows, columns = (
            min(_BLOCK_PX[1], max(_BLOCK_PX[0], int(slide.number(f"{level}.tile-{side}") or 0)))
            for level, side in itertools.product(
                [f"openslide.level[{number}]"], ["height", "width"]
            )
        )
        self.chunks = (min(rows, height), min(columns, width), 3)
        self._background = np.array(slide.background, np.uint16)

    def _read(self, ranges: Sequence[range]) -> NDArray[np.uint8]:
        rows, columns, colours = ranges
        deep, wide, _ = self.chunks
        pixels = np.empty((len(rows), len(columns), 3), np.uint8)
        for i, j in itertools.product(
            range(rows.start // deep, -(-rows.stop // deep)),
            range(columns.start // wide, -(-columns.stop // wide)),
        ):
            y0, y1 = max(i * deep, rows.start), min((i + 1) * deep, rows.stop)
            x0, x1 = max(j * wide, columns.start), min((j + 1) * wide, columns.stop)
            block = self._block(i, j)[y0 - i * deep : y1 - i * deep, x0 - j * wide : x1 - j * wide]
            to = (
                slice(y0 - rows.start, y1 - rows.start),
                slice(x0 - columns.start, x1 - columns.start),
            )
            pixels[to] = block
        return pixels[..., colours.start : colours.stop]

    def _block(self, i: int, j: int) -> NDArray[np.uint8]:
        key = (self._number, i, j)
        found = self._cache.get(key)
        if found is None:
            found = self._laid(i, j)
            self._cache.put(key, found)
        return found

    def _laid(self, i: int, j: int) -> NDArray[np.uint8]:
        """Read a block and lay it on the background."""
        (height, width, _), (deep, wide, _) = self.shape, self.chunks
        row, column = i * deep, j * wide
        # OpenSlide wants the place at full size, by its own factor of the level.
        factor = self._slide.downsamples[self._number]
        place_xy = round(column * factor), round(row * factor)
        size_xy = min(wide, width - column), min(deep, height - row)
        rgba = np.asarray(self._slide.read(self._number, place_xy, size_xy))
        opacity = rgba[..., 3:].astype(np.uint16)
        laid = rgba[..., :3] * opacity + self._background * (255 - opacity)
        on_background: NDArray[np.uint8] = ((laid + 127) // 255).astype(np.uint8)
        return on_background


def _is_dicom(path: Path) -> bool:
    return _head(path, 132)[128:] == b"DICM"


def _dicom_of(folder: Path) -> Path | None:
    """Find one of the DICOM files that lie in a folder; OpenSlide finds those that belong to it."""
    try:
        names = sorted(folder.iterdir())
    except OSError as error:
        raise unreadable(folder, error) from error
    if any(name.name in {".zattrs", ".zgroup", ".zarray", "zarr.json"} for name in names):
        return None
    files = [name for name in names if name.is_file() and name.suffix.lower() in {".dcm", ""}]
    return next((name for name in files if _is_dicom(name)), None)


def _is_placed(path: Path) -> bool:
    """Whether a TIFF is of a scanner whose pages are not levels that lie on each other."""
    if _head(path, 4) not in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}:
        return False
    try:
        with tifffile.TiffFile(path) as file:
            software = str(file.pages.first.tags.valueof(305, ""))
            return bool(
                file.is_bif or file.is_scn or file.is_philips or software.startswith("MedScan")
            )
    except HRSAMError:
        raise
    # Damaged files make tifffile raise errors of any kind; they are told when it is opened.
    except Exception:  # noqa: BLE001
        return False


def _head(path: Path, num_bytes: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(num_bytes)
    except OSError as error:
        raise unreadable(path, error) from error
