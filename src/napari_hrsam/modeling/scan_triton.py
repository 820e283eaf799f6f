"""Cycle scan on CUDA with Triton: float32, with a gradient of its own, three launches each way.

Formulas as in `selective_scan`, with tau_t = sum_{r <= t} delta_r and E_t = exp(A tau_t). One scan
from zero gives the states s_t; the state that the later passes see is h_t = Gamma s_t + E_t G with
G = s_L g(P, gamma). The sequence is cut into chunks of about sqrt(L) tokens, one program each:

1. every chunk scans from zero and keeps its last state and its sum of delta;
2. a short loop over the chunks makes the states that enter them, and G;
3. every chunk scans again from its own state and writes the outputs.

The gradient goes the same way backwards. With nu_t the gradient of the input delta_t B_t u_t and
dG = sum_t dy_t C_t E_t,

    nu_t = exp(delta_{t+1} A) nu_{t+1} + Gamma dy_t C_t,       nu_L = Gamma dy_L C_L + g dG
    q_t  = exp(delta_t A) nu_t s_{t-1} + G sum_{r >= t} dy_r C_r E_r + P dP,   dP = g' s_L dG
    d delta_t = u_t sum_n nu_t B_t + sum_n A q_t,              dA = sum_t delta_t q_t

The states s_t of the last launch are computed again and pass through memory, for a part of the
batch at a time. All sums over programs are made by torch from parts: results do not depend on the
order in which programs run.

A program is one warp that walks along the tokens with a (channels, states) tile in registers; many
of them per multiprocessor hide the time of the loads.
"""

from __future__ import annotations

from contextlib import nullcontext
from subprocess import SubprocessError
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable
from triton.errors import TritonError

from napari_hrsam.modeling.selective_scan import chunk_length, cycle_scan_torch

# What compiling or running a kernel may raise besides Python's own errors.
ERRORS: tuple[type[Exception], ...] = (TritonError, SubprocessError)

# Channels times states of a tile: four numbers of each kind in a thread's registers.
_TILE = 128
_LEAST_CHANNELS, _MOST_CHANNELS = 8, 32
# States that the backward pass keeps at a time, in numbers (512 MB).
_MOST_KEPT_STATES = 1 << 27


@triton.jit  # type: ignore[untyped-decorator]
def _chunk_states(
    u: tl.tensor,
    delta: tl.tensor,
    A: tl.tensor,
    B: tl.tensor,
    last: tl.tensor,
    steps: tl.tensor,
    length: tl.tensor,
    channels: tl.tensor,
    states: tl.constexpr,
    chunk: tl.tensor,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
) -> None:
    """Scan one chunk from zero: its last state (B, K, C, N) and its sum of delta (B, K, C)."""
    k, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, STATES)
    in_c, in_n = c < channels, n < states
    inside = in_c[:, None] & in_n[None, :]
    cell = c[:, None] * states + n[None, :]
    a = tl.load(A + cell, mask=inside, other=0.0)
    state = tl.zeros((WIDTH, STATES), tl.float32)
    total = tl.zeros((WIDTH,), tl.float32)
    for t in range(k * chunk, tl.minimum((k + 1) * chunk, length)):
        token = b * length + t
        step = tl.load(delta + token * channels + c, mask=in_c, other=0.0)
        value = tl.load(u + token * channels + c, mask=in_c, other=0.0)
        in_map = tl.load(B + token * states + n, mask=in_n, other=0.0)
        state = tl.exp(step[:, None] * a) * state + (step * value)[:, None] * in_map[None, :]
        total += step
    part = b * tl.num_programs(1) + k
    tl.store(last + part * channels * states + cell, state, mask=inside)
    tl.store(steps + part * channels + c, total, mask=in_c)


