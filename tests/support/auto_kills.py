"""Run `auto` again and again, each time killed at some call that changes the disk, then once whole.

``python auto_kills.py FOLDER SEED KILLS`` prints how many were killed. Each is a copy of this
process, so that the imports are paid for once.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
from drawn_field import DrawnPredictor, touching_discs

import napari_hrsam.engine.predictor
from napari_hrsam.engine.everything import auto as module
from napari_hrsam.engine.everything.auto import auto

CELLS = 100, 110


def run(path: Path, predictor: DrawnPredictor) -> None:
    """Make the labels ``auto-1`` in a folder."""
    napari_hrsam.engine.predictor.Predictor = lambda model: model  # type: ignore[misc,assignment]
    module.loaded = lambda model: model  # type: ignore[assignment]
    image = np.random.default_rng(0).integers(0, 256, (200, 220, 3), np.uint8)
    auto(image, path=path, model=predictor, largest_px=80, block_px=96)  # type: ignore[arg-type]


def killed_at(call: int) -> None:
    """Have this process killed before a call that changes the disk, counted from now."""
    left = [call]

    def counted(function: Any) -> Any:
        def replaced(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **options)

        return replaced

    for name in ("replace", "rename", "fsync", "mkdir", "unlink", "rmdir"):
        setattr(os, name, counted(getattr(os, name)))


def main() -> None:
    """Kill, and go on."""
    path, seed, kills = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    predictor, rng = DrawnPredictor(touching_discs(CELLS)), np.random.default_rng(seed)
    num_killed = 0
    for turn in range(kills + 1):
        # Now and then late, when the label image is being made.
        call = int(rng.integers(1, 40) if turn % 4 else rng.integers(40, 90))
        child = os.fork()
        if child == 0:
            if turn < kills:
                killed_at(call)
            run(path, predictor)
            os._exit(0)
        status = os.waitpid(child, 0)[1]
        if os.WIFSIGNALED(status):
            num_killed += 1
        elif status:
            sys.exit("a run failed")
        else:
            break
    sys.stdout.write(f"{num_killed}\n")


if __name__ == "__main__":
    main()
