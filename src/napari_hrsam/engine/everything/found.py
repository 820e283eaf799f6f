"""The objects of a block: where they are, how good, how large, what they look like."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray

from napari_hrsam.engine.everything.field import CELL_PX, FEATURE_CELLS, Field, FieldPart
from napari_hrsam.engine.everything.growing import Grown, Rules, grow
from napari_hrsam.errors import DataError
from napari_hrsam.geometry import Box, downsample
from napari_hrsam.storage.files.safe_files import write_once


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Found:
    """N objects in R runs of cells; places are in cells of the whole level.

    Attributes
    ----------
    first : (N, 2) int32
        First cell, y and x, of the seed of each; objects are in this order.
    boxes : (N, 4) int32
        Half-open box of each, y0, x0, y1, x1.
    areas : (N,) int32
        Cells of each.
    scores : (N,) float32, 0..1
        Mean probability of the foreground over its cells.
    mean_rgb, std_rgb : (N, 3) float32, 0..255
        Colours as the model sees them: mean and standard deviation.
    solidity : (N,) float32, 0..1
        Share of the convex hull that the object fills.
    features : (N, F) float16
        Mean features of the dense head, `DENSE_FEATURES` of them, embedding and stem maps.
    runs : (R, 4) int32
        Index of the object, y, first x, the x after the last; by object, row by row.
    too_large : (M, 2) int32
        First cells of the seeds of objects that are too large for the level.
    """

    first: NDArray[np.int32]
    boxes: NDArray[np.int32]
    areas: NDArray[np.int32]
    scores: NDArray[np.float32]
    mean_rgb: NDArray[np.float32]
    std_rgb: NDArray[np.float32]
    solidity: NDArray[np.float32]
    features: NDArray[np.float16]
    runs: NDArray[np.int32]
    too_large: NDArray[np.int32]

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self.first)

    def take(self, kept: NDArray[np.int64]) -> Found:
        """Return some of the objects, in the order of their indices."""
        numbers = np.full(len(self), -1, np.int32)
        numbers[kept] = np.arange(len(kept), dtype=np.int32)
        runs = self.runs[numbers[self.runs[:, 0]] >= 0].copy()
        runs[:, 0] = numbers[runs[:, 0]]
        runs = runs[np.argsort(runs[:, 0], kind="stable")]
        rest = {
            field.name: getattr(self, field.name)[kept]
            for field in fields(self)
            if field.name not in ("runs", "too_large")
        }
        return Found(**rest, runs=runs, too_large=self.too_large)

    def paint(self, box: Box, numbers: NDArray[Any]) -> NDArray[np.uint32]:
        """Draw the objects in some cells.

        Parameters
        ----------
        box : Box
            In cells.
        numbers : (N,) integer
            What each is drawn as.

        Returns
        -------
        (box.height, box.width) uint32
        """
        steps = np.zeros((box.height, box.width + 1), np.int64)
        index, y, x0, x1 = self.runs.T
        x0, x1 = np.maximum(x0, box.x0), np.minimum(x1, box.x1)
        kept = (y >= box.y0) & (y < box.y1) & (x0 < x1)
        value = np.asarray(numbers, np.int64)[index[kept]]
        # Runs do not overlap, but one may begin where another ends.
        np.add.at(steps, (y[kept] - box.y0, x0[kept] - box.x0), value)
        np.add.at(steps, (y[kept] - box.y0, x1[kept] - box.x0), -value)
        return np.cumsum(steps[:, :-1], axis=1).astype(np.uint32)

    def save(self, path: Path, run: str) -> None:
        """Write them to a file, as a whole or not at all; equal ones give equal bytes.

        A file that is there stays: others may do the same block at the same time. Raises OSError
        when the disk fails.
        """
        data = io.BytesIO()
        arrays = {field.name: getattr(self, field.name) for field in fields(self)}
        np.savez_compressed(data, run=np.array(run), **arrays)
        write_once(path, data.getvalue())


def load_found(path: Path, run: str) -> Found:
    """Read what `Found.save` wrote.

    Raises
    ------
    DataError
        If the file is damaged or of another run.
    """
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as arrays:
            found_run = str(arrays["run"])
            found = Found(**{field.name: arrays[field.name] for field in fields(Found)})
    # What a damaged file of numpy raises is of any kind.
    except Exception as error:
        raise DataError(
            f"expected the objects of a block at {path}, got {type(error).__name__}: {error}; "
            "delete the file and run the same again"
        ) from error
    if found_run != run:
        raise DataError(
            f"expected objects of the run {run} at {path}, got those of {found_run}; delete the "
            "folder of the run"
        )
    return found


def find_objects(
    field: Field,
    core: Box,
    rules: Rules,
    *,
    step: Callable[[], None] | None = None,
    halo: int | None = None,
) -> Found:
    """Find the objects of a block.

    Parameters
    ----------
    field : Field
    core : Box
        In cells, inside the field: objects whose seeds begin in it belong to the block.
    rules : Rules
    step : callable, optional
        As in `Field.read`.
    halo : int, optional
        Cells around the block that are looked at: `Rules.halo`, or more, which changes nothing.
    """
    halo = rules.halo if halo is None else halo
    assert halo >= rules.halo
    part = field.read(core.expand(halo).clip(field.shape), step)
    inside = core.shifted(-part.box.y0, -part.box.x0)
    started = time.process_time()
    found = _described(grow(part.maps, rules, inside), part)
    field.seconds["watershed"] += time.process_time() - started
    return found


def _described(grown: Grown, part: FieldPart) -> Found:
    num, origin = len(grown.first), (part.box.y0, part.box.x0)
    runs = _runs(grown.labels)
    places = np.flatnonzero(grown.labels)
    labels = grown.labels.ravel()[places]

    def mean(values: NDArray[Any]) -> NDArray[np.float64]:
        sums = np.bincount(labels, values.ravel()[places], minlength=num + 1)[1:]
        return sums / np.maximum(grown.areas, 1)

    colours = [part.rgb[..., i].astype(np.float64) for i in range(3)]
    mean_rgb = np.stack([mean(colour) for colour in colours], axis=1)
    squares = np.stack([mean(colour * colour) for colour in colours], axis=1)
    features = _pooled(places, labels, num, part)
    runs[:, 1] += origin[0]
    runs[:, 2:] += origin[1]
    return Found(
        first=(grown.first + origin).astype(np.int32),
        boxes=(grown.boxes + origin * 2).astype(np.int32),
        areas=grown.areas.astype(np.int32),
        scores=mean(part.maps[0]).astype(np.float32),
        mean_rgb=mean_rgb.astype(np.float32),
        std_rgb=np.sqrt(np.maximum(squares - mean_rgb**2, 0)).astype(np.float32),
        solidity=_solidity(runs, grown.areas),
        features=features,
        runs=runs,
        too_large=(grown.too_large + origin).astype(np.int32),
    )


def _runs(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return (R, 4) runs: index of the object, y, first x, the x after the last."""
    edge = np.zeros((labels.shape[0], 1), labels.dtype)
    changes = np.diff(labels, axis=1, prepend=edge, append=edge) != 0
    y, x = np.nonzero(changes)
    # A run begins at each change to an object, and ends at the next change in the row.
    begins = np.flatnonzero(x < labels.shape[1])
    begins = begins[labels[y[begins], x[begins]] != 0]
    index = labels[y[begins], x[begins]] - 1
    runs = np.stack([index, y[begins], x[begins], x[begins + 1]], axis=1).astype(np.int32)
    return runs[np.argsort(index, kind="stable")]


