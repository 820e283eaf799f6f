"""Losses on mask logits: normalised focal, Dice and point loss, and the IoU of a batch.

Shapes: B samples, P points, (H, W) pixels of the label.
"""

from __future__ import annotations

import torch
from torch import Tensor

from napari_hrsam.errors import ShapeError

_EPS = 1.19e-7
IGNORE_LABEL = 255
"""Label of pixels that take no part in a loss."""


def normalized_focal_loss(
    logits: Tensor,
    labels: Tensor,
    *,
    alpha: float = 0.5,
    gamma: float = 2.0,
    stop_delimiter_grad: bool = True,
    loss_weight: float = 1.0,
) -> Tensor:
    """Focal loss whose weights are rescaled to a mean of 1 over the valid pixels of a sample.

    Parameters
    ----------
    logits : (B, 1, H, W) float
        Mask logits.
    labels : (B, H, W) integer
        1 = object, 0 = background, 255 = ignored.
    alpha : float, 0..1
        Weight of the object's pixels; background pixels weigh 1 - alpha.
    gamma : float
        Exponent of the focal weight (1 - p_t)^gamma.
    stop_delimiter_grad : bool
        Treat the normalising factor as a constant.
    loss_weight : float
        Factor on the result.

    Returns
    -------
    (B,) float32
        Loss per sample; 0 for a sample without a valid pixel.

    Raises
    ------
    ShapeError
        If the shapes do not belong together.
    """
    scores = _squeeze(logits, labels).float()
    valid = labels != IGNORE_LABEL
    is_object = labels == 1
    probability = torch.sigmoid(scores)
    # Written with one subtraction for both classes: the published numbers carry its rounding.
    p_true = 1 - torch.abs(is_object.float() - probability)
    p_true = torch.where(valid, p_true, torch.ones_like(p_true))
    weight = valid.to(scores.dtype)
    class_weight = torch.where(is_object, alpha, 1 - alpha)
    beta = (1 - p_true) ** gamma
    num_valid = weight.sum(dim=(1, 2))
    scale = num_valid / (beta.sum(dim=(1, 2)) + _EPS)
    if stop_delimiter_grad:
        scale = scale.detach()
    surprise = -torch.log(torch.clamp(p_true + _EPS, max=1.0))
    per_pixel = weight * class_weight * (scale[:, None, None] * beta) * surprise
    return loss_weight * per_pixel.sum(dim=(1, 2)) / num_valid.clamp(min=1)


def dice_loss(logits: Tensor, labels: Tensor, *, smooth: float = 1.0) -> Tensor:
    """One minus the soft Dice coefficient of the object.

    Parameters
    ----------
    logits : (B, 1, H, W) float
        Mask logits.
    labels : (B, H, W) integer
        1 = object, 0 = background, 255 = ignored.
    smooth : float, px
        Added to both sides of the fraction, so that empty masks have a gradient.

    Returns
    -------
    (B,) float32, 0..1
        Loss per sample.

    Raises
    ------
    ShapeError
        If the shapes do not belong together.
    """
    valid = (labels != IGNORE_LABEL).float()
    probability = torch.sigmoid(_squeeze(logits, labels).float()) * valid
    target = (labels == 1).float()
    overlap = (probability * target).sum(dim=(1, 2))
    total = probability.sum(dim=(1, 2)) + target.sum(dim=(1, 2))
    return 1 - (2 * overlap + smooth) / (total + smooth)


def point_loss(
    logits: Tensor, coords_xy: Tensor, point_labels: Tensor, *, loss_weight: float = 1.0
) -> Tensor:
    """Mean squared error of the mask's probability at the clicks.

    Parameters
    ----------
    logits : (B, 1, H, W) float
        Mask logits at the size in which the clicks are given.
    coords_xy : (B, P, 2)
        Clicks, (x, y) pixels; the nearest pixel inside the mask counts.
    point_labels : (B, P)
        1 = positive, 0 = negative, -1 = padding.
    loss_weight : float
        Factor on the result.

    Returns
    -------
    () float32
        Mean over all valid clicks of the batch; 0 if there are none.

    Raises
    ------
    ShapeError
        If the shapes do not belong together.
    """
    if logits.ndim != 4 or logits.shape[1] != 1 or coords_xy.shape != (*point_labels.shape, 2):
        raise ShapeError(
            "expected logits (B, 1, H, W), coords_xy (B, P, 2) and point_labels (B, P), got "
            f"{tuple(logits.shape)}, {tuple(coords_xy.shape)} and {tuple(point_labels.shape)}"
        )
    height, width = logits.shape[-2:]
    nearest = torch.floor(coords_xy.float() + 0.5).long()
    column = nearest[..., 0].clamp(0, width - 1)
    row = nearest[..., 1].clamp(0, height - 1)
    sample = torch.arange(len(logits), device=logits.device)[:, None]
    error = torch.sigmoid(logits[sample, 0, row, column].float()) - point_labels.float()
    valid = (point_labels >= 0).float()
    return loss_weight * (valid * error**2).sum() / valid.sum().clamp(min=1)


def batch_iou(logits: Tensor, labels: Tensor) -> Tensor:
    """Intersection over union of the object per sample.

    Parameters
    ----------
    logits : (B, 1, H, W) float
        Mask logits; above 0 is object.
    labels : (B, H, W) integer
        1 = object, 0 = background, 255 = ignored.

    Returns
    -------
    (B,) float32, 0..1
        0 where prediction and label are both empty.

    Raises
    ------
    ShapeError
        If the shapes do not belong together.
    """
    predicted = (_squeeze(logits, labels) > 0) & (labels != IGNORE_LABEL)
    target = labels == 1
    overlap = (predicted & target).sum(dim=(1, 2)).float()
    union = (predicted | target).sum(dim=(1, 2)).float()
    return overlap / union.clamp(min=1)


def _squeeze(logits: Tensor, labels: Tensor) -> Tensor:
    if logits.ndim != 4 or logits.shape[1] != 1 or logits[:, 0].shape != labels.shape:
        raise ShapeError(
            "expected logits (B, 1, H, W) and labels (B, H, W), got "
            f"{tuple(logits.shape)} and {tuple(labels.shape)}"
        )
    return logits[:, 0]
