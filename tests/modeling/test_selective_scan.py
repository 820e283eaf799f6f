"""The cycle scan: its definition, the closed form, and what the door checks."""

from __future__ import annotations

from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_inputs import NAMES, gradients, scan_inputs

from napari_hrsam._optional import require
from napari_hrsam.errors import ConfigError, MissingExtraError, ShapeError
from napari_hrsam.modeling import selective_scan
from napari_hrsam.modeling.selective_scan import (
    cycle_scan,
    cycle_scan_reference,
    cycle_scan_torch,
)


def single_pass(u, delta, A, B, C, D):
    """One pass from zero, channel by channel and state by state."""
    out = torch.zeros_like(u)
    for b in range(u.shape[0]):
        for c in range(u.shape[2]):
            state = torch.zeros(A.shape[1], dtype=u.dtype)
            for t in range(u.shape[1]):
                d = delta[b, t, c]
                state = torch.exp(d * A[c]) * state + d * B[b, t] * u[b, t, c]
                out[b, t, c] = C[b, t] @ state + D[c] * u[b, t, c]
    return out


def repeated(u, delta, A, B, C, D, gamma):
    """The cycle scan, literally: scan R copies head to tail, then weight and add the copies."""
    num = gamma.shape[1]
    u, delta, B, C = (x.repeat(1, num, 1) for x in (u, delta, B, C))
    copies = single_pass(u, delta, A, B, C, D).chunk(num, dim=1)
    return sum(gamma[:, r] * copies[r] for r in range(num))


@pytest.mark.parametrize("cycles", [1, 2, 3, 5])
@pytest.mark.parametrize("scan", [cycle_scan_reference, cycle_scan_torch])
def test_scan_is_the_weighted_sum_of_passes_over_the_repeated_sequence(scan, cycles) -> None:
    inputs = scan_inputs(2, 7, 3, 2, cycles)
    torch.testing.assert_close(scan(*inputs), repeated(*inputs), rtol=1e-12, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    length=st.integers(1, 70),
    batch=st.integers(1, 3),
    states=st.integers(1, 5),
    cycles=st.integers(1, 4),
    step=st.sampled_from([1e-5, 1e-2, 1.0, 20.0]),
    seed=st.integers(0, 1000),
)
def test_one_pass_equals_the_loop_for_any_length(length, batch, states, cycles, step, seed) -> None:
    inputs = scan_inputs(batch, length, 3, states, cycles, step=step, seed=seed)
    expected = cycle_scan_reference(*inputs)
    torch.testing.assert_close(cycle_scan_torch(*inputs), expected, rtol=1e-11, atol=1e-11)


def test_state_is_carried_from_pass_to_pass() -> None:
    inputs = scan_inputs(cycles=3, step=0.01)
    once = [*inputs[:-1], inputs[-1].sum(1, keepdim=True)]
    difference = (cycle_scan_torch(*inputs) - cycle_scan_torch(*once)).abs().max()
    assert difference > 0.01


def test_gamma_weighs_the_skip_of_every_pass() -> None:
    u, delta, A, B, C, D, gamma = scan_inputs()
    y = cycle_scan_torch(u, delta, A, B, torch.zeros_like(C), D, gamma)
    torch.testing.assert_close(y, gamma.sum(1) * D * u)


def test_result_depends_on_the_order_of_the_tokens() -> None:
    u, delta, A, B, C, D, gamma = scan_inputs()
    order = torch.arange(u.shape[1]).flip(0)
    forth = cycle_scan_torch(u, delta, A, B, C, D, gamma)
    back = cycle_scan_torch(u[:, order], delta[:, order], A, B[:, order], C[:, order], D, gamma)
    assert (forth - back[:, order]).abs().max() > 0.1


def test_samples_do_not_meet() -> None:
    inputs = scan_inputs(batch=3)
    whole = cycle_scan_torch(*inputs)
    alone = [x[1:2] if i in (0, 1, 3, 4) else x for i, x in enumerate(inputs)]
    torch.testing.assert_close(whole[1:2], cycle_scan_torch(*alone), rtol=0, atol=1e-14)


