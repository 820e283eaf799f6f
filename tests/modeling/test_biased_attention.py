"""Attention with a bias, part by part."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling import biased_attention as module
from napari_hrsam.modeling.biased_attention import QueryPart, biased_attention, query_parts
from napari_hrsam.modeling.configs import BASAMConfig
from napari_hrsam.modeling.vit import RelativeAttention

SHAPE = (3, 2, 5, 7)
TOKENS = 35


def tensors(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = torch.Generator().manual_seed(0)
    query = torch.randn(*SHAPE, 4, generator=g, dtype=dtype)
    key, value = torch.randn(2, 3, 2, TOKENS, 4, generator=g, dtype=dtype)
    table = torch.randn(2, 5, 7, TOKENS, generator=g, dtype=dtype)
    return query, key, value, table


def attend(query: Tensor, key: Tensor, value: Tensor, table: Tensor, backend="auto") -> Tensor:
    def bias(q: Tensor, part: QueryPart) -> Tensor:
        # Depends on the query as well, so that a wrong part shows.
        term = table[:, part.rows, part.columns] + q.sum(-1, keepdim=True)[..., :1] ** 2
        return (term * torch.linspace(-1, 1, TOKENS, dtype=term.dtype)).flatten(2, 3)

    return biased_attention(query, key, value, bias, scale=0.7, backend=backend)


def dense(query: Tensor, key: Tensor, value: Tensor, table: Tensor) -> Tensor:
    ramp = torch.linspace(-1, 1, TOKENS, dtype=query.dtype)
    logits = 0.7 * torch.einsum("bnijd,bnkd->bnijk", query, key)
    logits = logits + (table + query.sum(-1, keepdim=True) ** 2) * ramp
    return torch.einsum("bnijk,bnkd->bnijd", logits.softmax(-1), value)


@pytest.mark.parametrize("limit", [1, 100, 70 * 3, 70 * 15, 70 * 35, 70 * 70, 10**6])
@pytest.mark.parametrize("backend", ["auto", "sdpa", "xformers", "reference"])
def test_attention_is_the_dense_formula_however_it_is_cut(monkeypatch, limit, backend) -> None:
    monkeypatch.setattr(module, "CPU_PART_LOGITS", limit)
    given = tensors()
    assert torch.allclose(attend(*given, backend), dense(*given), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kept", [0, 10**9])
@pytest.mark.parametrize("backend", ["auto", "sdpa", "reference"])
def test_gradients_are_those_of_the_dense_formula(monkeypatch, kept, backend) -> None:
    monkeypatch.setattr(module, "CPU_PART_LOGITS", 70 * 4)
    monkeypatch.setattr(module, "KEPT_LOGITS", kept)
    given = [t.requires_grad_() for t in tensors()]
    weight = torch.linspace(-1, 2, 4, dtype=torch.float64)
    ours = torch.autograd.grad((attend(*given, backend) * weight).sum(), given)
    theirs = torch.autograd.grad((dense(*given) * weight).sum(), given)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize("limit", [1, 69, 70, 200, 490, 1000, 2450, 3000, 5000, 10**6])
def test_parts_cover_every_query_once_and_stay_below_the_limit(limit: int) -> None:
    seen = torch.zeros(3, 5, 7, dtype=torch.int64)
    for part in query_parts(SHAPE, limit):
        covered = seen[part.batch, part.rows, part.columns]
        covered += 1
        assert covered.numel() * 2 * TOKENS <= max(limit, 2 * TOKENS)
    assert bool((seen == 1).all())


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation gives."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.untyped_storage().nbytes() // 8)
        return out


@pytest.mark.parametrize("slope", [0.0, 0.5])
@pytest.mark.parametrize("grad", [False, True])
def test_no_tensor_of_all_queries_and_keys_is_made_for_a_large_map(
    monkeypatch, grad, slope
) -> None:
    limit, side = 2 * 20 * 20 * 40, 20
    monkeypatch.setattr(module, "CPU_PART_LOGITS", limit)
    monkeypatch.setattr(module, "KEPT_LOGITS", 0)
    attn = RelativeAttention(16, 2, side, BASAMConfig(distance_slope=slope)).double()
    x = torch.randn(1, side, side, 16, dtype=torch.float64)
    with LargestTensor() as largest, torch.set_grad_enabled(grad):
        out = attn(x)
        if grad:
            out.sum().backward()
    assert 2 * side**2 <= largest.elements <= limit
    assert limit < 2 * side**4 / 9


def test_above_the_limit_gradients_keep_no_softmax(monkeypatch) -> None:
    monkeypatch.setattr(module, "CPU_PART_LOGITS", 70 * 7)
    logits = 3 * 2 * TOKENS**2
    kept = {}
    for limit in (0, 10**9):
        monkeypatch.setattr(module, "KEPT_LOGITS", limit)
        sizes: dict[int, int] = {}

        def pack(tensor: Tensor, sizes: dict[int, int] = sizes) -> Tensor:
            sizes[tensor.data_ptr()] = tensor.numel()
            return tensor

        query, key, value, table = tensors()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = attend(query.requires_grad_(), key, value, table)
        kept[limit] = sum(sizes.values())
        out.sum().backward()
    assert kept[0] < logits < kept[10**9]


def test_attention_refuses_an_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="one of auto, xformers, triton, sdpa, reference, got"):
        attend(*tensors(), "flash")
