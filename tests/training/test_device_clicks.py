"""Clicks on many masks at once follow the rule of `clicks`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, gaussian_filter
from torch.utils._python_dispatch import TorchDispatchMode

from napari_hrsam.errors import ConfigError, ShapeError
from napari_hrsam.training import clicks, device_clicks
from napari_hrsam.training.device_clicks import (
    click_candidates,
    distance_to_background,
    next_clicks,
    squared_distance_to_background,
)

Masks = NDArray[np.bool_]
shapes = st.tuples(st.integers(1, 3), st.integers(1, 14), st.integers(1, 14))
stacks = shapes.flatmap(lambda shape: arrays(bool, shape))
pairs = shapes.flatmap(lambda shape: st.tuples(arrays(bool, shape), arrays(bool, shape)))
KS = [1.0, 1.7, 2.0, 2.5, -1.0]


def scipy_distances(masks: Masks) -> NDArray[np.float64]:
    """From the definition, with a ring of background around each mask."""
    padded = [distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1] for mask in masks]
    return np.stack(padded)


def blobs(num: int, side: int, seed: int) -> Masks:
    """Masks of a few smooth patches, as predictions are."""
    noise = np.random.default_rng(seed).standard_normal((num, side, side))
    return gaussian_filter(noise, (0, 3, 3)) > 0


def by_table(masks: torch.Tensor, temporary_bytes: int) -> torch.Tensor:
    """What runs on a GPU."""
    _, height, width = masks.shape
    wide = ((height + 1) // 2) ** 2 + ((width + 1) // 2) ** 2 > 32767
    dtype = torch.int32 if wide else torch.int16
    in_row = device_clicks._distance_in_row(masks).to(dtype) ** 2
    return device_clicks._nearest_by_table(in_row, (height + 1) // 2, temporary_bytes)


@given(stacks)
@settings(deadline=None)
def test_distances_are_exact_and_end_at_the_border(masks: Masks) -> None:
    expected = scipy_distances(masks)
    tensor = torch.from_numpy(masks)
    np.testing.assert_allclose(distance_to_background(tensor), expected, rtol=1e-6)
    for temporary_bytes in (1, 10**4, 10**8):
        squared = by_table(tensor, temporary_bytes)
        np.testing.assert_allclose(squared.double().sqrt(), expected, rtol=1e-6)


@pytest.mark.parametrize("shape", [(2, 64, 64), (1, 252, 252), (1, 310, 290), (1, 20, 300)])
def test_large_masks_keep_exact_distances(shape: tuple[int, int, int]) -> None:
    """Full masks have the largest squares; 310 x 290 needs more than 16 bits."""
    masks = np.ones(shape, bool)
    masks[0, 7, 3] = False
    expected = scipy_distances(masks)
    tensor = torch.from_numpy(masks)
    np.testing.assert_allclose(distance_to_background(tensor), expected, rtol=1e-6)
    squared = by_table(tensor, 2**24).double().sqrt()
    np.testing.assert_allclose(squared, expected, rtol=1e-6)


def test_no_masks_have_no_distances() -> None:
    assert distance_to_background(torch.zeros(0, 5, 6, dtype=torch.bool)).shape == (0, 5, 6)
    with pytest.raises(ShapeError, match=r"must be \(N, H, W\), got \(5, 6\)"):
        squared_distance_to_background(torch.zeros(5, 6, dtype=torch.bool))


@given(pairs, st.sampled_from(KS))
@settings(deadline=None)
def test_candidates_and_sign_are_those_of_one_mask(pair: tuple[Masks, Masks], k: float) -> None:
    pred, gt = pair
    factor = torch.full((len(gt),), k)
    for given_k in (k, factor):
        positive, mask = click_candidates(torch.from_numpy(pred), torch.from_numpy(gt), k=given_k)
        for i in range(len(gt)):
            expected = clicks.click_candidates(pred[i], gt[i], k=k)
            assert np.array_equal(mask[i].numpy(), expected.mask)
            assert bool(positive[i]) == bool(expected.positive)


def test_every_mask_has_its_own_k() -> None:
    pred, gt = blobs(5, 40, 0), blobs(5, 40, 1)
    _, mask = click_candidates(torch.from_numpy(pred), torch.from_numpy(gt), k=torch.tensor(KS))
    for i, k in enumerate(KS):
        # 1.7 in 32 bits is another number than in 64.
        expected = clicks.click_candidates(pred[i], gt[i], k=float(np.float32(k)))
        assert np.array_equal(mask[i].numpy(), expected.mask)


def test_clicks_fall_on_every_candidate_equally_often() -> None:
    pred, gt = blobs(1, 24, 2), blobs(1, 24, 3)
    num = 4000
    stacked = [torch.from_numpy(m).expand(num, -1, -1) for m in (pred, gt)]
    generator = torch.Generator().manual_seed(0)
    coords, positive, found = next_clicks(*stacked, generator, k=1.7)
    assert coords.shape == (num, 2)
    assert coords.dtype == torch.float32
    assert found.all()
    expected = clicks.click_candidates(pred[0], gt[0], k=1.7)
    assert (positive == bool(expected.positive)).all()
    counts = np.zeros(gt.shape[1:], int)
    np.add.at(counts, tuple(coords.long().T.numpy()), 1)
    assert np.array_equal(counts > 0, expected.mask)
    mean = num / expected.mask.sum()
    assert np.abs(counts[expected.mask] - mean).max() < 5 * np.sqrt(mean)


def test_a_perfect_mask_gets_no_click() -> None:
    gt = torch.from_numpy(blobs(2, 20, 4))
    pred = gt.clone()
    pred[1] = False
    coords, positive, found = next_clicks(pred, gt, torch.Generator().manual_seed(0), k=1.0)
    assert found.tolist() == [False, True]
    assert positive.tolist() == [False, True]
    assert coords[0].tolist() == [0, 0]
    assert gt[1, int(coords[1, 0]), int(coords[1, 1])]


def test_the_same_generator_gives_the_same_clicks() -> None:
    pred, gt = torch.from_numpy(blobs(9, 30, 5)), torch.from_numpy(blobs(9, 30, 6))
    first, again, other = (
        next_clicks(pred, gt, torch.Generator().manual_seed(seed), k=-1.0)[0] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


class NoWaits(TorchDispatchMode):
    """Refuses what makes the host wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        waits = {"_local_scalar_dense", "item", "nonzero", "masked_select", "unique", "_unique2"}
        assert name not in waits, f"{name} waits for the device"
        if name in {"index", "index_put_", "index_put"}:
            assert all(i is None or i.dtype != torch.bool for i in args[1]), "a mask as an index"
        return func(*args, **(kwargs or {}))


def test_nothing_waits_for_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    pred, gt = torch.from_numpy(blobs(3, 30, 7)), torch.from_numpy(blobs(3, 30, 8))
    generator, k = torch.Generator().manual_seed(0), torch.tensor([1.0, 1.7, -1.0])
    with NoWaits():
        on_cpu = next_clicks(pred, gt, generator, k=k)
        monkeypatch.setattr(
            device_clicks,
            "_nearest_by_shifts",
            lambda x, reach: device_clicks._nearest_by_table(x, reach, 10**5),
        )
        on_gpu = next_clicks(pred, gt, generator.manual_seed(0), k=k)
    assert all(torch.equal(a, b) for a, b in zip(on_cpu, on_gpu, strict=True))


def test_what_cannot_be_is_refused() -> None:
    masks = torch.zeros(2, 4, 4, dtype=torch.bool)
    with pytest.raises(ShapeError, match="of one shape, got"):
        next_clicks(masks, masks[:1], None, k=1.0)
    with pytest.raises(ConfigError, match="k must be >= 1.*got 0.5"):
        next_clicks(masks, masks, None, k=0.5)
