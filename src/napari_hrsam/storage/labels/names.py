"""Names of label images: each is the path of its group inside ``labels``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from os import PathLike
from pathlib import Path

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.files.metadata_files import ome_attributes
from napari_hrsam.storage.files.urls import shown_url

MAX_DEPTH = 4
"""Folders inside each other in a name."""

MAX_NAME_BYTES = 200
"""Length of a new name; file systems take 255, and names of unfinished files are longer."""

_METADATA = ("zarr.json", ".zgroup", ".zattrs")
# Windows takes none of these in the name of a folder, nor a space or a full stop at its end.
_NEW_NAME = re.compile(r"""[^\s./\\:*?"<>|\x00-\x1f\x7f-\x9f][^/\\:*?"<>|\x00-\x1f\x7f-\x9f]*""")


def require_new_name(name: str) -> None:
    """Refuse a name that a new label image cannot have.

    Raises
    ------
    LabelsError
        If so.
    """
    is_fine = _NEW_NAME.fullmatch(name) and name[-1] not in " ." and name.isprintable()
    if not is_fine or len(name.encode(errors="replace")) > MAX_NAME_BYTES:
        raise LabelsError(
            "expected a name of letters of any script, digits, spaces and signs such as _ . - +, "
            f'in at most {MAX_NAME_BYTES} bytes, got {name[:80]!r}; choose one such as "cells"'
        )


def local_folder(path: str | PathLike[str]) -> Path:
    """Return the whole path of an image or of labels; raises `LabelsError` if it is not here."""
    text = str(path)
    if "://" in text and not text.startswith("file://"):
        raise LabelsError(
            f"expected a folder on this computer for labels, got {shown_url(text)}; keep the "
            "labels of a remote image in a folder of their own: create_labels(folder, name, "
            "like=image); or copy them here first"
        )
    try:
        # The program may change its folder while the labels are open.
        return Path(text.removeprefix("file://")).absolute()
    except OSError as error:
        raise LabelsError(
            f"expected the folder that {text} is relative to, got: {error}; give a whole path"
        ) from error


def label_folder(path: Path, name: str) -> Path:
    """Find the folder of a label image.

    Parameters
    ----------
    path : Path
        A local OME-Zarr image, or a folder of labels alone.
    name : str
        Such as ``"cells"``, or ``"manual/cells"`` in a folder of its own.

    Raises
    ------
    LabelsError
        If there is none of this name, which then tells those that are there; or if a link leads to
        it out of the folder.
    """
    folder = path / "labels" / name
    if not _is_path(name) or not _is_folder(folder):
        names = label_names(path)
        there = f"only {', '.join(names)}" if names else "none"
        raise LabelsError(
            f"expected a label image {name[:200]!r} at {path / 'labels'}, got {there}; make it "
            "with create_labels, or check the path and the name"
        )
    require_no_way_out(path, folder)
    return folder


def require_no_way_out(path: Path, folder: Path) -> None:
    """Refuse a folder below a path that a link leads out of it.

    Raises
    ------
    LabelsError
        If so: what is written there would change files elsewhere.
    """
    if not folder.resolve().is_relative_to(path.resolve()):
        raise LabelsError(
            f"expected labels inside {path}, but {folder} is a link that leads out of it; give the "
            "path of the image that it leads to, or replace the link by a copy"
        )


def label_names(path: Path) -> tuple[str, ...]:
    """Tell the names of the label images that lie beside an image, or in a folder, sorted."""
    return tuple(sorted(_names_in(path / "labels", "", MAX_DEPTH)))


def _names_in(folder: Path, prefix: str, depth: int) -> Iterator[str]:
    """Go through the groups in a folder of groups: label images, or folders of these."""
    if not folder.is_dir():
        return
    for place in folder.iterdir():
        if place.name.startswith(".") or not any((place / name).is_file() for name in _METADATA):
            continue
        if "multiscales" in ome_attributes(place) or depth == 1:
            yield prefix + place.name
            continue
        inside = list(_names_in(place, f"{prefix}{place.name}/", depth - 1))
        # What is damaged is told too: opening it says how.
        yield from inside or [prefix + place.name]


def _is_path(name: str) -> bool:
    """Whether a name leads to a folder inside ``labels`` that is not hidden."""
    parts = name.split("/")
    return len(parts) <= MAX_DEPTH and all(
        part.isprintable() and "\\" not in part and not part.startswith(".") and part
        for part in parts
    )


def _is_folder(folder: Path) -> bool:
    try:
        return folder.is_dir()
    # A name may be longer than the system takes, or hold what is no text.
    except (OSError, ValueError):
        return False
