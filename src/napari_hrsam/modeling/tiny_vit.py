"""MobileSAM's TinyViT image encoder, for images of any size, with BA-SAM's changes on request.

Four stages at strides 4, 8, 16 and 16: inverted bottlenecks, then three of window attention with a
depthwise convolution in every block. Shape letters: B batch, C channels, H x W cells of the stage.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.attention import AttentionBackend
from napari_hrsam.modeling.biased_attention import QueryPart, biased_attention
from napari_hrsam.modeling.configs import BASAMConfig, Size, TinyViTConfig, height_width
from napari_hrsam.modeling.layers import check_image, merge_windows, sam_neck, split_windows
from napari_hrsam.modeling.length_scaling import (
    TINY_VIT_TRAINING_SIDE,
    TINY_VIT_TRAINING_TOKENS,
    distance_bias,
    distance_slopes,
    initial_coefficient,
    length_factor,
)


class ConvNorm(nn.Module):
    """Convolution without bias and batch norm (keys ``c``, ``bn``)."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.c = nn.Conv2d(
            in_channels,
            out_channels,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        )
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        out: Tensor = self.bn(self.c(x))
        return out


class MBConv(nn.Module):
    """Inverted bottleneck; the input is added before the last GELU."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(channels, hidden, 1)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        inner = F.gelu(self.conv2(F.gelu(self.conv1(x))))
        return F.gelu(x + self.conv3(inner))


class Downsampling(nn.Module):
    """The step to the next stage's channels, and with ``stride`` 2 to half the size."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(in_channels, out_channels, 1)
        self.conv2 = ConvNorm(out_channels, out_channels, 3, stride=stride, groups=out_channels)
        self.conv3 = ConvNorm(out_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in, H, W) to (B, out, H / stride, W / stride)."""
        out: Tensor = self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))
        return out


class WindowBiasAttention(nn.Module):
    """Attention inside windows with a learned bias for every absolute offset.

    Parameters
    ----------
    dim, num_heads : int
    window : int or pair of int
        Side of a window, or height h and width w; ``attention_biases`` (heads, h * w) is indexed
        by ``|dy| * w + |dx|``.
    ba : BASAMConfig or None
        Adds ``coefficient`` and the distance bias where they are on.
    key_dim, value_dim : int or None
        Channels of a head in queries and keys, and in values; None for an even share of ``dim``.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        window: Size,
        ba: BASAMConfig | None = None,
        *,
        key_dim: int | None = None,
        value_dim: int | None = None,
    ) -> None:
        super().__init__()
        self.num_heads, self.window_hw, self.ba = num_heads, height_width(window, "window"), ba
        self.key_dim = key_dim or dim // num_heads
        self.value_dim = value_dim or dim // num_heads
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, num_heads * (2 * self.key_dim + self.value_dim))
        self.proj = nn.Linear(num_heads * self.value_dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(num_heads, math.prod(self.window_hw)))
        self.coefficient: nn.Parameter | None = None
        if ba is not None and ba.coefficient:
            self.coefficient = nn.Parameter(torch.full((1,), initial_coefficient(ba)))

    def bias_table(self) -> Tensor:
        """Bias of all pairs of cells, made anew each time so that no stale copy exists.

        Returns
        -------
        (heads, h, w, h * w) float
            Queries by row and column, then keys.
        """
        (height, width), biases = self.window_hw, self.attention_biases
        rows, columns = (torch.arange(n, device=biases.device) for n in (height, width))
        dy, dx = (rows[:, None] - rows).abs(), (columns[:, None] - columns).abs()
        index = dy[:, None, :, None] * width + dx[None, :, None, :]
        table = biases[:, index.flatten(2)]
        ba = self.ba
        # The released code multiplies in training mode only and keeps a plain table for use.
        if self.coefficient is not None and (self.training or ba is None or ba.form == "paper"):
            table = table * self.coefficient
        if ba is not None and ba.distance_slope:
            slopes = distance_slopes(self.num_heads, ba.distance_slope).to(biases.device)
            penalty = distance_bias(slopes, self.window_hw, slice(0, height), slice(0, width))
            table = table + penalty.view_as(table)
        return table

    def forward(self, x: Tensor, factor: float = 1.0, backend: AttentionBackend = "auto") -> Tensor:
        """Map windows (B, h, w, C) to the same, logits scaled by ``factor / sqrt(key_dim)``."""
        # q, k and v of one head lie side by side.
        qkv = self.qkv(self.norm(x)).unflatten(-1, (self.num_heads, -1)).permute(0, 3, 1, 2, 4)
        query, key, value = qkv.split([self.key_dim, self.key_dim, self.value_dim], dim=-1)
        table = self.bias_table().to(query.dtype)

        def bias(_query: Tensor, part: QueryPart) -> Tensor:
            return table[:, part.rows, part.columns].flatten(1, 2)

        attended = biased_attention(
            query,
            key.flatten(2, 3),
            value.flatten(2, 3),
            bias,
            scale=factor * self.key_dim**-0.5,
            backend=backend,
        )
        out: Tensor = self.proj(attended.permute(0, 2, 3, 1, 4).flatten(3))
        return out


