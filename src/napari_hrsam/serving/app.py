"""An application that encodes tiles for others, over HTTP.

Who asks has to know the token. What is answered depends on the request alone: there are no
sessions, and nothing is stored but embeddings of the images that the server has itself.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from napari_hrsam import __version__
from napari_hrsam.engine.tile_cache import TileCache
from napari_hrsam.errors import HRSAMError, PromptError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.embeddings.wire import API, MEDIA_TYPE, to_bytes

if TYPE_CHECKING:
    from starlette.requests import Request

    from napari_hrsam.engine.predictor import Embedding, Predictor
    from napari_hrsam.storage.embeddings.store import EmbeddingStore
    from napari_hrsam.storage.images.tile_source import PyramidImage

logger = logging.getLogger(__name__)

BODY_S = 60.0
"""What the pixels of a tile may take to arrive."""

MAX_WAITING = 16
"""Requests that may wait for the encoder; others are told to come again."""

PER_MINUTE = 600
"""Tiles in a minute, over all who ask."""

TILES_IN_MEMORY = 8

MAX_READ_PX = 2**28
"""Stored pixels that may be read for a tile: many, where an image lacks coarse levels."""


class TileServer:
    """Encode tiles, one at a time.

    Parameters
    ----------
    predictor : Predictor
    token : str
        What those who ask have to know; not empty.
    images : mapping of str to PyramidImage
        Images that the server has, by the digest of their identity.
    store : EmbeddingStore, optional
        Where embeddings of these images are kept.
    body_s, max_waiting, per_minute
        Limits, see the constants.
    """

    def __init__(
        self,
        predictor: Predictor,
        token: str,
        *,
        images: Mapping[str, PyramidImage] | None = None,
        store: EmbeddingStore | None = None,
        body_s: float = BODY_S,
        max_waiting: int = MAX_WAITING,
        per_minute: int = PER_MINUTE,
    ) -> None:
        self._predictor = predictor
        self._token = token.encode()
        self._caches = {
            digest: TileCache(image, predictor, max_tiles=TILES_IN_MEMORY, store=store)
            for digest, image in (images or {}).items()
        }
        self._images = dict(images or {})
        self._body_s, self._max_waiting, self._per_minute = body_s, max_waiting, per_minute
        self._turn = asyncio.Lock()
        self._num_waiting = 0
        self._lately: deque[float] = deque()
        place = "{level:int}/{size:int}/{plane}/{y0}/{x0}"
        self.app = Starlette(
            routes=[
                Route(API, self._about),
                Route(f"{API}/{{model}}/encode/{{size:int}}", self._encode, methods=["POST"]),
                Route(f"{API}/{{model}}/images/{{image}}/{place}", self._tile),
            ]
        )

    async def _about(self, request: Request) -> Response:
        if refused := self._refused(request):
            return refused
        return JSONResponse(
            {
                "version": __version__,
                "model": self._predictor.name,
                "fingerprint": self._predictor.fingerprint,
                "tile_px": self._predictor.tile_px,
                "images": sorted(self._caches),
            }
        )

    async def _encode(self, request: Request) -> Response:
        if refused := self._refused(request) or self._other_model(request):
            return refused
        side = self._predictor.tile_px
        if request.path_params["size"] != side:
            return _error(404, f"expected tiles of {side} px, got {request.path_params['size']}")
        num_bytes = 3 * side * side
        told = request.headers.get("content-length", "")
        if told != str(num_bytes):
            return _error(413, f"expected {num_bytes} bytes of pixels, got {told or 'no length'}")
        if busy := self._busy():
            return busy
        try:
            async with asyncio.timeout(self._body_s):
                body = await _body(request, num_bytes)
        except TimeoutError:
            return _error(408, f"expected the pixels within {self._body_s:.0f} s")
        if len(body) != num_bytes:
            return _error(400, f"expected {num_bytes} bytes of pixels, got {len(body)}")
        pixels = np.frombuffer(body, np.uint8).reshape(side, side, 3)
        tile = Tile(0, 0, 0, side)
        return await self._answer(lambda: self._predictor.encode(pixels, tile))

    async def _tile(self, request: Request) -> Response:
        if refused := self._refused(request) or self._other_model(request):
            return refused
        asked = request.path_params
        cache = self._caches.get(asked["image"])
        if cache is None:
            return _error(404, "this image is not here; send the pixels")
        try:
            plane = () if asked["plane"] == "-" else tuple(map(int, asked["plane"].split(".")))
            tile = Tile(asked["level"], int(asked["y0"]), int(asked["x0"]), asked["size"], plane)
            _require_tile(self._images[asked["image"]], tile)
        except (ValueError, HRSAMError) as error:
            return _error(400, f"expected a tile of the image, got {error}")
        if tile.size_px != self._predictor.tile_px:
            return _error(404, f"expected tiles of {self._predictor.tile_px} px")
        if busy := self._busy():
            return busy
        return await self._answer(lambda: cache.get(tile).embedding)

    async def _answer(self, make: Callable[[], Embedding]) -> Response:
        self._num_waiting += 1
        try:
            async with self._turn:
                embedding = await run_in_threadpool(make)
        except HRSAMError as error:
            logger.warning("a tile could not be encoded: %s", error)
            return _error(500, str(error))
        finally:
            self._num_waiting -= 1
        body = to_bytes(embedding.arrays, embedding.fingerprint)
        return Response(body, media_type=MEDIA_TYPE)

    def _refused(self, request: Request) -> Response | None:
        kind, _, token = request.headers.get("authorization", "").partition(" ")
        if kind == "Bearer" and hmac.compare_digest(token.encode(), self._token):
            return None
        return _error(401, "expected the token that the server printed when it started")

    def _other_model(self, request: Request) -> Response | None:
        asked = request.path_params["model"]
        if asked == self._predictor.fingerprint:
            return None
        return _error(
            409,
            f"expected the model {self._predictor.name} ({self._predictor.fingerprint}), got "
            f"{asked[:80]}; both sides need the same version of the model",
        )

    def _busy(self) -> Response | None:
        now = time.monotonic()
        while self._lately and now - self._lately[0] > 60:
            self._lately.popleft()
        if self._num_waiting >= self._max_waiting:
            return _error(503, f"{self._num_waiting} others are waiting", retry_s=5)
        if len(self._lately) >= self._per_minute:
            return _error(429, f"{self._per_minute} tiles in a minute are the limit", retry_s=30)
        self._lately.append(now)
        return None


def _require_tile(image: PyramidImage, tile: Tile) -> None:
    """Refuse a tile beside the image, or one for which too much of the image would be read."""
    sizes = image.plane_shape
    is_plane = len(tile.plane) == len(sizes) and all(
        0 <= index < size for index, size in zip(tile.plane, sizes, strict=True)
    )
    is_plane |= tile.plane == () and set(sizes) <= {1}
    is_level = tile.level < image.num_levels
    if not (is_plane and is_level and tile.box0.clip(image.shape_yx).area):
        raise PromptError(f"{tile}, which does not lie in the image of {image.shape_yx} px")
    if image.num_stored_px(tile) > MAX_READ_PX:
        raise PromptError(f"{tile}, for which more than {MAX_READ_PX:,} px would be read")


async def _body(request: Request, num_bytes: int) -> bytearray:
    """Read a body; no more than announced, whoever announced it."""
    body = bytearray()
    async for piece in request.stream():
        body += piece
        if len(body) > num_bytes:
            break
    return body


def _error(status: int, message: str, retry_s: int | None = None) -> Response:
    headers = None if retry_s is None else {"Retry-After": str(retry_s)}
    return JSONResponse({"error": message}, status, headers)
