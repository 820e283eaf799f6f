"""Simulated clicks on many masks at once, on any device and without waiting for it.

The rule is that of `clicks`: the next click goes into the deeper of the two error regions, at a
distance from the region's edge above `depth / k`. Distances are squared whole numbers until the
very end, so that the candidates are those of `clicks` to the pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from napari_hrsam.errors import ConfigError, ShapeError

_K_EPS = 1.19e-7
_INT16_MAX = 32767
_TEMPORARY_BYTES = 2**28


def distance_to_background(masks: Tensor) -> Tensor:
    """Exact Euclidean distance of every pixel to the nearest background pixel's centre.

    Parameters
    ----------
    masks : (N, H, W) bool
        All that lies beyond the border counts as background.

    Returns
    -------
    (N, H, W) float32, px
        0 in the background, at least 1 in the mask.

    Raises
    ------
    ShapeError
        If `masks` is not (N, H, W).
    """
    return squared_distance_to_background(masks).float().sqrt()


def squared_distance_to_background(masks: Tensor) -> Tensor:
    """Square of `distance_to_background`, a whole number.

    Parameters
    ----------
    masks : (N, H, W) bool

    Returns
    -------
    (N, H, W) int16 or int32, px^2
        int16 where it is wide enough, which halves the traffic.

    Raises
    ------
    ShapeError
        If `masks` is not (N, H, W).
    """
    if masks.ndim != 3:
        raise ShapeError(f"masks must be (N, H, W), got {tuple(masks.shape)}")
    _, height, width = masks.shape
    if masks.numel() == 0:
        return torch.zeros(masks.shape, dtype=torch.int16, device=masks.device)
    # The nearest border is never further than this, and nothing beyond it can be nearer.
    reach_y, reach_x = (height + 1) // 2, (width + 1) // 2
    dtype = torch.int16 if reach_y**2 + reach_x**2 <= _INT16_MAX else torch.int32
    in_row = _distance_in_row(masks).to(dtype) ** 2
    if masks.device.type == "cpu":
        return _nearest_by_shifts(in_row, reach_y)
    return _nearest_by_table(in_row, reach_y, _TEMPORARY_BYTES)


def next_clicks(
    pred: Tensor,
    gt: Tensor,
    generator: torch.Generator | None,
    *,
    k: Tensor | float,
    scores: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Draw the next corrective click of every mask.

    Parameters
    ----------
    pred, gt : (N, H, W) bool
        Predicted and true masks; `pred` is empty at the first click.
    generator : torch.Generator
        On the masks' device; decides between the candidates, which are equally likely.
    k : (N,) float or float
        How far from the deepest point a click may fall: pixels with a distance above
        `depth / k`. 1 = the deepest pixels only, 1.7 = the inner part, negative = the whole error
        region. The values of a tensor are not checked, since that would wait for the device.
    scores : (N, H, W) float, 0..1, optional
        Uniform random numbers: of the candidates the one with the highest number is clicked. Drawn
        with `generator` by default.

    Returns
    -------
    coords_yx : (N, 2) float32
        The clicked pixel's row and column; 0 where nothing is left to correct.
    positive : (N,) bool
        Whether the click adds to the object.
    found : (N,) bool
        False where prediction and truth are the same.

    Raises
    ------
    ShapeError
        If the masks are not of one (N, H, W) shape.
    ConfigError
        If 0 <= k < 1.
    """
    positive, candidates = click_candidates(pred, gt, k=k)
    num, _, width = candidates.shape
    flat = candidates.reshape(num, -1)
    if scores is None:
        scores = torch.rand(flat.shape, generator=generator, device=flat.device)
    place = torch.where(flat, scores.reshape(flat.shape), -1.0).argmax(1)
    found = flat.any(1)
    coords_yx = torch.stack([place // width, place % width], 1).float()
    return coords_yx * found[:, None], positive & found, found


def click_candidates(pred: Tensor, gt: Tensor, *, k: Tensor | float) -> tuple[Tensor, Tensor]:
    """Find where the next clicks may go.

    Parameters
    ----------
    pred, gt : (N, H, W) bool
    k : (N,) float or float
        See `next_clicks`.

    Returns
    -------
    positive : (N,) bool
        Whether the missed region is the deeper one.
    candidates : (N, H, W) bool
        Empty where prediction and truth are the same.

    Raises
    ------
    ShapeError
        If the masks are not of one (N, H, W) shape.
    ConfigError
        If 0 <= k < 1.
    """
    if pred.ndim != 3 or pred.shape != gt.shape:
        raise ShapeError(
            f"pred and gt must be (N, H, W) masks of one shape, got {tuple(pred.shape)} and "
            f"{tuple(gt.shape)}"
        )
    if not isinstance(k, Tensor) and 0 <= k < 1:
        raise ConfigError(f"k must be >= 1, or negative for the whole error region, got {k}")
    num = len(gt)
    squared = squared_distance_to_background(torch.cat([gt & ~pred, pred & ~gt]))
    missed, wrong = squared[:num], squared[num:]
    depth_missed, depth_wrong = missed.amax((1, 2)), wrong.amax((1, 2))
    positive = depth_missed > depth_wrong
    chosen = torch.where(positive[:, None, None], missed, wrong)
    depth = torch.maximum(depth_missed, depth_wrong)
    # In 32 bits the small term would vanish beside k.
    factor = (k.double() if isinstance(k, Tensor) else k) + _K_EPS
    threshold = (depth.double().sqrt() / factor).clamp(min=0)
    # A whole number is above a threshold if it is above the whole part of it.
    inner = chosen > (threshold**2).floor().to(chosen.dtype)[:, None, None]
    return positive, inner


def _distance_in_row(masks: Tensor) -> Tensor:
    """Distance to the nearest background pixel of the same row, or to the border, in px."""
    width = masks.shape[2]
    columns = torch.arange(width, dtype=torch.int16, device=masks.device)
    outside = torch.full_like(columns, -1)
    left = torch.where(masks, outside, columns).cummax(2).values
    # The same from the other side, with columns counted from there.
    right = torch.where(masks.flip(2), outside, columns).cummax(2).values.flip(2)
    return torch.minimum(columns - left, columns.flip(0) - right)


def _nearest_by_shifts(in_row: Tensor, reach: int) -> Tensor:
    """Add the vertical step by shifting the maps row by row: little memory, many small steps.

    Parameters
    ----------
    in_row : (N, H, W) int16 or int32, px^2
        Squared distances in the row.
    reach : int, px
        Shifts from here on cannot come nearer than the border.

    Returns
    -------
    (N, H, W) as `in_row`, px^2
    """
    # Rows first: a shift by k rows is then one contiguous block.
    in_row = in_row.permute(1, 0, 2).contiguous()
    nearest = torch.minimum(in_row, _border(in_row, len(in_row))[:, None, None])
    shifted = torch.empty_like(in_row)
    for k in range(1, reach):
        torch.add(in_row, k * k, out=shifted)
        torch.minimum(nearest[k:], shifted[:-k], out=nearest[k:])
        torch.minimum(nearest[:-k], shifted[k:], out=nearest[:-k])
    return nearest.permute(1, 0, 2).contiguous()


def _nearest_by_table(in_row: Tensor, reach: int, temporary_bytes: int) -> Tensor:
    """Add the vertical step for all pairs of rows at once: few launches, more memory.

    Parameters
    ----------
    in_row : (N, H, W) int16 or int32, px^2
        Squared distances in the row.
    reach : int, px
        Steps are cut off here, which keeps the sums within the type.
    temporary_bytes : int
        Memory for the table of one part of the maps.

    Returns
    -------
    (N, H, W) as `in_row`, px^2
    """
    num, height, width = in_row.shape
    rows = torch.arange(height, device=in_row.device)
    step = (rows[:, None] - rows).abs().clamp(max=reach).to(in_row.dtype) ** 2
    border = _border(in_row, height)[:, None]
    each = height * height * width * in_row.element_size()
    nearest = torch.empty_like(in_row)
    at_once = max(1, temporary_bytes // each)
    for start in range(0, num, at_once):
        chosen = slice(start, start + at_once)
        table = in_row[chosen, None] + step[:, :, None]
        torch.minimum(table.amin(2), border, out=nearest[chosen])
    return nearest


def _border(like: Tensor, height: int) -> Tensor:
    """Squared distance of every row to the nearer of the borders above and below, (H,)."""
    rows = torch.arange(height, device=like.device)
    return torch.minimum(rows + 1, height - rows).to(like.dtype) ** 2
