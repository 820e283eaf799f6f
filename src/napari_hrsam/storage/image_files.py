"""Image files of the command line: read one plane, write masks and pictures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.errors import ImageError

_TIFF = frozenset({".tif", ".tiff"})


def read_image(path: Path, *, stack: bool = False) -> NDArray[Any]:
    """Read one plane in its own dtype.

    Parameters
    ----------
    path : Path
        TIFF, ``.npy``, or any format that Pillow reads (PNG, JPEG, BMP, ...).
    stack : bool
        Take any array of three axes, for an image whose channels are separate.

    Returns
    -------
    (H, W) or (H, W, 3 or 4)
        Grey, RGB or RGBA; with ``stack`` any (A, B, C).

    Raises
    ------
    ImageError
        If there is no such file, or it holds no readable plane.
    """
    if not path.is_file():
        raise ImageError(f"expected an image file, but there is none at {path}; check the path")
    array: NDArray[Any]
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
        elif path.suffix.lower() in _TIFF:
            array = tifffile.imread(path)
        else:
            with Image.open(path) as file:
                plain = file.mode in ("1", "L", "RGB", "RGBA", "F") or file.mode.startswith("I")
                array = np.asarray(file if plain else file.convert("RGB"))
    # Pillow answers broken data with SyntaxError (PNG) and EOFError as well.
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"expected an image (TIFF, PNG, JPEG, .npy, ...), but {path} cannot be read "
            f"({type(error).__name__}: {error}); it may be damaged or of another format"
        ) from error
    # A single plane of a stack, or a single channel, is a plane.
    while array.ndim > (3 if stack else 2) and 1 in array.shape:
        array = array.squeeze(array.shape.index(1))
    if array.ndim == 2 or (array.ndim == 3 and (stack or array.shape[2] in (3, 4))):
        return array
    raise ImageError(
        f"expected one plane, (y, x) grey or (y, x, 3 or 4) RGB(A), got shape {array.shape} in "
        f"{path}; save the plane to work on as a file of its own, or name the axis that holds the "
        "channels"
    )


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
    """Write a (H, W) label image as a PNG of 8 or 16 bits, or a TIFF of up to 32.

    Raises
    ------
    ImageError
        If a PNG is asked for and a label is above 65,535.
    """
    highest = int(labels.max(initial=0))
    if path.suffix.lower() in _TIFF:
        path.parent.mkdir(parents=True, exist_ok=True)
        dtype = np.min_scalar_type(highest)
        tifffile.imwrite(path, labels.astype(dtype), compression="zlib")
        return
    if highest > np.iinfo(np.uint16).max:
        raise ImageError(
            f"expected labels up to 65535 for a PNG, got {highest}; write a TIFF instead"
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(labels.astype(np.uint8 if highest < 256 else np.uint16)).save(path)
