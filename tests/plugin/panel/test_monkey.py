"""Anything may be done at any moment: nothing fails that was not expected to."""

from __future__ import annotations

import gc
import json
import os
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from monkey import Monkey
from numpy.typing import NDArray
from panel_window import Window

from napari_hrsam.plugin.forms.importing import ImportForm

SECONDS = float(os.environ.get("NAPARI_HRSAM_MONKEY_S", "60"))
SEED = int(os.environ.get("NAPARI_HRSAM_MONKEY_SEED", "0"))
FIGURES = os.environ.get("NAPARI_HRSAM_MONKEY_JSON")
ROUND_S = min(60.0, SECONDS / 3)
"""After so long the viewer is closed, whatever is under way, and another one opened."""
WARM_UP = 0.2
"""Share of the time after which the memory is taken as the beginning."""
MAX_GROWTH = 0.05
LEAST_S_FOR_GROWTH = 1500
"""A shorter run tells nothing about memory."""


@pytest.fixture
def geojson(tmp_path: Path) -> Path:
    """A square."""
    ring = [[4, 4], [12, 4], [12, 12], [4, 12], [4, 4]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    path = tmp_path / "square.geojson"
    path.write_text(json.dumps({"type": "Feature", "geometry": geometry, "properties": {}}))
    return path


def memory_bytes() -> int:
    """What this process holds now."""
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def open_one(open_window: Any, pixels: NDArray[np.uint8], *, is_stack: bool) -> Window:
    """Open a window on the image, or on a stack of it."""
    data = np.stack([np.roll(pixels, shift, 0) for shift in range(4)]) if is_stack else pixels
    window: Window = open_window(show=True, data=data)
    return window


@pytest.mark.slow
def test_a_monkey_breaks_nothing(
    open_window: Any, pixels: NDArray[np.uint8], geojson: Path
) -> None:
    """`NAPARI_HRSAM_MONKEY_S=1800` makes it long; `NAPARI_HRSAM_MONKEY_SEED` another one.

    `NAPARI_HRSAM_MONKEY_JSON` is the file that the figures go to.
    """
    rng, done, cpu_s = np.random.default_rng(SEED), Counter[str](), []  # type: ignore[var-annotated]
    started, num_windows, memory = time.monotonic(), 0, []
    # What an event handler raises is raised here by pytest-qt, at the end of the test.
    # On a machine that is slow or busy it goes on until most kinds of things were done.
    while time.monotonic() - started < SECONDS or len(done) < 8:
        window = open_one(open_window, pixels, is_stack=num_windows % 3 == 2)
        form = ImportForm(window.viewer)
        window.viewer.window.add_dock_widget(form, area="left")
        form.fields["file"].value = geojson
        image = np.asarray(window.viewer.layers[0].data)
        monkey = Monkey(window, image, rng, form.run)
        monkey.watch()
        end = time.monotonic() + ROUND_S
        while time.monotonic() < end:
            monkey.act()
            assert monkey.errors_that_no_one_expected() == [], monkey.done[-20:]
            assert "Please report" not in form.message
        # Whatever is under way.
        window.viewer.close()
        assert window.controller.worker.join()
        done.update(monkey.done)
        cpu_s += monkey.cpu_s
        num_windows += 1
        memory.append((time.monotonic() - started, memory_bytes()))
    first = next(held for at, held in memory if at >= WARM_UP * memory[-1][0])
    growth = memory[-1][1] / first - 1
    if FIGURES:
        milliseconds = 1e3 * np.array(cpu_s)
        figures = {
            "seed": SEED,
            "seconds": time.monotonic() - started,
            "windows": num_windows,
            "actions": sum(done.values()),
            "kinds": dict(done.most_common()),
            "gui_cpu_ms": {
                f"p{share:g}": float(np.percentile(milliseconds, share)) for share in (50, 95, 99)
            }
            | {"longest": float(milliseconds.max())},
            "actions_over_100_ms": int((milliseconds > 100).sum()),
            "memory_mib": [[round(at), round(held / 2**20)] for at, held in memory],
            "growth": growth,
        }
        Path(FIGURES).write_text(json.dumps(figures, indent=1))
    assert SECONDS < LEAST_S_FOR_GROWTH or growth <= MAX_GROWTH
