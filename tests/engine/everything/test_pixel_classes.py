"""Classes of pixels: the filter bank, learning from strokes, files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from napari_hrsam.engine.everything.pixel_classes import (
    BANK_FEATURES,
    BANK_REACH,
    PixelClassifier,
    filter_bank,
    fit_pixel_classes,
)
from napari_hrsam.errors import DataError, PromptError, ShapeError


def picture(height: int = 140, width: int = 150) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)


# --------------------------------------------------------------------------------- filter bank
def test_part_with_its_margin_has_the_values_of_the_whole() -> None:
    rgb = picture()
    whole = filter_bank(rgb)
    assert whole.shape == (BANK_FEATURES, 140, 150)
    inner = whole[:, BANK_REACH:-BANK_REACH, BANK_REACH + 3 : -BANK_REACH]
    part = filter_bank(rgb[:, 3:])[:, BANK_REACH:-BANK_REACH, BANK_REACH:-BANK_REACH]
    np.testing.assert_array_equal(part, inner)


def test_filters_are_colour_edge_curvature_and_texture() -> None:
    x = np.arange(120, dtype=np.float32)
    ramp = np.broadcast_to(x[None, :, None], (120, 120, 3))
    bowl = np.broadcast_to((x[None, :, None] - 60) ** 2 / 20, (120, 120, 3))
    middle = (slice(None), 60, 60)
    for_ramp, for_bowl = filter_bank(ramp)[middle], filter_bank(bowl)[middle]
    for scale in range(5):
        colour, edge, most, least, texture = for_ramp[7 * scale + np.array([0, 3, 4, 5, 6])]
        assert colour == pytest.approx(60 / 255, abs=1e-4)
        assert edge == pytest.approx(1 / 255, rel=1e-3)
        assert (most, least) == pytest.approx((0, 0), abs=1e-5)
        # The standard deviation of a ramp under a Gaussian is the Gaussian's own.
        assert texture == pytest.approx((0.5, 1, 2, 4, 8)[scale] / 255, rel=0.1)
        # The second derivative of x^2 / 20 is 1 / 10 along x and 0 along y.
        assert for_bowl[7 * scale + np.array([4, 5])] == pytest.approx((0.1 / 255, 0), abs=1e-5)


def test_colours_of_another_shape_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected colours as \(h, w, 3\), got \(3, 8, 8\)"):
        filter_bank(np.zeros((3, 8, 8)))


# ------------------------------------------------------------------------------------ learning
def strokes(num: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes along the first two features; a third feature says nothing."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, num)
    centres = np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 400.0]])
    places = centres[classes] + rng.normal(size=(num, 2)) * (0.5, 50)
    return np.c_[places, rng.normal(size=num)].T, classes


def test_classes_are_told_apart_whatever_the_scale_of_their_features() -> None:
    found = fit_pixel_classes(*strokes(200), ["a", "b", "c"])
    features, classes = strokes(2000, seed=1)
    probabilities = found.probabilities(features.reshape(3, 40, 50))
    assert probabilities.shape == (3, 40, 50)
    np.testing.assert_allclose(probabilities.sum(axis=0), 1, rtol=1e-5)
    assert (probabilities.reshape(3, -1).argmax(axis=0) == classes).mean() > 0.98


def test_long_stroke_weighs_no_more_than_a_short_one() -> None:
    features = np.array([[0.0] * 99 + [1.0]])
    classes = np.array([0] * 99 + [1])
    found = fit_pixel_classes(features, classes, ["ground", "object"])
    assert found.probabilities(np.array([[0.5]]))[1, 0] == pytest.approx(0.5, abs=0.01)


def test_feature_that_is_the_same_in_all_strokes_decides_nothing() -> None:
    features, classes = strokes(100)
    features[2] = 7.0
    found = fit_pixel_classes(features, classes, ["a", "b", "c"])
    here = np.array([[0.0], [0.0], [7.0]])
    there = here + np.array([[0.0], [0.0], [50.0]])
    np.testing.assert_allclose(found.probabilities(there), found.probabilities(here), atol=1e-3)


@pytest.mark.parametrize(
    ("classes", "names", "message"),
    [
        ([0, 0], ["ground", "object"], r"got none in \['object'\]"),
        ([0, 0], ["ground"], r"got none in \['ground'\]"),
        ([0, 2], ["ground", "object"], "expected strokes in two classes"),
    ],
)
def test_strokes_in_one_class_are_too_few(
    classes: list[int], names: list[str], message: str
) -> None:
    with pytest.raises(PromptError, match=message):
        fit_pixel_classes(np.zeros((3, 2)), np.array(classes), names)


def test_features_that_are_not_finite_are_refused() -> None:
    features, classes = strokes(30)
    features[1, 3] = np.nan
    with pytest.raises(DataError, match="finite"):
        fit_pixel_classes(features, classes, ["a", "b", "c"])


def test_features_and_classes_have_to_belong_together() -> None:
    features, classes = strokes(30)
    with pytest.raises(ShapeError, match=r"got \(3, 30\) and \(29,\)"):
        fit_pixel_classes(features, classes[1:], ["a", "b", "c"])
    found = fit_pixel_classes(features, classes, ["a", "b", "c"])
    with pytest.raises(ShapeError, match="expected 3 features of every pixel, got 2"):
        found.probabilities(features[:2])


# --------------------------------------------------------------------------------------- files
def test_saved_classifier_is_the_same(tmp_path: Path) -> None:
    features, classes = strokes(60)
    made = fit_pixel_classes(features, classes, ["a", "b", "c"], made_from="abc", level=2)
    read = PixelClassifier.load(made.save(tmp_path / "cells.json"))
    assert (read.names, read.made_from, read.level) == (("a", "b", "c"), "abc", 2)
    np.testing.assert_array_equal(read.probabilities(features), made.probabilities(features))


@pytest.mark.parametrize(
    "change",
    [
        {"format": "something else"},
        {"names": ["a", "b"]},
        {"bias": [0.0]},
        {"weights": [[0.0], [0.0, 1.0], [0.0]]},
        {"weights": [[float("nan")], [0.0], [0.0]]},
        {"level": None},
    ],
)
def test_files_of_something_else_are_refused(tmp_path: Path, change: dict[str, object]) -> None:
    features, classes = strokes(60)
    path = fit_pixel_classes(features, classes, ["a", "b", "c"]).save(tmp_path / "cells.json")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(DataError, match=r"cells\.json to be a file of pixel classes"):
        PixelClassifier.load(path)


def test_missing_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json"):
        PixelClassifier.load(tmp_path / "none.json")
