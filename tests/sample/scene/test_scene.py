"""Pixels, masks and levels of a scene agree."""

from __future__ import annotations

import numpy as np
import pytest

from napari_hrsam.errors import ConfigError, ImageError
from napari_hrsam.geometry import Box, level_shape
from napari_hrsam.sample.scene.painter import Painter
from napari_hrsam.sample.scene.recipe import CHUNK_PX, LOOKS, Recipe
from napari_hrsam.sample.scene.scene import Scene, SceneObject

SIZE_PX = 3000


@pytest.fixture(scope="module", params=LOOKS)
def scene(request: pytest.FixtureRequest) -> Scene:
    return Scene(Recipe(size_px=SIZE_PX, seed=3, look=request.param))


def pixels(scene: Scene, box: Box, level: int = 0) -> np.ndarray:
    """(box.height, box.width, 3) float, put together from chunks."""
    rows = range(box.y0 // CHUNK_PX, -(-box.y1 // CHUNK_PX))
    columns = range(box.x0 // CHUNK_PX, -(-box.x1 // CHUNK_PX))
    whole = np.concatenate(
        [np.concatenate([scene.chunk(level, r, c) for c in columns], axis=2) for r in rows], axis=1
    )
    part = box.shifted(-rows[0] * CHUNK_PX, -columns[0] * CHUNK_PX)
    return whole[(slice(None), *part.slices)].transpose(1, 2, 0).astype(float)


def first(scene: Scene, kind: str) -> SceneObject:
    return next(found for found in scene.objects if found.kind == kind)


@pytest.mark.parametrize("kind", ["lesion", "lobule", "gland", "nucleus"])
def test_the_mask_is_where_the_pixels_look_different(scene: Scene, kind: str) -> None:
    found = first(scene, kind)
    box = found.box.expand(8).clip((SIZE_PX, SIZE_PX))
    seen, mask = pixels(scene, box), scene.mask(found.label, box)
    outside = scene.labels(box) == 0
    inner, outer = seen[mask].mean(axis=0), seen[outside].mean(axis=0)
    direction = (inner - outer) / np.linalg.norm(inner - outer)
    assert np.linalg.norm(inner - outer) > 60
    shown = (seen - outer) @ direction > np.linalg.norm(inner - outer) / 2
    shown &= mask | outside
    assert (shown & mask).sum() / (shown | mask).sum() > 0.95
    # No flat discs: there is texture inside.
    assert (seen[mask] @ direction).std() > 3


@pytest.mark.parametrize("level", [1, 2])
def test_a_coarse_level_is_the_mean_of_the_finest(scene: Scene, level: int) -> None:
    step, box = 2**level, Box(0, 0, 1024, 1024)
    fine, coarse = pixels(scene, box), pixels(scene, Box(0, 0, 1024 // step, 1024 // step), level)
    mean = fine.reshape(1024 // step, step, 1024 // step, step, 3).mean(axis=(1, 3))
    assert scene.labels(box).max() > 0
    # Fibres thinner than a pixel are left out of the coarse level.
    assert np.abs(coarse - mean).mean() < 4
    assert np.abs(coarse.mean(axis=(0, 1)) - mean.mean(axis=(0, 1))).max() < 0.5
    assert np.abs(coarse - mean).max() < 45


def test_objects_smaller_than_a_pixel_keep_their_brightness() -> None:
    scene = Scene(Recipe(size_px=40_000))
    level = len(scene.recipe.level_shapes) - 1
    step = 2**level
    # Nuclei in nests come before those alone, and lie about two pixels of this level apart.
    small = [found for found in scene.objects if 18 < found.diameter_px < 0.5 * step][:200:60]
    for found in small:
        y, x = (int(place) // step for place in found.centre_yx)
        coarse = Box(y - 2, x - 2, y + 3, x + 3)
        fine = Box(coarse.y0 * step, coarse.x0 * step, coarse.y1 * step, coarse.x1 * step)
        share = (scene.labels(fine) > 0).mean()
        mean = pixels(scene, fine).mean(axis=(0, 1))
        # Uncovered, the ground would be brighter by about the share of the objects in it.
        assert share > 0.03
        seen = pixels(scene, coarse, level).mean(axis=(0, 1))
        assert np.abs(seen - mean).max() < max(2, 50 * share)


@pytest.mark.parametrize("level", [0, 1])
def test_a_pixel_is_the_same_in_every_box(scene: Scene, level: int) -> None:
    painter = Painter(scene.recipe, scene._groups)
    whole = painter.paint(Box(0, 0, 700, 700), level).astype(int)
    for box in (Box(0, 0, 512, 512), Box(401, 333, 700, 612), Box(100, 511, 101, 513)):
        part = painter.paint(box, level).astype(int)
        assert np.abs(part - whole[(slice(None), *box.slices)]).max() <= 1


def test_a_chunk_is_the_same_every_time() -> None:
    first, again = (Scene(Recipe(size_px=SIZE_PX, seed=3)) for _ in range(2))
    np.testing.assert_array_equal(first.chunk(1, 1, 2), again.chunk(1, 1, 2))
    other = Scene(Recipe(size_px=SIZE_PX, seed=4))
    assert (first.chunk(1, 1, 2) != other.chunk(1, 1, 2)).mean() > 0.5


@pytest.mark.parametrize("kind", ["lesion", "nucleus"])
def test_a_mask_fits_its_box_at_every_level(scene: Scene, kind: str) -> None:
    found = first(scene, kind)
    box = found.box.expand(20)
    full = scene.mask(found.label, box)
    assert Box.around(full).shifted(box.y0, box.x0) == found.box
    area = full.sum()
    assert area == pytest.approx(np.pi / 4 * found.diameter_px**2, rel=0.15)
    for level in (1, 2, 3):
        coarse = scene.mask(found.label, Box.of_shape(level_shape((SIZE_PX,) * 2, level)), level)
        assert coarse.sum() * 4**level == pytest.approx(area, rel=0.1 * 2**level)
        # The centre of a coarse pixel lies between four fine ones, which tell the same but at
        # the outline.
        step = 2**level
        padded = np.zeros((SIZE_PX, SIZE_PX), bool)
        padded[found.box.slices] = scene.mask(found.label, found.box)
        fine = padded[step // 2 :: step, step // 2 :: step]
        cut = tuple(slice(0, n) for n in fine.shape)
        assert (coarse[cut] != fine).sum() <= 0.3 * np.sqrt(area) / step * 4 + 2


def test_labels_are_all_masks_together(scene: Scene) -> None:
    for box, level in ((Box(700, 900, 1400, 1500), 0), (Box(100, 0, 400, 375), 3)):
        expected = np.zeros(box.shape_yx, np.uint32)
        for found in scene.objects:
            mask = scene.mask(found.label, box, level)
            assert not expected[mask].any()
            expected[mask] = found.label
        labels = scene.labels(box, level)
        assert labels.dtype == np.uint32
        assert len(np.unique(expected)) > 4
        np.testing.assert_array_equal(labels, expected)


def test_centres_lie_inside(scene: Scene) -> None:
    for found in scene.objects[::7]:
        y, x = (round(place) for place in found.centre_yx)
        assert scene.mask(found.label, Box(y, x, y + 1, x + 1)).all()
        assert scene.object(found.label) is found


def test_a_giant_object_is_told_in_a_box_without_its_whole() -> None:
    scene = Scene(Recipe(size_px=100_000))
    giant = scene.objects[0]
    y, x = (int(place) for place in giant.centre_yx)
    assert scene.mask(giant.label, Box(y, x, y + 100, x + 100)).all()
    assert not scene.mask(giant.label, Box(0, 0, 100, 100)).any()
    edge = scene.mask(giant.label, Box(y, giant.box.x0 - 50, y + 4000, giant.box.x0 + 4000))
    assert 0.1 < edge.mean() < 0.99


@pytest.mark.parametrize("label", [0, -1, 10**6])
def test_a_label_that_is_none_is_refused(scene: Scene, label: int) -> None:
    with pytest.raises(ImageError, match="expected a label of 1 to .*Sample.objects"):
        scene.mask(label, Box(0, 0, 4, 4))
    with pytest.raises(ImageError, match="expected a label of 1 to"):
        scene.object(label)


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"size_px": 255}, "expected a size of 256 to 1048576 px, got 255; choose"),
        ({"size_px": 2**20 + 1}, "expected a size"),
        ({"size_px": 1000, "seed": -1}, "expected a seed of 0 to .*, got -1; choose 0"),
        ({"size_px": 1000, "look": "blue"}, "expected a look of tissue, em, got 'blue'; choose"),
    ],
)
def test_recipes_out_of_range_are_refused(wishes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        Recipe(**wishes)


def test_a_recipe_survives_its_file() -> None:
    recipe = Recipe(size_px=1234, seed=9, look="em")
    assert Recipe.from_json(recipe.to_json(), "x") == recipe
    assert recipe.level_shapes == ((1234, 1234), (617, 617))
