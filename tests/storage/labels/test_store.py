from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_hrsam.errors import LabelsError, ShapeError
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.edits import DrawnAs, Edit, History
from napari_hrsam.storage.labels.store import LabelStore

SQUARE = np.ones((4, 5), bool)
PLACE = Box(2, 3, 6, 8)


def test_new_labels_are_uint32_zeros() -> None:
    labels = ArrayLabels((6, 9))
    assert labels.array.dtype == np.uint32
    assert labels.shape_yx == (6, 9)
    assert labels.next_label() == 1


def test_an_object_is_written_in_place_with_a_tight_edit() -> None:
    array = np.zeros((20, 20), np.uint32)
    labels = ArrayLabels(array)
    mask = np.zeros((10, 10), bool)
    mask[2:5, 3:4] = True
    prompts = Prompts().with_click((5, 5), True)
    edit = labels.write(Box(4, 4, 14, 14), mask, 9, drawn=DrawnAs(prompts=prompts, model="colour"))
    assert edit.box == Box(6, 7, 9, 8)
    assert (array == 9).sum() == 3
    assert (array[edit.box.slices] == 9).all()
    assert (edit.label, edit.prompts, edit.model) == (9, prompts, "colour")
    assert edit.time > 1.6e9
    assert (edit.before == 0).all()
    assert (edit.after == 9).all()
    assert edit.num_bytes == 24
    with pytest.raises(ValueError, match="read-only"):
        edit.after[:] = 0


def test_other_objects_stay_unless_they_may_be_overwritten() -> None:
    labels = ArrayLabels((10, 10))
    labels.write(Box(0, 0, 4, 10), np.ones((4, 10), bool), 1)
    labels.write(PLACE, SQUARE, 2)
    assert (labels.array == 1).sum() == 40
    assert (labels.array == 2).sum() == 10
    labels.write(PLACE, SQUARE, 3, overwrite=True)
    assert (labels.array == 3).sum() == 20


def test_a_fully_covered_object_is_refused_with_a_way_out() -> None:
    labels = ArrayLabels(np.full((10, 10), 7, np.uint32))
    with pytest.raises(LabelsError, match=r"a mask of 20 pixels.*overwrite=True"):
        labels.write(PLACE, SQUARE, 8)
    assert (labels.array == 7).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.booleans())
def test_revert_and_apply_restore_exactly(seed: int, overwrite: bool) -> None:
    rng = np.random.default_rng(seed)
    labels = ArrayLabels(
        rng.integers(0, 3, (12, 12)) * (rng.random((12, 12)) < 0.1).astype(np.uint16)
    )
    # One pixel of every mask is free for certain.
    labels.array[1:5, 2] = 0
    states, edits = [labels.array.copy()], []
    for row in range(4):
        mask = rng.random((8, 7)) < 0.2
        mask[:4, 0] = np.arange(4) == row
        edits.append(labels.write(Box(1, 2, 9, 9), mask, labels.next_label(), overwrite=overwrite))
        states.append(labels.array.copy())
    for edit, state in zip(reversed(edits), reversed(states[:-1]), strict=True):
        labels.revert(edit)
        np.testing.assert_array_equal(labels.array, state)
    for edit, state in zip(edits, states[1:], strict=True):
        labels.apply(edit)
        np.testing.assert_array_equal(labels.array, state)


def test_revert_leaves_what_others_drew_beside_the_object() -> None:
    labels = ArrayLabels((10, 10))
    mask = SQUARE.copy()
    mask[0, 0] = False
    edit = labels.write(PLACE, mask, 1)
    labels.array[2, 3] = 77
    labels.revert(edit)
    assert labels.array[2, 3] == 77
    assert (labels.array != 0).sum() == 1


def test_ids_continue_after_the_highest_also_beyond_65535() -> None:
    array = np.zeros((10, 10), np.int64)
    array[0, 0] = 65_535
    labels = ArrayLabels(array)
    for expected in (65_536, 65_537):
        label = labels.next_label()
        assert label == expected
        labels.write(Box(expected - 65_530, 0, expected - 65_529, 1), np.ones((1, 1), bool), label)
        assert array.max() == expected
    array[9, 9] = 100_000
    assert labels.next_label() == 100_001


