"""Bytes of an image or mask file, and how they become arrays."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.errors import DataError

_PLAIN_MODES = frozenset({"1", "L", "F", "RGB", "RGBA"})
_LOSSY_FORMATS = frozenset({"JPEG", "MPO"})
_LOSSY_TIFF = frozenset({"jpeg", "tiff_jpeg"})
_MAX_LABEL = np.iinfo(np.int32).max


@dataclass(frozen=True, slots=True)
class Blob:
    """A run of bytes in a file: a member of a tar shard, or a file of its own.

    Attributes
    ----------
    path : Path
        File that holds the bytes.
    name : str
        What to call them in messages; its suffix tells the format.
    offset : int
        First byte.
    size_bytes : int
        Number of bytes; -1 = to the end of the file.
    """

    path: Path
    name: str
    offset: int = 0
    size_bytes: int = -1

    def read(self) -> bytes:
        """Read the bytes.

        Raises
        ------
        DataError
            If the file cannot be read any more.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size_bytes)
        except OSError as error:
            raise DataError(f"cannot read {self}: {error}; is the file still there?") from error

    def __str__(self) -> str:
        """File, and the member in it."""
        return str(self.path) if self.size_bytes < 0 else f"{self.path}:{self.name}"


def decode_image(blob: Blob) -> NDArray[np.uint8]:
    """Decode an image to 8 bits.

    Parameters
    ----------
    blob : Blob
        Any format Pillow reads, or `.npy`.

    Returns
    -------
    (H, W) or (H, W, 3) uint8
        Grey or RGB, without alpha. Deeper grey images are scaled from their minimum and maximum.

    Raises
    ------
    DataError
        If it is not a readable image of this kind.
    """
    pixels = _decode(blob, colour=True)
    if pixels.dtype == bool:
        pixels = pixels * np.uint8(255)
    if pixels.ndim == 3 and pixels.shape[2] == 4:
        pixels = pixels[..., :3]
    if pixels.size == 0 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        raise DataError(
            f"image {blob} must be (H, W) grey or (H, W, 3) RGB, got shape {pixels.shape}; "
            "save one plane as a PNG"
        )
    if pixels.dtype == np.uint8:
        return np.ascontiguousarray(pixels)
    return _stretch(pixels, blob)


def decode_labels(blob: Blob) -> NDArray[np.int32]:
    """Decode an instance mask.

    Parameters
    ----------
    blob : Blob
        1-, 8-, 16- or 32-bit whole numbers: PNG, TIFF, BMP or `.npy`. The indices of a palette
        image count, not its colours.

    Returns
    -------
    (H, W) int32
        0 = background; every other value is one object (255 too, in an 8-bit binary mask).

    Raises
    ------
    DataError
        If it is not a readable mask of whole numbers >= 0, or compressed with loss.
    """
    pixels = _decode(blob, colour=False)
    if pixels.ndim != 2:
        raise DataError(
            f"mask {blob} has shape {pixels.shape}, which looks like a colour image; expected one "
            "channel in which 0 = background and every object has its own number"
        )
    if pixels.dtype.kind not in "bui":
        raise DataError(
            f"mask {blob} holds {pixels.dtype} values; expected whole numbers "
            "(1, 8, 16 or 32 bits), one per object"
        )
    if pixels.size and (int(pixels.min()) < 0 or int(pixels.max()) > _MAX_LABEL):
        raise DataError(
            f"mask {blob} holds values from {pixels.min()} to {pixels.max()}; expected object "
            f"numbers from 0 to {_MAX_LABEL}; relabel it"
        )
    return pixels.astype(np.int32)


def image_shape_yx(blob: Blob) -> tuple[int, int]:
    """Height and width of an image, from its header.

    Parameters
    ----------
    blob : Blob

    Returns
    -------
    (H, W) in pixels

    Raises
    ------
    DataError
        If it is not an image.
    """
    if blob.name.lower().endswith(".npy"):
        height, width = _decode(blob, colour=True).shape[:2]
        return height, width
    with _open(blob) as image:
        return image.height, image.width


def _decode(blob: Blob, *, colour: bool) -> NDArray[Any]:
    if blob.name.lower().endswith(".npy"):
        try:
            array = np.load(io.BytesIO(blob.read()), allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise DataError(f"{blob} is not a readable .npy array ({error})") from error
        return np.asarray(array)
    with _open(blob) as image:
        if not colour and (
            image.format in _LOSSY_FORMATS or image.info.get("compression") in _LOSSY_TIFF
        ):
            raise DataError(
                f"mask {blob} is compressed with loss ({image.format}), which changes the numbers "
                "of objects; expected PNG, TIFF, BMP or .npy: save the mask anew from where it was "
                "made, not from this file"
            )
        try:
            if not colour or image.mode in _PLAIN_MODES or image.mode.startswith("I"):
                return np.asarray(image)
            return np.asarray(image.convert("L" if image.mode == "LA" else "RGB"))
        # Pillow's decoders answer broken data with errors of any kind.
        except Exception as error:
            raise _unreadable(blob, error) from error


def _open(blob: Blob) -> Image.Image:
    try:
        return Image.open(io.BytesIO(blob.read()))
    except DataError:
        raise
    except Exception as error:
        raise _unreadable(blob, error) from error


def _unreadable(blob: Blob, error: Exception) -> DataError:
    return DataError(
        f"{blob} cannot be read as an image ({type(error).__name__}: {error}); it may be "
        "truncated, or of a format Pillow does not know"
    )


def _stretch(pixels: NDArray[Any], blob: Blob) -> NDArray[np.uint8]:
    if pixels.dtype.kind not in "uif":
        raise DataError(f"image {blob} holds {pixels.dtype} values; expected numbers")
    values = pixels.astype(np.float64)
    if not np.isfinite(values).all():
        raise DataError(f"image {blob} holds NaN or infinite values; replace them first")
    low, high = float(values.min()), float(values.max())
    if high == low:
        return np.zeros(pixels.shape, np.uint8)
    return np.rint((values - low) * (255 / (high - low))).astype(np.uint8)
