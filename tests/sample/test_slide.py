"""What is true of a generated image, and how napari sees it."""

from __future__ import annotations

import numpy as np
import pytest

from napari_hrsam.engine.session import Session
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.sample import Sample, make_sample


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Sample:
    """Not to be changed."""
    return make_sample(tmp_path_factory.mktemp("sample") / "slide.ome.zarr", 6000, seed=2)


def test_masks_and_labels_are_those_of_the_scene(sample: Sample) -> None:
    found = sample.objects[40]
    mask = sample.mask(found.label)
    assert mask.shape == found.box.shape_yx
    np.testing.assert_array_equal(mask, sample.scene.mask(found.label, found.box))
    np.testing.assert_array_equal(sample.labels(found.box) == found.label, mask)
    coarse = Box(found.box.y0 // 4, found.box.x0 // 4, -(-found.box.y1 // 4), -(-found.box.x1 // 4))
    np.testing.assert_array_equal(
        sample.mask(found.label, level=2), sample.mask(found.label, coarse, 2)
    )
    assert (
        sample.mask(found.label, coarse.expand(5), 2).sum()
        == sample.mask(found.label, coarse, 2).sum()
    )


def test_levels_are_sliced_as_napari_does(sample: Sample) -> None:
    finest, coarsest = sample.levels[0], sample.levels[-1]
    assert [level.shape for level in sample.levels] == [(*s, 3) for s in sample.level_shapes]
    assert (finest.ndim, finest.dtype, finest.size) == (3, np.uint8, 6000 * 6000 * 3)
    assert finest.chunks == (512, 512, 3)
    expected = sample.image.read(Tile(0, 1000, 1500, 256))
    np.testing.assert_array_equal(finest[1000:1256, 1500:1756], expected)
    np.testing.assert_array_equal(finest[1000:1256, 1500:1756, :], expected)
    np.testing.assert_array_equal(finest[1000:1256, 1500:1756, 1], expected[..., 1])
    np.testing.assert_array_equal(finest[1000, 1500:1510], expected[0, :10])
    np.testing.assert_array_equal(coarsest[...], np.asarray(coarsest))
    np.testing.assert_array_equal(coarsest[..., 2], np.asarray(coarsest)[..., 2])
    np.testing.assert_array_equal(coarsest[:5], np.asarray(coarsest)[:5])


@pytest.mark.weights
@pytest.mark.slow
@pytest.mark.parametrize("look", ["tissue", "em"])
def test_the_shipped_model_finds_the_objects(
    look: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    sample = make_sample(tmp_path_factory.mktemp("look") / "slide.ome.zarr", 100_000, look=look)
    small = [found for found in sample.objects if found.kind in ("gland", "nucleus")]
    ious = []
    with Session("hrsam-tiny", sample.image) as session:
        for found in small[:: len(small) // 20]:
            # At this zoom the object is about a fifth of the tile.
            level = max(-2, round(np.log2(max(found.box.shape_yx) / 100)))
            prediction = session.click(found.centre_yx, level=level)
            truth = sample.mask(found.label, prediction.box)
            ious.append((prediction.mask & truth).sum() / (prediction.mask | truth).sum())
            session.cancel()
    assert np.median(ious) > 0.85
    assert np.mean(np.array(ious) > 0.7) > 0.8