def _solidity(runs: NDArray[np.int32], areas: NDArray[np.int64]) -> NDArray[np.float32]:
    """Compare areas with those of the convex hulls, over the corners of the cells."""
    if not len(areas):
        return np.zeros(0, np.float32)
    _, y, x0, x1 = runs.T.astype(np.float64)
    corners = np.stack([x0, y, x1, y, x0, y + 1, x1, y + 1], axis=1).reshape(-1, 2)
    points = shapely.multipoints(corners, indices=np.repeat(runs[:, 0], 4))
    hulls: NDArray[np.float64] = shapely.area(shapely.convex_hull(points))
    return (areas / hulls).astype(np.float32)


def _pooled(
    places: NDArray[np.int64], labels: NDArray[np.int32], num: int, part: FieldPart
) -> NDArray[np.float16]:
    """Average the features under each object, weighted by the cells in each of their places."""
    num_features = part.features.shape[2]
    if not num:
        return np.zeros((0, num_features), np.float16)
    y, x = np.divmod(places, part.box.width)
    lots = part.feature_box
    lot = ((y + part.box.y0) // FEATURE_CELLS - lots.y0) * lots.width
    lot += (x + part.box.x0) // FEATURE_CELLS - lots.x0
    pairs, counts = np.unique(labels.astype(np.int64) * lots.area + lot, return_counts=True)
    owner, lot = np.divmod(pairs, lots.area)
    values = part.features.reshape(lots.area, num_features)[lot].astype(np.float32)
    begins = np.flatnonzero(np.diff(owner, prepend=0))
    sums = np.add.reduceat(values * counts[:, None], begins, axis=0)
    return (sums / np.add.reduceat(counts, begins)[:, None]).astype(np.float16)


def cell0_px(level: int) -> int:
    """Return the level-0 pixels along a side of a cell."""
    return int(CELL_PX * downsample(level))


def rules_for(
    tile_px: int, smallest_px: float | None = None, largest_px: float | None = None
) -> Rules:
    """Return the rules for objects of some area and longest side in level pixels.

    By default the smallest is as `Rules` says, and the largest half a tile long.

    Raises
    ------
    ConfigError
        If a number is out of range.
    """
    largest = tile_px / 2 if largest_px is None else largest_px
    if smallest_px is None:
        return Rules(largest=round(largest / CELL_PX))
    return Rules(largest=round(largest / CELL_PX), smallest=round(smallest_px / CELL_PX**2))


def joined(parts: list[Found]) -> Found:
    """Join the objects of several blocks, in the order of their first cells."""
    whole = in_sequence(parts)
    return whole.take(np.lexsort((whole.first[:, 1], whole.first[:, 0])))


def in_sequence(parts: list[Found]) -> Found:
    """Put the objects of several finds one after the other."""
    shift = np.cumsum([0, *(len(part) for part in parts)])
    runs = [part.runs + np.array([num, 0, 0, 0]) for part, num in zip(parts, shift, strict=False)]
    # Blocks without an object know no number of features.
    told = [part for part in parts if len(part)] or parts[:1]
    rest = {
        field.name: np.concatenate([getattr(part, field.name) for part in told])
        for field in fields(Found)
        if field.name not in ("runs", "too_large")
    }
    too_large = np.concatenate([part.too_large for part in parts])
    too_large = too_large[np.lexsort(too_large.T[::-1])]
    return Found(**rest, runs=np.concatenate(runs).astype(np.int32), too_large=too_large)
