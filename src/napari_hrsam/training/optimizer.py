"""AdamW with the groups that our networks need, and the average of the weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

STEM_PREFIX = "image_encoder.stem.net."
"""Names of the pretrained stem's parameters in a segmenter."""


def make_optimizer(
    learning: Iterable[tuple[str, nn.Parameter]],
    *,
    learning_rate: float,
    weight_decay: float,
    stem_factor: float = 1.0,
) -> torch.optim.AdamW:
    """Make the optimiser; `set_rate` sets its learning rate.

    Parameters
    ----------
    learning : iterable of (str, Parameter)
        Names and parameters. Vectors (norms, biases, gammas), tokens and the scan's own parameters
        do not decay.
    learning_rate, weight_decay : float
    stem_factor : float
        Factor on the learning rate of the pretrained stem.
    """
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in learning:
        is_token = ("embed" in name and "embed_proj" not in name) or "_token" in name
        is_plain = parameter.ndim < 2 or is_token or "As_log" in name or "gamma" in name
        groups.setdefault((is_plain, name.startswith(STEM_PREFIX)), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": 0.0 if is_plain else weight_decay,
                "factor": stem_factor if is_stem else 1.0,
            }
            for (is_plain, is_stem), parameters in sorted(groups.items(), key=lambda item: item[0])
        ],
        lr=learning_rate,
        fused=True,
    )


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate, each group's times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]


@torch.no_grad()
def average_into(averaged: nn.Module, model: nn.Module, decay: float, step: int) -> None:
    """Move the averaged weights towards the model's.

    Parameters
    ----------
    averaged, model : Module
        Of one architecture.
    decay : float
        Share of the average that stays; less in the first steps, so that the average does not
        hold on to the random start.
    step : int
        Steps done.
    """
    decay = min(decay, (1 + step) / (10 + step))
    mine, theirs = averaged.state_dict(), model.state_dict()
    keys = [key for key in mine if mine[key].is_floating_point()]
    torch._foreach_lerp_([mine[k] for k in keys], [theirs[k] for k in keys], 1 - decay)
