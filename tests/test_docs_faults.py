"""The table of faults names tests that exist, and leaves no fault out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs/faults.md").read_text(encoding="utf-8")
ROWS = {
    row.split("|")[1].strip(): re.findall(r"`([\w/]+\.py::\w+)`", row)
    for row in PAGE.splitlines()
    if re.match(r"\| [WFK]\d", row)
}


def test_every_fault_has_a_row() -> None:
    numbers = {"W": 14, "F": 15, "K": 20}
    assert list(ROWS) == [f"{kind}{n + 1}" for kind, num in numbers.items() for n in range(num)]


@pytest.mark.parametrize("fault", ROWS)
def test_every_fault_has_tests_that_exist(fault: str) -> None:
    """Looked up in the text: to collect them would import torch and napari, which takes long."""
    assert ROWS[fault]
    for test in ROWS[fault]:
        path, _, name = test.partition("::")
        text = (TESTS / path).read_text(encoding="utf-8")
        assert f"\ndef {name}(" in text, test
