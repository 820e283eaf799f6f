"""README and documentation: their code, commands and links are true."""

from __future__ import annotations

import ast
import re
import shlex
from pathlib import Path

import pytest

import napari_hrsam
from napari_hrsam.cli.main import build_parser

ROOT = Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]

MADE = ("command-line.md", "reference.md", "keys.md")
"""Pages that `scripts/docs_hook.py` makes, beside the cards; `make docs` fails on a wrong link."""

FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)#\s]+)(#[^)]*)?\)")


def blocks(page: Path, *languages: str) -> list[str]:
    found = FENCED.findall(page.read_text(encoding="utf-8"))
    return [text for language, text in found if language in languages]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_is_well_formed_and_its_names_are_public(page: Path) -> None:
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "hrsam"
            ):
                assert node.attr in [*napari_hrsam.__all__, "sample"], text
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("napari_hrsam"):
                path = ROOT / "src" / Path(*(node.module or "").split("."))
                assert path.with_suffix(".py").is_file() or path.is_dir(), node.module


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_understood(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parser = build_parser()
    for line in "\n".join(blocks(page, "", "text", "bash")).replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words[:1] != ["napari-hrsam"]:
            continue
        try:
            parser.parse_args(words[1:])
        except SystemExit as stop:
            if stop.code:
                pytest.fail(f"{line}\n{capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_to_files(page: Path) -> None:
    repository = "https://github.com/napari-hrsam/napari-hrsam/blob/main/"
    raw = "https://raw.githubusercontent.com/napari-hrsam/napari-hrsam/main/"
    for target, _ in LINK.findall(page.read_text(encoding="utf-8")):
        if target.startswith((repository, raw)):
            assert (ROOT / target.removeprefix(repository).removeprefix(raw)).exists(), target
        elif "://" not in target and not target.startswith(("cards/", "mailto:")):
            path = (page.parent / target).resolve()
            assert path.exists() or path.name in MADE, target
