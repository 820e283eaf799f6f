"""docs/api.md tells what there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import napari_hrsam

ROOT = Path(__file__).parents[1]


@pytest.mark.torch
def test_the_page_is_what_the_docstrings_say_and_names_everything_public() -> None:
    script = [sys.executable, str(ROOT / "scripts" / "api_page.py"), "--check"]
    done = subprocess.run(script, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    assert all(f"**`{name}" in page for name in napari_hrsam.__all__ if name != "__version__")
