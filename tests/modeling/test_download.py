"""Fetching weights from a server that behaves, and from servers that do not."""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from napari_hrsam.errors import CheckpointError, DownloadError
from napari_hrsam.modeling import download
from napari_hrsam.modeling.download import (
    CACHE_VARIABLE,
    fetch,
)
from napari_hrsam.modeling.registry import RegistryEntry

CONTENT = bytes(range(256)) * 16_384  # 4 MiB
HALF = len(CONTENT) // 2

Answer = Callable[["_Handler", int], None]


class _Handler(BaseHTTPRequestHandler):
    """Answers request number n as the test says; notes the ranges asked for."""

    server: _Server

    def do_GET(self) -> None:
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        self.server.starts.append(start)
        answers = self.server.answers
        answers[min(len(self.server.starts), len(answers)) - 1](self, start)

    def send(
        self, start: int, upto: int, *, content: bytes = CONTENT, resumes: bool = True
    ) -> None:
        """Promise everything from ``start`` and send what comes before ``upto``."""
        start = start if resumes else 0
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        self.wfile.write(content[start:upto])
        self.wfile.flush()
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class _Server(ThreadingHTTPServer):
    answers: tuple[Answer, ...] = ()

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.starts: list[int] = []


def whole(handler: _Handler, start: int) -> None:
    handler.send(start, len(CONTENT))


def half(handler: _Handler, start: int) -> None:
    handler.send(start, start + (len(CONTENT) - start) // 2)


def silent(handler: _Handler, start: int) -> None:
    handler.send(start, start + (1 << 17))
    time.sleep(4.0)


def status(code: int) -> Answer:
    return lambda handler, _: handler.send_error(code)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with _Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.02,), daemon=True).start()
        yield running
        running.shutdown()


@pytest.fixture
def entry(server: _Server) -> RegistryEntry:
    return RegistryEntry(
        name="some-sam",
        file="some_sam.pth",
        url=f"http://127.0.0.1:{server.server_port}/some_sam.pth",
        sha256=hashlib.sha256(CONTENT).hexdigest(),
        num_bytes=len(CONTENT),
        licence="Apache-2.0",
        channel_order="rgb",
        num_parameters=0,
    )


def _fetch(entry: RegistryEntry, folder: Path, **options: object) -> Path:
    return fetch(entry, folder=folder, **{"retry_wait_s": 0.01, "timeout_s": 20.0, **options})


