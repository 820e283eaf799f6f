"""A label image that is made with all its objects at once, region by region."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from napari_hrsam.geometry import Box, Grid
from napari_hrsam.storage.labels.downsampling import AxisRatio, majority
from napari_hrsam.storage.labels.making import CHUNK_PX, make_labels

REGION_PX = 8 * CHUNK_PX
"""Side of the regions that are painted at a time, whole chunks each: 64 MiB."""

REGIONS = Grid((REGION_PX, REGION_PX))

Plane = tuple[int, ...]

Painted = Iterable[tuple[Box, NDArray[np.uint32]]]
"""Regions, each the common part of one of `REGIONS` with the image, and their labels."""


def make_painted_labels(
    path: Path,
    name: str,
    like: object,
    painted: Painted,
    plane: tuple[int, ...] = (),
    also: Callable[[Path], None] | None = None,
    step: Callable[[], None] | None = None,
) -> None:
    """Make a label image with objects in it; it is there as a whole or not at all.

    Parameters
    ----------
    path, name, like
        As in `make_labels`.
    painted : iterable of (Box, labels)
        Regions of level 0, each once; what is not named is background.
    plane : tuple of int
        Index over the axes before y and x.
    also : callable, optional
        Given the folder of the label image before anybody sees it, to put more into it.
    step : callable, optional
        Called after each region; what it raises ends the work, and nothing is left.

    Raises
    ------
    LabelsError
        As `make_labels`.
    """

    def fill(folder: Path, arrays: list[zarr.Array[Any]]) -> None:
        place: Plane = plane or (0,) * (arrays[0].ndim - 2)
        done: set[tuple[int, int]] = set()
        for box, values in painted:
            if values.any():
                arrays[0][_at(place, box)] = values
                done.update(REGIONS.places(box))
            if step is not None:
                step()
        for fine, coarse in itertools.pairwise(arrays):
            done = _derive(fine, coarse, place, done, step)
        if also is not None:
            also(folder)

    make_labels(path, name, like, fill)


def _derive(
    fine: zarr.Array[Any],
    coarse: zarr.Array[Any],
    place: Plane,
    painted: set[tuple[int, int]],
    step: Callable[[], None] | None,
) -> set[tuple[int, int]]:
    """Derive a level from the one before; tell in which regions of it there are objects."""
    rows, columns = (AxisRatio(fine.shape[axis], coarse.shape[axis]) for axis in (-2, -1))
    touched: set[tuple[int, int]] = set()
    for place_yx in painted:
        region = REGIONS.box(place_yx).clip((fine.shape[-2], fine.shape[-1]))
        y0, y1 = rows.covering(region.y0, region.y1)
        x0, x1 = columns.covering(region.x0, region.x1)
        touched.update(REGIONS.places(Box(y0, x0, y1, x1)))
    # Parts of half a region read about one region of the finer level.
    parts = Grid((REGION_PX // 2, REGION_PX // 2))
    for place_yx in sorted(touched):
        for box in parts.parts(REGIONS.box(place_yx).clip((coarse.shape[-2], coarse.shape[-1]))):
            y, x = rows.edges(box.y0, box.y1), columns.edges(box.x0, box.x1)
            source = Box(int(y[0]), int(x[0]), int(y[-1]), int(x[-1]))
            values = np.asarray(fine[_at(place, source)])
            if values.any():
                coarse[_at(place, box)] = majority(values, y - y[0], x - x[0])
            if step is not None:
                step()
    return touched


def _at(place: Plane, box: Box) -> tuple[int | slice, ...]:
    return (*place, *box.slices)