def test_gradcheck() -> None:
    inputs = scan_inputs(2, 6, 3, 2, 3, grad=True)
    assert torch.autograd.gradcheck(cycle_scan_torch, inputs)


@pytest.mark.parametrize("step", [1e-5, 0.1, 20.0])
def test_gradients_equal_those_of_the_loop(step) -> None:
    inputs = scan_inputs(step=step, grad=True)
    ours = gradients(cycle_scan_torch(*inputs), inputs)
    theirs = gradients(cycle_scan_reference(*inputs), inputs)
    for name, a, b in zip(NAMES, ours, theirs, strict=True):
        assert (a - b).abs().max() <= 1e-10 * (1 + b.abs().max()), name


def test_same_numbers_with_and_without_gradients() -> None:
    inputs = scan_inputs(length=100, dtype=torch.float32, grad=True)
    with torch.no_grad():
        expected = cycle_scan_torch(*inputs)
    assert torch.equal(cycle_scan_torch(*inputs), expected)


def test_no_nan_for_huge_steps_in_float32() -> None:
    inputs = scan_inputs(length=300, states=8, step=50.0, dtype=torch.float32, grad=True)
    y = cycle_scan_torch(*inputs)
    assert torch.isfinite(y).all()
    assert all(torch.isfinite(g).all() for g in gradients(y, inputs))


def test_unknown_backend_is_refused() -> None:
    with pytest.raises(ConfigError, match="one of auto, mamba, triton.*got 'jax'"):
        cycle_scan(*scan_inputs(), backend="jax")


@pytest.mark.parametrize("wrong", range(7))
@pytest.mark.parametrize("backend", ["auto", "numba"])
def test_shapes_that_do_not_belong_together_are_refused(wrong, backend) -> None:
    inputs = scan_inputs(dtype=torch.float32)
    # One channel (or state, or sample) more.
    pad = (0, 0, 0, 1) if wrong == 6 else (0, 1)
    inputs[wrong] = torch.nn.functional.pad(inputs[wrong], pad)
    with pytest.raises(ShapeError, match=r"must be \(B, L, C\), .* got \[\("):
        cycle_scan(*inputs, backend=backend)


@pytest.mark.parametrize("backend", ["numba", "mamba", "triton"])
def test_kernels_refuse_what_they_cannot_compute(backend) -> None:
    message = f"{backend!r} needs torch.float32 on .*, got torch.float64 on cpu; use .*'torch'"
    with pytest.raises(ConfigError, match=message):
        cycle_scan(*scan_inputs(), backend=backend)


def test_missing_package_is_named(monkeypatch) -> None:
    monkeypatch.setattr(
        selective_scan, "require", lambda _module, *, extra: require("no_such_package", extra=extra)
    )
    with pytest.raises(MissingExtraError, match=r"no_such_package.*napari-hrsam\[cpu\]"):
        cycle_scan(*scan_inputs(dtype=torch.float32), backend="numba")


def chosen(inputs) -> str:
    return selective_scan._auto_backend(tuple(inputs))


def test_auto_takes_numba_for_long_sequences_without_gradients(monkeypatch) -> None:
    monkeypatch.setattr(selective_scan, "numba_ready", lambda: True)
    long = scan_inputs(1, 600, 900, 8, dtype=torch.float32)
    assert chosen(long) == "numba"
    assert chosen(scan_inputs(1, 60, 90, 8, dtype=torch.float32)) == "torch"
    assert chosen([x.double() for x in long]) == "torch"
    needs_grad = [x.requires_grad_() for x in long]
    assert chosen(needs_grad) == "torch"
    with torch.no_grad():
        assert chosen(needs_grad) == "numba"
    monkeypatch.setattr(selective_scan, "numba_ready", lambda: False)
    with torch.no_grad():
        assert chosen(needs_grad) == "torch"


def test_numba_without_a_folder_for_compiled_code_is_left_out(monkeypatch, caplog) -> None:
    no_folder = Mock(side_effect=RuntimeError("cannot cache function: no locator available"))
    monkeypatch.setattr(selective_scan, "require", no_folder)
    selective_scan.numba_ready.cache_clear()
    assert not selective_scan.numba_ready()
    assert "using torch" in caplog.text
    selective_scan.numba_ready.cache_clear()