def test_negative_labels_are_left_alone() -> None:
    assert ArrayLabels(np.full((3, 3), -5, np.int16)).next_label() == 1


@pytest.mark.parametrize(("dtype", "highest"), [("u1", 255), ("i1", 127), (">u2", 65_535)])
def test_an_id_never_wraps(dtype: str, highest: int) -> None:
    array = np.zeros((5, 5), dtype)
    array[0, 0] = highest
    labels = ArrayLabels(array)
    message = rf"between 1 and {highest}.*got {highest + 1}; convert.*astype\(numpy.uint32\)"
    with pytest.raises(LabelsError, match=message):
        labels.next_label()
    with pytest.raises(LabelsError, match=message):
        labels.write(Box(1, 1, 2, 2), np.ones((1, 1), bool), highest + 1)
    with pytest.raises(LabelsError, match="got 0"):
        labels.write(Box(1, 1, 2, 2), np.ones((1, 1), bool), 0)
    assert (array != 0).sum() == 1


def test_mask_and_box_must_belong_together_and_to_the_image() -> None:
    labels = ArrayLabels((10, 10))
    with pytest.raises(ShapeError, match=r"shape of its box \(4, 5\), got \(5, 4\)"):
        labels.write(PLACE, SQUARE.T, 1)
    with pytest.raises(LabelsError, match=r"a box inside the labels of shape \(10, 10\)"):
        labels.write(PLACE.shifted(5, 0), SQUARE, 1)
    with pytest.raises(LabelsError, match="clip the box"):
        labels.write(PLACE.shifted(-3, 0), SQUARE, 1)


@pytest.mark.parametrize(
    "array", [np.zeros((3, 3)), np.zeros((3, 3), bool), np.zeros((3, 3, 3), np.uint8)]
)
def test_labels_must_be_2d_integers(array: Any) -> None:
    with pytest.raises(LabelsError, match="expected labels as a 2-D array of integers, got shape"):
        ArrayLabels(array)


def test_read_only_labels_are_refused() -> None:
    array = np.zeros((3, 3), np.uint32)
    array.flags.writeable = False
    with pytest.raises(LabelsError, match="got a read-only array; give a copy"):
        ArrayLabels(array)


@pytest.mark.parametrize("value", ["labels", 5, (3,), (0, 4), (2.5, 4), [[1, 2], [3, 4]]])
def test_other_things_than_arrays_and_shapes_are_refused(value: Any) -> None:
    with pytest.raises(LabelsError, match=r"a NumPy array or a shape \(height, width\), got"):
        ArrayLabels(value)


def test_an_array_has_one_plane_and_remembers_its_commits() -> None:
    labels = ArrayLabels((10, 10))
    assert labels.plane_shape == ()
    with pytest.raises(LabelsError, match=r"expected a plane inside.*shape \(\), got \(2,\)"):
        labels.write(PLACE, SQUARE, 1, plane=(2,))
    edit = labels.write(PLACE, SQUARE, 1)
    assert labels.history() == History(done=(edit,))
    labels.revert(edit)
    assert labels.history() == History(undone=(edit,))
    assert (labels.newest_done(), labels.next_undone()) == (None, edit)
    labels.apply(edit)
    assert (labels.newest_done(), labels.next_undone()) == (edit, None)
    labels.revert(edit)
    labels.write(PLACE, SQUARE, 2)
    assert labels.next_undone() is None


def test_edits_of_other_labels_are_refused() -> None:
    labels = ArrayLabels((10, 10))
    with pytest.raises(LabelsError, match="expected an edit made by these labels, got a Edit"):
        labels.revert(Edit(label=1, box=PLACE))
    with pytest.raises(LabelsError, match="give what their write returned"):
        labels.apply(Edit(label=1, box=PLACE))


def test_a_new_label_image_in_memory_is_not_made_for_a_gigapixel_image() -> None:
    with pytest.raises(LabelsError, match=r"got 100000 x 100000; keep them in a folder"):
        ArrayLabels((100_000, 100_000))


def test_label_arrays_are_label_stores() -> None:
    assert isinstance(ArrayLabels((3, 3)), LabelStore)
    assert not isinstance(np.zeros((3, 3), np.uint32), LabelStore)
