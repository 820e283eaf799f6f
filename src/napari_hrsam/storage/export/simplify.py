"""Outlines with fewer corners that are still valid polygons."""

from __future__ import annotations

import numpy as np
import shapely

from napari_hrsam.storage.export.outlines import Polygon


def simplified(polygons: tuple[Polygon, ...], tolerance_px: float) -> tuple[Polygon, ...]:
    """Leave out corners of the outline of one object.

    The corners that stay are among those of the exact outline. A side that would cross or touch
    another one, or pass to the other side of a ring, keeps more corners; no ring vanishes, and
    rectangles stay as they are.

    Parameters
    ----------
    polygons : tuple of Polygon
        Exact outlines.
    tolerance_px : float
        Farthest that a corner left out may lie from the new outline.

    Returns
    -------
    tuple of Polygon
        The same parts and holes.
    """
    # Closed lines, not polygons: their ends stay, so that no corner comes to lie farther than the
    # tolerance. All at once, so that each is held against every other.
    closed = [np.concatenate([ring, ring[:1]]) for polygon in polygons for ring in polygon]
    ring_of = np.repeat(np.arange(len(closed)), [len(ring) for ring in closed])
    exact = shapely.multilinestrings(shapely.linestrings(np.concatenate(closed), indices=ring_of))
    short = shapely.simplify(exact, tolerance_px, preserve_topology=True)
    found = (shapely.get_coordinates(line)[:-1] for line in shapely.get_parts(short))
    left = (corners.astype(np.int64) for corners in found)
    return tuple(tuple(next(left) for _ in polygon) for polygon in polygons)
