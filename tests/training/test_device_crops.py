"""Crops made on the device hold what they promise."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from napari_hrsam.errors import ConfigError, DataError, ShapeError
from napari_hrsam.training.dense_targets import dense_targets
from napari_hrsam.training.device_crops import (
    UNCHANGED,
    Augmentation,
    DeviceCrops,
)
from napari_hrsam.training.device_images import MEAN_RGB

TURNED = replace(UNCHANGED, turn=True)
WARPED = replace(UNCHANGED, turn=True, warp=1.0)
HEIGHT, WIDTH = 170, 230


@dataclass(frozen=True)
class Picture:
    """A sample."""

    pixels: NDArray[np.uint8]
    labels: NDArray[Any]
    second_labels: NDArray[Any] | None = None
    domain: str = "shapes"


def shapes() -> NDArray[np.int64]:
    """A disc, a bar, an L and a small square, with ids that leave gaps."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    labels = np.zeros((HEIGHT, WIDTH), np.int64)
    labels[(y - 50) ** 2 + (x - 60) ** 2 < 22**2] = 3
    labels[20:30, 120:200] = 70_000
    labels[90:150, 150:160] = 9
    labels[140:150, 150:210] = 9
    labels[120:124, 20:24] = 11
    return labels


def ramp(**changes: Any) -> Picture:
    """Red is the row, green the column: a pixel's colour tells where it comes from."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    pixels = np.stack([y, x, np.full_like(y, 255)], 2).astype(np.uint8)
    return Picture(**{"pixels": pixels, "labels": shapes(), **changes})


def crops(*samples: Picture, augmentation: Augmentation = UNCHANGED, **options: Any) -> DeviceCrops:
    chosen = samples or (ramp(),)
    return DeviceCrops(chosen, "cpu", augmentation=augmentation, workers=1, **options)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def draw(made: DeviceCrops, seed: int = 0, **options: Any) -> Any:
    settings = {"crop_px": 64, "num_crops": 16, "objects_per_crop": 2, "span": (0.3, 0.6)}
    return made.batch(seeded(seed), **{**settings, **options})


def sides(mask: Tensor) -> tuple[int, int]:
    return int(mask.any(1).sum()), int(mask.any(0).sum())


def test_the_tables_hold_the_objects_of_16_pixels_and_more() -> None:
    labels = shapes()
    labels[160:163, 3:8] = 2  # 15 pixels
    made = crops(ramp(labels=labels))
    ids = [3, 9, 11, 70_000]
    places = [ndimage.find_objects((labels == i).astype(int))[0] for i in ids]
    boxes = [[s[0].start, s[1].start, s[0].stop, s[1].stop] for s in places]
    assert made.boxes.tolist() == boxes
    assert made.areas.tolist() == [(labels == i).sum() for i in ids]
    # The small one has a number, so that it is no background.
    assert made.object_ids.tolist() == [2, 3, 4, 5]
    assert made.max_id == 5


@pytest.mark.parametrize("augmentation", [UNCHANGED, TURNED, WARPED])
def test_labels_lie_on_their_pixels(augmentation: Augmentation) -> None:
    made = crops(augmentation=augmentation)
    source = np.unique(shapes(), return_inverse=True)[1].reshape(HEIGHT, WIDTH)
    batch = draw(made, span=(0.2, 0.6))
    for image, labels in zip(batch.images.numpy(), batch.labels.numpy(), strict=True):
        inside = image[2] == 255
        assert inside.any()
        assert (labels[~inside] == 0).all()
        y, x = image[:2].astype(int)
        near = [
            source[np.clip(y + i, 0, HEIGHT - 1), np.clip(x + j, 0, WIDTH - 1)] == labels
            for i in (-1, 0, 1)
            for j in (-1, 0, 1)
        ]
        assert np.any(near, 0)[inside].all()
        assert near[4][inside].mean() > 0.95


def test_masks_are_those_of_the_labels() -> None:
    batch = draw(crops(augmentation=WARPED), objects_per_crop=3)
    assert batch.masks.shape == (48, 64, 64)
    assert batch.masks.dtype == torch.bool
    assert batch.crop_index.tolist() == [i // 3 for i in range(48)]
    for mask, index, number in zip(batch.masks, batch.crop_index, batch.ids, strict=True):
        assert torch.equal(mask, batch.labels[index] == number)
        assert mask.any()
    assert batch.weight.eq(1).all()


def test_the_chosen_object_comes_first_and_spans_the_share_that_was_asked_for() -> None:
    made = crops(augmentation=TURNED)
    batch = draw(made, num_crops=64, objects_per_crop=1, span=(0.2, 0.5))
    assert torch.equal(batch.ids, made.object_ids[batch.object_index])
    big = made.boxes[batch.object_index, 2] != 124  # the small square reaches 4 times its size
    spans = torch.tensor([max(sides(mask)) for mask in batch.masks])[big] / 64
    assert spans.min() > 0.2 - 2 / 64
    assert spans.max() < 0.5 + 2 / 64
    assert spans.max() - spans.min() > 0.2
    # Log-uniform: half of them below the geometric mean.
    assert 0.3 < (spans < (0.2 * 0.5) ** 0.5).float().mean() < 0.7
    small = [max(sides(mask)) for mask in batch.masks[~big]]
    assert len(small) > 5
    assert all(15 <= side <= 17 for side in small if side > 0.2 * 64 + 2)
    assert max(small) <= 17


@pytest.mark.parametrize("augmentation", [TURNED, WARPED])
def test_the_chosen_object_is_whole_and_anywhere(augmentation: Augmentation) -> None:
    made = crops(augmentation=augmentation)
    batch = draw(made, num_crops=128, objects_per_crop=1, span=(0.3, 0.9))
    edges = [batch.masks[:, 0], batch.masks[:, -1], batch.masks[..., 0], batch.masks[..., -1]]
    touching = torch.stack(edges).any(0).any(1)
    assert touching.float().mean() < 0.1  # of spans near 1, by half a pixel
    centres = torch.stack([mask.nonzero().float().mean(0) for mask in batch.masks])
    assert (centres.amin(0) < 24).all()
    assert (centres.amax(0) > 40).all()


@pytest.mark.parametrize("augmentation", [UNCHANGED, TURNED, WARPED])
def test_boxes_lie_evenly_over_the_free_room_of_their_crops(augmentation: Augmentation) -> None:
    made = crops(augmentation=augmentation)
    boxes = torch.tensor([[20.0, 120, 30, 200], [10, 40, 60, 70]]).repeat(150, 1)
    to_source, spans = made.place(seeded(), boxes, 64, (0.5, 1.0))
    to_source = to_source.double()
    corners = boxes[:, [[0, 1], [0, 3], [2, 1], [2, 3]]].double() - to_source[:, None, :, 2]
    in_crop = torch.linalg.solve(to_source[:, None, :, :2], corners[..., None])[..., 0]
    first, last = in_crop.amin(1), in_crop.amax(1)
    assert first.min() > -1e-2
    assert last.max() < 64 + 1e-2
    free = 64 - (last - first)
    share = (first / free)[free > 3]
    # The share of the side is told of the box as it lies in the image, before any warp.
    assert spans.max() <= 1 + 1e-6
    if not augmentation.warp:
        longer = (last - first).amax(1) / 64
        torch.testing.assert_close(spans.double(), longer, rtol=1e-3, atol=1e-3)
    assert share.min() == pytest.approx(0.05, abs=0.02)
    assert share.max() == pytest.approx(0.95, abs=0.02)
    assert share.mean() == pytest.approx(0.5, abs=0.06)
    # A warped box keeps its area, and is made smaller only where it would not fit.
    scale = torch.linalg.det(to_source[..., :2]).abs() ** -0.5
    wanted = scale * (boxes[:, 2:] - boxes[:, :2]).amax(1) / 64
    assert wanted.max() <= 1.0 + 1e-4
    assert (wanted >= 0.5 - 1e-4)[free.amin(1) > 1e-2].all()


def test_turns_and_flips_are_all_drawn() -> None:
    """The L has 8 different looks."""
    labels = np.where(shapes() == 9, 1, 0)
    made = crops(ramp(labels=labels), augmentation=TURNED)
    batch = draw(made, num_crops=100, objects_per_crop=1)
    looks = set()
    for image, mask in zip(batch.images, batch.masks, strict=True):
        rows, columns = mask.nonzero().unbind(1)
        y, x = image[0], image[1]
        top, left, bottom, right = rows.min(), columns.min(), rows.max(), columns.max()
        down = float(y[bottom, left] - y[top, left]), float(x[bottom, left] - x[top, left])
        across = float(y[top, right] - y[top, left]), float(x[top, right] - x[top, left])
        looks.add(tuple(np.sign(np.round(np.array(down + across) / 20)).astype(int).tolist()))
    assert len(looks) == 8


def test_a_square_of_the_image_at_its_own_scale_is_the_image() -> None:
    rng = np.random.default_rng(0)
    corner = shapes()
    corner[:9, 210:] = 12
    pixels = rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    picture = ramp(pixels=pixels, labels=corner)
    made = crops(picture)
    matrix = torch.tensor([[[1.0, 0, 10], [0, 1, 20]], [[1, 0, -8], [0, 1, 200]]])
    zero = torch.zeros(2, dtype=torch.int64)
    images, labels = made.images.cut(zero, zero, matrix, 64)
    assert np.array_equal(images[0].permute(1, 2, 0).numpy(), picture.pixels[10:74, 20:84])
    numbered = np.unique(corner, return_inverse=True)[1].reshape(HEIGHT, WIDTH)
    assert np.array_equal(labels[0].numpy(), numbered[10:74, 20:84])
    # The second hangs over the corner: the mean colour and background there.
    inner = picture.pixels[:56, 200:]
    assert np.array_equal(images[1, :, 8:, :30].permute(1, 2, 0).numpy(), inner)
    for outside in (images[1, :, :8], images[1, :, :, 30:]):
        assert (outside.flatten(1) == torch.tensor(MEAN_RGB)[:, None]).all()
    assert np.array_equal(labels[1, 8:, :30].numpy(), numbered[:56, 200:])
    assert not labels[1, :8].any()
    assert not labels[1, :, 30:].any()


def test_more_objects_than_16_bits_hold_keep_their_numbers() -> None:
    labels = np.arange(1, 40_001).reshape(200, 200)
    labels[-1] = 50_000
    made = crops(Picture(np.zeros((200, 200), np.uint8), labels))
    assert made.object_ids.tolist() == [199 * 200 + 1] == [made.max_id]
    zero = torch.zeros(1, dtype=torch.int64)
    _, cut = made.images.cut(zero, zero, torch.tensor([[[1.0, 0, 0], [0, 1, 0]]]), 200)
    assert np.array_equal(cut[0].numpy(), np.minimum(labels, made.max_id))


@pytest.mark.parametrize("factor", [2, 4, 8])
def test_a_smaller_image_is_the_mean_of_its_pixels(factor: int) -> None:
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (128, 128), np.uint8)
    made = crops(Picture(pixels, np.ones((128, 128), np.uint8)))
    matrix = torch.tensor([[[factor, 0, 0], [0, factor, 0]]], dtype=torch.float32)
    zero = torch.zeros(1, dtype=torch.int64)
    size = 128 // factor
    image, _ = made.images.cut(zero, zero, matrix, size)
    means = pixels.reshape(size, factor, size, factor).mean((1, 3))
    assert np.abs(image[0].numpy() - means).max() <= 0.51


def test_odd_sides_keep_their_scale_in_the_pyramid() -> None:
    made = crops(ramp(pixels=ramp().pixels[:101, :77], labels=shapes()[:101, :77]))
    matrix = torch.tensor([[[8.0, 0, 0], [0, 8, 0]]])
    zero = torch.zeros(1, dtype=torch.int64)
    image, _ = made.images.cut(zero, zero, matrix, 9)
    expected = np.arange(9) * 8 + 3.5
    assert np.abs(image[0, 0, :, 0].numpy() - expected).max() <= 1
    assert np.abs(image[0, 1, 0].numpy() - expected).max() <= 1


def test_the_same_generator_gives_the_same_batch() -> None:
    made = crops(augmentation=Augmentation())
    first, again, other = (draw(made, seed) for seed in (3, 3, 4))
    for name in ("images", "labels", "masks", "ids", "weight"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.images, other.images)


def test_other_objects_are_of_a_fitting_size_and_else_the_chosen_one_is_repeated() -> None:
    labels = np.zeros((100, 100), np.uint8)
    labels[40:60, 40:60] = 1
    for i, (y, x) in enumerate([(10, 40), (70, 40), (40, 10)]):
        labels[y : y + 20, x : x + 20] = 2 + i
    labels[40:90, 66:100] = 5  # too large
    labels[20:25, 20:24] = 6  # too small
    made = crops(Picture(np.zeros((100, 100), np.uint8), labels))
    to_source = torch.tensor([[[1.0, 0, 0], [0, 1, 0]]])
    zero = torch.zeros(1, dtype=torch.int64)
    _, cut = made.images.cut(zero, zero, to_source, 96)
    seen = set()
    for seed in range(20):
        ids, weight = made._pick(cut, torch.tensor([1]), seeded(seed), 3, (100, 900))
        assert ids[0] == 1
        assert len(set(ids.tolist())) == 3
        assert weight.tolist() == [1, 1, 1]
        seen |= set(ids.tolist())
    assert seen == {1, 2, 3, 4}
    ids, weight = made._pick(cut, torch.tensor([5]), seeded(), 6, (100, 900))
    assert sorted(ids.tolist()) == [1, 2, 3, 4, 5, 5]
    ids, weight = made._pick(cut, torch.tensor([1]), seeded(), 6, (100, 1e6))
    assert sorted(ids.tolist()) == [1, 1, 2, 3, 4, 5]  # the background is none of them
    hidden = cut * (cut != 6)
    ids, weight = made._pick(hidden, torch.tensor([6]), seeded(), 9, (1e6, 2e6))
    assert ids.tolist() == [6] * 9
    assert weight.tolist() == [0] * 9


def test_domains_have_their_shares() -> None:
    bars = np.zeros((80, 80), np.uint8)
    for i in range(8):
        bars[8 * i : 8 * i + 6, 10:60] = i + 1
    grey = np.zeros((80, 80), np.uint8)
    samples = [ramp(), Picture(grey, bars, domain="bars"), Picture(grey, bars, domain="bars")]
    made = crops(*samples, domain_factors={"bars": 2.0})
    expected = {"bars": 2 * (16 * 2) ** 0.1875, "shapes": 4**0.1875}
    total = sum(expected.values())
    assert made.domains == ("bars", "shapes")
    for name, share in made.domain_shares.items():
        assert share == pytest.approx(expected[name] / total)
    batch = draw(made, num_crops=600, crop_px=16, objects_per_crop=1)
    assert (batch.domain_index == 0).float().mean() == pytest.approx(
        expected["bars"] / total, abs=0.06
    )
    assert torch.equal(batch.domain_index, made.object_domain[batch.object_index])
    # Every object of a domain, and both of its images.
    assert len(batch.object_index.unique()) == 4 + 16
    assert made.sample_index[made.object_sample[batch.object_index].unique()].tolist() == [1, 2, 0]
    with pytest.raises(ConfigError, match="unknown domains .'moon'.; expected some of"):
        crops(domain_factors={"moon": 1.0})


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (0.3, 0.2, 0.4), (1.0, 1, 1)])
def test_second_labels_are_used_now_and_then(share: float, low: float, high: float) -> None:
    second = np.zeros((HEIGHT, WIDTH), np.uint8)
    second[10:160, 10:220] = 1
    augmentation = replace(UNCHANGED, second_labels=share)
    made = crops(ramp(second_labels=second), augmentation=augmentation)
    batch = draw(made, num_crops=300, crop_px=16, objects_per_crop=1)
    assert low <= (made.areas[batch.object_index] == 150 * 210).float().mean() <= high
    alone = crops(ramp(), augmentation=augmentation)
    assert draw(alone).masks.any()


def test_second_labels_serve_where_the_first_are_empty() -> None:
    empty = np.zeros((HEIGHT, WIDTH), np.uint8)
    made = crops(ramp(labels=empty, second_labels=shapes()))
    assert draw(made).masks.flatten(1).any(1).all()


def _coloured() -> Tensor:
    generator = seeded(9)
    return torch.rand((40, 3, 24, 24), generator=generator).mul(200).add(20).round()


def _recoloured(**changes: float) -> tuple[Tensor, Tensor]:
    made = crops(augmentation=replace(UNCHANGED, **changes))
    images = _coloured()
    return images, made.recolour(images, seeded(1))


def test_colours_change_as_asked() -> None:
    before, after = _recoloured()
    assert torch.equal(before, after)
    before, after = _recoloured(polarity=1.0)
    assert torch.equal(after, 255 - before)
    before, after = _recoloured(grey=1.0)
    assert torch.equal(after[:, 0], after[:, 2])
    luma = (before * torch.tensor([0.299, 0.587, 0.114])[:, None, None]).sum(1)
    assert (after[:, 0] - luma).abs().max() <= 0.51
    before, after = _recoloured(permute=1.0)
    assert torch.equal(before.sort(1).values, after.sort(1).values)
    same = (before == after).flatten(1).all(1)
    assert 0 < same.float().mean() < 0.5  # one order of six changes nothing
    before, after = _recoloured(blur=1.0)
    middle = ndimage.uniform_filter(before.numpy(), (0, 0, 3, 3))
    assert np.abs(after.numpy() - middle)[..., 1:-1, 1:-1].max() <= 0.51


def test_noise_is_of_one_or_three_channels() -> None:
    before, after = _recoloured(noise=1.0)
    change = after - before
    deviation = change.std((1, 2, 3))
    assert 0.3 < deviation.median() < 15
    grey = (change[:, 0] - change[:, 1]).abs().amax((1, 2)) <= 1.01
    assert 0.4 < grey.float().mean() < 0.95
    before, after = _recoloured(noise=0.3)
    changed = (after != before).flatten(1).any(1).float().mean()
    assert 0.1 < changed < 0.5


def test_tone_keeps_the_order_of_brightness_within_a_channel() -> None:
    before, after = _recoloured(tone=1.0)
    assert (before != after).flatten(1).any(1).all()
    order = before.flatten(2).argsort(2)
    sorted_after = after.flatten(2).gather(2, order)
    assert (sorted_after.diff(dim=2) >= 0).all()
    gains = after.flatten(2).std(2) / before.flatten(2).std(2)
    assert gains[:, 0].std() > 0.05
    assert (gains[:, 0] - gains[:, 1]).abs().mean() > 0.01
    assert after.min() >= 0
    assert after.max() <= 255


class NoWaits(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        waits = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "_unique2"}
        waits |= {"repeat_interleave", "lift_fresh", "bincount", "_linalg_inv_ex", "inverse"}
        assert name not in waits, f"{name} waits for the device"
        if name in {"index", "index_put_", "index_put"}:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask as an index"
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device() -> None:
    made, generator = crops(augmentation=Augmentation()), seeded()
    with NoWaits():
        batch = made.batch(generator, crop_px=64, num_crops=3, objects_per_crop=2)
        dense_targets(batch.labels, max_id=batch.max_id)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(DataError, match="none of the 1 samples holds an object of 16"):
        crops(ramp(labels=np.zeros((HEIGHT, WIDTH), np.uint8)))
    with pytest.raises(ShapeError, match="of the image's size"):
        crops(ramp(labels=shapes()[1:]))
    with pytest.raises(ConfigError, match="span must be"):
        draw(crops(), span=(0.5, 0.1))
    with pytest.raises(ConfigError, match="at least 1, got 64, 0 and 2"):
        draw(crops(), num_crops=0)
    with pytest.raises(ShapeError, match="even S"):
        dense_targets(torch.zeros((1, 5, 6), dtype=torch.int64))


def _disc(side: int, centre_yx: tuple[int, int], radius: float) -> Tensor:
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    return (y - centre_yx[0]) ** 2 + (x - centre_yx[1]) ** 2 < radius**2


def doubled(cells: Tensor) -> Tensor:
    """Labels of which each cell of 2 x 2 pixels is one of `cells`."""
    return cells.repeat_interleave(2, 1).repeat_interleave(2, 2)


def test_the_targets_of_a_disc() -> None:
    disc = _disc(64, (30, 25), 12.5)
    foreground, centre, boundary = dense_targets(doubled(disc.long()[None] * 4))[0]
    assert torch.equal(foreground, disc.float())
    y, x = torch.meshgrid(torch.arange(64), torch.arange(64), indexing="ij")
    radius = ((y - 30) ** 2 + (x - 25) ** 2).float().sqrt()
    torch.testing.assert_close(centre, radius / radius[disc].max() * disc)
    depth = torch.from_numpy(ndimage.distance_transform_edt(disc.numpy())).float()
    torch.testing.assert_close(boundary, depth / depth.max())
    assert boundary[30, 25] == 1
    assert centre[30, 25] == 0


def test_targets_are_those_of_the_definition_for_touching_objects() -> None:
    """Every object on its own, against scipy; the crop's border is no boundary."""
    rng = np.random.default_rng(0)
    seeds = rng.uniform(0, 40, (12, 2))
    y, x = np.mgrid[:40, :48]
    distance = np.stack([(y - a) ** 2 + (x - 1.2 * b) ** 2 for a, b in seeds])
    labels = np.where(distance.min(0) < 60, distance.argmin(0) + 1, 0)
    cells = torch.from_numpy(np.stack([labels, labels.max() + 3 - labels]))
    targets = dense_targets(doubled(cells))
    assert torch.equal(targets, dense_targets(doubled(cells), max_id=50))
    for one, maps in zip(cells.numpy(), targets.numpy(), strict=True):
        assert np.array_equal(maps[0], one > 0)
        assert (maps[:, one == 0] == 0).all()
        for number in set(one.ravel().tolist()) - {0}:
            mask = one == number
            depth = ndimage.distance_transform_edt(mask)
            np.testing.assert_allclose(maps[2][mask], (depth / depth.max())[mask], rtol=1e-5)
            places = np.argwhere(mask)
            (centre,) = places[maps[1][mask] == 0]
            assert depth[tuple(centre)] >= 0.899 * depth.max()
            furthest = np.sqrt(((places - centre) ** 2).sum(1))
            np.testing.assert_allclose(maps[1][mask], furthest / furthest.max(), rtol=1e-5)
            deep = places[depth[mask] >= 0.901 * depth.max()]
            away = np.sqrt(((deep - places.mean(0)) ** 2).sum(1)).min()
            assert np.sqrt(((centre - places.mean(0)) ** 2).sum()) <= away + 1e-4


def test_targets_of_crops_full_of_one_object_and_of_none() -> None:
    labels = torch.zeros((2, 16, 16), dtype=torch.int64)
    labels[1] = 7
    targets = dense_targets(labels)
    assert not targets[0].any()
    assert targets[1, 0].eq(1).all()
    assert targets[1, 2].eq(1).all()
    assert targets[1, 1].max() == 1
    single = torch.zeros((1, 16, 16), dtype=torch.int64)
    single[0, 4:6, 6:8] = 2
    assert dense_targets(single)[0, :, 2, 3].tolist() == [1, 0, 1]


def test_a_cell_belongs_to_most_of_its_pixels_and_to_objects_before_background() -> None:
    labels = torch.zeros((1, 8, 8), dtype=torch.int64)
    labels[0, :, 3] = 5  # a line of one pixel: half of its cells
    labels[0, 0, 6] = 9  # a quarter of a cell
    labels[0, 4:6, 6:8] = torch.tensor([[1, 2], [2, 2]])
    foreground = dense_targets(labels)[0, 0]
    expected = torch.zeros(4, 4)
    expected[:, 1] = 1
    expected[2, 3] = 1
    assert torch.equal(foreground, expected)
