"""The Triton attention: its kernel in Triton's interpreter, through its compiler, and on a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from triton_process import ask

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling import attention
from napari_hrsam.modeling.attention import (
    _auto_windows,
    _sdpa_windows,
    _triton_windows,
    _xformers_windows,
    triton_attention_ready,
    window_attention,
)
from napari_hrsam.modeling.layers import rotary_frequencies

HAS_TRITON = find_spec("triton") is not None
CASE_NAMES = ("shifted", "small windows", "large windows", "not shifted", "odd windows")


if HAS_TRITON:

    @pytest.fixture(scope="module")
    def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("triton")
        answer: dict[str, Any] = ask(folder, "check-attention", interpret=True)
        return answer

    @pytest.mark.parametrize("case", CASE_NAMES)
    def test_the_kernel_equals_the_plain_form(interpreted, case) -> None:
        assert interpreted[f"{case} float32"]["triton"] <= 1e-6
        half = interpreted[f"{case} float16"]
        assert half["triton"] <= 1.2 * half["sdpa"]

    @pytest.mark.parametrize("dim", ["32", "64"])
    def test_the_kernel_compiles_for_a_gpu_that_is_not_there(tmp_path, dim) -> None:
        sizes = ask(tmp_path, "compile-attention", dim, interpret=False)
        assert all(size > 1000 for size in sizes.values())
        assert len(sizes) == 2


def test_the_kernel_is_not_ready_without_a_gpu() -> None:
    triton_attention_ready.cache_clear()
    assert not triton_attention_ready() or torch.cuda.is_available()


def test_the_kernel_is_refused_on_a_cpu() -> None:
    qkv, pad_kv = torch.randn(1, 5, 5, 3, 2, 32), torch.randn(2, 2, 32)
    with pytest.raises(ConfigError, match="'triton' runs on cuda, got cpu; use backend 'sdpa'"):
        window_attention(qkv, pad_kv, rotary_frequencies(32), window=4, padding=2, backend="triton")


@pytest.mark.parametrize(
    ("xformers", "triton", "dtype", "grad", "chosen"),
    [
        (True, True, torch.bfloat16, False, _xformers_windows),
        (False, True, torch.bfloat16, False, _triton_windows),
        (False, True, torch.bfloat16, True, _sdpa_windows),
        (False, True, torch.float32, False, _sdpa_windows),
        (False, False, torch.bfloat16, False, _sdpa_windows),
    ],
)
def test_auto_on_cuda_takes_the_kernel_in_16_bits_without_gradients(
    monkeypatch, xformers, triton, dtype, grad, chosen
) -> None:
    monkeypatch.setattr(attention, "xformers_ready", lambda: xformers)
    monkeypatch.setattr(attention, "triton_attention_ready", lambda: triton)
    with torch.set_grad_enabled(grad):
        assert _auto_windows(SimpleNamespace(is_cuda=True, dtype=dtype)) is chosen


@pytest.mark.parametrize(("grad", "dim"), [(True, 32), (False, 24)])
def test_gradients_and_odd_heads_are_left_to_sdpa(monkeypatch, grad, dim) -> None:
    def fails(*_):
        raise AssertionError

    kernel = SimpleNamespace(windows=fails, can_attend=lambda qkv: qkv.shape[-1] == 32)
    monkeypatch.setattr(attention, "require", lambda _module, **_: kernel)
    qkv = torch.randn(1, 5, 5, 3, 2, dim, requires_grad=grad)
    pad_kv, freqs = torch.randn(2, 2, dim), rotary_frequencies(dim)
    out = _triton_windows(qkv, pad_kv, freqs, 4, 2)
    assert torch.equal(out, _sdpa_windows(qkv, pad_kv, freqs, 4, 2))


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "case", [(1, 12, 13, 2, 32, 8, 4), (2, 33, 40, 3, 64, 16, 8), (1, 10, 11, 1, 32, 7, 3)]
)
def test_gpu_equals_the_plain_form(case, dtype) -> None:
    from kernels_on_triton import attention_errors

    found = attention_errors(case, dtype, "cuda")
    assert found["triton"] <= 1.2 * found["sdpa"] + 1e-6


@pytest.mark.gpu
def test_gpu_is_ready() -> None:
    assert triton_attention_ready()
