"""Labels in a NumPy array."""

from __future__ import annotations

import time as clock
from collections.abc import Callable, Mapping
from operator import index
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, BoxLike, as_box
from napari_hrsam.masks import BLOCK_PX, EmptyMask, RegionMask
from napari_hrsam.storage.labels.arguments import (
    checked_plane,
    no_free_pixel,
    no_such_label,
    none_free,
    region_of,
    require_fits,
    require_new_ids,
)
from napari_hrsam.storage.labels.changes import (
    area_changes,
    changed_pixels,
    class_change,
    only_label,
    told_areas,
)
from napari_hrsam.storage.labels.classed import ClassedObjects
from napari_hrsam.storage.labels.edits import (
    NOT_SAID,
    ArrayEdit,
    DrawnAs,
    DrawnObject,
    Edit,
    EditKind,
    History,
)
from napari_hrsam.storage.labels.objects import Areas, ObjectList, ObjectRow, measure_array
from napari_hrsam.storage.labels.properties import Properties, PropertiesChange

MAX_UNDO_BYTES = 512 * 2**20
"""Memory for what undo of commits in memory needs; beyond it the oldest commits become final."""

MAX_DENSE_PIXELS = 2**30
"""Pixels of the largest new label image that is made in memory: 4 GiB of uint32."""


