"""``napari-hrsam segment``: one object per image, from clicks and a box."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from napari_hrsam.cli.options import add_command, add_json, add_model, put_json, say, table
from napari_hrsam.geometry import Tile
from napari_hrsam.overlay import draw_overlay
from napari_hrsam.storage.image_files import read_image, write_image, write_mask
from napari_hrsam.storage.tile_source import ArrayImage

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.engine.session import Prediction, Session
    from napari_hrsam.modeling.segmenter import Segmenter


def add_commands(commands: Commands) -> None:
    """Add the command ``segment``."""
    parser = add_command(
        commands,
        "segment",
        summary="draw the mask of one object in each image, from clicks or a box",
        example="napari-hrsam segment cells.png --point 120,96 --point 40,52,0",
    )
    parser.add_argument(
        "images", nargs="+", type=Path, metavar="IMAGE", help="TIFF, PNG, JPEG, .npy"
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
        "--box", type=_box, metavar="Y0,X0,Y1,X1", help="a box around the object, rows first"
    )
    parser.add_argument(
        "--level",
        type=int,
        help="zoom the model looks at: 0 full size, 1 half, -1 enlarged twice (default: automatic)",
    )
    parser.add_argument(
        "--channel-axis", type=int, metavar="AXIS", help="axis that holds separate channels"
    )
    parser.add_argument(
        "--channels",
        type=_channels,
        metavar="R[,G[,B]]",
        help="which channels to show as red, green, blue; one channel is shown grey",
    )
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


def _numbers(text: str, kind: type, form: str) -> list[Any]:
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {form}, got {text!r}") from error


def _point(text: str) -> tuple[float, float, bool]:
    numbers = _numbers(text, float, "Y,X or Y,X,0")
    if len(numbers) not in (2, 3) or (len(numbers) == 3 and numbers[2] not in (0, 1)):
        raise argparse.ArgumentTypeError(f"expected Y,X or Y,X,1 or Y,X,0, got {text!r}")
    return numbers[0], numbers[1], len(numbers) == 2 or numbers[2] == 1


def _box(text: str) -> tuple[float, ...]:
    numbers = _numbers(text, float, "Y0,X0,Y1,X1")
    if len(numbers) != 4:
        raise argparse.ArgumentTypeError(f"expected four numbers Y0,X0,Y1,X1, got {text!r}")
    return tuple(numbers)


def _channels(text: str) -> list[int]:
    numbers: list[int] = _numbers(text, int, "up to three channel numbers")
    return numbers


def _run(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    if not args.points and args.box is None:
        parser.error("expected at least one --point or a --box")
    names = [path.stem for path in args.images]
    if len(set(names)) < len(names):
        parser.error("two images have the same name, so their masks would overwrite each other")
    # All images are read before the model is loaded: a wrong path is told at once.
    images = {path: read_image(path, stack=args.channel_axis is not None) for path in args.images}
    args.out.mkdir(parents=True, exist_ok=True)
    from napari_hrsam.modeling.checkpoints import load_model

    model = load_model(args.model, device=args.device)
    results = []
    for path, array in images.items():
        image = ArrayImage(array, channel_axis=args.channel_axis, channels=args.channels)
        results.append(_segment(model, image, path, args))
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
    model: Segmenter, image: ArrayImage, path: Path, args: argparse.Namespace
) -> dict[str, Any]:
    from napari_hrsam.engine.session import Session

    with Session(model, image) as session:
        seconds = [dict(prediction.seconds) for prediction in _prompt(session, args)]
        prediction, prompts = session.prediction, session.prompts
    assert prediction is not None
    mask = np.zeros(image.shape_yx, dtype=bool)
    mask[prediction.box.slices] = prediction.mask
    mask_path = args.out / f"{path.stem}_mask.{args.format}"
    write_mask(mask_path, mask)
    say(f"wrote {mask_path}")
    overlay_path = None
    if not args.no_overlay:
        overlay_path = args.out / f"{path.stem}_overlay.png"
        height, width = image.shape_yx
        shown = image.read(Tile(level=0, y0=0, x0=0, size_px=max(height, width)))
        write_image(
            overlay_path,
            draw_overlay(shown[:height, :width], mask.astype(np.uint8), (prompts,)),
        )
        say(f"wrote {overlay_path}")
    return {
        "image": str(path),
        "mask": str(mask_path),
        "overlay": None if overlay_path is None else str(overlay_path),
        "area_px": int(mask.sum()),
        "iou": float(prediction.iou),
        "level": prediction.level,
        "encode_s": sum(step["encode_s"] for step in seconds),
        "decode_s": sum(step["decode_s"] for step in seconds),
    }


def _prompt(session: Session, args: argparse.Namespace) -> list[Prediction]:
    predictions = []
    if args.box is not None:
        predictions.append(session.box(args.box, level=args.level))
    for y, x, positive in args.points:
        predictions.append(session.click((y, x), positive=positive, level=args.level))
    return predictions
