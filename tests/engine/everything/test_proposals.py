"""Objects proposed in a part of an image: filtered, drawn, accepted."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_field import DrawnPredictor, touching_discs
from numpy.typing import NDArray

from napari_hrsam.engine.everything import proposals as module
from napari_hrsam.engine.everything.auto import auto
from napari_hrsam.engine.everything.proposals import Proposals, propose
from napari_hrsam.errors import ConfigError, LabelsError, PromptError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.modeling.configs import DENSE_FEATURES
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.array_labels import ArrayLabels

CELLS = 130, 120
SHAPE = 259, 239


@cache
def predictor() -> DrawnPredictor:
    return DrawnPredictor(touching_discs(CELLS))


@cache
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is the stand-in."""
    monkeypatch.setattr("napari_hrsam.engine.predictor.Predictor", lambda model: model)
    for place in (module, "napari_hrsam.engine.everything.auto"):
        where = place if isinstance(place, str) else place.__name__
        monkeypatch.setattr(f"{where}.loaded", lambda model: model)


def proposed(**options: Any) -> Proposals:
    return propose(image(), model=predictor(), largest_px=80, **{"level": 0, **options})  # type: ignore[arg-type]


def test_they_are_the_objects_that_a_run_finds(tmp_path: Path) -> None:
    auto(image(), path=tmp_path, model=predictor(), largest_px=80, block_px=128)  # type: ignore[arg-type]
    run = open_labels(tmp_path, "auto-1", mode="r").read()
    proposals = proposed()
    assert len(proposals) == run.max() > 15
    assert np.array_equal(proposals.labels(), run)
    box = Box(31, 50, 120, 201)
    assert np.array_equal(proposals.labels(box), run[box.slices])


def test_one_tells_its_mask_and_what_it_looks_like() -> None:
    proposals, labels = proposed(), proposed().labels()
    for index in (0, len(proposals) // 2, -1):
        one = proposals[index]
        mask = labels == (index % len(proposals)) + 1
        assert np.array_equal(one.mask.read(Box.of_shape(SHAPE)), mask)
        assert one.box == Box.around(mask)
        assert 0.5 < one.score <= 1
        assert one.features.shape == (DENSE_FEATURES + 3,)
        assert len(one.mean_rgb) == 3
    assert len(list(proposals)) == len(proposals)
    with pytest.raises(IndexError, match="expected an index below"):
        proposals[len(proposals)]


def test_filters_and_choices() -> None:
    proposals = proposed()
    middle = float(np.median(proposals.areas_px))
    small = proposals.filter(max_area_px=middle)
    large = proposals.filter(min_area_px=middle + 1)
    assert 0 < len(small) < len(proposals) == len(small) + len(large)
    assert small.areas_px.max() <= middle
    best = float(np.sort(proposals.scores)[-3])
    assert len(proposals.filter(min_score=best)) == 3
    inner = proposals.filter(box=(20, 20, 200, 200))
    assert 0 < len(inner) < len(proposals)
    assert inner.boxes.min() >= 20
    assert inner.boxes.max() <= 200
    order = np.argsort(-proposals.scores)
    assert (np.diff(proposals.take(order).scores) <= 0).all()
    assert len(proposals.take([])) == 0
    assert not proposals.take([]).labels().any()
    for wrong in ([0.5], [[1]], [len(proposals)], [1, 1], np.ones(3, bool)):
        with pytest.raises(ConfigError, match="expected"):
            proposals.take(wrong)  # type: ignore[arg-type]


def test_accepted_is_one_step_and_others_stay(tmp_path: Path) -> None:
    proposals = proposed()
    with create_labels(tmp_path, "cells", like=SHAPE) as labels:
        # One lies on the first proposal wholly, and touches others.
        first = proposals[0].box
        labels.write(first, np.ones(first.shape_yx, bool), 7)
        before = labels.read()
        edit = proposals.accept(labels)
        now, drawn = labels.read(), proposals.labels()
        assert np.array_equal(now[before != 0], before[before != 0])
        assert len(edit.objects) == len(proposals) - 1
        assert edit.objects[0].label == 8
        assert edit.model == "drawn"
        one = edit.objects[-1]
        assert np.array_equal(now == one.label, (drawn == len(proposals)) & (before == 0))
        labels.revert(edit)
        assert np.array_equal(labels.read(), before)


def test_plain_arrays_take_them_too() -> None:
    array = np.zeros(SHAPE, np.int32)
    edit = proposed().filter(min_area_px=500).accept(array)
    assert set(np.unique(array)) == {0, *(one.label for one in edit.objects)}
    with pytest.raises(LabelsError, match="got none that others do not cover"):
        proposed().filter(min_area_px=500).accept(array)
    with pytest.raises(LabelsError, match="expected labels of the image's shape"):
        proposed().accept(ArrayLabels((4, 5)))


def test_what_cannot_be_is_told() -> None:
    with pytest.raises(PromptError, match="inside the image"):
        proposed(box=(1000, 0, 1100, 9))
    with pytest.raises(ConfigError, match="expected a level from -1"):
        proposed(level=-2)
    with pytest.raises(SessionError, match="stopped"):
        proposed(should_stop=lambda: True)


def test_a_box_too_large_for_the_memory_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_CELLS", 1000)
    with pytest.raises(ConfigError, match="expected a box of at most 4,000 pixels.*or use auto"):
        proposed()
    assert len(proposed(box=(0, 0, 40, 60))) < 10


def test_progress_counts_tiles() -> None:
    told: list[tuple[int, int]] = []
    proposed(progress=lambda done, total: told.append((done, total)))
    (total,) = {total for _, total in told}
    assert [done for done, _ in told] == [*range(total), total]
    assert total > 4


def test_a_preview_shows_all_as_coarsely_as_it_must() -> None:
    proposals, labels = proposed(), proposed().labels()
    drawn, box, step = proposals.preview()
    assert step == 2
    large = drawn.repeat(2, 0).repeat(2, 1)[: SHAPE[0] - box.y0, : SHAPE[1] - box.x0]
    part = labels[box.y0 : box.y1, box.x0 : box.x1]
    assert np.array_equal(large[: part.shape[0], : part.shape[1]], part)
    assert (labels > 0).sum() == (part > 0).sum()
    coarse, box, step = proposals.preview(max_pixels=1000)
    assert coarse.size <= 1200
    assert step > 2
    assert (box.y0 % step, box.x0 % step) == (0, 0)
    y, x = np.argwhere(coarse)[0]
    assert labels[box.y0 + y * step, box.x0 + x * step] == coarse[y, x]
    empty, _, _ = proposals.take([]).preview()
    assert not empty.any()


def test_those_that_others_cover_are_left_out_and_the_rest_is_as_it_was() -> None:
    proposals = proposed()
    array = np.zeros(SHAPE, np.int32)
    array[proposals.labels() == 3] = 9
    free = proposals.not_covered(array)
    assert len(free) == len(proposals) - 1
    assert np.array_equal(free.scores, np.delete(proposals.scores, 2))


def test_examples_follow_one_another_if_they_can_be_compared() -> None:
    proposals = proposed()
    some = proposals.take([4, 2])
    both = proposals.followed_by(some)
    assert len(both) == len(proposals) + 2
    assert np.array_equal(both.features[-2:], proposals.features[[4, 2]])
    assert np.array_equal(both.areas_px, [*proposals.areas_px, *some.areas_px])
    with pytest.raises(ConfigError, match="propose both in the same way"):
        proposals.followed_by(Proposals(some._found, SHAPE, 1, (), "drawn"))
