"""Objects of the label image taken up again, replaced under the same id, and deleted."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import napari_hrsam as hrsam
from napari_hrsam.engine.session import Session
from napari_hrsam.engine.taken_up import READ_PX
from napari_hrsam.errors import LabelsError, PromptError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.masks import BlockMask

SHAPE = (200, 160)
Scene = tuple[NDArray[np.uint8], NDArray[np.bool_]]


def speckled(box: Box, seed: int = 0) -> NDArray[np.bool_]:
    """A mask that no model would draw."""
    mask = np.random.default_rng(seed).random(box.shape_yx) < 0.7
    mask[0, 0] = mask[-1, -1] = True
    return mask


@pytest.fixture(params=["array", "disk"])
def labels(request: Any, tmp_path: Path) -> Iterator[Any]:
    if request.param == "array":
        yield hrsam.ArrayLabels(SHAPE)
    else:
        with hrsam.create_labels(tmp_path / "labels", "cells", SHAPE) as made:
            yield made


def foreign(labels: Any, box: Box, label: int, mask: NDArray[np.bool_] | None = None) -> None:
    """Write an object as another program would: the history knows nothing of it."""
    values = labels.array if isinstance(labels, hrsam.ArrayLabels) else None
    mask = np.ones(box.shape_yx, bool) if mask is None else mask
    if values is not None:
        values[box.slices][mask] = label
        return
    for level, array in enumerate(labels.levels):
        step = 2**level
        whole = array[...]
        rows, columns = (np.nonzero(mask)[axis] for axis in (0, 1))
        whole[(rows + box.y0) // step, (columns + box.x0) // step] = label
        array[...] = whole


def everything(labels: Any) -> NDArray[Any]:
    return np.array(labels.read(Box.of_shape(SHAPE)))


def test_an_object_is_taken_up_exactly_and_an_unchanged_commit_writes_nothing(
    model: Any, scene: Scene, labels: Any
) -> None:
    box = Box(30, 40, 75, 90)
    mask = speckled(box)
    foreign(labels, box, 9, mask)
    before = everything(labels)
    session = Session(model, scene[0], labels)
    prediction = session.edit(9)
    assert prediction is session.prediction
    np.testing.assert_array_equal(prediction.region.read(box), mask)
    np.testing.assert_array_equal(prediction.mask, (before == 9)[prediction.box.slices])
    assert prediction.mask.sum() == mask.sum()
    assert prediction.iou == 1.0
    assert not prediction.is_cut
    assert len(session.prompts) == 0
    assert not session.needs_refining
    assert model.num_encoded == 0
    edit = session.commit()
    assert edit.is_empty
    assert (edit.label, edit.kind) == (9, "replace")
    assert session.prediction is None
    assert not session.can_undo
    np.testing.assert_array_equal(everything(labels), before)


def test_a_corrected_object_replaces_the_old_one_in_one_step(
    model: Any, scene: Scene, labels: Any
) -> None:
    """Its lost pixels become background, and what others hold stays unless it is overwritten."""
    foreign(labels, Box(30, 40, 60, 70), 9)
    foreign(labels, Box(66, 70, 90, 90), 4)
    before = everything(labels)
    for overwrite in (False, True):
        session = Session(model, scene[0], labels)
        session.edit(9)
        prediction = session.click((50, 60))
        # The model sees what there was, at the place where it was.
        prior = model.priors[-1][0, 0].numpy()
        inside = before[prediction.box.slices] == 9
        step = int(4 * prediction.tile.downsample)
        coarse = inside[: inside.shape[0] // step * step, : inside.shape[1] // step * step]
        coarse = coarse.reshape(coarse.shape[0] // step, step, -1, step).mean((1, 3))
        seen = prior[: coarse.shape[0], : coarse.shape[1]]
        assert (seen[coarse > 0.9] > 0).all()
        assert (seen[coarse < 0.1] < 0).all()
        prediction = session.refine_outline()
        new = np.zeros(SHAPE, bool)
        new[prediction.box.slices] = prediction.mask
        assert (new & (before == 4)).any()
        edit = session.commit(overwrite=overwrite)
        expected = np.where(before == 9, 0, before)
        expected[new & ((before == 0) | (before == 9) | overwrite)] = 9
        np.testing.assert_array_equal(everything(labels), expected)
        assert (edit.label, edit.kind, edit.model, len(edit.prompts)) == (9, "replace", "colour", 1)
        assert labels.next_label() == 10
        assert [one.label for one in labels.history().done] == [9]
        session.undo()
        np.testing.assert_array_equal(everything(labels), before)
        session.redo()
        np.testing.assert_array_equal(everything(labels), expected)
        session.undo()


def test_a_cancelled_object_is_as_it_was_and_can_be_drawn_on_again(
    model: Any, scene: Scene, labels: Any
) -> None:
    foreign(labels, Box(30, 40, 60, 70), 9)
    before = everything(labels)
    session = Session(model, scene[0], labels)
    session.edit(9)
    session.click((50, 60))
    session.cancel()
    assert session.prediction is None
    np.testing.assert_array_equal(everything(labels), before)
    session.redo()
    assert session.undo() is not None, "as it was taken up"
    assert session.undo() is None
    session.redo()
    np.testing.assert_array_equal(session.prediction.mask.sum(), 900)  # type: ignore[union-attr]
    np.testing.assert_array_equal(everything(labels), before)


def test_the_prompts_of_the_last_commit_are_kept_while_the_mask_agrees_with_them(
    model: Any, scene: Scene, labels: Any
) -> None:
    session = Session(model, scene[0], labels)
    session.box((38, 46, 74, 82))
    session.click((50, 60))
    session.scribble([(20, 20), (25, 30)], positive=False)
    said = session.prompts
    label = session.commit().label
    session = session.with_model(model)
    session.edit(label)
    assert session.prompts == said
    session.click((51, 61))
    assert model.nums_points[-1] == 1 + 2 + 1, "what is inside already is told too"
    assert session.commit().prompts.points_yx == ((50, 60), (51, 61))
    # Another object takes the clicked pixel.
    labels.write(Box(50, 60, 51, 61), np.ones((1, 1), bool), 7, overwrite=True)
    session.edit(label)
    assert len(session.prompts) == 0


def test_an_object_is_taken_up_at_a_point(model: Any, scene: Scene, labels: Any) -> None:
    foreign(labels, Box(30, 40, 60, 70), 9)
    session = Session(model, scene[0], labels)
    assert session.edit_at((59.4, 40)).mask.sum() == 900
    session.cancel()
    with pytest.raises(LabelsError, match=r"object at \(y, x\) = \(60, 40\), got background"):
        session.edit_at((59.6, 40))
    with pytest.raises(PromptError, match="inside the image"):
        session.edit_at((500, 40))
    assert session.prediction is None


def test_what_is_not_there_is_told_with_the_ids_next_to_it(
    model: Any, scene: Scene, labels: Any
) -> None:
    session = Session(model, scene[0], labels)
    with pytest.raises(LabelsError, match="got 5; there is no object at all"):
        session.edit(5)
    for place, label in enumerate((3, 9, 20)):
        foreign(labels, Box(20 * place, 0, 20 * place + 10, 10), label)
    for label, message in [(5, "are 3 and 9"), (21, "are 20"), (1, "are 3")]:
        with pytest.raises(LabelsError, match=rf"got {label}; the nearest there {message}"):
            session.edit(label)
        with pytest.raises(LabelsError, match=rf"got {label}; the nearest there {message}"):
            session.delete(label)
    for wrong in (0, -1, 2**40):
        with pytest.raises(LabelsError, match="expected a label between 1"):
            session.edit(wrong)
    session.edit(9)
    for ask in (session.edit, session.delete):
        with pytest.raises(SessionError, match="commit or cancel it"):
            ask(3)
    with pytest.raises(SessionError, match="click on it first"):
        session.candidates()
    session.close()
    with pytest.raises(SessionError, match="open session"):
        session.edit(9)


def test_an_object_is_deleted_in_one_step(model: Any, scene: Scene, labels: Any) -> None:
    session = Session(model, scene[0], labels)
    foreign(labels, Box(30, 40, 60, 70), 9)
    foreign(labels, Box(60, 60, 90, 90), 4)
    before = everything(labels)
    edit = session.delete(9)
    assert (edit.label, edit.kind, edit.box) == (9, "delete", Box(30, 40, 60, 70))
    np.testing.assert_array_equal(everything(labels), np.where(before == 9, 0, before))
    assert labels.next_label() == 10 if hasattr(labels, "levels") else True
    session.undo()
    np.testing.assert_array_equal(everything(labels), before)
    session.redo()
    with pytest.raises(LabelsError, match="the nearest there are 4"):
        session.delete(9)


def test_an_object_that_would_vanish_under_others_is_refused(
    model: Any, scene: Scene, labels: Any
) -> None:
    """All of what it is corrected to belongs to another one."""
    foreign(labels, Box(40, 48, 72, 80), 4)
    foreign(labels, Box(100, 100, 120, 120), 9)
    before = everything(labels)
    session = Session(model, scene[0], labels)
    session.edit(9)
    session.box((42, 50, 70, 78))
    with pytest.raises(LabelsError, match="at least one free pixel for object 9"):
        session.commit()
    assert session.prediction is not None
    assert not labels.history().done
    np.testing.assert_array_equal(everything(labels), before)
    assert not session.commit(overwrite=True).is_empty
    assert not (everything(labels)[100:120, 100:120] == 9).any()


def test_painting_on_a_mask_that_was_taken_up_changes_only_what_was_painted(
    model: Any, scene: Scene, labels: Any
) -> None:
    box = Box(30, 40, 75, 90)
    foreign(labels, box, 9, speckled(box))
    before = everything(labels)
    session = Session(model, scene[0], labels)
    painted = session.edit(9).mask.copy()
    y0, x0 = session.prediction.box.y0, session.prediction.box.x0  # type: ignore[union-attr]
    painted[45 - y0 : 50 - y0, 45 - x0 : 50 - x0] = False
    session.commit(painted)
    expected = before.copy()
    expected[45:50, 45:50] = 0
    np.testing.assert_array_equal(everything(labels), expected)


def test_a_prompt_beyond_the_tile_takes_the_object_along(model: Any, scene: Scene) -> None:
    labels = hrsam.ArrayLabels(SHAPE)
    labels.array[40:72, 48:80] = 9
    session = Session(model, scene[0], labels)
    session.edit(9)
    prediction = session.click((190, 150), positive=False)
    assert prediction.tile.box0.contains((190, 150))
    assert prediction.tile.box0.contains((40, 48))
    prior = model.priors[-1][0, 0].numpy()
    step = int(4 * prediction.tile.downsample)
    assert prior[56 // step, 64 // step] > 0
    assert prior[120 // step, 120 // step] < 0


def test_an_object_taken_up_goes_along_when_the_image_is_shown_otherwise(
    model: Any, scene: Scene
) -> None:
    labels = hrsam.ArrayLabels(SHAPE)
    labels.array[30:60, 40:70] = 9
    session = Session(model, scene[0], labels)
    session.edit(9)
    session.click((50, 60))
    other = session.with_image(255 - scene[0])
    assert len(other.prompts) == 1
    assert other.undo() is not None
    assert other.prediction is not None
    assert other.prediction.mask.sum() == 900
    assert other.commit().is_empty


def test_pixels_that_the_image_lacks_stay_in_an_object_that_is_taken_up(model: Any) -> None:
    image = np.full(SHAPE, 100.0, np.float32)
    image[45:50, 45:50] = np.nan
    labels = hrsam.ArrayLabels(SHAPE)
    labels.array[40:60, 40:60] = 9
    session = Session(model, hrsam.open_image(image, contrast_limits=(0, 255)), labels)
    assert session.edit(9).region.read(Box(40, 40, 60, 60)).all()
    assert session.commit().is_empty


def test_a_plane_is_named_and_others_stay(model: Any, tmp_path: Path) -> None:
    image = np.zeros((3, *SHAPE), np.uint8)
    image[1, 40:72, 48:80] = 200
    with hrsam.create_labels(tmp_path / "labels", "cells", image.shape) as labels:
        for z in (1, 2):
            labels.write(Box(30, 40, 60, 70), np.ones((30, 30), bool), 5, plane=(z,))
        session = Session(model, image, labels)
        with pytest.raises(LabelsError, match="name its plane"):
            session.edit(5, plane=(0,))
        session.edit(5, plane=(1,))
        with pytest.raises(PromptError, match=r"on the object's plane \(1,\)"):
            session.click((50, 60), plane=(2,))
        session.click((50, 60), plane=(1,))
        session.commit()
        assert labels.read(plane=(1,))[68, 76] == 5
        assert (labels.read(plane=(2,)) == 5).sum() == 900
        session.delete(5, plane=(2,))
        assert not labels.read(plane=(2,)).any()
        assert labels.read(plane=(1,)).any()


def test_an_object_much_larger_than_a_tile_is_taken_up_exactly_in_little_memory(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape, side = (6000, 7000), 2 * READ_PX + 333
    image = np.zeros(shape, np.uint8)
    image[700 : 700 + side, 801 : 801 + side] = 200
    largest = 0
    read = hrsam.LabelWriter.read

    def measured(self: Any, box: Any = None, level: int = 0, plane: Any = ()) -> NDArray[Any]:
        nonlocal largest
        found = read(self, box, level, plane)
        largest = max(largest, found.size)
        return found

    with hrsam.create_labels(tmp_path / "labels", "cells", shape) as labels:
        rng = np.random.default_rng(0)
        mask = np.ones((side, side), bool)
        mask[5, 5:99] = mask[1000:1100, 1000:1003] = False
        mask[-1] = rng.random(side) < 0.5
        labels.write(Box(700, 801, 700 + side, 801 + side), mask, 3)
        monkeypatch.setattr(hrsam.LabelWriter, "read", measured)
        session = Session(model, image, labels)
        prediction = session.edit(3)
        assert largest <= 512**2
        assert prediction.level > 3
        whole = Box(690, 790, 720 + side, 820 + side)
        np.testing.assert_array_equal(prediction.region.read(whole), read(labels, whole) == 3)
        assert prediction.level_mask.any()
        inside = prediction.multiscale.logits[: 6000 // 64, : 7000 // 64] > 0
        assert abs(int(inside.sum()) - side**2 / prediction.tile.downsample**2) < 0.1 * inside.sum()
        assert session.commit().is_empty
        session.edit(3)
        session.outline_level = prediction.level
        session.click((1700, 1800))
        edit = session.commit()
        assert edit.label == 3
        assert read(labels, Box(1700, 1800, 1701, 1801)).item() == 3


def test_a_thin_line_is_seen_by_the_model_at_coarse_levels(model: Any) -> None:
    labels = hrsam.ArrayLabels((1000, 1000))
    labels.array[100:900, 500] = 2
    prediction = Session(model, np.zeros((1000, 1000), np.uint8), labels).edit(2)
    assert prediction.level >= 2
    assert prediction.level_mask.sum() >= 800 // prediction.tile.downsample
    assert prediction


def test_a_small_object_is_taken_up_at_an_enlarged_level(model: Any) -> None:
    labels = hrsam.ArrayLabels((300, 300))
    labels.array[100:104, 100:104] = 2
    session = Session(model, np.zeros((300, 300), np.uint8), labels)
    session.view_level = -2
    prediction = session.edit(2)
    assert prediction.level == -2
    assert prediction.mask.sum() == 16
    assert (prediction.multiscale.logits > 0).sum() == 16 * 16


def test_only_blocks_that_an_outline_crosses_are_kept() -> None:
    mask = BlockMask(Box(0, 0, 4096, 4096), lambda part: np.ones(part.shape_yx, bool))
    assert mask.num_bytes == 0
