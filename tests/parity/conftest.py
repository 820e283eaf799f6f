"""Report deselected parity folders and the largest differences."""

from __future__ import annotations

import pytest
from parity_folders import ErrorTable

_TABLE = pytest.StashKey[ErrorTable]()
_DESELECTED = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "parity_deselected(reason): a parity folder that cannot run in this version"
    )
    config.stash[_TABLE] = ErrorTable()
    config.stash[_DESELECTED] = []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out, kept = [], []
    for item in items:
        marker = item.get_closest_marker("parity_deselected")
        if marker is None:
            kept.append(item)
        else:
            left_out.append(item)
            config.stash[_DESELECTED].append(f"{item.name}: {marker.args[0]}")
    if left_out:
        items[:] = kept
        config.hook.pytest_deselected(items=left_out)


@pytest.fixture
def parity_errors(request: pytest.FixtureRequest) -> ErrorTable:
    """Where comparisons note how far they are off."""
    return request.config.stash[_TABLE]


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    deselected, rows = config.stash[_DESELECTED], config.stash[_TABLE].rows
    if deselected or rows:
        terminalreporter.section("parity")
    for line in deselected:
        terminalreporter.line(f"deselected {line}")
    if not rows:
        return
    terminalreporter.line(f"{'folder':32} {'quantity':24} {'max error':>10} {'tolerance':>10}")
    for (folder, quantity), (error, tolerance) in sorted(rows.items()):
        terminalreporter.line(f"{folder:32} {quantity:24} {error:10.2g} {tolerance:10.2g}")
