"""What the server answers to those who know the token, and to all others."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import requests
from tests.support.small_segmenter import STEM_CONFIG, build
from tests.support.tile_server import TOKEN, running

from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.geometry import Tile
from napari_hrsam.serving.app import TileServer
from napari_hrsam.storage.embeddings.store import EmbeddingStore
from napari_hrsam.storage.embeddings.wire import from_bytes
from napari_hrsam.storage.images.fingerprint import identify
from napari_hrsam.storage.images.opening import open_image

KNOWN = {"Authorization": f"Bearer {TOKEN}"}
PIXELS = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor(build(STEM_CONFIG))


@pytest.fixture(scope="module")
def url(predictor: Predictor) -> Iterator[str]:
    with running(TileServer(predictor, TOKEN)) as url:
        yield url


def post(
    url: str, predictor: Predictor, body: bytes, *, side: int = 64, model: str = ""
) -> requests.Response:
    address = f"{url}/v1/{model or predictor.fingerprint}/encode/{side}"
    return requests.post(address, data=body, headers=KNOWN, timeout=30)


def test_tile_is_encoded_as_here(url: str, predictor: Predictor) -> None:
    answer = post(url, predictor, PIXELS.tobytes())
    assert answer.status_code == 200
    found = from_bytes(answer.content, predictor.fingerprint, predictor.map_shapes)
    expected = predictor.encode(PIXELS, Tile(0, 0, 0, 64)).arrays
    assert list(found) == list(expected)
    for name, values in expected.items():
        np.testing.assert_array_equal(found[name], values)


def test_server_tells_what_it_has(url: str, predictor: Predictor) -> None:
    about = requests.get(f"{url}/v1", headers=KNOWN, timeout=30).json()
    assert about["fingerprint"] == predictor.fingerprint
    assert (about["model"], about["tile_px"], about["images"]) == ("small", 64, [])


@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer no"}, {"Authorization": f"Basic {TOKEN}"}]
)
@pytest.mark.parametrize("path", ["", "/x/encode/64", "/x/images/y/0/64/-/0/0"])
def test_nothing_is_told_without_the_token(url: str, path: str, headers: dict[str, str]) -> None:
    ask = requests.post if "encode" in path else requests.get
    answer = ask(f"{url}/v1{path}", headers=headers, timeout=30)
    assert answer.status_code == 401
    assert "expected the token" in answer.json()["error"]


def test_other_model_and_other_size_are_told(url: str, predictor: Predictor) -> None:
    answer = post(url, predictor, PIXELS.tobytes(), model="abcdef")
    assert answer.status_code == 409
    assert predictor.fingerprint in answer.json()["error"]
    assert post(url, predictor, PIXELS.tobytes(), side=128).status_code == 404


@pytest.mark.parametrize("num_bytes", [0, 100, 64 * 64 * 3 + 1])
def test_pixels_of_another_size_are_refused(url: str, predictor: Predictor, num_bytes: int) -> None:
    answer = post(url, predictor, bytes(num_bytes))
    assert answer.status_code == 413
    assert f"expected {64 * 64 * 3} bytes of pixels, got {num_bytes}" in answer.json()["error"]


def test_pixels_without_end_are_refused(url: str, predictor: Predictor) -> None:
    answer = requests.post(
        f"{url}/v1/{predictor.fingerprint}/encode/64",
        data=iter([bytes(100)] * 3),
        headers=KNOWN,
        timeout=30,
    )
    assert answer.status_code == 413
    assert "no length" in answer.json()["error"]


def test_client_that_stalls_holds_nobody_up(predictor: Predictor) -> None:
    with running(TileServer(predictor, TOKEN, body_s=0.3)) as url:
        place = url.removeprefix("http://").split(":")
        with socket.create_connection((place[0], int(place[1])), timeout=30) as slow:
            head = (
                f"POST /v1/{predictor.fingerprint}/encode/64 HTTP/1.1\r\nHost: a\r\n"
                f"Authorization: Bearer {TOKEN}\r\nContent-Length: {64 * 64 * 3}\r\n\r\n"
            )
            slow.sendall(head.encode() + bytes(10))
            # While that one sends nothing, another is answered.
            assert post(url, predictor, PIXELS.tobytes()).status_code == 200
            assert b" 408 " in slow.recv(1000)


def test_who_comes_too_often_is_told_to_wait(predictor: Predictor) -> None:
    with running(TileServer(predictor, TOKEN, per_minute=2)) as url:
        codes = [post(url, predictor, PIXELS.tobytes()).status_code for _ in range(3)]
        assert codes == [200, 200, 429]
    with running(TileServer(predictor, TOKEN, max_waiting=0)) as url:
        answer = post(url, predictor, PIXELS.tobytes())
        assert answer.status_code == 503
        assert answer.headers["Retry-After"] == "5"


def test_image_that_is_here_needs_no_pixels(predictor: Predictor, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (2, 100, 90), dtype=np.uint8)
    image = open_image(pixels)
    digest = identify(image, predictor.fill).digest
    store = EmbeddingStore(tmp_path)
    server = TileServer(predictor, TOKEN, images={digest: image}, store=store)
    with running(server) as url:
        base = f"{url}/v1/{predictor.fingerprint}/images"

        def get(place: str, name: str = digest) -> requests.Response:
            return requests.get(f"{base}/{name}/{place}", headers=KNOWN, timeout=30)

        tile = Tile(0, 32, 0, 64, (1,))
        answer = get("0/64/1/32/0")
        assert answer.status_code == 200
        found = from_bytes(answer.content, predictor.fingerprint, predictor.map_shapes)
        expected = predictor.encode(image.read(tile, predictor.fill), tile)
        np.testing.assert_array_equal(found["embedding"], expected.arrays["embedding"])
        assert get("0/64/1/32/0", "0" * 24).status_code == 404
        assert get("0/128/1/0/0").status_code == 404
        for place in ("0/64/7/0/0", "0/64/-/0/0", "0/64/1/640/0", "30/64/1/0/0", "0/64/a/0/0"):
            assert get(place).status_code == 400, place
        assert "does not lie in the image" in get("0/64/1/640/0").json()["error"]
    assert store.num_bytes > 0


def test_image_that_cannot_be_read_is_told(predictor: Predictor) -> None:
    class Damaged:
        shape, dtype = (100, 90), np.dtype(np.uint8)

        def __getitem__(self, _: object) -> np.ndarray:
            raise OSError("the disk is gone")

    image = open_image(Damaged(), contrast_limits=(0, 255))
    with running(TileServer(predictor, TOKEN, images={"a": image})) as url:
        place = f"{url}/v1/{predictor.fingerprint}/images/a/0/64/-/0/0"
        answer = requests.get(place, headers=KNOWN, timeout=30)
        assert answer.status_code == 500
        assert "the disk is gone" in answer.json()["error"]
