"""Time image encoding and clicks, with SAM ViT-B of `segment-anything` beside our models.

Every model has a process of its own for every size, so that its peak memory can be told; all are
asked in turns, so that a busy moment of the machine hits all of them. Weights are random: they do
not change the time. Ratios are of CPU seconds, which a shared machine changes least.

A model is named as NAME[:OPTION][@SIZE]: "hrsam-tiny:bfloat16" computes in bfloat16,
"hrsam-tiny:no-numba" scans as an installation without extras does, "mobile-sam@1024" is asked at
that size only.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from measure import RESULTS, peak_bytes, print_table, save, summary, timed
from torch import Tensor

from napari_hrsam.modeling.checkpoints import lay_out_for_cpu
from napari_hrsam.modeling.models import find_config
from napari_hrsam.modeling.segmenter import ImageFeatures, Segmenter

SAM = "sam-vit-b"
DEFAULT_MODELS = ("hrsam-tiny", "hrsam-tiny:bfloat16", SAM)
Steps = tuple[Callable[[], object], Callable[[], object]]


def sam_vit_b(size: int) -> torch.nn.Module:
    """Build SAM ViT-B for square images of `size` pixels.

    The package's own `__init__` needs torchvision for resizing and box suppression, which this
    benchmark does not use: its model modules are imported without it.
    """
    found = importlib.util.find_spec("segment_anything")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("segment-anything is not installed: pip install segment-anything")
    package = ModuleType("segment_anything")
    package.__path__ = list(found.submodule_search_locations)
    sys.modules["segment_anything"] = package
    modeling: Any = importlib.import_module("segment_anything.modeling")
    grid = size // 16
    sam: torch.nn.Module = modeling.Sam(
        image_encoder=modeling.ImageEncoderViT(
            img_size=size,
            embed_dim=768,
            depth=12,
            num_heads=12,
            out_chans=256,
            use_rel_pos=True,
            rel_pos_zero_init=False,
            window_size=14,
            global_attn_indexes=(2, 5, 8, 11),
        ),
        prompt_encoder=modeling.PromptEncoder(256, (grid, grid), (size, size), 16),
        mask_decoder=modeling.MaskDecoder(
            transformer_dim=256,
            transformer=modeling.TwoWayTransformer(2, 256, 8, 2048),
        ),
    )
    return sam


def sam_steps(size: int, clicks: dict[str, Any]) -> Steps:
    """Prepare encoding and one click of SAM ViT-B."""
    sam: Any = sam_vit_b(size).eval()
    image, kept = torch.rand(1, 3, size, size), list[Tensor]()
    points = (clicks["point_coords_xy"], clicks["point_labels"])

    def encode() -> None:
        kept[:] = [sam.image_encoder(image)]

    def click() -> None:
        sparse, dense = sam.prompt_encoder(points=points, boxes=None, masks=clicks["mask_logits"])
        position = sam.prompt_encoder.get_dense_pe()
        sam.mask_decoder(kept[0], position, sparse, dense, multimask_output=False)

    return encode, click


def our_steps(model: str, size: int, clicks: dict[str, Any]) -> Steps:
    """Prepare encoding and one click of our models, such as "hrsam-tiny:bfloat16"."""
    name, _, option = model.partition(":")
    segmenter = Segmenter(replace(find_config(name), tile_px=size)).eval()
    if segmenter.config.decoder.skip_channels is not None:
        lay_out_for_cpu(segmenter)
    if option == "no-numba":
        segmenter.set_backends(attention="auto", scan="torch")
    else:
        segmenter.precision = option or "float32"
    image, kept = 255 * torch.rand(1, 3, size, size), list[ImageFeatures]()

    def encode() -> None:
        kept[:] = [segmenter.encode(image)]

    def click() -> None:
        segmenter.decode(kept[0], **clicks)

    return encode, click


def prompts(size: int) -> dict[str, Any]:
    """Make a second click: two points and the logits of the first one."""
    return {
        "point_coords_xy": torch.tensor([[[0.4, 0.5], [0.7, 0.2]]]) * size,
        "point_labels": torch.tensor([[1, 0]]),
        "mask_logits": torch.randn(1, 1, size // 4, size // 4),
    }


def work(model: str, size: int, max_gb: float) -> None:
    """Answer "encode" and "click" on standard input with times, one JSON line each."""
    limit = int(max_gb * 2**30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    clicks = prompts(size)
    with torch.inference_mode():
        encode, click = sam_steps(size, clicks) if model == SAM else our_steps(model, size, clicks)
        steps = {"encode": encode, "click": click}
        for line in sys.stdin:
            try:
                wall, cpu = timed(steps[line.strip()])
            except (RuntimeError, MemoryError) as error:
                print(json.dumps({"error": str(error).splitlines()[0]}), flush=True)
                return
            print(json.dumps({"wall": wall, "cpu": cpu, "peak_bytes": peak_bytes()}), flush=True)


class Worker:
    """One model at one size in a process of its own."""

    def __init__(self, model: str, size: int, arguments: argparse.Namespace) -> None:
        self.model, self.size = model, size
        self.turns: dict[str, list[tuple[float, float]]] = {"encode": [], "click": []}
        self.error, self.peak_bytes = "", 0
        command = [sys.executable, __file__, "--worker", model, "--sizes", str(size)]
        command += ["--max-gb", str(arguments.max_gb)]
        environ = {**os.environ}
        if arguments.threads:
            environ["OMP_NUM_THREADS"] = str(arguments.threads)
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environ
        )

    def step(self, kind: str, *, keep: bool) -> None:
        """Have one step done; the first of a kind warms up and is not kept."""
        if self.error:
            return
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(kind + "\n")
        self.process.stdin.flush()
        answer = json.loads(self.process.stdout.readline() or '{"error": "the process ended"}')
        self.error = answer.get("error", "")
        if not self.error:
            self.peak_bytes = answer["peak_bytes"]
            if keep:
                self.turns[kind].append((answer["wall"], answer["cpu"]))

    def close(self) -> dict[str, Any]:
        """End the process and tell what was measured."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)
        row: dict[str, Any] = {"model": self.model, "size_px": self.size, "error": self.error}
        if self.error:
            return row
        encode, click = (summary(self.turns[kind]) for kind in ("encode", "click"))
        return row | {
            "encode_s": encode["median_s"],
            "encode_cpu_s": encode["median_cpu_s"],
            "click_s": click["median_s"],
            "click_cpu_s": click["median_cpu_s"],
            "peak_gb": self.peak_bytes / 2**30,
            "encode": encode,
            "click": click,
        }


