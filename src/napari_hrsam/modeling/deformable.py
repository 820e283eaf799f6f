"""Modulated deformable convolution (v2), 3 x 3, in plain torch.

Shape letters: N maps, C channels, h x w cells, K = 9 kernel points.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

KERNEL = 3
POINTS = KERNEL * KERNEL


class ModulatedDeformConv(nn.Module):
    """Convolution that moves and weighs its 3 x 3 sampling points by what it sees.

    Stride 1, padding 1, no bias; a place outside the map counts as zero. Begins as a plain
    convolution with all points weighted by one half.

    Parameters
    ----------
    channels : int
        Of input and output.

    References
    ----------
    Zhu et al., "Deformable ConvNets v2", arXiv 1811.11168.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.dcn_offset = nn.Conv2d(channels, 3 * POINTS, KERNEL, padding=1)
        nn.init.zeros_(self.dcn_offset.weight)
        nn.init.zeros_(self.get_parameter("dcn_offset.bias"))
        # Holds the weight under the name of the released checkpoints; never called.
        self.dcn = nn.Conv2d(channels, channels, KERNEL, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, h, w) to (N, C, h, w)."""
        # bfloat16 knows a place of 16 cells to a sixteenth only: places are found in float32.
        with torch.autocast(x.device.type, enabled=False):
            steered: Tensor = self.dcn_offset(x.float() if x.dtype == torch.bfloat16 else x)
        offsets, modulation = steered.split([2 * POINTS, POINTS], dim=1)
        return deform_conv(x, offsets, modulation.sigmoid(), self.dcn.weight)


def deform_conv(x: Tensor, offsets: Tensor, modulation: Tensor, weight: Tensor) -> Tensor:
    """Convolve maps at displaced places.

    Parameters
    ----------
    x : (N, C, h, w) float
    offsets : (N, 18, h, w) float
        Cells, as (dy, dx) per kernel point; kernel points row by row.
    modulation : (N, 9, h, w) float
        Factor on every sample.
    weight : (O, C, 3, 3) float

    Returns
    -------
    (N, O, h, w) float
        In the dtype of ``x``, or of autocast where that is on.
    """
    num, channels, height, width = x.shape
    places, shares = _corners(offsets, modulation)
    table = x.permute(0, 2, 3, 1).reshape(-1, channels).to(shares.dtype)
    samples = weighted_rows(table, places.reshape(-1, 4), shares.reshape(-1, 4)).to(x.dtype)
    # One product over kernel points and channels together.
    flat_weight = weight.permute(2, 3, 1, 0).reshape(POINTS * channels, -1)
    out = samples.view(num, height * width, POINTS * channels) @ flat_weight
    return out.transpose(1, 2).reshape(num, -1, height, width)


def _corners(offsets: Tensor, modulation: Tensor) -> tuple[Tensor, Tensor]:
    """Four cells around every sampling place, and their bilinear shares times the modulation.

    Returns
    -------
    places : (N, h, w, K, 4) int
        Index into the cells of all maps.
    shares : (N, h, w, K, 4) float
        0 for cells outside the map.
    """
    num, _, height, width = offsets.shape
    device = offsets.device
    dy, dx = offsets.permute(0, 2, 3, 1).unflatten(3, (POINTS, 2)).unbind(4)
    points = torch.arange(POINTS, device=device)
    y = torch.arange(height, device=device)[:, None, None] + points // KERNEL - 1 + dy
    x = torch.arange(width, device=device)[:, None] + points % KERNEL - 1 + dx
    low = torch.stack([y.detach().floor(), x.detach().floor()])
    part_y, part_x = y - low[0], x - low[1]
    rows = torch.stack([low[0], low[0] + 1], dim=-1)[..., :, None]
    columns = torch.stack([low[1], low[1] + 1], dim=-1)[..., None, :]
    share_y = torch.stack([1 - part_y, part_y], dim=-1)[..., :, None]
    share_x = torch.stack([1 - part_x, part_x], dim=-1)[..., None, :]
    is_inside = (rows >= 0) & (rows < height) & (columns >= 0) & (columns < width)
    scale = modulation.permute(0, 2, 3, 1)[..., None, None]
    shares = share_y * share_x * scale * is_inside
    # Clamped as integers: what is not finite gives an index inside the map too.
    first = torch.arange(num, device=device).view(-1, 1, 1, 1, 1, 1) * (height * width)
    row, column = rows.long().clamp(0, height - 1), columns.long().clamp(0, width - 1)
    return (first + row * width + column).flatten(-2), shares.flatten(-2)


def weighted_rows(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Sum chosen rows of a table with weights.

    Parameters
    ----------
    table : (R, C) float
    index : (M, J) int
    weights : (M, J) float

    Returns
    -------
    (M, C) float
    """
    if table.device.type == "mps":
        # Not every torch that we support has a weighted embedding bag there.
        return gathered_rows(table, index, weights)
    # Reads the rows once and keeps no (M, J, C) copy; the fastest of the ways tried on a CPU.
    return F.embedding_bag(index, table, mode="sum", per_sample_weights=weights)


def gathered_rows(table: Tensor, index: Tensor, weights: Tensor) -> Tensor:
    """Do what `weighted_rows` does with plain indexing, which every device has."""
    return (table[index] * weights[..., None]).sum(1)
