"""``napari-hrsam labels``: verify, compact, export and import label images of any size."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from napari_hrsam.cli.options import add_command, add_json, put_json, say, show_progress, table
from napari_hrsam.geometry import Box

if TYPE_CHECKING:
    from napari_hrsam.cli.options import Commands
    from napari_hrsam.storage.labels.check import LabelsReport

MAX_ROWS = 50
"""Problems shown in the table; JSON holds all."""


def add_commands(commands: Commands) -> None:
    """Add the command ``labels`` with its verbs."""
    parser = add_command(
        commands,
        "labels",
        summary="verify, compact, export and import OME-Zarr label images of any size",
        example="napari-hrsam labels verify slide.ome.zarr cells\n"
        "  napari-hrsam labels verify slide.ome.zarr cells --repair --json report.json\n"
        "  napari-hrsam labels compact slide.ome.zarr cells --out cells-to-share.zarr\n"
        "  napari-hrsam labels export slide.ome.zarr cells --out cells.geojson\n"
        "  napari-hrsam labels import slide.ome.zarr cells qupath.geojson",
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)
    _add_verify(verbs)
    _add_compact(verbs)
    _add_export(verbs)
    _add_import(verbs)


def _add_verb(verbs: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    parser = add_command(verbs, name, summary=summary, example=example, is_verb=True)
    parser.add_argument(
        "path", metavar="PATH", help="an OME-Zarr image, or a folder of labels alone"
    )
    parser.add_argument("name", metavar="NAME", help="name of the label image in it")
    add_json(parser)
    return parser


def _add_verify(verbs: Commands) -> None:
    parser = _add_verb(
        verbs,
        "verify",
        "check metadata, chunks, levels and journal; exit status 1 if something is wrong",
        "napari-hrsam labels verify slide.ome.zarr cells",
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help="complete what a crash left half done, and write coarser levels anew where they "
        "differ from the finer ones; full size is never changed",
    )
    parser.set_defaults(run=_verify)


def _add_compact(verbs: Commands) -> None:
    parser = _add_verb(
        verbs,
        "compact",
        "write a copy in few files (OME-Zarr 0.5 with shards), compared with the original",
        "napari-hrsam labels compact slide.ome.zarr cells --out cells-to-share.zarr",
    )
    parser.add_argument(
        "--out", required=True, metavar="COPY", help="folder of the copy; new or empty"
    )
    parser.set_defaults(run=_compact)


def _add_export(verbs: Commands) -> None:
    parser = _add_verb(
        verbs,
        "export",
        "write the objects as GeoJSON, GeoPackage or COCO, as a label TIFF, or as a table",
        "napari-hrsam labels export slide.ome.zarr cells --out cells.csv\n"
        "  napari-hrsam labels export slide.ome.zarr cells --out part.tif --box 0,0,4096,4096",
    )
    parser.add_argument(
        "--format",
        choices=("geojson", "coco", "tiff", "csv", "gpkg"),
        help="default: by the suffix of FILE: .geojson, .json (COCO), .tif, .csv, .gpkg",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="what to write")
    parser.add_argument("--force", action="store_true", help="overwrite what is there")
    parser.add_argument(
        "--box", type=_box, metavar="Y0,X0,Y1,X1", help="only this part, in full-size pixels"
    )
    parser.add_argument(
        "--labels",
        type=ids_option,
        metavar="ID[,ID...]",
        help="only these objects, e.g. 3,8 or 1-20",
    )
    parser.add_argument(
        "--plane",
        type=_plane,
        default=(),
        metavar="T[,Z]",
        help="which plane of a stack: one number per axis besides rows and columns",
    )
    parser.add_argument(
        "--units",
        choices=("pixel", "physical", "lonlat"),
        help="of GeoJSON: pixel as in QuPath (default), the unit of the OME metadata, or longitude "
        "and latitude (RFC 7946) of labels of a map",
    )
    parser.add_argument(
        "--georeference",
        metavar="MAP",
        help="of GeoJSON in lonlat, GeoPackage and TIFF: the GeoTIFF that the labels were drawn on "
        "(default: as they tell themselves)",
    )
    parser.add_argument(
        "--simplify",
        dest="simplify_px",
        type=_distance,
        metavar="PX",
        help="of GeoJSON and GeoPackage: leave out corners no farther than this from the outline "
        "(default: exact)",
    )
    parser.add_argument(
        "--object-type",
        choices=("annotation", "detection"),
        help="of GeoJSON: what QuPath makes of the objects (default annotation)",
    )
    parser.add_argument(
        "--segmentation",
        choices=("rle", "counts", "polygons"),
        help="of COCO: compressed run lengths (default), plain ones, or polygons where there are "
        "no holes",
    )
    parser.add_argument("--level", type=_level, help="of TIFF: 0 full size (default), 1 half, ...")
    parser.set_defaults(run=lambda args: _export(parser, args))


def _add_import(verbs: Commands) -> None:
    parser = _add_verb(
        verbs,
        "import",
        "draw the objects of a GeoJSON or COCO file, each as one commit; exit status 1 if some "
        "were skipped",
        "napari-hrsam labels import slide.ome.zarr cells qupath.geojson\n"
        "  napari-hrsam labels import objects.zarr cells coco.json --like a.png --image a.png",
    )
    parser.add_argument("file", metavar="FILE", help="GeoJSON, QuPath's or ours, or COCO")
    parser.add_argument(
        "--like",
        metavar="IMAGE",
        help="make the labels, if they are not there, for this image; not needed where PATH is one",
    )
    parser.add_argument(
        "--keep-ids", action="store_true", help="give objects the file's ids where they are free"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="take over pixels of other objects"
    )
    parser.add_argument(
        "--allow-outside",
        action="store_true",
        help="take a file of an image of another size; cut objects at the border",
    )
    parser.add_argument(
        "--offset",
        type=_offset,
        metavar="Y,X",
        help="where the file's first pixel lies in the labels, in full-size pixels (default: where "
        "the file says, else 0,0; write --offset=-8,0 for negative ones)",
    )
    parser.add_argument(
        "--plane",
        type=_plane,
        metavar="T[,Z]",
        help="which plane of a stack all objects are drawn on (default: as the file says)",
    )
    parser.add_argument("--image", metavar="NAME", help="of COCO with several images: which one")
    parser.set_defaults(run=_import)


def _numbers(text: str, form: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {form}, got {text!r}") from error


def _box(text: str) -> Box:
    form = "four whole numbers Y0,X0,Y1,X1, upper left corner first"
    numbers = _numbers(text, form)
    if len(numbers) != 4 or numbers[0] >= numbers[2] or numbers[1] >= numbers[3]:
        raise argparse.ArgumentTypeError(f"expected {form}, got {text!r}")
    return Box(*numbers)


def _offset(text: str) -> tuple[int, int]:
    form = "two whole numbers Y,X"
    numbers = _numbers(text, form)
    if len(numbers) != 2:
        raise argparse.ArgumentTypeError(f"expected {form}, got {text!r}")
    return numbers[0], numbers[1]


def _plane(text: str) -> tuple[int, ...]:
    return _numbers(text, "whole numbers T or T,Z")


def _level(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a whole number of 0 or more, got {text!r}")
    return int(text)


def _distance(text: str) -> float:
    try:
        distance = float(text)
    except ValueError:
        distance = -1
    if not 0 <= distance < 1e9:
        raise argparse.ArgumentTypeError(f"expected pixels, 0 or more, got {text!r}")
    return distance


def ids_option(text: str) -> frozenset[int]:
    """Read ids between commas, and ranges of them."""
    ids: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if not (first.isdecimal() and (last or first).isdecimal()):
            raise argparse.ArgumentTypeError(f"expected labels such as 3,8 or 1-20, got {text!r}")
        ids.update(range(int(first), int(last or first) + 1))
    return frozenset(ids)


def _verify(args: argparse.Namespace) -> int:
    from napari_hrsam.storage.labels.check import verify_labels
    from napari_hrsam.storage.labels.report import problem_cells, summary

    report = verify_labels(args.path, args.name, repair=args.repair, progress=show_progress)
    if args.json:
        put_json(args.json, _report_figures(report))
    elif report.problems:
        shown = report.problems[:MAX_ROWS]
        print(table(["kind", "level", "y0,x0,y1,x1", "problem"], [problem_cells(p) for p in shown]))
        if len(report.problems) > len(shown):
            print(f"and {len(report.problems) - len(shown)} more; --json lists all")
    for note in report.notes:
        say(f"note: {note}")
    say(summary(report))
    return 0 if report.is_sound else 1


def _report_figures(report: LabelsReport) -> dict[str, Any]:
    from napari_hrsam.storage.labels.report import ends

    problems = [
        {**asdict(problem), "box": None if problem.box is None else ends(problem.box)}
        for problem in report.problems
    ]
    return {"is_sound": report.is_sound, **asdict(report), "problems": problems}


def _compact(args: argparse.Namespace) -> None:
    from napari_hrsam.storage.labels.compact import compact_labels

    done = compact_labels(args.path, args.name, args.out, progress=show_progress)
    if args.json:
        put_json(args.json, asdict(done))
    else:
        rows = [
            ["files", f"{done.source_num_files:,}", f"{done.num_files:,}"],
            ["bytes", f"{done.source_num_bytes:,}", f"{done.num_bytes:,}"],
            ["OME-Zarr version", done.source_version, done.version],
        ]
        print(table(["what", "original", "copy"], rows))
    if done.source_version != done.version:
        say(
            f"the original is OME-Zarr {done.source_version}, whose zarr v2 has no shards: the "
            f"copy is OME-Zarr {done.version} on zarr v3"
        )
    say(f"wrote {done.path}; every pixel of every level is equal")


def _export(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    from napari_hrsam.storage.export.formats import OPTIONS, SUFFIXES, export_labels

    chosen = args.format or SUFFIXES.get(args.out.suffix.lower())
    if chosen is None:
        parser.error(
            f"expected --format, or a FILE that ends in {', '.join(SUFFIXES)}, got {args.out}"
        )
    options = {key: getattr(args, key) for key in OPTIONS}
    for key, owners in OPTIONS.items():
        if options[key] is not None and chosen not in owners:
            option = key.removesuffix("_px").replace("_", "-")
            parser.error(f"--{option} is for {' or '.join(owners)}, not for {chosen}")
    done = export_labels(
        args.path,
        args.name,
        args.out,
        file_format=chosen,
        box=args.box,
        labels=args.labels,
        plane=args.plane,
        overwrite=args.force,
        progress=show_progress,
        **options,
    )
    if args.json:
        put_json(args.json, {"format": chosen, **asdict(done)})
    else:
        print(
            table(
                ["format", "objects", "bytes", "file"],
                [[chosen, f"{done.num_objects:,}", f"{done.num_bytes:,}", done.path]],
            )
        )
    say(f"wrote {done.path}")


def _import(args: argparse.Namespace) -> int:
    from napari_hrsam.storage.images.opening import open_image
    from napari_hrsam.storage.importing.formats import require_objects
    from napari_hrsam.storage.label_image import open_labels, open_or_create_labels
    from napari_hrsam.storage.labels.names import local_folder

    # Before labels are made for it.
    require_objects(args.file)
    path = local_folder(args.path)
    if (path / "labels" / args.name).is_dir():
        opened = open_labels(path, args.name)
    else:
        opened = open_or_create_labels(path, args.name, args.like and open_image(args.like))
    with opened as labels:
        done = labels.import_objects(
            args.file,
            image=args.image,
            keep_ids=args.keep_ids,
            overwrite=args.overwrite,
            allow_outside=args.allow_outside,
            offset_yx=args.offset,
            plane=args.plane,
            progress=show_progress,
        )
    if args.json:
        put_json(args.json, {"num_objects": done.num_objects, **asdict(done)})
    for line in done.lines(max_skipped=MAX_ROWS):
        say(line)
    return 1 if done.num_skipped else 0
