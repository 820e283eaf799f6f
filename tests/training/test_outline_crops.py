"""Crops along outlines, photographed and drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import uniform_filter

from napari_hrsam.errors import ConfigError, DataError
from napari_hrsam.storage.images.tile_source import MEAN_RGB
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.outline_crops import OutlineSampler
from napari_hrsam.training.outline_drawings import draw_regions
from napari_hrsam.training.settings import OutlineTaskConfig

PLAIN = OutlineTaskConfig(crop_px=64, batch_size=6, drawn_share=0, polarity=0, grey=0)


def test_batches_hold_priors_beside_what_they_should_be(pairs: Path) -> None:
    batch = OutlineSampler(open_samples([pairs]), PLAIN).batch(np.random.default_rng(0))
    assert batch.images.shape == (6, 64, 64, 3)
    assert batch.images.dtype == np.uint8
    assert batch.priors.shape == batch.masks.shape == batch.known.shape == (6, 64, 64)
    assert batch.priors.dtype == np.float32
    for mask in batch.masks:
        assert mask.any()
        assert not mask.all()
    right = ((batch.priors > 0) == batch.masks).mean()
    assert 0.6 < right < 1


def test_masks_lie_on_their_objects(pairs: Path) -> None:
    # Discs are bright on dark. Recolouring keeps that; noise and grey values of the crop vary.
    batch = OutlineSampler(open_samples([pairs]), PLAIN).batch(np.random.default_rng(1))
    for image, mask, known in zip(batch.images, batch.masks, batch.known, strict=True):
        inside, outside = image[mask & known].mean(), image[~mask & known].mean()
        assert inside > outside + 15


def test_a_neighbour_that_touches_is_not_in_the_mask(tmp_path: Path) -> None:
    labels = np.zeros((90, 90), np.uint8)
    labels[20:70, 20:45], labels[20:70, 45:70] = 1, 2
    for name, array in (("images", np.array([60, 130, 250])[labels]), ("masks", labels)):
        (tmp_path / name).mkdir()
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / name / "two.png")
    batch = OutlineSampler(open_samples([tmp_path]), PLAIN).batch(np.random.default_rng(0))
    for image, mask, known in zip(batch.images, batch.masks, batch.known, strict=True):
        smooth = uniform_filter(image.mean(2), 5)
        low, high = np.percentile(smooth[mask & known], (20, 80))
        assert high - low < 25


def test_the_same_generator_gives_the_same_batch(pairs: Path) -> None:
    sampler = OutlineSampler(open_samples([pairs]), OutlineTaskConfig(crop_px=64, batch_size=4))
    one, two = (sampler.batch(np.random.default_rng(5)) for _ in range(2))
    for name in ("images", "priors", "masks", "known"):
        assert np.array_equal(getattr(one, name), getattr(two, name)), name
    other = sampler.batch(np.random.default_rng(6))
    assert not np.array_equal(one.images, other.images)


def test_what_lies_beyond_the_image_is_mean_grey_and_unknown(tmp_path: Path) -> None:
    for name, array in (("images", np.full((40, 40), 10)), ("masks", np.zeros((40, 40)))):
        (tmp_path / name).mkdir()
        array[10:38, 5:35] = 200 if name == "images" else 1
        Image.fromarray(array.astype(np.uint8)).save(tmp_path / name / "box.png")
    sampler = OutlineSampler(open_samples([tmp_path]), PLAIN)
    batch = sampler.batch(np.random.default_rng(0))
    assert not batch.known.all()
    assert batch.known.any()
    for image, known in zip(batch.images, batch.known, strict=True):
        if not known.all():
            shift = image[~known].mean(0) - np.array(MEAN_RGB)
            assert np.abs(shift).max() < 90  # recoloured with the rest


def test_small_objects_are_left_out(pairs: Path) -> None:
    large = OutlineTaskConfig(crop_px=64, min_area_px=100_000)
    with pytest.raises(DataError, match="none of the 1 samples holds an object of 25000"):
        OutlineSampler(open_samples([pairs]), large)


@pytest.mark.parametrize("seed", range(12))
def test_drawn_regions_are_told_from_their_surroundings(seed: int) -> None:
    image, mask = draw_regions(96, np.random.default_rng(seed))
    assert image.shape == (96, 96, 3)
    assert image.dtype == np.uint8
    assert mask.shape == (96, 96)
    assert 0.03 < mask.mean() < 0.97
    assert image.std() > 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_px": 66}, "multiple of 4 and at least 16, got 66"),
        ({"batch_size": 0}, "at least 1, got 0 and 700"),
        ({"drawn_share": 1.5}, "drawn_share must lie in 0..1, got 1.5"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        OutlineTaskConfig(**settings)  # type: ignore[arg-type]
