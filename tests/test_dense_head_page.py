"""The table of domains in the documentation is made from the benchmark's file."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_page_tells_the_scores_of_the_benchmark() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "dense_head_page.py"), "--check"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
