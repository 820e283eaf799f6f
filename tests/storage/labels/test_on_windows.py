"""Labels where files that anybody holds are neither replaced nor removed, as on Windows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_checks import require_consistent_levels

from napari_hrsam import atomic_path
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.files import held_places, safe_files
from napari_hrsam.storage.label_image import (
    LabelWriter,
    create_labels,
    open_labels,
    verify_labels,
)
from napari_hrsam.storage.labels.edits import Edit

SQUARE = np.ones((40, 50), bool)


class Windows:
    """Refuses a change of a file some times before it lets it pass."""

    def __init__(self, patch: pytest.MonkeyPatch, times: int) -> None:
        self.times, self.refused, self.all = times, Counter[str](), Counter[str]()
        for name in ("replace", "unlink"):
            patch.setattr(os, name, self.refusing(getattr(os, name)))
        patch.setattr(atomic_path, "IS_WINDOWS", True)
        patch.setattr(atomic_path.time, "sleep", lambda _: None)
        for module in (safe_files, held_places):
            patch.setattr(module, "_IS_POSIX", False)

    def refusing(self, change: Callable[..., None]) -> Callable[..., None]:
        def refused(path: Any, *others: Any, **more: Any) -> None:
            if self.refused[str(path)] < self.times and Path(path).exists():
                self.refused[str(path)] += 1
                self.all[str(path)] += 1
                raise PermissionError(13, "in use by another process", str(path))
            self.refused[str(path)] = 0
            change(path, *others, **more)

        return refused


def put(labels: LabelWriter, label: int, y: int, x: int) -> Edit:
    height, width = SQUARE.shape
    return labels.write(Box(y, x, y + height, x + width), SQUARE, label)


def test_commits_wait_for_files_that_are_held_for_a_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_labels(tmp_path / "a", "cells", (300, 300)) as labels:
        windows = Windows(monkeypatch, times=2)
        edits = [put(labels, 1, 10, 10), put(labels, 2, 30, 10)]
        for edit in reversed(edits):
            labels.revert(edit)
        labels.apply(edits[0])
        require_consistent_levels(labels)
    # The chunk, its backup and its unfinished file, each of them more than once.
    assert windows.all.total() > 10
    with open_labels(tmp_path / "a", "cells") as labels:
        values = labels.read(Box.of_shape((300, 300)))
        assert (values == 1).sum() == SQUARE.sum()
        assert set(np.unique(values)) == {0, 1}
    assert not verify_labels(tmp_path / "a", "cells").problems
    assert not list(tmp_path.rglob("*.partial"))


def test_commit_that_is_refused_for_good_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_labels(tmp_path / "a", "cells", (300, 300)) as labels:
        put(labels, 1, 10, 10)
        with monkeypatch.context() as patch:
            Windows(patch, times=1000)
            with pytest.raises(LabelsError, match="in use by another process"):
                put(labels, 2, 20, 10)
    with open_labels(tmp_path / "a", "cells") as labels:
        values = labels.read(Box.of_shape((300, 300)))
    assert set(np.unique(values)) == {0, 1}
    assert (values == 1).sum() == SQUARE.sum()
