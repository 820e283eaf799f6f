"""Objects are found in labels of any size, wherever they lie."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels import search
from napari_hrsam.storage.labels.pyramid import PyramidLabels

SHAPE = (3001, 4003)


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[PyramidLabels]:
    with create_labels(tmp_path / "a", "cells", SHAPE) as made:
        yield made


def test_where_level_0_is_small_the_box_is_the_smallest(labels: PyramidLabels) -> None:
    labels.levels[0][700:703, 800:1900] = 6
    labels.levels[0][2999, 5] = 6
    assert labels.find(6) == Box(700, 5, 3000, 1900)


def test_from_a_coarser_level_the_object_is_followed_to_its_ends(
    labels: PyramidLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its thin arms are not seen there, as when a program picks every n-th pixel."""
    monkeypatch.setattr(search, "MAX_SEARCHED_PX", 1000 * 1001)
    labels.levels[0][1500:1600, 1500:1600] = 6
    labels.levels[0][1599:2700, 1599] = 6
    labels.levels[0][2699, 1599:3500] = 6
    for step in range(1499, 9, -1):
        labels.levels[0][step, step] = 6
    labels.levels[2][376:400, 376:400] = 6
    found = labels.find(6)
    exact = Box(10, 10, 2700, 3500)
    assert found.union(exact) == found
    assert found.union(Box(0, 0, 3001, 4003)) == Box(0, 0, 3001, 4003)
    inside = labels.read(found) == 6
    assert inside.sum() == (labels.read() == 6).sum()


def test_an_object_that_coarser_levels_do_not_show_is_found(
    labels: PyramidLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_SEARCHED_PX", 500 * 501)
    labels.levels[0][2001, 3001] = 6
    assert labels.find(6) == Box(2001, 3001, 2002, 3002)
    with pytest.raises(LabelsError, match="got 5; there is no object at all"):
        labels.find(5)
    labels.levels[3][0, 0] = 3
    with pytest.raises(LabelsError, match="got 5; the nearest there are 3"):
        labels.find(5)


def test_parts_that_only_the_journal_knows_are_found(
    labels: PyramidLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_SEARCHED_PX", 500 * 501)
    label = labels.next_label()
    labels.write(Box(100, 100, 400, 400), np.ones((300, 300), bool), label)
    labels.write(Box(2500, 3500, 2501, 3501), np.ones((1, 1), bool), label)
    for array in labels.levels[1:]:
        array[array.shape[0] // 2 :] = 0
    assert labels.find(label).contains((2500, 3500))


def test_only_cells_that_may_hold_it_are_read(
    labels: PyramidLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_SEARCHED_PX", 500 * 501)
    labels.write(Box(0, 0, 3001, 4003), np.ones(SHAPE, bool), 1)
    box = Box(1100, 1100, 1110, 1110)
    labels.write(box, np.ones((10, 10), bool), 2, overwrite=True)
    read = 0
    cell = type(labels._writer.grids[0]).read

    def counted(self: object, *where: object) -> object:
        nonlocal read
        read += 1
        return cell(self, *where)  # type: ignore[arg-type]

    monkeypatch.setattr(type(labels._writer.grids[0]), "read", counted)
    found = labels.find(2)
    assert found.union(box) == found
    assert read <= 6, "the coarse level, the cell of the edit, and its four sides"


def test_it_is_found_after_a_restart_and_in_its_plane_alone(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a", "cells", (3, 90, 80)) as labels:
        labels.write(Box(5, 6, 9, 12), np.ones((4, 6), bool), 4, plane=(2,))
    with open_labels(tmp_path / "a", "cells") as labels:
        assert labels.find(4, (2,)) == Box(5, 6, 9, 12)
        newest = labels.newest_of(4, (2,))
        assert newest is not None
        assert newest.plane == (2,)
        assert labels.newest_of(4, (1,)) is None
        with pytest.raises(LabelsError, match="name its plane"):
            labels.find(4, (1,))
