"""An evaluation clicks as a user does, and its numbers follow from the masks alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from napari_hrsam.errors import ConfigError, DataError
from napari_hrsam.geometry import Box, TileGrid
from napari_hrsam.modeling.checkpoints import load_model
from napari_hrsam.training.clicks import next_click
from napari_hrsam.training.datasets import Sample, open_samples
from napari_hrsam.training.evaluate import (
    View,
    click_curve,
    evaluate,
    model_under_test,
    view_level,
)
from napari_hrsam.training.metrics import mask_iou

Members = Callable[..., dict[str, bytes]]
SUMMARY = [
    *("noc80", "noc85", "noc90"),
    *("iou1", "iou3", "iou5", "iou10"),
    *("drops", "num_objects"),
]


@dataclass
class Answer:
    mask: NDArray[np.bool_]
    box: Box


@dataclass
class Scripted:
    """A session that answers with given masks of the whole image, cut to a box."""

    answers: list[Answer]
    clicks: list[tuple[tuple[float, float], bool, int | None]] = field(default_factory=list)
    num_cancelled: int = 0

    def click(
        self, point_yx: tuple[float, float], positive: bool = True, level: int | None = None
    ) -> Answer:
        self.clicks.append((point_yx, positive, level))
        return self.answers[min(len(self.clicks), len(self.answers)) - 1]

    def cancel(self) -> None:
        self.num_cancelled += 1


@dataclass
class Brush:
    """A double of a model: a click adds or removes a disc of its radius."""

    radius: float
    name: str = "brush"
    tile_px: int = 64
    opened: list[tuple[int, ...]] = field(default_factory=list)
    levels: list[int | None] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)

    def open_session(self, image: NDArray[np.uint8]) -> Brush:
        self.opened.append(image.shape)
        self._mask = np.zeros(image.shape[:2], bool)
        return self

    def __enter__(self) -> Brush:
        return self

    def __exit__(self, *_: object) -> None:
        self.opened.append(())

    def click(
        self, point_yx: tuple[float, float], positive: bool = True, level: int | None = None
    ) -> Answer:
        self.levels.append(level)
        self.points.append(point_yx)
        rows, columns = np.ogrid[: self._mask.shape[0], : self._mask.shape[1]]
        disc = (rows - point_yx[0]) ** 2 + (columns - point_yx[1]) ** 2 <= self.radius**2
        self._mask = self._mask | disc if positive else self._mask & ~disc
        return Answer(self._mask, Box.of_shape((self._mask.shape[0], self._mask.shape[1])))

    def cancel(self) -> None:
        self._mask = np.zeros_like(self._mask)


def whole_image_curve(
    gt: NDArray[np.bool_], answers: list[Answer], num_clicks: int, seed: int
) -> tuple[list[float], list[tuple[tuple[int, int], bool]]]:
    """The evaluation loop written plainly, on full-size masks."""
    rng = np.random.default_rng(seed)
    pred, clicked, ious = np.zeros_like(gt), [], []
    signs = []
    for _ in range(num_clicks):
        click = next_click(pred, gt, clicked, rng=rng)
        if click is not None:
            clicked.append((click.y, click.x))
            signs.append(click.positive)
            answer = answers[min(len(clicked), len(answers)) - 1]
            pred = np.zeros_like(gt)
            pred[answer.box.slices] = answer.mask
        ious.append(mask_iou(pred, gt))
    return ious, list(zip(clicked, signs, strict=True))


@st.composite
def scenes(draw: st.DrawFn) -> tuple[NDArray[np.bool_], list[Answer]]:
    """An object in an image, and answers in boxes that may or may not hold it."""
    height, width = draw(st.integers(3, 14)), draw(st.integers(3, 14))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    gt = rng.random((height, width)) < draw(st.sampled_from([0.1, 0.5, 0.9]))
    gt[rng.integers(height), rng.integers(width)] = True
    answers = []
    for _ in range(4):
        y0, x0 = int(rng.integers(height)), int(rng.integers(width))
        y1, x1 = int(rng.integers(y0, height)) + 1, int(rng.integers(x0, width)) + 1
        box = Box(y0, x0, y1, x1)
        noise = rng.random(box.shape_yx) < draw(st.sampled_from([0.0, 0.1, 0.5]))
        answers.append(Answer(gt[box.slices] ^ noise, box))
    return gt, answers


@given(scenes(), st.integers(0, 999))
@settings(deadline=None)
def test_clicks_in_the_window_are_those_of_the_whole_image(
    scene: tuple[NDArray[np.bool_], list[Answer]], seed: int
) -> None:
    gt, answers = scene
    session = Scripted(answers)
    curve = click_curve(session, gt, level=3, num_clicks=6, rng=np.random.default_rng(seed))
    expected, clicks = whole_image_curve(gt, answers, 6, seed)
    np.testing.assert_allclose(curve, expected)
    assert [(tuple(point), sign) for point, sign, _ in session.clicks] == clicks
    assert {level for *_, level in session.clicks} == {3}
    assert session.num_cancelled == 1


def test_a_perfect_mask_gets_no_more_clicks_and_keeps_its_iou() -> None:
    gt = np.zeros((8, 8), bool)
    gt[2:5, 2:5] = True
    session = Scripted([Answer(gt, Box(0, 0, 8, 8))])
    curve = click_curve(session, gt, level=0, num_clicks=5, rng=np.random.default_rng(0))
    assert curve == [1.0] * 5
    assert len(session.clicks) == 1


@given(st.tuples(st.integers(1, 3000), st.integers(1, 3000)), st.data(), st.sampled_from([64, 512]))
@settings(deadline=None)
def test_the_object_is_whole_and_spans_an_eighth_to_a_quarter_of_its_tile(
    shape: tuple[int, int], data: st.DataObject, tile_px: int
) -> None:
    y0, x0 = (data.draw(st.integers(0, length - 1)) for length in shape)
    box = Box(
        y0, x0, data.draw(st.integers(y0 + 1, shape[0])), data.draw(st.integers(x0 + 1, shape[1]))
    )
    level = view_level(box, shape, tile_px)
    span = max(box.height, box.width) / (2.0**level * tile_px)
    finest, whole = -2, max(0, view_level(box, shape, tile_px, "image"))
    assert finest <= level <= whole
    assert 1 / 8 < span <= 1 / 4 or (span <= 1 / 8 and level == -2) or level == whole
    point = data.draw(st.tuples(st.integers(box.y0, box.y1 - 1), st.integers(box.x0, box.x1 - 1)))
    tile = TileGrid(shape, tile_px, level).nearest(point)
    assert tile.box0.intersection(box) == box


@pytest.mark.parametrize(
    ("shape", "expected"), [((512, 300), 0), ((513, 20), 1), ((2049, 9), 3), ((200, 256), -1)]
)
def test_the_image_view_is_the_finest_level_that_fits_the_tile(
    shape: tuple[int, int], expected: int
) -> None:
    assert view_level(Box(0, 0, 1, 1), shape, 512, "image") == expected


@pytest.fixture
def samples(write_tar: Callable[..., Path], members: Members) -> list[Sample]:
    contents = {
        **members("a", domain="cells"),
        **members("b", domain="cells"),
        **members("c", domain="stones", noc_objects=[{"id": 7, "area": 400}]),
    }
    return open_samples([write_tar("x.tar", contents)])


def test_the_result_is_the_published_json(samples: list[Sample]) -> None:
    result = evaluate(Brush(radius=6), samples)
    assert json.loads(json.dumps(result)) == result
    assert result["model"] == "brush"
    assert list(result["overall"]) == SUMMARY
    assert {name: row["num_objects"] for name, row in result["domains"].items()} == {
        "cells": 4,
        "stones": 1,
    }
    assert all(list(row) == SUMMARY for row in result["domains"].values())
    assert result["overall"]["num_objects"] == 5
    cells, stones = result["domains"]["cells"]["iou5"], result["domains"]["stones"]["iou5"]
    assert result["overall"]["iou5"] == pytest.approx((4 * cells + stones) / 5)
    assert result["mean_of_domains"]["iou5"] == pytest.approx((cells + stones) / 2)
    assert result["mean_of_domains"]["num_objects"] == 5
    assert 0 < result["overall"]["iou1"] < result["overall"]["iou10"] <= 1


def test_fewer_clicks_than_a_column_leave_it_empty(samples: list[Sample]) -> None:
    result = evaluate(Brush(radius=6), samples, num_clicks=3)
    assert result["overall"]["iou3"] is not None
    assert result["overall"]["iou5"] is result["mean_of_domains"]["iou10"] is None


def test_an_image_is_opened_once_and_closed(samples: list[Sample]) -> None:
    model = Brush(radius=6)
    evaluate(model, samples, num_clicks=1)
    assert model.opened == [(96, 128), ()] * 3


@pytest.mark.parametrize(
    ("view", "tile_px", "levels"),
    [("object", 64, {1}), ("object", 128, {0}), ("object", 512, {-2, -1}), ("image", 32, {2})],
)
def test_the_view_sets_the_level(
    view: View, tile_px: int, levels: set[int], samples: list[Sample]
) -> None:
    model = Brush(radius=6, tile_px=tile_px)
    evaluate(model, samples, view=view, num_clicks=1)
    assert set(model.levels) == levels


def test_numbers_do_not_depend_on_the_order_of_work(samples: list[Sample]) -> None:
    forward = evaluate(Brush(radius=3), samples)
    assert evaluate(Brush(radius=3), samples[::-1]) == forward
    alone = evaluate(Brush(radius=3), samples[2:])
    assert alone["domains"]["stones"] == forward["domains"]["stones"]


def test_another_seed_is_another_choice_between_equal_places(samples: list[Sample]) -> None:
    results = [evaluate(Brush(radius=3), samples, seed=seed) for seed in (1, 1, 2)]
    assert results[0] == results[1]
    assert results[0]["overall"] != results[2]["overall"]


def test_equal_objects_of_two_images_are_clicked_independently(samples: list[Sample]) -> None:
    model = Brush(radius=3)
    evaluate(model, samples[:2])
    assert len(model.points) == 80
    assert model.points[:40] != model.points[40:]


def test_a_domain_s_objects_are_dealt_out_image_by_image(samples: list[Sample]) -> None:
    model = Brush(radius=6)
    result = evaluate(model, samples, num_clicks=1, max_objects=2)
    assert {name: row["num_objects"] for name, row in result["domains"].items()} == {
        "cells": 2,
        "stones": 1,
    }
    assert model.opened == [(96, 128), ()] * 3


def test_progress_counts_objects(samples: list[Sample]) -> None:
    seen: list[tuple[int, int]] = []
    evaluate(Brush(6), samples, num_clicks=1, progress=lambda done, of: seen.append((done, of)))
    assert seen == [(number, 5) for number in range(1, 6)]


def test_the_real_session_is_clicked_with_a_real_model(
    samples: list[Sample], untrained_weights: Path
) -> None:
    model = load_model(str(untrained_weights), device="cpu")
    obeyed, plain = (
        evaluate(
            model_under_test(model, enforce_clicks=obey, name=name),
            samples,
            num_clicks=3,
            max_objects=1,
        )
        for obey, name in ((True, None), (False, "plain"))
    )
    assert obeyed["model"] == model.config.name
    assert plain["model"] == "plain"
    assert obeyed["overall"]["num_objects"] == plain["overall"]["num_objects"] == 2
    assert obeyed["overall"] != plain["overall"]


def test_a_listed_object_without_pixels_is_refused(
    write_tar: Callable[..., Path], members: Members
) -> None:
    path = write_tar("x.tar", members("a", noc_objects=[{"id": 8, "area": 9}]))
    with pytest.raises(DataError, match="object 8 of sample a is listed, but its mask"):
        evaluate(Brush(6), open_samples([path]))


def test_data_without_any_object_are_refused(
    write_tar: Callable[..., Path], members: Members, png: Callable[[Any], bytes]
) -> None:
    empty = {**members("a"), "a.lbl.png": png(np.zeros((96, 128), np.uint8))}
    with pytest.raises(DataError, match="none of the 1 samples has an object"):
        evaluate(Brush(6), open_samples([write_tar("x.tar", empty)]))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"view": "cell"}, "view must be one of object, image, got 'cell'"),
        ({"num_clicks": 0}, "must be 1 or more, got 0 and None"),
        ({"max_objects": 0}, "must be 1 or more, got 20 and 0"),
        ({"seed": -1}, "seed must be 0 or more, got -1"),
    ],
)
def test_settings_out_of_range_are_refused(
    setting: dict[str, Any], message: str, samples: list[Sample]
) -> None:
    with pytest.raises(ConfigError, match=message):
        evaluate(Brush(6), samples, **setting)
