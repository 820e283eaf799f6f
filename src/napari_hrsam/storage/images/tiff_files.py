"""Open TIFF images of any size: which pages are the image, its levels, axes and pixel size."""

from __future__ import annotations

import importlib.util
import logging
import math
import re
import weakref
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray

from napari_hrsam.errors import HRSAMError, ImageError
from napari_hrsam.storage.images.file_image import FileImage
from napari_hrsam.storage.images.georeference import Georeference, read_georeference
from napari_hrsam.storage.images.pictures import (
    ORIENTATIONS,
    read_picture,
    require_picture_size,
    too_large,
    unreadable,
)
from napari_hrsam.storage.images.tiff_colours import samples_of
from napari_hrsam.storage.images.tiff_pages import SegmentCache, TiffLevel

logger = logging.getLogger(__name__)

MAX_WHOLE_BYTES = 64 * 2**20
"""An image up to this size is read at once, and a larger segment is too large to be read often."""

MAX_PLANES = 2**20
"""Planes of an image that OME metadata may tell: tifffile makes a list of them."""

_REDUCED, _TRANSPARENCY = 1, 4
_SHAPE_SLACK = 2


def is_tiff(path: Path) -> bool:
    """Whether a file begins as TIFF and BigTIFF files do, whatever its name.

    Raises
    ------
    ImageError
        If it cannot be read.
    """
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise unreadable(path, error) from error
    return head in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


def open_tiff(path: Path, *, as_stored: bool = False) -> FileImage:
    """Open the image of a TIFF file; a large one is read part by part later.

    Of several images the largest is taken that the file does not call reduced; reduced copies of
    it are its coarser levels.

    Parameters
    ----------
    path : Path
    as_stored : bool
        Whether samples are channels to choose from, whatever the file says of them.

    Raises
    ------
    ImageError
        If there is no image that can be read, or planes or sibling files of it are missing.
    """
    try:
        file = tifffile.TiffFile(path)
    # Damaged files make tifffile raise errors of any kind.
    except Exception as error:
        raise unreadable(path, error) from error
    cache = SegmentCache()
    # The file stays open as long as a level of it is in use: pages are looked up when wanted.
    weakref.finalize(cache, file.close)
    try:
        _require_few_planes(file, path)
        found = _find(file, path)
        return _opened(found, cache, path, as_stored)
    except HRSAMError:
        raise
    except MemoryError as error:
        raise too_large(path) from error
    except Exception as error:
        picture = _of_pillow(file, path)
        if picture is None:
            raise unreadable(path, error) from error
        return picture


@dataclass(frozen=True, slots=True, eq=False)
class _Found:
    """The pages of a file that count."""

    file: tifffile.TiffFile
    levels: list[tifffile.TiffPageSeries]
    masks: list[tifffile.TiffPageSeries]


def _find(file: tifffile.TiffFile, path: Path) -> _Found:
    """Choose the image among the pages of a file, its coarser levels and its masks."""
    series = [one for one in file.series if _area(one)]
    masks = [one for one in series if one.keyframe.subfiletype & _TRANSPARENCY]
    pictures = [one for one in series if one not in masks] or masks
    whole = [one for one in pictures if not one.keyframe.is_reduced] or pictures
    if not whole:
        raise ImageError(f"expected an image, got a TIFF file without one at {path}")
    base = max(whole, key=lambda one: math.prod(one.shape))
    _require_all_pages(base, file, path)
    if len(whole) > 1 and base.kind in {"generic", "ome", "uniform", "shaped"}:
        logger.warning(
            "%s holds %d images; the largest is opened, of shape %s", path, len(whole), base.shape
        )
    coarse = base.levels[1:] or [
        one for one in pictures if one is not base and one.keyframe.is_reduced
    ]
    levels = [base]
    for one in sorted(coarse, key=_area, reverse=True):
        if _is_level_of(base, one):
            _require_all_pages(one, file, path)
            levels.append(one)
    master = re.search(
        r'<(?:\w+:)?BinaryOnly\b[^>]*MetadataFile="([^"]+)"', file.ome_metadata or ""
    )
    if master:
        logger.warning(
            "%s is one file of the set that %s describes; only this file is opened",
            path,
            master[1],
        )
    orientation = int(base.keyframe.tags.valueof(274, 1))
    if orientation in ORIENTATIONS:
        logger.warning(
            "%s says that it is to be shown %s (orientation %d); it is opened as it is stored, as "
            "napari does: rows and columns count from the first stored pixel",
            path,
            ORIENTATIONS[orientation],
            orientation,
        )
    return _Found(file, levels, [level for one in masks for level in one.levels])


