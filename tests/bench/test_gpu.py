"""The GPU benchmark in miniature, on the CPU of a machine that holds little more than torch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MISSING = ("zarr", "pooch", "requests", "numcodecs", "napari", "qtpy", "numba", "tifffile")
# Runs a script as `python script` does, where some packages are not installed.
BARE = """
import runpy, sys
missing, script = sys.argv[1].split(","), sys.argv[2]
sys.modules.update(dict.fromkeys(missing))
sys.argv, sys.path[0] = sys.argv[2:], script.rpartition("/")[0]
runpy.run_path(script, run_name="__main__")
"""


def run_small(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    script = (ROOT / "benchmarks" / "gpu.py").as_posix()
    command = [sys.executable, "-c", BARE, ",".join(MISSING), script]
    command += ["--device", "cpu", "--small", "--out", str(out), *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, env=environ, capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.torch
def test_every_section_runs_where_little_more_than_torch_is_installed(tmp_path) -> None:
    done = run_small(tmp_path / "gpu.json")
    assert done.returncode == 0, done.stdout + done.stderr
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert len(sections) == 10
    assert all(section["rows"] for section in sections.values())
    checks = sections["scan is right"]["rows"] + sections["attention is right"]["rows"]
    assert all(row["ok"] for row in checks)
    for name in sections:
        assert f"== {name}" in done.stdout


@pytest.mark.torch
def test_what_there_is_no_time_for_is_told_and_fails(tmp_path) -> None:
    done = run_small(tmp_path / "gpu.json", "--seconds", "0")
    assert done.returncode == 1
    sections = json.loads((tmp_path / "gpu.json").read_text())["sections"]
    assert "out of time" in sections["device"]["error"]
    assert sections["click"] == {"rows": [], "error": "out of time; not run"}


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    # Their names are too common to stay.
    names = ("gpu", "measure", "attention", "scan")
    before = {name: sys.modules.pop(name, None) for name in names}
    import gpu

    yield gpu
    for name, module in before.items():
        sys.modules.pop(name, None)
        if module is not None:
            sys.modules[name] = module


def test_a_failing_section_is_told_and_the_others_still_run(gpu, tmp_path, monkeypatch) -> None:
    def fails(_run):
        yield {"what": "first"}
        raise RuntimeError("no luck")

    def wrong(_run):
        yield gpu.checked("nan", float("nan"), 1.0)

    def works(_run):
        yield {"what": "last"}

    sections = {"a": (fails, "what"), "b": (wrong, "what ok"), "c": (works, "what")}
    monkeypatch.setattr(gpu, "SECTIONS", sections)
    out = tmp_path / "gpu.json"
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--small", "--out", str(out)])
    assert gpu.main() == 1
    found = json.loads(out.read_text())["sections"]
    assert found["a"]["error"] == "RuntimeError: no luck"
    assert found["a"]["rows"] == [{"what": "first"}]
    assert "not as it should be" in found["b"]["error"]
    assert "error" not in found["c"]
