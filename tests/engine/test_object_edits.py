"""Committed objects merged, split, filled and smoothed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.draw import disk

import napari_hrsam as hrsam
from napari_hrsam.engine import object_edits
from napari_hrsam.engine.session import Session
from napari_hrsam.errors import LabelsError, PromptError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.labels.store import LabelStore

SHAPE = (200, 160)


def drawn(*discs: tuple[float, float, float]) -> NDArray[np.bool_]:
    mask = np.zeros(SHAPE, bool)
    for y, x, radius in discs:
        mask[disk((y, x), radius, shape=SHAPE)] = True
    return mask


@pytest.fixture(params=["array", "disk"])
def labels(request: Any, tmp_path: Path) -> Iterator[LabelStore]:
    if request.param == "array":
        yield hrsam.ArrayLabels(SHAPE)
    else:
        with hrsam.create_labels(tmp_path / "a.zarr", "cells", SHAPE) as stored:
            yield stored


@pytest.fixture
def session(labels: LabelStore, model: Any) -> Session:
    return Session(model, np.zeros((*SHAPE, 3), np.uint8), labels)


def put(labels: LabelStore, *masks: NDArray[np.bool_]) -> None:
    for mask in masks:
        labels.write(Box.of_shape(SHAPE), mask, labels.next_label(), overwrite=True)


def test_merged_objects_are_one_and_come_apart_again(session: Session, labels: LabelStore) -> None:
    first, second, third = drawn((40, 40, 20)), drawn((90, 40, 25)), drawn((150, 120, 20))
    put(labels, first, second, third)
    before = labels.read()
    edit = session.merge([2, 1, 2])
    assert (edit.label, edit.kind) == (2, "replace")
    np.testing.assert_array_equal(labels.read() == 2, first | second)
    np.testing.assert_array_equal(labels.read() == 3, third)
    assert not (labels.read() == 1).any()
    session.undo()
    np.testing.assert_array_equal(labels.read(), before)
    for wrong in ([1], [1, 1], []):
        with pytest.raises(LabelsError, match="two or more objects to merge"):
            session.merge(wrong)
    with pytest.raises(LabelsError, match="9"):
        session.merge([1, 9])
    np.testing.assert_array_equal(labels.read(), before)


def test_an_object_is_cut_along_a_line(session: Session, labels: LabelStore) -> None:
    both = drawn((60, 60, 30), (60, 105, 24))
    apart, other = drawn((150, 60, 15)), drawn((150, 120, 15))
    put(labels, both | apart, other)
    before = labels.read()
    (edit,) = session.split(1, [(20, 85), (100, 88)])
    after = labels.read()
    assert edit.label == 3
    np.testing.assert_array_equal((after == 1) | (after == 3), both | apart)
    left, right = drawn((60, 60, 30)), drawn((60, 105, 24)) & ~drawn((60, 60, 30))
    assert (after[left & ~right] == 1).mean() > 0.97, "the largest piece keeps its id"
    assert (after[right] == 3).mean() > 0.9
    assert (after[apart] == 1).all(), "what the line does not touch stays"
    np.testing.assert_array_equal(after == 2, other)
    session.undo()
    np.testing.assert_array_equal(labels.read(), before)


def test_a_line_that_crosses_twice_makes_three(session: Session, labels: LabelStore) -> None:
    bar = np.zeros(SHAPE, bool)
    bar[80:120, 20:140] = True
    put(labels, bar)
    edits = session.split(1, [(60, 50), (140, 50), (140, 100), (60, 100)])
    assert [edit.label for edit in edits] == [2, 3]
    sizes = sorted(int((labels.read() == n).sum()) for n in (1, 2, 3))
    assert sum(sizes) == bar.sum()
    assert min(sizes) > 1000


@pytest.mark.parametrize("line", [[(20, 85), (50, 85)], [(5, 5), (5, 20)], [(60, 60)]])
def test_a_line_that_cuts_nothing_is_told(
    line: list[tuple[float, float]], session: Session, labels: LabelStore
) -> None:
    put(labels, drawn((60, 85, 30)))
    before = labels.read()
    with pytest.raises(LabelsError, match="expected a line that cuts object 1 in two"):
        session.split(1, line)
    np.testing.assert_array_equal(labels.read(), before)
    with pytest.raises(PromptError):
        session.split(1, [])


def test_holes_are_filled_and_others_stay(session: Session, labels: LabelStore) -> None:
    whole, hole, other = drawn((80, 80, 40)), drawn((70, 70, 8)), drawn((95, 90, 6))
    put(labels, whole & ~hole & ~other, other)
    edit = session.fill_holes(1)
    assert edit is not None
    np.testing.assert_array_equal(labels.read() == 1, whole & ~other)
    np.testing.assert_array_equal(labels.read() == 2, other)
    assert session.fill_holes(1) is None
    session.undo()
    np.testing.assert_array_equal(labels.read() == 1, whole & ~hole & ~other)


def test_a_ragged_outline_is_smoothed(session: Session, labels: LabelStore) -> None:
    clean = drawn((100, 80, 40))
    ragged = clean.copy()
    ragged[98:102, 120:126] = True
    ragged[60:66, 79:81] = False
    neighbour = np.zeros(SHAPE, bool)
    neighbour[90:110, 127:140] = True
    put(labels, ragged, neighbour)
    assert session.smooth(1) is not None
    found = labels.read() == 1
    assert not found[99:101, 124:126].any(), "the spike is gone"
    assert found[64:66, 79:81].all(), "the notch is filled"
    assert (found & clean).sum() > 0.99 * (found | clean).sum()
    np.testing.assert_array_equal(labels.read() == 2, neighbour)
    with pytest.raises(LabelsError, match="a radius above 0"):
        session.smooth(1, radius_px=0)
    put(labels, drawn((20, 20, 2)))
    with pytest.raises(LabelsError, match="leaves something of"):
        session.smooth(3, radius_px=3)


def test_the_border_of_the_image_is_no_outline(session: Session, labels: LabelStore) -> None:
    half = np.zeros(SHAPE, bool)
    half[:100] = True
    put(labels, half)
    session.smooth(1, radius_px=6)
    assert (labels.read()[:90] == 1).all()


def test_an_object_being_drawn_comes_first(session: Session, labels: LabelStore) -> None:
    put(labels, drawn((60, 60, 20)), drawn((120, 60, 20)))
    session.click((10, 150), level=0)
    for act in (
        lambda: session.merge([1, 2]),
        lambda: session.split(1, [(0, 60), (199, 60)]),
        lambda: session.fill_holes(1),
        lambda: session.smooth(1),
    ):
        with pytest.raises(SessionError, match="expected no current object"):
            act()


def test_what_would_not_fit_into_memory_is_refused(
    session: Session, labels: LabelStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(labels, drawn((60, 60, 20)))
    monkeypatch.setattr(object_edits, "MAX_OBJECT_PX", 100)
    with pytest.raises(LabelsError, match="at most 100 pixels"):
        session.fill_holes(1)
