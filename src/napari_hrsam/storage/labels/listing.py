"""The objects of a label image on disk: from its journal, and by one pass over its pixels."""

from __future__ import annotations

import logging

import numpy as np

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.labels.journal_facts import read_journal
from napari_hrsam.storage.labels.objects import Areas, ObjectList, Plane
from napari_hrsam.storage.labels.properties import read_properties
from napari_hrsam.storage.labels.regions import Progress, region_grid
from napari_hrsam.storage.labels.stored import StoredLabels

logger = logging.getLogger(__name__)


def list_objects(labels: StoredLabels) -> ObjectList:
    """Return what journal and metadata tell of the objects; no pixel is read.

    A journal that cannot be read tells nothing, with a warning.
    """
    try:
        facts = read_journal(labels.folder)
    except LabelsError as error:
        logger.warning("%s", error)
        facts = None
    try:
        (height, width), unit = labels.scale_yx, labels.unit
    except LabelsError as error:
        logger.warning("areas in pixels only: %s", error)
        height, width, unit = 1.0, 1.0, ""
    return ObjectList(
        read_properties(labels.folder),
        [] if facts is None else [commit for commit in facts.commits if commit.is_done],
        pixel_area=height * width,
        unit=unit,
        has_others=facts is None or facts.has_others,
    )


def measure_plane(
    labels: StoredLabels, plane: Plane, progress: Progress | None = None
) -> dict[int, tuple[int, Box]]:
    """Return area and box of each object of a plane, by id; one region at a time is in memory.

    Parameters
    ----------
    labels : StoredLabels
        The label image.
    plane : tuple of int
        All its indices.
    progress : callable (done, total), optional
        Counts regions; what it raises ends the work.

    Raises
    ------
    LabelsError
        If a chunk cannot be read.
    """
    areas = Areas()
    grid = region_grid(labels, 0, plane)
    for done, box in enumerate(grid.boxes(), start=1):
        areas.add(labels.read(box, 0, plane), box.y0, box.x0)
        if progress is not None:
            progress(done, len(grid.filled))
    return areas.found()


def measure_into(
    found: ObjectList,
    labels: StoredLabels,
    plane: Plane | None = None,
    progress: Progress | None = None,
) -> None:
    """Have the pixels of one plane, or of all, tell a list which objects there are.

    Raises
    ------
    LabelsError
        As `measure_plane`.
    """
    planes = [*np.ndindex(labels.plane_shape)] if plane is None else [labels.plane(plane)]
    for number, place in enumerate(planes):
        if progress is not None and len(planes) > 1:
            progress(number, len(planes))
        one = progress if len(planes) == 1 else None
        found.measured(place, measure_plane(labels, place, one))
