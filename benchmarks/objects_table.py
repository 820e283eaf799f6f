"""CPU time of the panel's list of objects with many rows.

Run on a display, or under ``xvfb-run -a``: ``python benchmarks/objects_table.py --rows 10000``. It
prints, in ms of CPU time of the process, medians and the 99th percentiles: of a scroll step with
its drawing, of one commit that comes into the table, of a change of class of one object, of sorting
by another column, and of a filter. The list is the panel's own, in napari's window of a given size.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import napari
import numpy as np
from qtpy.QtCore import Qt
from qtpy.QtWidgets import QApplication

from napari_hrsam.geometry import Box
from napari_hrsam.plugin.panel.objects_table import FIELDS
from napari_hrsam.plugin.panel.widget import SegmentWidget
from napari_hrsam.storage.labels.edits import Edit
from napari_hrsam.storage.labels.objects import ObjectList
from napari_hrsam.storage.labels.properties import Properties


def edit(label: int, **more: Any) -> Edit:
    """Make a commit of an object."""
    area = 100 + label * 7919 % 5000
    told: dict[str, Any] = {
        "box": Box(label % 997, label % 991, label % 997 + 50, label % 991 + 50),
        "areas": {label: area},
        "model": "hrsam-tiny",
        "time": 1.7e9 + label,
        "level": label % 4,
        "score": 0.9,
    }
    return Edit(label=label, **(told | more))


def main() -> None:  # noqa: C901  one step function for each figure
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--window", type=int, nargs=2, default=(1400, 900), help="its size")
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    viewer = napari.Viewer(show=True)
    viewer.window.resize(*options.window)
    panel = SegmentWidget(viewer, load_model=lambda *_, **__: None)
    viewer.window.add_dock_widget(panel, name="Segment by clicking")
    table, model = panel.objects_section.table, panel.objects_section.model
    objects = panel.controller.objects.list
    told = Properties()
    for n, name in enumerate(("nucleus", "debris", "other")):
        told = told.after(told.setting_class(range(1 + n, options.rows + 1, 4), name))
    objects.begin(ObjectList(told, map(edit, range(1, options.rows + 1))), None, ())
    QApplication.processEvents()
    print(f"the table has {table.width()} x {table.height()} pixels")

    def scroll() -> Iterator[None]:
        bar = table.verticalScrollBar()
        for step in range(options.steps):
            bar.setValue(step * 37 % bar.maximum())
            table.viewport().grab()
            yield

    def step(change: Callable[[int], Edit]) -> Iterator[None]:
        for number in range(options.steps):
            answer = SimpleNamespace(
                edit=change(number), earlier_edits=(), is_undone=False, newest=None
            )
            objects.answered(answer)  # type: ignore[arg-type]
            table.viewport().grab()
            yield

    def classed(number: int) -> Edit:
        label = 1 + number * 31 % options.rows
        change = objects.properties.setting_class([label], "other" if number % 2 else "debris")
        return edit(label, box=Box(0, 0, 0, 0), kind="properties", change=change)

    def sort() -> Iterator[None]:
        for number in range(options.steps // 10):
            table.sortByColumn(number % len(FIELDS), Qt.SortOrder(number % 2))
            table.viewport().grab()
            yield

    def narrow() -> Iterator[None]:
        for number in range(options.steps // 10):
            model.filter(str(number), None)
            table.viewport().grab()
            yield

    for name, steps in (
        ("scroll step", scroll()),
        ("commit", step(lambda number: edit(options.rows + 1 + number))),
        ("change of class", step(classed)),
        ("sort", sort()),
        ("filter", narrow()),
    ):
        taken = []
        begun = time.process_time()
        for _ in steps:
            taken.append(1000 * (time.process_time() - begun))
            begun = time.process_time()
        median, high = np.percentile(taken, [50, 99])
        print(f"{name:>16}: median {median:6.2f} ms, p99 {high:6.2f} ms ({options.rows:,} rows)")
    viewer.close()


if __name__ == "__main__":
    main()
