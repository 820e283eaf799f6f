"""A label image as people use it: read, drawn into, exported, verified, copied."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.export.formats import export_labels
from napari_hrsam.storage.export.source import Exported
from napari_hrsam.storage.importing.formats import import_objects
from napari_hrsam.storage.importing.objects import Imported
from napari_hrsam.storage.labels.check import LabelsReport, verify_labels
from napari_hrsam.storage.labels.compact import Compacted, compact_labels
from napari_hrsam.storage.labels.edits import Edit
from napari_hrsam.storage.labels.journal_facts import read_newest
from napari_hrsam.storage.labels.listing import list_objects, measure_into
from napari_hrsam.storage.labels.making import make_labels
from napari_hrsam.storage.labels.names import local_folder
from napari_hrsam.storage.labels.objects import ObjectList, ObjectRow
from napari_hrsam.storage.labels.properties import ObjectClass, Properties, read_properties
from napari_hrsam.storage.labels.pyramid import PyramidLabels
from napari_hrsam.storage.labels.regions import Progress
from napari_hrsam.storage.labels.stored import StoredLabels


class LabelImage(StoredLabels):
    """A label image of any size on disk, never whole in memory, opened for reading.

    Nothing is written or locked; while somebody draws into it, it shows what is there when it is
    read. See `open_labels`.

    Parameters
    ----------
    path, name
        As in `open_labels`.

    Raises
    ------
    LabelsError
        If there is none of this name, or it is none of integers.
    """

    def export(self, out: str | PathLike[str], **options: Any) -> Exported:
        """Write the objects to a file; see `export_labels` for what can be told.

        Parameters
        ----------
        out : path
            The file to write: .geojson, .json (COCO), .tif or .csv, or as ``file_format`` says.
        **options
            Such as ``box``, ``labels``, ``plane``, ``overwrite`` and ``progress``.

        Returns
        -------
        Exported

        Raises
        ------
        LabelsError
            If the suffix tells no format, or something is told that the format does not know; or
            as `export_csv`.
        """
        return export_labels(self.path, self.name, out, **options)

    @property
    def properties(self) -> Properties:
        """The classes, and what is told of each object, as it is read now."""
        return read_properties(self.folder)

    @property
    def classes(self) -> tuple[ObjectClass, ...]:
        """The classes: their names, colours and digits."""
        return self.properties.classes

    def object_list(self) -> ObjectList:
        """Return the objects that journal and metadata tell; no pixel is read."""
        return list_objects(self)

    def newest_of(self, label: int, plane: tuple[int, ...] = ()) -> Edit | None:
        """Return the newest commit of one object that the journal knows, None if there is none.

        Raises
        ------
        LabelsError
            If there is no such plane, or the journal is damaged.
        """
        return read_newest(self.folder, label, self.plane(plane))

    def objects(
        self,
        plane: tuple[int, ...] | None = None,
        *,
        measure: bool | None = None,
        progress: Progress | None = None,
    ) -> list[ObjectRow]:
        """List the objects: class, area, box, and what the journal knows of each.

        Parameters
        ----------
        plane : tuple of int, optional
            Index over the axes before y and x; by default all planes.
        measure : bool, optional
            Whether all pixels are read, one region at a time in memory. By default only where the
            journal does not know all objects and their areas, as with another program's labels.
        progress : callable (done, total), optional
            Counts what is read; what it raises ends the work.

        Returns
        -------
        list of ObjectRow
            By plane and id.

        Raises
        ------
        LabelsError
            If there is no such plane, or a chunk cannot be read.
        """
        wanted = None if plane is None else self.plane(plane)
        found = self.object_list()
        if found.needs_measuring if measure is None else measure:
            measure_into(found, self, wanted, progress)
        return found.rows(wanted)

    def verify(self, *, repair: bool = False, progress: Progress | None = None) -> LabelsReport:
        """Check metadata, chunks, levels and journal; see `verify_labels`."""
        return verify_labels(self.path, self.name, repair=repair, progress=progress)

    def compact(self, out: str | PathLike[str], *, progress: Progress | None = None) -> Compacted:
        """Write a copy in few files, to be shared; see `compact_labels`."""
        return compact_labels(self.path, self.name, out, progress=progress)


class LabelWriter(PyramidLabels, LabelImage):
    """A label image of any size on disk that a session commits to; see `open_labels`.

    Every level shows every commit: coarser levels hold the majority of the labels, background not
    counted. A commit that has returned is kept whatever happens to the process. One object at a
    time may have a label image open for drawing, in the process that opened it; of several threads
    one at a time is let in. The folder must stay where it is until it is closed.

    Parameters
    ----------
    path, name
        As in `open_labels`.

    Raises
    ------
    LabelsError
        As `open_labels`. Of every method that writes also if the folder was moved, deleted or
        replaced meanwhile, or the process was forked.
    """

    def import_objects(self, file: str | PathLike[str], **options: Any) -> Imported:
        """Draw the objects of a GeoJSON or COCO file, each as one commit.

        Parameters
        ----------
        file : path
            QuPath's, ours, or another program's; what is inside tells which format it is.
        **options
            Such as ``keep_ids``, ``offset_yx``, ``plane``, ``overwrite``, ``allow_outside`` and
            ``progress``; see `import_geojson` and `import_coco`.

        Returns
        -------
        Imported

        Raises
        ------
        LabelsError
            If the file is neither, or as in `import_geojson`; then nothing was drawn.
        """
        return import_objects(file, self, **options)

    def verify(self, *, repair: bool = False, progress: Progress | None = None) -> LabelsReport:
        """Check metadata, chunks, levels and journal; see `verify_labels`.

        Raises
        ------
        LabelsError
            Also with ``repair``: what is repaired must not be open for drawing.
        """
        if repair:
            raise LabelsError(
                f"expected closed labels to repair, got {self!r}, open for drawing; close them, "
                "then repair them with verify_labels(path, name, repair=True)"
            )
        return super().verify(progress=progress)


def create_labels(path: str | PathLike[str], name: str, like: object = None) -> LabelWriter:
    """Make an empty label image in a folder, and open it for drawing.

    Parameters
    ----------
    path : path
        A local OME-Zarr image (the labels get its levels and are listed in it), or a folder for
        labels alone, which is made if it does not exist.
    name : str
        Name of the label image; it comes to lie at ``labels/<name>``.
    like : image, shape or None
        An opened image, or a shape (height, width), (z, height, width) or (t, z, height, width).
        Not needed where ``path`` is an OME-Zarr image. Labels in a folder of their own take over
        the axes, pixel size and units of an opened OME-Zarr image.

    Returns
    -------
    LabelWriter
        uint32; close it when it is no longer needed, or use it in a ``with`` statement.

    Raises
    ------
    LabelsError
        If the name is taken or unusable, the shapes differ, or the folder holds something else or
        cannot be written to.

    Examples
    --------
    >>> with create_labels("slide.ome.zarr", "cells") as labels:  # doctest: +SKIP
    ...     session = Session("hrsam-tiny", image, labels)
    """
    make_labels(local_folder(path), name, like)
    return LabelWriter(path, name)


@overload
def open_labels(path: str | PathLike[str], name: str, mode: Literal["r+"] = ...) -> LabelWriter: ...
@overload
def open_labels(path: str | PathLike[str], name: str, mode: Literal["r"]) -> LabelImage: ...
def open_labels(
    path: str | PathLike[str], name: str, mode: Literal["r", "r+"] = "r+"
) -> LabelImage:
    """Open a label image of a folder: ours, or another program's.

    For drawing, what a crash left half done is put back. What other programs wrote since the labels
    were opened last is searched for the highest id; the first time that is all of it, which takes
    as long as reading them once.

    Parameters
    ----------
    path, name
        As in `create_labels`.
    mode : {"r+", "r"}
        For drawing, or for reading only: then nothing is written or locked.

    Returns
    -------
    LabelWriter or LabelImage

    Raises
    ------
    LabelsError
        If there is no such label image, or it is damaged; for drawing also if another process has
        it open.

    Examples
    --------
    >>> labels = open_labels("slide.ome.zarr", "cells", mode="r")  # doctest: +SKIP
    >>> labels.export("cells.geojson")  # doctest: +SKIP
    """
    if mode not in ("r", "r+"):
        raise LabelsError(f"expected the mode 'r' (reading) or 'r+' (drawing), got {mode!r}")
    return LabelImage(path, name) if mode == "r" else LabelWriter(path, name)


def open_or_create_labels(path: Path, name: str, like: object) -> LabelWriter:
    """Go on with a label image, or make it.

    Parameters
    ----------
    path, name
        As in `create_labels`; folders around the path are made too.
    like : image or shape
        For a new one.

    Raises
    ------
    LabelsError
        As `create_labels` and `open_labels`.
    """
    if (path / "labels" / name).is_dir():
        return LabelWriter(path, name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LabelsError(
            f"expected a folder that can be written to, got an error at {path.parent}: {error}; "
            "choose another folder for the objects"
        ) from error
    return create_labels(path, name, like=like)
