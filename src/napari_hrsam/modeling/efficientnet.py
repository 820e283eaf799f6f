"""EfficientNet-Lite0 as an image stem, its batch norms folded into the convolutions.

Shape letters: B batch, C channels, H x W pixels or cells of a map.

References
----------
Tan and Le, "EfficientNet", arXiv 1905.11946, table 1 (B0); the "Lite" variant of the same authors
leaves out squeeze-and-excitation and uses ReLU6. Convolutions of stride 2 pad as TensorFlow's
"SAME" does: what is missing is added behind the map first.
"""

from __future__ import annotations

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


@dataclass(frozen=True, slots=True)
class _Rows:
    """A run of rows: ``start .. stop`` of a map, and rows of zeros before and behind it."""

    start: int
    stop: int
    before: int
    after: int


class _Convolution(nn.Conv2d):
    """Convolution with "SAME" padding, of a whole map or of some of its rows."""

    def padding_of(self, size: int) -> tuple[int, int]:
        """Count the rows (or columns) of padding before and behind ``size`` of them."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
        return total // 2, total - total // 2

    def rows_for(self, start: int, stop: int, height: int) -> _Rows:
        """Find the input rows of a map of ``height`` rows that output rows start..stop need."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        first = start * stride - self.padding_of(height)[0]
        last = first + (stop - start - 1) * stride + kernel
        return _Rows(max(first, 0), min(last, height), max(-first, 0), max(last - height, 0))

    def forward(self, x: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        """Convolve (B, C, H, W); ``rows`` are the rows of padding in place of "SAME"."""
        if self.kernel_size[0] == 1:
            return F.conv2d(x, self.weight, self.bias)
        left, right = self.padding_of(x.shape[3])
        top, bottom = self.padding_of(x.shape[2]) if rows is None else rows
        if left == right == top == bottom:
            return F.conv2d(x, self.weight, self.bias, self.stride, top, 1, self.groups)
        x = F.pad(x, (left, right, top, bottom))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, 1, self.groups)


class _Block(nn.Module):
    """Inverted residual: widen, convolve each channel by itself, narrow."""

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

    def forward(self, x: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        y: Tensor = x if self.expand is None else F.relu6(self.expand(x))
        y = self.project(F.relu6(self.depthwise(y, rows)))
        if not self.has_skip:
            return y
        if rows is not None:
            # The rows that only fed the neighbourhood have no output.
            reach = self.depthwise.kernel_size[0] // 2
            x = x[:, :, reach - rows[0] : x.shape[2] - reach + rows[1]]
        return x + y


class _First(nn.Module):
    """The first convolution, stride 2."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = _Convolution(3, _FIRST_CHANNELS, 3, stride=2)

    @property
    def spatial(self) -> _Convolution:
        """The convolution that looks at neighbours."""
        return self.conv

    def forward(self, x: Tensor, rows: tuple[int, int] | None = None) -> Tensor:
        return F.relu6(self.conv(x, rows))


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

    The numbers are those of whole maps; the rows that a strip needs of its neighbours are widened
    again.
    """
    spatial = step.spatial
    height, stride = x.shape[2], spatial.stride[0]
    widest = max(spatial.in_channels, spatial.out_channels)
    rows = max(2, _STRIP_BYTES // (x.element_size() * x.shape[3] * widest * stride))
    strips = []
    for start in range(0, -(-height // stride), rows):
        stop = min(start + rows, -(-height // stride))
        needed = spatial.rows_for(start, stop, height)
        part = x[:, :, needed.start : needed.stop]
        strips.append(step(part, (needed.before, needed.after)))
    return torch.cat(strips, dim=2) if len(strips) > 1 else strips[0]


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