class ArrayLabels(ClassedObjects):
    """A label image in a NumPy array, which is changed in place.

    Parameters
    ----------
    array_or_shape : (H, W) integer array, or a shape (H, W)
        Existing labels (0 is background), or the shape of a new uint32 label image.

    Raises
    ------
    LabelsError
        If it is no writable 2-D array of integers, and no shape.
    """

    def __init__(self, array_or_shape: NDArray[Any] | tuple[int, int]) -> None:
        if isinstance(array_or_shape, np.ndarray):
            array = array_or_shape
        else:
            array = np.zeros(_shape(array_or_shape), np.uint32)
        if array.ndim != 2 or array.dtype.kind not in "iu":
            raise LabelsError(
                f"expected labels as a 2-D array of integers, got shape {array.shape} and dtype "
                f"{array.dtype}; convert them, e.g. labels.astype(numpy.uint32)"
            )
        if not array.flags.writeable:
            raise LabelsError(
                "expected labels that can be written to, got a read-only array; "
                "give a copy, or open the file in mode 'r+'"
            )
        self.array = array
        self._done: list[ArrayEdit] = []
        self._undone: list[ArrayEdit] = []
        self._properties = Properties()

    def __repr__(self) -> str:
        """Tell size and dtype in one line."""
        height, width = self.shape_yx
        return f"ArrayLabels({height} x {width} px, {self.array.dtype})"

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.array.shape[0], self.array.shape[1]

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Sizes of the non-spatial axes: there are none."""
        return ()

    def history(self) -> History:
        """Return the commits since these labels were made, as far as `MAX_UNDO_BYTES` goes."""
        return History(done=tuple(self._done), undone=tuple(self._undone))

    def newest_done(self) -> Edit | None:
        """Return the commit that was made last, None if there is none."""
        return self._done[-1] if self._done else None

    def next_undone(self) -> Edit | None:
        """Return the commit that was taken back last, None if there is none."""
        return self._undone[-1] if self._undone else None

    def newest_of(self, label: int, plane: tuple[int, ...] = ()) -> Edit | None:
        """Return the newest commit of one object, None if there is none."""
        checked_plane(plane, ())
        parts = (p for e in reversed(self._done) if e.box.area for p in e.parts())
        return next((part for part in parts if part.label == label), None)

    def read(
        self, box: BoxLike | None = None, level: int = 0, plane: tuple[int, ...] = ()
    ) -> NDArray[Any]:
        """Return the labels in a box: a part of the array, not a copy.

        Parameters
        ----------
        box : (y0, x0, y1, x1) or Box, optional
            Inside the image; by default all of it.
        level, plane
            0 and empty: an array is one plane at full size.

        Raises
        ------
        LabelsError
            If the box reaches outside, or there is no such level or plane.
        """
        checked_plane(plane, ())
        whole = Box.of_shape(self.shape_yx)
        part = whole if box is None else as_box(box)
        if level != 0 or part.intersection(whole) != part:
            raise LabelsError(
                f"expected level 0 and a box inside labels of shape {self.shape_yx}, got level "
                f"{level} and {part}; an array has one level"
            )
        return self.array[part.slices]

    def find(self, label: int, plane: tuple[int, ...] = ()) -> Box:
        """Return the smallest box that holds an object.

        Raises
        ------
        LabelsError
            If no pixel has the id; it names the ids next to it.
        """
        checked_plane(plane, ())
        require_fits(label, self.array.dtype)
        found = Box(0, 0, 0, 0)
        for y in range(0, self.shape_yx[0], BLOCK_PX):
            rows = Box.around(self.array[y : y + BLOCK_PX] == label)
            found = found.union(rows.shifted(y, 0))
        if found.area == 0:
            raise no_such_label(label, self.array)
        return found

    def next_label(self) -> int:
        """Return the id after the highest one in the array, also when others wrote to it.

        Raises
        ------
        LabelsError
            If the dtype of the array cannot hold it.
        """
        label = max(0, int(self.array.max(initial=0))) + 1
        require_fits(label, self.array.dtype)
        return label

    def write(
        self,
        box: BoxLike,
        mask: NDArray[np.bool_] | RegionMask,
        label: int,
        *,
        overwrite: bool = False,
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> ArrayEdit:
        """Write one object.

        Parameters
        ----------
        box : (y0, x0, y1, x1) or Box
            Where the mask lies, inside the image.
        mask : (box.height, box.width) bool, or RegionMask
            The object; of a `RegionMask` what lies in the box.
        label : int
            Its id, 1 or more.
        overwrite : bool
            Whether pixels of other objects are taken over; by default they stay.
        plane
            Empty: an array is one plane.
        drawn : DrawnAs
            Kept in the edit.

        Returns
        -------
        ArrayEdit
            Its box is the smallest one that holds every changed pixel.

        Raises
        ------
        LabelsError
            If no pixel can be written, the id does not fit the dtype, or the box reaches outside.
        ShapeError
            If the mask does not have the shape of the box.
        """
        require_fits(label, self.array.dtype)
        box = as_box(box)
        region = region_of(box, mask, self.shape_yx)
        checked_plane(plane, ())
        block = self.array[box.slices]
        changed = changed_pixels(block, region.read(box), label, overwrite=overwrite)
        if not changed.any():
            raise no_free_pixel(label, region, box)
        return self._write_changed(box, changed, label, "draw", drawn)

    def accept(
        self,
        box: BoxLike,
        painted: Callable[[Box], NDArray[Any]],
        scores: Mapping[int, float],
        *,
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> ArrayEdit:
        """Draw many new objects in one edit, where there is background.

        Parameters and errors are those of `LabelWriter.accept`.
        """
        box = as_box(box)
        region_of(box, EmptyMask(box), self.shape_yx)
        checked_plane(plane, ())
        require_new_ids(scores, self.next_label(), self.array.dtype)
        new = painted(box).astype(self.array.dtype)
        new[self.array[box.slices] != 0] = 0
        if not new.any():
            raise none_free(scores)
        found = Areas()
        found.add(new, box.y0, box.x0)
        objects = tuple(
            DrawnObject(label=label, box=where, area_px=area, score=scores.get(label))
            for label, (area, where) in sorted(found.found().items())
        )
        tight = Box.around(new != 0)
        new, place = new[tight.slices], tight.shifted(box.y0, box.x0)
        before = self.array[place.slices].copy()
        after = np.where(new != 0, new, before)
        self.array[place.slices] = after
        before.flags.writeable = after.flags.writeable = False
        edit = ArrayEdit(
            label=objects[-1].label,
            box=place,
            before=before,
            after=after,
            model=drawn.model,
            time=clock.time(),
            kind="accept",
            level=drawn.level,
            areas={one.label: one.area_px for one in objects},
            objects=objects,
        )
        self._remember(edit)
        return edit

    def replace(
        self,
        label: int,
        box: BoxLike,
        mask: RegionMask | None,
        *,
        overwrite: bool = False,
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> ArrayEdit | None:
        """Replace an object, or delete it, in one edit.

        Parameters
        ----------
        label : int
            Its id.
        box : (y0, x0, y1, x1) or Box
            Inside the image. Pixels of the object in it that are not in the mask become
            background; see `find`.
        mask : RegionMask or None
            Its new pixels, in the image; None deletes it.
        overwrite, plane, drawn
            As in `write`.

        Returns
        -------
        ArrayEdit or None
            None if the object is as the mask says already.

        Raises
        ------
        LabelsError
            If all pixels of the mask belong to other objects, the id does not fit the dtype, or
            the box or the mask reaches outside.
        """
        require_fits(label, self.array.dtype)
        checked_plane(plane, ())
        box = as_box(box)
        whole = box if mask is None else box.union(mask.box)
        region = region_of(whole, EmptyMask(whole) if mask is None else mask, self.shape_yx)
        block, wanted = self.array[whole.slices], region.read(whole)
        changed = changed_pixels(
            block, wanted, label, overwrite=overwrite, erased=box.shifted(-whole.y0, -whole.x0)
        )
        if mask is not None and not (wanted & (changed | (block == label))).any():
            raise no_free_pixel(label, region, mask.box)
        if not changed.any():
            return None
        kind: EditKind = "delete" if mask is None else "replace"
        return self._write_changed(whole, changed, label, kind, drawn)

    def _write_changed(
        self,
        box: Box,
        changed: NDArray[np.bool_],
        label: int,
        kind: EditKind,
        drawn: DrawnAs,
    ) -> ArrayEdit:
        properties_change = class_change(self._properties, label, drawn)
        tight = Box.around(changed)
        place = tight.shifted(box.y0, box.x0)
        before = self.array[place.slices].copy()
        # What had the label already and changes is erased.
        new = np.where(before == label, 0, label).astype(before.dtype)
        after = np.where(changed[tight.slices], new, before)
        self.array[place.slices] = after
        before.flags.writeable = after.flags.writeable = False
        edit = ArrayEdit(
            label=label,
            box=place,
            before=before,
            after=after,
            prompts=drawn.prompts,
            model=drawn.model,
            time=clock.time(),
            kind=kind,
            level=drawn.level,
            score=drawn.score,
            first_level=drawn.first_level,
            areas=told_areas(area_changes(before, before != after, label)),
            change=properties_change,
        )
        self._remember(edit)
        return edit

    def _remember(self, edit: ArrayEdit) -> None:
        if edit.change is not None:
            self._properties = self._properties.after(edit.change)
        self._undone.clear()
        self._done.append(edit)
        while sum(kept.num_bytes for kept in self._done[:-1]) > MAX_UNDO_BYTES:
            del self._done[0]

    @property
    def properties(self) -> Properties:
        """The classes, and what is told of each object; in memory, for as long as these labels."""
        return self._properties

    def change_properties(self, change: PropertiesChange) -> ArrayEdit | None:
        """Change classes and what is told of objects, as one edit; None if that is nothing."""
        if not change:
            return None
        nothing = np.zeros((0, 0), self.array.dtype)
        edit = ArrayEdit(
            label=only_label(change),
            box=Box(0, 0, 0, 0),
            before=nothing,
            after=nothing,
            time=clock.time(),
            kind="properties",
            areas={},
            change=change,
        )
        self._remember(edit)
        return edit

    def object_list(self) -> ObjectList:
        """Return the objects, to be kept up to date by edits; the array is measured."""
        found = ObjectList(self._properties, self._done)
        found.measured((), measure_array(self.array))
        return found

    def objects(self, plane: tuple[int, ...] = ()) -> list[ObjectRow]:
        """Return all objects by id: class, area, box, and what this session knows of them."""
        checked_plane(plane, ())
        return self.object_list().rows()

    def revert(self, edit: Edit) -> None:
        """Put back what an edit changed; its other pixels stay as they are."""
        edit = _own(edit)
        self._swap(edit, edit.before)
        if edit.change is not None:
            self._properties = self._properties.after(edit.change, is_done=False)
        _move(edit, self._done, self._undone)

    def apply(self, edit: Edit) -> None:
        """Make a reverted edit again; its other pixels stay as they are."""
        edit = _own(edit)
        self._swap(edit, edit.after)
        if edit.change is not None:
            self._properties = self._properties.after(edit.change)
        _move(edit, self._undone, self._done)

    def _swap(self, edit: ArrayEdit, values: NDArray[Any]) -> None:
        changed = edit.before != edit.after
        self.array[edit.box.slices][changed] = values[changed]


def _move(edit: ArrayEdit, source: list[ArrayEdit], target: list[ArrayEdit]) -> None:
    """Move an edit from one list to the end of another; one that was let go of has no place."""
    if edit in source:
        source.remove(edit)
        target.append(edit)


def _own(edit: Edit) -> ArrayEdit:
    if not isinstance(edit, ArrayEdit):
        raise LabelsError(
            f"expected an edit made by these labels, got a {type(edit).__name__}; "
            "give what their write returned"
        )
    return edit


def _shape(value: object) -> tuple[int, int]:
    try:
        height, width = (index(number) for number in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        height = width = 0
    if height * width > MAX_DENSE_PIXELS:
        raise LabelsError(
            f"expected at most {MAX_DENSE_PIXELS:,} pixels for labels in memory, got "
            f"{height} x {width}; keep them in a folder: create_labels(path, name, like=image)"
        )
    if height < 1 or width < 1:
        raise LabelsError(
            f"expected labels as a NumPy array or a shape (height, width), got {value!r}; "
            "convert other arrays with numpy.asarray(labels)"
        )
    return height, width
