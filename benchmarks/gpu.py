"""Check and time everything that matters on one GPU, in one command of at most three minutes.

Correctness comes first, then times, by CUDA events, as medians of calls made in turns after a
warm-up, over several input sets. Weights are random: they do not change the time. The results are
written after every section, so that whatever ends the run loses nothing; a section that fails is
told in them and in the exit status, and the others still run. Nothing is imported but torch and
the modeling package, so that it runs from a checkout on a bare machine::

    PYTHONPATH=src python benchmarks/gpu.py --out gpu.json
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from attention import HEAD_DIM, padded_queries
from measure import RESULTS, environment, print_table
from scan import inputs as scan_inputs
from scan import one_pass, three_passes, with_gradient
from torch import Tensor, nn

from napari_hrsam.modeling.attention import (
    AttentionBackend,
    triton_attention_ready,
    window_attention,
    xformers_ready,
)
from napari_hrsam.modeling.configs import ScanBackend
from napari_hrsam.modeling.hrsam import WindowAttention
from napari_hrsam.modeling.layers import rotary_frequencies
from napari_hrsam.modeling.models import find_config
from napari_hrsam.modeling.scan_mamba import mamba_ready
from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter
from napari_hrsam.modeling.selective_scan import cycle_scan, cycle_scan_torch, triton_ready

Row = dict[str, Any]
# Batch, tokens, channels, states, and whether torch is asked for gradients too: three passes keep
# several arrays of B R L C N numbers.
SCANS = {
    "tiny-512": (1, 1024, 192, 8, True),
    "tiny-1024": (1, 4096, 192, 8, True),
    "tiny-2048": (1, 16384, 192, 8, True),
    "b-512": (1, 1024, 768, 32, True),
    "b-1024": (1, 4096, 768, 32, True),
    "b-2048": (1, 16384, 768, 32, False),
    "train-192": (96, 144, 192, 8, True),
    "train-512": (64, 1024, 192, 8, False),
}
SMALL_SCANS = {"small": (2, 50, 8, 4, True)}
# Model, sizes in pixels.
ENCODERS = {
    "hrsam-tiny": (512, 1024, 2048),
    "hrsam-b": (1024,),
    "mobile-sam": (1024,),
    "sam-b": (1024,),
}
SMALL_ENCODERS = {"hrsam-tiny": (64,)}
WINDOW_SIDE = 64


@dataclass
class Run:
    """One run: where, until when, and what was found.

    Attributes
    ----------
    device : torch.device
    small : bool
        In miniature.
    deadline : float
        On the monotonic clock.
    out : Path
    sections : dict
        Name to rows, seconds and error.
    """

    device: torch.device
    small: bool
    deadline: float
    out: Path
    sections: dict[str, Row] = field(default_factory=dict)

    @property
    def on_gpu(self) -> bool:
        """Whether this is a GPU."""
        return self.device.type == "cuda"

    def left(self) -> float:
        """Seconds left."""
        return self.deadline - time.monotonic()

    def sync(self) -> None:
        """Wait for the device."""
        if self.on_gpu:
            torch.cuda.synchronize(self.device)

    def write(self) -> None:
        """Write what there is, in place of what was written before."""
        self.out.parent.mkdir(parents=True, exist_ok=True)
        part = self.out.with_name(f"{self.out.name}.part")
        part.write_text(json.dumps({**environment(), "sections": self.sections}, indent=1) + "\n")
        part.replace(self.out)

    def section(self, name: str, make: Callable[[Run], Iterator[Row]], columns: str) -> None:
        """Run one section; rows are kept as they come, and an error becomes text."""
        found: Row = {"rows": []}
        self.sections[name] = found
        begin = time.monotonic()
        print(f"\n== {name}", flush=True)
        try:
            for row in make(self):
                found["rows"].append(row)
                if row.get("ok") is False:
                    found["error"] = f"not as it should be: {row}"
                if self.left() < 0:
                    found["error"] = "out of time; the rest of the section is missing"
                    break
        except Exception as error:  # noqa: BLE001  the other sections still run
            found["error"] = f"{type(error).__name__}: {error}"
            found["traceback"] = traceback.format_exc()
        found["seconds"] = time.monotonic() - begin
        print_table([*found["rows"]], columns.split())
        if "error" in found:
            print(f"FAILED: {found['error']}", flush=True)
        if self.on_gpu:
            torch.cuda.empty_cache()
        self.write()

    # ------------------------------------------------------------------------------ clock
    def times(
        self, functions: Mapping[str, Sequence[Callable[[], object]]], seconds: float = 0.6
    ) -> dict[str, float]:
        """Median milliseconds of each function's calls.

        Parameters
        ----------
        functions : mapping of str to sequence of callable
            Every entry holds the same work on different inputs; they take turns.
        seconds : float
            About how long to measure in all.
        """
        for calls in functions.values():
            for call in (*calls, calls[0]):
                call()
        self.sync()
        begin = time.perf_counter()
        for calls in functions.values():
            calls[0]()
        self.sync()
        once = max(time.perf_counter() - begin, 1e-6)
        rounds = 2 if self.small else max(5, min(51, round(seconds / once)))
        turns: dict[str, list[Any]] = {name: [] for name in functions}
        for turn in range(rounds):
            for name, calls in functions.items():
                turns[name].append(self._timed(calls[turn % len(calls)]))
        self.sync()
        return {
            name: statistics.median(
                m if isinstance(m, float) else m[0].elapsed_time(m[1]) for m in ms
            )
            for name, ms in turns.items()
        }

    def _timed(self, call: Callable[[], object]) -> Any:
        """Milliseconds, or the two events that will tell them."""
        if not self.on_gpu:
            begin = time.perf_counter()
            call()
            return 1e3 * (time.perf_counter() - begin)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        return start, end

    def graphed(self, call: Callable[[], object]) -> Callable[[], object]:
        """Record the launches of a call once, to replay them without the gaps between them."""
        if not self.on_gpu:
            return call
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()

        def replay() -> object:
            graph.replay()
            return kept

        return replay

    def peak_mb(self, call: Callable[[], object]) -> float | None:
        """Memory that a call adds at most to what is held before it, in MB (GPU only)."""
        if not self.on_gpu:
            return None
        self.sync()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        self.sync()
        return (torch.cuda.max_memory_allocated() - before) / 1e6


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Norm of the difference as a share of the norm; NaN stays NaN."""
    ours, theirs = (x.detach().double().cpu() for x in (ours, theirs))
    return float((ours - theirs).norm() / theirs.norm().clamp(min=1e-30))


