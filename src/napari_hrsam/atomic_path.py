"""Files that are there as a whole or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Give the name of a file to write, which takes the place of ``path`` when it is whole.

    It lies beside it, hidden; what a killed program left there is written over. If writing fails it
    is removed, and what was at ``path`` stays. For one writer at a time, and for what a power cut
    may take: the label image goes through `FileBatch`.

    Raises
    ------
    OSError
        If the file cannot be written or replaced.
    """
    partial = path.with_name(f".{path.name}.partial")
    # It may be a link, and what it leads to is not to be written to.
    partial.unlink(missing_ok=True)
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
