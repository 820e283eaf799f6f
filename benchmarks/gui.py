"""How long the window stands still: the panel on the generated slide, driven in a real window.

A timer on the GUI thread ticks every few milliseconds; a gap between two ticks is a time in which
the window could not react. Gaps are gathered for each kind of work, and for napari alone while it
shows and moves the same image without the panel. Needs a display, real or virtual (xvfb-run).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, print_table, save

from napari_hrsam.bench.window import chosen_objects, show_slide
from napari_hrsam.plugin.panel.widget import SegmentWidget
from napari_hrsam.plugin.session.state import Phase
from napari_hrsam.sample import Sample, make_sample, open_sample
from napari_hrsam.sample.scene.scene import SceneObject
from napari_hrsam.sample.slide import PIXEL_UM
from napari_hrsam.storage.labels.places import LabelFile

COLUMNS = ("work", "gaps", "p50_ms", "p99_ms", "longest_ms", "over_100_ms")
TICK_MS = 5


class Heart:
    """Measures gaps between ticks of the GUI thread."""

    def __init__(self) -> None:
        from qtpy.QtCore import QTimer

        self._gaps: list[float] = []
        self._last = time.perf_counter()
        self._timer = QTimer()
        self._timer.timeout.connect(self._beat)
        self._timer.start(TICK_MS)

    def _beat(self) -> None:
        now = time.perf_counter()
        self._gaps.append(now - self._last)
        self._last = now

    def take(self, work: str) -> dict[str, Any]:
        """Tell the gaps since the last call, the present one included."""
        self._beat()
        gaps = 1e3 * np.array(self._gaps)
        self._gaps.clear()
        return {
            "work": work,
            "gaps": len(gaps),
            "p50_ms": float(np.percentile(gaps, 50)),
            "p99_ms": float(np.percentile(gaps, 99)),
            "longest_ms": float(gaps.max()),
            "over_100_ms": int((gaps > 100).sum()),
        }


def run_until(is_done: Callable[[], bool], least_s: float = 0.0, most_s: float = 300.0) -> float:
    """Let the window work until something is so; return the seconds it took."""
    from qtpy.QtCore import QEventLoop
    from qtpy.QtWidgets import QApplication

    started = time.perf_counter()
    while not is_done() or time.perf_counter() - started < least_s:
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 2)
        if time.perf_counter() - started > most_s:
            raise TimeoutError(f"the window was still busy after {most_s} s")
    return time.perf_counter() - started


def measure(sample: Sample, num_objects: int, threads: int | None) -> list[dict[str, Any]]:
    """Open the window, and go through everything a user does."""
    if threads:
        import torch

        torch.set_num_threads(threads)
    viewer = show_slide(sample)
    heart, rows = Heart(), []
    objects = chosen_objects(sample, num_objects)
    run_until(lambda: True, 1.0)
    heart.take("start")
    for thing in objects:
        look_at(viewer, thing)
    rows.append(heart.take("napari alone: moving over the slide"))

    panel = SegmentWidget(viewer)
    viewer.window.add_dock_widget(panel, name="panel", area="right")
    controller = panel.controller
    heart.take("building the panel")
    target = LabelFile(sample.path, "gui-benchmark")
    controller.start(viewer.layers[0], "hrsam-tiny", target=target)
    run_until(lambda: controller.state.phase is Phase.READY)
    rows.append(heart.take("loading the model"))

    def idle() -> bool:
        return not controller.state.is_busy

    clicks: list[dict[str, Any]] = []
    for thing in objects:
        look_at(viewer, thing)
        run_until(idle)
        heart.take("moving")
        controller.click(thing.centre_yx)
        run_until(idle)
        clicks.append(heart.take("click"))
        controller.commit()
        run_until(idle)
        clicks.append(heart.take("commit"))
        run_until(idle, 2.0)
        clicks.append(heart.take("resting: encoding ahead"))
    for work in ("click", "commit", "resting: encoding ahead"):
        of_it = [row for row in clicks if row["work"] == work]
        rows.append(
            {
                "work": work,
                "gaps": sum(row["gaps"] for row in of_it),
                "p50_ms": float(np.median([row["p50_ms"] for row in of_it])),
                "p99_ms": max(row["p99_ms"] for row in of_it),
                "longest_ms": max(row["longest_ms"] for row in of_it),
                "over_100_ms": sum(row["over_100_ms"] for row in of_it),
            }
        )
    rows.append(cancelling(sample, viewer, controller, heart, idle))
    controller.stop()
    run_until(idle)
    viewer.close()
    return rows


def cancelling(
    sample: Sample, viewer: Any, controller: Any, heart: Heart, is_idle: Callable[[], bool]
) -> dict[str, Any]:
    """Give up a commit whose outline is being drawn, and tell how long that takes."""
    large = max(sample.objects, key=lambda thing: thing.diameter_px)
    look_at(viewer, large)
    controller.settings.set_outlines_fully(True)
    controller.click(large.centre_yx)
    run_until(is_idle)
    heart.take("click")
    controller.commit()
    run_until(lambda: controller.state.progress is not None, 2.0)
    controller.cancel()
    seconds = run_until(is_idle)
    row = heart.take("outline of a 30,000 px object, and cancelling it")
    return {**row, "cancel_s": seconds}


def look_at(viewer: Any, thing: SceneObject) -> None:
    """Move to an object and zoom so that it takes about 100 pixels of the screen."""
    viewer.scene.camera.center = tuple(PIXEL_UM * place for place in thing.centre_yx)
    viewer.scene.camera.zoom = 100 / (PIXEL_UM * thing.diameter_px)
    run_until(lambda: True, 0.4)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", type=int, default=100_000)
    parser.add_argument("--objects", type=int, default=12)
    parser.add_argument("--threads", type=int, help="of torch")
    parser.add_argument("--sample", type=Path, help="a generated slide; one is made otherwise")
    parser.add_argument("--json", type=Path, default=RESULTS / "gui.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = args.sample or make_sample(Path(folder) / "slide.ome.zarr", args.size).path
        rows = measure(open_sample(path), args.objects, args.threads)
    print_table(rows, (*COLUMNS, "cancel_s"))
    save(args.json, rows)


if __name__ == "__main__":
    main()
