"""Many objects drawn at once: one step, which comes whole, goes whole and survives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.check import verify_labels
from napari_hrsam.storage.labels.edits import DrawnAs
from napari_hrsam.storage.labels.kept import KeptLabels
from napari_hrsam.storage.labels.store import LabelStore

SHAPE = 700, 1100


@pytest.fixture(params=["array", "folder", "kept"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Any]:
    if request.param == "array":
        yield ArrayLabels(SHAPE)
        return
    with create_labels(tmp_path / "labels", "cells", like=SHAPE) as labels:
        if request.param == "folder":
            yield labels
        else:
            yield KeptLabels(np.zeros(SHAPE, np.uint32), labels, takes_up=False)


def squares(first: int, num: int = 20) -> tuple[NDArray[np.uint32], dict[int, float]]:
    """Touching squares of 30 px, on both sides of where chunks end."""
    new = np.zeros(SHAPE, np.uint32)
    for index in range(num):
        y, x = 480 + 30 * (index // 10), 400 + 30 * (index % 10)
        new[y : y + 30, x : x + 30] = first + index
    return new, {first + index: index / num for index in range(num)}


def part_of(new: NDArray[np.uint32]) -> Callable[[Box], NDArray[np.uint32]]:
    return lambda part: new[part.slices]


def accept(store: Any, box: Box | None = None) -> Any:
    new, scores = squares(store.next_label())
    drawn = DrawnAs(model="some", level=1)
    return store.accept(box or Box.of_shape(SHAPE), part_of(new), scores, drawn=drawn)


def test_it_is_one_step_that_leaves_what_was_there(store: Any) -> None:
    assert isinstance(store, LabelStore)
    mask = np.ones((40, 70), bool)
    mask[0, 0] = False
    store.write(Box(470, 390, 510, 460), mask, store.next_label())
    before = store.read().copy()
    edit = accept(store)
    new, _ = squares(2)
    expected = np.where(before == 0, new, before)
    assert np.array_equal(store.read(), expected)
    assert (edit.kind, edit.label) == ("accept", 21)
    # Those that the old one covers have no pixel.
    assert [one.label for one in edit.objects] == sorted(set(np.unique(expected)) - {0, 1})
    for one in edit.objects:
        mask = expected == one.label
        assert one.area_px == mask.sum()
        assert one.box == Box.around(mask)
        assert one.score == pytest.approx((one.label - 2) / 20)
    assert store.newest_done().kind == "accept"
    store.revert(edit)
    assert np.array_equal(store.read(), before)
    store.apply(edit)
    assert np.array_equal(store.read(), expected)
    assert store.next_label() == 22


def test_the_list_of_objects_follows(store: Any) -> None:
    listed = store.object_list()
    edit = accept(store)
    changed = listed.edited(edit, is_undone=False)
    assert {label for _, label in changed} == set(range(1, 21))
    assert len(listed) == 20
    row = listed.rows()[3]
    assert (row.label, row.area_px, row.model, row.level) == (4, 900, "some", 1)
    assert row.box == Box(480, 490, 510, 520)
    assert row.score == pytest.approx(0.15)
    store.revert(edit)
    listed.edited(edit, is_undone=True, newest=store.newest_of(edit.label))
    assert len(listed) == 0
    store.apply(edit)
    listed.edited(edit, is_undone=False)
    assert [row.area_px for row in listed.rows()] == [900] * 20
    assert [row.area_px for row in store.object_list().rows()] == [900] * 20
    assert store.newest_of(20).box == row.box.shifted(30, 180)


def test_what_cannot_be_accepted_is_refused_and_nothing_changes(store: Any) -> None:
    edit = accept(store)
    whole, before = Box.of_shape(SHAPE), store.read().copy()
    new, scores = squares(edit.label + 1)
    with pytest.raises(LabelsError, match="expected at least one free pixel for 20 objects"):
        store.accept(whole, part_of(new), scores)
    with pytest.raises(LabelsError, match="expected ids that were never used, from 21 on, got 5"):
        store.accept(whole, part_of(new), {5: 0.1})
    with pytest.raises(LabelsError, match="expected 1 to 10,000 objects"):
        store.accept(whole, part_of(new), {})
    with pytest.raises(LabelsError, match="expected 1 to 10,000 objects"):
        store.accept(whole, part_of(new), dict.fromkeys(range(21, 10_022), 0.0))
    with pytest.raises(LabelsError):
        store.accept(whole.shifted(1, 0), part_of(new), scores)
    assert np.array_equal(store.read(), before)
    assert len(store.history().done) == 1


def test_an_object_of_them_is_changed_and_deleted_like_any_other(store: Any) -> None:
    accept(store)
    assert store.replace(7, store.find(7), None) is not None
    assert not (store.read() == 7).any()
    assert [row.label for row in store.object_list().rows()] == [
        label for label in range(1, 21) if label != 7
    ]


def test_on_disk_every_level_shows_it_and_it_survives(tmp_path: Path) -> None:
    with create_labels(tmp_path, "cells", like=SHAPE) as labels:
        edit = accept(labels)
        assert len(labels.levels) > 1
    report = verify_labels(tmp_path, "cells")
    assert not report.problems
    with open_labels(tmp_path, "cells") as labels:
        again = labels.newest_done()
        assert again is not None
        assert again.objects == edit.objects
        labels.revert(again)
        assert not labels.read().any()
        assert not labels.read(level=1).any()
        assert labels.next_label() == 21
    assert open_labels(tmp_path, "cells", mode="r").objects() == []


def test_a_failure_on_the_way_leaves_all_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_labels(tmp_path, "cells", like=SHAPE) as labels:

        def full(*_: object, **__: object) -> None:
            raise LabelsError("disk full")

        with monkeypatch.context() as patched:
            patched.setattr(labels._writer.files, "finish", full)
            with pytest.raises(LabelsError, match="disk full"):
                accept(labels)
        assert not labels.read().any()
        assert labels.newest_done() is None
        accept(labels)
        assert (labels.read() > 0).sum() == 20 * 900