def _require_few_planes(file: tifffile.TiffFile, path: Path) -> None:
    """Refuse more planes in OME metadata than there can be, before any is looked for."""
    for told in re.findall(r"<(?:\w+:)?Pixels\b([^>]*)>", file.ome_metadata or ""):
        sizes = re.findall(r"\bSize[CZT]\s*=\s*[\"']\s*(\d{1,20})", told)
        if math.prod(map(int, sizes)) > MAX_PLANES:
            raise ImageError(
                f"expected at most {MAX_PLANES} planes, got {' x '.join(sizes)} in the metadata of "
                f"{path}; it may be damaged, copy it again"
            )


def _area(series: tifffile.TiffPageSeries) -> int:
    return int(series.keyframe.imagelength) * int(series.keyframe.imagewidth)


def _is_level_of(base: tifffile.TiffPageSeries, other: tifffile.TiffPageSeries) -> bool:
    """Whether pages can be a coarser copy of others: the same but for a size in proportion."""
    key, coarse = base.keyframe, other.keyframe
    ratios = key.imagelength / coarse.imagelength, key.imagewidth / coarse.imagewidth
    slack = _SHAPE_SLACK * max(ratios) / min(coarse.imagelength, coarse.imagewidth)
    return (
        min(ratios) > 1
        and abs(ratios[0] - ratios[1]) <= slack
        and base.axes == other.axes
        and (key.dtype, key.samplesperpixel) == (coarse.dtype, coarse.samplesperpixel)
        and base.shape[: -len(key.shape)] == other.shape[: -len(coarse.shape)]
    )


def _require_all_pages(
    series: tifffile.TiffPageSeries, file: tifffile.TiffFile, path: Path
) -> None:
    if series.dataoffset is not None:
        end = series.dataoffset + math.prod(series.shape) * series.dtype.itemsize
        if end > file.filehandle.size:
            raise ImageError(
                f"expected a file of at least {end:,} bytes for shape {series.shape}, got "
                f"{file.filehandle.size:,} at {path}; it is truncated, copy it again"
            )
        return
    num_missing = sum(page is None for page in series)
    if num_missing:
        named = re.findall(r'FileName="([^"]+)"', file.ome_metadata or "")
        gone = sorted({name for name in named if not (path.parent / name).is_file()})
        raise ImageError(
            f"expected {len(series)} planes in {path} and the files that belong to it, but "
            f"{num_missing} are missing"
            + (f": there is no {', '.join(gone[:5])}" if gone else "")
            + "; put all files of the set into one folder, or save the planes that there are anew"
        )


def _opened(found: _Found, cache: SegmentCache, path: Path, as_stored: bool) -> FileImage:
    base = found.levels[0]
    if not _lies_in_pages(base):
        require_picture_size(path, math.prod(base.shape) * base.dtype.itemsize)
        samples = samples_of(base.keyframe, as_stored=as_stored)
        is_colour = base.axes.endswith("S") and samples.is_colour
        return FileImage(levels=(base.asarray(),), axes=base.axes, is_colour=is_colour)
    masks = {}
    for one in found.masks:
        if one not in found.levels and _lies_in_pages(one):
            mask = TiffLevel(one, samples_of(one.keyframe, as_stored=True), cache)
            masks[mask.shape[-2:]] = mask
    levels: list[TiffLevel] = []
    for one in filter(_lies_in_pages, found.levels):
        samples = samples_of(one.keyframe, as_stored=as_stored)
        shape_yx = (one.keyframe.imagelength, one.keyframe.imagewidth)
        level = TiffLevel(one, samples, cache, masks.get(shape_yx))
        if level.piece_bytes > MAX_WHOLE_BYTES:
            if levels:
                # Too large to be decoded again and again; the finer level does as well.
                continue
            require_picture_size(path, max(level.piece_bytes, level.num_bytes))
        level.probe()
        levels.append(level)
    first = levels[0]
    arrays: tuple[Any, ...] = tuple(levels)
    if first.piece_bytes > MAX_WHOLE_BYTES:
        arrays = (_whole(first), *levels[1:])
    elif first.num_bytes <= MAX_WHOLE_BYTES and len(levels) == 1:
        pixels = _whole(first)
        # Missing pixels stay in the level, which knows the type that the others have.
        arrays = (first if pixels.dtype != first.native_dtype else pixels,)
    georeference = _georeference(found.file, path)
    size = _map_size(georeference) if georeference else _pixel_size(found.file, base)
    return FileImage(
        levels=arrays,
        axes=first.axes,
        is_colour=samples_of(base.keyframe, as_stored=as_stored).is_colour,
        pixel_size=size,
        georeference=georeference,
    )


