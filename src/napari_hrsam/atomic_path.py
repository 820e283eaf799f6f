"""Files that are there as a whole or not at all."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

IS_WINDOWS = os.name == "nt"

WAITS_S = tuple(0.01 * 2**n for n in range(8))
"""Pauses before a file that another program holds is tried again; 2.6 s in all."""


def patiently(do: Callable[[], object]) -> None:
    """Rename, replace or remove a file, or a folder, that another program may hold for a moment.

    Windows refuses that while anybody has it open: a viewer that reads a chunk, a scanner for
    viruses that looks at each new file. Elsewhere a refusal is final, and raised at once.

    Parameters
    ----------
    do : callable
        May be called several times.

    Raises
    ------
    OSError
        What ``do`` raises; `PermissionError` once the pauses are over.
    """
    pauses = iter(WAITS_S if IS_WINDOWS else ())
    while True:
        try:
            do()
        except PermissionError:
            wait_s = next(pauses, None)
            if wait_s is None:
                raise
            time.sleep(wait_s)
        else:
            return


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
        patiently(lambda: partial.replace(path))
    finally:
        partial.unlink(missing_ok=True)
