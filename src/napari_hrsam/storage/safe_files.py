"""Many small files replaced so that each is the old one or the new one, whatever happens.

A file is written under another name, forced onto the disk and renamed: a killed program or a power
cut leaves no file cut short. Forcing many files together costs less than one by one.
"""

from __future__ import annotations

import os
from io import FileIO

# Paths are text here: a large object has thousands.
# ruff: noqa: PTH103, PTH105, PTH108, PTH110, PTH112, PTH120, PTH123

MAX_WAITING = 64
"""Files that are written under another name before they are renamed together."""

_IS_POSIX = os.name == "posix"


class FileBatch:
    """Files to be replaced or removed; `finish` makes sure that all of it is on the disk.

    What waits is seen by `read`. All methods raise OSError when the disk fails; after that, and
    after any interruption, call `abandon`.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, FileIO | None] = {}
        self._folders: set[str] = set()

    def read(self, path: str) -> bytes | None:
        """Return the contents of a file, None if there is none."""
        if path in self._waiting:
            if self._waiting[path] is None:
                return None
            path = _partial(path)
        try:
            with open(path, "rb") as file:
                return file.read()
        except FileNotFoundError:
            return None

    def write(self, path: str, data: bytes | None) -> None:
        """Replace a file; None removes it. Its folder is made if need be."""
        self._forget(path)
        if data is None:
            self._waiting[path] = None
        else:
            file = self._waiting[path] = self._opened(path)
            left = memoryview(data)
            while left:
                left = left[file.write(left) :]
        if len(self._waiting) >= MAX_WAITING:
            self._flush()

    def finish(self) -> None:
        """Bring everything onto the disk."""
        self._flush()
        while self._folders:
            _force_folder(next(iter(self._folders)))
            self._folders.pop()

    def abandon(self) -> None:
        """Leave the files that wait as they were."""
        for path in list(self._waiting):
            self._forget(path)
        self._folders.clear()

    def _forget(self, path: str) -> None:
        file = self._waiting.pop(path, None)
        if file is not None:
            file.close()
            if os.path.exists(_partial(path)):
                os.unlink(_partial(path))

    def _opened(self, path: str) -> FileIO:
        try:
            return FileIO(_partial(path), "wb")
        except FileNotFoundError:
            folder = os.path.dirname(path)
            made = folder
            while not os.path.isdir(made):
                made = os.path.dirname(made)
                self._folders.add(made)
            os.makedirs(folder, exist_ok=True)
            return FileIO(_partial(path), "wb")

    def _flush(self) -> None:
        files = [file for file in self._waiting.values() if file]
        if hasattr(os, "posix_fadvise"):
            # Starts writing all of them at once: four times faster than waiting for each.
            for file in files:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for file in files:
            os.fsync(file.fileno())
            file.close()
        for path, new in self._waiting.items():
            try:
                if new is None:
                    os.unlink(path)
                else:
                    os.replace(_partial(path), path)
            except FileNotFoundError:
                # There was nothing to remove.
                if new is not None:
                    raise
            else:
                self._folders.add(os.path.dirname(path))
        self._waiting.clear()


def _partial(path: str) -> str:
    # One writer at a time: the name need not be random, and what a crash left is used again.
    folder, name = os.path.split(path)
    return f"{folder}/.{name}.partial"


def _force_folder(folder: str) -> None:
    """Bring the names in a folder onto the disk; other systems than POSIX do that themselves."""
    if _IS_POSIX:
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)
