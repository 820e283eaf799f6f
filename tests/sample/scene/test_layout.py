"""Where objects lie, and how large they are."""

from __future__ import annotations

import math

import numpy as np
import pytest

from napari_hrsam.geometry import Box
from napari_hrsam.sample.scene.layout import KINDS, lay_out, scaled_diameter
from napari_hrsam.sample.scene.outlines import make_outlines
from napari_hrsam.sample.scene.recipe import Recipe
from napari_hrsam.sample.scene.scene import Scene

SIZES = (256, 2048, 10_000, 100_000, 200_000)


def _all(size_px: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Centres, largest radii and boxes of all objects."""
    groups = [group.outlines for group in lay_out(Recipe(size_px=size_px, seed=seed))]
    return (
        np.concatenate([outlines.centres for outlines in groups]),
        np.concatenate([outlines.largest for outlines in groups]),
        np.concatenate([outlines.boxes for outlines in groups]),
    )


@pytest.mark.parametrize("size_px", SIZES)
def test_no_two_objects_touch(size_px: int) -> None:
    centres, largest, _ = _all(size_px)
    for start in range(0, len(centres), 500):
        part = slice(start, start + 500)
        apart = np.hypot(*(centres[part, np.newaxis] - centres).transpose(2, 0, 1))
        apart -= largest[part, np.newaxis] + largest
        apart[np.arange(len(apart)), np.arange(start, start + len(apart))] = np.inf
        assert apart.min() > 3


@pytest.mark.parametrize("size_px", SIZES)
def test_all_objects_lie_inside(size_px: int) -> None:
    _, _, boxes = _all(size_px)
    assert boxes.min() >= 0
    assert boxes.max() <= size_px


def test_a_100k_image_holds_thousands_of_objects_from_10_px_to_30000_px() -> None:
    objects = Scene(Recipe(size_px=100_000)).objects
    diameters = [found.diameter_px for found in objects]
    assert len(objects) > 6000
    assert min(diameters) == pytest.approx(10)
    assert max(diameters) == pytest.approx(30_000)
    for kind in KINDS:
        group = [found.diameter_px for found in objects if found.kind == kind.name]
        low, high = kind.diameters_px
        assert low * 0.99 < min(group) < low * 1.3
        assert high * 0.7 < max(group) <= high * 1.01
        assert len(group) >= 4
    assert [found.label for found in objects] == list(range(1, len(objects) + 1))


def test_a_smaller_image_holds_smaller_objects_of_every_kind() -> None:
    assert scaled_diameter(10, 2048) == pytest.approx(10)
    assert scaled_diameter(30_000, 2048) == pytest.approx(0.3 * 2048)
    assert scaled_diameter(30_000, 200_000) == pytest.approx(30_000)
    for size_px in (256, 2048):
        groups = lay_out(Recipe(size_px=size_px))
        assert all(len(group.outlines) for group in groups)
        largest = max(group.outlines.radii.max() for group in groups)
        assert 0.1 * size_px < 2 * largest <= 0.3 * size_px + 1e-6


def test_a_200k_image_holds_more_giant_objects() -> None:
    def num_giant(size_px: int) -> int:
        return len(lay_out(Recipe(size_px=size_px))[0].outlines)

    assert num_giant(200_000) > 2 * num_giant(100_000)


def test_the_seed_decides_where_objects_lie() -> None:
    first, again, other = _all(5000, 1)[0], _all(5000, 1)[0], _all(5000, 2)[0]
    np.testing.assert_array_equal(first, again)
    assert len(first) != len(other) or (first != other).any()


def test_an_outline_is_its_formula() -> None:
    centre, radius = np.array([[60.3, 71.8]]), np.array([40.0])
    waves, phases = np.array([[0.15, 0.1]]), np.array([[1.0, 4.0]])
    outlines = make_outlines(centre, radius, waves, phases, 512)
    rows, columns = np.mgrid[:128, :150]
    dy, dx = (rows - 60.3).astype(np.float32), (columns - 71.8).astype(np.float32)
    angle = np.arctan2(dy, dx)
    wave = 0.15 * np.cos(2 * angle + 1) + 0.1 * np.cos(3 * angle + 4)
    depth = 40 * (1 + wave) - np.hypot(dy, dx)
    distance = outlines.distance(0, dy, dx)
    # Chords between the table's directions are at most this far from the curve.
    clear = np.abs(depth) > 0.01
    np.testing.assert_array_equal((distance > 0)[clear], (depth > 0)[clear])
    assert clear.mean() > 0.999
    # Along the normal and not along the ray: never more, and less where the outline is slanted.
    near = np.abs(depth) < 3
    assert (np.abs(distance)[near] <= np.abs(depth)[near] + 0.01).all()
    assert (np.abs(distance)[near] > 0.8 * np.abs(depth)[near] - 0.05).all()
    assert outlines.areas[0] == pytest.approx((depth > 0).sum(), rel=0.005)
    found = np.argwhere(depth > 0)
    expected = Box.around(depth > 0)
    assert tuple(outlines.boxes[0]) == (expected.y0, expected.x0, expected.y1, expected.x1)
    assert outlines.largest[0] == pytest.approx(
        np.hypot(*(found - centre[0]).T).max(), abs=math.sqrt(2)
    )
