"""Losses that teach the image encoder from whole crops, beside the clicks.

Shape letters: B crops, C channels, h x w embedding grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from napari_hrsam.modeling.efficientnet import STEM_CHANNELS, EfficientNetLite0

_STEM_KEY = "image_encoder.stem.net."

PROTOTYPE_TEMPERATURE = 0.1
"""Difference of cosine similarities that counts as one."""


def dense_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Loss of the three maps of `dense_head.DenseHead`.

    Parameters
    ----------
    logits : (B, 3, 4 h, 4 w) float
    targets : (B, 3, H, W) float, 0..1
        Foreground and the two distances, at a finer size; 0 in the background.

    Returns
    -------
    () float32
        Binary cross entropy and Dice loss of the foreground, squared error of the distances: that
        of the centre distance inside objects only, that of the boundary distance everywhere.
    """
    logits = logits.float()
    size = (logits.shape[2], logits.shape[3])
    foreground = F.adaptive_avg_pool2d(targets[:, :1], size)
    distances = F.adaptive_avg_pool2d(targets[:, 1:], size)
    inside = foreground.clamp(min=1e-3)
    predicted = torch.sigmoid(logits)
    entropy = F.binary_cross_entropy_with_logits(logits[:, :1], foreground)
    overlap = (predicted[:, :1] * foreground).sum((1, 2, 3))
    total = predicted[:, :1].sum((1, 2, 3)) + foreground.sum((1, 2, 3))
    dice = 1 - (2 * overlap + 1) / (total + 1)
    centre = ((predicted[:, 1:2] - distances[:, :1] / inside) ** 2 * foreground).sum()
    centre = centre / foreground.sum().clamp(min=1)
    boundary = ((predicted[:, 2:] - distances[:, 1:]) ** 2).mean()
    return entropy + 0.5 * dice.mean() + 2 * centre + 4 * boundary


def prototype_loss(embedding: Tensor, labels: Tensor) -> Tensor:
    """Loss of telling the other objects of a crop from its background by one of them.

    Every object's mean embedding is a prototype; a cell of another object should be more similar to
    it, by cosine, than the cells of the background. This is what finding similar objects needs.

    Parameters
    ----------
    embedding : (B, C, h, w) float
    labels : (B, S, S) int64
        0 = background. A cell has the label of the pixel in its middle.

    Returns
    -------
    () float32
        Of every pair of an object and a cell of another: the cross entropy of that cell against the
        mean of the background's at `PROTOTYPE_TEMPERATURE`. 0 where no crop has two objects and
        background.
    """
    num, channels, height, width = embedding.shape
    rows = (2 * torch.arange(height, device=labels.device) + 1) * labels.shape[1] // (2 * height)
    columns = (2 * torch.arange(width, device=labels.device) + 1) * labels.shape[2] // (2 * width)
    cells = labels[:, rows[:, None], columns].reshape(num, -1)
    vectors = embedding.float().reshape(num, channels, -1).transpose(1, 2)
    is_same = cells[:, :, None] == cells[:, None]
    share = is_same / is_same.sum(2, keepdim=True)
    prototypes = F.normalize(share @ vectors, dim=2)
    similar = prototypes @ F.normalize(vectors, dim=2).transpose(1, 2) / PROTOTYPE_TEMPERATURE
    is_object = cells > 0
    outside = ~is_object
    # Means of exponents; a crop without background has none and no pair that counts.
    background = similar.masked_fill(~outside[:, None], -1e4).logsumexp(2, keepdim=True)
    background = background - outside.sum(1).clamp(min=1).log()[:, None, None]
    counts = is_object[:, :, None] & is_object[:, None] & ~is_same
    counts = counts & outside.any(1)[:, None, None]
    # As prototypes all objects count alike, whatever their size.
    weight = counts * share.diagonal(dim1=1, dim2=2)[:, :, None]
    return (weight * F.softplus(background - similar)).sum() / weight.sum().clamp(min=1e-6)


class StemTeacher(nn.Module):
    """The stride-32 map of the ImageNet stem as a target for an embedding.

    An encoder that takes its context from its own blocks learns what wide context is worth much
    faster when that is also asked of it densely. The teacher does not learn; the projection of the
    embedding onto its channels does, and is thrown away afterwards.

    Parameters
    ----------
    state : mapping of str to Tensor
        Weights of the stem under its names in a segmenter, as ``scripts/import_efficientnet.py``
        writes them.
    dim : int
        Channels of the embedding.
    """

    def __init__(self, state: Mapping[str, Tensor], dim: int) -> None:
        super().__init__()
        self.net = EfficientNetLite0(32).requires_grad_(False).eval()
        self.net.load_state_dict(
            {key.removeprefix(_STEM_KEY): value.float() for key, value in state.items()}
        )
        self.bridge = nn.Conv2d(dim, STEM_CHANNELS[32], 1)

    def forward(self, normalized: Tensor, embedding: Tensor) -> Tensor:
        """Compute the share of the teacher's variance that the embedding leaves unexplained.

        Parameters
        ----------
        normalized : (B, 3, H, W) float
            Images as the stem takes them.
        embedding : (B, C, h, w) float

        Returns
        -------
        () float32
        """
        with torch.no_grad():
            target = self.net(normalized)[32].float()
            # The batch's own statistics: channels of the stem differ in scale by orders.
            mean = target.mean((0, 2, 3), keepdim=True)
            spread = target.std((0, 2, 3), keepdim=True).clamp(min=1e-2)
            target = (target - mean) / spread
            target = F.interpolate(
                target, embedding.shape[2:], mode="bilinear", align_corners=False
            )
        return F.mse_loss(self.bridge(embedding).float(), target)
