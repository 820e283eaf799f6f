"""Chunks of a generated image, written to disk for programs that cannot paint them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from numcodecs import Zstd

from napari_hrsam.atomic_path import atomic_path
from napari_hrsam.errors import ConfigError
from napari_hrsam.geometry import Box
from napari_hrsam.sample.generated import ZSTD_LEVEL, encode_chunk
from napari_hrsam.sample.scene.recipe import CHUNK_PX
from napari_hrsam.sample.slide import Sample

Progress = Callable[[int, int], object]
"""Called with chunks done and chunks to do."""


def fill_levels(
    sample: Sample, wanted: Sequence[tuple[int, Box | None]], progress: Progress | None = None
) -> int:
    """Write chunks of a generated image to disk.

    Parameters
    ----------
    sample : Sample
    wanted : sequence of (level, box)
        Box in level-0 pixels, None for the whole level. Chunks that are there are kept.
    progress : callable, optional
        Called after every chunk; what it raises stops the work, and what is written stays.

    Returns
    -------
    int
        Number of chunks written.

    Raises
    ------
    ConfigError
        If there is no such level, or a box lies outside the image.
    OSError
        If a chunk cannot be written.
    """
    shapes = sample.level_shapes
    for level, box in wanted:
        if not 0 <= level < len(shapes):
            raise ConfigError(
                f"expected levels of 0 to {len(shapes) - 1}, got {level}; an image of "
                f"{shapes[0][0]} px has no other"
            )
        if box is not None and box.clip(shapes[0]).area == 0:
            raise ConfigError(
                f"expected a box inside the image of {shapes[0]} px, got {box}; give y0, x0, y1, "
                "x1 in pixels of level 0"
            )
    places = [place for level, box in wanted for place in _places(level, box, shapes[level])]
    missing = [place for place in dict.fromkeys(places) if not _file(sample, place).exists()]
    codec = Zstd(level=ZSTD_LEVEL)
    for number, place in enumerate(missing, 1):
        file = _file(sample, place)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_path(file) as partial:
            partial.write_bytes(encode_chunk(sample.scene, place, codec))
        if progress is not None:
            progress(number, len(missing))
    return len(missing)


def _file(sample: Sample, place: tuple[int, int, int]) -> Path:
    level, row, column = place
    return sample.path / str(level) / "c" / "0" / str(row) / str(column)


def _places(
    level: int, box: Box | None, shape_yx: tuple[int, int]
) -> Iterator[tuple[int, int, int]]:
    """Name level, row and column of the chunks under a box."""
    span = CHUNK_PX if box is None else CHUNK_PX * 2**level
    part = Box.of_shape(shape_yx) if box is None else box.clip((2**31, 2**31))
    num_yx = [math.ceil(length / CHUNK_PX) for length in shape_yx]
    for row in range(part.y0 // span, min(num_yx[0], math.ceil(part.y1 / span))):
        for column in range(part.x0 // span, min(num_yx[1], math.ceil(part.x1 / span))):
            yield level, row, column
