"""Attention with additive position terms, part by part: for SAM's ViT and for TinyViT.

Logits and bias of a whole map hold N x N numbers per head: 200 million for SAM at 1024 px with 12
heads, 50 billion at 4096 px. Both are made for one part of the queries at a time instead; every
part sees all its keys, so nothing is approximated.

Shape letters: B maps or windows, H x W their cells, N = H W, d head dim.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.attention import ATTENTION_BACKENDS, AttentionBackend

# Logits of one part: 32 MB in float32 on a CPU, small beside the maps, large enough to keep cores
# busy.
CPU_PART_LOGITS = 2**23
GPU_PART_LOGITS = 2**26
# Up to here gradients keep the softmax of all parts; above, the parts are computed again.
KEPT_LOGITS = 2**27


@dataclass(frozen=True, kw_only=True, slots=True)
class QueryPart:
    """Queries that are attended at once: some whole maps, or some cells of one map.

    Attributes
    ----------
    batch, rows, columns : slice
        Of a query (B, heads, H, W, d).
    """

    batch: slice
    rows: slice
    columns: slice


Bias = Callable[[Tensor, QueryPart], Tensor]
"""From the queries (b, heads, h, w, d) of a part: float that broadcasts to (b, heads, h w, N)."""


def query_parts(shape: tuple[int, int, int, int], limit: int) -> Iterator[QueryPart]:
    """Cut queries into parts with at most ``limit`` logits, but one query at least.

    Parameters
    ----------
    shape : tuple of int
        (B, heads, H, W); every query has H W keys in each head.
    limit : int
        Logits of a part.
    """
    batch, heads, height, width = shape
    per_query = heads * height * width
    # The largest step whose part fits, tried from whole maps down to cells of one row.
    maps = min(batch, max(1, limit // (per_query * height * width)))
    rows = height if maps > 1 else _even_step(height, limit // (per_query * width))
    columns = width if rows > 1 else _even_step(width, limit // per_query)
    for b in range(0, batch, maps):
        for y in range(0, height, rows):
            for x in range(0, width, columns):
                yield QueryPart(
                    batch=slice(b, min(b + maps, batch)),
                    rows=slice(y, min(y + rows, height)),
                    columns=slice(x, min(x + columns, width)),
                )


def _even_step(length: int, longest: int) -> int:
    """Length of equal steps through ``length``, none longer than ``longest`` (or 1)."""
    steps = -(-length // max(1, min(longest, length)))
    return -(-length // steps)


def biased_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    bias: Bias,
    *,
    scale: float,
    backend: AttentionBackend = "auto",
) -> Tensor:
    """Softmax attention ``softmax(scale * q k^T + bias) v`` over all cells of each map.

    Parameters
    ----------
    query : (B, heads, H, W, d) float
    key : (B, heads, H * W, d) float
    value : (B, heads, H * W, e) float
    bias : callable
        Additive term of a part of the queries; it gets the unscaled queries.
    scale : float
        Factor of the products, d ** -0.5 for plain attention.
    backend : {"auto", "xformers", "triton", "sdpa", "reference"}
        "reference" makes all logits at once. "sdpa" calls
        ``scaled_dot_product_attention`` part by part; "xformers" and "triton" are the same here,
        since their kernels would need the bias written out as well. "auto" is "sdpa" too, except
        with gradients on a CPU, where plain products take about two thirds of its time: the fused
        kernel does not run with a bias that needs gradients.

    Returns
    -------
    (B, heads, H, W, e) float

    Raises
    ------
    ConfigError
        If ``backend`` is none of these.
    """
    if backend not in ATTENTION_BACKENDS:
        raise ConfigError(
            f"attention backend must be one of {', '.join(ATTENTION_BACKENDS)}, got {backend!r}"
        )
    needs_grad = torch.is_grad_enabled() and query.requires_grad
    plain = backend == "reference" or (backend == "auto" and needs_grad and not query.is_cuda)

    def attend(q: Tensor, k: Tensor, v: Tensor, part: QueryPart) -> Tensor:
        added, rows = bias(q, part), q.flatten(2, 3)
        if plain:
            weights = torch.softmax((rows * scale) @ k.transpose(-1, -2) + added, dim=-1)
            out = weights.to(v.dtype) @ v
        else:
            out = F.scaled_dot_product_attention(
                rows, k, v, attn_mask=added.to(rows.dtype), scale=scale
            )
        grid: Tensor = out.unflatten(2, q.shape[2:4])
        return grid

    batch, heads, height, width, _ = query.shape
    logits = batch * heads * (height * width) ** 2
    limit = GPU_PART_LOGITS if query.is_cuda else CPU_PART_LOGITS
    if backend == "reference":
        limit = logits
    recompute = needs_grad and logits > KEPT_LOGITS
    # Without gradients the parts go straight to their places: small results that are kept between
    # large ones that are not leave holes in the heap. With gradients autograd
    # would copy the whole for every part, so there they are joined at the end.
    whole = None if needs_grad else torch.empty_like(query)
    if whole is not None and value.shape[-1] != query.shape[-1]:
        whole = query.new_empty((*query.shape[:-1], value.shape[-1]))
    kept: list[Tensor] = []
    for part in query_parts((batch, heads, height, width), limit):
        area = (part.batch, slice(None), part.rows, part.columns)
        arguments = (query[area], key[part.batch], value[part.batch], part)
        if whole is not None:
            whole[area] = attend(*arguments)
        elif recompute:
            kept.append(checkpoint(attend, *arguments, use_reentrant=False))
        else:
            kept.append(attend(*arguments))
    return _joined(kept, (batch, height, width)) if whole is None else whole


def _joined(parts: list[Tensor], size: tuple[int, int, int]) -> Tensor:
    """Put the outputs of `query_parts`, columns running fastest, together again."""
    for axis, full in ((3, size[2]), (2, size[1]), (0, size[0])):
        joined, run = [], []
        for part in parts:
            run.append(part)
            if sum(p.shape[axis] for p in run) == full:
                joined.append(torch.cat(run, dim=axis) if len(run) > 1 else run[0])
                run = []
        parts = joined
    (joined_whole,) = parts
    return joined_whole
