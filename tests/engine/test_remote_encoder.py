"""A session whose tiles are encoded by a server: one that works, and ones that do not."""

from __future__ import annotations

import json
import logging
import re
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from typing import Any

import numpy as np
import pytest
from tests.support.small_segmenter import STEM_CONFIG, build
from tests.support.tile_server import TOKEN, answering, running, send

from napari_hrsam.engine import remote_encoder
from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.engine.remote_encoder import RemoteEncoder
from napari_hrsam.engine.session import Session
from napari_hrsam.errors import ConfigError
from napari_hrsam.geometry import Tile
from napari_hrsam.serving.app import TileServer
from napari_hrsam.storage.embeddings.wire import to_bytes
from napari_hrsam.storage.images.fingerprint import identify
from napari_hrsam.storage.images.opening import open_image

TILE = Tile(0, 0, 0, 64)
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
IMAGE = np.random.default_rng(2).integers(0, 256, (90, 100), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(build(STEM_CONFIG))


def asked(remote: RemoteEncoder, predictor: Predictor) -> dict[str, Any] | None:
    return remote.encode(TILE, lambda: PIXELS, predictor.fingerprint, predictor.map_shapes)


def mask(predictor: Predictor, remote: RemoteEncoder | None = None) -> np.ndarray:
    with Session(predictor.segmenter, IMAGE, remote=remote) as session:
        return session.click((40, 50), level=0).mask


# ---------------------------------------------------------------------------------- it works
def test_click_is_the_same_wherever_the_tile_was_encoded(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = mask(predictor)
    with running(TileServer(predictor, TOKEN)) as url:
        encoded: list[Any] = []
        remote = RemoteEncoder(url, TOKEN)
        assert remote.about()["fingerprint"] == predictor.fingerprint
        with Session(predictor.segmenter, IMAGE, remote=remote) as session:
            monkeypatch.setattr(session._state.predictor, "encode", lambda *a: encoded.append(a))
            found = session.click((40, 50), level=0).mask
    assert not encoded
    np.testing.assert_array_equal(found, here)


def test_no_pixels_are_sent_of_an_image_that_the_server_has(predictor: Predictor) -> None:
    image = open_image(IMAGE)
    identity = identify(image, predictor.fill)
    server = TileServer(predictor, TOKEN, images={identity.digest: image})

    def none() -> np.ndarray:
        raise AssertionError("pixels were read")

    with running(server) as url:
        found = RemoteEncoder(url, TOKEN).encode(
            TILE, none, predictor.fingerprint, predictor.map_shapes, identity
        )
    expected = predictor.encode(image.read(TILE, predictor.fill), TILE).arrays
    assert found is not None
    np.testing.assert_array_equal(found["embedding"], expected["embedding"])


def test_server_without_the_image_is_asked_for_it_once(predictor: Predictor) -> None:
    identity = identify(open_image(IMAGE), predictor.fill)
    paths = []
    body = to_bytes(predictor.encode(PIXELS, TILE).arrays, predictor.fingerprint)

    def answer(handler: BaseHTTPRequestHandler) -> None:
        paths.append(handler.command)
        has_pixels = handler.command == "POST"
        send(handler, body if has_pixels else b"{}", 200 if has_pixels else 404)

    with answering(answer) as url:
        remote = RemoteEncoder(url)
        for _ in range(2):
            args = (predictor.fingerprint, predictor.map_shapes, identity)
            assert remote.encode(TILE, lambda: PIXELS, *args) is not None
    assert paths == ["GET", "POST", "POST"]


# ---------------------------------------------------------------------------- it does not work
def test_dead_server_is_told_once_and_clicks_go_on(
    predictor: Predictor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    with running(TileServer(predictor, TOKEN)) as url:
        pass
    remote = RemoteEncoder(url, TOKEN, told=told.append)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_array_equal(mask(predictor, remote), mask(predictor))
        assert asked(remote, predictor) is None
    assert len(told) == 1
    assert "tiles are encoded here until it does" in told[0]
    assert caplog.text.count("does not encode") == 1
    # It is not asked again for a while; then it may have come back.
    port = int(url.rsplit(":", 1)[1])
    with running(TileServer(predictor, TOKEN), port):
        assert asked(remote, predictor) is None
        monkeypatch.setattr(remote, "_not_before", 0.0)
        assert asked(remote, predictor) is not None
    assert told[1:] == [f"{url} encodes again"]


def test_wrong_token_is_told_in_the_servers_words(predictor: Predictor) -> None:
    told: list[str] = []
    with running(TileServer(predictor, TOKEN)) as url:
        remote = RemoteEncoder(url, "another", told=told.append)
        assert asked(remote, predictor) is None
        with pytest.raises(OSError, match="status 401, expected the token"):
            remote.about()
    assert "status 401, expected the token" in told[0]


def test_other_model_is_told(predictor: Predictor) -> None:
    told: list[str] = []
    with running(TileServer(Predictor(build(STEM_CONFIG, seed=1)), TOKEN)) as url:
        assert asked(RemoteEncoder(url, TOKEN, told=told.append), predictor) is None
    assert "both sides need the same version of the model" in told[0]


def maps_of(predictor: Predictor, change: Callable[[dict[str, Any]], None]) -> bytes:
    maps = dict(predictor.encode(PIXELS, TILE).arrays)
    change(maps)
    return to_bytes(maps, predictor.fingerprint)


LIES: dict[str, tuple[Callable[[Predictor], bytes], str]] = {
    "not an embedding": (lambda _: b"<html>", "no embedding"),
    "empty": (lambda _: b"", "no embedding"),
    "no json": (lambda _: b"nonsense\n123", "Expecting value"),
    "other model": (
        lambda p: to_bytes(p.encode(PIXELS, TILE).arrays, "f00"),
        "of the model 'f00'",
    ),
    "a map less": (lambda p: maps_of(p, lambda maps: maps.pop("stride4")), "not \\[\\["),
    "smaller maps": (
        lambda p: maps_of(p, lambda m: m.update(stride4=m["stride4"][..., :4])),
        "not \\[\\[",
    ),
    "not finite": (
        lambda p: maps_of(p, lambda m: m.update(embedding=m["embedding"] * np.float16(np.nan))),
        "not finite",
    ),
    "cut": (lambda p: maps_of(p, lambda _: None)[:-2], "bytes, not"),
    "too long": (lambda p: maps_of(p, lambda _: None) + bytes(10**6), "more than"),
}


@pytest.mark.parametrize("lie", LIES)
def test_lies_are_not_believed(predictor: Predictor, lie: str) -> None:
    make, message = LIES[lie]
    body, told = make(predictor), []
    with answering(lambda handler: send(handler, body)) as url:
        assert asked(RemoteEncoder(url, told=told.append), predictor) is None
    assert re.search(message, told[0])


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b"x")
        handler.wfile.flush()
        time.sleep(0.05)


def die(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    handler.wfile.write(b"x" * 1000)
    handler.connection.close()


def elsewhere(handler: BaseHTTPRequestHandler) -> None:
    send(handler, b"", 302, Location="http://127.0.0.1:1/")


def busy(handler: BaseHTTPRequestHandler) -> None:
    send(handler, json.dumps({"error": "9 others are waiting"}).encode(), 503)


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\x00\x01\x02 not http\r\n\r\n")


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (drip, "takes more than"),
        (die, "does not encode"),
        (elsewhere, "status 302"),
        (busy, r"it is busy \(9 others are waiting\)"),
        (nonsense, "does not encode"),
    ],
)
def test_server_that_misbehaves_does_not_hold_a_click(
    predictor: Predictor, monkeypatch: pytest.MonkeyPatch, answer: Any, message: str
) -> None:
    monkeypatch.setattr(remote_encoder, "WHOLE_S", 0.5)
    told: list[str] = []
    with answering(answer) as url:
        assert asked(RemoteEncoder(url, told=told.append), predictor) is None
    assert re.search(message, told[0])


@pytest.mark.parametrize("url", ["", "gpu.example.org", "ftp://a", "http://", "http://a?b=1"])
def test_what_is_no_url_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="expected the URL of a server"):
        RemoteEncoder(url)


@pytest.mark.parametrize("token", ["a b", "a\nb", "é"])
def test_token_that_cannot_be_sent_is_refused_and_not_shown(token: str) -> None:
    with pytest.raises(ConfigError) as error:
        RemoteEncoder("http://127.0.0.1:1", token)
    assert token not in str(error.value)


def test_token_is_not_shown() -> None:
    assert "secret" not in repr(RemoteEncoder("http://127.0.0.1:1", "secret"))
