"""The pixel edges between an object and what is not it, collected region by region.

Edges are kept as straight runs. An object's runs are let go as soon as the last row of regions that
it touches has been seen, so memory holds the outlines of the objects under way, never their pixels.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.export.measures import ObjectTable
from napari_hrsam.storage.export.outlines import (
    Outline,
    Polygon,
    Side,
    chained,
    signed_area,
)
from napari_hrsam.storage.labels.regions import (
    Neighbourhood,
    Progress,
    neighbourhoods,
)
from napari_hrsam.storage.labels.stored import StoredLabels


def trace_outlines(
    labels: StoredLabels,
    plane: tuple[int, ...],
    table: ObjectTable,
    *,
    box: Box | None = None,
    only: Collection[int] | None = None,
    progress: Progress | None = None,
) -> Iterator[tuple[int, Outline]]:
    """Trace the outlines of all objects of one plane along pixel edges.

    Parameters
    ----------
    labels, plane, box, only, progress
        As in `neighbourhoods`.
    table : ObjectTable
        The same objects, measured with the same arguments.

    Yields
    ------
    int, Outline
        Index of the object in the table, and its outline; in the order in which they end.

    Raises
    ------
    LabelsError
        If a chunk cannot be read, or the labels were changed since they were measured.
    """
    under_way = np.empty((0, 5), np.int32)
    found: list[NDArray[np.int32]] = []
    for seen in neighbourhoods(labels, plane, box=box, only=only, progress=progress):
        if isinstance(seen, Neighbourhood):
            found.append(_runs_of(seen, table.labels))
            continue
        under_way = np.concatenate([under_way, *found])
        found = []
        is_whole = table.boxes[:, 2][under_way[:, 0]] < seen.y
        yield from _outlines(under_way[is_whole], table)
        under_way = under_way[~is_whole]
    if len(under_way):
        raise changed_meanwhile()


def changed_meanwhile() -> LabelsError:
    """Return the error for labels that were drawn into while they were read."""
    return LabelsError(
        "expected labels that stay as they are while they are read, but they were changed; close "
        "them where they are drawn into, then do it again"
    )


def _outlines(runs: NDArray[np.int32], table: ObjectTable) -> Iterator[tuple[int, Outline]]:
    """Chain the runs of whole objects, one object after the other."""
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    indices, starts = np.unique(runs[:, 0], return_index=True)
    stops = [*starts[1:].tolist(), len(runs)]
    for index, start, stop in zip(indices.tolist(), starts.tolist(), stops, strict=False):
        polygons = chained(runs[start:stop, 1:].astype(np.int64))
        if polygons is None or _area(polygons) != table.area_px[index]:
            raise changed_meanwhile()
        yield index, Outline(int(table.labels[index]), polygons)


def _area(polygons: tuple[Polygon, ...]) -> int:
    return sum(signed_area(ring) for polygon in polygons for ring in polygon)


def _runs_of(seen: Neighbourhood, labels: NDArray[Any]) -> NDArray[np.int32]:
    """Return the runs of a region: (N, 5) of object, `Side`, line, start and stop."""
    values = seen.values
    # Vertical edges lie between columns; sorted along them they are runs. So for rows.
    left, right = values[1:, :-1], values[1:, 1:]
    across, along = np.nonzero((left != right).T)
    pairs = [
        (Side.RIGHT, across + seen.x0, along + seen.y0, left[along, across]),
        (Side.LEFT, across + seen.x0, along + seen.y0, right[along, across]),
    ]
    above, below = values[:-1, 1:], values[1:, 1:]
    across, along = np.nonzero(above != below)
    pairs += [
        (Side.BOTTOM, across + seen.y0, along + seen.x0, above[across, along]),
        (Side.TOP, across + seen.y0, along + seen.x0, below[across, along]),
    ]
    return np.concatenate([_joined(*pair, labels) for pair in pairs])


def _joined(
    side: Side,
    line: NDArray[np.int64],
    place: NDArray[np.int64],
    label: NDArray[Any],
    labels: NDArray[Any],
) -> NDArray[np.int32]:
    """Join edges of one label that lie side by side on one line."""
    kept = label != 0
    line, place, label = line[kept], place[kept], label[kept]
    is_first = np.ones(len(line), bool)
    is_first[1:] = line[1:] != line[:-1]
    is_first[1:] |= (place[1:] != place[:-1] + 1) | (label[1:] != label[:-1])
    first = np.flatnonzero(is_first)
    last = np.append(first[1:], len(line)) - 1 if len(line) else first
    index = np.searchsorted(labels, label[first])
    # What is not in the table was drawn after it was made.
    if not np.isin(label[first], labels).all():
        raise changed_meanwhile()
    runs = np.empty((len(first), 5), np.int32)
    runs[:, 0], runs[:, 1] = index, side
    runs[:, 2], runs[:, 3], runs[:, 4] = line[first], place[first], place[last] + 1
    return runs
