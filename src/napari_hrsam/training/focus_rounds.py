"""Simulated clicks for the focus refiner: coarse rounds, one refinement, refined rounds."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter
from napari_hrsam.training.click_rounds import LOSS_STRIDE, ClickRounds
from napari_hrsam.training.losses import (
    batch_iou,
    dice_loss,
    normalized_focal_loss,
    point_loss,
)

MAX_EXPANSION = 1.4
"""Training draws the expansion of the box from 1 to this, height and width apart (FocSAM)."""


class FocusRounds(ClickRounds):
    """A sequence in which the embedding is refined once, with everything else frozen.

    The refinement comes after r predictions, r drawn geometrically from 1 on (a session refines at
    the second click; the paper's r = 0 never happens there). The loss is the normalised focal loss
    plus the mean point loss over all clicks so far (and the Dice loss on request, which the paper
    does not have), right after the refinement and at the end.

    Parameters
    ----------
    masks, rng, max_clicks, click_decay, device
        As in `ClickRounds`; there are at least two rounds, and no boxes.
    refine_decay : float, 0..1
        The refinement is put off by one more click with this probability.
    point_weight, dice_weight : float
        Factors on the point loss and on the Dice loss; 0 leaves them out.

    References
    ----------
    FocSAM, arXiv 2405.18706, section on training; weights of the sum as released.
    """

    def __init__(
        self,
        masks: NDArray[np.bool_],
        rng: np.random.Generator,
        *,
        max_clicks: int,
        click_decay: float,
        refine_decay: float,
        point_weight: float,
        dice_weight: float,
        device: torch.device,
    ) -> None:
        super().__init__(
            masks,
            rng,
            max_clicks=max_clicks,
            click_decay=click_decay,
            box_share=0.0,
            device=device,
        )
        self.num_rounds = max(2, self.num_rounds)
        self.point_weight, self.dice_weight = point_weight, dice_weight
        self.refine_at = 1
        while self.refine_at < self.num_rounds - 1 and rng.random() < refine_decay:
            self.refine_at += 1

    def loss(self, model: Segmenter, features: ImageFeatures) -> tuple[Tensor, list[float]]:
        """Run the sequence: the summed loss and the mean IoU after each round."""
        total = features.embedding.new_zeros(())
        prior: Tensor | None = None
        ious: list[float] = []
        self._add_clicks(np.zeros_like(self.gt))
        for index in range(self.num_rounds):
            fed_back = self._noisy(prior)
            if index == self.refine_at:
                expansion = self.rng.uniform(1.0, MAX_EXPANSION, 2).tolist()
                features = model.refine(
                    features,
                    **self._prompts(),
                    mask_logits=fed_back,
                    box_expansion=(expansion[0], expansion[1]),
                )
            with_loss = index in (self.refine_at, self.num_rounds - 1)
            with torch.set_grad_enabled(with_loss):
                masks, _ = model.decode_all(features, **self._prompts(), mask_logits=fed_back)
                resized = F.interpolate(
                    masks[:, :1].float(), self.gt.shape[1:], mode="bilinear", align_corners=False
                )
                if with_loss:
                    total = total + self._focus_loss(resized)
            prior = masks[:, :1].detach().float()
            predicted = resized.detach()
            ious.append(float(batch_iou(predicted, self.labels).mean()))
            if index + 1 < self.num_rounds:
                self._add_clicks((predicted[:, 0] > 0).cpu().numpy())
        return total, ious

    def _focus_loss(self, logits: Tensor) -> Tensor:
        loss = normalized_focal_loss(logits, self.labels).mean()
        if self.dice_weight:
            loss = loss + self.dice_weight * dice_loss(logits, self.labels).mean()
        if not self.point_weight:
            return loss
        coords = torch.tensor(self.coords, device=self.device)
        # Crop pixels to the pixels of the labels, centres at integers in both.
        coords = (coords + 0.5) / LOSS_STRIDE - 0.5
        signs = torch.tensor(self.signs, device=self.device)
        return loss + point_loss(logits, coords, signs, loss_weight=self.point_weight)
