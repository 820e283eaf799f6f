"""The label image of a session: what is committed to it, taken back and made again."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import Any

from numpy.typing import NDArray

from napari_hrsam.engine.taken_up import TakenUp, take_up
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import RegionMask
from napari_hrsam.storage.images.tile_source import PyramidImage
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.edits import DrawnAs, Edit
from napari_hrsam.storage.labels.store import LabelStore

MAX_LABELS_PX = 2**28
"""Pixels of an image whose labels are kept in memory when none are given: 1 GiB of uint32."""


class Commits:
    """Writes objects into a label image; the history is the label image's own.

    Parameters
    ----------
    image : PyramidImage
        What is annotated.
    labels : LabelStore, (H, W) integer array, or None
        Of the image's shape. None: an image in memory, made when it is first needed.

    Attributes
    ----------
    offers_redo : bool
        Whether commits that were taken back are offered: until a prompt ends that.

    Raises
    ------
    LabelsError
        If the labels are unusable or of another shape.
    """

    def __init__(self, image: PyramidImage, labels: LabelStore | NDArray[Any] | None) -> None:
        if labels is not None and not isinstance(labels, LabelStore):
            labels = ArrayLabels(labels)
        if labels is not None:
            _require_same_shape(image, labels)
        self._image = image
        self._labels = labels
        self.offers_redo = True

    @property
    def labels(self) -> LabelStore:
        """The label image."""
        if self._labels is None:
            self._labels = _labels_in_memory(self._image)
        return self._labels

    def plane(self, plane: tuple[int, ...]) -> tuple[int, ...]:
        """Return a plane of the image as one of the label image."""
        # Axes of length 1 need not be named.
        return () if set(self._image.plane_shape) <= {1} else plane

    def take_up(self, label: int, plane: tuple[int, ...]) -> TakenUp:
        """Return what an object of the label image is on a plane of the image."""
        return take_up(self.labels, label, self.plane(plane))[0]

    def put(
        self,
        box: Box,
        region: RegionMask,
        taken: TakenUp | None,
        label: int,
        *,
        overwrite: bool,
        plane: tuple[int, ...],
        drawn: DrawnAs,
    ) -> Edit:
        """Write a new object under a new id (label 0), or one that has an id under that.

        One that was taken up replaces what it was on the plane.
        """
        labels, plane = self.labels, self.plane(plane)
        if taken is None:
            return labels.write(
                box,
                region,
                label or labels.next_label(),
                overwrite=overwrite,
                plane=plane,
                # An id of an array may have been another object's.
                drawn=replace(drawn, object_class=drawn.object_class or ""),
            )
        edit = labels.replace(
            taken.label,
            taken.box,
            region,
            overwrite=overwrite,
            plane=plane,
            drawn=drawn,
        )
        if edit is not None:
            return edit
        if drawn.object_class is not None:
            change = labels.properties.setting_class((taken.label,), drawn.object_class)
            edit = labels.change_properties(change)
        if edit is not None:
            return edit
        return Edit(
            label=taken.label,
            box=Box(0, 0, 0, 0),
            prompts=drawn.prompts,
            model=drawn.model,
            time=time.time(),
            plane=plane,
            kind="replace",
        )

    def delete(self, label: int, plane: tuple[int, ...]) -> Edit:
        """Take an object out of the label image."""
        plane = self.plane(plane)
        edit = self.labels.replace(label, self.labels.find(label, plane), None, plane=plane)
        if edit is None:
            raise LabelsError(
                f"expected the object {label} at full size too, got it at coarser levels only; "
                "make these anew with verify_labels(..., repair=True)"
            )
        return edit

    @property
    def newest_done(self) -> Edit | None:
        """The commit that `undo` takes back."""
        return None if self._labels is None else self._labels.newest_done()

    @property
    def next_undone(self) -> Edit | None:
        """The commit that `redo` makes again."""
        if self._labels is None or not self.offers_redo:
            return None
        return self._labels.next_undone()

    def undo(self) -> Edit | None:
        """Take back the newest commit."""
        edit = self.newest_done
        if edit is not None:
            self.labels.revert(edit)
            self.offers_redo = True
        return edit

    def redo(self) -> Edit | None:
        """Make the commit again that was taken back last."""
        edit = self.next_undone
        if edit is not None:
            self.labels.apply(edit)
        return edit


def _require_same_shape(image: PyramidImage, labels: LabelStore) -> None:
    # Axes of length 1 are no difference: their one plane need not be named.
    same_planes = image.plane_shape == labels.plane_shape or (
        set(image.plane_shape) <= {1} and set(labels.plane_shape) <= {1}
    )
    if image.shape_yx != labels.shape_yx or not same_planes:
        raise LabelsError(
            f"expected labels of the image's shape {(*image.plane_shape, *image.shape_yx)}, got "
            f"{(*labels.plane_shape, *labels.shape_yx)}; give labels made for this image, or "
            "leave them out"
        )


def _labels_in_memory(image: PyramidImage) -> ArrayLabels:
    if not set(image.plane_shape) <= {1} or math.prod(image.shape_yx) > MAX_LABELS_PX:
        raise LabelsError(
            f"expected labels to commit to, got none, and an image of shape "
            f"{(*image.plane_shape, *image.shape_yx)} is a stack or too large to have them in "
            "memory; give the session labels for it: Session(model, image, labels)"
        )
    return ArrayLabels(image.shape_yx)
