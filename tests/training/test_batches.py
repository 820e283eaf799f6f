"""Random crops hold the objects they promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from napari_hrsam.errors import ConfigError, DataError
from napari_hrsam.training.batches import CropConfig, CropSampler
from napari_hrsam.training.datasets import open_samples

PLAIN = CropConfig(crop_px=64, batch_size=4, objects_per_crop=2, polarity=0, grey=0, large_share=0)


def _write(folder: Path, name: str, image: np.ndarray, labels: np.ndarray) -> None:
    for kind, array in (("images", image), ("masks", labels)):
        (folder / kind).mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(folder / kind / f"{name}.png")


@pytest.fixture
def discs(tmp_path: Path) -> Path:
    """Two bright discs (200 and 120) on a dark ground, labels 1 and 2."""
    y, x = np.mgrid[:120, :160]
    labels = np.zeros((120, 160), np.uint8)
    labels[(y - 40) ** 2 + (x - 40) ** 2 < 15**2] = 1
    labels[(y - 80) ** 2 + (x - 110) ** 2 < 20**2] = 2
    image = np.choose(labels, [10, 200, 120]).astype(np.uint8)
    _write(tmp_path / "discs", "a", np.repeat(image[..., None], 3, 2), labels)
    return tmp_path / "discs"


def test_the_same_generator_gives_the_same_batch(discs):
    sampler = CropSampler(open_samples([discs]), PLAIN)
    first = sampler.batch(np.random.default_rng(5))
    again = sampler.batch(np.random.default_rng(5))
    other = sampler.batch(np.random.default_rng(6))
    assert np.array_equal(first.images, again.images)
    assert np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.images, other.images)


def test_masks_lie_on_the_objects_of_their_crop(discs):
    sampler = CropSampler(open_samples([discs]), PLAIN)
    for seed in range(10):
        batch = sampler.batch(np.random.default_rng(seed))
        assert batch.images.shape == (4, 64, 64, 3)
        assert batch.masks.shape[1:] == (64, 64)
        assert batch.masks.any((1, 2)).all()
        assert set(batch.crop_index) == {0, 1, 2, 3}
        for mask, index in zip(batch.masks, batch.crop_index, strict=True):
            image = batch.images[index].astype(float).mean(2)
            ring = binary_dilation(mask, iterations=4) & ~binary_dilation(mask, iterations=1)
            ring &= ~batch.masks[batch.crop_index == index].any(0)
            ring &= batch.images[index].std(-1) < 3  # not outside the image
            assert ring.sum() < 5 or image[mask].mean() > np.median(image[ring]) + 20


@pytest.mark.parametrize("span", [(0.1, 0.1), (0.5, 0.5)])
def test_the_chosen_object_spans_the_share_that_was_asked_for(discs, span):
    config = replace(PLAIN, span=span, objects_per_crop=1)
    batch = CropSampler(open_samples([discs]), config).batch(np.random.default_rng(0))
    for mask in batch.masks:
        side = max(mask.any(0).sum(), mask.any(1).sum())
        assert abs(side - span[0] * 64) <= 3


def test_large_batches_have_twice_the_side_and_objects_from_the_same_size_on(discs):
    config = replace(PLAIN, span=(0.4, 0.4), objects_per_crop=1, large_share=1.0)
    sampler, sides = CropSampler(open_samples([discs]), config), []
    for seed in range(30):
        batch = sampler.batch(np.random.default_rng(seed))
        assert batch.images.shape == (1, 128, 128, 3)
        sides.append(max(batch.masks[0].any(0).sum(), batch.masks[0].any(1).sum()))
    assert 0.4 * 64 - 3 <= min(sides) < 0.25 * 128
    assert 0.33 * 128 < max(sides) <= 0.4 * 128 + 3


def test_outside_the_image_is_the_mean_colour_and_background(discs):
    config = replace(PLAIN, span=(0.08, 0.08), objects_per_crop=1)
    batch = CropSampler(open_samples([discs]), config).batch(np.random.default_rng(1))
    outside = (batch.images.std(-1) > 0).mean()
    assert outside > 0.05  # the mean colour is the only one here that is not grey


def test_domains_are_balanced_by_the_square_root_of_their_objects(discs, tmp_path):
    labels = np.zeros((80, 80), np.uint8)
    for i in range(8):
        labels[8 * i : 8 * i + 6, 10:60] = i + 1
    _write(tmp_path / "bars", "b", labels * 20, labels)
    sampler = CropSampler(open_samples([discs, tmp_path / "bars"]), PLAIN)
    assert sampler.domain_shares["bars"] / sampler.domain_shares["discs"] == pytest.approx(2.0)


def test_data_without_objects_is_refused(tmp_path):
    empty = np.zeros((40, 40), np.uint8)
    _write(tmp_path, "e", empty, empty)
    with pytest.raises(DataError, match="none of the 1 samples holds an object of 16"):
        CropSampler(open_samples([tmp_path]), PLAIN)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_px": 100}, "multiple of 16, got 100"),
        ({"span": (0.5, 0.1)}, "span must be"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_crops_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(PLAIN, **change)
