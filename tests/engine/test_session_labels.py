"""A session that commits to labels in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import napari_hrsam as hrsam
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.labels.edits import Edit
from napari_hrsam.storage.labels.store import LabelStore


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    hrsam.create_labels(tmp_path / "labels", "cells", (200, 160)).close()
    return tmp_path / "labels"


def committed(labels: hrsam.LabelWriter) -> NDArray[Any]:
    return labels.read(Box.of_shape(labels.shape_yx))


def test_commits_are_undone_and_redone_by_a_session_of_another_day(
    model: Any, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]], folder: Path
) -> None:
    image, _ = scene
    with (
        hrsam.open_labels(folder, "cells") as labels,
        hrsam.Session(model, image, labels) as session,
    ):
        square = np.zeros((200, 160), bool)
        prediction = session.click((50, 60), level=0)
        square[prediction.box.slices] = prediction.mask
        edit = session.commit()
        assert (edit.label, edit.model, len(edit.prompts)) == (1, "colour", 1)
        np.testing.assert_array_equal(committed(labels) == 1, square)
    with (
        hrsam.open_labels(folder, "cells") as labels,
        hrsam.Session(model, image, labels) as session,
    ):
        assert session.can_undo
        assert not session.can_redo
        undone = session.undo()
        assert isinstance(undone, Edit)
        assert undone.prompts == edit.prompts
        assert not committed(labels).any()
    with (
        hrsam.open_labels(folder, "cells") as labels,
        hrsam.Session(model, image, labels) as session,
    ):
        assert not session.can_undo
        assert isinstance(session.redo(), Edit)
        np.testing.assert_array_equal(committed(labels) == 1, square)
        session.undo()
        session.click((50, 60), level=0)
        assert session.commit().label == 2
        assert not session.can_redo


@pytest.mark.parametrize("is_on_disk", [True, False])
def test_the_history_is_that_of_the_labels_whoever_changes_them(
    model: Any, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]], folder: Path, is_on_disk: bool
) -> None:
    """Another model, a second session, or a program that writes beside the session."""
    image, _ = scene
    labels = hrsam.open_labels(folder, "cells") if is_on_disk else hrsam.ArrayLabels((200, 160))
    first = hrsam.Session(model, image, labels)
    for place in ((50, 60), (180, 140)):
        first.click(place, level=0)
        first.commit(overwrite=True)
    session = first.with_model(model).with_model(model)
    assert not first.can_undo
    assert first.undo() is None
    other = hrsam.Session(model, image, labels)
    for _ in range(2):
        assert [session.undo().label, other.undo().label] == [2, 1]  # type: ignore[union-attr]
        assert not session.can_undo
        assert not other.can_undo
        assert session.undo() is None
        assert [other.redo().label, session.redo().label] == [1, 2]  # type: ignore[union-attr]
        assert not session.can_redo
        assert session.redo() is None
    labels.write(Box(0, 0, 9, 9), np.ones((9, 9), bool), labels.next_label(), overwrite=True)
    assert session.undo().label == 3  # type: ignore[union-attr]
    again = session.with_model(model)
    assert again.redo().label == 3  # type: ignore[union-attr]
    if isinstance(labels, hrsam.LabelWriter):
        labels.close()


class FailingLabels(hrsam.ArrayLabels):
    """Labels on a disk that is full for a while."""

    def __init__(self, shape: tuple[int, int]) -> None:
        super().__init__(shape)
        self.is_full = False

    def revert(self, edit: Edit) -> None:
        if self.is_full:
            raise LabelsError("full")
        super().revert(edit)

    def apply(self, edit: Edit) -> None:
        if self.is_full:
            raise LabelsError("full")
        super().apply(edit)


def test_an_undo_or_redo_that_fails_can_be_tried_again(
    model: Any, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]]
) -> None:
    image, _ = scene
    labels = FailingLabels((200, 160))
    with hrsam.Session(model, image, labels) as session:
        session.click((50, 60), level=0)
        session.commit()
        there = labels.array.copy()
        labels.is_full = True
        with pytest.raises(LabelsError):
            session.undo()
        assert session.can_undo
        labels.is_full = False
        session.undo()
        labels.is_full = True
        with pytest.raises(LabelsError):
            session.redo()
        assert session.can_redo
        labels.is_full = False
        session.redo()
        assert there.any()
        np.testing.assert_array_equal(labels.array, there)


def test_labels_of_another_shape_or_with_planes_are_refused(
    model: Any, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]], tmp_path: Path
) -> None:
    with (
        hrsam.create_labels(tmp_path / "a", "stack", (3, 200, 160)) as labels,
        pytest.raises(LabelsError, match=r"shape \(200, 160\), got \(3, 200, 160\); give labels"),
    ):
        hrsam.Session(model, scene[0], labels)


def test_labels_in_memory_are_made_when_they_are_needed(
    model: Any, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]], monkeypatch: Any
) -> None:
    monkeypatch.setattr("napari_hrsam.storage.labels.array_labels.MAX_DENSE_PIXELS", 10_000)
    with hrsam.Session(model, scene[0]) as session:
        prediction = session.click((50, 60), level=0)
        with pytest.raises(LabelsError, match=r"got 200 x 160; keep them in a folder: create_labe"):
            session.commit()
        assert session.prediction is prediction


def test_both_kinds_of_labels_are_label_stores(folder: Path) -> None:
    with hrsam.open_labels(folder, "cells") as labels:
        stores: list[LabelStore] = [labels, hrsam.ArrayLabels((3, 3))]
        assert all(isinstance(store, LabelStore) for store in stores)


def test_an_object_is_committed_to_its_plane(
    model: Any, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]], tmp_path: Path
) -> None:
    stack = hrsam.open_image(np.stack([np.zeros_like(scene[0]), scene[0]]))
    with (
        hrsam.create_labels(tmp_path / "a", "stack", like=stack) as labels,
        hrsam.Session(model, stack, labels) as session,
    ):
        session.click((50, 60), level=0, plane=(1,))
        assert session.commit().plane == (1,)
        whole = Box.of_shape((200, 160))
        assert labels.read(whole, plane=(1,)).any()
        assert not labels.read(whole, plane=(0,)).any()
        session.undo()
        assert not labels.read(whole, plane=(1,)).any()
    with hrsam.Session(model, stack) as session:
        session.click((50, 60), level=0, plane=(1,))
        with pytest.raises(LabelsError, match="expected .*labels"):
            session.commit()


def test_the_one_plane_of_an_axis_of_length_1_need_not_be_named(
    model: Any, scene: tuple[NDArray[np.uint8], NDArray[np.bool_]], tmp_path: Path
) -> None:
    stack = hrsam.open_image(scene[0][np.newaxis])
    with hrsam.create_labels(tmp_path / "a", "stack", like=stack) as labels:
        for store in (labels, None, np.zeros((200, 160), np.uint16)):
            with hrsam.Session(model, stack, store) as session:
                session.click((50, 60), level=0)
                assert session.commit().label == 1