class TinyViTMlp(nn.Module):
    """LayerNorm - linear - GELU (erf) - linear (keys ``norm``, ``fc1``, ``fc2``)."""

    def __init__(self, dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., dim) to (..., dim)."""
        out: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return out


class TinyViTBlock(nn.Module):
    """Window attention, a depthwise convolution that is not residual, and an MLP.

    Windows are padded with zeros on the right and bottom before the LayerNorm of the attention, so
    that the padding becomes its bias and takes part.
    """

    def __init__(self, config: TinyViTConfig, stage: int) -> None:
        super().__init__()
        dim = config.embed_dims[stage]
        self.window = config.window_sizes[stage]
        self.attn = WindowBiasAttention(dim, config.num_heads[stage], self.window, config.ba)
        self.local_conv = ConvNorm(dim, dim, config.local_conv_size, groups=dim)
        self.mlp = TinyViTMlp(dim, int(dim * config.mlp_ratio))

    def forward(self, x: Tensor, factor: float, backend: AttentionBackend) -> Tensor:
        """Map (B, C, H, W) to (B, C, H, W)."""
        cells = x.permute(0, 2, 3, 1)
        attended = self.attn(split_windows(cells, self.window), factor, backend)
        cells = cells + merge_windows(attended, (x.shape[2], x.shape[3]))
        cells = self.local_conv(cells.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        out: Tensor = (cells + self.mlp(cells)).permute(0, 3, 1, 2)
        return out


class _Stem(nn.Module):
    """Two stride-2 convolutions (keys ``seq.0``, ``seq.2``)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.seq = nn.Sequential(
            ConvNorm(3, channels // 2, 3, stride=2),
            nn.GELU(),
            ConvNorm(channels // 2, channels, 3, stride=2),
        )

    def forward(self, image: Tensor) -> Tensor:
        out: Tensor = self.seq(image)
        return out


class _Stage(nn.Module):
    """The blocks of a stage and the step to the next one."""

    def __init__(self, config: TinyViTConfig, stage: int) -> None:
        super().__init__()
        dims = config.embed_dims
        self.blocks = nn.ModuleList(
            TinyViTBlock(config, stage)
            if stage
            else MBConv(dims[0], int(dims[0] * config.mbconv_expand_ratio))
            for _ in range(config.depths[stage])
        )
        self.downsample: Downsampling | None = None
        if stage + 1 < len(dims):
            # The last stage keeps the stride of 16 that SAM's decoder is made for.
            stride = 1 if stage + 2 == len(dims) else 2
            self.downsample = Downsampling(dims[stage], dims[stage + 1], stride)

    def forward(self, x: Tensor, factor: float, backend: AttentionBackend) -> Tensor:
        for block in self.blocks:
            x = block(x, factor, backend) if isinstance(block, TinyViTBlock) else block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyViTEncoder(nn.Module):
    """MobileSAM's image encoder.

    The unused classifier of the released file (``norm_head``, ``head``) is not part of it.

    Parameters
    ----------
    config : TinyViTConfig

    Attributes
    ----------
    attention_backend : str
        See `biased_attention.biased_attention`.

    References
    ----------
    Zhang et al., "Faster Segment Anything", arXiv 2306.14289; Wu et al., "TinyViT",
    arXiv 2207.10666. BA-SAM: arXiv 2401.02317, see `length_scaling`.
    """

    def __init__(self, config: TinyViTConfig) -> None:
        super().__init__()
        self.config = config
        self.attention_backend: AttentionBackend = "auto"
        self.patch_embed = _Stem(config.embed_dims[0])
        self.layers = nn.ModuleList(_Stage(config, s) for s in range(len(config.embed_dims)))
        self.neck = sam_neck(config.embed_dims[-1], config.out_channels)

    def forward(self, image: Tensor) -> tuple[Tensor, None, None]:
        """Embed normalized images.

        Parameters
        ----------
        image : (B, 3, H, W) float
            H and W multiples of 16.

        Returns
        -------
        embedding : (B, out_channels, H / 16, W / 16) float
        stride8, stride4 : None
            This encoder has no maps for the mask decoder.

        Raises
        ------
        ShapeError
            If the shape is not (B, 3, H, W) with H and W multiples of 16.
        """
        patch = self.config.patch_size
        check_image(image, patch)
        factor = length_factor(
            self.config.ba,
            (image.shape[2] // patch, image.shape[3] // patch),
            training_side=TINY_VIT_TRAINING_SIDE,
            training_tokens=TINY_VIT_TRAINING_TOKENS,
        )
        x = self.patch_embed(image.contiguous(memory_format=torch.channels_last))
        for stage in self.layers:
            x = stage(x, factor, self.attention_backend)
        return self.neck(x), None, None
