"""Objects that are found all at once, whatever the image and the model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from drawn_field import DrawnPredictor, touching_discs

# Before the stand-in is put in the place of its Predictor.
import napari_hrsam.engine.session  # noqa: F401
from napari_hrsam.engine.everything import proposals as module
from napari_hrsam.engine.everything.proposals import propose
from napari_hrsam.geometry import Box

CELLS = 130, 120
SHAPE = 259, 239


class Asked:
    """What was asked of `propose`, which finds `cells`; `before` is called before each tile."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: list[tuple[Box, int]] = []
        self.before: Callable[[], Any] = lambda: None
        self.cells = touching_discs(CELLS)
        monkeypatch.setattr("napari_hrsam.engine.predictor.Predictor", lambda model: model)
        monkeypatch.setattr(module, "loaded", lambda model: model)
        monkeypatch.setattr(module, "propose", self._propose)

    def _propose(self, image: Any, box: Box, level: int, *, progress: Any, **options: Any) -> Any:
        self.calls.append((box, level))

        def step(done: int, total: int) -> None:
            self.before()
            progress(done, total)

        options["model"] = DrawnPredictor(self.cells)
        return propose(image, box, level, largest_px=80, progress=step, **options)