def checked(what: str, error: float, tolerance: float) -> Row:
    """Make a row of a check; NaN never passes."""
    return {"what": what, "error": error, "tolerance": tolerance, "ok": error <= tolerance}


def autocast(device: torch.device, precision: str) -> Any:
    """bfloat16 as in use: weights in float32, products in bfloat16."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, torch.bfloat16)


# ------------------------------------------------------------------------------------- sections
def device_facts(run: Run) -> Iterator[Row]:
    """Measure the two ceilings: copying, and bfloat16 products of random matrices."""
    yield {"what": "torch", "value": torch.__version__}
    yield {"what": "Python", "value": sys.version.split()[0]}
    spec = importlib.util.find_spec("triton")
    yield {"what": "triton found", "value": spec is not None}
    if run.on_gpu:
        facts = torch.cuda.get_device_properties(run.device)
        yield {"what": "device", "value": facts.name}
        yield {"what": "multiprocessors", "value": facts.multi_processor_count}
        yield {"what": "memory_gb", "value": facts.total_memory / 1e9}
        yield {"what": "capability", "value": f"{facts.major}.{facts.minor}"}
    numbers = 1 << (16 if run.small else 29)
    source = torch.randn(numbers, device=run.device)
    target = torch.empty_like(source)
    ms = run.times({"copy": [partial(target.copy_, source)]})["copy"]
    yield {"what": "copy_gb_per_s", "value": 8e-6 * numbers / ms}
    del source, target
    side = 128 if run.small else 8192
    a, b = torch.randn(2, side, side, device=run.device, dtype=torch.bfloat16)
    ms = run.times({"product": [partial(torch.matmul, a, b)]})["product"]
    yield {"what": "bf16_tflop_per_s", "value": 2e-9 * side**3 / ms}
    yield {
        "what": "scan_auto_on_cuda",
        "value": " ".join(scan_backends(run)) if run.on_gpu else "-",
    }
    yield {"what": "xformers_ready", "value": xformers_ready()}
    yield {"what": "triton_attention_ready", "value": triton_attention_ready()}


def scan_backends(run: Run) -> list[ScanBackend]:
    """Backends that run here, the one that "auto" takes first."""
    found: list[ScanBackend] = ["torch"]
    if run.on_gpu and triton_ready():
        found.insert(0, "triton")
    if run.on_gpu and mamba_ready():
        found.insert(0, "mamba")
    return found


def check_scan(run: Run) -> Iterator[Row]:
    """Compare values and gradients with torch in float64."""
    if run.on_gpu:
        # Without it training is several times slower: that must not go unseen.
        yield {"what": "triton is ready", "error": 0.0, "tolerance": 0.0, "ok": triton_ready()}
    names = ("u", "delta", "A", "B", "C", "D", "gamma")
    shapes = (
        [(2, 50, 5, 4)] if run.small else [(2, 1000, 192, 8), (1, 333, 77, 5), (1, 300, 96, 32)]
    )
    for shape in shapes:
        single = [x.to(run.device) for x in scan_inputs(*shape)]
        double = [x.double().requires_grad_() for x in single]
        expected = cycle_scan_torch(*double)
        weights = torch.randn_like(expected)
        theirs = torch.autograd.grad((expected * weights).sum(), double)
        for backend in scan_backends(run):
            leaves = [x.clone().requires_grad_() for x in single]
            y = cycle_scan(*leaves, backend=backend)
            ours = torch.autograd.grad((y * weights.float()).sum(), leaves)
            with torch.no_grad():
                again = cycle_scan(*leaves, backend=backend)
            yield checked(f"{backend} {shape} y", difference(y, expected), 1e-5)
            yield checked(f"{backend} {shape} y, no grad", difference(again, expected), 1e-5)
            for name, a, b in zip(names, ours, theirs, strict=True):
                yield checked(f"{backend} {shape} d{name}", difference(a, b), 3e-5)


def check_attention(run: Run) -> Iterator[Row]:
    """Compare window attention with the plain form in float64, values and gradients."""
    side, window, heads = (12, 8, 2) if run.small else (50, 16, 6)
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, side, side + 3, 3, heads, 32, generator=generator).to(run.device)
    pad_kv = torch.randn(2, heads, 32, generator=generator).to(run.device)
    freqs = rotary_frequencies(32).to(run.device)

    def attend(backend: AttentionBackend, dtype: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(dtype).requires_grad_() for x in (qkv, pad_kv)]
        angles = freqs.double() if dtype == torch.float64 else freqs
        out = window_attention(
            leaves[0], leaves[1], angles, window=window, padding=window // 2, backend=backend
        )
        weights = torch.linspace(-1, 1, out.numel(), device=run.device).reshape(out.shape)
        return (out, *torch.autograd.grad((out * weights.to(dtype)).sum(), leaves))

    expected = attend("reference", torch.float64)
    if run.on_gpu:
        ready = triton_attention_ready()
        yield {"what": "triton is ready", "error": 0.0, "tolerance": 0.0, "ok": ready}
        with torch.no_grad():
            for dtype, tolerance in ((torch.float32, 1e-5), (torch.bfloat16, 1e-2)):
                out = window_attention(
                    qkv.to(dtype),
                    pad_kv.to(dtype),
                    freqs,
                    window=window,
                    padding=window // 2,
                    backend="triton",
                )
                yield checked(f"triton {dtype} out", difference(out, expected[0]), tolerance)
    backends: list[AttentionBackend] = ["sdpa"]
    if run.on_gpu and xformers_ready():
        backends.append("xformers")
    for backend in backends:
        tolerances = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
        for dtype, tolerance in tolerances.items():
            if backend == "xformers" and dtype == torch.float64:
                continue
            for name, a, b in zip(
                ("out", "dqkv", "dpad"), attend(backend, dtype), expected, strict=True
            ):
                what = f"{backend} {str(dtype).removeprefix('torch.')} {name}"
                yield checked(what, difference(a, b), tolerance)


def randomized(model: nn.Module) -> nn.Module:
    """Move every weight a little: some are zero at the start and would hide errors."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn(weight.shape, generator=generator))
    return model


