"""Random crops hold the objects they promise."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.ndimage import binary_dilation

from napari_hrsam.errors import ConfigError, DataError
from napari_hrsam.training.batches import CropSampler, to_tensors
from napari_hrsam.training.datasets import open_samples
from napari_hrsam.training.settings import CropConfig, CropSize

SIZE = CropSize(crop_px=64, batch_size=4, objects_per_crop=2)
ONE = replace(SIZE, objects_per_crop=1)
PLAIN = CropConfig(sizes=(SIZE,), span=(0.1, 0.6), wide_share=0, smallest_px=1, polarity=0, grey=0)


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
    config = replace(PLAIN, span=span, sizes=(ONE,))
    batch = CropSampler(open_samples([discs]), config).batch(np.random.default_rng(0))
    for mask in batch.masks:
        side = max(mask.any(0).sum(), mask.any(1).sum())
        assert abs(side - span[0] * 64) <= 3


def test_wide_spans_and_the_smallest_size_are_kept(discs):
    wide = replace(PLAIN, wide_share=1.0, wide_span=(0.8, 0.8), sizes=(ONE,))
    smallest = replace(PLAIN, span=(0.05, 0.5), smallest_px=30, sizes=(ONE,))
    for config, low, high in ((wide, 0.8 * 64, 0.8 * 64), (smallest, 30, 32)):
        batch = CropSampler(open_samples([discs]), config).batch(np.random.default_rng(2))
        sides = [max(m.any(0).sum(), m.any(1).sum()) for m in batch.masks]
        assert low - 3 <= min(sides)
        assert max(sides) <= high + 3


def test_sizes_are_drawn_by_their_shares_which_change_over_the_training(discs):
    large = CropSize(crop_px=96, batch_size=1, objects_per_crop=1, share=1, late_share=3)
    early = replace(ONE, share=1, late_share=0)
    sampler = CropSampler(open_samples([discs]), replace(PLAIN, sizes=(early, large)))

    def sides(done: float) -> list[int]:
        return [
            sampler.batch(np.random.default_rng(seed), done).images.shape[1] for seed in range(60)
        ]

    assert 15 <= sides(0.0).count(96) <= 45
    assert set(sides(1.0)) == {96}


def test_the_labels_of_a_crop_hold_its_masks_and_everything_else_in_it(discs):
    sampler = CropSampler(open_samples([discs]), replace(PLAIN, sizes=(ONE,), span=(0.2, 0.3)))
    others = 0
    for seed in range(10):
        batch = sampler.batch(np.random.default_rng(seed))
        for mask, index in zip(batch.masks, batch.crop_index, strict=True):
            labels = batch.labels[index]
            (value,) = np.unique(labels[mask])
            assert value > 0
            assert np.array_equal(labels == value, mask)
            others += int(labels.max() > 1)
    assert others > 5  # the other disc is seen in many crops, though it is not clicked on


def test_a_batch_is_copied_to_tensors(discs):
    batch = CropSampler(open_samples([discs]), PLAIN).batch(np.random.default_rng(0))
    tensors = to_tensors(batch, "cpu")
    assert tensors.images.shape == (4, 3, 64, 64)
    assert np.array_equal(tensors.images[1, 2].numpy(), batch.images[1, :, :, 2])
    assert tensors.max_id == batch.labels.max()
    assert tensors.weight.tolist() == [1.0] * len(batch.masks)


def test_second_labels_are_used_as_often_as_asked(write_tar, members, png):
    inner = np.zeros((96, 128), np.uint8)
    inner[28:33, 26:34] = 1  # A part of the first disc: 8 px wide, the discs 25 and 37.
    shard = write_tar("two.tar", {**members("a"), "a.lbl2.png": png(inner)})

    def areas(share: float) -> list[float]:
        config = replace(PLAIN, sizes=(ONE,), span=(0.5, 0.5), second_labels=share)
        sampler = CropSampler(open_samples([shard]), config)
        batches = [sampler.batch(np.random.default_rng(seed)) for seed in range(10)]
        return [float(mask.mean()) for batch in batches for mask in batch.masks]

    assert min(areas(0.0)) > 0.15  # A disc of half the side covers a fifth of the crop.
    assert max(areas(1.0)) < 0.19  # The bar, at most 4 times enlarged, less.


def test_images_are_decoded_when_wanted_and_forgotten_beyond_the_cache(discs, monkeypatch):
    import napari_hrsam.training.batches as module

    decoded = []
    real = module.open_scene
    monkeypatch.setattr(module, "open_scene", lambda s: decoded.append(s.key) or real(s))
    samples = open_samples([discs])
    CropSampler(samples, PLAIN)
    assert decoded == []
    kept = CropSampler(samples, PLAIN)
    for seed in range(3):
        kept.batch(np.random.default_rng(seed))
    assert decoded == ["a"]
    other = discs.parent / "more"
    for name in ("images", "masks"):
        (other / name).mkdir(parents=True)
        (other / name / "b.png").write_bytes((discs / name / "a.png").read_bytes())
    small = CropSampler(open_samples([discs, other]), replace(PLAIN, cache_mb=0.001))
    for seed in range(5):
        small.batch(np.random.default_rng(seed))
    assert len(decoded) > 4


def test_outside_the_image_is_the_mean_colour_and_background(discs):
    config = replace(PLAIN, span=(0.08, 0.08), sizes=(ONE,))
    batch = CropSampler(open_samples([discs]), config).batch(np.random.default_rng(1))
    outside = (batch.images.std(-1) > 0).mean()
    assert outside > 0.05  # the mean colour is the only one here that is not grey


def test_domains_are_balanced_by_images_and_objects(write_tar, members):
    many = {
        k: v for i in range(4) for k, v in members(f"m{i}", domain="many", instances=64).items()
    }
    shards = [write_tar("many.tar", many), write_tar("one.tar", members("o", domain="one"))]
    sampler = CropSampler(open_samples(shards), PLAIN)
    ratio = sampler.domain_shares["many"] / sampler.domain_shares["one"]
    assert ratio == pytest.approx((4 * 4 * 64) ** 0.1875)
    doubled = replace(PLAIN, domain_factors=(("many", 2.0),))
    twice = CropSampler(open_samples(shards), doubled).domain_shares
    assert twice["many"] / twice["one"] == pytest.approx(2 * ratio)
    with pytest.raises(ConfigError, match="name few, but the data has many, one"):
        CropSampler(open_samples(shards), replace(PLAIN, domain_factors=(("few", 2.0),)))


def test_data_without_objects_is_refused(tmp_path):
    empty = np.zeros((40, 40), np.uint8)
    _write(tmp_path, "e", empty, empty)
    sampler = CropSampler(open_samples([tmp_path]), PLAIN)
    with pytest.raises(DataError, match="drawn holds an object of 16"):
        sampler.batch(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crop_px": 100}, "multiple of 16, got 100"),
        ({"batch_size": 0}, "at least 1"),
        ({"share": -1}, "shares must be 0 or more"),
    ],
)
def test_sizes_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(SIZE, **change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"span": (0.5, 0.1)}, "span must be"),
        ({"wide_span": (0.5, 1.1)}, "span must be"),
        ({"sizes": ()}, "at least one size"),
        ({"wide_share": 2}, "wide_share must lie"),
    ],
)
def test_crops_that_cannot_be_are_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(PLAIN, **change)
