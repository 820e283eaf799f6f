"""Report the largest differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import pytest
from parity_folders import ErrorTable

_PROPERTY = "parity"


@pytest.fixture
def parity_errors(record_property: Callable[[str, object], None]) -> Iterator[ErrorTable]:
    """Where comparisons note how far they are off."""
    table = ErrorTable()
    yield table
    # With the test's report the rows come from the process that ran it.
    record_property(_PROPERTY, [(*key, *found) for key, found in table.rows.items()])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    largest: dict[tuple[str, str], tuple[float, float]] = {}
    for report in itertools.chain.from_iterable(terminalreporter.stats.values()):
        for name, rows in getattr(report, "user_properties", ()):
            for folder, quantity, *found in rows if name == _PROPERTY else ():
                key = folder, quantity
                largest[key] = max(largest.get(key, (0.0, 0.0)), tuple(found))
    if not largest:
        return
    terminalreporter.section("parity")
    terminalreporter.line(f"{'folder':32} {'quantity':24} {'max error':>10} {'tolerance':>10}")
    for (folder, quantity), (error, tolerance) in sorted(largest.items()):
        terminalreporter.line(f"{folder:32} {quantity:24} {error:10.2g} {tolerance:10.2g}")