def test_a_file_comes_whole_with_progress_and_only_once(server, entry, tmp_path):
    server.answers = (whole,)
    seen: list[tuple[int, int]] = []
    path = _fetch(entry, tmp_path / "new", progress=lambda *told: seen.append(told))
    assert path == tmp_path / "new" / "some_sam.pth"
    assert path.read_bytes() == CONTENT
    assert [p.name for p in path.parent.iterdir()] == ["some_sam.pth"]
    assert seen[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert len(seen) > 20
    assert _fetch(entry, path.parent) == path
    assert server.starts == [0]


def test_a_connection_closed_early_is_taken_up_where_it_broke(server, entry, tmp_path):
    server.answers = (half, half, whole)
    assert _fetch(entry, tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, HALF, HALF + HALF // 2]


def test_a_later_call_goes_on_with_what_is_there(server, entry, tmp_path):
    class StopError(Exception):
        pass

    def stop(done: int, _: int) -> None:
        if done >= HALF:
            raise StopError

    server.answers = (whole,)
    with pytest.raises(StopError):
        _fetch(entry, tmp_path, progress=stop)
    (partial,) = tmp_path.iterdir()
    assert partial.name == "some_sam.pth.partial"
    kept = partial.stat().st_size
    assert kept >= HALF
    assert _fetch(entry, tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, kept]


def test_a_server_that_cannot_resume_sends_it_all_again(server, entry, tmp_path):
    server.answers = (half, lambda h, s: h.send(s, len(CONTENT), resumes=False))
    assert _fetch(entry, tmp_path).read_bytes() == CONTENT
    assert server.starts == [0, HALF]


def test_another_content_is_refused_and_removed(server, entry, tmp_path):
    server.answers = (lambda h, s: h.send(s, len(CONTENT), content=CONTENT[::-1]), whole)
    with pytest.raises(CheckpointError, match=f"expected SHA-256 {entry.sha256}.*was removed"):
        _fetch(entry, tmp_path)
    assert not list(tmp_path.iterdir())
    assert _fetch(entry, tmp_path).read_bytes() == CONTENT


def test_a_wrong_beginning_is_found_out_in_the_end(server, entry, tmp_path):
    (tmp_path / "some_sam.pth.partial").write_bytes(b"x" * 1000)
    server.answers = (whole,)
    with pytest.raises(CheckpointError, match="not the registered file"):
        _fetch(entry, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_damaged_file_of_that_name_is_fetched_again(server, entry, tmp_path):
    (tmp_path / "some_sam.pth").write_bytes(b"x")
    server.answers = (whole,)
    assert _fetch(entry, tmp_path).read_bytes() == CONTENT


def test_more_than_was_promised_is_not_written(server, entry, tmp_path):
    server.answers = (lambda h, s: h.send(s, 2 * len(CONTENT), content=2 * CONTENT),)
    with pytest.raises(DownloadError, match=f"more came than the {len(CONTENT)} bytes"):
        _fetch(entry, tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_server_that_falls_silent_is_given_up_and_what_came_is_kept(server, entry, tmp_path):
    server.answers = (silent,)
    with pytest.raises(DownloadError, match=r"fell silent\. Try again \(what has come is kept\)"):
        _fetch(entry, tmp_path, timeout_s=1.0)
    assert len(server.starts) == 4
    assert (tmp_path / "some_sam.pth.partial").stat().st_size == 4 << 17


def test_a_file_that_is_not_there_is_told_at_once(server, entry, tmp_path):
    server.answers = (status(404),)
    with pytest.raises(DownloadError, match="the server answers 404 Not Found"):
        _fetch(entry, tmp_path)
    assert len(server.starts) == 1


@pytest.mark.parametrize("code", [500, 503, 429])
def test_a_server_in_trouble_is_asked_again(server, entry, tmp_path, code):
    server.answers = (status(code), status(code), whole)
    assert _fetch(entry, tmp_path).read_bytes() == CONTENT


def test_a_server_in_lasting_trouble_is_given_up(server, entry, tmp_path):
    server.answers = (status(503),)
    with pytest.raises(DownloadError, match="the server answers 503"):
        _fetch(entry, tmp_path)
    assert len(server.starts) == 4


def test_bytes_from_another_place_than_asked_are_refused(server, entry, tmp_path):
    def elsewhere(handler: _Handler, start: int) -> None:
        handler.send(start - 10, len(CONTENT))

    server.answers = (half, elsewhere)
    with pytest.raises(DownloadError, match=f"from {HALF} were asked for, 'bytes {HALF - 10}"):
        _fetch(entry, tmp_path)


def test_offline_the_message_tells_url_and_place(server, entry, tmp_path):
    server.shutdown()
    server.server_close()
    with pytest.raises(DownloadError) as caught:
        _fetch(entry, tmp_path)
    told = str(caught.value)
    assert "is this machine offline?" in told
    assert entry.url in told
    assert f"put it at {tmp_path / 'some_sam.pth'}" in told


def test_a_full_disk_is_told_before_anything_is_fetched(server, entry, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1 << 20})
    monkeypatch.setattr(download.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(DownloadError, match=f"only 1 MB are free.*{CACHE_VARIABLE}"):
        _fetch(entry, tmp_path)
    assert not server.starts


def test_a_folder_that_cannot_be_made_is_told(entry, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DownloadError, match="cannot be written to"):
        _fetch(entry, tmp_path / "file")


def test_without_a_url_it_says_how_to_get_it(entry, tmp_path):
    by_hand = replace(entry, url="", get="Ask the authors.")
    with pytest.raises(DownloadError, match="cannot be fetched by a program. Ask the authors"):
        _fetch(by_hand, tmp_path)
