"""Random inputs of the cycle scan."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NAMES = ("u", "delta", "A", "B", "C", "D", "gamma")


def scan_inputs(
    batch: int = 2,
    length: int = 19,
    channels: int = 5,
    states: int = 4,
    cycles: int = 3,
    *,
    dtype: torch.dtype = torch.float64,
    step: float = 0.1,
    seed: int = 0,
    grad: bool = False,
) -> list[Tensor]:
    """u, delta, A, B, C, D, gamma with step sizes around `step`."""
    g = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    tensors = [
        normal(batch, length, channels),
        step * F.softplus(normal(batch, length, channels)),
        -torch.exp(normal(channels, states)),
        normal(batch, length, states),
        normal(batch, length, states),
        normal(channels),
        normal(channels, cycles),
    ]
    return [x.to(dtype).requires_grad_(grad) for x in tensors]


def gradients(out: Tensor, inputs: list[Tensor], seed: int = 1) -> tuple[Tensor, ...]:
    """Gradients of a fixed random projection of `out`."""
    g = torch.Generator().manual_seed(seed)
    weights = torch.randn(out.shape, generator=g, dtype=torch.float64).to(out.dtype)
    return torch.autograd.grad((out * weights).sum(), inputs)
