"""Zarr stores behind a URL: slow, failing and stalling servers.

By hand: obstore 0.12 tells neither status nor Retry-After, waits on a server that drips, and drops
the query of a signed link; the tests of servers that misbehave show it.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import random
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from typing import TypeVar
from urllib.parse import urlsplit

from zarr.abc.store import ByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype
from zarr.storage import FsspecStore, WrapperStore

from napari_hrsam.errors import HRSAMError, ImageError, ImageReadError, MissingExtraError
from napari_hrsam.storage.files.checked_store import MAX_BYTES
from napari_hrsam.storage.files.urls import shown_url

logger = logging.getLogger(__name__)

ATTEMPTS = 5
"""How often a read is tried."""

TIMEOUT_S = 20.0
"""How long one try may take where it is not seen whether anything comes: all but http and https."""

TOTAL_S = 60.0
"""How long a read may take in all; of http and https, as long as something comes."""

SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "abfss", "adl")
"""URLs that are opened. Others of fsspec lead from there to anywhere else, or write files."""

FIRST_PAUSE_S = 0.5
"""Pause after the first failure, about doubled after each further one."""

LONGEST_PAUSE_S = 15.0
"""Longest pause; a server that asks for a longer one is not asked again."""

FORBIDDEN_VARIABLE = "NAPARI_HRSAM_403_IS_MISSING"
"""Environment variable: set to 1 where a server answers 403 for files that are not there, as public
buckets do that may be read but not listed."""

FORBIDDEN = 403
"""HTTP status of what may not be read."""

TOO_MANY_REQUESTS = 429
"""HTTP status of a server that wants to be asked again later."""

_T = TypeVar("_T")


def open_url(url: str) -> Store:
    """Open a store behind a URL for reading.

    Parameters
    ----------
    url : str
        Of one of `SCHEMES`. What follows a ``?``, such as the signature of a signed link, goes to
        the end of every request.

    Raises
    ------
    ImageError
        If it is no such URL.
    MissingExtraError
        If the package for this kind of URL is not installed.
    """
    shown, scheme = shown_url(url), url.partition("://")[0].lower()
    if scheme not in SCHEMES or not _has_host(shown):
        raise ImageError(
            f"expected a local path or a URL of one of {', '.join(SCHEMES)}, got {shown[:200]}; "
            "copy the image to such a place"
        )
    try:
        if scheme in ("http", "https"):
            store = _http_store(url)
        else:
            store = FsspecStore.from_url(url, read_only=True)
    except ImportError as error:
        raise MissingExtraError(
            f"expected the package that reads {scheme} URLs, but importing it "
            f'failed ({error}); install it with: pip install "napari-hrsam[remote]" for http and '
            "https, or the package that the message names"
        ) from error
    # Clients of object stores look at names, settings and rights, and raise what they like.
    except Exception as error:
        raise ImageError(
            f"expected a URL that can be opened, got {type(error).__name__} for {shown}; check the "
            "address and the settings of your account"
        ) from error
    is_missing = os.environ.get(FORBIDDEN_VARIABLE, "") not in ("", "0")
    return PatientStore(store, shown, forbidden_is_missing=is_missing)


def _has_host(url: str) -> bool:
    try:
        return bool(urlsplit(url).hostname)
    # Brackets without an address in them.
    except ValueError:
        return False


def _http_store(url: str) -> Store:
    # Imports the package of the extra.
    from napari_hrsam.storage.files.http_files import HttpFiles

    base, _, query = url.partition("#")[0].partition("?")
    files = HttpFiles(query=query, asynchronous=True)
    return FsspecStore(files, path=base.rstrip("/"), read_only=True)


class PatientStore(WrapperStore[Store]):
    """A store whose reads have a time limit and are tried again when the network fails.

    A key that is not there (404) is told at once: zarr fills such chunks. Other answers that are
    final (403, unless it is taken for 404) fail at once too. A server that asks to wait, fails
    (429, 5xx) or hangs up is asked again. One that is silent on http is given up after
    `http_files.SILENCE_S`.

    Parameters
    ----------
    store : Store
        What is read.
    url : str
        Named in errors; see `urls.shown_url`.
    forbidden_is_missing : bool
        Whether 403 is taken for 404.
    """

    def __init__(self, store: Store, url: str = "", *, forbidden_is_missing: bool = False) -> None:
        super().__init__(store)
        self._url = url
        self._forbidden_is_missing = forbidden_is_missing
        # Clients of object stores read to the end, however far away it is, and do not tell how far
        # they are.
        protocol = getattr(getattr(store, "fs", None), "protocol", ())
        self._is_blind = isinstance(store, FsspecStore) and "http" not in protocol

    def _with_store(self, store: Store) -> PatientStore:
        return PatientStore(store, self._url, forbidden_is_missing=self._forbidden_is_missing)

    async def get(
        self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None
    ) -> Buffer | None:
        """Read a key, or a part of it; None if there is none."""
        if byte_range is None and self._is_blind:
            # One byte more than there may be shows that there is too much.
            byte_range = RangeByteRequest(0, MAX_BYTES.get() + 1)
        return await self._patiently(key, lambda: self._store.get(key, prototype, byte_range), None)

    async def exists(self, key: str) -> bool:
        """Tell whether a key is there."""
        return await self._patiently(key, lambda: self._store.exists(key), False)

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """Read parts of keys."""
        return list(
            await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges))
        )

    async def _get_many(
        self, requests: Iterable[tuple[str, BufferPrototype, ByteRequest | None]]
    ) -> AsyncGenerator[tuple[str, Buffer | None], None]:
        for request in requests:
            yield request[0], await self.get(*request)

    async def _patiently(self, key: str, read: Callable[[], Awaitable[_T]], missing: _T) -> _T:
        """Read, again where that may help; ``missing`` is what a key gives that is not there."""
        started, pause_s = time.monotonic(), FIRST_PAUSE_S
        for attempt in range(1, ATTEMPTS + 1):
            left_s = started + TOTAL_S - time.monotonic()
            limit_s = min(TIMEOUT_S, left_s) if self._is_blind else left_s
            try:
                return await asyncio.wait_for(read(), limit_s)
            except HRSAMError:
                raise
            except _network_errors() as error:
                if self._forbidden_is_missing and _is_forbidden(error):
                    return missing
                wait_s = max(_asked_pause_s(error), pause_s)
                late = wait_s > LONGEST_PAUSE_S or time.monotonic() - started + wait_s > TOTAL_S
                if attempt == ATTEMPTS or late or not _may_pass(error):
                    raise ImageReadError(
                        f"expected {self._url.rstrip('/')}/{key}, got {_told(error, limit_s)} in "
                        f"{attempt} attempt(s) and {time.monotonic() - started:.0f} s; "
                        f"{_advice(error)}"
                    ) from error
                logger.warning(
                    "%s/%s: %s, trying again in %.1f s",
                    self._url,
                    key,
                    _told(error, limit_s),
                    wait_s,
                )
            # Clients that failed together do not come back together.
            await asyncio.sleep(wait_s * random.uniform(0.8, 1.2))  # noqa: S311
            pause_s *= 2
        raise AssertionError("the last attempt returns or raises")


def _network_errors() -> tuple[type[Exception], ...]:
    """Errors of a network; aiohttp's own are known only where it is installed."""
    try:
        return OSError, importlib.import_module("aiohttp").ClientError
    except ImportError:
        return (OSError,)


