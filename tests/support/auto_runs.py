"""An image of which one place cannot be read by other processes, and runs to be compared."""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from small_segmenter import STEM_CONFIG, build

from napari_hrsam.engine.everything.auto import AutoReport, auto
from napari_hrsam.modeling.segmenter import Segmenter

SHAPE = 240, 192
"""Of 12 blocks of 64 px, or 20 tiles."""


def squares() -> NDArray[np.uint8]:
    """An image of coloured squares."""
    colours = np.random.default_rng(0).integers(0, 256, (20, 16, 3), np.uint8)
    return colours.repeat(12, 0).repeat(12, 1)


class BadImage:
    """Squares; other processes cannot read a tile that holds ``at`` while ``armed`` is there.

    Parameters
    ----------
    at : (int, int)
    armed : path
        A file. Each failure adds a byte to it.
    kills : bool
        Whether reading there kills the process, as for lack of memory.
    """

    def __init__(self, at: tuple[int, int], armed: Path, *, kills: bool = False) -> None:
        self._pixels, self._at, self._armed, self._kills = squares(), at, armed, kills
        self._ours = os.getpid()
        self.shape, self.dtype, self.ndim = (*SHAPE, 3), np.dtype(np.uint8), 3

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        """Read a part."""
        mark = np.zeros(SHAPE, bool)
        mark[self._at] = True
        found = mark[index[:2]]
        # A fingerprint looks at more than a tile.
        is_tile = found.shape[0] <= 64 and found.any()
        if is_tile and os.getpid() != self._ours and self._armed.exists():
            with self._armed.open("ab") as file:
                file.write(b".")
            if self._kills:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError("the disk is bad there")
        return self._pixels[index]


@cache
def model() -> Segmenter:
    return build(STEM_CONFIG)


def run(path: Path, image: Any = None, **options: Any) -> AutoReport:
    """Find all objects in 12 blocks."""
    return auto(
        squares() if image is None else image,
        path=path,
        model=model(),
        largest_px=28,
        smallest_px=20,
        **{"block_px": 64, **options},
    )


def bytes_of(path: Path) -> dict[str, bytes]:
    """All files of a label image but its metadata: pixels, table, records."""
    top = path / "labels" / "auto-1"
    found = {
        str(file.relative_to(top)): file.read_bytes()
        for file in top.rglob("*")
        if file.is_file() and file.name != "plan.json"
    }
    assert any(name.endswith("objects.csv") for name in found)
    assert not list((path / "labels").glob(".*"))
    return found
