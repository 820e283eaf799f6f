"""Image files: read pictures, write masks, labels and pictures."""

from __future__ import annotations

import importlib.util
import logging
import struct
import threading
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.errors import HRSAMError, ImageError

logger = logging.getLogger(__name__)

MAX_PICTURE_BYTES = 2**31
"""Memory for a picture that can only be read as a whole: 2 GiB."""

AMPLE_BYTES = 192 * 2**20
"""A larger picture must not be packed to less than 1 / `MAX_RATIO`, as only one colour can be."""

MAX_RATIO = 200

ORIENTATIONS = {
    2: "mirrored",
    3: "rotated by 180 degrees",
    4: "mirrored upside down",
    5: "mirrored and rotated by 270 degrees",
    6: "rotated by 90 degrees",
    7: "mirrored and rotated by 90 degrees",
    8: "rotated by 270 degrees",
}
"""How pictures are to be turned (clockwise) by the orientation that EXIF and TIFF write."""

_EXIF_ORIENTATION = 0x112
_TIFF = frozenset({".tif", ".tiff"})
_PLAIN = frozenset({"1", "L", "RGB", "RGBA", "F"})
_unlimited = threading.Lock()


def read_picture(path: Path) -> NDArray[Any]:
    """Read a picture whole, in its own dtype.

    Parameters
    ----------
    path : Path
        ``.npy``, or any format that Pillow reads (PNG, JPEG, BMP, ...). A ``.npy`` is mapped.

    Returns
    -------
    (H, W) or (H, W, 3 or 4)
        Grey, RGB or RGBA; of a ``.npy`` any shape.

    Raises
    ------
    ImageError
        If the file cannot be read, or is larger than `MAX_PICTURE_BYTES`.
    """
    try:
        if path.suffix.lower() == ".npy":
            mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
            return mapped
        with open_picture(path) as file:
            bands = len(file.getbands())
            depth = 1 if file.mode in ("1", "L", "P", "RGB", "RGBA", "LA", "PA") else 4
            require_picture_size(path, file.width * file.height * bands * depth, file.size)
            orientation = _orientation(file)
            pixels = _pixels(file)
    except HRSAMError:
        raise
    except MemoryError as error:
        raise too_large(path) from error
    # Pillow's decoders answer broken data with errors of any kind.
    except Exception as error:
        raise unreadable(path, error) from error
    if orientation in ORIENTATIONS:
        logger.warning(
            "%s says that it is to be shown %s (EXIF orientation %d); it is opened as it is "
            "stored, as napari does: rows and columns count from the first stored pixel",
            path,
            ORIENTATIONS[orientation],
            orientation,
        )
    return pixels


def open_picture(source: Path | BinaryIO) -> Image.Image:
    """Open a picture with Pillow, whose own limit of about 179 million pixels does not count."""
    with _unlimited:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            return Image.open(source)
        finally:
            Image.MAX_IMAGE_PIXELS = limit


def require_picture_size(
    path: Path, num_bytes: int, size_xy: tuple[int, int] | None = None
) -> None:
    """Refuse a picture that would take too much memory as a whole.

    Raises
    ------
    ImageError
        If it takes more than `MAX_PICTURE_BYTES`, or more than `AMPLE_BYTES` and `MAX_RATIO` times
        its file.
    """
    if num_bytes > MAX_PICTURE_BYTES:
        shown = "" if size_xy is None else f" ({size_xy[0]:,} x {size_xy[1]:,} px)"
        raise ImageError(
            f"expected at most {MAX_PICTURE_BYTES // 2**30} GiB of pixels in a file that can only "
            f"be read as a whole, got {num_bytes / 2**30:.1f} GiB{shown} in {path}; save it as a "
            "tiled TIFF or as an OME-Zarr, which are read part by part"
        )
    num_stored = path.stat().st_size
    if num_bytes > max(AMPLE_BYTES, MAX_RATIO * num_stored):
        raise ImageError(
            f"expected at most {AMPLE_BYTES >> 20} MiB of pixels, or {MAX_RATIO} times the size of "
            f"the file, got {num_bytes >> 20} MiB from {num_stored:,} bytes in {path}: it is "
            "damaged or meant to fill the memory; if you trust it, save it as a tiled TIFF or as "
            "an OME-Zarr"
        )


def too_large(path: Path) -> ImageError:
    """Say that there is no memory for a file."""
    return ImageError(
        f"expected an image that fits into memory, but there is none left for what {path} says "
        "that it holds; it may be damaged: copy it again, or save it as a tiled TIFF or as an "
        "OME-Zarr, which are read part by part"
    )


def unreadable(path: Path, error: Exception) -> ImageError:
    """Say why a file cannot be read, and what to do."""
    start = (
        f"expected an image (TIFF, PNG, JPEG, .npy, ...), but {path} cannot be read "
        f"({type(error).__name__}: {error})"
    )
    if "imagecodecs" in str(error) and importlib.util.find_spec("imagecodecs") is None:
        return ImageError(f"{start}; install its codecs with: pip install imagecodecs")
    if isinstance(error, PermissionError):
        return ImageError(f"{start}; have its permissions changed, or copy it")
    # What tifffile and imagecodecs raise for kinds of files that they cannot decode.
    if isinstance(error, NotImplementedError | ImportError) or "not supported" in str(error):
        return ImageError(
            f"{start}; it is of a kind that cannot be decoded here: save it with another "
            "compression, such as Deflate, and 8, 16 or 32 bits per sample"
        )
    return ImageError(f"{start}; it may be damaged or of another format")


def _pixels(file: Image.Image) -> NDArray[Any]:
    if file.mode in _PLAIN or file.mode.startswith("I"):
        return np.asarray(file)
    has_alpha = file.mode in ("LA", "La", "PA", "RGBa") or "transparency" in file.info
    return np.asarray(file.convert("RGBA" if has_alpha else "RGB"))


def _orientation(file: Image.Image) -> int:
    """Return the EXIF orientation, 1 if there is none that can be read."""
    try:
        return int(file.getexif().get(_EXIF_ORIENTATION, 1))
    # Damaged EXIF is no reason to refuse the pixels.
    except (ValueError, TypeError, SyntaxError, OSError, KeyError, struct.error) as error:
        logger.debug("the EXIF data of a picture cannot be read: %s", error)
        return 1


def write_image(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write an 8-bit grey or RGB picture; the suffix tells the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() in _TIFF:
        tifffile.imwrite(path, pixels, compression="zlib")
    else:
        Image.fromarray(pixels).save(path)


def write_mask(path: Path, mask: NDArray[np.bool_]) -> None:
    """Write a (H, W) mask as 8 bits: 0 outside, 255 inside."""
    write_image(path, mask.astype(np.uint8) * np.uint8(255))


def write_labels(path: Path, labels: NDArray[np.integer]) -> None:
    """Write a (H, W) label image as a PNG of 8 or 16 bits, or a TIFF of up to 32, also of planes.

    Raises
    ------
    ImageError
        If a PNG is asked for and a label is above 65,535.
    """
    highest = int(labels.max(initial=0))
    if path.suffix.lower() in _TIFF:
        path.parent.mkdir(parents=True, exist_ok=True)
        dtype = np.min_scalar_type(highest)
        # Else three planes would be red, green and blue.
        tifffile.imwrite(path, labels.astype(dtype), compression="zlib", photometric="minisblack")
        return
    if highest > np.iinfo(np.uint16).max:
        raise ImageError(
            f"expected labels up to 65535 for a PNG, got {highest}; write a TIFF instead"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8 if highest < 256 else np.uint16)).save(path)
