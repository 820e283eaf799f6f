"""All weights of a group in one tensor, so that a step over them is a handful of launches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from napari_hrsam.training.optimizer import STEM_PREFIX, make_optimizer, set_rate

_ALIGNMENT = 64
"""Values; kernels read aligned weights in larger pieces."""


class FlatWeights:
    """Clip, step and average weights that lie side by side.

    The parameters become views of a few flat tensors, and so do their gradients: load weights into
    them in place, do not move them, and never set a gradient to None. The numbers are those of
    `torch.nn.utils.clip_grad_norm_`, `optimizer.make_optimizer` and `optimizer.average_into`.

    Parameters
    ----------
    learning : sequence of (str, Parameter)
        Names and parameters.
    averaged : Module
        Its parameters of the same names follow the learning ones as a moving average.
    learning_rate, weight_decay, stem_factor : float
        See `optimizer.make_optimizer`.
    max_norm : float
        Of the gradients.
    """

    def __init__(
        self,
        learning: Sequence[tuple[str, nn.Parameter]],
        averaged: nn.Module,
        *,
        learning_rate: float,
        weight_decay: float,
        stem_factor: float = 1.0,
        max_norm: float = 1.0,
    ) -> None:
        self.max_norm = max_norm
        names = {id(p): name for name, p in learning}
        followers = dict(averaged.named_parameters())
        # The groups of one optimiser, with flat tensors in place of their parameters.
        self.optimizer = make_optimizer(
            learning,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            stem_factor=stem_factor,
        )
        self._groups: list[_Group] = []
        for group in self.optimizer.param_groups:
            members = group["params"]
            theirs = [followers.get(names[id(p)]) for p in members]
            flat = _Group(members, theirs, is_stem=names[id(members[0])].startswith(STEM_PREFIX))
            group["params"] = [flat.weight]
            self._groups.append(flat)

    def let_stem_learn(self, learns: bool) -> None:
        """Let the pretrained stem learn, or not."""
        for group in self._groups:
            if group.is_stem:
                group.weight.grad = group.grad if learns else None
                for parameter in group.members:
                    parameter.requires_grad_(learns)

    def zero_grad(self) -> None:
        """Set all gradients to zero, in place."""
        torch._foreach_zero_([group.grad for group in self._groups])

    @torch.no_grad()
    def step(self, rate: float) -> Tensor:
        """Clip the gradients and do one step; the norm of the gradients, on the device.

        Gradients of which one is infinite or not a number count as zero.
        """
        set_rate(self.optimizer, rate)
        grads = [g.weight.grad for g in self._groups if g.weight.grad is not None]
        norm: Tensor = torch.linalg.vector_norm(
            torch.stack([torch.linalg.vector_norm(grad) for grad in grads])
        )
        factor = (self.max_norm / (norm + 1e-6)).clamp(max=1.0)
        for grad in grads:
            grad.mul_(factor).masked_fill_(~norm.isfinite(), 0.0)
        self.optimizer.step()
        return norm

    @torch.no_grad()
    def average(self, decay: float, step: int) -> None:
        """Move the average towards the weights, see `optimizer.average_into`."""
        decay = min(decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(
            [group.average for group in self._groups],
            [group.weight.data for group in self._groups],
            1 - decay,
        )


class _Group:
    """Flat tensors, and the parameters and gradients that are views of them."""

    def __init__(
        self, members: list[nn.Parameter], followers: list[nn.Parameter | None], *, is_stem: bool
    ) -> None:
        self.members, self.is_stem = members, is_stem
        starts, total = [], 0
        for parameter in members:
            starts.append(total)
            total += -(-parameter.numel() // _ALIGNMENT) * _ALIGNMENT
        weight = members[0].new_zeros(total)
        self.weight, self.average = nn.Parameter(weight), weight.clone()
        self.grad = weight.clone()
        self.weight.grad = self.grad
        for start, parameter, follower in zip(starts, members, followers, strict=True):
            part = slice(start, start + parameter.numel())
            for model, flat in ((parameter, self.weight.data), (follower, self.average)):
                if model is not None:
                    flat[part].copy_(model.data.reshape(-1))
                    model.data = flat[part].view(model.shape)
            parameter.grad = self.grad[part].view(parameter.shape)