@triton.jit  # type: ignore[untyped-decorator]
def _carry(
    A: tl.tensor,
    gamma: tl.tensor,
    entry: tl.tensor,
    begin: tl.tensor,
    whole: tl.tensor,
    extra: tl.tensor,
    num_chunks: tl.tensor,
    channels: tl.tensor,
    states: tl.constexpr,
    cycles: tl.tensor,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
) -> None:
    """Carry states over the chunks, in place, and close the cycle.

    ``entry`` (B, K, C, N) turns from last states into the states that enter; ``begin``
    (B, K + 1, C) from zero and the chunks' sums of delta into tau at their borders. ``whole`` is
    s_L, ``extra`` is G (both (B, C, N)).
    """
    b = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, STATES)
    in_c, in_n = c < channels, n < states
    inside = in_c[:, None] & in_n[None, :]
    cell = c[:, None] * states + n[None, :]
    a = tl.load(A + cell, mask=inside, other=0.0)
    state = tl.zeros((WIDTH, STATES), tl.float32)
    tau = tl.zeros((WIDTH,), tl.float32)
    for k in range(num_chunks):
        part = b * num_chunks + k
        last = tl.load(entry + part * channels * states + cell, mask=inside, other=0.0)
        step = tl.load(begin + (part + b + 1) * channels + c, mask=in_c, other=0.0)
        tl.store(entry + part * channels * states + cell, state, mask=inside)
        state = tl.exp(step[:, None] * a) * state + last
        tau += step
        tl.store(begin + (part + b + 1) * channels + c, tau, mask=in_c)
    decay = tl.exp(tau[:, None] * a)
    gain = tl.zeros((WIDTH, STATES), tl.float32)
    power = tl.zeros((WIDTH, STATES), tl.float32)
    for r in range(cycles):
        weight = tl.load(gamma + c * cycles + r, mask=in_c, other=0.0)
        gain += weight[:, None] * power
        power = decay * power + 1.0
    tl.store(whole + b * channels * states + cell, state, mask=inside)
    tl.store(extra + b * channels * states + cell, state * gain, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _outputs(
    u: tl.tensor,
    delta: tl.tensor,
    A: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    D: tl.tensor,
    total: tl.tensor,
    entry: tl.tensor,
    begin: tl.tensor,
    extra: tl.tensor,
    y: tl.tensor,
    length: tl.tensor,
    channels: tl.tensor,
    states: tl.constexpr,
    chunk: tl.tensor,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
) -> None:
    """Scan Gamma u in one chunk, from the state that enters it, and write the outputs."""
    k, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    num_chunks = tl.num_programs(1)
    c = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, STATES)
    in_c, in_n = c < channels, n < states
    inside = in_c[:, None] & in_n[None, :]
    cell = c[:, None] * states + n[None, :]
    a = tl.load(A + cell, mask=inside, other=0.0)
    weight = tl.load(total + c, mask=in_c, other=0.0)
    skip = tl.load(D + c, mask=in_c, other=0.0)
    part = b * num_chunks + k
    tau = tl.load(begin + (part + b) * channels + c, mask=in_c, other=0.0)
    state = tl.load(entry + part * channels * states + cell, mask=inside, other=0.0)
    later = tl.load(extra + b * channels * states + cell, mask=inside, other=0.0)
    state = weight[:, None] * state + tl.exp(tau[:, None] * a) * later
    for t in range(k * chunk, tl.minimum((k + 1) * chunk, length)):
        token = b * length + t
        step = tl.load(delta + token * channels + c, mask=in_c, other=0.0)
        value = weight * tl.load(u + token * channels + c, mask=in_c, other=0.0)
        in_map = tl.load(B + token * states + n, mask=in_n, other=0.0)
        out_map = tl.load(C + token * states + n, mask=in_n, other=0.0)
        state = tl.exp(step[:, None] * a) * state + (step * value)[:, None] * in_map[None, :]
        out = tl.sum(state * out_map[None, :], axis=1) + skip * value
        tl.store(y + token * channels + c, out, mask=in_c)


