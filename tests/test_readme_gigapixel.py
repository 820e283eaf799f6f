"""The figures of large images in the README are those of the benchmark's file."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "readme_gigapixel.py"
    spec = importlib.util.spec_from_file_location("readme_gigapixel", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_size_has_a_column_and_every_figure_a_line(script: ModuleType) -> None:
    sizes = [{"size_px": 10_000, "first_s": 1.234}, {"size_px": 200_000, "above_mb": 99.6}]
    figures = {
        "summary": sizes,
        "settings": {"model": "m"},
        "cpu_count": 2,
        "cpu": "Processor",
        "command": "the command",
    }
    lines = script.gigapixel_table(figures).splitlines()
    assert lines[0] == "|  | 10,000 px | 200,000 px |"
    assert lines[2] == "| first mask, nothing encoded, model loaded | 1.23 s |  |"
    assert lines[3] == "| peak memory above napari showing the image |  | 100 MB |"
    assert "the command" in lines


def test_the_readme_shows_the_figures_that_were_measured(script: ModuleType) -> None:
    text = (ROOT / "README.md").read_text()
    assert (
        script.insert(text, script.gigapixel_table(json.loads(script.RESULTS.read_text()))) == text
    )


def test_a_readme_without_markers_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="expected the markers"):
        script.insert("no markers", "table")
