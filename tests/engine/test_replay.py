"""Committed objects drawn again from their prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import napari_hrsam as hrsam
from napari_hrsam.errors import LabelsError, SessionError
from napari_hrsam.geometry import Box

SHAPE = (200, 160)
RED, BLUE = Box(40, 48, 72, 80), Box(100, 20, 150, 60)


@pytest.fixture
def image() -> NDArray[np.uint8]:
    image = np.full((*SHAPE, 3), (0, 120, 0), np.uint8)
    image[RED.slices] = (230, 10, 10)
    image[BLUE.slices] = (10, 10, 230)
    return image


@pytest.fixture
def path(tmp_path: Path, model: Any, image: NDArray[np.uint8]) -> Path:
    """Labels with two objects that were clicked on, and one of which no prompt is known."""
    path = tmp_path / "labels"
    with hrsam.create_labels(path, "cells", SHAPE) as labels:
        session = hrsam.Session(model, image, labels)
        session.click((50, 60))
        session.commit(object_class="nucleus")
        session.click((120, 30))
        session.click((60, 60), positive=False)
        session.commit()
        labels.write(Box(180, 100, 190, 120), np.ones((10, 20), bool), 7)
    return path


def values(path: Path) -> NDArray[Any]:
    return np.array(hrsam.open_labels(path, "cells", mode="r").read())


def test_the_same_model_draws_the_same_and_nothing_is_written(
    model: Any, path: Path, image: NDArray[np.uint8]
) -> None:
    before = values(path)
    calls: list[tuple[int, int]] = []
    replayed = hrsam.replay(
        hrsam.open_labels(path, "cells", mode="r"),
        image,
        model,
        progress=lambda *n: calls.append(n),
    )
    assert [(one.label, one.iou, one.num_prompts) for one in replayed.objects] == [
        (1, 1.0, 1),
        (2, 1.0, 2),
        (7, None, 0),
    ]
    assert [one.object_class for one in replayed.objects] == ["nucleus", "", ""]
    assert replayed.objects[2].problem == "no prompts are known of it"
    assert (replayed.mean_iou, replayed.median_iou, replayed.num_written) == (1.0, 1.0, 0)
    assert repr(replayed) == "Replayed(colour: 2 of 3 objects drawn, mean IoU 1.000)"
    assert calls == [(0, 3), (1, 3), (2, 3)]
    np.testing.assert_array_equal(values(path), before)


def test_another_picture_shows_in_the_scores_and_is_written_when_asked(
    model: Any, path: Path, image: NDArray[np.uint8]
) -> None:
    before = values(path)
    # As if another model drew the half of the red square.
    image[56:72, 48:80] = (0, 120, 0)
    labels = hrsam.open_labels(path, "cells", mode="r")
    replayed = hrsam.replay(labels, image, model, objects=[1])
    (one,) = replayed.objects
    assert one.iou == pytest.approx(0.5, abs=0.04)
    np.testing.assert_array_equal(values(path), before)
    with hrsam.open_labels(path, "cells") as writer:
        written = hrsam.replay(writer, image, model, objects=[1], write=True)
        assert written.ious == replayed.ious
        assert written.num_written == 1
        after = values(path)
        np.testing.assert_array_equal(after == 2, before == 2)
        assert (after == 1).sum() == pytest.approx((before == 1).sum() / 2, rel=0.1)
        (row,) = [row for row in writer.objects() if row.label == 1]
        assert (row.object_class, row.model, row.num_prompts) == ("nucleus", "colour", 1)
        writer.revert(writer.newest_done())
        np.testing.assert_array_equal(values(path), before)


def test_an_object_that_cannot_be_drawn_is_told_and_the_others_are_drawn(
    model: Any, path: Path, image: NDArray[np.uint8]
) -> None:
    before = values(path)
    broken = np.ma.masked_array(image, mask=np.zeros_like(image, bool))
    broken[50, 60] = np.ma.masked
    with hrsam.open_labels(path, "cells") as labels:
        replayed = hrsam.replay(labels, broken, model, write=True)
    first, second, _ = replayed.objects
    assert first.iou is None
    assert "(50, 60)" in first.problem
    assert not first.is_written
    assert second.iou == 1.0
    np.testing.assert_array_equal(values(path), before)


def test_planes_of_a_stack_are_drawn_where_they_lie(
    model: Any, image: NDArray[np.uint8], tmp_path: Path
) -> None:
    stack = np.stack([image, np.flip(image, 0)])
    with hrsam.create_labels(tmp_path / "labels", "cells", (2, *SHAPE)) as labels:
        session = hrsam.Session(model, stack, labels)
        session.click((SHAPE[0] - 1 - 50, 60), plane=(1,))
        session.commit()
        replayed = hrsam.replay(labels, stack, model)
    assert [(one.plane, one.iou) for one in replayed.objects] == [((1,), 1.0)]


def test_wrong_labels_are_refused_before_anything_is_drawn(
    model: Any, path: Path, image: NDArray[np.uint8]
) -> None:
    labels = hrsam.open_labels(path, "cells", mode="r")
    num_encoded = model.num_encoded
    with pytest.raises(LabelsError, match=r"shape \(y, x\) = \(100, 160\), got \(200, 160\)"):
        hrsam.replay(labels, image[:100], model)
    with pytest.raises(LabelsError, match=r"planes of the image, of shape \(2,\), got \(\)"):
        hrsam.replay(labels, np.stack([image, image]), model)
    with pytest.raises(LabelsError, match=r"got \[3, 5\], which are not there"):
        hrsam.replay(labels, image, model, objects=[5, 1, 3])
    with pytest.raises(LabelsError, match='without mode="r"'):
        hrsam.replay(labels, image, model, write=True)
    assert model.num_encoded == num_encoded


def test_prompts_that_are_all_known_draw_as_one_by_one(
    model: Any, image: NDArray[np.uint8]
) -> None:
    one, other = hrsam.Session(model, image), hrsam.Session(model, image)
    one.box((30, 30, 90, 100))
    one.scribble([(50, 50), (50, 70)])
    one.click((35, 35), positive=False)
    told = one.prompts
    model.nums_points.clear()
    prediction = other.draw(told)
    np.testing.assert_array_equal(prediction.mask, one.prediction.mask)
    assert other.prompts == told
    assert len(model.nums_points) >= 3
    for _ in range(3):
        assert other.can_undo
        other.undo()
    assert not other.can_undo
    other.redo()
    with pytest.raises(SessionError, match="draw another one"):
        other.draw(told)


def test_a_new_object_takes_the_place_of_one_that_is_there(
    model: Any, path: Path, image: NDArray[np.uint8]
) -> None:
    before = values(path)
    with hrsam.open_labels(path, "cells") as labels:
        session = hrsam.Session(model, image, labels)
        session.click((120, 30))
        found = session.refine_outline().region.read((0, 0, *SHAPE))
        edit = session.commit(replaces=7)
        after = values(path)
        assert (edit.label, edit.kind) == (7, "replace")
        # Object 2 keeps its pixels, and 7 has none left where it was.
        np.testing.assert_array_equal(after == 2, before == 2)
        np.testing.assert_array_equal(after == 7, found & (before == 0))
        session.undo()
        session.click((120, 30))
        session.commit(replaces=7, overwrite=True)
        np.testing.assert_array_equal(values(path) == 7, found)
        session.undo()
        np.testing.assert_array_equal(values(path), before)
        session.edit(1)
        with pytest.raises(SessionError, match="got one that is object 1"):
            session.commit(replaces=7)
        session.cancel()
        session.click((120, 30))
        with pytest.raises(LabelsError, match="99"):
            session.commit(replaces=99)
        assert session.prediction is not None