@triton.jit  # type: ignore[untyped-decorator]
def _chunk_adjoints(
    delta: tl.tensor,
    A: tl.tensor,
    C: tl.tensor,
    dy: tl.tensor,
    first: tl.tensor,
    length: tl.tensor,
    channels: tl.tensor,
    states: tl.constexpr,
    chunk: tl.tensor,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
) -> None:
    """Gradient of the state that enters one chunk (B, K, C, N), from the chunk's own outputs."""
    k, b = tl.program_id(1), tl.program_id(2).to(tl.int64)
    c = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, STATES)
    in_c, in_n = c < channels, n < states
    inside = in_c[:, None] & in_n[None, :]
    cell = c[:, None] * states + n[None, :]
    a = tl.load(A + cell, mask=inside, other=0.0)
    adjoint = tl.zeros((WIDTH, STATES), tl.float32)
    begin, end = k * chunk, tl.minimum((k + 1) * chunk, length)
    for back in range(end - begin):
        token = b * length + (end - 1 - back)
        step = tl.load(delta + token * channels + c, mask=in_c, other=0.0)
        d_out = tl.load(dy + token * channels + c, mask=in_c, other=0.0)
        out_map = tl.load(C + token * states + n, mask=in_n, other=0.0)
        adjoint = tl.exp(step[:, None] * a) * (adjoint + d_out[:, None] * out_map[None, :])
    part = b * tl.num_programs(1) + k
    tl.store(first + part * channels * states + cell, adjoint, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _carry_back(
    A: tl.tensor,
    gamma: tl.tensor,
    begin: tl.tensor,
    whole: tl.tensor,
    leaving: tl.tensor,
    d_whole: tl.tensor,
    d_decay: tl.tensor,
    d_gamma: tl.tensor,
    num_chunks: tl.tensor,
    channels: tl.tensor,
    states: tl.constexpr,
    cycles: tl.tensor,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
) -> None:
    """Carry gradients of states back over the chunks, in place, and through the cycle.

    ``leaving`` (B, K, C, N) turns from the gradients of entering states, each from its own chunk,
    into those of leaving states from all later chunks. ``d_whole`` is g dG, ``d_decay`` is P dP,
    ``d_gamma`` (B, C, R) the share of G.
    """
    b = tl.program_id(1).to(tl.int64)
    c = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, STATES)
    in_c, in_n = c < channels, n < states
    inside = in_c[:, None] & in_n[None, :]
    cell = c[:, None] * states + n[None, :]
    a = tl.load(A + cell, mask=inside, other=0.0)
    tau = tl.load(begin + (b + 1) * num_chunks * channels + b * channels + c, mask=in_c, other=0.0)
    decay = tl.exp(tau[:, None] * a)
    adjoint = tl.zeros((WIDTH, STATES), tl.float32)
    for back in range(num_chunks):
        part = b * num_chunks + (num_chunks - 1 - back)
        own = tl.load(leaving + part * channels * states + cell, mask=inside, other=0.0)
        low = tl.load(begin + (part + b) * channels + c, mask=in_c, other=0.0)
        high = tl.load(begin + (part + b + 1) * channels + c, mask=in_c, other=0.0)
        tl.store(leaving + part * channels * states + cell, adjoint, mask=inside)
        adjoint = tl.exp((high - low)[:, None] * a) * adjoint + own
    state = tl.load(whole + b * channels * states + cell, mask=inside, other=0.0)
    gain = tl.zeros((WIDTH, STATES), tl.float32)
    slope = tl.zeros((WIDTH, STATES), tl.float32)
    power = tl.zeros((WIDTH, STATES), tl.float32)
    power_slope = tl.zeros((WIDTH, STATES), tl.float32)
    for r in range(cycles):
        weight = tl.load(gamma + c * cycles + r, mask=in_c, other=0.0)
        share = tl.sum(adjoint * state * power, axis=1)
        tl.store(d_gamma + (b * channels + c) * cycles + r, share, mask=in_c)
        gain += weight[:, None] * power
        slope += weight[:, None] * power_slope
        power_slope = decay * power_slope + power
        power = decay * power + 1.0
    tl.store(d_whole + b * channels * states + cell, adjoint * gain, mask=inside)
    d_log = adjoint * state * slope * decay
    tl.store(d_decay + b * channels * states + cell, d_log, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _keep_states(
    u: tl.tensor,
    delta: tl.tensor,
    B: tl.tensor,
    kept: tl.tensor,
    kept_tau: tl.tensor,
    start: tl.tensor,
    end: tl.tensor,
    to_sample: tl.tensor,
    a: tl.tensor,
    state: tl.tensor,
    tau: tl.tensor,
    c: tl.tensor,
    n: tl.tensor,
    in_c: tl.tensor,
    in_n: tl.tensor,
    channels: tl.tensor,
    states: tl.constexpr,
) -> None:
    """Scan a chunk once more and write the state before each token, and tau at it, to scratch."""
    cell = c[:, None] * states + n[None, :]
    inside = in_c[:, None] & in_n[None, :]
    for token in range(start, end):
        place = token + to_sample
        step = tl.load(delta + token * channels + c, mask=in_c, other=0.0)
        value = tl.load(u + token * channels + c, mask=in_c, other=0.0)
        in_map = tl.load(B + token * states + n, mask=in_n, other=0.0)
        tau += step
        tl.store(kept + place * channels * states + cell, state, mask=inside)
        tl.store(kept_tau + place * channels + c, tau, mask=in_c)
        state = tl.exp(step[:, None] * a) * state + (step * value)[:, None] * in_map[None, :]


@triton.jit  # type: ignore[untyped-decorator]
def _gradients(  # noqa: PLR0915
    u: tl.tensor,
    delta: tl.tensor,
    A: tl.tensor,
    B: tl.tensor,
    C: tl.tensor,
    D: tl.tensor,
    total: tl.tensor,
    dy: tl.tensor,
    entry: tl.tensor,
    begin: tl.tensor,
    extra: tl.tensor,
    leaving: tl.tensor,
    d_whole: tl.tensor,
    d_decay: tl.tensor,
    kept: tl.tensor,
    kept_tau: tl.tensor,
    du: tl.tensor,
    d_delta: tl.tensor,
    dA: tl.tensor,
    dB: tl.tensor,
    dC: tl.tensor,
    d_skip: tl.tensor,
    d_total: tl.tensor,
    batch: tl.tensor,
    first_sample: tl.tensor,
    length: tl.tensor,
    channels: tl.tensor,
    states: tl.constexpr,
    chunk: tl.tensor,
    WIDTH: tl.constexpr,
    STATES: tl.constexpr,
) -> None:
    """Compute all gradients of one chunk.

    ``kept`` (samples, L, C, N) and ``kept_tau`` (samples, L, C) are scratch: the states before each
    token and tau at it. dA (B, K, C, N), dB and dC (channel blocks, B, L, N), d_skip (sum of u dy)
    and d_total (of Gamma's gradient; both (B, K, C)) are parts that are summed later.
    """
    k, sample = tl.program_id(1), tl.program_id(2).to(tl.int64)
    b = sample + first_sample
    num_chunks = tl.num_programs(1)
    c = tl.program_id(0) * WIDTH + tl.arange(0, WIDTH)
    n = tl.arange(0, STATES)
    in_c, in_n = c < channels, n < states
    inside = in_c[:, None] & in_n[None, :]
    cell = c[:, None] * states + n[None, :]
    a = tl.load(A + cell, mask=inside, other=0.0)
    part = b * num_chunks + k
    start, end = k * chunk, tl.minimum((k + 1) * chunk, length)

    tau = tl.load(begin + (part + b) * channels + c, mask=in_c, other=0.0)
    state = tl.load(entry + part * channels * states + cell, mask=inside, other=0.0)
    to_sample = (sample - b) * length
    _keep_states(
        u,
        delta,
        B,
        kept,
        kept_tau,
        b * length + start,
        b * length + end,
        to_sample,
        a,
        state,
        tau,
        c,
        n,
        in_c,
        in_n,
        channels,
        states,
    )
    # What one thread wrote may be read by another.
    tl.debug_barrier()

    weight = tl.load(total + c, mask=in_c, other=0.0)
    skip = weight * tl.load(D + c, mask=in_c, other=0.0)
    later = tl.load(extra + b * channels * states + cell, mask=inside, other=0.0)
    d_last = tl.load(d_whole + b * channels * states + cell, mask=inside, other=0.0)
    d_log = tl.load(d_decay + b * channels * states + cell, mask=inside, other=0.0)
    tau = tl.load(begin + (part + b + 1) * channels + c, mask=in_c, other=0.0)
    tau_all = tl.load(begin + ((b + 1) * num_chunks + b) * channels + c, mask=in_c, other=0.0)
    plain = tl.load(leaving + part * channels * states + cell, mask=inside, other=0.0)
    nu = weight[:, None] * plain + tl.exp((tau_all - tau)[:, None] * a) * d_last
    beyond = plain * tl.exp(tau[:, None] * a)
    a_part = tl.zeros((WIDTH, STATES), tl.float32)
    total_part = tl.zeros((WIDTH, STATES), tl.float32)
    skip_part = tl.zeros((WIDTH,), tl.float32)
    for back in range(end - start):
        t = end - 1 - back
        token = b * length + t
        place = token + to_sample
        step = tl.load(delta + token * channels + c, mask=in_c, other=0.0)
        value = tl.load(u + token * channels + c, mask=in_c, other=0.0)
        d_out = tl.load(dy + token * channels + c, mask=in_c, other=0.0)
        in_map = tl.load(B + token * states + n, mask=in_n, other=0.0)
        out_map = tl.load(C + token * states + n, mask=in_n, other=0.0)
        before = tl.load(kept + place * channels * states + cell, mask=inside, other=0.0)
        tau = tl.load(kept_tau + place * channels + c, mask=in_c, other=0.0)

        decay = tl.exp(step[:, None] * a)
        since_start = tl.exp(tau[:, None] * a)
        drive = step * value
        state = decay * before + drive[:, None] * in_map[None, :]
        out_grad = d_out[:, None] * out_map[None, :]
        nu += weight[:, None] * out_grad
        beyond += out_grad * since_start
        total_part += out_grad * state
        skip_part += value * d_out
        seen = weight[:, None] * state + since_start * later
        d_out_map = tl.sum(seen * d_out[:, None], axis=0)
        d_in_map = tl.sum(nu * drive[:, None], axis=0)
        d_drive = tl.sum(nu * in_map[None, :], axis=1)
        nu = decay * nu
        d_exponent = nu * before + later * beyond + d_log
        a_part += step[:, None] * d_exponent
        d_step = value * d_drive + tl.sum(a * d_exponent, axis=1)

        tl.store(du + token * channels + c, step * d_drive + skip * d_out, mask=in_c)
        tl.store(d_delta + token * channels + c, d_step, mask=in_c)
        row = (tl.program_id(0).to(tl.int64) * batch * length + token) * states
        tl.store(dB + row + n, d_in_map, mask=in_n)
        tl.store(dC + row + n, d_out_map, mask=in_n)
    tl.store(dA + part * channels * states + cell, a_part, mask=inside)
    tl.store(d_skip + part * channels + c, skip_part, mask=in_c)
    tl.store(d_total + part * channels + c, tl.sum(total_part, axis=1), mask=in_c)


def _tile(states: int) -> dict[str, int]:
    """Channels and states of a program's tile, and its one warp."""
    padded = max(2, triton.next_power_of_2(states))
    width = min(_MOST_CHANNELS, max(_LEAST_CHANNELS, _TILE // padded))
    return {"WIDTH": width, "STATES": padded, "num_warps": 1}


def _on_device_of(x: Tensor) -> Any:
    """Triton launches on the current device."""
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


class _CycleScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> Tensor:
        inputs = tuple(x.detach().contiguous() for x in inputs)
        u, delta, A, B, C, D, gamma = inputs
        batch, length, channels = u.shape
        states, cycles = A.shape[1], gamma.shape[1]
        chunk = chunk_length(length)
        num_chunks = -(-length // chunk)
        tile = _tile(states)
        blocks = triton.cdiv(channels, tile["WIDTH"])
        total = gamma.sum(1)
        entry = u.new_empty(batch, num_chunks, channels, states)
        steps = u.new_empty(batch, num_chunks, channels)
        whole, extra = u.new_empty(2, batch, channels, states)
        y = torch.empty_like(u)
        sizes = (length, channels, states, chunk)
        with _on_device_of(u):
            _chunk_states[blocks, num_chunks, batch](u, delta, A, B, entry, steps, *sizes, **tile)
            begin = torch.nn.functional.pad(steps, (0, 0, 1, 0))
            _carry[blocks, batch](
                A, gamma, entry, begin, whole, extra, num_chunks, *sizes[1:3], cycles, **tile
            )
            _outputs[blocks, num_chunks, batch](
                u, delta, A, B, C, D, total, entry, begin, extra, y, *sizes, **tile
            )
        ctx.save_for_backward(*inputs, total, entry, begin, whole, extra)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *d_outputs: Tensor) -> tuple[Tensor, ...]:
        u, delta, A, B, C, D, gamma, total, entry, begin, whole, extra = ctx.saved_tensors
        dy = d_outputs[0].contiguous()
        batch, length, channels = u.shape
        states, cycles = A.shape[1], gamma.shape[1]
        chunk, num_chunks = chunk_length(length), entry.shape[1]
        tile = _tile(states)
        blocks = triton.cdiv(channels, tile["WIDTH"])
        sizes = (length, channels, states, chunk)

        leaving, dA = torch.empty_like(entry), torch.empty_like(entry)
        d_whole, d_decay = torch.empty_like(whole), torch.empty_like(whole)
        d_gamma = u.new_empty(batch, channels, cycles)
        du, d_delta = torch.empty_like(u), torch.empty_like(delta)
        dB, dC = u.new_empty(2, blocks, batch, length, states)
        d_skip, d_total = u.new_empty(2, batch, num_chunks, channels)
        part = min(batch, max(1, _MOST_KEPT_STATES // (length * channels * states)))
        kept = u.new_empty(part, length, channels, states)
        kept_tau = u.new_empty(part, length, channels)
        with _on_device_of(u):
            _chunk_adjoints[blocks, num_chunks, batch](delta, A, C, dy, leaving, *sizes, **tile)
            _carry_back[blocks, batch](
                *(A, gamma, begin, whole, leaving, d_whole, d_decay, d_gamma),
                *(num_chunks, channels, states, cycles),
                **tile,
            )
            for first in range(0, batch, part):
                _gradients[blocks, num_chunks, min(part, batch - first)](
                    *(u, delta, A, B, C, D, total, dy, entry, begin, extra),
                    *(leaving, d_whole, d_decay, kept, kept_tau),
                    *(du, d_delta, dA, dB, dC, d_skip, d_total),
                    *(batch, first, *sizes),
                    **tile,
                )
        skip = d_skip.sum((0, 1))
        all_cycles = d_total.sum((0, 1)) + D * skip
        return (
            *(du, d_delta, dA.sum((0, 1)), dB.sum(0), dC.sum(0)),
            *(total * skip, d_gamma.sum(0) + all_cycles[:, None]),
        )


def cycle_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor, gamma: Tensor
) -> Tensor:
    """Compute `selective_scan.cycle_scan` on float32 CUDA tensors; differentiable once."""
    if not u.numel():
        return cycle_scan_torch(u, delta, A, B, C, D, gamma)
    y: Tensor = _CycleScan.apply(u, delta, A, B, C, D, gamma)  # type: ignore[no-untyped-call]
    return y
