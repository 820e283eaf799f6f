"""What a session asks of a label image."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.geometry import Box, BoxLike
from napari_hrsam.masks import RegionMask
from napari_hrsam.storage.labels.edits import NOT_SAID, DrawnAs, Edit, History
from napari_hrsam.storage.labels.objects import ObjectList
from napari_hrsam.storage.labels.properties import Properties, PropertiesChange


@runtime_checkable
class LabelStore(Protocol):
    """A label image that a session commits to, with the history of its commits."""

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in level-0 pixels."""

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Sizes of the non-spatial axes; empty for a 2-D label image."""

    def history(self) -> History:
        """Return the commits that can be taken back and made again."""

    def newest_done(self) -> Edit | None:
        """Return the commit that can be taken back, None if there is none."""

    def next_undone(self) -> Edit | None:
        """Return the commit that can be made again, None if there is none."""

    def newest_of(self, label: int, plane: tuple[int, ...] = ()) -> Edit | None:
        """Return the newest commit of one object that is known, None if there is none."""

    def next_label(self) -> int:
        """Return an id that no object has."""

    def read(
        self, box: BoxLike | None = None, level: int = 0, plane: tuple[int, ...] = ()
    ) -> NDArray[Any]:
        """Read the labels in a box of one level, in pixels of that level."""

    def find(self, label: int, plane: tuple[int, ...] = ()) -> Box:
        """Return a box that holds an object, in level-0 pixels; `LabelsError` if there is none."""

    def write(
        self,
        box: BoxLike,
        mask: NDArray[np.bool_] | RegionMask,
        label: int,
        *,
        overwrite: bool = False,
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> Edit:
        """Write one object and return what changed."""

    def accept(
        self,
        box: BoxLike,
        painted: Callable[[Box], NDArray[Any]],
        scores: Mapping[int, float],
        *,
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> Edit:
        """Draw many new objects in one edit, where there is background."""

    def replace(
        self,
        label: int,
        box: BoxLike,
        mask: RegionMask | None,
        *,
        overwrite: bool = False,
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> Edit | None:
        """Replace the pixels that an object has in a box by a mask, or delete it there (None).

        Returns None if that changes nothing.
        """

    def revert(self, edit: Edit) -> None:
        """Put back what an edit changed."""

    def apply(self, edit: Edit) -> None:
        """Make a reverted edit again."""

    @property
    def properties(self) -> Properties:
        """The classes, and what is told of each object."""

    def change_properties(self, change: PropertiesChange) -> Edit | None:
        """Change classes and what is told of objects, as one edit; None if that is nothing."""

    def object_list(self) -> ObjectList:
        """Return the objects, to be kept up to date by edits; pixels may still be needed."""
