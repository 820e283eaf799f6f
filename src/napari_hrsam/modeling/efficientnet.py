"""EfficientNet-Lite0 as an image stem, its batch norms folded into the convolutions.

Shape letters: B batch, C channels, H x W pixels or cells of a map.

References
----------
Tan and Le, "EfficientNet", arXiv 1905.11946, table 1 (B0); the "Lite" variant of the same authors
leaves out squeeze-and-excitation and uses ReLU6. Convolutions of stride 2 pad as TensorFlow's
"SAME" does: what is missing is added behind the map first.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.configs import STEM_CHANNELS
from napari_hrsam.modeling.layers import LayerNorm2d

# Where others look for it; `configs` holds it because the table of models loads no torch.
__all__ = ["STEM_CHANNELS", "EfficientNetLite0", "PretrainedStem"]


@dataclass(frozen=True, slots=True)
class _Stage:
    """A row of the paper's table: ``repeats`` blocks, the first one with ``stride``."""

    kernel: int
    stride: int
    expansion: int
    channels: int
    repeats: int


_FIRST_CHANNELS = 32
_STAGES = (
    _Stage(3, 1, 1, 16, 1),
    _Stage(3, 2, 6, 24, 2),
    _Stage(5, 2, 6, 40, 2),
    _Stage(3, 2, 6, 80, 3),
    _Stage(5, 1, 6, 112, 3),
    _Stage(5, 2, 6, 192, 4),
    _Stage(3, 1, 6, 320, 1),
)
_MAP_ENDS = {4: 2, 8: 4, 16: 10, 32: 15}
"""The block whose output is the map of each stride."""

_STRIP_BYTES = 2**21
"""Of the widest map inside a block, as far as a strip of rows holds it: about a core's cache."""