def measure(arguments: argparse.Namespace) -> list[dict[str, Any]]:
    """Compare all models at all image sizes, asking them in turns."""
    workers = []
    for size in arguments.sizes:
        for model in arguments.models:
            name, _, only = model.partition("@")
            if only in ("", str(size)):
                workers.append(Worker(name, size, arguments))
    for kind, rounds in (("encode", arguments.rounds), ("click", 3 * arguments.rounds)):
        for number in range(rounds + 1):
            for worker in workers:
                worker.step(kind, keep=number > 0)
    rows = [worker.close() for worker in workers]
    timed_rows = {(row["model"], row["size_px"]): row for row in rows if not row["error"]}
    for (model, size), row in timed_rows.items():
        # How much longer than at half the size: 4 is linear in the pixels.
        half = timed_rows.get((model, size // 2))
        if half is not None:
            row["growth"] = row["encode_cpu_s"] / half["encode_cpu_s"]
        for name, other in (("mobile", "mobile-sam"), ("sam", SAM)):
            reference = timed_rows.get((other, size))
            if reference is not None:
                row[f"{name}_ratio"] = reference["encode_cpu_s"] / row["encode_cpu_s"]
    return rows


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=[512, 1024, 2048], help="pixels")
    parser.add_argument("--models", nargs="+", default=list(DEFAULT_MODELS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=0, help="0: as torch decides")
    parser.add_argument("--max-gb", type=float, default=14.0, help="address space of a process")
    parser.add_argument("--out", type=Path, default=RESULTS / "encoder.json")
    parser.add_argument("--worker", metavar="MODEL", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        work(arguments.worker, arguments.sizes[0], arguments.max_gb)
        return
    rows = measure(arguments)
    columns = [
        "model",
        "size_px",
        "encode_s",
        "encode_cpu_s",
        "growth",
        "mobile_ratio",
        "sam_ratio",
    ]
    print_table(rows, [*columns, "click_s", "click_cpu_s", "peak_gb", "error"])
    save(arguments.out, rows)


if __name__ == "__main__":
    main()
