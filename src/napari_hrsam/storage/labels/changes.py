"""What changes of pixels, areas and classes when an object is written."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box
from napari_hrsam.storage.labels.edits import DrawnAs
from napari_hrsam.storage.labels.properties import Properties, PropertiesChange

MAX_AREAS = 10_000
"""Objects whose areas an edit tells; of one that changes more it tells none."""


def changed_pixels(
    values: NDArray[Any],
    wanted: NDArray[np.bool_] | None,
    label: int,
    *,
    overwrite: bool,
    erased: Box | None = None,
) -> NDArray[np.bool_]:
    """Tell which pixels change when an object is written.

    Parameters
    ----------
    values : (H, W) integer
        The labels there.
    wanted : (H, W) bool or None
        Its pixels; None for all of them.
    label : int
        Its id.
    overwrite : bool
        Whether pixels of other objects are taken over.
    erased : Box, optional
        Where its pixels that are not wanted become background.

    Returns
    -------
    (H, W) bool
        Those that get the id, and those that have it and lose it.
    """
    free: NDArray[np.bool_] = values != label if overwrite else values == 0
    if wanted is None:
        return free
    changed = wanted & free
    if erased is not None:
        part = erased.slices
        changed[part] |= ~wanted[part] & (values[part] == label)
    return changed


def class_change(properties: Properties, label: int, drawn: DrawnAs) -> PropertiesChange | None:
    """Return what gives an object the class that it is drawn with; None if that is nothing."""
    if drawn.object_class is None:
        return None
    return properties.setting_class((label,), drawn.object_class) or None


def area_changes(
    before: NDArray[Any] | None, changed: NDArray[np.bool_] | None, label: int, area: int = 0
) -> dict[int, int]:
    """Count the pixels that each object gets or loses where an object is written.

    Parameters
    ----------
    before : (H, W) integer or None
        The labels there before; None for background.
    changed : (H, W) bool or None
        The pixels that get the label, or that had it and become background; None for all.
    label : int
        Its id.
    area : int
        H x W, where neither array is given.
    """
    if before is None:
        return {label: area if changed is None else int(np.count_nonzero(changed))}
    values = before.ravel() if changed is None else before[changed]
    found, counts = np.unique(values, return_counts=True)
    lost = {value: -num for value, num in zip(found.tolist(), counts.tolist(), strict=True)}
    own, free = lost.pop(label, 0), lost.pop(0, 0)
    return {**lost, label: own - free - sum(lost.values())}


def told_areas(areas: dict[int, int]) -> dict[int, int] | None:
    """Return areas as an edit tells them: None if there are more than `MAX_AREAS`."""
    return areas if len(areas) <= MAX_AREAS else None


def only_label(change: PropertiesChange) -> int:
    """Return the object that a change is about, 0 if there is none or there are several."""
    labels = change.labels
    return labels[0] if len(labels) == 1 else 0
