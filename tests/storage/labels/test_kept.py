"""Labels in memory and their copy on disk: one history, over sessions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.edits import DrawnAs
from napari_hrsam.storage.labels.kept import KeptLabels

SHAPE = (60, 80)
PLACES = (Box(0, 0, 20, 20), Box(30, 10, 50, 40), Box(10, 10, 35, 30))


@contextmanager
def opened(folder: Path, array: NDArray[np.uint32] | None = None) -> Iterator[KeptLabels]:
    """Open a session's labels in memory: new ones that take up the copy, or an array as it is."""
    make = open_labels if (folder / "a").exists() else create_labels
    copy = make(folder / "a", "cells", *([] if make is open_labels else [SHAPE]))
    with copy:
        is_new = array is None
        yield KeptLabels(
            np.zeros(SHAPE, np.uint32) if array is None else array, copy, takes_up=is_new
        )


def draw(labels: KeptLabels, label: int, object_class: str | None = None) -> NDArray[np.uint32]:
    box = PLACES[label - 1]
    drawn = DrawnAs(model="m", object_class=object_class)
    labels.write(box, np.ones(box.shape_yx, bool), label, overwrite=True, drawn=drawn)
    return labels.array.copy()


def undo(labels: KeptLabels) -> int:
    edit = labels.newest_done()
    assert edit is not None
    labels.revert(edit)
    return edit.label


def redo(labels: KeptLabels) -> int:
    edit = labels.next_undone()
    assert edit is not None
    labels.apply(edit)
    return edit.label


def require_same(labels: KeptLabels, expected: NDArray[np.uint32]) -> None:
    np.testing.assert_array_equal(labels.array, expected)
    np.testing.assert_array_equal(labels._copy.read(), expected)


def test_commits_of_an_earlier_session_are_taken_back_and_made_again(tmp_path: Path) -> None:
    with opened(tmp_path) as labels:
        states = [np.zeros(SHAPE, np.uint32), draw(labels, 1), draw(labels, 2)]
    with opened(tmp_path) as labels:
        states.append(draw(labels, 3))
        assert [edit.label for edit in labels.history().done] == [1, 2, 3]
        for number in (3, 2, 1):
            assert undo(labels) == number
            require_same(labels, states[number - 1])
        assert labels.newest_done() is None
        assert [edit.label for edit in labels.history().undone] == [3, 2, 1]
        for number in (1, 2, 3):
            assert redo(labels) == number
            require_same(labels, states[number])
        assert labels.next_undone() is None


def test_what_was_taken_back_before_is_made_again_after(tmp_path: Path) -> None:
    with opened(tmp_path) as labels:
        draw(labels, 1)
        both = draw(labels, 2)
        undo(labels)
    with opened(tmp_path) as labels:
        assert redo(labels) == 2
        require_same(labels, both)
        undo(labels)
        draw(labels, 3)
        assert labels.next_undone() is None


def test_classes_of_an_earlier_session_are_taken_back(tmp_path: Path) -> None:
    with opened(tmp_path) as labels:
        draw(labels, 1, "nucleus")
        labels.set_class(1, "debris")
    with opened(tmp_path) as labels:
        undo(labels)
        assert labels.properties == labels._copy.properties
        assert [row.object_class for row in labels.objects()] == ["nucleus"]
        redo(labels)
        assert [row.object_class for row in labels.objects()] == ["debris"]


def test_what_others_wrote_into_the_array_stays(tmp_path: Path) -> None:
    with opened(tmp_path) as labels:
        draw(labels, 1)
    with opened(tmp_path) as labels:
        labels.array[5:8, 5:60] = 9
        undo(labels)
        assert (labels.array[5:8, 5:60] == 9).all()
        assert np.count_nonzero(labels.array) == 3 * 55
        redo(labels)
        assert (labels.array[5:8, 5:60] == 9).all()
        assert np.count_nonzero(labels.array == 1) == 20 * 20 - 3 * 15


@pytest.mark.parametrize("is_same", [True, False])
def test_an_array_of_another_content_offers_no_earlier_commits(
    tmp_path: Path, is_same: bool
) -> None:
    with opened(tmp_path) as labels:
        array = draw(labels, 1)
    array[50, 50] = 0 if is_same else 7
    with opened(tmp_path, array) as labels:
        assert (labels.newest_done() is not None) == is_same
