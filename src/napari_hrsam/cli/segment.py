"""``napari-hrsam segment``: one object per image, from clicks and a box."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.cli.options import (
    add_cache,
    add_command,
    add_image,
    add_json,
    add_model,
    box_option,
    numbers,
    open_shown,
    put_json,
    say,
    show_progress,
    table,
)
from napari_hrsam.engine.prediction import MAX_DENSE_PX
from napari_hrsam.errors import ImageError
from napari_hrsam.geometry import Box, Tile, level_shape
from napari_hrsam.overlay import draw_overlay
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.images.pictures import write_image, write_mask

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.engine.session import Prediction, Session
    from napari_hrsam.modeling.segmenter import Segmenter
    from napari_hrsam.storage.images.tile_source import PyramidImage

MAX_WHOLE_PX = 2**28
"""Pixels of an image whose mask is written whole; of a larger one it is the object's part."""

MARGIN_PX = 16
"""Room around the object in a mask of a part, in pixels of the level."""

MAX_OVERLAY_PX = 4096
"""Longest side of an overlay of a part; a larger part is shown at a coarser level."""


def add_commands(commands: Commands) -> None:
    """Add the command ``segment``."""
    parser = add_command(
        commands,
        "segment",
        summary="draw the mask of one object in each image, from clicks or a box",
        example="napari-hrsam segment cells.png --point 120,96 --point 40,52,0",
    )
    parser.add_argument(
        "images",
        nargs="+",
        metavar="IMAGE",
        help="PNG, JPEG, .npy, or of any size: a TIFF (OME-TIFF, COG, .svs, ...), or an OME-Zarr "
        "image by its path or URL",
    )
    parser.add_argument(
        "--point",
        dest="points",
        action="append",
        default=[],
        type=_point,
        metavar="Y,X[,1|0]",
        help="a click in pixels, row first; 1 (default) inside the object, 0 outside; repeatable",
    )
    parser.add_argument(
        "--box", type=box_option, metavar="Y0,X0,Y1,X1", help="a box around the object, rows first"
    )
    parser.add_argument(
        "--level",
        type=int,
        help="zoom the model looks at: 0 full size, 1 half, -1 enlarged twice (default: automatic)",
    )
    add_image(parser)
    add_cache(parser, "take embeddings that were made ahead of time from DIR")
    parser.add_argument(
        "--out", type=Path, default=Path(), metavar="DIR", help="where to write (default: here)"
    )
    parser.add_argument(
        "--format", choices=("png", "tif"), default="png", help="of the masks (default png)"
    )
    parser.add_argument("--no-overlay", action="store_true", help="write the masks only")
    add_model(parser)
    add_json(parser)
    parser.set_defaults(run=lambda args: _run(parser, args))


def _point(text: str) -> tuple[float, float, bool]:
    given = numbers(text, float, "Y,X or Y,X,0")
    if len(given) not in (2, 3) or (len(given) == 3 and given[2] not in (0, 1)):
        raise argparse.ArgumentTypeError(f"expected Y,X or Y,X,1 or Y,X,0, got {text!r}")
    return given[0], given[1], len(given) == 2 or given[2] == 1


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.points and args.box is None:
        parser.error("expected at least one --point or a --box")
    names = [Path(path).stem for path in args.images]
    if len(set(names)) < len(names):
        parser.error("two images have the same name, so their masks would overwrite each other")
    # All images are opened before the model is loaded: a wrong path is told at once.
    images = {path: open_shown(path, args) for path in args.images}
    args.out.mkdir(parents=True, exist_ok=True)
    from napari_hrsam.modeling.checkpoints import load_model

    model = load_model(args.model, device=args.device)
    results = [_segment(model, image, path, args) for path, image in images.items()]
    if args.json:
        put_json(args.json, {"model": args.model, "images": results})
        return
    print(
        table(
            ["image", "area px", "IoU (predicted)", "encode ms", "decode ms", "mask"],
            [
                [
                    result["image"],
                    str(result["area_px"]),
                    f"{result['iou']:.2f}",
                    f"{result['encode_s'] * 1e3:.0f}",
                    f"{result['decode_s'] * 1e3:.0f}",
                    result["mask"],
                ]
                for result in results
            ],
        )
    )


