"""Files of which those used longest ago go when they take more than a given space.

When a file was used last is its modification time, set anew at every use. So there is no index
that a killed process could leave wrong, several processes share a folder, and copying the folder
copies the order of use where the copy keeps times.
"""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

logger = logging.getLogger(__name__)

KEPT = frozenset({"zarr.json"})
"""Small files that describe the others: they go when nothing is left that they describe."""

ANY_NAME = re.compile(r".*")

STALE_S = 3600.0
"""Unfinished files of this age belong to a process that was killed."""

SCAN_SHARE = 20
"""What others write is looked for again after this many times as long as looking takes."""


class CappedFolder:
    """The files of certain names below some folders, up to a number of bytes.

    No other file, and nothing behind a link, is ever counted or removed.

    Parameters
    ----------
    root : Path
        Holds the folders; need not exist.
    pattern : str
        Glob of the folders' names.
    max_bytes : int
        What the files may take; one file is kept whatever its size.
    names : re.Pattern, optional
        Matches the whole path inside the root, parts joined by ``/``, of every file that counts,
        also of unfinished ones.
    """

    def __init__(
        self, root: Path, pattern: str, max_bytes: int, names: re.Pattern[str] = ANY_NAME
    ) -> None:
        self._root = root
        self._pattern = pattern
        self._names = names
        self.max_bytes = max_bytes
        # Path -> (bytes, last use in ns), the one used longest ago first.
        self._files: OrderedDict[str, tuple[int, int]] = OrderedDict()
        self._num_bytes = 0
        self._next_scan = 0.0
        self._lock = threading.Lock()

    @property
    def num_bytes(self) -> int:
        """What the files take now, those of other processes included."""
        with self._lock:
            self._scan()
            return self._num_bytes

    def added(self, path: Path) -> None:
        """Count a file that was just written, and make room for it."""
        with self._lock:
            self._use(str(path))
            if time.monotonic() >= self._next_scan:
                self._scan()
            self._make_room()

    def used(self, path: Path) -> None:
        """Note that a file was read. Does nothing where that cannot be noted."""
        with self._lock:
            self._use(str(path))

    def tidy(self) -> None:
        """Remove what is over the limit and what killed processes left."""
        with self._lock:
            self._scan()
            self._make_room()

    def _use(self, path: str) -> None:
        now = time.time_ns()
        # In a folder that is read-only nothing is removed, so no order is needed.
        with suppress(OSError):
            os.utime(path, ns=(now, now))
            self._forget(path)
            size = Path(path).stat().st_size
            self._files[path] = (size, now)
            self._num_bytes += size

    def _forget(self, path: str) -> None:
        size, _ = self._files.pop(path, (0, 0))
        self._num_bytes -= size

    def _scan(self) -> None:
        """Look at all files, those of other processes included."""
        started = time.monotonic()
        folders = sorted(path for path in self._root.glob(self._pattern) if not path.is_symlink())
        found = [entry for folder in folders for entry in self._files_in(f"{folder.name}/")]
        found.sort(key=lambda entry: entry[2])
        self._files = OrderedDict((path, (size, used)) for path, size, used in found)
        self._num_bytes = sum(size for _, size, _ in found)
        ended = time.monotonic()
        self._next_scan = ended + SCAN_SHARE * (ended - started)

    def _files_in(self, inside: str) -> Iterator[tuple[str, int, int]]:
        """Yield path, bytes and last use of the files below a folder; links are not followed."""
        oldest = time.time_ns() - int(STALE_S * 1e9)
        with suppress(OSError), os.scandir(self._root / inside) as entries:
            for entry in entries:
                name = f"{inside}{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    yield from self._files_in(f"{name}/")
                    continue
                # Another process may have removed it.
                with suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    is_file = entry.is_file(follow_symlinks=False)
                    if not is_file or entry.name in KEPT or not self._names.fullmatch(name):
                        continue
                    if entry.name.endswith(".partial") and status.st_mtime_ns < oldest:
                        Path(entry.path).unlink()
                        continue
                    yield entry.path, status.st_size, status.st_mtime_ns

    def _make_room(self) -> None:
        for path in list(self._files):
            if self._num_bytes <= self.max_bytes or len(self._files) <= 1:
                return
            self._remove_unless_used(path)

    def _remove_unless_used(self, path: str) -> None:
        size, used = self._files[path]
        try:
            now_used = Path(path).stat().st_mtime_ns
            if now_used > used:
                # Another process has used it since the last look.
                self._files[path] = (size, now_used)
                self._files.move_to_end(path)
                return
            Path(path).unlink()
        except FileNotFoundError:
            pass
        except OSError as error:
            # Open in another process (Windows), or in a folder that is read-only.
            logger.info("%s stays: %s", path, error)
            return
        self._forget(path)
        _remove_if_bare(Path(path).parent)


def _remove_if_bare(folder: Path) -> None:
    """Remove a folder that describes nothing any more.

    Should another process write into it at this moment, its file stays, and the description comes
    back with the next write.
    """
    with suppress(OSError):
        left = list(folder.iterdir())
        if {path.name for path in left} <= KEPT:
            for path in left:
                path.unlink()
            folder.rmdir()