def _may_pass(error: Exception) -> bool:
    """Whether the same request may succeed later."""
    status = getattr(error, "status", None)
    if isinstance(status, int) and status >= 300:
        return status == TOO_MANY_REQUESTS or status >= 500
    return getattr(error, "may_pass", True) and not isinstance(error, PermissionError)


def _is_forbidden(error: Exception) -> bool:
    # Object stores tell it as PermissionError, without a status.
    return getattr(error, "status", None) == FORBIDDEN or isinstance(error, PermissionError)


def _advice(error: Exception) -> str:
    if _is_forbidden(error):
        return (
            "check the address and your rights; where the server answers so for what is not "
            f"there, set the environment variable {FORBIDDEN_VARIABLE}=1"
        )
    return "check the address and the network, and try again"


def _asked_pause_s(error: Exception) -> float:
    """Pause that the server asked for in seconds, 0 if none."""
    asked = (getattr(error, "headers", None) or {}).get("Retry-After", "")
    return float(asked) if asked.isascii() and asked.isdigit() else 0.0


def _told(error: Exception, limit_s: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no whole answer within {limit_s:.0f} s"
    if not getattr(error, "may_pass", True):
        return str(error)
    status = getattr(error, "status", None)
    if not status:
        return f"{type(error).__name__}: {error}"
    asked_s = _asked_pause_s(error)
    wish = f", which asks to wait for {asked_s:.0f} s," if asked_s > LONGEST_PAUSE_S else ""
    return f"HTTP status {status}{wish}"
