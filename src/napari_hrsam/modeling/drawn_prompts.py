"""Prompts drawn as maps, where they were made, and the likeness of every cell to the clicks.

Not part of SAM, whose clicks reach the mask through tokens only; see
`PromptDecoderConfig.skip_channels`. Shape letters: N prompts, P points, C channels, h x w
embedding grid.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DRAWN_CHANNELS = 6
LIKENESS_HEADS = 4


class PromptMap(nn.Module):
    """Drawn prompts and likeness to the clicks, as an addition to the embedding.

    Parameters
    ----------
    dim : int
        Channels of the embedding.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.match_proj = nn.Conv2d(dim, dim, 1)
        self.draw16 = nn.Conv2d(DRAWN_CHANNELS, 32, 4, stride=4)
        self.join = nn.Conv2d(32 + 2 * LIKENESS_HEADS, 64, 3, padding=1)
        self.to_dense = nn.Conv2d(64, dim, 1)

    def forward(
        self,
        embedding: Tensor,
        drawn: Tensor,
        point_coords_xy: Tensor | None,
        point_labels: Tensor | None,
    ) -> Tensor:
        """Mark the prompts on the grid of the embedding.

        Parameters
        ----------
        embedding : (1 or N, C, h, w) float
        drawn : (N, 6, 4 h, 4 w) float
            From `draw_prompts`.
        point_coords_xy, point_labels : (N, P, 2) float and (N, P) int, optional

        Returns
        -------
        (N, C, h, w) float
        """
        likeness = match_clicks(
            self.match_proj(embedding).expand(drawn.shape[0], -1, -1, -1),
            point_coords_xy,
            point_labels,
            stride=16,
            heads=LIKENESS_HEADS,
        )
        marks = self.draw16(drawn)
        joined = torch.cat([marks, likeness.to(marks.dtype)], dim=1)
        out: Tensor = self.to_dense(F.gelu(self.join(joined)))
        return out


def match_clicks(
    x: Tensor,
    point_coords_xy: Tensor | None,
    point_labels: Tensor | None,
    *,
    stride: int,
    heads: int = 1,
) -> Tensor:
    """Correlate every cell of a map with the places that were clicked.

    What looks like a clicked place is the first guess at the object; the two-way transformer can
    express it too, but takes far longer to learn it.

    Parameters
    ----------
    x : (N, C, h, w) float
    point_coords_xy : (N, P, 2) float, optional
        Image pixels; the map is sampled there bilinearly.
    point_labels : (N, P) int, optional
        1 foreground, 0 background, -1 padding.
    stride : int
        Image pixels per cell.
    heads : int
        Groups of channels that are compared each for itself.

    Returns
    -------
    (N, 2 heads, h, w) float, -1..1
        Highest correlation over the channels with a positive click for every group, then with a
        negative one; 0 where there is no such click.
    """
    num, channels, height, width = x.shape
    if point_coords_xy is None or point_labels is None or not point_coords_xy.shape[1]:
        return x.new_zeros(num, 2 * heads, height, width)
    size_xy = (width * stride, height * stride)
    # In half precision a place would move by whole cells, and likeness lose its meaning.
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    # Axis by axis: a tensor made of the sizes would be copied to the device, which waits for it.
    places = torch.stack(
        [(point_coords_xy[..., i] + 0.5) / size_xy[i] * 2 - 1 for i in (0, 1)], dim=-1
    )[:, :, None].to(x.dtype)
    clicked = F.grid_sample(x, places, align_corners=False, padding_mode="border")
    depth = channels // heads

    with torch.autocast(x.device.type, enabled=False):
        places_first = clicked.flatten(2).unflatten(1, (heads, depth)).transpose(2, 3)
        # The layer norm of every cell, written so that no map is turned over. A normalized place
        # sums to zero, so that the cell's mean drops out of the product.
        maps = x.flatten(2).unflatten(1, (heads, depth))
        variance = maps.square().mean(2, keepdim=True) - maps.mean(2, keepdim=True).square()
        scale = depth * (variance.clamp(min=0) + 1e-5).sqrt()
        likeness = F.layer_norm(places_first, (depth,)) @ maps / scale  # (N, heads, P, h w)
    matches: list[Tensor] = []
    for sign in (1, 0):
        is_sign = (point_labels == sign)[:, None, :, None]
        best = likeness.masked_fill(~is_sign, -1.0).amax(2)
        matches.append(best * is_sign.any(2))
    out: Tensor = torch.cat(matches, dim=1).unflatten(2, (height, width))
    return out


def draw_prompts(
    *,
    map_hw: tuple[int, int],
    num: int,
    point_coords_xy: Tensor | None,
    point_labels: Tensor | None,
    boxes_xyxy: Tensor | None,
    mask_logits: Tensor | None,
    like: Tensor,
) -> Tensor:
    """Draw the prompts of N objects on the stride-4 map.

    Returns
    -------
    (N, 6, 4 h, 4 w) float32 (or better)
        Gaussian bumps (maximum over the clicks) of 2 and 8 cells for positive clicks, the same
        for negative ones, the inside of the box, and the squashed prior logits.
    """
    height, width = map_hw
    # Half precision would move a click by whole cells.
    like = like.new_empty((), dtype=torch.promote_types(like.dtype, torch.float32))
    maps = like.new_zeros(num, DRAWN_CHANNELS, height, width)
    if point_coords_xy is not None and point_labels is not None and point_coords_xy.shape[1]:
        # Cell i of a stride-4 map covers pixels 4 i .. 4 i + 3, its centre is at 4 i + 1.5.
        cells = (point_coords_xy.to(like.dtype) - 1.5) / 4
        y = torch.arange(height, device=like.device, dtype=like.dtype)
        x = torch.arange(width, device=like.device, dtype=like.dtype)
        for offset, sigma in enumerate((2.0, 8.0)):
            # A Gaussian is separable: rows times columns, one product a click.
            gy = torch.exp(-((y - cells[..., 1:]) ** 2) / (2 * sigma**2))
            gx = torch.exp(-((x - cells[..., :1]) ** 2) / (2 * sigma**2))
            for sign, first in ((1, 0), (0, 2)):
                weighted = gy * (point_labels == sign).to(like.dtype)[..., None]
                maps[:, first + offset] = (weighted[..., None] * gx[..., None, :]).amax(1)
    if boxes_xyxy is not None:
        edges = (boxes_xyxy.to(like.dtype) - 1.5) / 4
        y = torch.arange(height, device=like.device, dtype=like.dtype)
        x = torch.arange(width, device=like.device, dtype=like.dtype)
        rows = (y >= edges[:, 1:2] - 0.5) & (y <= edges[:, 3:4] + 0.5)
        cols = (x >= edges[:, :1] - 0.5) & (x <= edges[:, 2:3] + 0.5)
        maps[:, 4] = (rows[:, :, None] & cols[:, None, :]).to(like.dtype)
    if mask_logits is not None:
        prior = mask_logits.to(like.dtype)
        if prior.shape[2:] != map_hw:
            prior = F.interpolate(prior, map_hw, mode="bilinear", align_corners=False)
        maps[:, 5] = torch.tanh(prior[:, 0] / 4)
    return maps
