"""Images behind a URL: a server that fails, stalls, hangs up, or has no such chunk."""

from __future__ import annotations

import builtins
import gc
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import NUM_PIECES, PIECE_BYTES, SHORT_S, Server, serving
from ome_files import halves, write_ome
from zarr.core.sync import sync

from napari_hrsam.errors import ImageError, ImageReadError, MissingExtraError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.http_files import HttpFiles
from napari_hrsam.storage.opening import open_image

GREY = np.random.default_rng(0).integers(0, 256, (128, 192), np.uint8)
LIMITS = (0, 255)
CHUNK = "/a.zarr/0/c/1/2"
HTTP = "napari_hrsam.storage.http_files"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    write_ome(tmp_path / "a.zarr", halves(GREY, 2))
    monkeypatch.setattr("napari_hrsam.storage.remote.FIRST_PAUSE_S", 0.01)
    with serving(tmp_path) as running:
        yield running


def test_an_image_is_read_over_http(server: Server) -> None:
    image = open_image(server.url, contrast_limits=LIMITS)
    assert image.ome is not None
    assert (image.ome.path, image.level_shapes) == (server.url, [(128, 192), (64, 96)])
    pixels = image.read(Tile(0, 0, 0, 192))
    assert (pixels[:128, :, 0] == GREY).all()


def test_only_the_chunks_of_the_tile_are_asked_for(server: Server) -> None:
    image = open_image(server.url, contrast_limits=LIMITS)
    server.asked.clear()
    image.read(Tile(0, 64, 128, 64))
    assert list(server.asked) == [CHUNK]


def test_a_chunk_that_is_not_there_is_filled(server: Server) -> None:
    (server.folder / CHUNK.lstrip("/")).unlink()
    pixels = open_image(server.url, contrast_limits=LIMITS).read(Tile(0, 64, 64, 128))
    assert (pixels[:64, 64:] == 0).all()
    assert (pixels[:64, :64, 0] == GREY[64:, 64:128]).all()
    assert server.asked[CHUNK] == 1


