"""Simulated sequences of clicks on a batch of objects, with their losses, on any device.

Shape letters: N objects, P clicks, H x W pixels of the crop, h x w cells of the labels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from napari_hrsam.modeling.mask_decoder import Decoded
from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter
from napari_hrsam.training.device_clicks import next_clicks
from napari_hrsam.training.losses import batch_iou, dice_loss, normalized_focal_loss
from napari_hrsam.training.settings import ClickConfig

LOSS_STRIDE = 2
"""Losses and clicks are computed at half the crop's resolution."""
MASK_STRIDE = 4
"""Of the decoder's masks."""

_DEEPEST, _INNER, _ANYWHERE = 1.0, 1.7, -1.0
"""Values of `next_clicks`'s k; used in 55, 35 and 10 % of the clicks."""
_OBEYED_LOGIT = 2.0
_OBEYED_RADII = (1.5, 6.0)


@dataclass(frozen=True, slots=True)
class RoundsLoss:
    """The outcome of one sequence of clicks.

    Attributes
    ----------
    loss : () Tensor
        With its graph.
    ious : list of () Tensor
        Mean IoU after each round, on the device.
    """

    loss: Tensor
    ious: list[Tensor]


@dataclass(frozen=True, slots=True)
class ClickDraws:
    """Random numbers of one click on each of N objects, all uniform in 0..1.

    Attributes
    ----------
    kind : (N,) float
        Decides how deep in the error region the click lies.
    place : (N, H, W) float
        Of the candidates of a region the one with the highest number is clicked.
    jitter : (N, 2) float
        Where in the cell it falls, (y, x).
    """

    kind: Tensor
    place: Tensor
    jitter: Tensor


@dataclass(frozen=True, slots=True)
class PriorDraws:
    """Random numbers of logits that are fed back.

    Attributes
    ----------
    spread : (N, P) float, 0..1
        How far each obeyed click reaches.
    noise : (N, 1, h, w) float
        Standard normal.
    scale, level : float or () Tensor
        Factors on the logits and on the noise.
    """

    spread: Tensor
    noise: Tensor
    scale: float | Tensor
    level: float | Tensor


def per_object(features: ImageFeatures, index: Tensor) -> ImageFeatures:
    """Repeat the features of crops for the objects in them.

    Parameters
    ----------
    features : ImageFeatures
        Of B crops.
    index : (N,) int64
        The crop of every object.

    Returns
    -------
    ImageFeatures
        Of N objects.
    """
    # Unlike x[index] this adds up the gradients without sorting the index first.
    maps = {n: None if x is None else x.index_select(0, index) for n, x in features.items()}
    return ImageFeatures(**maps)  # type: ignore[arg-type]


class ClickRounds:
    """One simulated sequence of clicks on a batch of objects.

    Nothing here waits for the device: how long the sequence is and where its loss lies is drawn on
    the host for the whole batch, where the clicks go on the device for every object.

    Parameters
    ----------
    masks : (N, H, W) bool
        Objects in crop pixels, on the device.
    rng : numpy.random.Generator
        Everything random follows from it.
    config : ClickConfig
    weight : (N,) float, optional
        Of each object in the loss; 1 by default.
    """

    def __init__(
        self,
        masks: Tensor,
        rng: np.random.Generator,
        config: ClickConfig,
        weight: Tensor | None = None,
    ) -> None:
        self.rng, self.config, device = rng, config, masks.device
        self.generator = torch.Generator(device).manual_seed(int(rng.integers(2**62)))
        self.gt = pooled(masks, LOSS_STRIDE)
        self.labels = self.gt.long()
        self.coarse_labels = pooled(self.gt, MASK_STRIDE // LOSS_STRIDE).long()
        self.weight = torch.ones(len(masks), device=device) if weight is None else weight
        self.num_rounds = draw_length(config, rng)
        self.coords = torch.zeros(len(masks), 0, 2, device=device)
        self.signs = torch.zeros(len(masks), 0, dtype=torch.long, device=device)
        self.boxes = self._boxes() if rng.random() < config.box_share else None

    def run(self, model: Segmenter, features: ImageFeatures) -> RoundsLoss:
        """Click, and compute the loss of the last round.

        Parameters
        ----------
        model : Segmenter
        features : ImageFeatures
            Of N images, see `per_object`.
        """
        prior: Tensor | None = None
        ious: list[Tensor] = []
        loss = torch.zeros((), device=self.gt.device)
        if self.boxes is None:
            self._add_clicks(torch.zeros_like(self.gt))
        for index in range(self.num_rounds):
            is_last = index + 1 == self.num_rounds
            if is_last:
                # Low-precision copies of weights made without gradients must not serve here.
                torch.clear_autocast_cache()
            with torch.set_grad_enabled(is_last and torch.is_grad_enabled()):
                decoded = model.decode_all(
                    features, **self._prompts(), mask_logits=self._fed_back(prior)
                )
                resized = self._resize(decoded.masks[:, :1])
                if is_last:
                    truth = (self.labels, self.coarse_labels)
                    each = objects_loss(self.config, decoded, resized, truth, first=index == 0)
                    loss = self._mean(each)
            prior = decoded.masks[:, :1].detach().float()
            predicted = resized.detach()
            ious.append(self._mean(batch_iou(predicted, self.labels)))
            if not is_last:
                self._add_clicks(predicted[:, 0] > 0)
        return RoundsLoss(loss, ious)

    def _resize(self, masks: Tensor) -> Tensor:
        """Logits at the size of the labels."""
        return resized_to(masks, self.gt)

    def _mean(self, values: Tensor) -> Tensor:
        """Weighted mean over the objects."""
        return weighted_mean(values, self.weight)

    def _fed_back(self, prior: Tensor | None) -> Tensor | None:
        """Prior logits as a session feeds them back: clicks obeyed; and not to be relied on."""
        if prior is None or self.rng.random() < 0.05:
            return None
        draws = self._draw_prior(prior)
        return fed_back(prior, self.coords, self.signs, draws)

    def _draw_prior(self, prior: Tensor) -> PriorDraws:
        spread = self._uniform(*self.signs.shape)
        scale, level = draw_distortion(self.rng)
        return PriorDraws(spread, self._normal(*prior.shape), scale, level)

    def _boxes(self) -> Tensor:
        """Boxes around the objects as drawn by hand: (N, 4) x0, y0, x1, y1 in crop pixels."""
        return boxes_around(self.gt, self._normal(len(self.gt), 4))

    def _uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.gt.device)

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, device=self.gt.device)

    def _add_clicks(self, predicted: Tensor) -> None:
        num = len(self.gt)
        draws = ClickDraws(
            kind=self._uniform(num),
            place=self._uniform(*self.gt.shape),
            jitter=self._uniform(num, 2),
        )
        coords_xy, sign = place_clicks(predicted, self.gt, draws)
        self.coords = torch.cat([self.coords, coords_xy[:, None]], dim=1)
        self.signs = torch.cat([self.signs, sign[:, None]], dim=1)

    def _prompts(self) -> dict[str, Any]:
        has_points = self.coords.shape[1] > 0
        return {
            "point_coords_xy": self.coords if has_points else None,
            "point_labels": self.signs if has_points else None,
            "boxes_xyxy": self.boxes,
        }


