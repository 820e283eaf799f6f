"""Simulated clicks for the focus refiner: coarse rounds, one refinement, refined rounds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter
from napari_hrsam.training.click_rounds import LOSS_STRIDE, ClickRounds, RoundsLoss
from napari_hrsam.training.losses import batch_iou, dice_loss, normalized_focal_loss, point_loss
from napari_hrsam.training.settings import ClickConfig, FocusTaskConfig

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
    masks, rng, config, weight
        As in `ClickRounds`; there are at least two rounds, and no boxes.
    focus : FocusTaskConfig

    References
    ----------
    FocSAM, arXiv 2405.18706, section on training; weights of the sum as released.
    """

    def __init__(
        self,
        masks: Tensor,
        rng: np.random.Generator,
        config: ClickConfig,
        focus: FocusTaskConfig,
        weight: Tensor | None = None,
    ) -> None:
        config = replace(
            config, box_share=0.0, first_share=0.0, max_clicks=max(2, config.max_clicks)
        )
        super().__init__(masks, rng, config, weight)
        self.focus = focus
        self.refine_at = 1
        while self.refine_at < self.num_rounds - 1 and rng.random() < focus.refine_decay:
            self.refine_at += 1

    def run(self, model: Segmenter, features: ImageFeatures) -> RoundsLoss:
        """Run the sequence: the loss right after the refinement plus that at the end."""
        loss = torch.zeros((), device=self.gt.device)
        prior: Tensor | None = None
        ious: list[Tensor] = []
        self._add_clicks(torch.zeros_like(self.gt))
        for index in range(self.num_rounds):
            fed_back = self._fed_back(prior)
            if index == self.refine_at:
                expansion = self.rng.uniform(1.0, MAX_EXPANSION, 2).tolist()
                features = model.refine(
                    features,
                    **self._prompts(),
                    mask_logits=fed_back,
                    box_expansion=(expansion[0], expansion[1]),
                )
            with_loss = index in (self.refine_at, self.num_rounds - 1)
            with torch.set_grad_enabled(with_loss and torch.is_grad_enabled()):
                decoded = model.decode_all(features, **self._prompts(), mask_logits=fed_back)
                resized = self._resize(decoded.masks[:, :1])
                if with_loss:
                    loss = loss + self._focus_loss(resized)
            prior = decoded.masks[:, :1].detach().float()
            predicted = resized.detach()
            ious.append(self._mean(batch_iou(predicted, self.labels)))
            if index + 1 < self.num_rounds:
                self._add_clicks(predicted[:, 0] > 0)
        return RoundsLoss(loss, ious)

    def _focus_loss(self, logits: Tensor) -> Tensor:
        loss = self._mean(normalized_focal_loss(logits, self.labels))
        if self.focus.dice_weight:
            loss = loss + self.focus.dice_weight * self._mean(dice_loss(logits, self.labels))
        if not self.focus.point_weight:
            return loss
        # Crop pixels to the pixels of the labels, centres at integers in both.
        coords = (self.coords + 0.5) / LOSS_STRIDE - 0.5
        return loss + point_loss(logits, coords, self.signs, loss_weight=self.focus.point_weight)
