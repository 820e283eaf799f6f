"""The Triton scan: its kernels in Triton's interpreter, through its compiler, and on a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from scan_inputs import NAMES, scan_inputs
from triton_process import ask

from napari_hrsam.errors import MissingExtraError
from napari_hrsam.modeling import selective_scan
from napari_hrsam.modeling.selective_scan import (
    _auto_backend,
    cycle_scan,
    cycle_scan_torch,
    triton_ready,
)

# The test extra brings Triton where there are wheels of it; elsewhere these are not collected.
HAS_TRITON = find_spec("triton") is not None
CASE_NAMES = (
    "one block",
    "one token, one cycle",
    "cut chunk, cut block",
    "huge steps",
    "tiny steps",
    "many states",
    "one cycle",
)
# Largest difference, as a share of the largest value, from the float64 loop.
TOLERANCE = 2e-6
# The GPU's exponential is a little less precise than the CPU's.
GPU_TOLERANCE = 1e-5


if HAS_TRITON:

    @pytest.fixture(scope="module")
    def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
        answer: dict[str, Any] = ask(tmp_path_factory.mktemp("triton"), "check", interpret=True)
        return answer

    @pytest.mark.parametrize("case", CASE_NAMES)
    def test_values_and_gradients_equal_those_of_the_loop(interpreted, case) -> None:
        assert set(interpreted[case]) == {"y", *NAMES}
        for name, error in interpreted[case].items():
            assert error <= TOLERANCE, f"{name}: {error:.2g} of the largest value"

    def test_gradients_do_not_depend_on_the_parts_of_the_batch(interpreted) -> None:
        assert interpreted["same in parts"]

    def test_the_check_before_use_accepts_the_kernels(interpreted) -> None:
        assert interpreted["accepted"]

    def test_an_empty_batch_has_gradients_of_zero(interpreted) -> None:
        assert interpreted["empty"] == [0.0] * len(NAMES)

    @pytest.mark.parametrize("states", ["8", "32"])
    def test_kernels_compile_for_a_gpu_that_is_not_there(tmp_path, states) -> None:
        sizes = ask(tmp_path, "compile", states, interpret=False)
        assert len(sizes) == 6
        assert all(size > 1000 for size in sizes.values())


def test_triton_is_not_ready_without_a_gpu() -> None:
    triton_ready.cache_clear()
    assert not triton_ready() or torch.cuda.is_available()


@pytest.fixture
def pretended_gpu(monkeypatch):
    """Pretend that there is a GPU, and take the kernels from what is given."""

    def pretend(scan) -> bool:
        kernels = SimpleNamespace(cycle_scan=scan, ERRORS=(KeyError,))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(selective_scan, "require", lambda _module, **_: kernels)
        plain = selective_scan._agrees_with_torch
        monkeypatch.setattr(
            selective_scan, "_agrees_with_torch", lambda scan, _: plain(scan, torch.device("cpu"))
        )
        triton_ready.cache_clear()
        return triton_ready()

    yield pretend
    triton_ready.cache_clear()


def test_right_kernels_are_used_even_if_first_asked_in_inference_mode(pretended_gpu) -> None:
    with torch.inference_mode():
        assert pretended_gpu(cycle_scan_torch)


def test_kernels_that_disagree_are_left_out(pretended_gpu, caplog) -> None:
    assert not pretended_gpu(lambda *x: cycle_scan_torch(*x) * 1.001)
    assert "disagrees with torch" in caplog.text


def test_kernels_with_wrong_gradients_are_left_out(pretended_gpu) -> None:
    def no_gradient_of_gamma(*x):
        return cycle_scan_torch(*x[:-1], x[-1].detach() + 0 * x[-1])

    assert not pretended_gpu(no_gradient_of_gamma)


@pytest.mark.parametrize("error", [RuntimeError, OSError, KeyError])
def test_kernels_that_do_not_compile_are_left_out(pretended_gpu, caplog, error) -> None:
    def fail(*_):
        raise error("no C compiler")

    assert not pretended_gpu(fail)
    assert "no C compiler" in caplog.text


def test_without_triton_torch_is_used(monkeypatch) -> None:
    def missing(_module, *, extra):
        raise MissingExtraError(extra)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(selective_scan, "require", missing)
    triton_ready.cache_clear()
    assert not triton_ready()
    triton_ready.cache_clear()


@pytest.mark.parametrize(
    ("mamba", "triton", "chosen"),
    [(True, True, "mamba"), (False, True, "triton"), (False, False, "torch")],
)
def test_auto_on_cuda_takes_mamba_then_triton_then_torch(
    monkeypatch, mamba, triton, chosen
) -> None:
    monkeypatch.setattr(selective_scan, "_mamba_ready", lambda: mamba)
    monkeypatch.setattr(selective_scan, "triton_ready", lambda: triton)
    device = torch.device("cuda")
    u = SimpleNamespace(is_cuda=True, device=device, dtype=torch.float32, requires_grad=True)
    u.numel = lambda: 10**9
    u.shape = (1, 1000, 1000)
    assert _auto_backend((u, u, SimpleNamespace(**{**vars(u), "shape": (1000, 8)}))) == chosen


@pytest.mark.gpu
@pytest.mark.parametrize(
    "case",
    [
        (2, 7, 5, 4, 3, 0.1),
        (1, 1, 3, 5, 1, 0.1),
        (2, 100, 37, 8, 3, 0.05),
        (1, 300, 20, 16, 3, 20.0),
        (3, 1024, 192, 8, 3, 0.02),
        (1, 1000, 70, 32, 2, 0.05),
    ],
)
def test_gpu_equals_the_loop(case) -> None:
    from kernels_on_triton import relative_errors

    for name, error in relative_errors(case, "cuda").items():
        assert error <= GPU_TOLERANCE, f"{name}: {error:.2g} of the largest value"


@pytest.mark.gpu
def test_gpu_is_ready_and_repeats_itself() -> None:
    assert triton_ready()
    inputs = [x.cuda().requires_grad_() for x in scan_inputs(4, 500, 96, 8, dtype=torch.float32)]
    y = cycle_scan(*inputs, backend="triton")
    again = cycle_scan(*inputs, backend="triton")
    assert torch.equal(y, again)
    weights = torch.ones_like(y)
    first = torch.autograd.grad(y, inputs, weights)
    assert all(
        torch.equal(a, b)
        for a, b in zip(first, torch.autograd.grad(again, inputs, weights), strict=True)
    )
