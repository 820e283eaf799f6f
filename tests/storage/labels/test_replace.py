"""Objects are replaced and deleted in one edit, in memory, on disk and in both."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from discs import Disc
from hypothesis import given, settings
from hypothesis import strategies as st
from label_checks import require_consistent_levels
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import ArrayMask
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.check import verify_labels
from napari_hrsam.storage.labels.journal_facts import JOURNAL_FILE, read_journal
from napari_hrsam.storage.labels.kept import KeptLabels
from napari_hrsam.storage.labels.pyramid import PyramidLabels

SHAPE = (300, 400)
WHOLE = Box(0, 0, *SHAPE)


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[PyramidLabels]:
    monkeypatch.setattr("napari_hrsam.storage.labels.making.CHUNK_PX", 64)
    with create_labels(tmp_path / "a", "cells", SHAPE) as made:
        yield made


@pytest.fixture(params=["array", "disk", "kept"])
def labels(request: Any, stored: PyramidLabels) -> Any:
    if request.param == "array":
        return ArrayLabels(SHAPE)
    if request.param == "disk":
        return stored
    return KeptLabels(np.zeros(SHAPE, np.uint32), stored, takes_up=True)


def pixels(labels: Any) -> NDArray[Any]:
    found = np.array(labels.read(WHOLE))
    if isinstance(labels, KeptLabels):
        np.testing.assert_array_equal(found, labels._copy.read(WHOLE))
    return found


@pytest.mark.parametrize("seed", range(6))
def test_any_mask_replaces_any_other_and_is_taken_back(labels: Any, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for label in range(1, 7):
        centre = rng.integers(90, 210, 2)
        disc = Disc((int(centre[0]), int(centre[1])), int(rng.integers(20, 90)))
        labels.write(disc.box, disc, label, overwrite=True)
    states = [pixels(labels)]
    for label in rng.permutation(np.unique(states[0])[1:]).tolist():
        before, overwrite = states[-1], bool(rng.random() < 0.5)
        if not (before == label).any():
            continue
        box = labels.find(label)
        centre, radius = rng.integers(90, 210, 2), int(rng.integers(20, 90))
        new = None if rng.random() < 0.3 else Disc((int(centre[0]), int(centre[1])), radius)
        wanted = np.zeros(SHAPE, bool) if new is None else new.read(WHOLE)
        expected = np.where(before == label, 0, before)
        expected[wanted & ((before == label) | (before == 0) | overwrite)] = label
        if new is not None and not (expected == label).any():
            with pytest.raises(LabelsError, match="at least one free pixel"):
                labels.replace(label, box, new, overwrite=overwrite)
            continue
        edit = labels.replace(label, box, new, overwrite=overwrite)
        assert edit is not None
        assert edit.box == Box.around(expected != before)
        assert edit.kind == ("delete" if new is None else "replace")
        np.testing.assert_array_equal(pixels(labels), expected)
        assert labels.replace(label, box, new, overwrite=overwrite) is None
        states.append(expected)
    for state in reversed(states[:-1]):
        labels.revert(labels.newest_done())
        np.testing.assert_array_equal(pixels(labels), state)
    for state in states[1:]:
        labels.apply(labels.next_undone())
        np.testing.assert_array_equal(pixels(labels), state)
    if isinstance(labels, PyramidLabels):
        require_consistent_levels(labels)
        labels.close()
        with open_labels(labels.folder.parents[1], "cells") as again:
            np.testing.assert_array_equal(pixels(again), states[-1])
        assert verify_labels(labels.folder.parents[1], "cells").is_sound


def test_pixels_of_the_object_outside_the_box_stay(labels: Any) -> None:
    labels.write(Box(10, 10, 30, 200), np.ones((20, 190), bool), 5)
    labels.replace(5, Box(0, 0, 300, 100), ArrayMask(Box(15, 15, 18, 18), np.ones((3, 3), bool)))
    found = pixels(labels) == 5
    assert found[10:30, 100:200].all()
    assert found[:, :100].sum() == 9


def test_what_would_leave_no_pixel_or_lies_outside_is_refused(labels: Any) -> None:
    labels.write(Box(10, 10, 30, 30), np.ones((20, 20), bool), 5)
    labels.write(Box(50, 50, 90, 90), np.ones((40, 40), bool), 6)
    before = pixels(labels)
    under = ArrayMask(Box(60, 60, 70, 70), np.ones((10, 10), bool))
    with pytest.raises(LabelsError, match="a mask of 100 pixels that all belong"):
        labels.replace(5, labels.find(5), under)
    with pytest.raises(LabelsError, match="box inside the labels"):
        labels.replace(5, Box(0, 0, 301, 10), under)
    with pytest.raises(LabelsError, match="between 1 and"):
        labels.replace(0, Box(0, 0, 30, 10), None)
    np.testing.assert_array_equal(pixels(labels), before)
    assert len(labels.history().done) == 2


def test_a_kept_copy_takes_over_what_others_drew(stored: PyramidLabels) -> None:
    labels = KeptLabels(np.zeros(SHAPE, np.uint32), stored, takes_up=True)
    labels.array[10:50, 10:50] = 9
    box = Box(10, 10, 50, 60)
    edit = labels.replace(9, Box(10, 10, 50, 50), ArrayMask(box, np.ones((40, 50), bool)))
    assert edit is not None
    assert edit.box == Box(10, 50, 50, 60)
    assert (stored.read(box) == 9).all()
    newest = labels.newest_of(9)
    assert newest is not None
    labels.revert(edit)
    assert not stored.read(box).any()
    assert (labels.array == 9).sum() == 1600
    labels.array[100:110, 100:110] = 3
    gone = labels.replace(3, labels.find(3), None)
    assert gone is not None
    labels.revert(gone)
    labels.apply(gone)
    assert not (labels.array == 3).any()


def test_a_deleted_object_is_not_missing_and_another_programs_levels_are_its_own(
    stored: PyramidLabels,
) -> None:
    root = stored.folder.parents[1]
    label = stored.next_label()
    stored.write(Box(10, 10, 30, 30), np.ones((20, 20), bool), label)
    stored.replace(label, Box(10, 10, 30, 30), None)
    # Another program picks every second pixel for the next level.
    values = stored.levels[0][...]
    values[101:200, 101:103] = 7
    stored.levels[0][...] = values
    for level in range(1, len(stored.levels)):
        stored.levels[level][...] = values[:: 2**level, :: 2**level]
    added = ArrayMask(Box(100, 101, 200, 104), np.ones((100, 3), bool))
    stored.replace(7, stored.find(7), added)
    facts = read_journal(stored.folder)
    assert facts is not None
    assert [commit.kind for commit in facts.commits] == ["draw", "delete", "replace"]
    stored.close()
    report = verify_labels(root, "cells")
    assert report.is_sound, report.problems


def test_a_journal_from_before_scribbles_is_read(stored: PyramidLabels) -> None:
    stored.write(Box(10, 10, 30, 30), np.ones((20, 20), bool), 4)
    said = {"points_yx": [[1.5, 2.0]], "labels": [True], "box": None}
    with sqlite3.connect(stored.folder / JOURNAL_FILE) as database:
        database.execute("UPDATE edits SET prompts = ?", [json.dumps(said)])
    database.close()
    edit = stored.newest_done()
    assert edit is not None
    assert edit.prompts == Prompts().with_click((1.5, 2), True)
    assert edit.kind == "draw"
    for wrong in (
        {**said, "kind": "burn"},
        {**said, "scribbles": [{"points_yx": []}]},
        {**said, "scribbles": [{"points_yx": [[1, 2]], "colour": 3}]},
    ):
        with sqlite3.connect(stored.folder / JOURNAL_FILE) as database:
            database.execute("UPDATE edits SET prompts = ?", [json.dumps(wrong)])
        database.close()
        with pytest.raises(LabelsError, match="an intact journal"):
            stored.newest_done()


@settings(deadline=None, max_examples=25)
@given(st.integers(0, 10_000))
def test_an_edit_in_memory_changes_nothing_else(seed: int) -> None:
    rng = np.random.default_rng(seed)
    labels = ArrayLabels(rng.integers(0, 4, (12, 14)).astype(np.uint16))
    labels.array[0, 0] = 2
    before = labels.array.copy()
    mask = ArrayMask(Box(2, 3, 10, 11), rng.random((8, 8)) < 0.5)
    box = Box(0, 0, 7, 9)
    mask._array[0, 0] = True
    edit = labels.replace(2, box, mask, overwrite=True)
    wanted = mask.read(Box(0, 0, 12, 14))
    inside = np.zeros((12, 14), bool)
    inside[box.slices] = True
    expected = np.where(wanted, 2, np.where(inside & (before == 2), 0, before))
    np.testing.assert_array_equal(labels.array, expected)
    if edit is not None:
        labels.revert(edit)
    np.testing.assert_array_equal(labels.array, before)