def draw_length(config: ClickConfig, rng: np.random.Generator) -> int:
    """Draw the number of rounds of a sequence."""
    if config.max_clicks == 1 or rng.random() < config.first_share:
        return 1
    num = 2
    while num < config.max_clicks and rng.random() < config.click_decay:
        num += 1
    return num


def resized_to(masks: Tensor, gt: Tensor) -> Tensor:
    """Logits (N, 1, h, w) at the size of labels (N, H, W), float32."""
    return F.interpolate(masks.float(), gt.shape[1:], mode="bilinear", align_corners=False)


def weighted_mean(values: Tensor, weight: Tensor) -> Tensor:
    """Mean of (N,) values with (N,) weights; 0 where all weights are 0."""
    return (values * weight).sum() / weight.sum().clamp(min=1e-6)


def mask_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Normalised focal loss plus Dice loss of (N, 1, h, w) logits: (N,)."""
    return normalized_focal_loss(logits, labels) + dice_loss(logits, labels)


def pooled(masks: Tensor, stride: int) -> Tensor:
    """Reduce masks to cells that are at least half covered.

    Parameters
    ----------
    masks : (N, H, W) bool
    stride : int
        H and W are multiples of it.

    Returns
    -------
    (N, H / stride, W / stride) bool
        An object too thin for that keeps every cell that it touches.
    """
    covered = F.avg_pool2d(masks[:, None].float(), stride)[:, 0]
    half = covered >= 0.5
    is_thin = ~half.flatten(1).any(1)
    return half | (is_thin[:, None, None] & (covered > 0))


def objects_loss(
    config: ClickConfig,
    decoded: Decoded,
    resized: Tensor,
    truth: tuple[Tensor, Tensor],
    *,
    first: bool,
) -> Tensor:
    """Compute the loss of each of N objects.

    Parameters
    ----------
    config : ClickConfig
    decoded : Decoded
        Of N objects.
    resized : (N, 1, H, W) float
        Logits of the first mask at the size of the labels.
    truth : (N, H, W) int64 and (N, h, w) int64
        Labels, and the same at the size of the decoder's masks.
    first : bool
        Whether this answers the first prompt.

    Returns
    -------
    (N,) float32
    """
    labels, coarse_labels = truth
    masks, coarse = decoded.masks.float(), decoded.coarse.float()
    loss = mask_loss(resized, labels)
    loss = loss + config.coarse_weight * mask_loss(coarse[:, :1], coarse_labels)
    candidates = range(1, masks.shape[1])
    if first and candidates:
        # An ambiguous first click: only the best of the candidates learns from it.
        each = [mask_loss(masks[:, i : i + 1], coarse_labels) for i in candidates]
        loss = loss + config.candidate_weight * torch.stack(each).amin(0)
    with torch.no_grad():
        real = [batch_iou(resized, labels)]
        real += [batch_iou(masks[:, i : i + 1], coarse_labels) for i in candidates]
    error = (decoded.iou.float() - torch.stack(real, 1)) ** 2
    return loss + config.iou_weight * error.mean(1)


def place_clicks(predicted: Tensor, gt: Tensor, draws: ClickDraws) -> tuple[Tensor, Tensor]:
    """Click where a prediction is wrong.

    Parameters
    ----------
    predicted, gt : (N, H, W) bool
        At half the crop's resolution.
    draws : ClickDraws

    Returns
    -------
    coords_xy : (N, 2) float
        In crop pixels.
    signs : (N,) int64
        1 positive, 0 negative, -1 where nothing is wrong.
    """
    u = draws.kind
    k = torch.where(u < 0.9, torch.where(u < 0.55, _DEEPEST, _INNER), _ANYWHERE)
    coords_yx, positive, found = next_clicks(predicted, gt, None, k=k, scores=draws.place)
    coords_xy = ((coords_yx + draws.jitter) * LOSS_STRIDE - 0.5).flip(1)
    return coords_xy, torch.where(found, positive.long(), -1)


def boxes_around(gt: Tensor, noise: Tensor) -> Tensor:
    """Draw boxes around objects as a hand does: (N, 4) x0, y0, x1, y1 in crop pixels.

    Parameters
    ----------
    gt : (N, H, W) bool
        At half the crop's resolution.
    noise : (N, 4) float
        Standard normal; an edge is off by 0.04 of the box's side times this.
    """
    edges = []
    for axis in (1, 2):  # Columns (over rows), then rows.
        inside = gt.any(axis).float()
        first = inside.argmax(1)
        last = inside.shape[1] - inside.flip(1).argmax(1)
        edges.append(torch.stack([first, last], 1).float() * LOSS_STRIDE)
    boxes = torch.stack([edges[0][:, 0], edges[1][:, 0], edges[0][:, 1], edges[1][:, 1]], 1)
    side = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    return boxes + 0.04 * side * noise - 0.5


def draw_distortion(rng: np.random.Generator) -> tuple[float, float]:
    """Draw factors on fed back logits and on the noise added to them; (1, 0) in 30 %."""
    if rng.random() < 0.3:
        return 1.0, 0.0
    return float(np.exp(rng.normal(0, 0.3))), float(abs(rng.normal(0, 0.5)))


def fed_back(prior: Tensor, coords_xy: Tensor, signs: Tensor, draws: PriorDraws) -> Tensor:
    """Logits as a session feeds them back: clicks obeyed; and not to be relied on.

    Parameters
    ----------
    prior : (N, 1, h, w) float
    coords_xy, signs : (N, P, 2) float and (N, P) int
    draws : PriorDraws

    Returns
    -------
    (N, 1, h, w) float, -16..16
    """
    prior = with_clicks_enforced(prior, coords_xy, signs, draws.spread)
    return (prior * draws.scale + draws.noise * draws.level).clamp(-16, 16)


def with_clicks_enforced(
    logits: Tensor, coords_xy: Tensor, signs: Tensor, spread: Tensor
) -> Tensor:
    """Change logits around the clicks that they contradict, as `engine.click_correction` does.

    There the colours decide how far a correction reaches; here chance does.

    Parameters
    ----------
    logits : (N, 1, h, w) float
        At stride 4.
    coords_xy : (N, P, 2) float
        Clicks in crop pixels.
    signs : (N, P) int
        1 positive, 0 negative, -1 padding.
    spread : (N, P) float, 0..1
        How far each click reaches.

    Returns
    -------
    (N, 1, h, w) float
    """
    if not coords_xy.shape[1]:
        return logits
    height, width = logits.shape[2:]
    cells = (coords_xy + 0.5) / MASK_STRIDE - 0.5
    nearest = cells.round().long()
    column, row = nearest[..., 0].clamp(0, width - 1), nearest[..., 1].clamp(0, height - 1)
    there = logits[:, 0].flatten(1).gather(1, row * width + column)
    wrong = (signs >= 0) & ((there > 0) != (signs == 1))
    y = torch.arange(height, device=logits.device)[:, None]
    x = torch.arange(width, device=logits.device)
    distance = torch.hypot(y - cells[..., 1, None, None], x - cells[..., 0, None, None])
    low, high = _OBEYED_RADII
    reach = low + (high - low) * spread
    # 1 up to half of the reach, then smoothly down to 0 at the reach.
    fall = (2 * distance / reach[..., None, None] - 1).clamp(0, 1)
    pull = (0.5 + 0.5 * torch.cos(torch.pi * fall)) * wrong[..., None, None]
    up = (pull * (signs == 1)[..., None, None]).amax(1, keepdim=True)
    down = (pull * (signs == 0)[..., None, None]).amax(1, keepdim=True)
    logits = torch.maximum(logits, logits + up * (_OBEYED_LOGIT - logits))
    return torch.minimum(logits, logits - down * (_OBEYED_LOGIT + logits))
