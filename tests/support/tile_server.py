"""A server of tiles on this machine, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import uvicorn

from napari_hrsam.serving.app import TileServer

TOKEN = "-".join(["some", "letters", "that", "are", "no", "secret"])


@contextmanager
def running(server: TileServer, port: int = 0) -> Iterator[str]:
    """Run a server until the block ends; gives its URL."""
    config = uvicorn.Config(server.app, host="127.0.0.1", port=port, log_level="error")
    socket = config.bind_socket()
    web = uvicorn.Server(config)
    thread = threading.Thread(target=web.run, kwargs={"sockets": [socket]}, daemon=True)
    thread.start()
    try:
        while not web.started:
            assert thread.is_alive()
            time.sleep(0.01)
        yield f"http://127.0.0.1:{socket.getsockname()[1]}"
    finally:
        web.should_exit = True
        thread.join()
        socket.close()


@contextmanager
def answering(answer: Any) -> Iterator[str]:
    """Run a server that answers every request by ``answer(handler)``, which writes the bytes."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            answer(self)

        def do_GET(self) -> None:
            answer(self)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        web.daemon_threads = True
        threading.Thread(target=web.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{web.server_port}"
        web.shutdown()


def send(handler: BaseHTTPRequestHandler, body: bytes, status: int = 200, **headers: str) -> None:
    """Write a whole answer."""
    handler.send_response(status)
    handler.send_header("Content-Length", str(len(body)))
    for name, value in headers.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(body)
