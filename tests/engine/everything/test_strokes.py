"""Classes from strokes: features without seams, learning, and the objects of a class."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_field import touching_discs
from numpy.typing import NDArray
from scipy import ndimage
from small_segmenter import STEM_CONFIG, build

from napari_hrsam.engine.everything.auto import auto
from napari_hrsam.engine.everything.pixel_classes import BANK_FEATURES, PixelClassifier
from napari_hrsam.engine.everything.proposals import propose
from napari_hrsam.engine.everything.strokes import StrokedField, WantedClass, learn_classes
from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.errors import ConfigError, PromptError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.label_image import open_labels

SHAPE = 250, 230
RED, BLUE, GREY = (200, 60, 60), (60, 60, 200), (120, 120, 120)


@cache
def model() -> Segmenter:
    return build(STEM_CONFIG)


@cache
def truth() -> NDArray[np.int32]:
    """Discs that lie apart, in pixels: odd ones are red, even ones blue."""
    labels = touching_discs((SHAPE[0] // 2, SHAPE[1] // 2))
    inner = ndimage.distance_transform_edt(ndimage.minimum_filter(labels, 3) == labels)
    labels = np.where((inner > 2) & (labels > 0), labels, 0)
    return labels.repeat(2, 0).repeat(2, 1).astype(np.int32)


@cache
def image() -> NDArray[np.uint8]:
    colours = np.array([GREY, BLUE, RED])[np.where(truth() > 0, 1 + truth() % 2, 0)]
    noise = np.random.default_rng(0).normal(0, 12, colours.shape)
    return np.clip(colours + noise, 0, 255).astype(np.uint8)


def field(wanted: WantedClass | None = None) -> StrokedField:
    return StrokedField(open_image(image()), Predictor(model()), 0, wanted=wanted)


def stroke_in(number: int) -> NDArray[np.int64]:
    """A line over the middle of a disc, in pixels."""
    y, x = np.nonzero(truth() == number)
    middle = round(y.mean())
    row = np.sort(x[y == middle])
    return np.array([(middle, row[2]), (middle, row[-3])])


@cache
def classifier() -> PixelClassifier:
    numbers = [n for n in np.unique(truth()) if n and (truth() == n).sum() > 400]
    red, blue = [n for n in numbers if n % 2][:2], [n for n in numbers if not n % 2][:2]
    distance = ndimage.distance_transform_edt(truth() == 0)
    ground = np.argwhere(distance > 5)[::400]
    strokes = {
        "ground": list(ground),
        "red": [stroke_in(n) for n in red],
        "blue": [stroke_in(n) for n in blue],
    }
    return learn_classes(image(), strokes, level=0, model=model())


# ------------------------------------------------------------------------------------ features
def test_features_of_a_place_do_not_depend_on_who_asks() -> None:
    whole = field().features(Box.of_shape(field().shape))
    assert len(whole) == 3 + 32 + 32 + 16 + BANK_FEATURES
    for box in (Box(0, 0, 40, 50), Box(31, 17, 99, 80), Box(90, 70, 125, 115)):
        np.testing.assert_array_equal(field().features(box), whole[:, *box.slices])


def test_features_are_what_the_model_says_where_one_tile_shows_it() -> None:
    # Of the first tile nobody else shows the corner: there nothing is blended.
    made = field()
    tile = made._tile((0, 0))
    found = made.features(Box(0, 0, 7, 7))
    assert tile.maps is not None
    np.testing.assert_allclose(found[:3], tile.maps[:, :7, :7], atol=1e-3)
    head = tile.fine[0].astype(float)
    # Cell 3 lies a quarter of the way from map cell 1 to map cell 2.
    expected = 0.75 * head[:, 1] + 0.25 * head[:, 2]
    expected = 0.75 * expected[:, 1] + 0.25 * expected[:, 2]
    np.testing.assert_allclose(found[3:35, 3, 3], expected, atol=2e-3)


# ------------------------------------------------------------------------------------- classes
def test_classes_of_a_few_strokes_are_found_everywhere() -> None:
    made = field()
    found = classifier().probabilities(made.features(Box.of_shape(made.shape))).argmax(axis=0)
    labels = truth()[::2, ::2]
    expected = np.where(labels > 0, np.where(labels % 2 > 0, 1, 2), 0)
    inner = ndimage.maximum_filter(labels, 3) == ndimage.minimum_filter(labels, 3)
    assert (found == expected)[inner].mean() > 0.97
    assert (classifier().level, classifier().names) == (0, ("ground", "red", "blue"))


@pytest.mark.parametrize(("name", "rest"), [("red", 1), ("blue", 0)])
def test_objects_of_a_class_are_proposed(name: str, rest: int) -> None:
    wanted = WantedClass(classifier=classifier(), name=name, touching=False)
    found = propose(image(), model=model(), wanted=wanted, largest_px=200, smallest_px=40)
    assert found.level == 0
    labels = truth()
    expected = [n for n in np.unique(labels) if n and n % 2 == rest and (labels == n).sum() > 150]
    painted = found.labels()
    hits = 0
    for number in expected:
        mask = labels == number
        inside = painted[mask]
        best = np.bincount(inside[inside > 0]).argmax() if (inside > 0).any() else 0
        hits += (
            bool(best) and (mask & (painted == best)).sum() / (mask | (painted == best)).sum() > 0.6
        )
    assert hits >= 0.9 * len(expected) > 5
    others = np.isin(labels, [n for n in np.unique(labels) if n and n % 2 != rest])
    assert (painted[others] > 0).mean() < 0.05


def test_a_saved_classifier_finds_the_same(tmp_path: Path) -> None:
    loaded = PixelClassifier.load(classifier().save(tmp_path / "a.json"))
    one, two = (
        propose(
            image(), model=model(), wanted=WantedClass(classifier=c, name="red"), largest_px=60
        ).labels()
        for c in (classifier(), loaded)
    )
    np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("block_px", [64, 128])
def test_a_run_makes_the_objects_of_a_class_that_are_proposed(
    tmp_path: Path, block_px: int
) -> None:
    wanted = WantedClass(classifier=classifier(), name="red", touching=False)
    options: dict[str, Any] = {"model": model(), "wanted": wanted, "largest_px": 60}
    auto(image(), path=tmp_path, block_px=block_px, **options)
    made = open_labels(tmp_path, "auto-1", mode="r").read()
    np.testing.assert_array_equal(made, propose(image(), **options).labels())
    assert made.max() > 3


def test_a_run_of_another_class_is_another_run(tmp_path: Path) -> None:
    def stops(name: str) -> None:
        wanted = WantedClass(classifier=classifier(), name=name)
        auto(image(), path=tmp_path, model=model(), wanted=wanted, should_stop=lambda: True)

    with pytest.raises(SessionError, match="stopped after 0"):
        stops("red")
    with pytest.raises(SessionError, match="stopped after 0"):
        stops("red")
    with pytest.raises(SessionError, match="which has another wanted"):
        stops("blue")


# ----------------------------------------------------------------------------------- bad input
@pytest.mark.parametrize(
    ("strokes", "message"),
    [
        ({"a": [(10, 10)]}, "expected strokes in two classes"),
        ({"a": [(10, 10)], "b": []}, r"got none in \['b'\]"),
        ({}, "expected strokes in two classes"),
        ({"a": [(10, 10)], "b": [(10, 400)]}, "expected strokes of 'b' inside the image"),
        ({"a": [(10, 10)], "b": [(np.nan, 4)]}, "expected strokes of 'b' inside the image"),
        ({"a": [(10, 10)], "b": [[1, 2, 3]]}, r"as points \(y, x\), \(N, 2\), got \(3,\)"),
    ],
)
def test_strokes_that_teach_nothing_are_told(strokes: dict[str, Any], message: str) -> None:
    with pytest.raises(PromptError, match=message):
        learn_classes(image(), strokes, level=0, model=model())


def test_classes_of_another_model_are_refused() -> None:
    wanted = WantedClass(classifier=classifier(), name="red")
    with pytest.raises(ConfigError, match="expected classes that were made with small"):
        propose(image(), model=build(STEM_CONFIG, seed=1), wanted=wanted)


def test_a_class_that_was_not_learned_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of the classes ground, red, blue, got 'green'"):
        WantedClass(classifier=classifier(), name="green")