def _lies_in_pages(series: tifffile.TiffPageSeries) -> bool:
    """Whether the last axes of an image are rows, columns and samples of its pages."""
    shape = tuple(series.keyframe.shape)
    planes = math.prod(series.shape[: len(series.shape) - len(shape)])
    return (
        set(series.keyframe.axes) <= set("YXS")
        and tuple(series.shape[-len(shape) :]) == shape
        and series.transform is None
        and (series.dataoffset is not None or planes == len(series))
    )


def _whole(level: TiffLevel) -> NDArray[Any]:
    """Read all of a level, in the type of the file where no pixel is missing."""
    pixels = level[(slice(None),) * level.ndim]
    if level.may_lack and not np.isnan(pixels).any():
        return pixels.astype(level.native_dtype)
    return pixels


def _of_pillow(file: tifffile.TiffFile, path: Path) -> FileImage | None:
    """Have Pillow read the one page of a file that tifffile cannot decode; None if it cannot."""
    if file.pages.is_multipage:
        return None
    try:
        pixels = read_picture(path)
    # What tifffile said of the file is told then.
    except ImageError as error:
        logger.debug("Pillow cannot read it either: %s", error)
        return None
    axes = "YXS" if pixels.ndim == 3 else "YX"
    return FileImage(levels=(pixels,), axes=axes, is_colour=pixels.ndim == 3)


def _pixel_size(
    file: tifffile.TiffFile, base: tifffile.TiffPageSeries
) -> dict[str, tuple[float, str]]:
    """Find the size of a pixel where the file tells it; print resolutions tell nothing."""
    page = base.keyframe
    sizes: dict[str, tuple[float, str]] = {}
    if file.is_ome:
        sizes = _ome_size(file, base)
    elif file.is_svs:
        told = re.search(r"\bMPP\s*=\s*([0-9.]+)", page.description)
        if told:
            sizes = dict.fromkeys("YX", (float(told[1]), "micrometer"))
    elif file.is_geotiff and (scale := page.tags.valueof(33550)):
        sizes = {"X": (float(scale[0]), ""), "Y": (float(scale[1]), "")}
    else:
        facts = file.imagej_metadata or {}
        unit = _UNITS.get(str(facts.get("unit", "")))
        if unit is None and int(page.resolutionunit) == _PER_CENTIMETRE:
            unit = "centimeter"
        if unit:
            per_x, per_y = page.resolution
            if per_x > 0 and per_y > 0:
                sizes = {"X": (1 / per_x, unit), "Y": (1 / per_y, unit)}
            if "spacing" in facts:
                sizes["Z"] = (abs(float(facts["spacing"])), unit)
    return {axis: (size, unit) for axis, (size, unit) in sizes.items() if 0 < size < math.inf}


def _georeference(file: tifffile.TiffFile, path: Path) -> Georeference | None:
    """Find where a map lies; None for other images, and without the extra ``geo``."""
    if not file.is_geotiff or importlib.util.find_spec("rasterio") is None:
        return None
    try:
        return read_georeference(path)
    # Its pixels can be drawn on all the same.
    except ImageError as error:
        logger.warning("%s; it is opened without its place on the map", error)
        return None


def _map_size(georeference: Georeference) -> dict[str, tuple[float, str]]:
    """Return the size of a pixel in metres; degrees have no unit of length."""
    in_metres = georeference.pixel_size_m
    height, width = in_metres or georeference.pixel_size
    unit = "meter" if in_metres else ""
    return {"Y": (height, unit), "X": (width, unit)}


def _ome_size(
    file: tifffile.TiffFile, base: tifffile.TiffPageSeries
) -> dict[str, tuple[float, str]]:
    pixels = re.findall(r"<(?:\w+:)?Pixels\b([^>]*)>", file.ome_metadata or "")
    number = list(file.series).index(base)
    if number >= len(pixels):
        return {}
    told = dict(re.findall(r"(\w+)\s*=\s*[\"']([^\"']*)", pixels[number]))
    sizes = {}
    for axis in "XYZ":
        try:
            size = float(told[f"PhysicalSize{axis}"])
        except (KeyError, ValueError):
            continue
        unit = _UNITS.get(told.get(f"PhysicalSize{axis}Unit", "µm"))
        if unit:
            sizes[axis] = (size, unit)
    return sizes


_PER_CENTIMETRE = 3
_UNITS = {
    "µm": "micrometer",
    "μm": "micrometer",
    "um": "micrometer",
    "micron": "micrometer",
    "microns": "micrometer",
    "\\u00B5m": "micrometer",
    "nm": "nanometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
}
