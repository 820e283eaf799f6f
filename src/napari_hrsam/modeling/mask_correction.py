"""The parts of our mask decoder behind SAM's transformer: surroundings and fine outline.

Shape letters: N prompts, C channels, h x w embedding grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.drawn_prompts import DRAWN_CHANNELS, match_clicks
from napari_hrsam.modeling.layers import LayerNorm2d, ResidualConv

FINE_CHANNELS = (16, 40)
"""Width of the fine path at strides 4 and 8; CPU kernels work on 16 channels at a time."""
SURROUNDINGS_CHANNELS = 96
SKIP_CHANNELS = (32, 16)
"""Channels of the projected stem maps at strides 8 and 4, which are kept with the embedding."""


class Surroundings(nn.Module):
    """Let every image token see the tokens around it, on its own grid and on coarser ones.

    The transformer lets a token see the prompts, not its neighbours; here what a click says grows
    to the border of an object.

    Parameters
    ----------
    dim : int
        Channels of the tokens.
    levels : int
        Coarser grids, each half as fine as the one before.
    """

    def __init__(self, dim: int, levels: int) -> None:
        super().__init__()
        width = SURROUNDINGS_CHANNELS
        self.enter = nn.Conv2d(dim, width, 1)
        self.downs = nn.ModuleList(
            nn.Conv2d(width, width, 3, stride=2, padding=1) for _ in range(levels)
        )
        self.convs = nn.ModuleList(ResidualConv(width) for _ in range(levels + 1))
        self.leave = nn.Conv2d(width, dim, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C, h, w)."""
        maps = [self.enter(x)]
        for down in self.downs:
            maps.append(down(F.gelu(maps[-1])))
        wide = self.convs[-1](maps[-1])
        for fine, conv in zip(reversed(maps[:-1]), reversed(self.convs[:-1]), strict=True):
            wide = F.interpolate(wide, fine.shape[2:], mode="bilinear", align_corners=False)
            wide = conv(fine + wide)
        out: Tensor = x + self.leave(wide)
        return out


class FineCorrection(nn.Module):
    """Maps that correct the coarse masks: the stem's fine maps, the drawn prompts and a guess.

    Parameters
    ----------
    upscaled_channels : int
        Of the upscaled embedding at stride 4.
    stem_channels : (int, int)
        Of the stem's stride-8 and stride-4 maps.
    """

    def __init__(self, upscaled_channels: int, stem_channels: tuple[int, int]) -> None:
        super().__init__()
        (s8, s4), (c4, c8) = SKIP_CHANNELS, FINE_CHANNELS
        self.skip8 = nn.Conv2d(stem_channels[0], s8, 1)
        self.skip4 = nn.Conv2d(stem_channels[1], s4, 1)
        self.enter4 = nn.Conv2d(upscaled_channels + s4 + DRAWN_CHANNELS + 3, c4, 3, padding=1)
        self.norm4 = LayerNorm2d(c4)
        self.down8 = nn.Conv2d(c4, c8, 3, stride=2, padding=1)
        self.join8 = nn.Conv2d(s8, c8, 1)
        self.norm8 = LayerNorm2d(c8)
        self.deep8 = ResidualConv(c8)
        self.up4 = nn.Conv2d(c8, c4, 1)
        self.leave4 = nn.Conv2d(c4, c4, 3, padding=1)

    def forward(
        self,
        upscaled: Tensor,
        stride8: Tensor,
        stride4: Tensor,
        drawn: Tensor,
        coarse: Tensor,
        point_coords_xy: Tensor | None,
        point_labels: Tensor | None,
    ) -> Tensor:
        """Compute the maps that the fine hypernetworks weigh.

        Parameters
        ----------
        upscaled : (N, c, 4 h, 4 w) float
        stride8, stride4 : (1 or N, 32, 2 h, 2 w) and (1 or N, 16, 4 h, 4 w) float
            Projected stem maps.
        drawn : (N, 6, 4 h, 4 w) float
        coarse : (N, 1, 4 h, 4 w) float
            Logits of the coarse mask.
        point_coords_xy, point_labels : (N, P, 2) float and (N, P) int, optional

        Returns
        -------
        (N, 16, 4 h, 4 w) float
        """
        num = upscaled.shape[0]
        stride8, stride4 = (x.expand(num, -1, -1, -1) for x in (stride8, stride4))
        likeness = match_clicks(stride4, point_coords_xy, point_labels, stride=4)
        guess = torch.tanh(coarse / 4)
        parts = [upscaled, stride4, drawn, likeness, guess]
        x4 = F.gelu(self.norm4(self.enter4(_join([x.to(upscaled) for x in parts]))))
        x8 = self.down8(x4) + self.join8(stride8)
        x8 = self.deep8(F.gelu(self.norm8(x8)))
        wide = F.interpolate(self.up4(x8), scale_factor=2.0, mode="nearest")
        out: Tensor = self.leave4(F.gelu(x4 + wide))
        return out


def _join(parts: list[Tensor]) -> Tensor:
    """Put maps side by side in the memory layout in which convolutions of few channels are fastest.

    Parameters
    ----------
    parts : list of (N, c, H, W) float

    Returns
    -------
    (N, sum of c, H, W) float, channels last
    """
    if torch.is_grad_enabled():
        return torch.cat(parts, dim=1).contiguous(memory_format=torch.channels_last)
    num, _, height, width = parts[0].shape
    channels = [x.shape[1] for x in parts]
    shape = (num, sum(channels), height, width)
    joined = torch.empty(
        shape, dtype=parts[0].dtype, device=parts[0].device, memory_format=torch.channels_last
    )
    for place, x in zip(joined.split(channels, dim=1), parts, strict=True):
        place.copy_(x)
    return joined
