"""Simulated sequences of clicks on a batch of objects, with their losses."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter
from napari_hrsam.training.clicks import next_click
from napari_hrsam.training.losses import batch_iou, dice_loss, normalized_focal_loss

LOSS_STRIDE = 2
"""Losses and clicks are computed at half the crop's resolution."""


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
    maps = {name: None if x is None else x[index] for name, x in features.items()}
    return ImageFeatures(**maps)  # type: ignore[arg-type]


class ClickRounds:
    """One simulated sequence of clicks on a batch of objects.

    Every sequence carries a loss after its first prompt and after its last; the rounds between
    run without gradient, so that long sequences cost little more than short ones.

    Parameters
    ----------
    masks : (N, H, W) bool
        Objects in crop pixels.
    rng : numpy.random.Generator
    max_clicks, click_decay, box_share
        See `train.TrainConfig`.
    device : torch.device
    """

    def __init__(
        self,
        masks: NDArray[np.bool_],
        rng: np.random.Generator,
        *,
        max_clicks: int,
        click_decay: float,
        box_share: float,
        device: torch.device,
    ) -> None:
        self.rng, self.device = rng, device
        size = (masks.shape[1] // LOSS_STRIDE, LOSS_STRIDE, masks.shape[2] // LOSS_STRIDE)
        covered = masks.reshape(len(masks), *size, LOSS_STRIDE).mean((2, 4))
        self.gt = covered >= 0.5
        for i in np.flatnonzero(~self.gt.any((1, 2))):
            self.gt[i] = covered[i] > 0  # A thin object keeps its touched cells.
        self.labels = torch.from_numpy(self.gt.astype(np.int64)).to(device)
        num = 1
        while num < max_clicks and rng.random() < click_decay:
            num += 1
        self.num_rounds = num
        self.coords: list[list[tuple[float, float]]] = [[] for _ in self.gt]
        self.signs: list[list[int]] = [[] for _ in self.gt]
        self.boxes = self._boxes() if rng.random() < box_share else None

    def loss(self, model: Segmenter, features: ImageFeatures) -> tuple[Tensor, list[float]]:
        """Run the sequence: the summed loss and the mean IoU after each round."""
        total = features.embedding.new_zeros(())
        prior: Tensor | None = None
        ious: list[float] = []
        if self.boxes is None:
            self._add_clicks(np.zeros_like(self.gt))
        for index in range(self.num_rounds):
            with_loss = index in (0, self.num_rounds - 1)
            with torch.set_grad_enabled(with_loss):
                masks, iou = model.decode_all(
                    features, **self._prompts(), mask_logits=self._noisy(prior)
                )
                resized = F.interpolate(
                    masks.float(), self.gt.shape[1:], mode="bilinear", align_corners=False
                )
                if with_loss:
                    total = total + self._round_loss(resized, iou.float(), first=index == 0)
            prior = masks[:, :1].detach().float()
            predicted = resized[:, :1].detach()
            ious.append(float(batch_iou(predicted, self.labels).mean()))
            if index + 1 < self.num_rounds:
                self._add_clicks((predicted[:, 0] > 0).cpu().numpy())
        return total, ious

    def _round_loss(self, masks: Tensor, iou: Tensor, *, first: bool) -> Tensor:
        loss = self._mask_loss(masks[:, :1]).mean()
        num_candidates = masks.shape[1] - 1
        if first and num_candidates:
            # An ambiguous first click: only the best of the candidates learns from it.
            each = torch.stack([self._mask_loss(masks[:, i : i + 1]) for i in range(1, 4)])
            loss = loss + 0.5 * each.min(0).values.mean()
        with torch.no_grad():
            real = torch.stack(
                [batch_iou(masks[:, i : i + 1], self.labels) for i in range(masks.shape[1])], 1
            )
        return loss + 0.5 * F.mse_loss(iou, real.to(iou))

    def _mask_loss(self, masks: Tensor) -> Tensor:
        return normalized_focal_loss(masks, self.labels) + dice_loss(masks, self.labels)

    def _noisy(self, prior: Tensor | None) -> Tensor | None:
        """Blur what the network may take for granted about its own earlier logits."""
        if prior is None or self.rng.random() < 0.05:
            return None
        scale = float(np.exp(self.rng.normal(0, 0.3)))
        noise = torch.randn_like(prior) * float(abs(self.rng.normal(0, 0.5)))
        return (prior * scale + noise).clamp(-16, 16)

    def _boxes(self) -> Tensor:
        boxes = np.zeros((len(self.gt), 4), np.float32)
        for i, mask in enumerate(self.gt):
            ys, xs = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            box = np.array([xs[0], ys[0], xs[-1] + 1, ys[-1] + 1], np.float32) * LOSS_STRIDE
            side = np.array([box[2] - box[0], box[3] - box[1]] * 2)
            boxes[i] = box + self.rng.normal(0, 0.04, 4) * side - 0.5
        return torch.from_numpy(boxes).to(self.device)

    def _add_clicks(self, predicted: NDArray[np.bool_]) -> None:
        for i, (pred, gt) in enumerate(zip(predicted, self.gt, strict=True)):
            k = float(self.rng.choice([1.0, 1.7, -1.0], p=[0.55, 0.35, 0.1]))
            click = next_click(pred, gt, (), k=k, rng=self.rng)
            if click is None:
                self.coords[i].append((0.0, 0.0))
                self.signs[i].append(-1)
                continue
            jitter = self.rng.uniform(-0.5, 0.5, 2)
            y, x = (np.array([click.y, click.x]) + 0.5 + jitter) * LOSS_STRIDE - 0.5
            self.coords[i].append((float(x), float(y)))
            self.signs[i].append(int(click.positive))

    def _prompts(self) -> dict[str, Tensor | None]:
        has_points = bool(self.coords[0])
        coords = torch.tensor(self.coords, device=self.device) if has_points else None
        signs = torch.tensor(self.signs, device=self.device) if has_points else None
        return {"point_coords_xy": coords, "point_labels": signs, "boxes_xyxy": self.boxes}
