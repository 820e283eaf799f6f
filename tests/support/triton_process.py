"""Triton kernels in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent


def ask(folder: Path, *arguments: str, interpret: bool) -> Any:
    """Run `kernels_on_triton` in a process of its own, with an empty cache."""
    environ = {**os.environ, "TRITON_CACHE_DIR": str(folder), "OMP_NUM_THREADS": "1"}
    environ.pop("TRITON_INTERPRET", None)
    if interpret:
        environ["TRITON_INTERPRET"] = "1"
    environ["PYTHONPATH"] = os.pathsep.join(p for p in (str(HERE), *sys.path) if p)
    command = [sys.executable, str(HERE / "kernels_on_triton.py"), *arguments]
    answer = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert answer.returncode == 0, answer.stderr
    return json.loads(answer.stdout)
