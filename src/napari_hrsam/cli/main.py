"""Entry point: read the arguments, run the command, turn errors into one line and a status."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Sequence

import napari_hrsam
from napari_hrsam.cli import (
    about,
    auto,
    bench,
    convert,
    demo,
    embed,
    evaluate,
    fine_tune,
    labels,
    replay,
    sample,
    segment,
    serve,
    train,
)
from napari_hrsam.errors import HRSAMError

FINE, FAILED, INTERRUPTED = 0, 1, 130


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; loads neither torch nor napari."""
    parser = argparse.ArgumentParser(
        prog="napari-hrsam",
        description="Click-to-mask segmentation of large scientific images.",
        epilog="Exit status: 0 fine, 1 failed, 2 misused. Progress goes to stderr.",
    )
    parser.add_argument(
        "--version", action="version", version=f"napari-hrsam {napari_hrsam.__version__}"
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in (
        demo,
        segment,
        embed,
        auto,
        labels,
        replay,
        serve,
        sample,
        evaluate,
        fine_tune,
        train,
        convert,
        bench,
        about,
    ):
        module.add_commands(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Parameters
    ----------
    argv : sequence of str, optional
        Arguments without the program's name; by default those of the process.

    Returns
    -------
    int
        Exit status: 0 fine, 1 failed, 130 interrupted. Misuse ends in SystemExit(2).
    """
    args = build_parser().parse_args(argv)
    logging.basicConfig(level=logging.DEBUG if args.debug else logging.WARNING, stream=sys.stderr)
    try:
        # A command that has looked at something returns its own verdict.
        status: int | None = args.run(args)
    except (HRSAMError, OSError) as error:
        if args.debug:
            raise
        print(f"napari-hrsam: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        print("napari-hrsam: interrupted", file=sys.stderr)
        return INTERRUPTED
    return FINE if status is None else status
