"""The outline refiner: what it takes, how far it sees, and its weight file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from napari_hrsam.errors import CheckpointError, ConfigError, ShapeError, WeightsNotFoundError
from napari_hrsam.modeling.outline_refiner import (
    PRIOR_LIMIT,
    OutlineConfig,
    OutlineRefiner,
    load_outline_refiner,
    save_outline_refiner,
)
from napari_hrsam.modeling.weight_files import save_tensors

SMALL = OutlineConfig(half_channels=4, quarter_channels=8)


def stirred(config: OutlineConfig | None = None) -> OutlineRefiner:
    """A refiner with no zeros left, so that all it sees changes what it says."""
    torch.manual_seed(0)
    refiner = OutlineRefiner(config)
    for parameter in refiner.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return refiner.eval().requires_grad_(False)


def inputs(height: int, width: int, batch: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    image = torch.rand((batch, 3, height, width), generator=generator) * 255
    return image, torch.randn((batch, 1, height, width), generator=generator) * 4


@pytest.mark.parametrize("shape", [(4, 4), (64, 32), (100, 132)])
def test_logits_have_the_size_of_the_prior(shape: tuple[int, int]) -> None:
    logits = stirred(SMALL)(*inputs(*shape, batch=2))
    assert logits.shape == (2, 1, *shape)
    assert logits.dtype == torch.float32


def test_a_new_refiner_returns_the_prior_within_its_limit() -> None:
    image, prior = inputs(32, 48)
    assert prior.abs().max() > PRIOR_LIMIT
    expected = prior.clamp(-PRIOR_LIMIT, PRIOR_LIMIT)
    assert torch.equal(OutlineRefiner()(image, prior), expected)


def test_the_shipped_size_is_small() -> None:
    assert 60_000 < sum(p.numel() for p in OutlineRefiner().parameters()) < 250_000


@pytest.mark.parametrize(
    ("image", "prior"),
    [
        ((3, 8, 8), (1, 8, 8)),
        ((1, 1, 8, 8), (1, 1, 8, 8)),
        ((1, 3, 8, 8), (1, 8, 8)),
        ((2, 3, 8, 8), (1, 1, 8, 8)),
        ((1, 3, 8, 8), (1, 1, 8, 12)),
    ],
)
def test_other_shapes_are_refused(image: tuple[int, ...], prior: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected image .* the same batch and size"):
        OutlineRefiner(SMALL)(torch.zeros(image), torch.zeros(prior))


@pytest.mark.parametrize("shape", [(6, 8), (8, 7), (0, 8)])
def test_sides_that_are_no_multiples_of_the_stride_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ShapeError, match=r"multiples of 4, got .* read a larger crop"):
        OutlineRefiner(SMALL)(torch.zeros((1, 3, *shape)), torch.zeros((1, 1, *shape)))


@pytest.mark.parametrize("offset", [(0, 0), (4, 0), (8, 44), (36, 20)])
def test_pixels_inside_the_margin_do_not_depend_on_the_crop(offset: tuple[int, int]) -> None:
    refiner = stirred(SMALL)
    image, prior = inputs(176, 160)
    whole = refiner(image, prior)
    y, x = offset
    crop = (..., slice(y, y + 140), slice(x, x + 116))
    part = refiner(image[crop], prior[crop])
    margin = OutlineRefiner.MARGIN_PX
    inner = (..., slice(margin, -margin), slice(margin, -margin))
    torch.testing.assert_close(part[inner], whole[crop][inner], rtol=0, atol=1e-5)


def test_crops_off_the_stride_do_differ() -> None:
    # Otherwise the test above would show nothing.
    refiner = stirred(SMALL)
    image, prior = inputs(176, 160)
    crop = (..., slice(2, 142), slice(2, 118))
    part, whole = refiner(image[crop], prior[crop]), refiner(image, prior)[crop]
    assert (part - whole)[..., 50:-50, 50:-50].abs().max() > 1e-3


def test_the_margin_is_as_small_as_it_can_be() -> None:
    """A pixel's answer depends on the input at its margin's edge, and on none beyond."""
    refiner = stirred(SMALL)
    image, prior = inputs(128, 128)
    image.requires_grad_(True)
    reach = 0
    for y in range(64, 68):
        (gradient,) = torch.autograd.grad(refiner(image, prior)[0, 0, y, 64], image)
        rows = torch.nonzero(gradient[0].abs().sum((0, 2))).flatten()
        reach = max(reach, y - int(rows.min()), int(rows.max()) - y)
    assert reach == OutlineRefiner.MARGIN_PX - 1


def test_gradients_reach_every_parameter_and_the_prior() -> None:
    refiner = stirred(SMALL).requires_grad_(True)
    image, prior = inputs(64, 64)
    prior.requires_grad_(True)
    refiner(image, prior).square().mean().backward()
    assert prior.grad is not None
    assert prior.grad.abs().sum() > 0
    for name, parameter in refiner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_a_refiner_without_channels_is_refused() -> None:
    with pytest.raises(ConfigError, match="at least 1, got 0 and 64"):
        OutlineConfig(half_channels=0)


def test_saved_weights_are_loaded_as_they_were(tmp_path: Path) -> None:
    refiner, path = stirred(SMALL), tmp_path / "mine.safetensors"
    save_outline_refiner(refiner, path, dtype=torch.float32)
    loaded = load_outline_refiner(path=path)
    assert loaded.config == SMALL
    assert not loaded.training
    assert torch.equal(loaded(*inputs(32, 32)), refiner(*inputs(32, 32)))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_environment_names_a_folder_that_is_looked_in_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_outline_refiner(stirred(SMALL), tmp_path / "outline.safetensors")
    monkeypatch.setenv("NAPARI_HRSAM_WEIGHTS", str(tmp_path))
    assert load_outline_refiner().config == SMALL


def test_missing_weights_say_where_they_come_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "napari_hrsam.modeling.outline_refiner.weight_folders", lambda: [tmp_path / "empty"]
    )
    with pytest.raises(WeightsNotFoundError, match=r"no outline\.safetensors .*install again"):
        load_outline_refiner()
    with pytest.raises(WeightsNotFoundError, match="does not exist"):
        load_outline_refiner(path=tmp_path / "none.safetensors")


def test_files_of_other_things_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "outline.safetensors"
    state = stirred(SMALL).state_dict()
    save_tensors(state, path, {"model": "hrsam-tiny"})
    with pytest.raises(CheckpointError, match="not an outline refiner.*got 'hrsam-tiny'"):
        load_outline_refiner(path=path)
    save_tensors(state, path, {"model": "outline", "half_channels": "4"})
    with pytest.raises(CheckpointError, match="expected half_channels and quarter_channels"):
        load_outline_refiner(path=path)
    save_tensors(state, path, {"model": "outline", "half_channels": "4", "quarter_channels": "12"})
    with pytest.raises(CheckpointError, match="has shape"):
        load_outline_refiner(path=path)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outline.safetensors"
    path.write_bytes(b"\x10\0\0\0\0\0\0\0nothing")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        load_outline_refiner(path=path)


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(ConfigError):
        load_outline_refiner("abacus")
