"""Tell whether an image is the one that was opened before, without reading all of it.

Neither the place of the image nor its times are part of the answer, so it is the same for a copy
on another machine. What is: shapes, dtypes and axes of its levels, the channels and limits that
are shown, and a sample of its content.
"""

from __future__ import annotations

import hashlib
import json
import math
import mmap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box
from napari_hrsam.storage.tile_source import MEAN_RGB, PyramidImage

if TYPE_CHECKING:
    from napari_hrsam.storage.stored import StoredLevel

PIXELS_VERSION = 1
"""Of how pixels are read from an image: raised when a tile of the same image would differ."""

MAX_WHOLE_BYTES = 4 * 2**20
"""An array in memory up to this size is looked at as a whole."""

MAX_SAMPLES = 300_000
"""Values looked at in a larger one, spread evenly."""

MAX_WHOLE_PX = 2**20
"""A coarsest level up to this size is looked at as a whole where there are no chunk files."""

WINDOWS, WINDOW_PX = 3, 64
"""Windows that are read of a larger one, and of the finest level."""

RUNS = 8
"""Runs of pixels looked at for each of `CHUNKS` parts of an array that is mapped from a file."""

CHUNKS = 24
"""Chunk files of each level whose sizes are looked at."""

COARSE_BYTES, FINE_BYTES = 2**22, 2**18
"""Bytes looked at in those of the coarsest level and of the finest, at three places of each."""


@dataclass(frozen=True, slots=True)
class ImageIdentity:
    """What an image looks like to a model.

    Attributes
    ----------
    digest : str
        24 hex digits; differs where anything that the model sees is known to differ.
    shape_yx : (int, int)
        Of the image in level-0 pixels.
    plane_shape : tuple of int
        Number of planes along each other axis.
    """

    digest: str
    shape_yx: tuple[int, int]
    plane_shape: tuple[int, ...]


def identify(image: PyramidImage, fill: tuple[int, int, int] = MEAN_RGB) -> ImageIdentity:
    """Fingerprint an open image; takes about the same time whatever its size.

    Content is looked at in places: arrays in memory up to 4 MiB as a whole, larger ones at a grid
    of 300,000 values; zarr arrays on a local disk by the sizes of some chunk files of every level
    and bytes of some; all others by a few windows of the finest and the coarsest level. A change
    at other places only is not noticed.

    Parameters
    ----------
    image : PyramidImage
    fill : (red, green, blue)
        Colour shown outside the image.

    Returns
    -------
    ImageIdentity

    Raises
    ------
    ImageReadError
        If the pixels looked at cannot be read.
    """
    levels = image.stored_levels
    digest = hashlib.sha256()
    facts = {
        "pixels": PIXELS_VERSION,
        "shown": image.shown,
        "limits": image.contrast_limits,
        "fill": fill,
        "levels": [
            (level.data.shape, level.dtype.str, asdict(level.order), level.factor_yx)
            for level in levels
        ],
    }
    digest.update(json.dumps(facts, default=_plain).encode())
    for number, level in enumerate(levels):
        for part in _sample(level, number == 0, number == len(levels) - 1):
            digest.update(part)
    return ImageIdentity(digest.hexdigest()[:24], image.shape_yx, image.plane_shape)


def _plain(value: Any) -> Any:
    """Numbers of NumPy as those of Python."""
    return value.item()


def _sample(level: StoredLevel, is_finest: bool, is_coarsest: bool) -> Iterator[bytes]:
    """Yield content of a level."""
    if isinstance(level.data, np.ndarray):
        yield from _runs(level.data) if _is_mapped(level.data) else _pixels(level.data)
        return
    folder = _chunk_folder(level.data)
    if folder is not None:
        yield from _chunk_files(
            level.data, folder, COARSE_BYTES if is_coarsest else FINE_BYTES if is_finest else 0
        )
    elif is_coarsest and math.prod(level.shape_yx) <= MAX_WHOLE_PX:
        yield _window(level, Box.of_shape(level.shape_yx), _plane(level.plane_shape, 0.5))
    elif is_finest or is_coarsest:
        yield from _windows(level)


