"""An afternoon at the panel: objects of several kinds drawn in a real window by mouse and keys.

Of each validation shard as many objects as are asked for, image by image. A simulated user zooms to
an object, clicks in the middle of it, then in the middle of the largest error of what is shown,
until the IoU with the truth is high enough or the clicks are used up, and presses C. Mouse and keys
are Qt events on the canvas of a real window, and what counts is what the window shows. A click that
the panel answers with "this is object 5, committed already" is made again, as a person would, and
counts twice.

Told of each kind: clicks and seconds per object (from the first click until the commit is
answered; wall, and CPU of all threads), the share that reaches the IoU, errors that the panel told,
and how long the window's thread computed between two looks at its events. Needs a display, real or
virtual (xvfb-run).
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import napari
import numpy as np
from measure import RESULTS, print_table, save
from numpy.typing import NDArray
from qtpy.QtCore import QEventLoop, QPoint, Qt
from qtpy.QtTest import QTest
from qtpy.QtWidgets import QApplication, QWidget

from napari_hrsam.plugin.panel.widget import SegmentWidget
from napari_hrsam.plugin.session.state import Phase
from napari_hrsam.plugin.session.targets import NewLayer
from napari_hrsam.training.clicks import next_click
from napari_hrsam.training.datasets import Sample, open_samples
from napari_hrsam.training.metrics import mask_iou

COLUMNS = (
    *("kind", "objects", "clicks", "share_good", "iou"),
    *("wall_s", "cpu_s", "errors", "gui_cpu_p99_ms", "gui_cpu_longest_ms"),
)
SHARE_OF_SCREEN = 0.25
"""How much of the canvas an object takes when it is drawn."""
MOST_S = 3600.0
LEFT, RIGHT = Qt.MouseButton.LeftButton, Qt.MouseButton.RightButton
NO_KEY = Qt.KeyboardModifier.NoModifier


class User:
    """Draws objects of one image in its window.

    Parameters
    ----------
    sample
        Image and truth.
    model
        Its name.
    """

    def __init__(self, sample: Sample, model: str) -> None:
        self.truth = sample.labels()
        self.viewer = napari.Viewer()
        self.viewer.window.resize(1200, 900)
        image = sample.image()
        self.viewer.add_image(image, rgb=image.ndim == 3, name=sample.key)
        self.panel = SegmentWidget(self.viewer)
        self.viewer.window.add_dock_widget(self.panel, name="panel", area="right")
        self.controller = self.panel.controller
        self.gaps_s: list[float] = []
        self.errors: list[str] = []
        self.controller.state.failed.connect(lambda error: self.errors.append(str(error)))
        self.controller.start(self.viewer.layers[0], model, target=NewLayer(), device="cpu")
        self.wait(lambda: self.controller.state.phase is Phase.READY)
        self.wait()

    @property
    def canvas(self) -> QWidget:
        """What is clicked on."""
        return self.viewer.window._qt_viewer.canvas.native  # type: ignore[no-any-return]  # noqa: SLF001

    def wait(self, is_done: Callable[[], bool] | None = None, least_s: float = 0.0) -> None:
        """Let the window work until it is idle, or something is so."""
        is_done = is_done or (lambda: not self.controller.state.is_busy)
        started = time.monotonic()
        while not is_done() or time.monotonic() - started < least_s:
            self._timed(QApplication.processEvents, QEventLoop.ProcessEventsFlag.AllEvents, 5)
            if time.monotonic() - started > MOST_S:
                raise TimeoutError(f"the window was still busy after {MOST_S:.0f} s")
            time.sleep(0.002)

    def _timed(self, function: Callable[..., Any], *args: Any) -> None:
        started = time.thread_time()
        function(*args)
        self.gaps_s.append(time.thread_time() - started)

    def look_at(self, truth: NDArray[np.bool_]) -> None:
        """Zoom to an object."""
        rows, columns = np.nonzero(truth)
        camera = self.viewer.scene.camera
        camera.center = ((rows.min() + rows.max()) / 2, (columns.min() + columns.max()) / 2)
        side = max(np.ptp(rows), np.ptp(columns)) + 1
        camera.zoom = SHARE_OF_SCREEN * min(self.viewer.canvas.size) / side
        self.wait(least_s=0.1)

    def click(self, point_yx: tuple[int, int], *, positive: bool) -> int:
        """Click on a pixel of the image; return how many clicks it took."""
        camera, size = self.viewer.scene.camera, self.canvas.size()
        offset = (np.array(point_yx) - np.array(camera.center)[-2:]) * camera.zoom
        at = QPoint(round(size.width() / 2 + offset[1]), round(size.height() / 2 + offset[0]))
        num = 0
        while not num or (num < 2 and "committed already" in self.controller.state.message):
            self._timed(QTest.mouseClick, self.canvas, LEFT if positive else RIGHT, NO_KEY, at)
            self.wait()
            num += 1
        return num

    def shown(self) -> NDArray[np.bool_]:
        """Return what the window shows of the current object, in full size."""
        overlay = self.controller.overlay
        assert overlay is not None
        mask, preview = np.zeros(self.truth.shape, bool), overlay.preview
        if preview.box is not None:
            step, box = preview.step, preview.box
            pixels = preview.pixels.repeat(step, 0).repeat(step, 1) != 0
            mask[box.slices] = pixels[: box.height, : box.width]
        return mask

    def draw(self, truth: NDArray[np.bool_], most: int, good: float) -> dict[str, Any]:
        """Draw and commit one object."""
        self.look_at(truth)
        wall, cpu = time.perf_counter(), time.process_time()
        clicked: list[tuple[int, int]] = []
        mask, num, iou = np.zeros_like(truth), 0, 0.0
        while num < most and iou < good:
            click = next_click(mask, truth, clicked, rng=np.random.default_rng(0))
            if click is None:
                break
            num += self.click((click.y, click.x), positive=click.positive)
            clicked.append((click.y, click.x))
            mask = self.shown()
            iou = float(mask_iou(mask, truth))
        self._timed(QTest.keyClick, self.canvas, Qt.Key.Key_C)
        self.wait()
        return {
            "clicks": num,
            "iou": iou,
            "wall_s": time.perf_counter() - wall,
            "cpu_s": time.process_time() - cpu,
        }


def measure(data: list[str], args: argparse.Namespace) -> list[dict[str, Any]]:
    """Draw the objects of every shard; one row per shard, and one of all."""
    by_kind: dict[str, list[dict[str, Any]]] = defaultdict(list)
    errors: dict[str, list[str]] = defaultdict(list)
    gaps: dict[str, list[float]] = defaultdict(list)
    for path in data:
        for sample in open_samples([path]):
            kind = sample.domain
            left = args.objects - len(by_kind[kind])
            if left <= 0:
                break
            user = User(sample, args.model)
            user.gaps_s.clear()
            for label in sample.objects[:left] if args.listed else _all(user.truth)[:left]:
                drawn = user.draw(user.truth == label, args.clicks, args.iou)
                by_kind[kind].append(drawn)
                print(kind, len(by_kind[kind]), drawn, flush=True)
            errors[kind] += user.errors
            gaps[kind] += user.gaps_s
            user.controller.stop()
            user.wait()
            user.viewer.close()
        save(args.json, _rows(by_kind, errors, gaps, args.iou))
    return _rows(by_kind, errors, gaps, args.iou)


def _all(truth: NDArray[np.int32]) -> list[int]:
    """Return every second object by id: those between are neighbours that stay undrawn."""
    return [int(label) for label in np.unique(truth) if label][::2]


def _rows(
    by_kind: dict[str, list[dict[str, Any]]],
    errors: dict[str, list[str]],
    gaps: dict[str, list[float]],
    good: float,
) -> list[dict[str, Any]]:
    together = [*by_kind.items(), ("all", [one for kind in by_kind.values() for one in kind])]
    rows = []
    for kind, drawn in together:
        names = list(by_kind) if kind == "all" else [kind]
        told = [error for name in names for error in errors[name]]
        milliseconds = 1e3 * np.array([gap for name in names for gap in gaps[name]])
        rows.append(
            {
                "kind": kind,
                "objects": len(drawn),
                **{
                    key: float(np.mean([one[key] for one in drawn]))
                    for key in ("clicks", "iou", "wall_s", "cpu_s")
                },
                "median_wall_s": float(np.median([one["wall_s"] for one in drawn])),
                "share_good": float(np.mean([one["iou"] >= good for one in drawn])),
                "errors": len(told),
                "told": sorted(set(told)),
                "gui_cpu_p99_ms": float(np.percentile(milliseconds, 99)),
                "gui_cpu_longest_ms": float(milliseconds.max()),
                "gui_over_100_ms": int((milliseconds > 100).sum()),
            }
        )
    return rows


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, help="validation shards")
    parser.add_argument("--objects", type=int, default=67, help="of each shard")
    parser.add_argument("--listed", action="store_true", help="only those the shard names")
    parser.add_argument("--clicks", type=int, default=6, help="at most, of an object")
    parser.add_argument("--iou", type=float, default=0.85, help="that is good enough")
    parser.add_argument("--model", default="hrsam-tiny")
    parser.add_argument("--json", type=Path, default=RESULTS / "afternoon.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        # Nothing of the user's own is used or changed.
        for name in ("EMBEDDINGS", "LABELS"):
            os.environ[f"NAPARI_HRSAM_{name}"] = str(Path(folder) / name)
        rows = measure(args.data, args)
    print_table(rows, COLUMNS)


if __name__ == "__main__":
    main()
