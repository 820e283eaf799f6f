"""Commits of objects of many sizes, and opening a label image with thousands of them."""

from __future__ import annotations

import math
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.bench.measure import peak_bytes, summary, timed
from napari_hrsam.bench.settings import LABELS_NAME, Settings
from napari_hrsam.geometry import Box
from napari_hrsam.masks import BlockMask
from napari_hrsam.sample import Sample
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.edits import Edit

SMALL_PX = 40
"""Diameter of the many objects of a label image that is opened again."""


@dataclass(frozen=True, slots=True)
class _Blob:
    """A disc with a wavy outline, told part by part."""

    centre_yx: tuple[float, float]
    diameter_px: float

    @property
    def box(self) -> Box:
        """Where it lies."""
        reach = 0.55 * self.diameter_px
        y, x = self.centre_yx
        return Box(int(y - reach), int(x - reach), int(y + reach) + 1, int(x + reach) + 1)

    def read(self, box: Box) -> NDArray[np.bool_]:
        """Pixels of a part."""
        dy = (np.arange(box.y0, box.y1) - self.centre_yx[0])[:, np.newaxis]
        dx = np.arange(box.x0, box.x1) - self.centre_yx[1]
        wave = 1 + 0.08 * np.cos(7 * np.arctan2(dy, dx))
        inside: NDArray[np.bool_] = np.hypot(dy, dx) < 0.5 * self.diameter_px * wave
        return inside

    def fills(self, box: Box) -> bool | None:
        """Tell the parts that lie deep inside or far outside."""
        y, x = self.centre_yx
        middle = math.hypot((box.y0 + box.y1 - 1) / 2 - y, (box.x0 + box.x1 - 1) / 2 - x)
        half = math.hypot(box.height, box.width) / 2
        if middle + half < 0.45 * self.diameter_px:
            return True
        return False if middle - half > 0.55 * self.diameter_px else None


def measure_commits(sample: Sample, settings: Settings) -> dict[str, Any]:
    """Time commits of objects of several sizes at random places, and taking them back.

    Returns
    -------
    dict
        ``commit_500``, ``undo_500`` and so on: wall and CPU seconds of several rounds.
    """
    size = sample.recipe.size_px
    rng = random.Random(0)  # noqa: S311  places, not secrets
    figures: dict[str, Any] = {}
    with create_labels(sample.path, LABELS_NAME, like=sample.image) as labels:
        for diameter in settings.commit_px:
            if 1.2 * diameter > size:
                continue
            commits, undos = [], []
            for _ in range(settings.rounds + 1):
                room = 0.6 * diameter
                place = (rng.uniform(room, size - room), rng.uniform(room, size - room))
                blob = _Blob(place, diameter)
                mask = BlockMask(blob.box, blob.read, blob.fills)
                edits: list[Edit] = []

                def commit(mask: BlockMask = mask, edits: list[Edit] = edits) -> None:
                    edits.append(labels.write(mask.box, mask, labels.next_label()))

                def undo(edits: list[Edit] = edits) -> None:
                    labels.revert(edits[0])

                commits.append(timed(commit))
                undos.append(timed(undo))
            # The first one of a size warms up.
            figures[f"commit_{diameter}"] = summary(commits[1:])
            figures[f"undo_{diameter}"] = summary(undos[1:])
    return {**figures, "peak_bytes": peak_bytes()}


def make_objects(sample: Sample, settings: Settings) -> dict[str, Any]:
    """Commit thousands of small objects on a grid over the whole image."""
    size, num = sample.recipe.size_px, settings.reopen_objects
    side = math.ceil(math.sqrt(num))
    step = size / side
    diameter = min(SMALL_PX, step / 1.5)
    started = time.perf_counter()
    with create_labels(sample.path, LABELS_NAME, like=sample.image) as labels:
        for number in range(num):
            place = ((number // side + 0.5) * step, (number % side + 0.5) * step)
            blob = _Blob(place, diameter)
            labels.write(blob.box, blob.read(blob.box), number + 1)
    seconds = time.perf_counter() - started
    return {"num_objects": num, "seconds": seconds, "peak_bytes": peak_bytes()}


def measure_reopening(sample: Sample, settings: Settings) -> dict[str, Any]:
    """Time opening a label image with thousands of objects, until the next one can be drawn."""
    before = peak_bytes()
    found = []

    def reopen() -> None:
        with open_labels(sample.path, LABELS_NAME) as labels:
            history = labels.history()
            coarsest = labels.levels[-1]
            found.append((labels.next_label(), len(history.done), int(np.asarray(coarsest).max())))

    turns = [timed(reopen) for _ in range(settings.rounds)]
    assert found[0][0] == settings.reopen_objects + 1
    return {
        "num_objects": settings.reopen_objects,
        "num_undoable": found[0][1],
        "first_s": turns[0][0],
        **summary(turns),
        "above_bytes": peak_bytes() - before,
    }
