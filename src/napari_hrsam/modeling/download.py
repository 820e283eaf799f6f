"""Fetch registered weights: with resume, checked by their SHA-256. Needs no torch."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pooch
import requests

import napari_hrsam
from napari_hrsam.cache import CACHE_VARIABLE, cache_folder
from napari_hrsam.errors import CheckpointError, DownloadError

if TYPE_CHECKING:
    from napari_hrsam.modeling.registry import RegistryEntry

logger = logging.getLogger(__name__)

Progress = Callable[[int, int], None]
"""Called with the bytes there and the bytes in all; may raise to stop, the rest is kept."""

_CHUNK_BYTES = 1 << 16
_SPARE_BYTES = 64 << 20  # left free on the disk beyond the file itself
_GIVE_UP_AFTER = 4  # attempts in a row that brought less than `_WORTH_BYTES`
_WORTH_BYTES = 1 << 20


def fetch(
    entry: RegistryEntry,
    *,
    folder: Path | None = None,
    progress: Progress | None = None,
    timeout_s: float = 30.0,
    retry_wait_s: float = 1.0,
) -> Path:
    """Download weights, or go on with a download that was cut off.

    Parameters
    ----------
    entry : RegistryEntry
    folder : Path, optional
        By default `cache_folder`. What has come so far is ``FILE.partial``; the file gets its name
        when all of it is there and its SHA-256 is right.
    progress : callable, optional
    timeout_s : float
        How long the server may be silent.
    retry_wait_s : float
        Pause before the first new attempt; it doubles.

    Returns
    -------
    Path

    Raises
    ------
    DownloadError
        If there is no URL, no network, no such file there, or no room on the disk.
    CheckpointError
        If what came is another file than the registered one; it is removed.
    """
    if not entry.url:
        raise DownloadError(f"{entry.name} cannot be fetched by a program. {entry.get}")
    folder = folder or cache_folder()
    transfer = _Transfer(entry, folder, progress, timeout_s, retry_wait_s)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        there = pooch.retrieve(
            entry.url,
            known_hash=f"sha256:{entry.sha256}",
            fname=entry.file,
            path=folder,
            downloader=transfer,
        )
    except DownloadError:
        raise
    except ValueError as error:  # how pooch tells of a wrong hash
        raise CheckpointError(
            f"{entry.file} from {entry.url} is not the registered file: expected SHA-256 "
            f"{entry.sha256}, got another; it was removed, try again later ({error})"
        ) from error
    except OSError as error:
        raise DownloadError(
            f"{entry.file} cannot be written to {folder} ({error}); free some room, or name "
            f"another folder with {CACHE_VARIABLE}"
        ) from error
    return Path(there)


class _Transfer:
    """A downloader for pooch that goes on where it was cut off; pooch checks the hash."""

    def __init__(
        self,
        entry: RegistryEntry,
        folder: Path,
        progress: Progress | None,
        timeout_s: float,
        retry_wait_s: float,
    ) -> None:
        self.entry = entry
        self.partial = folder / f"{entry.file}.partial"
        self.progress = progress
        self.timeout_s = timeout_s
        self.retry_wait_s = retry_wait_s

    def __call__(self, url: str, output_file: str, _pooch: object) -> None:
        """Download ``url`` and move it to ``output_file``."""
        self._check_room()
        in_vain = 0
        while (before := self._num_there()) < self.entry.num_bytes:
            try:
                self._append(url, before)
                problem = "the connection was closed early"
            except requests.RequestException as error:
                problem = _plain(error)
                logger.info("download of %s interrupted: %s", self.entry.file, error)
                if not isinstance(error, _WORTH_ANOTHER_TRY):
                    raise self._failed(problem) from error
            if self._num_there() >= self.entry.num_bytes:
                break
            in_vain = 0 if self._num_there() - before >= _WORTH_BYTES else in_vain + 1
            if in_vain == _GIVE_UP_AFTER:
                raise self._failed(problem)
            time.sleep(min(self.retry_wait_s * 2**in_vain, 10.0))
        self.partial.replace(output_file)

    def _num_there(self) -> int:
        return self.partial.stat().st_size if self.partial.is_file() else 0

    def _check_room(self) -> None:
        needed = self.entry.num_bytes - self._num_there() + _SPARE_BYTES
        free = shutil.disk_usage(self.partial.parent).free
        if free < needed:
            raise DownloadError(
                f"{self.entry.file} needs {needed / 1e6:.0f} MB in {self.partial.parent}, only "
                f"{free / 1e6:.0f} MB are free; make room, or name another folder with "
                f"{CACHE_VARIABLE}"
            )

    def _append(self, url: str, start: int) -> None:
        """Ask for what is missing and append what comes."""
        headers = {
            "User-Agent": f"napari-hrsam/{napari_hrsam.__version__}",
            "Accept-Encoding": "identity",
            **({"Range": f"bytes={start}-"} if start else {}),
        }
        times = (min(10.0, self.timeout_s), self.timeout_s)
        with requests.get(url, headers=headers, stream=True, timeout=times) as answer:
            start = self._start_of(answer, start)
            with self.partial.open("r+b" if start else "wb") as stream:
                stream.seek(start)
                for chunk in answer.iter_content(_CHUNK_BYTES):
                    start += len(chunk)
                    if start > self.entry.num_bytes:
                        self.partial.unlink()
                        raise self._failed(
                            f"more came than the {self.entry.num_bytes} bytes that were expected"
                        )
                    stream.write(chunk)
                    if self.progress:
                        self.progress(start, self.entry.num_bytes)

    def _start_of(self, answer: requests.Response, start: int) -> int:
        """Check the status; tell at which byte the answer starts."""
        if answer.status_code == requests.codes.ok:
            return 0  # the server does not resume: from the beginning
        if answer.status_code == requests.codes.partial_content:
            told = answer.headers.get("Content-Range", "")
            if told.startswith(f"bytes {start}-"):
                return start
            raise self._failed(f"bytes from {start} were asked for, {told!r} came")
        told = f"the server answers {answer.status_code} {answer.reason}"
        if answer.status_code >= 500 or answer.status_code == requests.codes.too_many_requests:
            raise _Again(told)
        raise self._failed(told)

    def _failed(self, problem: str) -> DownloadError:
        return DownloadError(
            f"{self.entry.name} cannot be fetched from {self.entry.url}: {problem}. Try again "
            f"(what has come is kept), or get the file another way and put it at "
            f"{self.partial.with_name(self.entry.file)}"
        )


class _Again(requests.RequestException):
    """The server asks to come back later."""


_WORTH_ANOTHER_TRY = (
    requests.ConnectionError,
    requests.Timeout,
    requests.exceptions.ChunkedEncodingError,  # how requests tells of a body cut off
    _Again,
)


def _plain(error: requests.RequestException) -> str:
    """Say in plain words what went wrong."""
    if isinstance(error, requests.exceptions.SSLError):
        return "the server's certificate is not trusted"
    # requests tells of silence in the middle of a body as a ConnectionError.
    if isinstance(error, requests.Timeout) or "timed out" in str(error).lower():
        return "the server fell silent"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection was closed early"
    if isinstance(error, requests.ConnectionError):
        return "there is no connection to the server (is this machine offline?)"
    return str(error)