def _is_mapped(array: NDArray[Any]) -> bool:
    """Whether pixels are read from a file when they are touched."""
    base: Any = array
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap):
            return True
        base = base.base
    return isinstance(base, mmap.mmap)


def _pixels(array: NDArray[Any]) -> Iterator[bytes]:
    if array.nbytes <= MAX_WHOLE_BYTES:
        yield array.tobytes()
        return
    # Not colours, unless all axes are short.
    long = [axis for axis, length in enumerate(array.shape) if length > 8] or range(array.ndim)
    step = math.ceil((array.size / MAX_SAMPLES) ** (1 / len(long)))
    yield array[
        tuple(
            slice(min(step, length) // 2, None, step) if axis in long else slice(None)
            for axis, length in enumerate(array.shape)
        )
    ].tobytes()


def _runs(array: NDArray[Any]) -> Iterator[bytes]:
    """Yield short runs: every place of a file costs a read."""
    starts = _spread(array.shape[-1], RUNS)
    for number, row in enumerate(_spread(math.prod(array.shape[:-1]), CHUNKS * RUNS)):
        start = starts[number % len(starts)]
        index = np.unravel_index(row, array.shape[:-1])
        yield array[index][start : start + WINDOW_PX].tobytes()


def _windows(level: StoredLevel) -> Iterator[bytes]:
    """Yield some windows, of the first, middle and last plane in turn."""
    height, width = level.shape_yx
    for place in range(WINDOWS):
        share = (place + 0.5) / WINDOWS
        y, x = int(share * height), int(share * 2 % 1 * width)
        box = Box(y, x, y + WINDOW_PX, x + WINDOW_PX).clip((height, width))
        yield _window(level, box, _plane(level.plane_shape, place / (WINDOWS - 1)))


def _window(level: StoredLevel, box: Box, plane: tuple[int, ...]) -> bytes:
    return level.read(box, plane, tuple(range(level.num_channels))).tobytes()


def _plane(sizes: Sequence[int], share: float) -> tuple[int, ...]:
    return tuple(round(share * (size - 1)) for size in sizes)


def _chunk_folder(array: Any) -> Path | None:
    """Return the folder in which the chunks of a zarr array are files, None if there is none."""
    store = getattr(array, "store", None)
    # Its own root for a plain store; `CheckedStore` tells that of the store inside it.
    root = getattr(store, "local_root", getattr(store, "root", None))
    if not isinstance(root, Path) or not hasattr(array, "metadata"):
        return None
    return root / str(array.path)


def _chunk_files(array: Any, folder: Path, most_bytes: int) -> Iterator[bytes]:
    """Yield the sizes of some chunk files, and bytes of them.

    A compressed chunk hardly ever keeps its size when its pixels change.
    """
    lengths = array.shards or array.chunks
    grid = tuple(math.ceil(n / step) for n, step in zip(array.shape, lengths, strict=True))
    numbers = _spread(math.prod(grid), CHUNKS)
    part_bytes = most_bytes // len(numbers) // 3
    for number in numbers:
        place = tuple(int(i) for i in np.unravel_index(number, grid))
        path = folder / array.metadata.encode_chunk_key(place)
        try:
            size = path.stat().st_size
        except FileNotFoundError:
            yield b"-"
            continue
        yield f"{size},".encode()
        if part_bytes:
            with path.open("rb") as stream:
                for start in (0, size // 2, max(0, size - part_bytes)):
                    stream.seek(start)
                    yield stream.read(part_bytes)


def _spread(num: int, most: int) -> list[int]:
    """Choose at most ``most`` of the numbers 0 .. num - 1, spread so that no rhythm is followed."""
    if num <= most:
        return list(range(num))
    golden = (math.sqrt(5) - 1) / 2
    return sorted({int((i + 0.5) * golden % 1 * num) for i in range(most - 2)} | {0, num - 1})