@torch.inference_mode()
def check_encoder(run: Run) -> Iterator[Row]:
    """Compare whole encoders with the CPU in float64."""
    for name in ("hrsam-tiny",) if run.small else ("hrsam-tiny", "hrsam-b"):
        torch.manual_seed(0)
        segmenter = randomized(Segmenter(find_config(name)).eval())
        encoder = segmenter.image_encoder
        image = torch.randn(1, 3, 64 if run.small else 304, 64 if run.small else 256)
        expected = encoder.double()(image.double())[0]
        encoder.float().to(run.device)
        # Convolutions are in tf32 unless that is forbidden.
        kinds = (("float32", False, 1e-4), ("float32", True, 2e-2), ("bfloat16", True, 1e-1))
        for precision, tf32, tolerance in kinds:
            for backend in scan_backends(run):
                encoder.scan_backend = backend
                with (
                    torch.backends.cudnn.flags(enabled=True, allow_tf32=tf32),
                    autocast(run.device, precision),
                ):
                    found = encoder(image.to(run.device))[0]
                what = f"{name} {precision}{' (tf32)' * tf32} {backend}"
                yield checked(what, difference(found, expected), tolerance)


@torch.inference_mode()
def check_syncs(run: Run) -> Iterator[Row]:
    """Encode with waiting for the GPU forbidden; count the launches."""
    segmenter = Segmenter(find_config("hrsam-tiny")).eval().to(run.device)
    segmenter.precision = "bfloat16"
    size = 64 if run.small else 1024
    image = 255 * torch.rand(1, 3, size, size, device=run.device)
    segmenter.encode(image)
    run.sync()
    if run.on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        segmenter.encode(image)
    finally:
        if run.on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    yield {"what": "encode without waiting", "count": 0, "ok": True}
    if run.on_gpu:
        kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=kinds) as profile:
            segmenter.encode(image)
            run.sync()
        launches = sum(
            e.count
            for e in profile.key_averages()
            if e.key in ("cudaLaunchKernel", "cuLaunchKernel")
            or e.key.startswith(("cudaLaunchKernelEx", "cuLaunchKernelEx"))
        )
        yield {"what": "launches of an encode", "count": launches}
        by_time = sorted(profile.key_averages(), key=lambda e: -e.self_device_time_total)
        for entry in by_time[:12]:
            ms = 1e-3 * entry.self_device_time_total
            yield {"what": entry.key[:60], "count": entry.count, "ms": ms}


