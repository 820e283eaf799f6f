"""Labels in memory of which a copy on disk is made, commit by commit."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box, BoxLike, as_box
from napari_hrsam.masks import ArrayMask
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.edits import NOT_SAID, ArrayEdit, DrawnAs, Edit, History
from napari_hrsam.storage.labels.journal import JournalEdit
from napari_hrsam.storage.labels.objects import ObjectList, measure_array
from napari_hrsam.storage.labels.properties import PropertiesChange
from napari_hrsam.storage.labels.pyramid import PyramidLabels

if TYPE_CHECKING:
    from napari_hrsam.masks import RegionMask


class KeptLabels(ArrayLabels):
    """A label image in an array; every commit is on disk, too, when it returns.

    What others write into the array is not copied. Commits of earlier sessions can be taken back
    and made again where the array holds what the copy does.

    Parameters
    ----------
    array : (H, W) integer array
        Changed in place.
    copy : PyramidLabels
        Of the same shape; closed by whoever opened it.
    takes_up : bool
        Whether the array takes over what the copy holds.

    Raises
    ------
    LabelsError
        If the shapes differ, or the copy cannot be read.
    """

    def __init__(self, array: NDArray[Any], copy: PyramidLabels, *, takes_up: bool) -> None:
        super().__init__(array)
        if copy.shape_yx != self.shape_yx:
            raise LabelsError(
                f"expected a copy of shape {self.shape_yx}, got {copy.shape_yx} in {copy.folder}; "
                "move that folder away"
            )
        stored = copy.read(Box.of_shape(self.shape_yx))
        if takes_up:
            array[...] = stored
        self._offers_earlier = bool(np.array_equal(array, stored))
        self._properties = copy.properties
        self._copy = copy
        self._copied: dict[Edit, Edit] = {}

    def history(self) -> History:
        """Return what can be taken back and made again, of earlier sessions too."""
        own = super().history()
        if not self._offers_earlier:
            return own
        copied, mine = self._copy.history(), {_number(edit) for edit in self._copied.values()}
        done, undone = (
            tuple(edit for edit in edits if _number(edit) not in mine)
            for edits in (copied.done, copied.undone)
        )
        return History(done=done + own.done, undone=own.undone + undone)

    def newest_done(self) -> Edit | None:
        """Return the commit that can be taken back, None if there is none."""
        own = super().newest_done()
        # All of its own are taken back in the copy, too: what is done there is an earlier one.
        return self._copy.newest_done() if own is None and self._offers_earlier else own

    def next_undone(self) -> Edit | None:
        """Return the commit that can be made again, None if there is none."""
        own = super().next_undone()
        if not self._offers_earlier or super().newest_done() is not None:
            return own
        earlier = self._copy.next_undone()
        mine = {_number(edit) for edit in self._copied.values()}
        return own if earlier is None or _number(earlier) in mine else earlier

    def next_label(self) -> int:
        """Return an id that neither the array nor the copy has used."""
        return max(super().next_label(), self._copy.next_label())

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
        """Write one object, as `ArrayLabels.write`, and copy it.

        Raises
        ------
        LabelsError
            Also if it cannot be copied; the array is as before then.
        """
        edit = super().write(box, mask, label, overwrite=overwrite, plane=plane, drawn=drawn)
        written = (edit.after == label) & (edit.before != label)
        with self._or_not_at_all(edit):
            self._copied[edit] = self._copy.write(
                edit.box, written, label, overwrite=True, drawn=drawn
            )
        return edit

    def accept(
        self,
        box: BoxLike,
        painted: Callable[[Box], NDArray[Any]],
        scores: Mapping[int, float],
        *,
        plane: tuple[int, ...] = (),
        drawn: DrawnAs = NOT_SAID,
    ) -> ArrayEdit:
        """Draw many new objects, as `ArrayLabels.accept`, and copy them.

        Raises
        ------
        LabelsError
            Also if they cannot be copied; the array is as before then.
        """
        edit = super().accept(box, painted, scores, plane=plane, drawn=drawn)
        new = np.where(edit.before != edit.after, edit.after, 0)

        def written(part: Box) -> NDArray[Any]:
            return new[part.shifted(-edit.box.y0, -edit.box.x0).slices]

        with self._or_not_at_all(edit):
            self._copied[edit] = self._copy.accept(edit.box, written, scores, drawn=drawn)
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
        """Replace or delete an object, as `ArrayLabels.replace`, and copy it.

        The copy takes over the whole object, also what others wrote of it into the array.

        Raises
        ------
        LabelsError
            Also if it cannot be copied; the array is as before then.
        """
        edit = super().replace(label, box, mask, overwrite=overwrite, plane=plane, drawn=drawn)
        if edit is None:
            return None
        whole = as_box(box).union(edit.box)
        now = None if mask is None else ArrayMask(whole, self.array[whole.slices] == label)
        with self._or_not_at_all(edit):
            copied = self._copy.replace(label, whole, now, overwrite=True, drawn=drawn)
        # The copy lacks what others wrote into the array: there may be nothing to do.
        if copied is not None:
            self._copied[edit] = copied
        return edit

    def change_properties(self, change: PropertiesChange) -> ArrayEdit | None:
        """Change classes and what is told of objects, in both; see `ArrayLabels`.

        Raises
        ------
        LabelsError
            If the copy cannot be written to; all is as before then.
        """
        edit = super().change_properties(change)
        if edit is None:
            return None
        with self._or_not_at_all(edit):
            copied = self._copy.change_properties(change)
        if copied is not None:
            self._copied[edit] = copied
        return edit

    def object_list(self) -> ObjectList:
        """Return the objects of the array, with what the copy knows of those that it has."""
        found = self._copy.object_list()
        found.measured((0,) * len(self._copy.plane_shape), measure_array(self.array))
        return found

    @contextmanager
    def _or_not_at_all(self, edit: ArrayEdit) -> Iterator[None]:
        """Take an edit back if it cannot be copied, as if it had never been."""
        try:
            yield
        except LabelsError:
            super().revert(edit)
            self._undone.remove(edit)
            raise

    def newest_of(self, label: int, plane: tuple[int, ...] = ()) -> Edit | None:
        """Return the newest commit of one object, also of earlier sessions."""
        return self._copy.newest_of(label) or super().newest_of(label, plane)

    def revert(self, edit: Edit) -> None:
        """Put back what an edit changed, in both."""
        if not isinstance(edit, ArrayEdit):
            self._follow(edit, self._copy.revert)
            return
        if edit in self._copied:
            self._copy.revert(self._copied[edit])
        super().revert(edit)

    def apply(self, edit: Edit) -> None:
        """Make a reverted edit again, in both."""
        if not isinstance(edit, ArrayEdit):
            self._follow(edit, self._copy.apply)
            return
        if edit in self._copied:
            self._copy.apply(self._copied[edit])
        super().apply(edit)

    def _follow(self, edit: Edit, change: Callable[[Edit], None]) -> None:
        """Change the copy, and the array where that held the same."""
        before = self._copy.read(edit.box) if edit.box.area else None
        change(edit)
        if before is not None:
            after, part = self._copy.read(edit.box), self.array[edit.box.slices]
            changed = (before != after) & (part == before)
            part[changed] = after[changed]
        self._properties = self._copy.properties


def _number(edit: Edit) -> int:
    """Return the place of an edit of the copy in its journal."""
    assert isinstance(edit, JournalEdit)
    return edit.number
