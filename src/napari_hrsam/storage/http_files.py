"""Files behind http and https URLs, read with a limit; needs the extra ``remote``."""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import yarl
from fsspec.implementations.http import HTTPFileSystem

from napari_hrsam.errors import ImageReadError
from napari_hrsam.storage.checked_store import MAX_BYTES

_PIECE = 2**16
_NOT_FOUND = 404
_FAILED = 400
_WINDOWS = {"gzip": zlib.MAX_WBITS | 16, "x-gzip": zlib.MAX_WBITS | 16, "deflate": zlib.MAX_WBITS}


class HttpError(OSError):
    """An answer that is no file, or none at all; the URL, which may hold a token, is left out."""

    def __init__(self, text: str, status: int = 0, headers: Any = None) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


class HttpFiles(HTTPFileSystem):  # type: ignore[misc]
    """Files of a web server; of each, no more than `MAX_BYTES` are read.

    Parameters
    ----------
    query : str
        Follows every URL after a ``?``, as it is: it may be the signature of a signed link.
    **settings
        Of `HTTPFileSystem`.
    """

    def __init__(self, *, query: str = "", **settings: Any) -> None:
        # Compressed answers are unpacked here, to no more than they may hold.
        super().__init__(client_kwargs={"auto_decompress": False}, **settings)
        self._query = query

    def encode_url(self, url: str) -> yarl.URL:
        """Return the URL of a request."""
        full = str(yarl.URL(url))
        return yarl.URL(f"{full}?{self._query}" if self._query else full, encoded=True)

    async def _cat_file(
        self, url: str, start: int | None = None, end: int | None = None, **_: Any
    ) -> bytes:
        """Read a file, or a part of it.

        Raises
        ------
        FileNotFoundError
            If there is none.
        ImageReadError
            If there is more than there may be.
        HttpError
            If the server or the network fails.
        """
        if start is not None and start == end:
            return b""
        headers = {"Accept-Encoding": "identity"}
        if start is not None or end is not None:
            last = "" if end is None else str(end - 1)
            is_suffix = start is not None and start < 0
            headers["Range"] = f"bytes={start}" if is_suffix else f"bytes={start or 0}-{last}"
        async with self._answer(url, headers) as answer:
            return await _body(answer, MAX_BYTES.get(), url)

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
            async with session.get(self.encode_url(url), headers=headers) as answer:
                if answer.status == _NOT_FOUND:
                    raise FileNotFoundError(url)
                if answer.status >= _FAILED:
                    text = f"HTTP status {answer.status}"
                    raise HttpError(text, answer.status, answer.headers)
                yield answer
        except aiohttp.ClientResponseError as error:
            # Too many redirections, or an answer that breaks the rules of HTTP.
            text = f"{type(error).__name__}, HTTP status {error.status}"
            raise HttpError(text, error.status) from None
        except aiohttp.ClientError as error:
            raise HttpError(_without_query(f"{type(error).__name__}: {error}")) from None
        # Of yarl and aiohttp at a host that can be none.
        except ValueError as error:
            if isinstance(error, ImageReadError):
                raise
            raise HttpError(f"no address of a server ({type(error).__name__})", _FAILED) from None


async def _body(answer: aiohttp.ClientResponse, limit: int, url: str) -> bytes:
    """Read an answer to its end, or to the limit."""
    encoding = answer.headers.get("Content-Encoding", "identity").lower()
    if encoding not in _WINDOWS and encoding != "identity":
        raise ImageReadError(
            f"expected a file as it is at {url}, got one packed by {encoding[:20]!r} on its way; "
            "have the server send it unpacked"
        )
    unpack = zlib.decompressobj(_WINDOWS[encoding]) if encoding in _WINDOWS else None
    body = bytearray()
    async for piece in answer.content.iter_chunked(_PIECE):
        try:
            body += piece if unpack is None else unpack.decompress(piece, limit + 1 - len(body))
        except zlib.error as error:
            raise HttpError(f"a body that does not unpack ({error})") from None
        if len(body) > limit:
            raise ImageReadError(
                f"expected at most {limit} bytes at {url}, got more: the server is at fault, or "
                "means to fill the memory; check the address"
            )
    return bytes(body)


def _without_query(text: str) -> str:
    """Leave out of a message what follows a question mark in a word."""
    return " ".join(word.partition("?")[0] for word in text.split())
