"""Windowed attention: its definition, every backend, shifts, padding and index lists."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rotation import rotated_by_definition

from napari_hrsam.errors import ConfigError, MissingExtraError
from napari_hrsam.modeling.attention import (
    leading_padding,
    segments,
    window_attention,
    window_indices,
)
from napari_hrsam.modeling.layers import rotary_frequencies

# Largest difference from the definition in float64, of values around one.
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-6, torch.bfloat16: 3e-2}
BACKENDS = ("sdpa", "reference", "xformers", "auto")


def by_definition(qkv, pad_kv, window: int, padding: int):
    """Attend token by token, with the padding token in the keys and values of its cells."""
    batch, height, width, _, heads, dim = qkv.shape
    out = torch.zeros(batch, height, width, heads, dim, dtype=qkv.dtype)
    for b in range(batch):
        for i in range(height):
            for j in range(width):
                top = (i + padding) // window * window
                left = (j + padding) // window * window
                for h in range(heads):
                    q = rotated_by_definition(qkv[b, i, j, 0, h], i + padding, j + padding)
                    logits, values = [], []
                    for y in range(top, top + window):
                        for x in range(left, left + window):
                            k, v = pad_kv[:, h]
                            if padding <= y < padding + height and padding <= x < padding + width:
                                k, v = qkv[b, y - padding, x - padding, 1:, h]
                            logits.append(q @ rotated_by_definition(k, y, x) / dim**0.5)
                            values.append(v)
                    weights = torch.softmax(torch.stack(logits), 0)
                    out[b, i, j, h] = weights @ torch.stack(values)
    return out


def case(batch=1, height=5, width=7, heads=2, dim=8, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    qkv = torch.randn(batch, height, width, 3, heads, dim, generator=g, dtype=torch.float64)
    pad_kv = torch.randn(2, heads, dim, generator=g, dtype=torch.float64)
    return qkv.to(dtype), pad_kv.to(dtype), rotary_frequencies(dim).to(torch.float64)


class BlockDiagonalMask(SimpleNamespace):
    @classmethod
    def from_seqlens(cls, q_seqlen, kv_seqlen):
        return cls(q=q_seqlen, kv=kv_seqlen)


def memory_efficient_attention(q, k, v, attn_bias):
    """Attend (1, L, heads, d) block by block, as xformers does."""
    assert q.shape[1] == sum(attn_bias.q)
    assert k.shape[1] == v.shape[1] == sum(attn_bias.kv)
    assert q.dtype == k.dtype == v.dtype
    blocks = zip(
        q[0].split(attn_bias.q), k[0].split(attn_bias.kv), v[0].split(attn_bias.kv), strict=True
    )
    out = []
    for query, key, value in blocks:
        logits = torch.einsum("qhd,khd->hqk", query, key) * query.shape[-1] ** -0.5
        out.append(torch.einsum("hqk,khd->qhd", logits.softmax(-1), value))
    return torch.cat(out)[None]


@pytest.fixture(autouse=True)
def xformers_double(monkeypatch):
    for name in ("xformers", "xformers.ops", "xformers.ops.fmha"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    fmha = sys.modules["xformers.ops.fmha"]
    fmha.memory_efficient_attention = memory_efficient_attention
    fmha.attn_bias = SimpleNamespace(BlockDiagonalMask=BlockDiagonalMask)


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=12, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    window=st.integers(1, 4),
    shifted=st.booleans(),
    batch=st.integers(1, 2),
    seed=st.integers(0, 1000),
)
def test_backends_follow_the_definition(
    backend, height, width, window, shifted, batch, seed
) -> None:
    padding = leading_padding((height, width), window, window // 2 if shifted else 0, True)
    qkv, pad_kv, freqs = case(batch, height, width, 1, 4, seed)
    ours = window_attention(qkv, pad_kv, freqs, window=window, padding=padding, backend=backend)
    expected = by_definition(qkv, pad_kv, window, padding)
    torch.testing.assert_close(ours, expected, rtol=0, atol=TOLERANCES[torch.float64])


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("padding", [0, 2])
def test_backends_agree_in_every_dtype(backend, dtype, padding) -> None:
    qkv, pad_kv, freqs = case(2, 9, 6, dtype=dtype)
    ours = window_attention(qkv, pad_kv, freqs, window=4, padding=padding, backend=backend)
    expected = window_attention(
        *(x.double() for x in (qkv, pad_kv, freqs)), window=4, padding=padding, backend="reference"
    )
    assert ours.dtype == dtype
    assert (ours.double() - expected).abs().max() <= TOLERANCES[dtype]


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_do_not_meet(backend) -> None:
    qkv, pad_kv, freqs = case(3)
    whole = window_attention(qkv, pad_kv, freqs, window=4, padding=2, backend=backend)
    alone = window_attention(qkv[1:2], pad_kv, freqs, window=4, padding=2, backend=backend)
    torch.testing.assert_close(whole[1:2], alone, rtol=0, atol=1e-12)


def test_shift_is_padding_and_not_rolling() -> None:
    qkv, pad_kv, freqs = case(1, 8, 8)
    out = window_attention(qkv, pad_kv, freqs, window=4, padding=2)
    qkv[:, 7, 7] += 5
    moved = (window_attention(qkv, pad_kv, freqs, window=4, padding=2) - out).abs().amax((0, 3, 4))
    # Only the last window changes: rolling would bring the far corner to the first one.
    changed = torch.zeros(8, 8, dtype=torch.bool)
    changed[6:, 6:] = True
    assert torch.equal(moved > 0, changed)


@pytest.mark.parametrize("backend", ["sdpa", "reference"])
def test_padding_token_is_a_key_and_value_of_border_windows_only(backend) -> None:
    qkv, pad_kv, freqs = case(1, 12, 12)
    out = window_attention(qkv, pad_kv, freqs, window=4, padding=2, backend=backend)
    other = window_attention(qkv, pad_kv + 1, freqs, window=4, padding=2, backend=backend)
    changed = (out - other).abs().amax((0, 3, 4)) > 1e-9
    inner = torch.zeros(12, 12, dtype=torch.bool)
    inner[2:10, 2:10] = True
    assert torch.equal(changed, ~inner)


def test_gradients_of_sdpa_and_reference_are_equal() -> None:
    inputs = [x.requires_grad_() for x in case(2, 6, 9)[:2]]
    freqs, weights = case()[2], torch.randn(2, 6, 9, 2, 8, dtype=torch.float64)
    found = []
    for backend in ("sdpa", "reference", "xformers"):
        out = window_attention(*inputs, freqs, window=4, padding=2, backend=backend)
        found.append(torch.autograd.grad((out * weights).sum(), inputs))
    for other in found[1:]:
        for a, b in zip(found[0], other, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_gradcheck() -> None:
    qkv, pad_kv, freqs = case(1, 3, 4, 1, 4)
    assert torch.autograd.gradcheck(
        lambda a, b: window_attention(a, b, freqs, window=2, padding=1, backend="sdpa"),
        (qkv.requires_grad_(), pad_kv.requires_grad_()),
    )


def test_leading_padding_rules() -> None:
    assert leading_padding((64, 64), 16, 0, True) == 0
    assert leading_padding((64, 64), 16, 8, True) == 8
    assert leading_padding((5, 5), 5, 2, True) == 3
    assert leading_padding((16, 10), 16, 8, True) == 8
    assert leading_padding((16, 10), 16, 8, False) == 0
    assert leading_padding((16, 17), 16, 8, False) == 8


def test_number_of_windows_at_1024_and_2048_pixels() -> None:
    counts = [
        len(window_indices((n, n), 16, padding).query_lengths)
        for n in (64, 128)
        for padding in (0, 8)
    ]
    assert counts == [16, 25, 64, 81]


@given(size=st.integers(1, 200), window=st.integers(1, 20), data=st.data())
def test_segments_partition_the_cells_in_three_runs_at_most(size, window, data) -> None:
    padding = data.draw(st.integers(0, window - 1))
    runs = segments(size, window, padding)
    assert len(runs) <= 3
    assert all(1 <= run.size <= window for run in runs)
    assert sum(run.num_windows for run in runs) == -(-(size + padding) // window)
    cells = [c for run in runs for c in range(run.start, run.start + run.num_windows * run.size)]
    assert cells == list(range(size))


@given(
    height=st.integers(1, 20), width=st.integers(1, 20), window=st.integers(1, 6), data=st.data()
)
def test_index_lists_hold_every_token_once_and_the_padding_elsewhere(
    height, width, window, data
) -> None:
    padding = data.draw(st.integers(0, window - 1))
    index = window_indices((height, width), window, padding)
    tokens = np.arange(height * width)
    np.testing.assert_array_equal(np.sort(index.query), tokens)
    np.testing.assert_array_equal(index.query[index.inverse], tokens)
    real = index.key < len(tokens)
    np.testing.assert_array_equal(index.key[real], index.query)
    assert set(index.key[~real]) <= {len(tokens)}
    assert index.query_lengths.sum() == len(tokens)
    assert index.query_lengths.min() >= 1
    assert set(index.key_lengths) == {window**2}
    rows, cols = np.divmod(index.cell[real], index.padded_hw[1])
    np.testing.assert_array_equal((rows - padding) * width + cols - padding, index.query)
    with pytest.raises(ValueError, match="read-only"):
        index.key[0] = 0


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of auto, xformers, triton, sdpa, reference, got"):
        window_attention(*case(), window=4, padding=0, backend="flash")


def test_missing_xformers_is_named(monkeypatch) -> None:
    for name in ("xformers", "xformers.ops", "xformers.ops.fmha"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"xformers.*napari-hrsam\[cuda\]"):
        window_attention(*case(), window=4, padding=0, backend="xformers")
