"""Kernels of the cycle scan on the CPU, compiled by numba: forward and backward (float32).

Formulas as in `selective_scan`: one scan from zero gives the states s_t and S = s_L, a zero-input
correction from G = S g(P, gamma) adds the later passes. The backward pass is one scan too: with
nu_t the gradient of the input delta_t B_t u_t,

    nu_t = exp(delta_{t+1} A) nu_{t+1} + Gamma dz_t C_t,       nu_L = Gamma dz_L C_L + dS

so the gradient that enters at the end, dS = g l_0 with l_0 = sum_t dz_t C_t exp(A tau_t), does what
G does in the forward pass. The exponents of all steps collect

    q_t = exp(delta_t A) nu_t s_{t-1} + G sum_{r >= t} dz_r C_r exp(A tau_r) + P dP

which gives d delta_t = u_t sum_n nu_t B_t + sum_n A q_t and dA = sum_t delta_t q_t.

The innermost loops run along the channels of a block, so that LLVM turns them into vector code;
for that the exponential is a polynomial, and every loop touches few arrays, because LLVM gives up
where it has too many to check for overlaps. Nothing here holds the GIL.

Shape letters: L tokens, N states, W channels of the block, R cycles.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

Floats = NDArray[np.float32]

# exp(-20) is below the rounding of float32: what is left of the earlier passes is dropped there.
_NEGLIGIBLE = np.float32(-20.0)
_CHECK_EVERY = 16

_ZERO, _ONE = np.float32(0), np.float32(1)
_LOG2_E, _HALF = np.float32(1.4426950408889634), np.float32(0.5)
# ln 2 in two parts, the first exact in few bits, so that k ln 2 is exact.
_LN2_HIGH, _LN2_LOW = np.float32(0.693359375), np.float32(-2.12194440054690583e-4)
_LOWEST = np.float32(-88.0)
_T2, _T3, _T4 = np.float32(1 / 2), np.float32(1 / 6), np.float32(1 / 24)
_T5, _T6, _T7 = np.float32(1 / 120), np.float32(1 / 720), np.float32(1 / 5040)


def _float_of_bits_impl(_context: Any, bits: Any) -> Any:
    def codegen(_ctx: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], ir.FloatType())

    return types.float32(bits), codegen


_float_of_bits: Any = intrinsic(_float_of_bits_impl)


def _exp_impl(x: Any) -> Any:
    """Exponential of x <= 0, within 1e-7; 0 below -88."""
    x = max(_LOWEST, x)
    k = np.int32(x * _LOG2_E - _HALF)
    r = (x - np.float32(k) * _LN2_HIGH) - np.float32(k) * _LN2_LOW
    p = _T6 + r * _T7
    p = _T4 + r * (_T5 + r * p)
    p = _ONE + r * (_ONE + r * (_T2 + r * (_T3 + r * p)))
    return p * _float_of_bits(np.int32((k + np.int32(127)) << np.int32(23)))


# contract: fused multiply-add; reassoc: vector sums over the channels. NaN and infinity are kept.
_OPTIONS: dict[str, Any] = {
    "nogil": True,
    "cache": True,
    "error_model": "numpy",
    "fastmath": {"contract", "reassoc", "nsz"},
}
_exp: Any = njit(inline="always", fastmath={"contract"})(_exp_impl)


def _totals_impl(gamma: Floats) -> Floats:
    """Gamma = sum_r gamma_r."""
    total = np.zeros(gamma.shape[1], np.float32)
    for r in range(gamma.shape[0]):
        for c in range(total.shape[0]):
            total[c] += gamma[r, c]
    return total


def _load_impl(
    u: Floats, delta: Floats, D: Floats, step: Floats, drive: Floats, tau: Floats, out: Floats
) -> None:
    """Begin a step: delta, delta u, tau and the skip D u."""
    for c in range(step.shape[0]):
        step[c] = delta[c]
        drive[c] = delta[c] * u[c]
    for c in range(step.shape[0]):
        tau[c] += delta[c]
        out[c] = D[c] * u[c]


def _advance_impl(
    before: Floats,
    after: Floats,
    step: Floats,
    A: Floats,
    drive: Floats,
    B: Floats,
    C: Floats,
    out: Floats,
) -> None:
    """One step of the recurrence and its output (``before`` and ``after`` may not overlap)."""
    for n in range(A.shape[0]):
        b, w = B[n], C[n]
        for c in range(step.shape[0]):
            after[n, c] = _exp(step[c] * A[n, c]) * before[n, c] + b * drive[c]
        for c in range(step.shape[0]):
            out[c] += w * after[n, c]


def _all_negligible_impl(A: Floats, tau: Floats) -> bool:
    """Whether every state has decayed away after the time tau."""
    for n in range(A.shape[0]):
        for c in range(tau.shape[0]):
            if tau[c] * A[n, c] > _NEGLIGIBLE:
                return False
    return True


def _extra_state_impl(last: Floats, A: Floats, tau: Floats, gamma: Floats) -> None:
    """Turn S, in place, into G: the extra state that the later passes start from."""
    for n in range(A.shape[0]):
        for c in range(tau.shape[0]):
            p, gain, passes = _exp(tau[c] * A[n, c]), _ZERO, _ZERO
            for r in range(gamma.shape[0]):
                gain += gamma[r, c] * passes
                passes = p * passes + _ONE
            last[n, c] *= gain


def _forward_impl(
    u: Floats, delta: Floats, A: Floats, B: Floats, C: Floats, D: Floats, gamma: Floats, y: Floats
) -> None:
    """Scan one sample and one block: u, delta, y (L, W); A (N, W); B, C (L, N); gamma (R, W)."""
    length, width = u.shape
    A, states, total = A.copy(), np.zeros((2, *A.shape), np.float32), _totals(gamma)
    step, drive = np.empty(width, np.float32), np.empty(width, np.float32)
    out, tau = np.empty(width, np.float32), np.zeros(width, np.float32)
    for t in range(length):
        _load(u[t], delta[t], D, step, drive, tau, out)
        _advance(states[t % 2], states[1 - t % 2], step, A, drive, B[t], C[t], out)
        for c in range(width):
            y[t, c] = total[c] * out[c]
    state = states[length % 2]
    _extra_state(state, A, tau, gamma)
    tau[:] = _ZERO
    for t in range(length):
        for c in range(width):
            tau[c] += delta[t, c]
            out[c] = y[t, c]
        for n in range(A.shape[0]):
            w = C[t, n]
            for c in range(width):
                out[c] += w * _exp(tau[c] * A[n, c]) * state[n, c]
        for c in range(width):
            y[t, c] = out[c]
        if t % _CHECK_EVERY == 0 and _all_negligible(A, tau):
            break


def _replay_impl(
    u: Floats,
    delta: Floats,
    A: Floats,
    B: Floats,
    C: Floats,
    D: Floats,
    dy: Floats,
    states: Floats,
    taus: Floats,
    l_zero: Floats,
) -> tuple[int, Floats]:
    """Scan again, keeping s_t and tau_t; return where P_t becomes nothing, and d Gamma."""
    length, width = u.shape
    step, drive = np.empty(width, np.float32), np.empty(width, np.float32)
    out, tau = np.empty(width, np.float32), np.zeros(width, np.float32)
    d_total = np.zeros(width, np.float64)
    states[0] = _ZERO
    stop = length
    for t in range(length):
        _load(u[t], delta[t], D, step, drive, tau, out)
        _advance(states[t], states[t + 1], step, A, drive, B[t], C[t], out)
        for c in range(width):
            taus[t, c] = tau[c]
            d_total[c] += np.float64(dy[t, c] * out[c])
        if t < stop:
            for c in range(width):
                step[c] = dy[t, c]
            for n in range(A.shape[0]):
                w = C[t, n]
                for c in range(width):
                    l_zero[n, c] += step[c] * w * _exp(tau[c] * A[n, c])
            if t % _CHECK_EVERY == 0 and _all_negligible(A, tau):
                stop = t + 1
    return stop, d_total.astype(np.float32)


def _close_cycle_impl(
    last: Floats,
    A: Floats,
    tau: Floats,
    gamma: Floats,
    l_zero: Floats,
    extra: Floats,
    nu: Floats,
    whole: Floats,
    d_gamma: Floats,
) -> None:
    """From S and l_0: G, nu behind the last step, P dP and the gradient of gamma through G."""
    for n in range(A.shape[0]):
        for c in range(tau.shape[0]):
            p = _exp(tau[c] * A[n, c])
            gain, gain_dp, passes, passes_dp = _ZERO, _ZERO, _ZERO, _ZERO
            d_gain = l_zero[n, c] * last[n, c]
            for r in range(gamma.shape[0]):
                gain += gamma[r, c] * passes
                gain_dp += gamma[r, c] * passes_dp
                d_gamma[r, c] += d_gain * passes
                passes_dp = passes + p * passes_dp
                passes = p * passes + _ONE
            extra[n, c] = last[n, c] * gain
            nu[n, c] = l_zero[n, c] * gain
            whole[n, c] = d_gain * gain_dp * p


def _later_passes_impl(
    extra: Floats, A: Floats, tau: Floats, slope: Floats, C: Floats, later: Floats, dC: Floats
) -> None:
    """Gradients of one step through the extra state, which decays as exp(A tau)."""
    for n in range(A.shape[0]):
        w, d_w = C[n], _ZERO
        for c in range(tau.shape[0]):
            e = slope[c] * extra[n, c] * _exp(tau[c] * A[n, c])
            later[n, c] += w * e
            d_w += e
        dC[n] += d_w


def _step_back_impl(
    before: Floats,
    after: Floats,
    step: Floats,
    A: Floats,
    drive: Floats,
    B: Floats,
    C: Floats,
    out: Floats,
    nu: Floats,
    later: Floats,
    whole: Floats,
    v: Floats,
    q: Floats,
    d_drive: Floats,
    d_step: Floats,
    dA: Floats,
    dB: Floats,
    dC: Floats,
) -> None:
    """Carry nu over one step and collect the gradients; ``out`` is Gamma dz."""
    width = step.shape[0]
    for n in range(A.shape[0]):
        b, w, d_b, d_w = B[n], C[n], _ZERO, _ZERO
        for c in range(width):
            v[c] = nu[n, c] + w * out[c]
            nu[n, c] = v[c] * _exp(step[c] * A[n, c])
        for c in range(width):
            q[c] = nu[n, c] * before[n, c] + later[n, c] + whole[n, c]
        for c in range(width):
            d_step[c] += A[n, c] * q[c]
            dA[n, c] += step[c] * q[c]
        for c in range(width):
            d_drive[c] += b * v[c]
            d_b += v[c] * drive[c]
        for c in range(width):
            d_w += out[c] * after[n, c]
        dB[n] += d_b
        dC[n] += d_w


def _backward_impl(
    u: Floats,
    delta: Floats,
    A: Floats,
    B: Floats,
    C: Floats,
    D: Floats,
    gamma: Floats,
    dy: Floats,
    du: Floats,
    d_delta: Floats,
    dA: Floats,
    dB: Floats,
    dC: Floats,
    dD: Floats,
    d_gamma: Floats,
) -> None:
    """Gradients for one sample and one block; shapes as in `_forward_impl`, outputs start at 0."""
    length, width = u.shape
    A, total = A.copy(), _totals(gamma)
    states = np.empty((length + 1, *A.shape), np.float32)
    taus, l_zero = np.empty((length, width), np.float32), np.zeros(A.shape, np.float32)
    stop, d_total = _replay(u, delta, A, B, C, D, dy, states, taus, l_zero)
    for r in range(gamma.shape[0]):
        d_gamma[r] += d_total
    extra, nu, whole = np.empty_like(A), np.empty_like(A), np.empty_like(A)
    tau = np.zeros(width, np.float32)
    if length:
        tau[:] = taus[length - 1]
    _close_cycle(states[length], A, tau, gamma, l_zero, extra, nu, whole, d_gamma)
    step, drive = np.empty(width, np.float32), np.empty(width, np.float32)
    slope, out = np.empty(width, np.float32), np.empty(width, np.float32)
    d_step, d_drive = np.empty(width, np.float32), np.empty(width, np.float32)
    v, q, later = np.empty(width, np.float32), np.empty(width, np.float32), np.zeros_like(A)
    # Sums over all tokens: float32 for a few tokens at a time, float64 over those.
    part_A, sum_A, sum_D = np.zeros_like(A), np.zeros(A.shape), np.zeros(width)
    for t in range(length - 1, -1, -1):
        for c in range(width):
            step[c] = delta[t, c]
            drive[c] = delta[t, c] * u[t, c]
            slope[c] = dy[t, c]
            out[c] = total[c] * dy[t, c]
        for c in range(width):
            tau[c] = taus[t, c]
            sum_D[c] += np.float64(out[c] * u[t, c])
        if t < stop:
            _later_passes(extra, A, tau, slope, C[t], later, dC[t])
        d_step[:] = _ZERO
        d_drive[:] = _ZERO
        _step_back(
            *(states[t], states[t + 1], step, A, drive, B[t], C[t], out, nu, later, whole),
            *(v, q, d_drive, d_step, part_A, dB[t], dC[t]),
        )
        for c in range(width):
            du[t, c] = step[c] * d_drive[c] + D[c] * out[c]
            d_delta[t, c] = u[t, c] * d_drive[c] + d_step[c]
        if t % _CHECK_EVERY == 0:
            sum_A += part_A
            part_A[:] = _ZERO
    dD[:] = sum_D
    dA[:] = sum_A


_totals: Any = njit(**_OPTIONS)(_totals_impl)
_load: Any = njit(**_OPTIONS)(_load_impl)
_advance: Any = njit(**_OPTIONS)(_advance_impl)
_all_negligible: Any = njit(**_OPTIONS)(_all_negligible_impl)
_extra_state: Any = njit(**_OPTIONS)(_extra_state_impl)
forward: Callable[..., None] = njit(**_OPTIONS)(_forward_impl)
_replay: Any = njit(**_OPTIONS)(_replay_impl)
_close_cycle: Any = njit(**_OPTIONS)(_close_cycle_impl)
_later_passes: Any = njit(**_OPTIONS)(_later_passes_impl)
_step_back: Any = njit(**_OPTIONS)(_step_back_impl)
backward: Callable[..., None] = njit(**_OPTIONS)(_backward_impl)
