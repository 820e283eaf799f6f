"""Label images: where committed objects are written."""

from __future__ import annotations

import time as clock
from dataclasses import dataclass, field
from operator import index
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, BoxLike, as_box
from napari_hrsam.masks import BLOCK_PX, ArrayMask, RegionMask
from napari_hrsam.prompts import Prompts

MAX_UNDO_BYTES = 512 * 2**20
"""Memory for what undo of commits in memory needs; beyond it the oldest commits become final."""

MAX_DENSE_PIXELS = 2**30
"""Pixels of the largest new label image that is made in memory: 4 GiB of uint32."""


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
    """

    label: int
    box: Box
    prompts: Prompts = field(default_factory=Prompts)
    model: str = ""
    time: float = 0.0
    plane: tuple[int, ...] = ()


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

    def next_label(self) -> int:
        """Return an id that no object has."""

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
    ) -> Edit:
        """Write one object and return what changed."""

    def revert(self, edit: Edit) -> None:
        """Put back what an edit changed."""

    def apply(self, edit: Edit) -> None:
        """Make a reverted edit again."""


class ArrayLabels:
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
        prompts, model
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
        changed = region.read(box) & (block != label) & (overwrite | (block == 0))
        if not changed.any():
            raise no_free_pixel(label, region, box)
        edit = self._write_changed(box, changed, label, prompts or Prompts(), model)
        self._undone.clear()
        self._done.append(edit)
        while sum(kept.num_bytes for kept in self._done[:-1]) > MAX_UNDO_BYTES:
            del self._done[0]
        return edit

    def _write_changed(
        self, box: Box, changed: NDArray[np.bool_], label: int, prompts: Prompts, model: str
    ) -> ArrayEdit:
        tight = Box.around(changed)
        place = tight.shifted(box.y0, box.x0)
        before = self.array[place.slices].copy()
        after = np.where(changed[tight.slices], np.array(label, before.dtype), before)
        after = after.astype(before.dtype, copy=False)
        self.array[place.slices] = after
        before.flags.writeable = after.flags.writeable = False
        return ArrayEdit(
            label=label,
            box=place,
            before=before,
            after=after,
            prompts=prompts,
            model=model,
            time=clock.time(),
        )

    def revert(self, edit: Edit) -> None:
        """Put back what an edit changed; its other pixels stay as they are."""
        edit = _own(edit)
        self._swap(edit, edit.before)
        _move(edit, self._done, self._undone)

    def apply(self, edit: Edit) -> None:
        """Make a reverted edit again; its other pixels stay as they are."""
        edit = _own(edit)
        self._swap(edit, edit.after)
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
