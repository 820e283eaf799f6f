"""Settings that every test needs before napari, Qt or torch is imported.

With ``--without-torch`` the tests run where torch is not installed: what asks for it is left out,
and named at the end. Only an import of torch leaves a test out, never another failure.
"""

from __future__ import annotations

import ast
import os
import sys
import uuid
from collections import Counter
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import hypothesis
import pytest

TESTS = Path(__file__).parent
SUPPORT = TESTS / "support"
"""What tests of several folders use."""
NEEDS_TORCH = "needs torch"

# napari's viewer fixture resets the settings: without this it would wipe the user's own file.
os.environ["NAPARI_CONFIG"] = ""
os.environ.setdefault("NAPARI_ENSURE_PLUGIN_MAIN_THREAD", "1")
os.environ.setdefault("QT_API", "pyside6")

# No test depends on the machine's speed.
hypothesis.settings.register_profile("any speed", deadline=None)
hypothesis.settings.load_profile("any speed")


@pytest.fixture(scope="session", autouse=True)
def _torch_threads(pytestconfig: pytest.Config) -> None:
    """Leave other work on the machine alone, and give one result whatever its size."""
    if pytestconfig.getoption("without_torch"):
        return
    import torch

    # Processes that pytest-xdist runs beside one another share the cores.
    torch.set_num_threads(1 if "PYTEST_XDIST_WORKER" in os.environ else 2)


@pytest.fixture(autouse=True)
def _own_folders(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Neither the user's embeddings and models nor those of another test are found."""
    for variable, name in (("EMBEDDINGS", "embeddings"), ("MODELS", "models")):
        place = tmp_path_factory.getbasetemp() / name / uuid.uuid4().hex
        monkeypatch.setenv(f"NAPARI_HRSAM_{variable}", str(place))


@pytest.fixture(scope="session")
def untrained_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """hrsam-tiny as it is initialised: a weight file that needs no training."""
    import torch

    from napari_hrsam.modeling.models import MODELS
    from napari_hrsam.modeling.saving import save_weights
    from napari_hrsam.modeling.segmenter import Segmenter

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "untrained.safetensors"
    save_weights(Segmenter(MODELS["hrsam-tiny"]), path)
    return path


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip what needs a GPU where there is none, and torch where it is to be left out."""
    if config.getoption("without_torch"):
        for item in items:
            if item.get_closest_marker("torch") or item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason=NEEDS_TORCH))
        return
    gpu = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu:
        return
    import torch

    if not torch.cuda.is_available():
        for item in gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


# ------------------------------------------------------------------ without torch


class NoTorch(MetaPathFinder):
    """Leave out the test, or the module of tests, for which our code imports torch."""

    def find_spec(self, name: str, *_: object) -> None:
        """Find nothing; skip where it is our code that asks, itself or through safetensors."""
        if name != "torch":
            return
        frame = sys._getframe(1)
        passed = ("importlib", "_frozen_importlib", "safetensors.torch")
        while frame.f_back and frame.f_globals["__name__"].startswith(passed):
            frame = frame.f_back
        ours = (str(TESTS), str(TESTS.parent / "src"), str(TESTS.parent / "benchmarks"))
        if frame.f_code.co_filename.startswith(ours):
            pytest.skip(NEEDS_TORCH, allow_module_level=True)


class LeftOut:
    """Notes what is left out for want of torch, and names it at the end."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def note(self, report: pytest.TestReport | pytest.CollectReport) -> None:
        """Take a report of a test, or of the collection of a module."""
        if report.skipped and report.longrepr[2].endswith(NEEDS_TORCH):  # type: ignore[index]
            self.names.append(report.nodeid)

    pytest_runtest_logreport = note
    pytest_collectreport = note

    def pytest_ignore_collect(self, collection_path: Path, config: pytest.Config) -> bool | None:
        """Leave out a folder whose conftest.py imports torch."""
        if not imports_torch(collection_path / "conftest.py"):
            return None
        self.names.append(f"{collection_path.relative_to(config.rootpath)}/")
        return True

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Hand what one process of several noted to the one that tells."""
        output: dict[str, Any] | None = getattr(session.config, "workeroutput", None)
        if output is not None:
            output["left_out"] = self.names

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        """Take over what a process noted."""
        self.names += getattr(node, "workeroutput", {}).get("left_out", [])

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Name folders and modules, and count tests of modules that ran otherwise."""
        terminalreporter.section("left out: what imports torch")
        tests = Counter(name.partition("::")[0] for name in set(self.names) if "::" in name)
        for name in sorted({name.partition("::")[0] for name in self.names}):
            terminalreporter.line(f"{name}: {tests[name]} tests" if tests[name] else name)


def imports_torch(path: Path) -> bool:
    """Whether a file, or a module of the tests that it imports, imports torch when it is loaded."""
    if not path.is_file():
        return False
    names = set()
    for statement in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(statement, ast.Import):
            names |= {alias.name for alias in statement.names}
        elif isinstance(statement, ast.ImportFrom):
            names.add(statement.module or "")
    if any(name.partition(".")[0] == "torch" for name in names):
        return True
    return any(
        imports_torch(folder / f"{name}.py") for name in names for folder in (path.parent, SUPPORT)
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add ``--without-torch``."""
    told = "leave out, and name, the tests that import torch"
    parser.addoption("--without-torch", action="store_true", help=told)


def pytest_configure(config: pytest.Config) -> None:
    """Begin to leave out."""
    if config.getoption("without_torch"):
        config.pluginmanager.register(LeftOut())
        sys.meta_path.insert(0, NoTorch())
