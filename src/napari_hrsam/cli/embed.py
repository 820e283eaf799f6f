"""``napari-hrsam embed``: encode an image, or a part of it, ahead of time."""

from __future__ import annotations

import argparse
import math
from typing import TYPE_CHECKING, Any

from napari_hrsam.cli.options import (
    add_cache,
    add_command,
    add_image,
    add_json,
    add_model,
    add_workers,
    box_option,
    open_shown,
    put_json,
    table,
    workers_of,
)
from napari_hrsam.cli.progress import Progress
from napari_hrsam.errors import SessionError

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.engine.embed import EmbedReport
    from napari_hrsam.storage.embeddings.store import EmbeddingStore


def add_commands(commands: Commands) -> None:
    """Add the command ``embed``."""
    parser = add_command(
        commands,
        "embed",
        summary="encode an image ahead of time, so that clicks on it need not wait for that",
        example="napari-hrsam embed slide.ome.zarr --level 2 --max-gb 20",
    )
    parser.add_argument(
        "image", metavar="IMAGE", help="an OME-Zarr image of any size (path or URL), or a picture"
    )
    parser.add_argument(
        "--level",
        type=int,
        default=0,
        help="zoom at which objects will be looked at: 0 full size (default), 1 half, 2 a quarter",
    )
    parser.add_argument(
        "--box",
        type=box_option,
        metavar="Y0,X0,Y1,X1",
        help="only what clicks in this box look at, in pixels of full size, rows first",
    )
    add_image(parser)
    parser.add_argument(
        "--skip-blank",
        action="store_true",
        help="leave out tiles that show one colour and noise; a click there encodes them",
    )
    add_workers(parser)
    add_model(parser)
    add_cache(parser, "keep the embeddings in DIR")
    parser.add_argument(
        "--max-gb",
        type=_gigabytes,
        metavar="GB",
        help="what the folder may take from now on, in 10^9 bytes; embeddings used longest ago "
        "go first (default: what it was given last, or 8)",
    )
    add_json(parser)
    parser.set_defaults(run=_run)


def _gigabytes(text: str) -> int:
    try:
        size = float(text) * 1e9
    except ValueError:
        size = math.nan
    if not 1 <= size < math.inf:
        raise argparse.ArgumentTypeError(f"expected a number of gigabytes above 0, got {text!r}")
    return int(size)


def _run(args: argparse.Namespace) -> None:
    from napari_hrsam.storage.embeddings.store import EmbeddingStore

    # What the user can get wrong is told before the model is loaded.
    workers = workers_of(args)
    store = EmbeddingStore(args.cache, max_bytes=args.max_gb)
    image = open_shown(args.image, args)
    store.require_writable()
    store.tidy()
    from napari_hrsam.engine.remote_encoder import configured_server
    from napari_hrsam.engine.session import Session
    from napari_hrsam.modeling.checkpoints import load_model

    model = load_model(args.model, device=args.device)
    progress = Progress("tiles")
    remote = configured_server()
    with Session(model, image, embeddings=store, remote=remote) as session:
        try:
            report = session.embed(
                args.level,
                args.box,
                args.plane,
                progress,
                skip_blank=args.skip_blank,
                workers=workers,
                shard=args.shard,
            )
        except KeyboardInterrupt as error:
            progress.end()
            raise SessionError(
                f"stopped after {progress.done} of {progress.total} tiles, which are kept in "
                f"{store.folder}; run the same command again to go on from there"
            ) from error
    _tell(args, report, store)


def _tell(args: argparse.Namespace, report: EmbedReport, store: EmbeddingStore) -> None:
    figures = {
        "image": args.image,
        "model": args.model,
        "level": report.level,
        "num_tiles": report.num_tiles,
        "num_encoded": report.num_encoded,
        "num_at_hand": report.num_at_hand,
        "num_blank": report.num_blank,
        "seconds": report.seconds,
        "mpx_per_s": report.mpx_per_s,
        "cache": str(store.folder),
        "cache_bytes": store.num_bytes,
        "cache_max_bytes": store.max_bytes,
    }
    if args.json:
        put_json(args.json, figures)
        return
    print(
        table(
            ["image", "tiles", "encoded", "at hand", "blank", "seconds", "Mpx/s", "cache GB"],
            [[args.image, *_cells(figures)]],
        )
    )


def _cells(figures: dict[str, Any]) -> list[str]:
    counts = ("num_tiles", "num_encoded", "num_at_hand", "num_blank")
    return [
        *(str(figures[name]) for name in counts),
        f"{figures['seconds']:.1f}",
        f"{figures['mpx_per_s']:.2f}",
        f"{figures['cache_bytes'] / 1e9:.2f}",
    ]
