"""The table of scores in the README is made, not typed."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
ROW = {
    "noc80": 2.0,
    "noc85": 3.25,
    "noc90": 4.0,
    "iou1": 0.7,
    "iou3": 0.75,
    "iou5": 0.8,
    "iou10": None,
    "drops": 0.1,
    "num_objects": 5,
}


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = ROOT / "scripts" / "readme_evaluation.py"
    spec = importlib.util.spec_from_file_location("readme_evaluation", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_table_has_a_row_for_every_domain_and_the_mean(script: ModuleType) -> None:
    one = {"model": "m", "domains": {"a": ROW, "b": ROW}, "mean_of_domains": ROW, "num_clicks": 20}
    other = {**one, "model": "walker"}
    table = script.evaluation_table({**one, "baselines": [other]}, "the command")
    lines = [line for line in table.splitlines() if line.startswith("|")]
    assert lines[0].startswith("| domain | objects | m IoU@1 | m IoU@3 |")
    assert lines[0].endswith("| walker IoU@1 | walker IoU@3 | walker IoU@5 |")
    assert lines[2] == "| a | 5 | 0.70 | 0.75 | 0.80 | - | 3.25 | 0.10 | 0.70 | 0.75 | 0.80 |"
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| a", "| b", "| **mean of domains**"]
    assert "```\nthe command\n```" in table


def test_readme_keeps_everything_around_the_table(script: ModuleType) -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    once = script.insert(text, "TABLE")
    assert f"{script.BEGIN}\nTABLE\n{script.END}" in once
    assert script.insert(once, "TABLE") == once
    assert once.startswith(text.partition(script.BEGIN)[0])
    assert once.endswith(text.partition(script.END)[2])


def test_readme_without_markers_is_refused(script: ModuleType) -> None:
    with pytest.raises(ValueError, match="markers"):
        script.insert("no markers", "TABLE")
