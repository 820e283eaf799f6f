"""``napari-hrsam serve``: encode tiles for other machines."""

from __future__ import annotations

import argparse
import ipaddress
import logging
import os
import secrets
import sys
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam._optional import require
from napari_hrsam.cache import SERVER_VARIABLE, TOKEN_VARIABLE, cache_folder
from napari_hrsam.cli.options import add_cache, add_command, add_model
from napari_hrsam.errors import ConfigError

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.storage.images.tile_source import PyramidImage

DEFAULT_PORT = 8765

MAX_CONNECTIONS = 64

SLOW_S = 30
"""A connection that says nothing for so long is closed."""


def add_commands(commands: Commands) -> None:
    """Add the command ``serve``."""
    parser = add_command(
        commands,
        "serve",
        summary="encode tiles for other machines, which have no fast processor of their own",
        example="napari-hrsam serve --device cuda --image /data/slide.ome.zarr",
    )
    parser.add_argument(
        "--image",
        nargs="+",
        default=[],
        metavar="IMAGE",
        dest="images",
        help="images that are here too: their pixels need not be sent",
    )
    add_model(parser)
    add_cache(parser, "keep the embeddings of these images in DIR")
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to answer at (default 127.0.0.1: this machine, and tunnels to it)",
    )
    parser.add_argument("--port", type=int, default=DEFAULT_PORT, help="default %(default)s")
    parser.add_argument(
        "--token-file",
        type=Path,
        metavar="FILE",
        help="what those who ask have to know; made if it is not there",
    )
    parser.add_argument("--certificate", type=Path, metavar="FILE", help="for https, PEM")
    parser.add_argument("--key", type=Path, metavar="FILE", help="of the certificate, PEM")
    parser.add_argument(
        "--without-https",
        action="store_true",
        help="answer other machines without a certificate: anybody between can read and change "
        "what is sent",
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> None:
    uvicorn = require("uvicorn", extra="serve")
    require("starlette", extra="serve")
    _require_safe(args)
    token = _token(args.token_file or cache_folder() / "server-token")
    from napari_hrsam.engine.predictor import Predictor
    from napari_hrsam.modeling.checkpoints import load_model
    from napari_hrsam.serving.app import TileServer
    from napari_hrsam.storage.embeddings.store import EmbeddingStore

    store = EmbeddingStore(args.cache) if args.images else None
    predictor = Predictor(load_model(args.model, device=args.device))
    images = _identified(args.images, predictor)
    server = TileServer(predictor, token, images=images, store=store)
    config = uvicorn.Config(
        server.app,
        host=args.host,
        port=args.port,
        ssl_certfile=args.certificate,
        ssl_keyfile=args.key,
        log_level="info" if args.debug else "warning",
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=SLOW_S,
        server_header=False,
    )
    if config.is_ssl:
        config.load()
    bound = config.bind_socket()
    host, port = bound.getsockname()[:2]
    scheme = "https" if config.is_ssl else "http"
    host = f"[{host}]" if ":" in host else host
    url = f"{scheme}://{host}:{port}"

    class Server(uvicorn.Server):  # type: ignore[misc, name-defined]  # loaded by `require`
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            # Only now it answers. The one line on stdout is for scripts.
            print(url, flush=True)
            print(
                f"{predictor.name} ({predictor.fingerprint}) encodes tiles of {predictor.tile_px} "
                f"px; {len(images)} images are here. On the other machine set\n"
                f"  {SERVER_VARIABLE}={url}\n"
                f"  {TOKEN_VARIABLE}={token}\n"
                "Stop with Ctrl-C.",
                file=sys.stderr,
                flush=True,
            )

    # Ctrl-C is how it is meant to end.
    with closing(bound), suppress(KeyboardInterrupt):
        Server(config).run(sockets=[bound])


def _require_safe(args: argparse.Namespace) -> None:
    """Refuse to answer other machines in the clear, unless that is asked for."""
    if (args.certificate is None) != (args.key is None):
        raise ConfigError("expected --certificate and --key together, got only one of them")
    for path in (args.certificate, args.key):
        if path is not None and not path.is_file():
            raise ConfigError(f"expected a file in PEM format, but there is none at {path}")
    if args.certificate is None and not _is_local(args.host) and not args.without_https:
        raise ConfigError(
            f"expected --certificate and --key to answer other machines at {args.host}, got none; "
            "or leave --host out and use a tunnel: ssh -L 8765:127.0.0.1:8765 HOST"
        )


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _token(path: Path) -> str:
    """Read the token, or make one that only this user can read."""
    if path.is_file():
        token = path.read_text(encoding="utf-8").strip()
        if len(token) < 16 or not token.isascii() or not token.isprintable() or " " in token:
            raise ConfigError(
                f"expected 16 letters and digits or more as a token in {path}; remove the file to "
                "have one made"
            )
        return token
    token = secrets.token_urlsafe(24)
    path.parent.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(token + "\n")
    return token


def _identified(paths: list[str], predictor: object) -> dict[str, PyramidImage]:
    from napari_hrsam.engine.predictor import Predictor
    from napari_hrsam.storage.images.fingerprint import identify
    from napari_hrsam.storage.images.opening import open_image

    assert isinstance(predictor, Predictor)
    images = {}
    for path in paths:
        image = open_image(path)
        images[identify(image, predictor.fill).digest] = image
        logging.getLogger(__name__).info("%s is here", path)
    return images
