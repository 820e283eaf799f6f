"""What the tests of our kernels ask of Triton in a process of its own; prints JSON.

``check`` runs the kernels on the CPU, in Triton's interpreter (TRITON_INTERPRET=1), and compares
with the float64 loop; ``compile`` compiles them for a GPU that need not be there.
"""

from __future__ import annotations

import inspect
import json
import sys
from typing import Any

import torch
from scan_inputs import NAMES, gradients, scan_inputs

from napari_hrsam.modeling import attention_triton, scan_triton
from napari_hrsam.modeling.attention import window_attention
from napari_hrsam.modeling.layers import rotary_frequencies
from napari_hrsam.modeling.selective_scan import _agrees_with_torch, cycle_scan_reference

# Batch, tokens, channels, states, cycles, step.
CASES = {
    "one block": (2, 7, 5, 4, 3, 0.1),
    "one token, one cycle": (1, 1, 3, 5, 1, 0.1),
    "cut chunk, cut block": (1, 100, 18, 8, 3, 0.05),
    "huge steps": (1, 40, 5, 16, 3, 20.0),
    "tiny steps": (2, 17, 17, 8, 2, 1e-4),
    "many states": (1, 7, 9, 32, 3, 0.1),
    "one cycle": (1, 30, 4, 4, 1, 0.1),
}
_NUMBERS = {"length", "channels", "chunk", "num_chunks", "cycles", "batch"}
_NUMBERS |= {"first_sample"}


def relative_errors(case: tuple[Any, ...], device: str = "cpu") -> dict[str, float]:
    """Largest difference of values and gradients, as a share of the largest one."""
    *shape, step = case
    inputs = scan_inputs(*shape, step=step, dtype=torch.float32)
    double = [x.double().requires_grad_() for x in inputs]
    inputs = [x.to(device).requires_grad_() for x in inputs]
    ours, theirs = scan_triton.cycle_scan(*inputs), cycle_scan_reference(*double)
    weights = torch.randn(theirs.shape, generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((ours * weights.to(device)).sum(), inputs)
    expected = torch.autograd.grad((theirs * weights.double()).sum(), double)
    pairs = zip(("y", *NAMES), (ours, *found), (theirs, *expected), strict=True)
    return {
        name: float((a.detach().cpu().double() - b).abs().max() / (b.abs().max() + 1e-6))
        for name, a, b in ((n, a, b.detach()) for n, a, b in pairs)
    }


def check() -> dict[str, Any]:
    """Run every case; one more with every sample of the batch on its own in the last launch."""
    found: dict[str, Any] = {name: relative_errors(case) for name, case in CASES.items()}
    inputs = scan_inputs(3, 5, 5, 4, dtype=torch.float32, grad=True)
    whole = gradients(scan_triton.cycle_scan(*inputs), inputs)
    scan_triton._MOST_KEPT_STATES = 1
    single = gradients(scan_triton.cycle_scan(*inputs), inputs)
    found["same in parts"] = all(torch.equal(a, b) for a, b in zip(whole, single, strict=True))
    found["accepted"] = _agrees_with_torch(scan_triton.cycle_scan, torch.device("cpu"))
    empty = [x.requires_grad_() for x in scan_inputs(0, 5, dtype=torch.float32)]
    found["empty"] = [
        g.abs().sum().item() for g in gradients(scan_triton.cycle_scan(*empty), empty)
    ]
    return found


# Batch, height, width, heads, channels of a head, window, padding.
WINDOWS = {
    "shifted": (1, 12, 13, 2, 32, 8, 4),
    "small windows": (2, 5, 9, 1, 64, 4, 2),
    "large windows": (1, 20, 17, 1, 32, 16, 8),
    "not shifted": (1, 16, 16, 1, 32, 8, 0),
    "odd windows": (1, 10, 11, 1, 32, 7, 3),
}


def attention_errors(
    case: tuple[int, ...], dtype: torch.dtype, device: str = "cpu"
) -> dict[str, float]:
    """Errors of the kernel and of SDPA, as shares of the norm."""
    batch, height, width, heads, dim, window, padding = case
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(batch, height, width, 3, heads, dim, generator=generator)
    pad_kv, freqs = torch.randn(2, heads, dim, generator=generator), rotary_frequencies(dim)
    inputs = [x.to(device=device, dtype=dtype) for x in (qkv, pad_kv)]
    freqs = freqs.to(device)
    expected = window_attention(
        qkv.double(),
        pad_kv.double(),
        freqs.cpu().double(),
        window=window,
        padding=padding,
        backend="reference",
    )
    found = {
        "triton": attention_triton.windows(*inputs, freqs, window, padding),
        "sdpa": window_attention(*inputs, freqs, window=window, padding=padding, backend="sdpa"),
    }
    return {
        name: float((out.cpu().double() - expected).norm() / expected.norm())
        for name, out in found.items()
    }


def check_attention() -> dict[str, Any]:
    """Run every case; in 16 bits only float16, which the interpreter multiplies rightly."""
    kinds = {"float32": torch.float32, "float16": torch.float16}
    return {
        f"{name} {kind}": attention_errors(case, dtype)
        for name, case in WINDOWS.items()
        for kind, dtype in kinds.items()
    }


def compile_attention(dim: int) -> dict[str, int]:
    """Bytes of the kernel's machine code in float32 and bfloat16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, sizes = attention_triton._attend, {}
    for kind, tile in (("fp32", 32), ("bf16", 64)):
        fixed = {"WINDOW": 16, "HEADS": 6, "DIM": dim, "QUERIES": tile, "KEYS": tile}
        kinds = dict.fromkeys(inspect.signature(kernel.fn).parameters, "i32")
        kinds |= dict.fromkeys(fixed, "constexpr") | {"scale": "fp32"}
        kinds |= dict.fromkeys(("qkv", "pad_kv", "out"), f"*{kind}")
        kinds |= dict.fromkeys(("cosines", "sines"), "*fp32")
        source = ASTSource(kernel, kinds, constexprs=fixed)
        compiled = triton.compile(
            source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 4}
        )
        sizes[kind] = len(compiled.asm["cubin"])
    return sizes


def compile_kernels(states: int) -> dict[str, int]:
    """Bytes of each kernel's machine code for compute capability 9.0."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    tile, sizes = scan_triton._tile(states), {}
    names = ("_chunk_states", "_carry", "_outputs", "_chunk_adjoints", "_carry_back", "_gradients")
    for name in names:
        kernel = getattr(scan_triton, name)
        parameters = list(inspect.signature(kernel.fn).parameters)
        kinds = {p: "i32" if p in _NUMBERS else "*fp32" for p in parameters}
        fixed = {**{p: tile[p] for p in ("WIDTH", "STATES")}, "states": states}
        source = ASTSource(kernel, {**kinds, **dict.fromkeys(fixed, "constexpr")}, constexprs=fixed)
        compiled = triton.compile(
            source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1}
        )
        sizes[name] = len(compiled.asm["cubin"])
    return sizes


if __name__ == "__main__":
    answers = {
        "check": check,
        "check-attention": check_attention,
        "compile": compile_kernels,
        "compile-attention": compile_attention,
    }
    answer = answers[sys.argv[1]](*map(int, sys.argv[2:]))
    sys.stdout.write(json.dumps(answer))
