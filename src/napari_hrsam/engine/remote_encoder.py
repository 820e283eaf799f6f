"""Encoding on another machine: a server answers with the embedding of a tile."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.cache import CERTIFICATE_VARIABLE, SERVER_VARIABLE, TOKEN_VARIABLE
from napari_hrsam.errors import ConfigError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.embeddings.wire import API, MAX_HEAD_BYTES, Shapes, from_bytes

if TYPE_CHECKING:
    import requests

    from napari_hrsam.storage.images.fingerprint import ImageIdentity

logger = logging.getLogger(__name__)

CONNECT_S, ANSWER_S = 5.0, 60.0
"""What a server may take until it is connected, and until the next bytes of its answer come."""

WHOLE_S = 90.0
"""What a whole answer may take: one that drips would hold a click for ever."""

PAUSE_S = 30.0
"""After a failure nothing is asked for so long: every tile would wait for the failure again."""

_BUSY = {429, 503}
_FINE, _UNKNOWN = 200, 404
_PIECE_BYTES = 2**18


class RemoteEncoder:
    """A server of ``napari-hrsam serve``.

    It may fail at any time: `encode` then returns None, the reason is logged once, and the caller
    encodes by itself. Several threads may use one.

    Parameters
    ----------
    url : str
        Such as ``https://gpu.example.org:8765``; http is for the same machine, or a tunnel.
    token : str
        What the server wants to be told.
    verify : bool or str
        Whether the certificate of an https server has to be signed by somebody known, or the path
        of the certificate that it shows.
    told : callable, optional
        Called with a message when the server stops answering, and when it answers again.

    Attributes
    ----------
    url : str

    Raises
    ------
    ConfigError
        If the URL is none, or the token has characters that cannot be sent.
    """

    def __init__(
        self,
        url: str,
        token: str = "",
        *,
        verify: bool | str = True,
        told: Callable[[str], None] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query:
            raise ConfigError(
                f"expected the URL of a server, such as http://127.0.0.1:8765, got {url!r}; "
                "`napari-hrsam serve` prints it"
            )
        if not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(
                "expected a token of letters, digits and signs, got other characters in it; "
                "copy the line that `napari-hrsam serve` prints"
            )
        self.url = url.rstrip("/")
        self._token, self._verify, self._told = token, verify, told
        self._lock = threading.Lock()
        self._session: requests.Session | None = None
        self._not_before = 0.0
        self._is_failing = False
        self._unknown_images: set[tuple[str, str]] = set()

    def __repr__(self) -> str:
        """Name the server; the token is kept to ourselves."""
        return f"RemoteEncoder({self.url!r})"

    def encode(
        self,
        tile: Tile,
        pixels: Callable[[], NDArray[np.uint8]],
        fingerprint: str,
        shapes: Shapes,
        image: ImageIdentity | None = None,
    ) -> dict[str, NDArray[np.float16]] | None:
        """Have a tile encoded.

        Parameters
        ----------
        tile : Tile
        pixels : callable
            Gives the (size, size, 3) uint8 pixels, for a server that does not have the image.
        fingerprint : str
            Of the model.
        shapes : mapping of str to tuple of int
            Of the maps that this model makes of such a tile.
        image : ImageIdentity, optional
            For a server that has the image: then no pixels are sent.

        Returns
        -------
        dict of str to float16 array, or None
            None if the server does not answer, or not with what was asked for.
        """
        if time.monotonic() < self._not_before:
            return None
        try:
            body = self._body(tile, pixels, fingerprint, shapes, image)
            maps = from_bytes(body, fingerprint, shapes)
        except (OSError, ValueError, _RefusedError) as error:
            self._fail(error)
            return None
        self._succeed()
        return maps

    def _body(
        self,
        tile: Tile,
        pixels: Callable[[], NDArray[np.uint8]],
        fingerprint: str,
        shapes: Shapes,
        image: ImageIdentity | None,
    ) -> bytes:
        """Ask by the name of the image; where that is not known, send the pixels."""
        model = f"{self.url}{API}/{quote(fingerprint, safe='')}"
        limit = MAX_HEAD_BYTES + 2 * sum(int(np.prod(shape)) for shape in shapes.values())
        if image is not None and (fingerprint, image.digest) not in self._unknown_images:
            plane = ".".join(map(str, tile.plane)) or "-"
            place = f"{tile.level}/{tile.size_px}/{plane}/{tile.y0}/{tile.x0}"
            body = self._ask("GET", f"{model}/images/{image.digest}/{place}", None, limit)
            if body is not None:
                return body
            self._unknown_images.add((fingerprint, image.digest))
        data = np.ascontiguousarray(pixels()).tobytes()
        body = self._ask("POST", f"{model}/encode/{tile.size_px}", data, limit)
        if body is None:
            raise _RefusedError("it encodes no tiles of this size")
        return body

    def about(self) -> dict[str, Any]:
        """Ask what the server has: ``model``, ``fingerprint``, ``tile_px``, ``images``.

        Raises
        ------
        OSError
            If it does not answer, or not as such a server does.
        """
        try:
            body = self._ask("GET", f"{self.url}{API}", None, MAX_HEAD_BYTES)
            about: Any = json.loads(body or b"null")
        except (_RefusedError, ValueError) as error:
            raise OSError(f"{self.url}: {error}") from error
        is_fine = isinstance(about, dict) and isinstance(about.get("fingerprint"), str)
        if not is_fine:
            raise OSError(f"{self.url} is no server of napari-hrsam")
        found: dict[str, Any] = about
        return found

    def _ask(self, method: str, url: str, data: bytes | None, limit: int) -> bytes | None:
        """Return the body of an answer; None for something that is not there."""
        # These take a while to import, and most sessions have no server.
        import requests
        from urllib3.exceptions import HTTPError

        with self._lock:
            if self._session is None:
                self._session = requests.Session()
                # A proxy or a login from the surroundings is not meant for this server.
                self._session.trust_env = False
            session = self._session
        try:
            with session.request(
                method,
                url,
                data=data,
                headers={"Authorization": f"Bearer {self._token}"} if self._token else {},
                timeout=(CONNECT_S, ANSWER_S),
                verify=self._verify,
                stream=True,
                allow_redirects=False,
            ) as answer:
                return _body_of(answer, limit)
        except HTTPError as error:
            # What is read piece by piece ends in errors of the library below.
            raise OSError(str(error)) from error

    def _fail(self, error: Exception) -> None:
        with self._lock:
            self._not_before = time.monotonic() + PAUSE_S
            is_news, self._is_failing = not self._is_failing, True
        if is_news:
            self._tell(f"{self.url} does not encode: {error}; tiles are encoded here until it does")

    def _succeed(self) -> None:
        with self._lock:
            is_news, self._is_failing = self._is_failing, False
        if is_news:
            self._tell(f"{self.url} encodes again")

    def _tell(self, message: str) -> None:
        logger.warning("%s", message)
        if self._told is not None:
            self._told(message)


def configured_server(told: Callable[[str], None] | None = None) -> RemoteEncoder | None:
    """Return the server that the environment names, if it names one.

    ``NAPARI_HRSAM_SERVER`` holds its URL, ``NAPARI_HRSAM_TOKEN`` the token, and
    ``NAPARI_HRSAM_CERTIFICATE`` the path of a certificate that nobody else has signed.

    Parameters
    ----------
    told : callable, optional
        As in `RemoteEncoder`.

    Raises
    ------
    ConfigError
        If the URL is none, or the token cannot be sent.
    """
    url = os.environ.get(SERVER_VARIABLE)
    if not url:
        return None
    certificate = os.environ.get(CERTIFICATE_VARIABLE)
    token = os.environ.get(TOKEN_VARIABLE, "")
    return RemoteEncoder(url, token, verify=certificate or True, told=told)


class _RefusedError(Exception):
    """The server answers, but not with an embedding."""


def _body_of(answer: requests.Response, limit: int) -> bytes | None:
    """Read an answer; None for something that is not there."""
    if answer.status_code == _UNKNOWN:
        return None
    ends = time.monotonic() + WHOLE_S
    body = bytearray()
    # Bytes as they are sent: what is packed could unfold to any size.
    for piece in iter(lambda: answer.raw.read1(_PIECE_BYTES), b""):
        body += piece
        if len(body) > limit:
            raise _RefusedError(f"it sends more than {limit} bytes")
        if time.monotonic() > ends:
            raise _RefusedError(f"an answer takes more than {WHOLE_S:.0f} s")
    if answer.status_code != _FINE:
        raise _RefusedError(_reason(answer.status_code, bytes(body)))
    return bytes(body)


def _reason(status: int, body: bytes) -> str:
    """Say why a server refused, in its own words if it has some."""
    try:
        said = str(json.loads(body)["error"])[:300]
    except (ValueError, KeyError, TypeError):
        said = "no reason given"
    if status in _BUSY:
        return f"it is busy ({said})"
    return f"status {status}, {said}"
