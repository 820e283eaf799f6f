"""EfficientNet-Lite0: strips, padding, maps, and the weights that are folded for it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling import efficientnet
from napari_hrsam.modeling.efficientnet import STEM_CHANNELS, EfficientNetLite0, PretrainedStem

ROOT = Path(__file__).parents[2]
STRIDES = (4, 8, 16, 32)


def lively(module: nn.Module, seed: int = 0) -> nn.Module:
    """Weights with which values neither die out nor all meet the limit of ReLU6."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d):
                spread = (2 / layer.weight[0].numel()) ** 0.5
                layer.weight.copy_(spread * torch.randn(layer.weight.shape, generator=g))
                layer.bias.copy_(0.3 * torch.randn(layer.bias.shape, generator=g))
    return module.eval()


def image(height: int, width: int, batch: int = 1, seed: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(seed))


def same_padded(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """TensorFlow's "SAME": as many outputs as strides begun, what is missing goes behind first."""
    kernel, stride = layer.kernel_size[0], layer.stride[0]
    pad: list[int] = []
    for size in (x.shape[3], x.shape[2]):
        outputs = (size + stride - 1) // stride
        missing = max(kernel + stride * (outputs - 1) - size, 0)
        pad += [missing // 2, missing - missing // 2]
    return F.conv2d(
        F.pad(x, pad), layer.weight, layer.bias, stride=layer.stride, groups=layer.groups
    )


def by_definition(net: EfficientNetLite0, x: Tensor) -> dict[int, Tensor]:
    """Compute the maps layer by layer, the last map of each size being the one that counts."""
    stride, maps = 2, {}
    x = same_padded(x, net.first.conv).clamp(0, 6)
    for block in net.blocks:
        stride *= block.depthwise.stride[0]
        y = x if block.expand is None else same_padded(x, block.expand).clamp(0, 6)
        y = same_padded(y, block.depthwise).clamp(0, 6)
        y = same_padded(y, block.project)
        x = x + y if y.shape == x.shape else y
        maps[stride] = x
    return {stride: maps[stride] for stride in STRIDES}


@contextmanager
def whole_map() -> Iterator[None]:
    """Run without strips."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(efficientnet, "_STRIP_BYTES", 2**40)
        yield


@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(16, 16), (64, 32), (96, 80), (144, 48), (272, 16)])
@pytest.mark.parametrize("strip_bytes", [1, 40_000, 2**21])
def test_strips_give_the_numbers_of_the_whole_map(size_hw, strip_bytes, monkeypatch) -> None:
    net = lively(EfficientNetLite0())
    x = image(*size_hw, batch=2)
    with whole_map():
        whole = net(x)
    monkeypatch.setattr(efficientnet, "_STRIP_BYTES", strip_bytes)
    for stride, found in net(x).items():
        torch.testing.assert_close(found, whole[stride], rtol=1e-4, atol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(16, 16), (16, 48), (80, 48), (128, 96)])
def test_maps_are_those_of_same_padding_in_every_layer(size_hw) -> None:
    net = lively(EfficientNetLite0())
    x = image(*size_hw)
    found, expected = net(x), by_definition(net, x)
    assert list(found) == list(expected) == list(STRIDES)
    for stride in STRIDES:
        assert found[stride].shape == (
            1,
            STEM_CHANNELS[stride],
            -(-size_hw[0] // stride),
            -(-size_hw[1] // stride),
        )
        assert float(found[stride].std()) > 0.05
        torch.testing.assert_close(found[stride], expected[stride], rtol=1e-4, atol=1e-4)


def test_a_learning_stem_runs_on_whole_maps_and_gives_the_same_numbers() -> None:
    net, x = lively(EfficientNetLite0(16)), image(80, 48)
    learning = net(x)
    with torch.no_grad():
        for stride, found in net(x).items():
            torch.testing.assert_close(found, learning[stride], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("size", [1, 2, 3, 6, 7])
def test_same_padding_adds_what_is_missing_behind_the_map_first(kernel, stride, size) -> None:
    torch.manual_seed(0)
    layer = efficientnet._Convolution(2, 3, kernel, stride=stride)
    x = torch.randn(1, 2, size, size + 2)
    found = layer(x)
    assert found.shape[2:] == (-(-size // stride), -(-(size + 2) // stride))
    torch.testing.assert_close(found, same_padded(x, layer))


def test_even_maps_are_padded_below_only_by_a_3_x_3_convolution_of_stride_2() -> None:
    layer = efficientnet._Convolution(1, 1, 3, stride=2)
    assert layer.padding_of(8) == (0, 1)
    assert layer.padding_of(7) == (1, 1)


@torch.no_grad()
def test_the_stem_ends_at_stride_16_without_the_blocks_behind_it() -> None:
    short, long = lively(EfficientNetLite0(16)), EfficientNetLite0(32)
    assert (len(short.blocks), len(long.blocks)) == (11, 16)
    long.load_state_dict(short.state_dict(), strict=False)
    x = image(48, 64)
    found, expected = short(x), long(x)
    assert list(found) == [4, 8, 16]
    assert all(torch.equal(found[stride], expected[stride]) for stride in found)


def test_the_network_has_the_published_number_of_weights() -> None:
    """4,652,008 with the classifier: a 1280-channel layer with its norm, and 1000 classes."""
    net = EfficientNetLite0()
    weights = sum(p.numel() for n, p in net.named_parameters() if n.endswith("weight"))
    # A batch norm has two numbers a channel; folded, one is left.
    norms = 2 * sum(p.numel() for n, p in net.named_parameters() if n.endswith("bias"))
    classifier = 320 * 1280 + 2 * 1280 + 1280 * 1000 + 1000
    assert weights + norms + classifier == 4_652_008


def test_a_frozen_stem_makes_no_graph_and_a_learning_one_does() -> None:
    stem = lively(PretrainedStem(8, 32))
    stem.net.requires_grad_(requires_grad=False)
    # Not even where something before it learns: its activations need not be kept.
    tokens, stride8, stride4 = stem(image(32, 32).requires_grad_())
    assert not stride8.requires_grad
    assert not stride4.requires_grad
    # The projections behind it learn all the same.
    tokens.square().mean().backward()
    assert stem.proj16.weight.grad.any()
    assert stem.proj32.weight.grad.any()
    stem.net.blocks[3].requires_grad_(requires_grad=True)
    _, stride8, stride4 = stem(image(32, 32))
    assert stride8.requires_grad
    assert not stride4.requires_grad


def test_every_weight_of_a_learning_stem_learns() -> None:
    stem = lively(PretrainedStem(8, 32))
    tokens, stride8, stride4 = stem(image(64, 64))
    (tokens.square().mean() + stride8.square().mean() + stride4.square().mean()).backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in stem.parameters())


@torch.no_grad()
@pytest.mark.parametrize("size_hw", [(16, 16), (48, 80), (64, 96)])
def test_tokens_join_the_maps_of_strides_16_and_32(size_hw) -> None:
    stem = lively(PretrainedStem(8, 32))
    x = image(*size_hw)
    maps = stem.net(x)
    wide = F.interpolate(
        stem.proj32(maps[32]), maps[16].shape[2:], mode="bilinear", align_corners=False
    )
    tokens, stride8, stride4 = stem(x)
    assert tokens.shape == (1, 8, size_hw[0] // 16, size_hw[1] // 16)
    torch.testing.assert_close(tokens, stem.norm(stem.proj16(maps[16]) + wide))
    assert torch.equal(stride8, maps[8])
    assert torch.equal(stride4, maps[4])


@torch.no_grad()
def test_tokens_of_the_short_stem_are_those_of_stride_16_alone() -> None:
    stem = lively(PretrainedStem(8, 16))
    assert stem.proj32 is None
    x = image(48, 32)
    torch.testing.assert_close(stem(x)[0], stem.norm(stem.proj16(stem.net(x)[16])))


@torch.no_grad()
def test_bfloat16_maps_are_close() -> None:
    net, x = lively(EfficientNetLite0(16)), image(64, 48)
    exact = net(x)
    with torch.autocast("cpu", torch.bfloat16):
        fast = net(x)
    for stride, found in fast.items():
        assert found.dtype == torch.bfloat16
        error = (found.float() - exact[stride]).abs().mean()
        assert error < 0.03 * exact[stride].abs().mean()


# --------------------------------------------------------------------------- folded batch norms
def import_script() -> ModuleType:
    path = ROOT / "scripts" / "import_efficientnet.py"
    spec = importlib.util.spec_from_file_location("import_efficientnet", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def their_names() -> dict[str, tuple[str, str]]:
    """Our convolution to their convolution and batch norm."""
    names = {"first.conv": ("_conv_stem", "_bn0")}
    for index in range(16):
        theirs = f"_blocks.{index}."
        if index:
            names[f"blocks.{index}.expand"] = (f"{theirs}_expand_conv", f"{theirs}_bn0")
        names[f"blocks.{index}.depthwise"] = (f"{theirs}_depthwise_conv", f"{theirs}_bn1")
        names[f"blocks.{index}.project"] = (f"{theirs}_project_conv", f"{theirs}_bn2")
    return names


def fake_state() -> dict[str, Tensor]:
    """A file of the package: every convolution without bias and with a batch norm behind it."""
    torch.manual_seed(0)
    net, state = lively(EfficientNetLite0()), {}
    for ours, (conv, norm) in their_names().items():
        layer = net.get_submodule(ours)
        channels = layer.out_channels
        state[f"{conv}.weight"] = layer.weight.detach().clone()
        state[f"{norm}.weight"] = torch.rand(channels) + 0.5
        state[f"{norm}.bias"] = 0.3 * torch.randn(channels)
        state[f"{norm}.running_mean"] = 0.2 * torch.randn(channels)
        # Small enough for the added 0.001 to count.
        state[f"{norm}.running_var"] = 0.05 * torch.rand(channels) + 0.01
        state[f"{norm}.num_batches_tracked"] = torch.tensor(7)
    for name in ("_conv_head.weight", "_bn1.weight", "_bn1.running_var", "_fc.bias"):
        state[name] = torch.zeros(3)
    return state


@torch.no_grad()
def test_folded_weights_are_convolution_and_batch_norm_in_one() -> None:
    state = fake_state()
    folded = import_script().fold(state)
    net = EfficientNetLite0()
    net.load_state_dict(folded)
    for ours, (conv, norm) in their_names().items():
        layer = net.get_submodule(ours)
        x = torch.randn(1, state[f"{conv}.weight"].shape[1] * layer.groups, 6, 7)
        plain = F.conv2d(x, state[f"{conv}.weight"], None, layer.stride, 0, 1, layer.groups)
        mean, var = state[f"{norm}.running_mean"], state[f"{norm}.running_var"]
        weight, bias = state[f"{norm}.weight"], state[f"{norm}.bias"]
        expected = F.batch_norm(plain, mean, var, weight, bias, training=False, eps=1e-3)
        found = F.conv2d(x, layer.weight, layer.bias, layer.stride, 0, 1, layer.groups)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_file_of_another_network_is_not_folded() -> None:
    script = import_script()
    with pytest.raises(
        ValueError, match=r"EfficientNet-Lite0 only, got \['_blocks.16._bn0.weight'"
    ):
        script.fold(fake_state() | {"_blocks.16._bn0.weight": torch.zeros(1)})
