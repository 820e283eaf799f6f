"""One writer at a time for a label image.

The operating system holds the lock and lets go of it when the process ends in any way, so a crash
leaves no stale lock. A note beside it says who holds it, for the message to a second writer.
"""

from __future__ import annotations

import json
import os
import platform
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.files.metadata_files import read_json
from napari_hrsam.storage.files.safe_files import changed_ns, write_anew


class WriterLock:
    """The right to write, from construction until `release`.

    Parameters
    ----------
    folder : Path
        Existing folder for the lock and the note.

    Attributes
    ----------
    since_ns : int
        When the lock was taken, in nanoseconds, by the clock that stamps the files of the folder.

    Raises
    ------
    LabelsError
        If another process, or another object in this one, holds the lock, or the folder cannot be
        written to.
    """

    def __init__(self, folder: Path) -> None:
        require_own_files(folder)
        self._note = folder / "writer.json"
        self._lock = FileLock(folder / "writer.lock", timeout=0, thread_local=False)
        try:
            self._lock.acquire()
        except Timeout as error:
            raise LabelsError(
                f"expected to be the only writer of the labels at {folder.parent}, but they are "
                f"open in {self._holder()}; close them there first"
            ) from error
        # NotImplementedError: filelock's answer where the file system knows no locks.
        except (OSError, NotImplementedError) as error:
            raise LabelsError(
                f"expected a folder in which a file can be locked, got an error at {folder}: "
                f"{error}; check its rights, or keep the labels on a local disk"
            ) from error
        try:
            self._write_note()
            self.since_ns = changed_ns(self._note.stat())
        except OSError as error:
            self._lock.release()
            raise LabelsError(
                f"expected a folder that can be written to, got an error at {folder}: {error}; "
                "check its rights and the space on the disk"
            ) from error

    def release(self) -> None:
        """Let others write. Does nothing the second time."""
        self._lock.release()

    def _write_note(self) -> None:
        note = {"pid": os.getpid(), "host": platform.node(), "since": time.time()}
        write_anew(self._note, json.dumps(note).encode())

    def _holder(self) -> str:
        try:
            note = read_json(self._note)
            since = time.strftime("%Y-%m-%d %H:%M", time.localtime(note["since"]))
            return f"process {note['pid']} on {note['host']} since {since}"
        except (OSError, ValueError, KeyError, TypeError, OverflowError):
            # The other one has the lock and has not written its note yet.
            return "another process"


@contextmanager
def one_at_a_time(path: Path) -> Iterator[None]:
    """Wait until no other process is here with the same file, which is made if there is none.

    Raises
    ------
    LabelsError
        If the file cannot be made or locked.
    """
    lock = FileLock(path)
    try:
        lock.acquire()
    # NotImplementedError: filelock's answer where the file system knows no locks.
    except (OSError, NotImplementedError) as error:
        raise LabelsError(
            f"expected a file that can be locked, got an error at {path}: {error}; check the "
            "rights of its folder, or choose one on another disk"
        ) from error
    try:
        yield
    finally:
        lock.release()


def require_own_files(folder: Path) -> None:
    """Refuse a folder, or files in it, that have a second place elsewhere.

    What is written to a link, or to a file of two names, changes a file outside the folder.

    Raises
    ------
    LabelsError
        If so, or if something in it is no file.
    """
    for path in (folder, *(folder.iterdir() if folder.is_dir() else ())):
        try:
            status = path.lstat()
        except FileNotFoundError:
            continue
        is_own = stat.S_ISDIR(status.st_mode) or (
            stat.S_ISREG(status.st_mode) and status.st_nlink <= 1
        )
        if not is_own:
            raise LabelsError(
                f"expected a folder and files of its own at {folder}, but {path} is a link, or no "
                "file; replace it by a copy, or move it away"
            )