class _Convolution(nn.Conv2d):
    """Convolution with "SAME" padding."""

    def padding_of(self, size: int) -> tuple[int, int]:
        """Count the rows (or columns) of padding before and behind ``size`` of them."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size[0] == 1:
            if x.is_cuda:
                return F.conv2d(x, self.weight, self.bias)
            # One thread of torch takes twice as long for the same product as a convolution.
            return F.linear(x.movedim(1, 3), self.weight.flatten(1), self.bias).movedim(3, 1)
        left, right = self.padding_of(x.shape[3])
        top, bottom = self.padding_of(x.shape[2])
        if left == right == top == bottom:
            return F.conv2d(x, self.weight, self.bias, self.stride, top, 1, self.groups)
        return self.unpadded(F.pad(x, (left, right, top, bottom)))

    def unpadded(self, x: Tensor) -> Tensor:
        """Convolve a map that comes with its padding."""
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class _Block(nn.Module):
    """Inverted residual: widen, convolve each channel by itself, narrow."""

    limits = 0.0, 6.0

    def __init__(self, inner: int, stage: _Stage, stride: int) -> None:
        super().__init__()
        wide = inner * stage.expansion
        self.expand = _Convolution(inner, wide, 1) if stage.expansion > 1 else None
        self.depthwise = _Convolution(wide, wide, stage.kernel, stride=stride, groups=wide)
        self.project = _Convolution(wide, stage.channels, 1)
        self.has_skip = stride == 1 and inner == stage.channels

    @property
    def spatial(self) -> _Convolution:
        """The convolution that looks at neighbours."""
        return self.depthwise

    def enter(self, x: Tensor) -> Tensor:
        """Compute what the spatial convolution takes, before it is kept within `limits`."""
        return x if self.expand is None else self.expand(x)

    def leave(self, y: Tensor, x: Tensor) -> Tensor:
        """Compute the output from that of the spatial convolution, and the rows of the input."""
        y = self.project(F.relu6(y, inplace=True))
        return x + y if self.has_skip else y

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.depthwise(F.relu6(self.enter(x))), x)


class _First(nn.Module):
    """The first convolution, stride 2."""

    limits = -math.inf, math.inf

    def __init__(self) -> None:
        super().__init__()
        self.conv = _Convolution(3, _FIRST_CHANNELS, 3, stride=2)

    @property
    def spatial(self) -> _Convolution:
        """The convolution that looks at neighbours."""
        return self.conv

    def enter(self, x: Tensor) -> Tensor:
        """Compute what the spatial convolution takes."""
        return x

    def leave(self, y: Tensor, _: Tensor) -> Tensor:
        """Compute the output from that of the spatial convolution."""
        return F.relu6(y, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.leave(self.conv(x), x)


class EfficientNetLite0(nn.Module):
    """Stem of pretrained convolutions.

    Parameters
    ----------
    last_stride : {16, 32}
        Stride of the coarsest map; the blocks behind it are left out.
    """

    def __init__(self, last_stride: int = 32) -> None:
        super().__init__()
        self.first = _First()
        blocks: list[_Block] = []
        inner = _FIRST_CHANNELS
        for stage in _STAGES:
            for repeat in range(stage.repeats):
                blocks.append(_Block(inner, stage, stage.stride if repeat == 0 else 1))
                inner = stage.channels
        self.blocks = nn.ModuleList(blocks[: _MAP_ENDS[last_stride] + 1])

    def forward(self, image: Tensor) -> dict[int, Tensor]:
        """Compute the maps of normalised images.

        Parameters
        ----------
        image : (B, 3, H, W) float
            RGB, ``(value - 127) / 128``; H and W multiples of 16.

        Returns
        -------
        dict of int to (B, C, H / stride, W / stride) float
            Maps by stride, see `STEM_CHANNELS`.
        """
        # A frozen stem keeps no activations: that makes training steps cheap.
        learns = any(parameter.requires_grad for parameter in self.parameters())
        with torch.set_grad_enabled(torch.is_grad_enabled() and learns):
            x = image.contiguous(memory_format=torch.channels_last)
            run = _whole if torch.is_grad_enabled() or x.is_cuda else _in_strips
            x = run(self.first, x)
            maps: dict[int, Tensor] = {}
            ends = {end: stride for stride, end in _MAP_ENDS.items()}
            for index, block in enumerate(self.blocks):
                assert isinstance(block, _Block)
                x = run(block, x)
                if index in ends:
                    maps[ends[index]] = x
        return maps


def _whole(step: _First | _Block, x: Tensor) -> Tensor:
    out: Tensor = step(x)
    return out


def _in_strips(step: _First | _Block, x: Tensor) -> Tensor:
    """Run a step on one strip of rows after the other: its wide maps then stay in the cache.

    The numbers are those of whole maps. What a strip shares with the next one is kept, not widened
    again, so that a row costs the same however wide the map is.
    """
    spatial = step.spatial
    kernel, stride = spatial.kernel_size[0], spatial.stride[0]
    height, width = x.shape[2:]
    top, (left, right) = spatial.padding_of(height)[0], spatial.padding_of(width)
    widest = max(spatial.in_channels, spatial.out_channels)
    rows = max(2, _STRIP_BYTES // (x.element_size() * width * widest * stride))
    num_rows, shared = -(-height // stride), kernel - stride
    held = out = None
    for start in range(0, num_rows, rows):
        stop = min(start + rows, num_rows)
        # In rows of the padded map: where the strip ends, and what is not held yet.
        end, new = (stop - 1) * stride + kernel, start * stride + shared if start else top
        entered = step.enter(x[:, :, new - top : end - top])
        if held is None:
            held = _empty(entered, spatial.in_channels, end, left + width + right).zero_()
        else:
            held[:, :, :shared] = held[:, :, rows * stride :].clone()
        first, last = new - start * stride, new - start * stride + entered.shape[2]
        torch.clamp(entered, *step.limits, out=held[:, :, first:last, left : left + width])
        held[:, :, last:] = 0
        y = step.leave(spatial.unpadded(held[:, :, : end - start * stride]), x[:, :, start:stop])
        if out is None:
            out = _empty(y, y.shape[1], num_rows, y.shape[3])
        out[:, :, start:stop] = y
    assert out is not None
    return out


def _empty(like: Tensor, *size: int) -> Tensor:
    """Make room for as many maps of another size, channels last."""
    kind = {"dtype": like.dtype, "device": like.device, "memory_format": torch.channels_last}
    return torch.empty((len(like), *size), **kind)  # type: ignore[call-overload, no-any-return]


class PretrainedStem(nn.Module):
    """EfficientNet-Lite0 in place of the linear patch projection.

    With a few thousand training images a patch projection cannot learn what ImageNet taught these
    convolutions; their stride-4 and stride-8 maps also give the mask decoder the fine outline.

    Parameters
    ----------
    embed_dim : int
        Channels of the tokens at stride 16.
    last_stride : {16, 32}
        With 32 the stem's stride-32 map joins the tokens.
    """

    def __init__(self, embed_dim: int, last_stride: int) -> None:
        super().__init__()
        self.net = EfficientNetLite0(last_stride)
        self.proj16 = nn.Conv2d(STEM_CHANNELS[16], embed_dim, 1)
        self.proj32 = nn.Conv2d(STEM_CHANNELS[32], embed_dim, 1) if last_stride == 32 else None
        self.norm = LayerNorm2d(embed_dim)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Compute tokens (B, C, H / 16, W / 16) and the stride-8 and stride-4 maps."""
        maps: dict[int, Tensor] = self.net(image)
        x = self.proj16(maps[16])
        if self.proj32 is not None:
            wide = self.proj32(maps[32])
            x = x + F.interpolate(wide, x.shape[2:], mode="bilinear", align_corners=False)
        return self.norm(x), maps[8], maps[4]
