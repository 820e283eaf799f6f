"""How long the window stands still at the first Start, click and box of a new environment.

numba's cache is empty: what napari compiles for its layers is compiled anew, as it is once on every
machine. A timer on the GUI thread ticks every few milliseconds; a gap between two ticks is a time
in which the window could not react. Of each gap the CPU time of the GUI thread is told, which other
work on the machine does not change, and the time on the clock; and the CPU time less that of
OpenGL's commands, which is the graphics card's where there is one. A person presses Start at once,
or after the panel has come to rest. The window is small, as a software OpenGL draws on the GUI
thread. The package's bytecode is there, as pip leaves it. Needs a display, real or virtual (xvfb-
run).
"""

from __future__ import annotations

import argparse
import compileall
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from measure import RESULTS, print_table, save

import napari_hrsam

COLUMNS = (
    "case",
    "numba_cache",
    "work",
    "gaps",
    "longest_cpu_ms",
    "over_200_cpu_ms",
    "longest_less_gl_ms",
    "over_200_less_gl_ms",
    "longest_ms",
    "seconds",
)
CASES = ("Start at once", "Start after a rest", "stack, Start at once")
WINDOW_PX = (800, 600)
TICK_MS = 5
CORNERS = ((260, 260), (340, 340))
STALL_S = 0.1
NUM_FRAMES = 6
_DEEP = ("numba", "llvmlite", "importlib")


class Pulse:
    """Measures gaps between ticks of the GUI thread, in its CPU time and on the clock.

    Parameters
    ----------
    tells_stacks
        Whether to gather what the GUI thread does in gaps longer than `STALL_S`.
    """

    def __init__(self, *, tells_stacks: bool) -> None:
        from qtpy.QtCore import QTimer
        from vispy.gloo.glir import GlirParser

        self._gl_s, parse = 0.0, GlirParser.parse

        def timed(parser: GlirParser, commands: Any) -> Any:
            began = time.thread_time()
            try:
                return parse(parser, commands)
            finally:
                self._gl_s += time.thread_time() - began

        GlirParser.parse = timed
        self._gaps: list[tuple[float, ...]] = []
        self._last = self._now()
        self._began = time.perf_counter()
        self._stacks: Counter[str] = Counter()
        self._timer = QTimer()
        self._timer.timeout.connect(self._beat)
        self._timer.start(TICK_MS)
        self._is_on = True
        if tells_stacks:
            gui = threading.get_ident()
            threading.Thread(target=self._sample, args=(gui,), daemon=True).start()

    def _now(self) -> tuple[float, ...]:
        cpu = time.thread_time()
        return cpu, time.perf_counter(), cpu - self._gl_s

    def _beat(self) -> None:
        now = self._now()
        self._gaps.append(tuple(b - a for a, b in zip(self._last, now, strict=True)))
        self._last = now

    def _sample(self, gui: int) -> None:
        clock = time.pthread_getcpuclockid(gui)
        while self._is_on:
            time.sleep(0.01)
            if time.clock_gettime(clock) - self._last[0] > STALL_S:
                frame = sys._current_frames().get(gui)  # noqa: SLF001  there is no other way
                frames = traceback.extract_stack(frame)
                ours = [f for f in frames if not any(name in f.filename for name in _DEEP)]
                places = (
                    f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in ours[-NUM_FRAMES:]
                )
                self._stacks[" > ".join(places)] += 1

    def stop(self) -> None:
        """Measure no more."""
        self._is_on = False
        self._timer.stop()

    def take(self, work: str) -> dict[str, Any]:
        """Tell the gaps since the last call, the present one included."""
        self._beat()
        cpu, clock, less_gl = 1e3 * np.array(self._gaps).T
        self._gaps.clear()
        for stack, times in self._stacks.most_common(5):
            print(f"{work}: {times} x {stack}", file=sys.stderr)
        self._stacks.clear()
        began, self._began = self._began, time.perf_counter()
        return {
            "work": work,
            "gaps": len(cpu),
            "longest_cpu_ms": float(cpu.max()),
            "over_200_cpu_ms": int((cpu > 200).sum()),
            "longest_less_gl_ms": float(less_gl.max()),
            "over_200_less_gl_ms": int((less_gl > 200).sum()),
            "longest_ms": float(clock.max()),
            "seconds": self._began - began,
        }


