"""The head for maps of all objects at once."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from napari_hrsam.modeling.dense_head import DENSE_MAPS, DenseHead
from napari_hrsam.modeling.mask_correction import SKIP_CHANNELS


def head() -> DenseHead:
    torch.manual_seed(0)
    return DenseHead(16)


def maps(height: int = 4, width: int = 5, batch: int = 1) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(1)
    return (
        torch.randn(batch, 16, height, width, generator=g),
        torch.randn(batch, SKIP_CHANNELS[0], 2 * height, 2 * width, generator=g),
        torch.randn(batch, SKIP_CHANNELS[1], 4 * height, 4 * width, generator=g),
    )


@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(1, 1), (4, 5), (7, 3)])
def test_three_maps_at_stride_4_with_and_without_stem_maps(size_hw) -> None:
    assert DENSE_MAPS == ("foreground", "centre_distance", "boundary_distance")
    module, given = head(), maps(*size_hw, batch=2)
    shape = (2, 3, 4 * size_hw[0], 4 * size_hw[1])
    assert module(*given).shape == module(given[0]).shape == shape


@torch.no_grad()
def test_the_head_follows_its_definition() -> None:
    module, (embedding, stride8, stride4) = head(), maps(batch=2)
    for used in (0.0, 1.0):
        x = F.gelu(module.norm8(module.up8(embedding) + used * module.skip8(stride8)))
        x = module.up4(x + F.gelu(module.conv8(x)))
        x = F.gelu(module.norm4(x + used * module.skip4(stride4)))
        expected = module.out(x + F.gelu(module.conv4(x)))
        found = module(embedding, stride8, stride4) if used else module(embedding)
        torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_maps_of_a_place_do_not_depend_on_what_else_the_tile_shows() -> None:
    module, given = head(), maps(8, 12)
    others = [x.clone() for x in given]
    for x, cells in zip(others, (1, 2, 4), strict=True):
        x[:, :, :, 8 * cells :] = 50
    left = 8 * 4 - 8
    before, after = module(*given)[..., :left], module(*others)[..., :left]
    torch.testing.assert_close(before, after, rtol=1e-5, atol=1e-5)


def test_every_weight_of_the_head_learns() -> None:
    module = head()
    module(*maps()).square().mean().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in module.parameters())
    module.zero_grad(set_to_none=True)
    module(maps()[0]).square().mean().backward()
    silent = {n.partition(".")[0] for n, p in module.named_parameters() if p.grad is None}
    assert silent == {"skip8", "skip4"}