def _segment(
    model: Segmenter, image: PyramidImage, path: str, args: argparse.Namespace
) -> dict[str, Any]:
    from napari_hrsam.engine.remote_encoder import configured_server
    from napari_hrsam.engine.session import Session
    from napari_hrsam.storage.embeddings.store import EmbeddingStore

    store = EmbeddingStore(args.cache, read_only=True)
    kept = store if store.folder.is_dir() else None
    with Session(model, image, embeddings=kept, remote=configured_server()) as session:
        seconds = [dict(prediction.seconds) for prediction in _prompt(session, args)]
        prediction = session.refine_outline(show_progress if session.needs_refining else None)
        prompts = session.prompts
    box = _written(prediction, image)
    mask = prediction.region.read(box)
    stem = args.out / Path(path).stem
    mask_path = stem.with_name(f"{stem.name}_mask.{args.format}")
    write_mask(mask_path, mask)
    say(f"wrote {mask_path}{_where(box, image)}")
    overlay_path = None
    if not args.no_overlay:
        overlay_path = stem.with_name(f"{stem.name}_overlay.png")
        write_image(overlay_path, _overlay(image, box, mask, prompts, args.plane))
        say(f"wrote {overlay_path}")
    return {
        "image": path,
        "mask": str(mask_path),
        "mask_box": [box.y0, box.x0, box.y1, box.x1],
        "overlay": None if overlay_path is None else str(overlay_path),
        "area_px": int(mask.sum()),
        "iou": float(prediction.iou),
        "level": prediction.level,
        "encode_s": sum(step["encode_s"] for step in seconds),
        "decode_s": sum(step["decode_s"] for step in seconds),
    }


def _written(prediction: Prediction, image: PyramidImage) -> Box:
    """Choose the part of the image that is written: all of it, or some room around the object."""
    if math.prod(image.shape_yx) <= MAX_WHOLE_PX:
        return Box.of_shape(image.shape_yx)
    step = prediction.level_downsample
    box = (prediction.extent if prediction else prediction.box).expand(MARGIN_PX * step)
    # Masks of a part begin at whole pixels of the level they were made at.
    edges = (box.y0 // step, box.x0 // step, -(-box.y1 // step), -(-box.x1 // step))
    box = Box(*(edge * step for edge in edges)).clip(image.shape_yx)
    if box.area > MAX_DENSE_PX:
        raise ImageError(
            f"expected an object of at most {MAX_DENSE_PX:,} pixels for one mask file, got one "
            f"over {box}; commit it to labels in a Session, or look from further away with a "
            "larger --level"
        )
    return box


def _where(box: Box, image: PyramidImage) -> str:
    """Say which part of the image a mask covers, if not all of it."""
    if box.shape_yx == image.shape_yx:
        return ""
    return f" (rows {box.y0} to {box.y1}, columns {box.x0} to {box.x1} of {image.shape_yx})"


def _overlay(
    image: PyramidImage,
    box: Box,
    mask: NDArray[np.bool_],
    prompts: Prompts,
    plane: tuple[int, ...],
) -> NDArray[np.uint8]:
    """Draw the mask and the clicks over a part of the image, shrunk if it is large."""
    level = 0
    while box.shape_yx != image.shape_yx and max(level_shape(box.shape_yx, level)) > MAX_OVERLAY_PX:
        level += 1
    step = 2**level
    tile = Tile(level, box.y0 // step, box.x0 // step, max(level_shape(box.shape_yx, level)), plane)
    small = mask[::step, ::step].astype(np.uint8)
    height, width = small.shape
    points = tile.to_tile(np.array(prompts.points_yx).reshape(-1, 2))
    clicks = Prompts(points_yx=tuple(map(tuple, points)), labels=prompts.labels)
    return draw_overlay(image.read(tile)[:height, :width], small, (clicks,))


def _prompt(session: Session, args: argparse.Namespace) -> list[Prediction]:
    predictions = []
    if args.box is not None:
        predictions.append(session.box(args.box, level=args.level, plane=args.plane))
    for y, x, positive in args.points:
        predictions.append(session.click((y, x), positive, args.level, args.plane))
    return predictions
