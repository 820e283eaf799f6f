"""Label images: where committed objects are written."""

from __future__ import annotations

import time as clock
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, BoxLike, as_box
from napari_hrsam.masks import BLOCK_PX, ArrayMask, EmptyMask, RegionMask
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.labels.objects import ObjectList, ObjectRow, measure_array
from napari_hrsam.storage.labels.properties import (
    Color,
    ObjectClass,
    ObjectProperties,
    Properties,
    PropertiesChange,
)

MAX_UNDO_BYTES = 512 * 2**20
"""Memory for what undo of commits in memory needs; beyond it the oldest commits become final."""

MAX_DENSE_PIXELS = 2**30
"""Pixels of the largest new label image that is made in memory: 4 GiB of uint32."""

MAX_AREAS = 10_000
"""Objects whose areas an edit tells; of one that changes more it tells none."""

EditKind = Literal["draw", "replace", "delete", "properties"]
"""What an edit does: draw a new object, replace the pixels of one, or delete it; or change classes
and colours alone."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DrawnAs:
    """What is kept of an object beside its pixels, prompts and model.

    Attributes
    ----------
    object_class : str or None
        Name of its class, which is added if there is none; empty for none; None: as it is.
    level : int or None
        Pyramid level at which it was drawn.
    score : float or None
        The model's own estimate of the mask's IoU.
    first_level : int or None
        Pyramid level of the first look at it, from which the same prompts lead to the same mask.
    """

    object_class: str | None = None
    level: int | None = None
    score: float | None = None
    first_level: int | None = None


NOT_SAID = DrawnAs()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Edit:
    """One committed change of a label image.

    Attributes
    ----------
    label : int
        The object's id.
    box : Box
        The smallest box that holds every changed pixel, in level-0 pixels.
    prompts : Prompts
        What the user said to get the object.
    model : str
        Name of the model that drew it, or empty.
    time : float
        When it was committed, in seconds since 1970.
    plane : tuple of int
        Index over the non-spatial axes of the label image; empty for a 2-D one.
    kind : "draw", "replace", "delete" or "properties"
        A new object, other pixels for one that was there, an object taken away, or classes and
        colours alone; the box is empty then, and the label 0 unless there is one object.
    level, score, first_level
        As in `DrawnAs`.
    areas : mapping of int to int, or None
        How many pixels each object got (or lost, below 0); None if that is not known.
    change : PropertiesChange or None
        What it changes of classes and colours.
    """

    label: int
    box: Box
    prompts: Prompts = field(default_factory=Prompts)
    model: str = ""
    time: float = 0.0
    plane: tuple[int, ...] = ()
    kind: EditKind = "draw"
    level: int | None = None
    score: float | None = None
    first_level: int | None = None
    areas: Mapping[int, int] | None = None
    change: PropertiesChange | None = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing was changed, so that there is nothing to take back."""
        return self.box.area == 0 and not self.change

    @property
    def num_prompts(self) -> int:
        """Clicks, scribbles and boxes that led to it."""
        return len(self.prompts)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ArrayEdit(Edit):
    """An edit of `ArrayLabels`, which holds what it changed.

    Attributes
    ----------
    before, after : NDArray
        The labels in the box before and after, shape ``box.shape_yx``, dtype of the label image;
        read-only.
    """

    before: NDArray[Any]
    after: NDArray[Any]

    @property
    def num_bytes(self) -> int:
        """Memory taken by the two blocks."""
        return self.before.nbytes + self.after.nbytes


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """The commits that a label image remembers.

    Attributes
    ----------
    done : tuple of Edit
        Those that can be taken back, oldest first.
    undone : tuple of Edit
        Those that were taken back and can be made again; the last one is the next to be made.
    """

    done: tuple[Edit, ...] = ()
    undone: tuple[Edit, ...] = ()


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
        prompts: Prompts | None = None,
        model: str = "",
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> Edit:
        """Write one object and return what changed."""

    def replace(
        self,
        label: int,
        box: BoxLike,
        mask: RegionMask | None,
        *,
        overwrite: bool = False,
        prompts: Prompts | None = None,
        model: str = "",
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


class ClassedObjects(ABC):
    """What a label image does with classes; every change is one edit, to be taken back."""

    @property
    @abstractmethod
    def properties(self) -> Properties:
        """The classes, and what is told of each object."""

    @abstractmethod
    def change_properties(self, change: PropertiesChange) -> Edit | None:
        """Change classes and what is told of objects, as one edit; None if that is nothing."""

    @property
    def classes(self) -> tuple[ObjectClass, ...]:
        """The classes: their names, colours and digits."""
        return self.properties.classes

    def properties_of(self, label: int) -> ObjectProperties:
        """Return class and colour of an object."""
        return self.properties.of(label)

    def set_class(self, labels: int | Iterable[int], name: str) -> Edit | None:
        """Give objects a class; "" takes it away.

        Parameters
        ----------
        labels : int or iterable of int
            Their ids; on all planes.
        name : str
            Of the class, which is added if there is none.

        Returns
        -------
        Edit or None
            None if they have it already.

        Raises
        ------
        LabelsError
            If the name is unusable, or the labels cannot be written to.
        """
        return self.change_properties(self.properties.setting_class(_ids(labels), name))

    def set_color(self, labels: int | Iterable[int], color: Color | None) -> Edit | None:
        """Give objects a colour of their own, (red, green, blue) from 0 to 255; None: no longer.

        Raises
        ------
        LabelsError
            If it is no colour, or the labels cannot be written to.
        """
        return self.change_properties(self.properties.setting_color(_ids(labels), color))

    def add_class(
        self, name: str, color: Color | None = None, key: int | None = None
    ) -> Edit | None:
        """Add a class.

        Parameters
        ----------
        name : str
            1 to 200 characters.
        color : (int, int, int), optional
            Red, green and blue from 0 to 255; by default one that no other class has.
        key : int, optional
            The digit that assigns it, 1 to 9, taken from the class that had it; 0 for none. By
            default one that is free.

        Raises
        ------
        LabelsError
            If there is one of this name, something is unusable, or the labels cannot be written to.
        """
        return self.change_properties(self.properties.adding_class(name, color, key))

    def change_class(
        self,
        name: str,
        *,
        new_name: str | None = None,
        color: Color | None = None,
        key: int | None = None,
    ) -> Edit | None:
        """Rename a class, with its objects, or give it another colour or digit.

        Raises
        ------
        LabelsError
            If there is none of this name, the new one is taken, or as `add_class`.
        """
        return self.change_properties(
            self.properties.changing_class(name, new_name=new_name, color=color, key=key)
        )

    def remove_class(self, name: str) -> Edit | None:
        """Remove a class; its objects have none then.

        Raises
        ------
        LabelsError
            If there is none of this name, or the labels cannot be written to.
        """
        return self.change_properties(self.properties.removing_class(name))


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

    def newest_done(self) -> ArrayEdit | None:
        """Return the commit that was made last, None if there is none."""
        return self._done[-1] if self._done else None

    def next_undone(self) -> ArrayEdit | None:
        """Return the commit that was taken back last, None if there is none."""
        return self._undone[-1] if self._undone else None

    def newest_of(self, label: int, plane: tuple[int, ...] = ()) -> Edit | None:
        """Return the newest commit of one object, None if there is none."""
        checked_plane(plane, ())
        of_label = (e for e in reversed(self._done) if e.label == label and e.box.area)
        return next(of_label, None)

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
        prompts: Prompts | None = None,
        model: str = "",
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
        prompts, model, drawn
            Kept in the edit.
        plane
            Empty: an array is one plane.

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
        return self._write_changed(box, changed, label, "draw", prompts, model, drawn)

    def replace(
        self,
        label: int,
        box: BoxLike,
        mask: RegionMask | None,
        *,
        overwrite: bool = False,
        prompts: Prompts | None = None,
        model: str = "",
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
        overwrite, prompts, model, plane, drawn
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
        return self._write_changed(whole, changed, label, kind, prompts, model, drawn)

    def _write_changed(
        self,
        box: Box,
        changed: NDArray[np.bool_],
        label: int,
        kind: EditKind,
        prompts: Prompts | None,
        model: str,
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
            prompts=prompts or Prompts(),
            model=model,
            time=clock.time(),
            kind=kind,
            level=drawn.level,
            score=drawn.score,
            first_level=drawn.first_level,
            areas=_told_areas(area_changes(before, before != after, label)),
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


def require_fits(label: int, dtype: np.dtype[Any]) -> None:
    """Raise `LabelsError` unless labels of this dtype can hold the id."""
    highest = int(np.iinfo(dtype).max)
    if not 1 <= label <= highest:
        raise LabelsError(
            f"expected a label between 1 and {highest}, the highest that {dtype} "
            f"holds, got {label}; convert the labels, e.g. labels.astype(numpy.uint32)"
        )


def region_of(
    box: Box, mask: NDArray[np.bool_] | RegionMask, shape_yx: tuple[int, int]
) -> RegionMask:
    """Return a mask of either kind as one that is read part by part.

    Raises `ShapeError` or `LabelsError` unless it fills a box inside the labels.
    """
    if box.clip(shape_yx) != box:
        raise LabelsError(
            f"expected a box inside the labels of shape {shape_yx}, got {box}; "
            "clip the box and the mask to the image"
        )
    return ArrayMask(box, mask) if isinstance(mask, np.ndarray) else mask


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


def _told_areas(areas: dict[int, int]) -> dict[int, int] | None:
    return areas if len(areas) <= MAX_AREAS else None


def only_label(change: PropertiesChange) -> int:
    """Return the object that a change is about, 0 if there is none or there are several."""
    labels = change.labels
    return labels[0] if len(labels) == 1 else 0


def _ids(labels: int | Iterable[int]) -> tuple[int, ...]:
    ids = (labels,) if isinstance(labels, int | np.integer) else tuple(labels)
    for label in ids:
        if label < 1:
            raise LabelsError(f"expected ids of objects, 1 and more, got {label!r}")
    return tuple(map(int, ids))


class NoSuchLabelError(LabelsError):
    """No pixel of a plane has an id."""


def no_such_label(label: int, values: NDArray[Any]) -> NoSuchLabelError:
    """Return the error for an id that no pixel has, beside an array of those that there are."""
    below = int(values.max(initial=0, where=(values > 0) & (values < label)))
    above = int(values.min(initial=np.iinfo(values.dtype).max, where=values > label))
    near = [str(near) for near in (below, above) if near and (values == near).any()]
    there = f"the nearest there are {' and '.join(near)}" if near else "there is no object at all"
    return NoSuchLabelError(
        f"expected the id of an object of the label image, got {label}; {there}. Point at the "
        "object, or name its plane, if there are several"
    )


def checked_plane(plane: tuple[int, ...], plane_shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the plane, one index per axis; it may be left out where every axis has length 1.

    Raises `LabelsError` if the labels do not have it.
    """
    if plane == () and set(plane_shape) <= {1}:
        return (0,) * len(plane_shape)
    if len(plane) != len(plane_shape) or not all(
        0 <= place < size for place, size in zip(plane, plane_shape, strict=True)
    ):
        raise LabelsError(
            f"expected a plane inside labels with planes of shape {plane_shape}, got {plane}; "
            "give one index per axis before y and x, or make labels that have these planes with "
            "create_labels(path, name, like=image)"
        )
    return plane


def no_free_pixel(label: int, mask: RegionMask, box: Box) -> LabelsError:
    """Return the error for an object of which no pixel may be written."""
    count = 0
    for y0 in range(box.y0, box.y1, BLOCK_PX):
        for x0 in range(box.x0, box.x1, BLOCK_PX):
            part = Box(y0, x0, y0 + BLOCK_PX, x0 + BLOCK_PX).intersection(box)
            known = mask.fills(part)
            count += int(np.count_nonzero(mask.read(part)) if known is None else known * part.area)
    return LabelsError(
        f"expected at least one free pixel for object {label}, got a mask of "
        f"{count} pixels that all belong to objects already; "
        "allow it with overwrite=True, or draw another part of the image"
    )


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
