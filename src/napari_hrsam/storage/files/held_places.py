"""Folders and files that must stay where they are while they are written to."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from napari_hrsam.errors import LabelsError

_IS_POSIX = os.name == "posix"


class HeldPlaces:
    """What lies at some paths now, to be told from anything that lies there later.

    Folders are held open, so that the system gives their identity to nothing else meanwhile; files
    must be held open by whoever writes to them.

    Parameters
    ----------
    folder : Path
        Where the labels lie, for messages.
    paths : iterable of Path
        Absolute paths of what must stay.

    Raises
    ------
    LabelsError
        If something is not there.
    """

    def __init__(self, folder: Path, paths: Iterable[Path]) -> None:
        self._folder = folder
        self._found: list[tuple[Path, tuple[int, int]]] = []
        self._numbers: list[int] = []
        try:
            for path in paths:
                self._found.append((path, self._held(path)))
        except OSError as error:
            self.close()
            raise self._moved(str(error)) from error

    def require(self) -> None:
        """Raise `LabelsError` unless everything is where it was."""
        for path, identity in self._found:
            try:
                now = _identity(path.stat())
            except OSError as error:
                raise self._moved(str(error)) from error
            if now != identity:
                raise self._moved(f"something else at {path}")

    def close(self) -> None:
        """Let go of the folders."""
        while self._numbers:
            os.close(self._numbers.pop())

    def _held(self, path: Path) -> tuple[int, int]:
        # Other systems do not let go of an open folder's name, and do not open folders.
        if not _IS_POSIX or not path.is_dir():
            return _identity(path.stat())
        self._numbers.append(os.open(path, os.O_RDONLY | os.O_DIRECTORY))
        return _identity(os.fstat(self._numbers[-1]))

    def _moved(self, got: str) -> LabelsError:
        return LabelsError(
            f"expected the labels to stay at {self._folder} while they are open, got: {got}; they "
            "were moved, deleted or replaced, and nothing is written. Close them, and open them "
            "where they are now"
        )


def _identity(found: os.stat_result) -> tuple[int, int]:
    return found.st_dev, found.st_ino
