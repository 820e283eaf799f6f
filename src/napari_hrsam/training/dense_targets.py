"""Maps that a head for automatic segmentation learns, made on the device in one batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_hrsam.errors import ShapeError

_TABLE_VALUES = 2**26
"""Values of the largest temporary."""


def dense_targets(labels: Tensor, *, max_id: int | None = None) -> Tensor:
    """Make the maps that a head for automatic segmentation learns, at half the resolution.

    Parameters
    ----------
    labels : (B, S, S) int64, S even
        0 = background. A cell of 2 x 2 pixels belongs to whichever label it holds most of, to an
        object before the background.
    max_id : int, optional
        No label is larger. Without it the device is asked, which takes a wait.

    Returns
    -------
    (B, 3, S / 2, S / 2) float32, 0..1
        Foreground; distance to the object's centre, 0 there and 1 at the furthest pixel; distance
        to the nearest pixel of another label, 1 at the deepest pixel. All 0 in the background.
        The centre is the pixel nearest to the centroid among those of at least 0.9 of the
        object's depth. The crop's border is no boundary: an object that it cuts goes on beyond.

    Raises
    ------
    ShapeError
        If `labels` is not (B, S, S) with an even S.
    """
    if labels.ndim != 3 or labels.shape[1] % 2 or labels.shape[2] % 2:
        raise ShapeError(f"labels must be (B, S, S) with an even S, got {tuple(labels.shape)}")
    cells = _halved(labels)
    num, height, width = cells.shape
    rows_per_crop = (int(labels.max()) if max_id is None else max_id) + 1
    crop = torch.arange(num, device=labels.device)[:, None, None]
    index = (crop * rows_per_crop + cells).reshape(-1)
    groups = _Groups(index, num * rows_per_crop)
    is_object = (cells > 0).reshape(-1)
    depth = _squared_distance_to_other(cells).reshape(-1).float().sqrt()
    to_boundary = depth / groups.largest(depth)
    y = torch.arange(height, device=labels.device)[:, None].expand(num, height, width).reshape(-1)
    x = torch.arange(width, device=labels.device).expand(num, height, width).reshape(-1)
    area = groups.total(torch.ones_like(index))
    off_centroid = (y - groups.total(y) / area) ** 2 + (x - groups.total(x) / area) ** 2
    off_centroid = torch.where(to_boundary >= 0.9, off_centroid, math.inf)
    # Of equally near pixels the first in row-major order is the centre.
    place = y * width + x
    place = torch.where(off_centroid == groups.smallest(off_centroid), place, height * width)
    centre = groups.smallest(place)
    to_centre = (y - centre // width) ** 2 + (x - centre % width) ** 2
    to_centre = to_centre.float().sqrt()
    to_centre = to_centre / groups.largest(to_centre).clamp(min=1)
    maps = torch.stack([torch.ones_like(depth), to_centre, to_boundary]) * is_object
    return maps.reshape(3, num, height, width).transpose(0, 1).contiguous()


class _Groups:
    """Sums and extremes of values over groups of pixels, given back for every pixel."""

    def __init__(self, index: Tensor, num: int) -> None:
        self.index, self.num = index, num

    def total(self, values: Tensor) -> Tensor:
        return values.new_zeros(self.num).scatter_add_(0, self.index, values)[self.index]

    def largest(self, values: Tensor) -> Tensor:
        return self._extreme(values, "amax")

    def smallest(self, values: Tensor) -> Tensor:
        return self._extreme(values, "amin")

    def _extreme(self, values: Tensor, which: str) -> Tensor:
        out = values.new_zeros(self.num)
        out = out.scatter_reduce(0, self.index, values, which, include_self=False)
        return out[self.index]


def _halved(labels: Tensor) -> Tensor:
    """Label of every cell of 2 x 2 pixels: the most frequent one, an object before background."""
    corners = [labels[:, i::2, j::2] for i in (0, 1) for j in (0, 1)]
    four = torch.stack(corners)
    votes = torch.stack([(four == corner).sum(0) for corner in corners])
    best = (2 * votes + (four > 0)).argmax(0, keepdim=True)
    return four.gather(0, best)[0]


def _squared_distance_to_other(labels: Tensor) -> Tensor:
    """Square of the distance to the nearest pixel of another label.

    Parameters
    ----------
    labels : (B, H, W) int64

    Returns
    -------
    (B, H, W) int32, px^2
        (H + W)^2, more than any distance, where there is no other label.
    """
    num, height, width = labels.shape
    far = height + width
    in_row = torch.minimum(_to_change(labels, far), _to_change(labels.flip(2), far).flip(2)).clamp(
        max=far
    )
    in_row = in_row**2
    rows = torch.arange(height, dtype=torch.int32, device=labels.device)
    step = (rows[:, None] - rows) ** 2
    nearest = torch.empty_like(in_row)
    # Whatever lies in another row counts at its own row if its label differs, and at the end of
    # its run if it is the same.
    at_once = max(1, _TABLE_VALUES // (height * height * width))
    for start in range(0, num, at_once):
        part = slice(start, start + at_once)
        same = labels[part, None] == labels[part, :, None]
        table = torch.where(same, in_row[part, None], 0) + step[:, :, None]
        nearest[part] = table.amin(2)
    return nearest.clamp(max=far**2)


def _to_change(labels: Tensor, far: int) -> Tensor:
    """Distance to the last pixel of another label to the left, in px; int32."""
    columns = torch.arange(labels.shape[2], dtype=torch.int32, device=labels.device)
    changes = F.pad(labels[..., 1:] != labels[..., :-1], (1, 0))
    last = torch.where(changes, columns - 1, -far).cummax(2).values
    return columns - last