@pytest.mark.parametrize("fault", [500, 503, 429, "hang up", "short"])
def test_a_passing_fault_is_waited_for(
    fault: Any, server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    image = open_image(server.url, contrast_limits=LIMITS)
    server.faults[CHUNK] = [fault, fault]
    with caplog.at_level(logging.WARNING, logger="napari_hrsam"):
        pixels = image.read(Tile(0, 64, 128, 64))
    assert (pixels[..., 0] == GREY[64:, 128:]).all()
    assert f"{server.url}/0/c/1/2" in caplog.text
    assert "trying again in" in caplog.text


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Silence is not borne for long."""
    monkeypatch.setattr(f"{HTTP}.SECOND_TRY_S", SHORT_S / 3)
    monkeypatch.setattr(f"{HTTP}.SILENCE_S", SHORT_S)


@pytest.mark.usefixtures("impatient")
def test_a_server_that_stalls_is_asked_once_more(server: Server) -> None:
    image = open_image(server.url, contrast_limits=LIMITS)
    server.faults[CHUNK] = ["stall"]
    server.asked.clear()
    assert (image.read(Tile(0, 64, 128, 64))[..., 0] == GREY[64:, 128:]).all()
    assert server.asked[CHUNK] == 2


@pytest.fixture
def clock(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Time goes on by a second with every piece that the server sends."""
    monkeypatch.setattr(f"{HTTP}.time.monotonic", lambda: 100.0 + server.num_pieces)
    monkeypatch.setattr(f"{HTTP}.LIFE_BYTES", PIECE_BYTES)
    monkeypatch.setattr(f"{HTTP}.SECOND_TRY_S", 1.0)
    monkeypatch.setattr(f"{HTTP}.SILENCE_S", 5.0)


@pytest.mark.usefixtures("clock")
def test_a_server_that_is_slow_but_goes_on_is_waited_for(server: Server) -> None:
    image = open_image(server.url, contrast_limits=LIMITS)
    server.faults = {CHUNK: ["slow"], "/a.zarr/0/c/1/1": ["waits for others"] * 2}
    assert (image.read(Tile(0, 64, 64, 128))[:64, :, 0] == GREY[64:, 64:]).all()
    assert server.num_pieces > NUM_PIECES


@pytest.mark.usefixtures("clock")
def test_a_server_that_drips_is_not_waited_for(server: Server) -> None:
    image = open_image(server.url, contrast_limits=LIMITS)
    server.faults[CHUNK] = ["drip"] * 100
    with pytest.raises(ImageReadError, match=r"no answer within 5 s in 1 attempt"):
        image.read(Tile(0, 64, 128, 64))


@pytest.mark.parametrize(
    ("fault", "told", "num"),
    [
        (503, "HTTP status 503", 5),
        ("hang up", "Disconnected|reset", 5),
        ("stall", "no answer within", 1),
        ("redirect", "redirections without an end", 1),
    ],
)
@pytest.mark.usefixtures("impatient")
def test_a_lasting_fault_names_the_url_and_is_never_shown_as_pixels(
    fault: Any, told: str, num: int, server: Server
) -> None:
    image = open_image(server.url, contrast_limits=LIMITS)
    server.faults[CHUNK] = [fault] * 100
    named = rf"{server.url}/0/c/1/2, got .*({told}).* in {num} att"
    with pytest.raises(ImageReadError, match=named):
        image.read(Tile(0, 64, 128, 64))
    # The rest of the image can still be seen.
    assert (image.read(Tile(0, 0, 0, 64))[..., 0] == GREY[:64, :64]).all()


def test_an_answer_that_is_final_is_not_asked_for_again(server: Server) -> None:
    image = open_image(server.url, contrast_limits=LIMITS)
    server.faults[CHUNK] = [403] * 100
    server.asked.clear()
    with pytest.raises(ImageReadError, match=r"HTTP status 403 in 1 attempt\(s\)"):
        image.read(Tile(0, 64, 128, 64))
    assert server.asked[CHUNK] == 1


def test_forbidden_is_missing_where_the_user_says_so(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.faults[CHUNK] = [403] * 100
    with pytest.raises(ImageReadError, match="set the environment variable NAPARI_HRSAM_403_IS_M"):
        open_image(server.url, contrast_limits=LIMITS).read(Tile(0, 64, 64, 128))
    monkeypatch.setenv("NAPARI_HRSAM_403_IS_MISSING", "1")
    pixels = open_image(server.url, contrast_limits=LIMITS).read(Tile(0, 64, 64, 128))
    assert (pixels[:64, 64:] == 0).all()
    assert (pixels[:64, :64, 0] == GREY[64:, 64:128]).all()
    monkeypatch.setenv("NAPARI_HRSAM_403_IS_MISSING", "0")
    with pytest.raises(ImageReadError, match="HTTP status 403"):
        open_image(server.url, contrast_limits=LIMITS).read(Tile(0, 64, 64, 128))


def test_no_answer_may_take_longer_than_the_whole_time(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = open_image(server.url, contrast_limits=LIMITS)
    monkeypatch.setattr("napari_hrsam.storage.remote.TOTAL_S", SHORT_S)
    monkeypatch.setattr("napari_hrsam.storage.checked_store.loose_limit", lambda _: 2**40)
    server.faults[CHUNK] = ["flow"] * 100
    with pytest.raises(ImageReadError, match=r"no whole answer within . s in 1 attempt\(s\)"):
        open_image(server.url, contrast_limits=LIMITS).read(Tile(0, 64, 128, 64))
    # Other chunks can still be read.
    assert (image.read(Tile(0, 0, 0, 64))[..., 0] == GREY[:64, :64]).all()


@pytest.mark.parametrize("asked", ["30", "99999999", "9" * 400, "\xb2"])
def test_a_server_that_asks_to_wait_for_long_is_not_waited_for(server: Server, asked: str) -> None:
    image = open_image(server.url, contrast_limits=LIMITS)
    server.retry_after = asked
    server.faults[CHUNK] = [429] * 100
    num, told = (5, "") if asked == "\xb2" else (1, "which asks to wait for .* s, ")
    with pytest.raises(ImageReadError, match=rf"HTTP status 429.*{told}in {num} attempt"):
        image.read(Tile(0, 64, 128, 64))


def test_faults_while_opening_are_waited_for_and_named(server: Server) -> None:
    server.faults["/a.zarr/zarr.json"] = [500]
    assert open_image(server.url, contrast_limits=LIMITS).shape_yx == (128, 192)
    server.faults["/a.zarr/zarr.json"] = [500] * 100
    with pytest.raises(ImageReadError, match=rf"{server.url}/zarr.json, got HTTP status 500"):
        open_image(server.url)


def test_a_url_that_holds_nothing_is_refused(server: Server) -> None:
    with pytest.raises(ImageError, match="there is none at http://.*/other.zarr"):
        open_image(server.url.replace("a.zarr", "other.zarr"))


@pytest.mark.usefixtures("server")
def test_a_server_that_is_not_there_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_hrsam.storage.remote.ATTEMPTS", 2)
    with pytest.raises(ImageReadError, match=r"expected http://127.0.0.1:9/a.zarr/.* in 2 att"):
        open_image("http://127.0.0.1:9/a.zarr")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] in {"s3fs", "aiohttp"}:
            raise ImportError(f"No module named {name!r}")
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(MissingExtraError, match=r"reads s3 URLs.*napari-hrsam\[remote\]"):
        open_image("s3://bucket/a.zarr")


@pytest.mark.parametrize("key", ["/a.zarr/zarr.json", CHUNK])
@pytest.mark.parametrize("fault", ["endless", "packed bomb"])
def test_an_answer_without_end_is_left(server: Server, key: str, fault: str) -> None:
    server.faults[key] = [fault] * 100
    with pytest.raises(ImageReadError, match=r"expected at most \d+ bytes (at|in) .*, got more"):
        read_corner(server.url)
    assert server.asked[key] <= 2


def read_corner(url: str) -> None:
    open_image(url, contrast_limits=LIMITS).read(Tile(0, 64, 128, 64))


@pytest.mark.parametrize("fault", ["packed", "packed with a tail"])
def test_an_answer_that_is_packed_on_its_way_is_unpacked(server: Server, fault: str) -> None:
    server.faults[CHUNK] = [fault]
    image = open_image(server.url, contrast_limits=LIMITS)
    assert (image.read(Tile(0, 64, 128, 64))[..., 0] == GREY[64:, 128:]).all()


def test_a_signed_link_goes_with_every_request_and_is_never_told(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.query = "sig=a%2Bb%3D&name=x+y"
    server.faults[CHUNK] = [500, 500]
    signed = f"{server.url}?{server.query}"
    with caplog.at_level(logging.DEBUG, logger="napari_hrsam"):
        image = open_image(signed, contrast_limits=LIMITS)
        assert (image.read(Tile(0, 64, 128, 64))[..., 0] == GREY[64:, 128:]).all()
    assert image.ome is not None
    assert image.ome.path == server.url
    told = [caplog.text]
    server.faults[CHUNK] = [500] * 100
    for refused in (signed, signed.replace("a.zarr", "b.zarr"), f"{server.url}?sig=other"):
        with pytest.raises((ImageError, ImageReadError)) as caught:
            read_corner(refused)
        told.append(str(caught.value))
    assert server.url in told[1]
    assert "sig=" not in "".join(told)


def test_connections_are_closed_with_the_image() -> None:
    opened = HttpFiles(query="", asynchronous=True)
    other = HttpFiles(query="", asynchronous=True)
    assert opened is not other
    session = sync(opened.set_session())
    assert sync(opened.set_session()) is session
    assert not session.closed
    del opened
    gc.collect()
    assert session.closed
