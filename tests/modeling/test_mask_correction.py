"""The parts of our decoder behind the transformer: surroundings and the fine correction."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from napari_hrsam.modeling.drawn_prompts import DRAWN_CHANNELS, match_clicks
from napari_hrsam.modeling.mask_correction import (
    FINE_CHANNELS,
    SKIP_CHANNELS,
    FineCorrection,
    Surroundings,
)

UPSCALED = 4


def surroundings(levels: int) -> Surroundings:
    torch.manual_seed(0)
    return Surroundings(16, levels)


def reach(levels: int, size: int = 64) -> int:
    """How many cells around a cell its output depends on."""
    x = torch.randn(1, 16, size, size, requires_grad=True)
    middle = size // 2
    surroundings(levels)(x)[0, :, middle, middle].square().sum().backward()
    rows = x.grad.abs().amax((0, 1, 3)) > 0
    return int((rows.nonzero()[:, 0] - middle).abs().max())


def test_each_coarser_grid_widens_what_a_token_sees() -> None:
    # Two 3 x 3 convolutions see two cells; each halving about doubles that.
    assert reach(0) == 2
    assert 5 <= reach(1) < reach(2)
    assert reach(2) >= 12


@torch.no_grad()
@pytest.mark.parametrize("levels", [0, 1, 2, 3])
@pytest.mark.parametrize("size_hw", [(1, 1), (3, 5), (8, 12)])
def test_surroundings_take_grids_of_any_size(levels, size_hw) -> None:
    x = torch.randn(2, 16, *size_hw)
    out = surroundings(levels)(x)
    assert out.shape == x.shape
    assert torch.isfinite(out).all()


@torch.no_grad()
def test_surroundings_of_one_level_follow_their_definition() -> None:
    module, x = surroundings(1), torch.randn(2, 16, 5, 7)
    fine = module.enter(x)
    coarse = module.convs[1](module.downs[0](F.gelu(fine)))
    assert coarse.shape[2:] == (3, 4)
    wide = F.interpolate(coarse, (5, 7), mode="bilinear", align_corners=False)
    torch.testing.assert_close(module(x), x + module.leave(module.convs[0](fine + wide)))


def fine_path() -> FineCorrection:
    torch.manual_seed(0)
    return FineCorrection(UPSCALED, (10, 6))


def maps(num: int = 1, height: int = 4, width: int = 5, seed: int = 1) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g)

    return {
        "upscaled": noise(num, UPSCALED, 4 * height, 4 * width),
        "stride8": noise(1, SKIP_CHANNELS[0], 2 * height, 2 * width),
        "stride4": noise(1, SKIP_CHANNELS[1], 4 * height, 4 * width),
        "drawn": noise(num, DRAWN_CHANNELS, 4 * height, 4 * width),
        "coarse": noise(num, 1, 4 * height, 4 * width),
        "point_coords_xy": torch.rand(num, 2, 2, generator=g) * 60,
        "point_labels": torch.tensor([[1, 0]]).expand(num, -1),
    }


@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(1, 1), (4, 5), (7, 3)])
def test_the_fine_path_gives_channels_at_stride_4(size_hw) -> None:
    out = fine_path()(**maps(2, *size_hw))
    assert out.shape == (2, FINE_CHANNELS[0], 4 * size_hw[0], 4 * size_hw[1])


@torch.no_grad()
@pytest.mark.parametrize("name", list(maps()))
def test_all_that_the_fine_path_is_given_reaches_its_maps(name) -> None:
    module, given = fine_path(), maps()
    value = given[name]
    other = 1 - value if name == "point_labels" else torch.randn_like(value) + 3
    change = module(**{**given, name: other}) - module(**given)
    assert change.abs().max() > 1e-4


@torch.no_grad()
def test_the_fine_path_follows_its_definition() -> None:
    module, given = fine_path(), maps(2)
    likeness = match_clicks(
        given["stride4"].repeat(2, 1, 1, 1),
        given["point_coords_xy"],
        given["point_labels"],
        stride=4,
    )
    joined = [given["upscaled"], given["stride4"].repeat(2, 1, 1, 1), given["drawn"], likeness]
    joined.append(torch.tanh(given["coarse"] / 4))
    x4 = F.gelu(module.norm4(module.enter4(torch.cat(joined, 1))))
    x8 = module.down8(x4) + module.join8(given["stride8"].repeat(2, 1, 1, 1))
    x8 = module.deep8(F.gelu(module.norm8(x8)))
    wide = module.up4(x8).repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = module.leave4(F.gelu(x4 + wide))
    torch.testing.assert_close(module(**given), expected, rtol=1e-4, atol=1e-5)


def test_the_fine_path_looks_at_some_cells_around_a_click_only() -> None:
    """What reaches further is the business of the surroundings; this path is cheap and local."""
    given = maps(1, 16, 16) | {"point_coords_xy": None, "point_labels": None}
    given["drawn"] = given["drawn"].clone().requires_grad_()
    fine_path()(**given)[0, :, 32, 32].sum().backward()
    rows = (given["drawn"].grad.abs().amax((0, 1, 3)) > 0).nonzero()[:, 0]
    assert 4 <= 32 - int(rows.min()) <= 10
    assert 4 <= int(rows.max()) - 32 <= 10


@torch.no_grad()
def test_the_guess_is_squashed_before_it_is_read() -> None:
    module, given = fine_path(), maps()
    sure, surer = (module(**{**given, "coarse": torch.full((1, 1, 16, 20), v)}) for v in (60, 600))
    torch.testing.assert_close(sure, surer)


def test_every_weight_of_the_fine_path_but_the_projections_learns() -> None:
    module = fine_path()
    module(**maps()).square().mean().backward()
    silent = {n for n, p in module.named_parameters() if p.grad is None or not p.grad.any()}
    # These project the stem's maps once per image, before the path is walked.
    assert silent == {"skip8.weight", "skip8.bias", "skip4.weight", "skip4.bias"}
