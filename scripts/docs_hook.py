"""Pages of the documentation site that are made: cards, commands, public names, keys."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
HEAD = """# Command line

`napari-hrsam COMMAND --help` says the same. The exit status is 0 (fine), 1 (failed) or 2 (misused);
progress goes to stderr.
"""
REFERENCE = """# Python, in full

Everything here is `napari_hrsam.NAME`. Order is (y, x), in level-0 pixels, pixel centres at
integers; boxes are half-open (y0, x0, y1, x1).
"""
SITE = "https://github.com/napari-hrsam/napari-hrsam/blob/main"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of other files."""
    for card in sorted((ROOT / "weights").glob("*.md")):
        text = card.read_text(encoding="utf-8")
        if card.name == "README.md":
            continue
        # Links between files of the repository lead there.
        text = text.replace("](README.md)", f"]({SITE}/weights/README.md)")
        text = text.replace("](../", f"]({SITE}/")
        files.append(File.generated(config, f"cards/{card.name}", content=text))
    made = {"command-line.md": command_line, "reference.md": reference, "keys.md": keys}
    for name, make in made.items():
        files.append(File.generated(config, name, content=make()))
    return files


def reference() -> str:
    """List the public names, for mkdocstrings to fill in."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from api_page import GROUPS

    parts = [REFERENCE]
    for title, names in GROUPS.items():
        parts.append(f"## {title}\n")
        parts += [
            f"::: napari_hrsam.{name}\n    options:\n      heading_level: 3\n" for name in names
        ]
    return "\n".join(parts)


def keys() -> str:
    """Take the keys from the README."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return "# Keys and mouse\n" + text.partition("## Keys and mouse\n")[2].partition("\n## ")[0]


def command_line() -> str:
    """Write down what `--help` says of every command."""
    sys.path.insert(0, str(ROOT / "src"))
    from napari_hrsam.cli.main import build_parser

    parser = build_parser()
    parts = [HEAD]
    for name, command in _commands(parser):
        parts.append(f"## {name}\n\n```text\n{command.format_help().rstrip()}\n```\n")
        for verb, sub in _commands(command):
            parts.append(f"### {name} {verb}\n\n```text\n{sub.format_help().rstrip()}\n```\n")
    return "\n".join(parts)


def _commands(parser: argparse.ArgumentParser) -> list[tuple[str, argparse.ArgumentParser]]:
    # argparse tells its commands nowhere else.
    actions: list[Any] = [
        action
        for action in parser._actions  # noqa: SLF001
        if isinstance(action, argparse._SubParsersAction)  # noqa: SLF001
    ]
    return [pair for action in actions for pair in action.choices.items()]
