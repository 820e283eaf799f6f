"""Time the cycle scan: one pass in closed form against three passes over the sequence.

Both run on the same backend, in turns; the three passes are the same kernel on the sequence
repeated three times, weighted and summed.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from measure import RESULTS, interleaved, print_table, save
from torch import Tensor

from napari_hrsam.modeling.configs import ScanBackend
from napari_hrsam.modeling.selective_scan import cycle_scan

SIZES = {
    "tiny-512": (1, 1024, 192, 8),
    "tiny-1024": (1, 4096, 192, 8),
    "tiny-2048": (1, 16384, 192, 8),
    "b-1024": (1, 4096, 768, 32),
}
SMOKE_SIZES = {"smoke": (1, 64, 16, 4)}
CYCLES = 3
# Three passes with autograd keep several arrays of B R L C N: gigabytes above this many updates.
MAX_TRAINED_UPDATES = 10_000_000


def inputs(batch: int, length: int, channels: int, states: int) -> list[Tensor]:
    """Random u, delta, A, B, C, D, gamma; steps as at the start of training."""
    g = torch.Generator().manual_seed(0)
    step = torch.exp(torch.empty(channels).uniform_(-6.9, -2.3, generator=g))
    bias = step + torch.log(-torch.expm1(-step))
    return [
        torch.randn(batch, length, channels, generator=g),
        F.softplus(0.5 * torch.randn(batch, length, channels, generator=g) + bias),
        -torch.arange(1.0, states + 1).repeat(channels, 1),
        torch.randn(batch, length, states, generator=g),
        torch.randn(batch, length, states, generator=g),
        torch.ones(channels),
        torch.rand(channels, CYCLES, generator=g) + 0.5,
    ]


def one_pass(tensors: list[Tensor], backend: ScanBackend) -> Tensor:
    """Scan once, in closed form."""
    u, delta, A, B, C, D, gamma = tensors
    return cycle_scan(u, delta, A, B, C, D, gamma, backend=backend)


def three_passes(tensors: list[Tensor], backend: ScanBackend) -> Tensor:
    """Scan the sequence repeated R times with the state carried over; weigh and sum the passes."""
    u, delta, A, B, C, D, gamma = tensors
    u, delta, B, C = (x.repeat(1, CYCLES, 1) for x in (u, delta, B, C))
    passes = cycle_scan(u, delta, A, B, C, D, torch.ones_like(gamma[:, :1]), backend=backend)
    copies = passes.chunk(CYCLES, dim=1)
    return sum((gamma[:, r] * copies[r] for r in range(1, CYCLES)), gamma[:, 0] * copies[0])


def with_gradient(function: Callable[[list[Tensor]], Tensor], tensors: list[Tensor]) -> None:
    """Forward and backward."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    function(leaves).sum().backward()


def measure_size(size: str, shape: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """Compare both forms on every backend, forward and with gradient."""
    tensors, rows = inputs(*shape), []
    backends: tuple[ScanBackend, ...] = ("torch", "numba")
    forms: dict[str, Callable[[list[Tensor]], Tensor]] = {}
    for backend in backends:
        forms[f"{backend} one pass"] = partial(one_pass, backend=backend)
        forms[f"{backend} three passes"] = partial(three_passes, backend=backend)
    with torch.no_grad():
        expected = forms["torch three passes"]([x.double() for x in tensors])
        times = interleaved(
            {name: partial(form, tensors) for name, form in forms.items()}, rounds=rounds
        )
        errors = {
            name: float((form(tensors) - expected).abs().max() / expected.abs().max())
            for name, form in forms.items()
        }
    measured = {"forward": times}
    if math.prod(shape) <= MAX_TRAINED_UPDATES:
        measured["forward + backward"] = interleaved(
            {name: partial(with_gradient, form, tensors) for name, form in forms.items()},
            rounds=rounds,
        )
    for mode, by_form in measured.items():
        for backend in backends:
            one, three = (by_form[f"{backend} {n}"] for n in ("one pass", "three passes"))
            rows.append(
                {
                    "size": size,
                    "shape": shape,
                    "mode": mode,
                    "backend": backend,
                    "one_pass_ms": 1e3 * one["median_s"],
                    "three_passes_ms": 1e3 * three["median_s"],
                    "ratio": three["median_s"] / one["median_s"],
                    "cpu_ratio": three["least_cpu_s"] / max(one["least_cpu_s"], 1e-9),
                    "error": errors[f"{backend} one pass"],
                    "one_pass": one,
                    "three_passes": three,
                }
            )
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch decides")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "scan.json")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    for size, shape in (SMOKE_SIZES if arguments.smoke else SIZES).items():
        rows += measure_size(size, shape, arguments.rounds)
    columns = ["size", "mode", "backend", "one_pass_ms", "three_passes_ms", "ratio", "cpu_ratio"]
    print_table(rows, [*columns, "error"])
    save(arguments.out, rows)


if __name__ == "__main__":
    main()