def time_scan(run: Run) -> Iterator[Row]:
    """Time one pass and three passes, forward and with gradient, on every backend."""
    copy = next(
        (r["value"] for r in run.sections["device"]["rows"] if r["what"] == "copy_gb_per_s"), 1
    )
    backends = scan_backends(run)
    for size, (*shape, trained) in (SMALL_SCANS if run.small else SCANS).items():
        batch, length, channels, states = shape
        sets = [[x.to(run.device) for x in scan_inputs(*shape)] for _ in range(2)]
        for tensors in sets[1:]:
            tensors[0] = torch.randn_like(tensors[0])
        forms: dict[str, Any] = {}
        for backend in backends:
            forms[f"{backend} one"] = partial(one_pass, backend=backend)
            if batch == 1:
                forms[f"{backend} three"] = partial(three_passes, backend=backend)
        modes: dict[str, dict[str, Any]] = {"forward": forms}
        modes["training"] = {
            name: partial(with_gradient, form)
            for name, form in forms.items()
            if trained or not name.startswith("torch")
        }
        for mode, wanted in modes.items():
            with torch.no_grad() if mode == "forward" else nullcontext():
                calls = {name: [partial(f, x) for x in sets] for name, f in wanted.items()}
                ms = run.times(calls)
                peaks = {name: run.peak_mb(call[0]) for name, call in calls.items()}
            # Fewest numbers to move: u, delta, y; then also dy, du, d delta; and the maps.
            passes = (3, 2) if mode == "forward" else (8, 6)
            moved = 4 * batch * length * (passes[0] * channels + passes[1] * states)
            for backend in backends:
                one, three = ms.get(f"{backend} one"), ms.get(f"{backend} three")
                if one is None:
                    continue
                yield {
                    "size": size,
                    "shape": list(shape),
                    "mode": mode,
                    "backend": backend,
                    "one_ms": one,
                    "three_ms": three,
                    "ratio": three / one if three else None,
                    "floor_ms": 1e-6 * moved / copy,
                    "peak_mb": peaks[f"{backend} one"],
                }


