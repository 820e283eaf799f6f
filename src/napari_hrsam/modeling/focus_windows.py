"""Where the focus refiner looks: the box around a prediction and the windows that it touches.

Shape letters: B samples, C channels, h x w embedding grid, H x W image pixels, w window.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from napari_hrsam.modeling.layers import merge_windows, split_windows


@torch.no_grad()
def foreground_boxes(logits: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """Box around all that is above 0, of any number of parts.

    Parameters
    ----------
    logits : (B, 1, H / 4, W / 4) float
        Resized bilinearly to the image first.
    image_hw : (int, int)

    Returns
    -------
    (B, 4) int64 on the CPU
        Left, top, right, bottom in image pixels, half-open; the whole image where nothing is above
        0.
    """
    resized = F.interpolate(logits.float(), image_hw, mode="bilinear", align_corners=False)
    is_object = resized[:, 0] > 0
    edges = [_span(is_object.any(axis)) for axis in (1, 2)]
    (left, right), (top, bottom) = edges
    return torch.stack([left, top, right, bottom], dim=1).cpu()


def _span(is_set: Tensor) -> tuple[Tensor, Tensor]:
    """First and one past the last set place of (B, n); 0 and n where none is."""
    flags = is_set.to(torch.uint8)
    first = flags.argmax(1)
    # argmax gives the first of equals, and 0 where none is set: then end is n as wanted.
    return first, is_set.shape[1] - flags.flip(1).argmax(1)


def expand_boxes(boxes: Tensor, image_hw: tuple[int, int], ratio_hw: tuple[float, float]) -> Tensor:
    """Enlarge boxes around their centres, inside the image.

    Parameters
    ----------
    boxes : (B, 4) int
        Left, top, right, bottom in image pixels, half-open.
    image_hw : (int, int)
    ratio_hw : (float, float)
        Factors on height and width.

    Returns
    -------
    (B, 4) int64
        Rounded half to even.
    """
    # float64, because the released code reckons with Python's floats and rounds afterwards.
    corners = boxes.double().unflatten(1, (2, 2))
    centre = corners.mean(1, keepdim=True)
    ratio = corners.new_tensor([ratio_hw[1], ratio_hw[0]])
    grown = (centre + ratio * (corners - centre)).round().long()
    limits = grown.new_tensor([image_hw[1], image_hw[0]])
    return torch.minimum(grown.clamp(min=0), limits).flatten(1)


def box_map(boxes: Tensor, image_hw: tuple[int, int], grid_hw: tuple[int, int]) -> Tensor:
    """Cells of the embedding grid that a box touches.

    The box is drawn in image pixels and max-pooled to the grid; rows and columns are pooled apart,
    which is the same for a box.

    Parameters
    ----------
    boxes : (B, 4) int
        Left, top, right, bottom in image pixels, half-open.
    image_hw, grid_hw : (int, int)

    Returns
    -------
    (B, h, w) bool
    """
    columns, rows = (
        _touched(boxes[:, axis], boxes[:, axis + 2], image_hw[1 - axis], grid_hw[1 - axis])
        for axis in (0, 1)
    )
    return rows[:, :, None] & columns[:, None, :]


def _touched(start: Tensor, stop: Tensor, size: int, cells: int) -> Tensor:
    pixel = torch.arange(size, device=start.device)
    is_in = (pixel >= start[:, None]) & (pixel < stop[:, None])
    pooled: Tensor = F.adaptive_max_pool1d(is_in.float()[:, None], cells)[:, 0]
    return pooled > 0


def window_cells(x: Tensor, window: int, shift: int) -> Tensor:
    """Cut maps (B, C, h, w) into windows (B * windows, C, w, w).

    Zeros are added on the right and bottom up to a multiple of the window, then the map is rolled
    up and to the left by ``shift``; what leaves there comes back at the other side.
    """
    height, width = x.shape[2:]
    x = F.pad(x, (0, -width % window, 0, -height % window))
    if shift:
        x = x.roll((-shift, -shift), (2, 3))
    return split_windows(x.permute(0, 2, 3, 1), window).permute(0, 3, 1, 2)


def join_windows(windows: Tensor, grid_hw: Sequence[int], shift: int) -> Tensor:
    """Undo `window_cells`: maps (B, C, h, w), without the padding."""
    window, (height, width) = windows.shape[2], grid_hw
    padded = (height + -height % window, width + -width % window)
    x = merge_windows(windows.permute(0, 2, 3, 1), padded).permute(0, 3, 1, 2)
    if shift:
        x = x.roll((shift, shift), (2, 3))
    return x[:, :, :height, :width]


def select_windows(focus: Tensor, window: int, shift: int) -> Tensor:
    """Tell which windows hold any cell of (B, h, w) bool: (B, windows) bool."""
    cells = window_cells(focus[:, None].float(), window, shift)
    touched: Tensor = cells.flatten(1).any(1).view(focus.shape[0], -1)
    return touched
