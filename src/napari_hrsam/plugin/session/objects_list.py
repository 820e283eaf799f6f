"""The committed objects of a session and their classes, for a list of them; knows no Qt."""

from __future__ import annotations

import logging
import threading
from collections.abc import Collection
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from psygnal import Signal

from napari_hrsam.errors import LabelsError
from napari_hrsam.plugin.session.progress import Cancelled, Progress
from napari_hrsam.storage.labels.objects import Key, ObjectList, ObjectRow
from napari_hrsam.storage.labels.properties import ObjectClass, Properties

if TYPE_CHECKING:
    from napari_hrsam.plugin.session.commands import Answer
    from napari_hrsam.plugin.session.worker import Worker
    from napari_hrsam.storage.labels.objects import Plane
    from napari_hrsam.storage.labels.places import LabelFile

logger = logging.getLogger(__name__)


class CommittedObjects:
    """The objects of the running session, in step with commits, undo and redo.

    Where the journal does not know them all, as with another program's labels, the pixels are read
    once on a thread of their own. All methods are called on the viewer's thread.

    Parameters
    ----------
    worker
        Brings what that thread finds to the viewer's thread.

    Attributes
    ----------
    selected
        What is selected in the list: (plane, label) each; set by the list.
    reset
        Emitted when any object may be another one.
    changed
        Emitted with a set of (plane, label): objects that came, went or changed.
    classes_changed
        Emitted when there are other classes, or they have other colours or digits.
    progressed
        Emitted while pixels are read: done and total; done = total ends it.
    picked
        Emitted with the (plane, label) of an object that was clicked on.
    """

    reset: ClassVar[Signal] = Signal()
    changed: ClassVar[Signal] = Signal(object)
    classes_changed: ClassVar[Signal] = Signal()
    progressed: ClassVar[Signal] = Signal(int, int)
    picked: ClassVar[Signal] = Signal(object)

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._list = ObjectList()
        self._measuring: Progress | None = None
        self._thread: threading.Thread | None = None
        self.selected: tuple[Key, ...] = ()

    @property
    def properties(self) -> Properties:
        """Classes and colours."""
        return self._list.properties

    @property
    def classes(self) -> tuple[ObjectClass, ...]:
        """The classes."""
        return self.properties.classes

    @property
    def is_measuring(self) -> bool:
        """Whether pixels are being read."""
        return self._measuring is not None

    def __len__(self) -> int:
        """Return the number of objects."""
        return len(self._list)

    def rows(self) -> list[ObjectRow]:
        """Return all objects, by plane and id."""
        return self._list.rows()

    def row(self, key: Key) -> ObjectRow | None:
        """Return one object, None if there is none."""
        return self._list.row(key)

    def key_of(self, label: int, plane: Plane) -> Key | None:
        """Return the key of an object on a plane of the image; axes of length 1 may be left out."""
        for place in (plane, (), (0,) * len(plane)):
            is_same = place == plane or not any(plane)
            if is_same and self._list.row((place, label)) is not None:
                return place, label
        return None

    def class_with(self, key: int) -> ObjectClass | None:
        """Return the class that a digit assigns, None if there is none."""
        return next((one for one in self.classes if one.key == key), None)

    # ------------------------------------------------------------------ keeping up

    def begin(self, found: ObjectList, file: LabelFile | None, planes: tuple[int, ...]) -> None:
        """Take over the objects of a session that was opened.

        Parameters
        ----------
        found
            What is known.
        file
            The label image on disk whose pixels are read if need be.
        planes
            Sizes of its axes before y and x.
        """
        self.cancel()
        self._list = found
        self.selected = ()
        if file is not None and found.needs_measuring:
            found.begin_measuring()
            self._measuring = progress = Progress(partial(self._post_progress, found))
            self._thread = threading.Thread(
                target=self._measure,
                args=(found, file, planes, progress),
                name="hrsam-objects",
                daemon=True,
            )
            self._thread.start()
        self.reset.emit()
        self.classes_changed.emit()

    def end(self) -> None:
        """Forget all objects: the session ended."""
        self.begin(ObjectList(), None, ())

    def cancel(self) -> None:
        """Read no more pixels; what is known stays."""
        if self._measuring is not None:
            self._measuring.cancel()
            self._measuring = None
            self.progressed.emit(1, 1)

    def join(self, timeout_s: float = 60.0) -> None:
        """Wait until no pixels are read any more; what was found comes by the worker."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def answered(self, answer: Answer) -> None:
        """Take note of what a step changed in the label image."""
        edits = (*answer.earlier_edits, answer.edit)
        before = self.classes
        keys: set[Key] = set()
        for edit in edits:
            if edit is not None:
                keys |= self._list.edited(edit, is_undone=answer.is_undone, newest=answer.newest)
        if self.classes != before:
            self.classes_changed.emit()
        if keys:
            self.changed.emit(keys)

    # ------------------------------------------------------------------ pixels

    def _measure(
        self, found: ObjectList, file: LabelFile, planes: tuple[int, ...], progress: Progress
    ) -> None:
        """Read all pixels; on a thread of its own."""
        # Here, as they take long to import.
        from napari_hrsam.storage.label_image import LabelImage
        from napari_hrsam.storage.labels.listing import measure_plane

        try:
            labels = LabelImage(file.path, file.name)
            places = [*np.ndindex(planes)]
            for number, plane in enumerate(places):
                regions = progress if len(places) == 1 else partial(_step, progress)
                sizes = measure_plane(labels, plane, regions)
                progress(number + 1, len(places))
                self._worker.call(partial(self._take, found, plane, sizes))
        except Cancelled:
            logger.debug("the objects of %s were not all measured", file.folder)
        except LabelsError as error:
            logger.warning("the objects of %s were not all measured: %s", file.folder, error)
        self._worker.call(partial(self._finish, progress))

    def _post_progress(self, found: ObjectList, done: int, total: int) -> None:
        self._worker.call(partial(self._tell_progress, found, done, total))

    def _tell_progress(self, found: ObjectList, done: int, total: int) -> None:
        if found is self._list and self._measuring is not None:
            self.progressed.emit(min(done, total - 1), total)

    def _take(self, found: ObjectList, plane: Plane, sizes: dict[int, tuple[int, Any]]) -> None:
        if found is self._list:
            found.measured(plane, sizes)
            self.reset.emit()

    def _finish(self, progress: Progress) -> None:
        if progress is self._measuring:
            self._measuring = None
            self.progressed.emit(1, 1)


def _step(progress: Progress, _done: int, _total: int) -> None:
    """Take note of a region of one of several planes: only whether it goes on counts."""
    if progress.is_cancelled:
        raise Cancelled


def labels_of(keys: Collection[Key]) -> tuple[int, ...]:
    """Return the ids of some objects, each once."""
    return tuple(dict.fromkeys(label for _, label in keys))