@torch.inference_mode()
def time_windows(run: Run) -> Iterator[Row]:
    """Time a shifted layer: padding in keys and values only against padded queries."""
    side, window = (12, 8) if run.small else (WINDOW_SIDE, 16)
    widths, batches = ((64,), (1,)) if run.small else ((192, 384, 768), (1, 8))
    for dim, batch in ((dim, batch) for batch in batches for dim in widths):
        torch.manual_seed(0)
        layer = WindowAttention(dim, max(1, dim // HEAD_DIM), window, shift=True)
        nn.init.normal_(layer.padding)
        layer.to(run.device)
        freqs = rotary_frequencies(dim // layer.num_heads).to(run.device)
        sets = [torch.randn(batch, side * side, dim, device=run.device) for _ in range(3)]
        for precision in ("float32", "bfloat16"):
            yield windows_row(run, layer, freqs, sets, side, precision)


def windows_row(
    run: Run, layer: WindowAttention, freqs: Tensor, sets: list[Tensor], side: int, precision: str
) -> Row:
    """Compare both forms of a layer, called plainly and replayed as a graph."""

    def kv_only(x: Tensor, backend: AttentionBackend = "sdpa") -> Tensor:
        with autocast(run.device, precision):
            out: Tensor = layer(x, ((side, side),), freqs, shift_small=True, backend=backend)
            return out

    def padded(x: Tensor) -> Tensor:
        with autocast(run.device, precision):
            return padded_queries(layer, x, side, freqs)

    forms: dict[str, Callable[[Tensor], Tensor]] = {"kv_only": kv_only, "padded": padded}
    if run.on_gpu and xformers_ready():
        forms["xformers"] = partial(kv_only, backend="xformers")
    if run.on_gpu and triton_attention_ready():
        forms["triton"] = partial(kv_only, backend="triton")
    # autocast keeps the weights it has cast, which a graph must not outlive.
    calls = {name: [partial(form, x) for x in sets] for name, form in forms.items()}
    plain = run.times(calls)
    graphs = {n: [run.graphed(c) for c in calls[n]] for n in forms if n != "xformers"}
    replayed = run.times(graphs)
    return {
        "channels": layer.proj.in_features,
        "batch": len(sets[0]),
        "precision": precision,
        **{f"{name}_ms": ms for name, ms in plain.items()},
        "ratio": plain["padded"] / plain["kv_only"],
        **{f"graph_{name}_ms": ms for name, ms in replayed.items()},
        "graph_ratio": replayed["padded"] / replayed["kv_only"],
        "triton_ratio": plain["padded"] / plain["triton"] if "triton" in plain else None,
        "graph_triton_ratio": (
            replayed["padded"] / replayed["triton"] if "triton" in replayed else None
        ),
        "difference": difference(kv_only(sets[0]), padded(sets[0])),
    }


def segmenter_of(run: Run, name: str, size: int) -> Segmenter:
    """Build a model with random weights."""
    torch.manual_seed(0)
    return Segmenter(replace(find_config(name), tile_px=size)).eval().to(run.device)


def encoder_kinds(run: Run, name: str) -> list[tuple[str, AttentionBackend]]:
    """Precisions and attention backends to time a model with."""
    kinds: list[tuple[str, AttentionBackend]] = [("float32", "sdpa"), ("bfloat16", "sdpa")]
    if run.on_gpu and name.startswith("hrsam"):
        kinds.append(("bfloat16", "triton"))
    return kinds


@torch.inference_mode()
def time_encoders(run: Run) -> Iterator[Row]:
    """Time encoding one image, and batches of the smallest model."""
    for name, sizes in (SMALL_ENCODERS if run.small else ENCODERS).items():
        for size in sizes:
            segmenter = segmenter_of(run, name, size)
            for batch in (1, 16) if name == "hrsam-tiny" and size == sizes[0] else (1,):
                images = [
                    255 * torch.rand(batch, 3, size, size, device=run.device) for _ in range(2)
                ]
                for precision, backend in encoder_kinds(run, name):
                    segmenter.precision = precision
                    segmenter.set_backends(backend, "auto")
                    calls = [partial(segmenter.encode, x) for x in images]
                    ms = run.times({"encode": calls})["encode"]
                    yield {
                        "model": name,
                        "px": size,
                        "batch": batch,
                        "precision": precision,
                        "attention": backend,
                        "ms": ms,
                        "images_per_s": 1e3 * batch / ms,
                        "peak_mb": run.peak_mb(calls[0]),
                    }
            del segmenter


@torch.inference_mode()
def time_clicks(run: Run) -> Iterator[Row]:
    """Time a second click: two points and the logits of the first one."""
    for size in (64,) if run.small else (512, 1024):
        segmenter = segmenter_of(run, "hrsam-tiny", size)
        features: ImageFeatures = segmenter.encode(
            255 * torch.rand(1, 3, size, size, device=run.device)
        )
        prompts: Any = {
            "point_coords_xy": torch.tensor([[[0.4, 0.5], [0.7, 0.2]]], device=run.device) * size,
            "point_labels": torch.tensor([[1, 0]], device=run.device),
            "mask_logits": torch.randn(1, 1, size // 4, size // 4, device=run.device),
        }
        click = partial(segmenter.decode, features, **prompts)
        ms = run.times({"click": [click]})["click"]
        yield {"model": "hrsam-tiny", "px": size, "ms": ms, "peak_mb": run.peak_mb(click)}


def time_training(run: Run) -> Iterator[Row]:
    """Time the encoder forward and backward, as in training, with each scan."""
    name = "hrsam-tiny"
    batch, size = (1, 64) if run.small else (32, 512)
    encoder: Any = segmenter_of(run, name, size).image_encoder.train()
    images = [torch.randn(batch, 3, size, size, device=run.device) for _ in range(2)]

    def step(image: Tensor, backend: ScanBackend) -> None:
        encoder.scan_backend = backend
        with autocast(run.device, "bfloat16"):
            embedding = encoder(image)[0]
        embedding.float().square().mean().backward()

    for backend in scan_backends(run):
        calls = [partial(step, x, backend) for x in images]
        ms = run.times({"step": calls}, seconds=2)["step"]
        yield {
            "model": name,
            "px": size,
            "batch": batch,
            "scan": backend,
            "ms": ms,
            "images_per_s": 1e3 * batch / ms,
            "peak_mb": run.peak_mb(calls[0]),
        }
        encoder.zero_grad(set_to_none=True)


SECTIONS: dict[str, tuple[Callable[[Run], Iterator[Row]], str]] = {
    "device": (device_facts, "what value"),
    "scan is right": (check_scan, "what error tolerance ok"),
    "attention is right": (check_attention, "what error tolerance ok"),
    "encoder is right": (check_encoder, "what error tolerance ok"),
    "no waiting": (check_syncs, "what count ms"),
    "scan": (
        time_scan,
        "size mode backend one_ms three_ms ratio floor_ms peak_mb",
    ),
    "shifted windows": (
        time_windows,
        "channels batch precision kv_only_ms padded_ms ratio graph_ratio triton_ratio triton_ms",
    ),
    "encoder": (time_encoders, "model px batch precision attention ms images_per_s peak_mb"),
    "click": (time_clicks, "model px ms peak_mb"),
    "training": (time_training, "model px batch scan ms images_per_s peak_mb"),
}


def main() -> int:
    """Run from the command line; 1 if a section failed or is missing."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--small", action="store_true", help="in miniature, to see that it runs")
    parser.add_argument("--seconds", type=float, default=170, help="stop after about this long")
    parser.add_argument("--only", nargs="+", choices=list(SECTIONS), help="these sections alone")
    parser.add_argument("--out", type=Path, default=RESULTS / "gpu.json")
    arguments = parser.parse_args()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device that torch can use; try --device cpu --small")
    run = Run(
        device=torch.device(arguments.device),
        small=arguments.small,
        deadline=time.monotonic() + arguments.seconds,
        out=arguments.out,
    )
    os.environ.setdefault("CUDA_MODULE_LOADING", "LAZY")
    torch.manual_seed(0)
    for name, (make, columns) in SECTIONS.items():
        if arguments.only and name not in (*arguments.only, "device"):
            continue
        if run.left() < 0:
            run.sections[name] = {"rows": [], "error": "out of time; not run"}
            continue
        run.section(name, make, columns)
    run.write()
    failed = {name: found["error"] for name, found in run.sections.items() if "error" in found}
    print(f"\nwrote {run.out}")
    for name, error in failed.items():
        print(f"FAILED {name}: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    raise SystemExit(main())
