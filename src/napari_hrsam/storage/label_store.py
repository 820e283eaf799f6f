"""Label images: where committed objects are written."""

from __future__ import annotations

import time as clock
from dataclasses import dataclass, field
from operator import index
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError, ShapeError
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Edit:
    """One committed change of a label image.

    Attributes
    ----------
    label : int
        The object's id.
    box : Box
        What changed, in level-0 pixels.
    before, after : NDArray
        The labels in that box before and after, shape ``box.shape_yx``, dtype of the label image;
        read-only.
    prompts : Prompts
        What the user said to get the object.
    model : str
        Name of the model that drew it, or empty.
    time : float
        When it was committed, in seconds since 1970.
    """

    label: int
    box: Box
    before: NDArray[Any]
    after: NDArray[Any]
    prompts: Prompts = field(default_factory=Prompts)
    model: str = ""
    time: float = 0.0

    @property
    def num_bytes(self) -> int:
        """Memory taken by the two blocks."""
        return self.before.nbytes + self.after.nbytes


class LabelStore(Protocol):
    """A label image that a session commits to."""

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in level-0 pixels."""

    def next_label(self) -> int:
        """Return an id that no object has."""

    def write(
        self,
        box: Box,
        mask: NDArray[np.bool_],
        label: int,
        *,
        overwrite: bool = False,
        prompts: Prompts | None = None,
        model: str = "",
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

    @property
    def shape_yx(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.array.shape[0], self.array.shape[1]

    def next_label(self) -> int:
        """Return the id after the highest one in the array, also when others wrote to it.

        Raises
        ------
        LabelsError
            If the dtype of the array cannot hold it.
        """
        label = max(0, int(self.array.max(initial=0))) + 1
        self._require_fits(label)
        return label

    def write(
        self,
        box: Box,
        mask: NDArray[np.bool_],
        label: int,
        *,
        overwrite: bool = False,
        prompts: Prompts | None = None,
        model: str = "",
    ) -> Edit:
        """Write one object.

        Parameters
        ----------
        box : Box
            Where the mask lies, inside the image.
        mask : (box.height, box.width) bool
            The object.
        label : int
            Its id, 1 or more.
        overwrite : bool
            Whether pixels of other objects are taken over; by default they stay.
        prompts, model
            Kept in the edit.

        Returns
        -------
        Edit
            Its box is the smallest one that holds every changed pixel.

        Raises
        ------
        LabelsError
            If no pixel can be written, the id does not fit the dtype, or the box reaches outside.
        ShapeError
            If the mask does not have the shape of the box.
        """
        self._require_fits(label)
        if mask.shape != box.shape_yx:
            raise ShapeError(
                f"expected a mask of the shape of its box {box.shape_yx}, got {mask.shape}; "
                "cut the mask and the box alike"
            )
        if box.clip(self.shape_yx) != box:
            raise LabelsError(
                f"expected a box inside the labels of shape {self.shape_yx}, got {box}; "
                "clip the box and the mask to the image"
            )
        block = self.array[box.slices]
        changed = mask & (block != label) & (overwrite | (block == 0))
        if not changed.any():
            raise LabelsError(
                f"expected at least one free pixel for object {label}, got a mask of "
                f"{int(mask.sum())} pixels that all belong to objects already; "
                "allow it with overwrite=True, or draw another part of the image"
            )
        return self._write_changed(box, changed, label, prompts or Prompts(), model)

    def _write_changed(
        self, box: Box, changed: NDArray[np.bool_], label: int, prompts: Prompts, model: str
    ) -> Edit:
        tight = Box.around(changed)
        place = tight.shifted(box.y0, box.x0)
        before = self.array[place.slices].copy()
        after = np.where(changed[tight.slices], np.array(label, before.dtype), before)
        after = after.astype(before.dtype, copy=False)
        self.array[place.slices] = after
        before.flags.writeable = after.flags.writeable = False
        return Edit(
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
        self._swap(edit, edit.before)

    def apply(self, edit: Edit) -> None:
        """Make a reverted edit again; its other pixels stay as they are."""
        self._swap(edit, edit.after)

    def _swap(self, edit: Edit, values: NDArray[Any]) -> None:
        changed = edit.before != edit.after
        self.array[edit.box.slices][changed] = values[changed]

    def _require_fits(self, label: int) -> None:
        highest = int(np.iinfo(self.array.dtype).max)
        if not 1 <= label <= highest:
            raise LabelsError(
                f"expected a label between 1 and {highest}, the highest that {self.array.dtype} "
                f"holds, got {label}; convert the labels, e.g. labels.astype(numpy.uint32)"
            )


def _shape(value: object) -> tuple[int, int]:
    try:
        height, width = (index(number) for number in value)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        height = width = 0
    if height < 1 or width < 1:
        raise LabelsError(
            f"expected labels as a NumPy array or a shape (height, width), got {value!r}; "
            "convert other arrays with numpy.asarray(labels)"
        )
    return height, width
