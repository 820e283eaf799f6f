"""A server of files that fails when it is told to."""

from __future__ import annotations

import gzip
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# Well above what a busy machine takes to answer, and above SHORT_S.
STALL_S = 5.0
SHORT_S = 1.5
"""A timeout for tests in which the server stalls."""

PIECE_S = 0.1
PIECE_BYTES = 2**8
"""A server that is slow, or drips, sends pieces with a pause behind each."""

NUM_PIECES = 12
"""After so many it answers others."""

BOMB = gzip.compress(bytes(2**25), 1)


class Server(ThreadingHTTPServer):
    """Serves a folder; ``faults`` maps a path to what its first requests get instead."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults: dict[str, list[Any]] = {}
        self.asked: Counter[str] = Counter()
        self.query = ""
        self.retry_after = "0"
        self.num_pieces = 0
        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/a.zarr"


class Handler(SimpleHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def translate_path(self, path: str) -> str:
        return str(self.server.folder / path.lstrip("/"))

    def do_GET(self) -> None:
        self.path, _, query = self.path.partition("?")
        self.server.asked[self.path] += 1
        faults = self.server.faults.get(self.path, [])
        fault = faults.pop(0) if faults else None
        if query != self.server.query:
            fault = 403
        if fault is None:
            super().do_GET()
        elif fault == "hang up":
            self.close_connection = True
        elif fault == "stall":
            time.sleep(STALL_S)
            self.close_connection = True
        elif fault == "endless":
            self.send_response(200)
            self.end_headers()
            self.close_connection = True
            with suppress(OSError):
                while True:
                    self.wfile.write(bytes(2**20))
        elif fault in ("drip", "flow", "slow", "waits for others"):
            self._answer_slowly(fault)
        elif fault in ("packed", "packed bomb", "packed with a tail"):
            body = (self.server.folder / self.path.lstrip("/")).read_bytes()
            body = BOMB if fault == "packed bomb" else gzip.compress(body)
            body += bytes(2**25) if fault == "packed with a tail" else b""
            self.send_response(200)
            self.send_header("Content-Encoding", "gzip")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            with suppress(OSError):
                self.wfile.write(body)
        elif fault == "short":
            body = (self.server.folder / self.path.lstrip("/")).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body[:20])
            self.close_connection = True
        else:
            self.send_response(302 if fault == "redirect" else fault)
            if fault == "redirect":
                self.send_header("Location", self.path)
            self.send_header("Retry-After", self.server.retry_after)
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _answer_slowly(self, fault: str) -> None:
        if fault == "waits for others":
            while self.server.num_pieces < NUM_PIECES:
                time.sleep(PIECE_S)
            super().do_GET()
            return
        body = (self.server.folder / self.path.lstrip("/")).read_bytes()
        self.send_response(200)
        if fault == "slow":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.close_connection = True
        for start in range(0, len(body) if fault == "slow" else 2**40, PIECE_BYTES):
            piece = {"drip": b"\0", "flow": bytes(PIECE_BYTES)}
            with suppress(OSError):
                self._send_piece(piece.get(fault, body[start : start + PIECE_BYTES]))
                continue
            break

    def _send_piece(self, piece: bytes) -> None:
        self.wfile.write(piece)
        self.server.num_pieces += 1
        time.sleep(PIECE_S)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""


@contextmanager
def serving(folder: Path) -> Iterator[Server]:
    """Serve a folder until the end of the block."""
    with Server(folder) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()