def measure(case: str, *, tells_stacks: bool) -> None:
    """Open a window and the panel, and draw the first objects; in a process of its own."""
    import napari

    from napari_hrsam.plugin.canvas.mouse import Drag, DragTool
    from napari_hrsam.plugin.session.state import Phase

    def take(work: str) -> None:
        # Line by line: what was measured is not lost if the window comes to a bad end.
        print(json.dumps({"case": case, **pulse.take(work)}), flush=True)

    viewer = napari.Viewer()
    viewer.window.resize(*WINDOW_PX)
    pulse = Pulse(tells_stacks=tells_stacks)
    viewer.add_image(picture(num_planes=12 if case.startswith("stack") else 0), name="discs")
    run_for(2.0)
    take("napari alone: showing the image")
    viewer.add_image(picture(0), name="more discs")
    viewer.layers.remove("more discs")
    run_for(1.0)
    take("napari alone: adding and removing a layer")
    _, panel = viewer.window.add_plugin_dock_widget("napari-hrsam", "Segment by clicking")
    run_until(lambda: True)
    controller = panel.controller

    def rest() -> None:
        run_until(lambda: not controller.state.is_busy)

    take("opening the panel")
    if case == "Start after a rest":
        rest()
        run_for(1.0)
        take("resting")
    panel.start_button.click()
    run_until(lambda: controller.state.phase is Phase.READY)
    rest()
    run_for(1.0)
    take("first Start")
    controller.click((100, 100))
    rest()
    take("first click")
    controller.commit()
    rest()
    run_for(0.5)
    take("first commit")
    plane = (0,) * (controller.image_layer.ndim - 2)
    start, end = (controller.image_layer.data_to_world((*plane, *at)) for at in CORNERS)
    controller.drags.take(
        Drag(tool=DragTool.BOX, path=(start, end), is_positive=True, is_done=False)
    )
    run_for(0.2)
    controller.drags.take(
        Drag(tool=DragTool.BOX, path=(start, end), is_positive=True, is_done=True)
    )
    rest()
    take("first box")
    controller.cancel()
    controller.stop()
    rest()
    take("Stop")
    pulse.stop()
    viewer.close()
    # Qt deletes the window here: later, Python would do so on whatever thread it is.
    run_for(1.0)


def picture(num_planes: int) -> np.ndarray:
    """Make bright discs on a dark, noisy ground, (768, 1024) or (num_planes, 768, 1024) uint8."""
    y, x = np.mgrid[:768, :1024]
    inside = ((y % 200 - 100) ** 2 + (x % 200 - 100) ** 2) < 40**2
    noise = np.random.default_rng(0).integers(0, 40, inside.shape)
    flat = (60 + 120 * inside + noise).astype(np.uint8)
    return np.repeat(flat[None], num_planes, axis=0) if num_planes else flat


def run_until(is_done: Callable[[], bool], most_s: float = 1800.0) -> None:
    """Let the window work until something is so."""
    from qtpy.QtCore import QEventLoop
    from qtpy.QtWidgets import QApplication

    end = time.perf_counter() + most_s
    while True:
        QApplication.processEvents(QEventLoop.ProcessEventsFlag.AllEvents, 2)
        if is_done():
            return
        # As an event loop that waits: other threads get their turn.
        time.sleep(0.001)
        if time.perf_counter() > end:
            raise TimeoutError(f"the window was still busy after {most_s} s")


def run_for(seconds: float) -> None:
    """Let the window work for a while."""
    end = time.perf_counter() + seconds
    run_until(lambda: time.perf_counter() > end)


def in_new_environment(case: str, *, is_warm: bool, tells_stacks: bool) -> list[dict[str, Any]]:
    """Measure one case in a process with empty settings and stores; if warm, not numba's cache."""
    with tempfile.TemporaryDirectory() as folder:
        own = ("NUMBA_CACHE_DIR", "NAPARI_HRSAM_EMBEDDINGS", "NAPARI_HRSAM_LABELS")
        empty = {name: str(Path(folder) / name.lower()) for name in own[is_warm:]}
        env = {**os.environ, **empty, "NAPARI_CONFIG": ""}
        command = [sys.executable, __file__, "--only", case, *["--stacks"] * tells_stacks]
        done = subprocess.run(command, env=env, stdout=subprocess.PIPE, check=True, text=True)
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
        return [{**row, "numba_cache": "at hand" if is_warm else "empty"} for row in rows]


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--case", choices=CASES, action="append", help="all by default")
    parser.add_argument("--warm", action="store_true", help="with the numba cache that there is")
    parser.add_argument("--stacks", action="store_true", help="tell what the long gaps are made of")
    parser.add_argument("--only", choices=CASES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, default=RESULTS / "first-start.json")
    args = parser.parse_args()
    if args.only:
        measure(args.only, tells_stacks=args.stacks)
        return
    compileall.compile_dir(str(Path(napari_hrsam.__file__).parent), quiet=1)
    rows = []
    for case in args.case or CASES:
        rows += in_new_environment(case, is_warm=args.warm, tells_stacks=args.stacks)
    print_table(rows, COLUMNS)
    save(args.json, rows)


if __name__ == "__main__":
    main()
