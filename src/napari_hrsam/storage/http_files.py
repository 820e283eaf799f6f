"""Files behind http and https URLs, read with a limit; needs the extra ``remote``."""

from __future__ import annotations

import asyncio
import time
import weakref
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import aiohttp
import yarl
from fsspec.implementations.http import HTTPFileSystem

from napari_hrsam.errors import ImageReadError
from napari_hrsam.storage.checked_store import MAX_BYTES

SILENCE_S = 9.0
"""After this long without a sign of life of the server, a request is given up."""

SECOND_TRY_S = 3.0
"""After this long without one, it is asked a second time, beside the first."""

LIFE_BYTES = 2**12
"""Bytes that are a sign of life; fewer at a time may come on and on without an end."""

_PIECE = 2**16
_NOT_FOUND = 404
_FAILED = 400
_T = TypeVar("_T")
_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class HttpError(OSError):
    """An answer that is no file, or none at all; the URL, which may hold a token, is left out.

    Attributes
    ----------
    status : int
        Of the answer; 0 if there is none.
    headers : mapping, optional
        Of the answer.
    may_pass : bool
        Whether the same request may succeed soon, as far as the status does not say it.
    """

    may_pass = True

    def __init__(self, text: str, status: int = 0, headers: Any = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class SilentServerError(HttpError):
    """A server that does not answer, or hardly sends anything."""

    may_pass = False


class EndlessRedirectsError(HttpError):
    """A server that sends one from place to place."""

    may_pass = False


class HttpFiles(HTTPFileSystem):  # type: ignore[misc]
    """Files of a web server; of each, no more than `MAX_BYTES` are read.

    A request fails after `SILENCE_S` without a sign of life of the server. One is the begin of an
    answer, its end, or `LIFE_BYTES` of it, on this or any other request: a server may be slow, and
    answer one request after the other.

    Parameters
    ----------
    query : str
        Follows every URL after a ``?``, as it is: it may be the signature of a signed link.
    **settings
        Of `HTTPFileSystem`.
    """

    # fsspec would keep and share it: between servers, of which one may live and one not.
    cachable = False

    _session: aiohttp.ClientSession | None  # of fsspec, which declares no types

    def __init__(self, *, query: str = "", **settings: Any) -> None:
        # Compressed answers are unpacked here, to no more than they may hold.
        super().__init__(client_kwargs={"auto_decompress": False}, **settings)
        self._query = query
        self._alive_at = 0.0

    async def set_session(self) -> aiohttp.ClientSession:
        """Return the session of all requests; it is closed when the files are not used any more."""
        is_new = self._session is None
        session: aiohttp.ClientSession = await super().set_session()
        if is_new:
            weakref.finalize(self, self.close_session, asyncio.get_running_loop(), session)
        return session

    def encode_url(self, url: str) -> yarl.URL:
        """Return the URL of a request."""
        full = str(yarl.URL(url))
        return yarl.URL(f"{full}?{self._query}" if self._query else full, encoded=True)

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes | bytearray:
        """Read a file, or a part of it.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ImageReadError
            If there is more than there may be.
        HttpError
            If the server or the network fails.
        SilentServerError
            If the server does not go on.
        """
        if start is not None and start == end:
            return b""
        headers = {"Accept-Encoding": "identity"}
        if start is not None or end is not None:
            last = "" if end is None else str(end - 1)
            is_suffix = start is not None and start < 0
            headers["Range"] = f"bytes={start}" if is_suffix else f"bytes={start or 0}-{last}"
        async with self._answer(url, headers) as answer:
            return await self._body(answer, MAX_BYTES.get(), url)

    async def _exists(self, path: str, **_: Any) -> bool:
        """Whether a file is there."""
        try:
            async with self._answer(path, {"Accept-Encoding": "identity"}):
                return True
        except FileNotFoundError:
            return False

    @asynccontextmanager
    async def _answer(
        self, url: str, headers: dict[str, str]
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        try:
            session = await self.set_session()
            full = self.encode_url(url)
            async with await self._while_alive(
                lambda: session.get(full, headers=headers), can_repeat=True
            ) as answer:
                self._alive_at = time.monotonic()
                if answer.status == _NOT_FOUND:
                    raise FileNotFoundError(url)
                if answer.status >= _FAILED:
                    text = f"HTTP status {answer.status}"
                    raise HttpError(text, answer.status, answer.headers)
                yield answer
        except aiohttp.TooManyRedirects:
            raise EndlessRedirectsError("redirections without an end") from None
        except aiohttp.ClientResponseError as error:
            # An answer that breaks the rules of HTTP.
            text = f"{type(error).__name__}, HTTP status {error.status}"
            raise HttpError(text, error.status) from None
        except aiohttp.ClientError as error:
            raise HttpError(_without_query(f"{type(error).__name__}: {error}")) from None
        # Of yarl and aiohttp at a host that can be none.
        except ValueError as error:
            if isinstance(error, ImageReadError):
                raise
            raise HttpError(f"no address of a server ({type(error).__name__})", _FAILED) from None

    async def _body(self, answer: aiohttp.ClientResponse, limit: int, url: str) -> bytearray:
        """Read an answer to its end, or to the limit."""
        encoding = answer.headers.get("Content-Encoding", "identity").lower()
        if encoding not in _WINDOWS and encoding != "identity":
            raise ImageReadError(
                f"expected a file as it is at {url}, got one packed by {encoding[:20]!r} on its "
                "way; have the server send it unpacked"
            )
        unpack = zlib.decompressobj(_WINDOWS[encoding]) if encoding in _WINDOWS else None
        body, num_read, told_life, since = bytearray(), 0, 0, time.monotonic()
        # What follows a packed file is none of it, and may have no end.
        while not (unpack and unpack.eof):
            piece = await self._while_alive(lambda: answer.content.read(_PIECE), since)
            if not piece:
                break
            num_read += len(piece)
            if num_read - told_life >= LIFE_BYTES:
                told_life, self._alive_at = num_read, time.monotonic()
            try:
                body += piece if unpack is None else unpack.decompress(piece, limit + 1 - len(body))
            except zlib.error as error:
                raise HttpError(f"a body that does not unpack ({error})") from None
            # Of what is packed too: it may unpack to nothing.
            if max(len(body), num_read) > limit:
                raise ImageReadError(
                    f"expected at most {limit} bytes at {url}, got more: the server is at fault, "
                    "or means to fill the memory; check the address"
                )
        self._alive_at = time.monotonic()
        return body

    async def _while_alive(
        self, ask: Callable[[], Awaitable[_T]], since: float = 0.0, *, can_repeat: bool = False
    ) -> _T:
        """Wait for an answer, or a part of it, as long as the server lives.

        Parameters
        ----------
        ask : callable
            Gives what is waited for.
        since : float
            From when on silence counts, by the monotonic clock; by default from now on.
        can_repeat : bool
            Whether it may be asked for a second time.
        """
        since = since or time.monotonic()
        asked = {asyncio.ensure_future(ask())}
        try:
            while True:
                is_first = can_repeat and len(asked) == 1
                patience_s = SECOND_TRY_S if is_first else SILENCE_S
                ends = max(since, self._alive_at) + patience_s
                done, _ = await asyncio.wait(
                    asked,
                    timeout=max(0.0, ends - time.monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if done:
                    return done.pop().result()
                if max(since, self._alive_at) + patience_s > time.monotonic():
                    continue
                if not is_first:
                    raise SilentServerError(f"no answer within {SILENCE_S:.0f} s")
                asked.add(asyncio.ensure_future(ask()))
        finally:
            for one in asked:
                one.cancel()
            await asyncio.gather(*asked, return_exceptions=True)


def _without_query(text: str) -> str:
    """Leave out of a message what follows a question mark in a word."""
    return " ".join(word.partition("?")[0] for word in text.split())
