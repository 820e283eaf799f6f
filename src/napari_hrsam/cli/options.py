"""What the commands share: options, tables, JSON and progress."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from napari_hrsam.cluster.crew import DaskCrew
    from napari_hrsam.storage.images.tile_source import PyramidImage

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]  # noqa: SLF001  no public name

STDOUT = Path("-")


def add_command(
    commands: Commands,
    name: str,
    *,
    summary: str,
    example: str,
    is_verb: bool = False,
) -> argparse.ArgumentParser:
    """Add a command, or a verb of one, with its one-line summary, an example, and ``--debug``."""
    parser = commands.add_parser(
        name,
        help=summary,
        description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        # What was said before the verb is not taken back.
        default=argparse.SUPPRESS if is_verb else False,
        help="log everything and show tracebacks of errors",
    )
    return parser


def add_json(parser: argparse.ArgumentParser) -> None:
    """Add ``--json [FILE]``: figures as JSON, on stdout or in a file."""
    parser.add_argument(
        "--json",
        nargs="?",
        const=STDOUT,
        type=_json_target,
        metavar="FILE",
        help="write the figures as JSON to FILE (which ends in .json), or to stdout with - or "
        "no FILE, in place of the table",
    )


def add_model(parser: argparse.ArgumentParser, *, default: str | None = "hrsam-tiny") -> None:
    """Add ``--model`` and ``--device``."""
    parser.add_argument(
        "--model",
        default=default,
        metavar="NAME|PATH",
        help="name from `napari-hrsam models`, or a weight file"
        + (f" (default {default})" if default else ""),
    )
    parser.add_argument(
        "--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default auto)"
    )


def add_image(parser: argparse.ArgumentParser, *, plane: bool = True) -> None:
    """Add what a model is shown: ``--plane``, ``--channel-axis``, ``--channels``, ``--limits``."""
    if plane:
        parser.add_argument(
            "--plane",
            type=_plane,
            default=(),
            metavar="T[,Z]",
            help="which plane of a stack: one number per axis besides rows, columns and channels",
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
        "--limits",
        type=_limits,
        metavar="LOW,HIGH",
        help="values shown as black and white, such as the contrast limits in napari (default: "
        "those of the file, else found from the whole image)",
    )


def add_cache(parser: argparse.ArgumentParser, use: str) -> None:
    """Add ``--cache DIR``: a folder of embeddings."""
    parser.add_argument(
        "--cache",
        type=Path,
        metavar="DIR",
        help=f"{use} (default: the folder of embeddings that `napari-hrsam info` names)",
    )


def add_workers(parser: argparse.ArgumentParser) -> None:
    """Add ``--workers``, ``--scheduler``, ``--cluster`` and ``--shard``."""
    parser.add_argument(
        "--workers",
        type=positive_int,
        metavar="N",
        help="processes, of one thread each (default 1); with --cluster, how many "
        "workers to ask it for",
    )
    where = parser.add_mutually_exclusive_group()
    where.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="use the workers of a Dask scheduler, tcp://HOST:PORT",
    )
    where.add_argument(
        "--cluster",
        type=Path,
        metavar="FILE",
        help="start a cluster, and end it: a YAML file with a class of dask-jobqueue, such as "
        "SLURMCluster, and its arguments",
    )
    where.add_argument(
        "--shard",
        type=_shard,
        metavar="I/N",
        help="do only part I of N, counted from 0; N commands, on machines that share the files, "
        "are one run",
    )
    parser.set_defaults(misused=parser.error)


def workers_of(args: argparse.Namespace) -> int | DaskCrew:
    """Return the number of processes, or the cluster, that the options of `add_workers` name."""
    if args.scheduler is None and args.cluster is None:
        return args.workers or 1
    if args.scheduler is not None and args.workers is not None:
        args.misused("expected --scheduler or --workers, got both; start workers at the scheduler")
    from napari_hrsam._optional import require

    require("distributed", extra="cluster")
    from napari_hrsam.cluster.crew import DaskCrew

    return DaskCrew(scheduler=args.scheduler, cluster=args.cluster, workers=args.workers)


def _shard(text: str) -> tuple[int, int]:
    part, _, num = text.partition("/")
    if not (part.isdecimal() and num.isdecimal() and int(part) < int(num)):
        raise argparse.ArgumentTypeError(
            f"expected I/N with I from 0 to N - 1, such as 0/3, got {text!r}"
        )
    return int(part), int(num)


def numbers(text: str, kind: type, form: str) -> list[Any]:
    """Read numbers between commas; ``form`` says how they should look."""
    try:
        return [kind(part) for part in text.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected {form}, got {text!r}") from error


def box_option(text: str) -> tuple[float, ...]:
    """Read a box Y0,X0,Y1,X1."""
    given = numbers(text, float, "Y0,X0,Y1,X1")
    if len(given) != 4:
        raise argparse.ArgumentTypeError(f"expected four numbers Y0,X0,Y1,X1, got {text!r}")
    return tuple(given)


def _channels(text: str) -> list[int]:
    given: list[int] = numbers(text, int, "up to three channel numbers")
    return given


def _limits(text: str) -> tuple[float, float]:
    given = numbers(text, float, "LOW,HIGH")
    if len(given) != 2 or not given[0] < given[1]:
        raise argparse.ArgumentTypeError(f"expected LOW,HIGH with LOW below HIGH, got {text!r}")
    return given[0], given[1]


def open_shown(path: str, args: argparse.Namespace) -> PyramidImage:
    """Open an image as the options of `add_image` say."""
    from napari_hrsam.storage.images.opening import open_image

    return open_image(
        path,
        channel_axis=args.channel_axis,
        channels=args.channels,
        contrast_limits=args.limits,
    )


def _plane(text: str) -> tuple[int, ...]:
    return tuple(numbers(text, int, "whole numbers T or T,Z"))


def _json_target(text: str) -> Path:
    path = Path(text)
    if path != STDOUT and path.suffix.lower() != ".json":
        raise argparse.ArgumentTypeError(
            f"expected a file that ends in .json, or - for stdout, got {text!r}"
        )
    return path


def positive_int(text: str) -> int:
    """Read a whole number of 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of 1 or more, got {text!r}")
    return int(text)


def put_json(target: Path, figures: Any) -> None:
    """Write figures as JSON to a file, or to stdout for ``-``."""
    text = json.dumps(figures, indent=2, allow_nan=False)
    if target == STDOUT:
        print(text)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(text + "\n", encoding="utf-8")
    say(f"wrote {target}")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Lay out text cells in columns: the first to the left, numbers to the right."""
    cells = [list(head), *map(list, rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    numeric = [
        column > 0 and all(_is_number(row[column]) for row in rows) for column in range(len(head))
    ]
    lines = [
        "  ".join(
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, numeric, strict=True)
        ).rstrip()
        for row in cells
    ]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def _is_number(text: str) -> bool:
    return text in ("-", "") or text.replace(".", "", 1).replace(",", "").lstrip("-").isdigit()


def say(text: str) -> None:
    """Tell the user something on stderr."""
    print(text, file=sys.stderr, flush=True)


def show_progress(done: int, total: int) -> None:
    """Count on stderr: rewritten in place on a terminal, every tenth otherwise."""
    if sys.stderr.isatty():
        print(f"\r{done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)
    elif done == total or done % max(1, total // 10) == 0:
        say(f"{done}/{total}")
