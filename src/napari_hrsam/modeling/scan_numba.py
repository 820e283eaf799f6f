"""Cycle scan on the CPU with numba: float32, with a gradient of its own.

The kernels run on threads of our own, one task for a sample and a block of channels: numba's own
threads abort the process when two Python threads enter them at once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from napari_hrsam.modeling.scan_numba_kernels import Floats, backward, forward

# Channels of a task at most: longer vectors gain nothing and leave the first-level cache.
_WIDEST = 192
_VECTOR = 16


@lru_cache(maxsize=2)
def _pool(num_threads: int, process: int) -> ThreadPoolExecutor:
    """Threads of one process (a forked process cannot use those of its parent)."""
    assert process == os.getpid()
    return ThreadPoolExecutor(num_threads, thread_name_prefix="napari-hrsam-scan")


def _run(kernel: Callable[..., None], tasks: Iterator[tuple[Floats, ...]]) -> None:
    """Call the kernel for every task, on as many threads as torch would use."""
    calls, num_threads = list(tasks), torch.get_num_threads()
    if num_threads == 1 or len(calls) == 1:
        for arguments in calls:
            kernel(*arguments)
        return
    pool = _pool(num_threads, os.getpid())
    for done in [pool.submit(kernel, *arguments) for arguments in calls]:
        done.result()


def _blocks(batch: int, channels: int) -> list[slice]:
    """Blocks of channels: as wide as possible, but enough tasks for all threads."""
    wanted = max(-(-torch.get_num_threads() // batch), -(-channels // _WIDEST))
    width = max(_VECTOR, -(-channels // wanted // _VECTOR) * _VECTOR)
    return [slice(c, min(c + width, channels)) for c in range(0, channels, width)]


def _array(x: Tensor) -> Floats:
    array: Floats = x.detach().contiguous().numpy()
    return array


class _CycleScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        u, delta, A, B, C, D, gamma = _kernel_layout(inputs)
        y = np.empty_like(u)
        blocks = _blocks(u.shape[0], u.shape[2])
        _run(
            forward,
            (
                (u[i, :, s], delta[i, :, s], A[:, s], B[i], C[i], D[s], gamma[:, s], y[i, :, s])
                for i in range(u.shape[0])
                for s in blocks
            ),
        )
        return torch.from_numpy(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, D, gamma = _kernel_layout(ctx.saved_tensors)
        dy = _array(d_outputs[0])
        blocks = _blocks(u.shape[0], u.shape[2])
        batch, num_blocks = u.shape[0], len(blocks)
        du, d_delta = np.empty_like(u), np.empty_like(delta)
        # Samples add up in A, D and gamma, blocks of channels in B and C: every task writes its
        # own share, so that the sum does not depend on which thread is faster.
        dA, dD, d_gamma = (np.zeros((batch, *x.shape), np.float32) for x in (A, D, gamma))
        dB, dC = (np.zeros((num_blocks, *x.shape), np.float32) for x in (B, C))
        _run(
            backward,
            (
                (
                    *(u[i, :, s], delta[i, :, s], A[:, s], B[i], C[i], D[s], gamma[:, s]),
                    *(dy[i, :, s], du[i, :, s], d_delta[i, :, s], dA[i, :, s], dB[k, i], dC[k, i]),
                    *(dD[i, s], d_gamma[i, :, s]),
                )
                for i in range(batch)
                for k, s in enumerate(blocks)
            ),
        )
        parts = (du, d_delta, dA.sum(0).T, dB.sum(0), dC.sum(0), dD.sum(0), d_gamma.sum(0).T)
        return tuple(torch.from_numpy(np.ascontiguousarray(part)) for part in parts)


def _kernel_layout(inputs: tuple[Tensor, ...]) -> list[Floats]:
    """u, delta, A^T, B, C, D, gamma^T as contiguous arrays."""
    return [_array(x.t() if i in (2, 6) else x) for i, x in enumerate(inputs)]


def cycle_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor
) -> Tensor:
    """Compute `selective_scan.cycle_scan` on float32 CPU tensors; differentiable once."""
    y: Tensor = _CycleScan.apply(u, delta, A, B, C, D, gamma)  # type: ignore[no-untyped-call]
    return y
