"""The compiled scans against torch: numba for real, mamba-ssm with a double of its kernel."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from types import ModuleType

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_inputs import NAMES, gradients, scan_inputs

from napari_hrsam.modeling import scan_mamba, scan_numba, scan_numba_kernels
from napari_hrsam.modeling.selective_scan import (
    cycle_scan,
    cycle_scan_reference,
    cycle_scan_torch,
)

# Largest difference, as a share of the largest value, from the float64 loop.
FLOAT32_TOLERANCE = 2e-6


def assert_close_to_largest(ours, theirs, name="", tolerance=FLOAT32_TOLERANCE) -> None:
    ours, theirs = ours.detach(), theirs.detach()
    scale = float(theirs.abs().max()) + 1e-6
    error = float((ours.double() - theirs).abs().max())
    assert error <= tolerance * scale, f"{name}: {error / scale:.2g} of the largest value"


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 80),
    batch=st.integers(1, 3),
    channels=st.integers(1, 40),
    states=st.integers(1, 5),
    cycles=st.integers(1, 4),
    step=st.sampled_from([1e-5, 1e-2, 1.0, 20.0]),
    seed=st.integers(0, 1000),
)
def test_numba_equals_the_loop(length, batch, channels, states, cycles, step, seed) -> None:
    inputs = scan_inputs(batch, length, channels, states, cycles, step=step, seed=seed)
    single = [x.float() for x in inputs]
    expected = cycle_scan_torch(*(x.double() for x in single))
    assert_close_to_largest(cycle_scan(*single, backend="numba"), expected)


@pytest.mark.parametrize("step", [1e-4, 0.05, 20.0])
@pytest.mark.parametrize("cycles", [1, 3])
def test_numba_gradients_equal_those_of_the_loop(step, cycles) -> None:
    inputs = scan_inputs(2, 90, 37, 4, cycles, step=step, dtype=torch.float32, grad=True)
    double = [x.detach().double().requires_grad_() for x in inputs]
    ours = gradients(cycle_scan(*inputs, backend="numba"), inputs)
    theirs = gradients(cycle_scan_torch(*double), double)
    for name, a, b in zip(NAMES, ours, theirs, strict=True):
        assert_close_to_largest(a, b, name)


def test_numba_takes_views_and_gives_gradients_of_their_shape() -> None:
    base = scan_inputs(dtype=torch.float32)
    views = [x.transpose(0, -1).contiguous().transpose(0, -1).requires_grad_() for x in base]
    y = cycle_scan(*views, backend="numba")
    torch.testing.assert_close(y.detach(), cycle_scan(*base, backend="numba"), rtol=0, atol=0)
    for view, gradient in zip(views, gradients(y, views), strict=True):
        assert gradient.shape == view.shape


def test_numba_result_does_not_depend_on_the_number_of_threads(monkeypatch) -> None:
    inputs = scan_inputs(2, 50, 70, 4, dtype=torch.float32)
    results = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        results.append(cycle_scan(*inputs, backend="numba"))
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_numba_kernel_runs_in_two_threads_at_once() -> None:
    cases = [scan_inputs(2, 400, 64, 8, seed=s, dtype=torch.float32, grad=True) for s in range(6)]

    def both(inputs):
        y = cycle_scan(*inputs, backend="numba")
        return y.detach(), gradients(y, inputs)

    expected = [both(inputs) for inputs in cases]
    with ThreadPoolExecutor(2) as pool:
        found = list(pool.map(both, cases))
    for (y, grads), (y0, grads0) in zip(found, expected, strict=True):
        assert torch.equal(y, y0)
        assert all(torch.equal(a, b) for a, b in zip(grads, grads0, strict=True))


def test_numba_keeps_nan_and_is_finite_for_huge_steps() -> None:
    inputs = scan_inputs(length=300, states=8, step=50.0, dtype=torch.float32, grad=True)
    y = cycle_scan(*inputs, backend="numba")
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(g).all() for g in gradients(y, inputs))
    bad = scan_inputs(dtype=torch.float32)
    bad[0][0, 3, 2] = torch.nan
    y = cycle_scan(*bad, backend="numba")
    assert torch.isnan(y[0, 3:, 2]).all()
    assert torch.isfinite(y[1]).all()


def test_polynomial_exponential_is_exact_to_float32() -> None:
    from numba import njit

    @njit
    def exponentials(x):
        out = np.empty_like(x)
        for i in range(x.size):
            out[i] = scan_numba_kernels._exp(x[i])
        return out

    x = -np.geomspace(1e-8, 86, 20_000).astype(np.float32)
    expected = np.exp(x.astype(np.float64))
    assert np.abs(exponentials(x) / expected - 1).max() < 2e-7
    far = np.array([0, -88.1, -1e4, -np.inf], np.float32)
    np.testing.assert_array_equal(exponentials(far), np.array([1, 0, 0, 0], np.float32))


def test_tasks_are_as_wide_as_the_threads_allow(monkeypatch) -> None:
    def widths(batch: int, channels: int, threads: int) -> list[int]:
        monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
        return [s.stop - s.start for s in scan_numba._blocks(batch, channels)]

    assert widths(8, 192, 2) == [192]
    assert widths(1, 192, 2) == [96, 96]
    assert widths(1, 50, 2) == [32, 18]
    assert widths(4, 768, 2) == [192] * 4
    assert widths(1, 8, 16) == [8]


def kernel_double(
    u,
    delta,
    A,
    B,
    C,
    D=None,
    z=None,
    delta_bias=None,
    delta_softplus=False,
    return_last_state=False,
):
    """mamba-ssm's selective scan: no initial state, no gradient through the last state."""
    assert D is None
    assert z is None
    assert delta_bias is None
    assert not delta_softplus
    state = u.new_zeros(u.shape[0], u.shape[1], A.shape[1])
    outputs = []
    for t in range(u.shape[2]):
        drive = (delta[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        state = torch.exp(delta[:, :, t, None] * A) * state + drive
        outputs.append((state * C[:, None, :, t]).sum(-1))
    out = torch.stack(outputs, dim=2)
    return (out, state.detach()) if return_last_state else out


@pytest.fixture
def mamba_double(monkeypatch):
    for name in ("mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    interface = sys.modules["mamba_ssm.ops.selective_scan_interface"]
    interface.selective_scan_fn = kernel_double


@pytest.mark.usefixtures("mamba_double")
@pytest.mark.parametrize("step", [1e-4, 0.1, 5.0])
@pytest.mark.parametrize("cycles", [1, 2, 3])
def test_mamba_path_is_exact_with_gradients(cycles, step) -> None:
    inputs = scan_inputs(2, 9, 3, 4, cycles, step=step, grad=True)
    ours, theirs = scan_mamba.cycle_scan(*inputs), cycle_scan_reference(*inputs)
    assert_close_to_largest(ours, theirs, "output", 1e-12)
    pairs = zip(NAMES, gradients(ours, inputs), gradients(theirs, inputs), strict=True)
    for name, a, b in pairs:
        assert_close_to_largest(a, b, name, 1e-9)


@pytest.mark.usefixtures("mamba_double")
def test_mamba_path_writes_the_state_of_fast_decays() -> None:
    inputs = scan_inputs(1, 9, 3, 4, step=1e-4)
    inputs[2] = -torch.logspace(-2, 5, 12, dtype=torch.float64).reshape(3, 4)
    expected = cycle_scan_reference(*inputs)
    assert_close_to_largest(scan_mamba.cycle_scan(*inputs), expected, tolerance=1e-10)
    single = [x.float() for x in inputs]
    assert_close_to_largest(scan_mamba.cycle_scan(*single), expected, tolerance=1e-5)


def test_mamba_is_not_ready_without_a_gpu() -> None:
    scan_mamba.mamba_ready.cache_clear()
    assert not scan_mamba.mamba_ready() or torch.cuda.is_available()


def test_numba_refuses_a_gradient_of_its_gradient() -> None:
    inputs = scan_inputs(dtype=torch.float32, grad=True)
    y = cycle_scan(*inputs, backend="numba")
    (gradient,) = torch.autograd.grad(y.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
