"""Time a shifted attention layer: padding in keys and values only against padded queries.

The layer is the qkv projection, window attention and the output projection. Padded queries are
the released form: the padding tokens pass the projections and attend like real ones, and their
results are thrown away.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS, interleaved, print_table, save
from torch import Tensor

from napari_hrsam.modeling.attention import window_attention
from napari_hrsam.modeling.hrsam import WindowAttention
from napari_hrsam.modeling.layers import rotary_frequencies

HEAD_DIM = 64


def padded_queries(layer: WindowAttention, x: Tensor, side: int, freqs: Tensor) -> Tensor:
    """Pad the tokens first, then attend in whole windows; x is (B, L, C)."""
    window, padding = layer.window_size, layer.window_size - layer.shift
    padded = -(-(padding + side) // window) * window
    batch, _, dim = x.shape
    grid = layer.padding.expand(batch, padded, padded, dim).clone()
    area = slice(padding, padding + side)
    grid[:, area, area] = x.reshape(batch, side, side, dim)
    qkv = layer.qkv(grid).reshape(batch, padded, padded, 3, layer.num_heads, -1)
    # The padded grid is a map of whole windows: nothing is left to pad.
    pad_kv = qkv.new_zeros(2, layer.num_heads, dim // layer.num_heads)
    out = window_attention(qkv, pad_kv, freqs, window=window, padding=0, backend="sdpa")
    projected: Tensor = layer.proj(out.reshape(batch, padded, padded, dim))
    return projected[:, area, area].reshape(batch, side * side, dim)


def kv_only(layer: WindowAttention, x: Tensor, side: int, freqs: Tensor) -> Tensor:
    """Run our layer."""
    out: Tensor = layer(x, ((side, side),), freqs, shift_small=True, backend="sdpa")
    return out


@torch.inference_mode()
def measure_width(dim: int, side: int, window: int, rounds: int) -> dict[str, Any]:
    """Compare both layers at one number of channels."""
    torch.manual_seed(0)
    layer = WindowAttention(dim, max(1, dim // HEAD_DIM), window, shift=True)
    torch.nn.init.normal_(layer.padding)
    x = torch.randn(1, side * side, dim)
    freqs = rotary_frequencies(dim // layer.num_heads)
    times = interleaved(
        {
            "kv_only": lambda: kv_only(layer, x, side, freqs),
            "padded": lambda: padded_queries(layer, x, side, freqs),
        },
        rounds=rounds,
    )
    ours, theirs = kv_only(layer, x, side, freqs), padded_queries(layer, x, side, freqs)
    return {
        "tokens": f"{side} x {side}",
        "window": window,
        "channels": dim,
        "kv_only_ms": 1e3 * times["kv_only"]["median_s"],
        "padded_ms": 1e3 * times["padded"]["median_s"],
        "ratio": times["padded"]["median_s"] / times["kv_only"]["median_s"],
        "cpu_ratio": times["padded"]["least_cpu_s"] / max(times["kv_only"]["least_cpu_s"], 1e-9),
        "difference": float((ours - theirs).abs().max()),
        "kv_only": times["kv_only"],
        "padded": times["padded"],
    }


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--side", type=int, default=64, help="tokens on a side of the map")
    parser.add_argument("--window", type=int, default=16)
    parser.add_argument("--channels", type=int, nargs="+", default=[192, 384, 768])
    parser.add_argument("--threads", type=int, default=0, help="0: as torch decides")
    parser.add_argument("--out", type=Path, default=RESULTS / "attention.json")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    rows = [
        measure_width(dim, arguments.side, arguments.window, arguments.rounds)
        for dim in arguments.channels
    ]
    columns = ["tokens", "channels", "kv_only_ms", "padded_ms", "ratio", "cpu_ratio", "difference"]
    print_table(rows, columns)
    save(arguments.out, rows)


if __name__ == "__main__":
    main()
