"""Train hrsam-tiny on a machine that has a GPU and PyTorch but none of our storage libraries.

    python scripts/pack_for_gpu.py ... --out .gpu/pack.zip          (here)
    python scripts/import_efficientnet.py WHEEL .gpu/stem.safetensors  (here)
    PYTHONPATH=src python scripts/train_on_gpu.py --pack .gpu/pack.zip \
        --stem .gpu/stem.safetensors --out out --seconds 560           (there)

In this order, on one clock: the images are decoded while another process compares the kernels with
the CPU; all DESIGNS train beside one another for ``--designs-seconds`` (they share the GPU, so they
get equal time) and are scored; the best one that is built around the trunk goes on for the rest of
the time. What is there at any moment is in the output folder: best weights (fp16), log, JSON; also
when the process is told to end.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from napari_hrsam.modeling.models import HRSAM_TINY, ModelConfig
from napari_hrsam.modeling.saving import save_weights
from napari_hrsam.modeling.segmenter import Segmenter
from napari_hrsam.modeling.selective_scan import numba_ready
from napari_hrsam.training.click_rounds import ClickConfig
from napari_hrsam.training.click_task import ClickTask
from napari_hrsam.training.dense_task import StemTeacher
from napari_hrsam.training.device_crops import UNCHANGED, DeviceCrops
from napari_hrsam.training.device_images import objects_of
from napari_hrsam.training.optimizer import (
    STEM_PREFIX,
    average_into,
    make_optimizer,
    set_rate,
)
from napari_hrsam.training.pack import PackedSample, read_pack
from napari_hrsam.training.tile_scores import (
    SPANS,
    Ablation,
    spread_over_domains,
    summarize_scores,
    tile_scores,
)

LEARNING_RATE = 1.5e-3
CROPS = ((256, 64, 3), (512, 16, 3))
"""Side in pixels, crops and objects per crop of the batches: equal numbers of pixels. Every size
costs each process some seconds at its first steps, for the plans of its convolutions."""
CROP_SHARES = ((0.6, 0.4), (0.3, 0.7))
"""How often each is drawn, at the start and at the end."""
AVERAGE_EVERY = 4
WIDE_SPAN = (0.35, 0.95)


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """One network and how it is taught."""

    config: ModelConfig
    stem_weight: float = 0.0
    has_trunk: bool = True


def _design(
    *, depth: int = 6, stem_stride: int = 16, levels: int = 2, stem_weight: float = 0.0
) -> Design:
    encoder = replace(
        HRSAM_TINY.image_encoder,
        depth=depth,
        stage_ends=tuple(range(2, depth, 3)),
        stem_stride=stem_stride,
    )
    decoder = replace(HRSAM_TINY.decoder, context_levels=levels)
    config = replace(HRSAM_TINY, image_encoder=encoder, decoder=decoder)
    return Design(config=config, stem_weight=stem_weight, has_trunk=depth > 0)


DESIGNS: dict[str, Design] = {
    # The stem's stride-32 map joins the tokens, as in the prototype.
    "wide-stem": _design(stem_stride=32),
    "wide-stem-no-trunk": _design(stem_stride=32, depth=0),
    # The trunk is the only source of wider context in the encoder.
    "trunk": _design(),
    # The same, and it is taught the stem's stride-32 map in the first half of the time.
    "trunk-taught": _design(stem_weight=0.5),
    "no-trunk": _design(depth=0, stem_weight=0.5),
}


class Run:
    """One training on one device, limited by time.

    Parameters
    ----------
    design : Design
    stem : dict of str to Tensor
        The pretrained stem, see ``scripts/import_efficientnet.py``.
    train, val : DeviceCrops
        On the device.
    objects : (P,) int64
        Rows of val's tables to score.
    seed : int
    small : bool
        Tiny batches, for a rehearsal.
    """

    def __init__(
        self,
        design: Design,
        stem: dict[str, torch.Tensor],
        train: DeviceCrops,
        val: DeviceCrops,
        objects: torch.Tensor,
        *,
        seed: int,
        small: bool,
    ) -> None:
        torch.manual_seed(seed)
        self.device, self.seed, self.small = train.device, seed, small
        self.train, self.val, self.objects = train, val, objects
        self.model = Segmenter(design.config)
        mine = self.model.state_dict()
        self.model.load_state_dict({k: v for k, v in stem.items() if k in mine}, strict=False)
        self.model.to(self.device)
        if self.device.type == "cpu":
            self.model.set_backends("auto", "numba" if numba_ready() else "torch")
        self.averaged = Segmenter(design.config).to(self.device).eval().requires_grad_(False)
        self.averaged.load_state_dict(self.model.state_dict())
        teacher = None
        if design.stem_weight:
            teacher = StemTeacher(stem, design.config.decoder.embed_dim)
        clicks = ClickConfig(stem_weight=design.stem_weight)
        self.task = ClickTask(clicks, teacher).to(self.device)
        learning = [*self.model.named_parameters()]
        learning += [(n, p) for n, p in self.task.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in learning]
        self.optimizer = make_optimizer(
            learning, learning_rate=LEARNING_RATE, weight_decay=0.02, stem_factor=0.1
        )
        self.stem = [p for n, p in learning if n.startswith(STEM_PREFIX)]
        self._let_stem_learn(False)
        # Only to leave out steps with infinite gradients without asking the device.
        self.scaler = torch.amp.GradScaler(
            self.device.type, init_scale=1.0, growth_factor=1.0001, growth_interval=10**9
        )
        self.batch_factor: float = 1
        self.learning_rate, self.stem_at = LEARNING_RATE, 0.35
        self.fixed_size: int | None = None
        self.step = self.crops = self.objects_seen = 0
        self.recent: list[torch.Tensor] = []

    def _let_stem_learn(self, learns: bool) -> None:
        for parameter in self.stem:
            parameter.requires_grad_(learns)

    def batch(self, rng: np.random.Generator, generator: torch.Generator, done: float) -> Any:
        """Draw crops: half of the batches with large objects."""
        start, end = (np.array(s) for s in CROP_SHARES)
        index = int(rng.choice(len(CROPS), p=start + (end - start) * done))
        index = index if self.fixed_size is None else self.fixed_size
        px, num, objects = CROPS[index]
        num = int(num * self.batch_factor)
        if self.small:
            px, num, objects = px // 4, 2, 2
        low = max(0.06, 20.0 / px)
        span = (low, 0.5) if rng.random() < 0.5 else WIDE_SPAN
        return self.train.batch(
            generator, crop_px=px, num_crops=num, objects_per_crop=objects, span=span
        )

    def advance(self, done: float) -> None:
        """Do one step; nothing waits for the device."""
        rng = np.random.default_rng([self.seed, self.step])
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        if done >= self.stem_at and self.stem and not self.stem[0].requires_grad:
            self._let_stem_learn(True)
        warm = min(1.0, (self.step + 1) / 100)
        # Full rate for the first third, then a cosine to zero.
        fall = 0.5 * (1 + math.cos(math.pi * max(0.0, (done - 0.3) / 0.7)))
        set_rate(self.optimizer, self.learning_rate * warm * fall)
        batch = self.batch(rng, generator, done)
        self.model.train()
        with torch.autocast(self.device.type, torch.bfloat16):
            out = self.task(self.model, batch, rng, done)
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(out.loss).backward()
        self.scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_([p for p in self.parameters if p.grad is not None], 1.0)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.step % AVERAGE_EVERY == 0:
            decay = 0.998**AVERAGE_EVERY
            average_into(self.averaged, self.model, decay, self.step // AVERAGE_EVERY)
        self.crops += len(batch.images)
        self.objects_seen += len(batch.masks)
        last = out.ious[-1] if len(out.ious) > 1 else torch.full_like(out.loss, torch.nan)
        parts = [out.parts.get(k, torch.full_like(out.loss, torch.nan)) for k in PARTS]
        self.recent.append(torch.stack([out.loss.detach(), out.ious[0], last, *parts]))

    def report(self) -> dict[str, float]:
        """Average what the last steps said; waits for the device."""
        values = torch.stack(self.recent).float().nanmean(0).tolist()
        self.recent.clear()
        return dict(zip(("loss", "iou_first", "iou_last", *PARTS), values, strict=True))

    @torch.no_grad()
    def score(self, ablations: tuple[Ablation, ...] = ("none",)) -> dict[str, Any]:
        """Score the averaged weights: by size of the object, and mean of the sizes."""
        out: dict[str, Any] = {}
        for ablation in ablations:
            rows: dict[str, Any] = {}
            for span in SPANS:
                with torch.autocast(self.device.type, torch.bfloat16):
                    ious, valid = tile_scores(
                        self.averaged,
                        self.val,
                        self.objects,
                        span=span,
                        ablation=ablation,
                        tile_px=128 if self.small else 512,
                        at_once=4 if self.small or self.device.type == "cpu" else 32,
                    )
                domain = self.val.object_domain[self.objects]
                rows[f"{span[0]}-{span[1]}"] = summarize_scores(
                    ious, valid, domain, self.val.domains
                )
            keys = ("iou1", "iou3", "iou5", "drops")
            found = [row for row in rows.values() if row["objects"]]
            mean = {k: round(float(np.mean([row[k] for row in found])), 4) for k in keys}
            out[ablation] = {**mean, "spans": rows}
        return out


PARTS = ("clicks", "dense", "stem")


def quality(score: dict[str, Any]) -> float:
    """The number by which weights are chosen: mean of IoU@1 and IoU@5 over sizes and domains."""
    return 0.5 * (float(score["none"]["iou1"]) + float(score["none"]["iou5"]))


class Busy:
    """How busy the GPU was, sampled four times a second by the driver's own tool."""

    def __init__(self) -> None:
        self.values: list[float] = []
        command = ["nvidia-smi", "--query-gpu=utilization.gpu", "--format=csv,noheader,nounits"]
        try:
            self.process = subprocess.Popen(
                [*command, "-lms", "250"], stdout=subprocess.PIPE, text=True
            )
        except OSError:
            self.process = None
            return
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


class Output:
    """The output folder: what is there is whole at any moment."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.facts: dict[str, Any] = {}

    def put(self, **facts: Any) -> None:
        """Add to ``result.json``."""
        self.facts.update(facts)
        path = self.folder / "result.json"
        path.with_suffix(".part").write_text(json.dumps(self.facts, indent=1))
        path.with_suffix(".part").replace(path)

    def weights(self, run: Run, name: str, seen: str) -> None:
        """Write the averaged weights, fp16."""
        save_weights(run.averaged, self.folder / f"{name}.safetensors", trained_on=seen)


def train_for(
    run: Run,
    seconds: float,
    out: Output,
    name: str,
    *,
    score_every: float | None = None,
    busy: Busy | None = None,
    ablations: tuple[Ablation, ...] = ("none", "embedding", "fine"),
) -> None:
    """Train for a time, log every second or so, keep the best weights.

    Parameters
    ----------
    run : Run
    seconds : float
        With the scores between, without the last one.
    out : Output
    name : str
        Of the weight file, the log and the entry in the JSON.
    score_every : float, optional
        Seconds between scores; none by default.
    busy : Busy, optional
    ablations : tuple of str
        Of the last score.
    """
    start = time.monotonic()
    next_score = score_every or math.inf
    best = -1.0
    with (out.folder / f"{name}.csv").open("w", newline="") as stream:
        writer = csv.writer(stream)
        head = ("seconds", "step", "crops", "loss", "iou_first", "iou_last", *PARTS)
        writer.writerow(head)
        while (elapsed := time.monotonic() - start) < seconds:
            for _ in range(2 if run.small else 10):
                run.advance(min(1.0, (time.monotonic() - start) / seconds))
            row = run.report()
            values = [round(elapsed, 1), run.step, run.crops, *(round(v, 4) for v in row.values())]
            writer.writerow(values)
            stream.flush()
            if run.step % 100 == 0 or run.small:
                rate = run.crops / (time.monotonic() - start)
                say(
                    f"{name} {values[0]:.0f} s step {run.step} {rate:.0f} crops/s "
                    f"loss {row['loss']:.3f} IoU first {row['iou_first']:.3f} "
                    f"last {row['iou_last']:.3f}"
                )
            if elapsed > next_score:
                next_score += score_every or math.inf
                best = max(best, keep_if_best(run, out, name, best, busy))
    keep_if_best(run, out, name, best, busy, ablations)


def keep_if_best(
    run: Run,
    out: Output,
    name: str,
    best: float,
    busy: Busy | None,
    ablations: tuple[Ablation, ...] = ("none",),
) -> float:
    """Score, write what was found, and the weights if they are the best so far."""
    begin = time.monotonic()
    score = run.score(ablations)
    found = quality(score)
    seen = f"{run.step} steps, {run.crops} crops, {run.objects_seen} objects on one GPU"
    entry = {
        "step": run.step,
        "crops": run.crops,
        "objects": run.objects_seen,
        "quality": round(found, 4),
        "gpu_busy_percent": busy.mean() if busy else None,
        "seconds_to_score": round(time.monotonic() - begin, 1),
        "score": score,
    }
    out.put(**{name: [*out.facts.get(name, []), entry]})
    sizes = {k: (v["iou1"], v["iou5"]) for k, v in score["none"]["spans"].items() if v["objects"]}
    say(f"{name} SCORE {found:.4f} at step {run.step}: IoU@1, @5 by size {sizes}")
    if found > best:
        out.weights(run, name, seen)
    return found


def say(text: str) -> None:
    """Print one line at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def choose(out: Output, scores: dict[str, dict[str, Any]]) -> str:
    """Choose the design that goes on: the best with a trunk; of equals the cheapest.

    Designs that differ by less than 0.005 count as equal; the click is the cheaper the fewer levels
    the decoder has, the encoder where the stem ends early.
    """
    found = {name: quality(score) for name, score in scores.items()}
    with_trunk = {n: q for n, q in found.items() if DESIGNS[n].has_trunk}
    near = [n for n, q in with_trunk.items() if q >= max(with_trunk.values()) - 0.005]

    def cost(name: str) -> tuple[int, int]:
        config = DESIGNS[name].config
        encoder: Any = config.image_encoder
        return encoder.stem_stride, config.decoder.context_levels

    chosen = min(near, key=lambda n: (cost(n), -with_trunk[n]))
    out.put(designs=found, chosen=chosen)
    say(f"designs {found}; chosen: {chosen}")
    return chosen


def check_kernels(device: str) -> dict[str, Any]:
    """Compare what the encoder runs on the device with the CPU reference, in float32."""
    from napari_hrsam.modeling.selective_scan import SCAN_BACKENDS

    torch.manual_seed(0)
    model = Segmenter(HRSAM_TINY).eval()
    image = torch.rand(2, 3, 256, 256) * 255
    facts: dict[str, Any] = {"torch": torch.__version__, "device": device}
    if device == "cuda":
        facts["name"] = torch.cuda.get_device_name()
    with torch.no_grad():
        expected = model.encode(image).embedding
        model.to(device)
        for backend in SCAN_BACKENDS:
            if backend in ("reference", "numba", "mamba"):
                continue
            if backend == "triton" and device == "cpu":
                continue
            model.set_backends("auto", backend)
            try:
                found = model.encode(image.to(device)).embedding.cpu()
                facts[backend] = float((found - expected).norm() / expected.norm())
            except Exception:  # A kernel that does not run here is a finding, not an end.
                facts[backend] = traceback.format_exc(limit=3)
    return facts


def child(work: Any, log: Path) -> int:
    """Run a function in a forked process, which shares the decoded images; give its number."""
    number = os.fork()
    if number:
        return number
    status = 1
    try:
        with log.open("w") as stream:
            os.dup2(stream.fileno(), 2)
            work()
        status = 0
    except BaseException:
        say(f"{log.stem} FAILED: {traceback.format_exc(limit=6)}")
    os._exit(status)


def wait_for(children: dict[int, str], seconds: float) -> None:
    """Wait for forked processes, but end those that take too long."""
    end = time.monotonic() + seconds
    while children:
        for number in list(children):
            if os.waitpid(number, os.WNOHANG)[0]:
                del children[number]
            elif time.monotonic() > end:
                say(f"{children[number]} took too long and is ended")
                os.kill(number, signal.SIGKILL)
        time.sleep(0.05)


def profile(run: Run, out: Output) -> None:
    """Say where the time of a step goes, and what makes the host wait for the device."""
    facts: dict[str, Any] = {}
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    for factor, index in ((1, 0), (4, 0), (4, 1)):
        run.batch_factor, run.fixed_size = factor, index
        torch.cuda.reset_peak_memory_stats()
        begin = time.monotonic()
        for _ in range(4):
            run.advance(0.9)
        run.report()
        start = time.monotonic()
        for _ in range(8):
            run.advance(0.9)
        queued = time.monotonic() - start
        run.report()
        took = time.monotonic() - start
        row = {
            "first_4_s": round(start - begin, 2),
            "step_s": round(took / 8, 4),
            "host_s": round(queued / 8, 4),
            "crops_per_s": round(8 * int(CROPS[index][1] * factor) / took),
            "peak_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2),
            "reserved_gb": round(torch.cuda.memory_reserved() / 1e9, 2),
        }
        facts[f"{CROPS[index][0]} px, {factor}"] = row
        say(json.dumps([CROPS[index][0], factor, row]))
        out.put(profile=facts)
    run.batch_factor, run.fixed_size = 4, 1
    with torch.profiler.profile(activities=activities) as profiler:
        for _ in range(3):
            run.advance(0.9)
        run.report()
    table = profiler.key_averages()
    text = table.table(sort_by="self_cuda_time_total", row_limit=45, max_name_column_width=50)
    (out.folder / "profile.txt").write_text(text)
    say(text[-9000:])


def objects_to_score(val: DeviceCrops, samples: list[PackedSample], at_most: int) -> torch.Tensor:
    """Rows of the packed objects to click on, up to ``at_most`` of every domain."""
    rows: list[int] = []
    table = list(
        zip(
            val.object_sample.tolist(),
            val.object_ids.tolist(),
            val.object_layer.tolist(),
            strict=True,
        )
    )
    wanted = []
    for sample in (samples[i] for i in val.sample_index.tolist()):
        values = np.union1d(np.unique(sample.labels), [0])
        wanted.append(set(np.searchsorted(values, sample.noc_objects).tolist()))
    for row, (sample, number, layer) in enumerate(table):
        if layer == 0 and number in wanted[sample]:
            rows.append(row)
    chosen = torch.tensor(rows, dtype=torch.long, device=val.device)
    return chosen[spread_over_domains(val.object_domain[chosen], at_most)]


def _clock(args: argparse.Namespace) -> Iterator[float]:
    start = time.monotonic()
    while True:
        yield args.seconds - (time.monotonic() - start)


def main() -> None:
    """Decode, check, compare designs, train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pack", type=Path, required=True)
    parser.add_argument("--stem", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=560, help="of the whole command")
    parser.add_argument("--designs-seconds", type=float, default=150, help="0: no comparison")
    parser.add_argument("--designs", nargs="+", default=list(DESIGNS), choices=list(DESIGNS))
    parser.add_argument("--design", choices=list(DESIGNS), help="train this one on")
    parser.add_argument("--score-every", type=float, default=110, help="seconds between scores")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--init", type=Path, help="weights of the design to start from")
    parser.add_argument("--learning-rate", type=float, default=LEARNING_RATE, help="its peak")
    parser.add_argument(
        "--stem-at", type=float, default=0.35, help="share of the time at which the stem learns too"
    )
    parser.add_argument("--batch-factor", type=float, default=4.0, help="on the numbers of crops")
    parser.add_argument("--profile", action="store_true", help="say where the time goes, and stop")
    parser.add_argument("--small", action="store_true", help="tiny batches: a rehearsal on a CPU")
    args = parser.parse_args()
    # Children are forked after the images are decoded; a pool of threads would not survive that.
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.allow_tf32 = True
    left, out = _clock(args), Output(args.out)
    next(left)

    def check() -> None:
        facts = check_kernels(args.device)
        (args.out / "kernels.json").write_text(json.dumps(facts, indent=1))
        say(f"kernels, relative error against the CPU: {facts}")

    checking = child(check, args.out / "check.err")
    samples = read_pack(args.pack, workers=2 if args.small else 16)
    parts = {s: [x for x in samples if x.split == s] for s in ("train", "val")}
    workers = 2 if args.small else 16
    with ThreadPoolExecutor(workers) as pool:
        measured = {name: list(pool.map(objects_of, parts[name])) for name in parts}
    stem = {k: v.float() for k, v in load_file(args.stem).items()}
    wait_for({checking: "the check of the kernels"}, 60)
    say(f"{len(parts['train'])} images for training; {next(left):.0f} s left")

    def make(name: str) -> Run:
        train = DeviceCrops(parts["train"], args.device, measured=measured["train"])
        val = DeviceCrops(
            parts["val"], args.device, measured=measured["val"], augmentation=UNCHANGED
        )
        objects = objects_to_score(val, parts["val"], 2 if args.small else 12)
        run = Run(DESIGNS[name], stem, train, val, objects, seed=args.seed, small=args.small)
        say(f"{name}: {len(objects)} objects to score; {next(left):.0f} s left")
        return run

    chosen = args.design or "trunk-taught"
    if args.designs_seconds:

        def compete(name: str) -> None:
            mine = Output(args.out / "designs" / name)
            run = make(name)
            # Half of the objects: seven scores at once take their time.
            run.objects = run.objects[::2]
            # Beside one another they fill the GPU with small batches as well.
            run.batch_factor = 0.75
            train_for(run, args.designs_seconds, mine, name, ablations=("none", "embedding"))

        folder = args.out / "designs"
        folder.mkdir(exist_ok=True)
        names = args.designs
        started = {child(lambda n=n: compete(n), folder / f"{n}.err"): n for n in names}
        wait_for(started, args.designs_seconds + (600 if args.small else 60))
        facts = {
            name: json.loads((folder / name / "result.json").read_text())[name][-1]
            for name in names
            if (folder / name / "result.json").exists()
        }
        out.put(design_facts=facts)
        if any(DESIGNS[n].has_trunk for n in facts):
            best = choose(out, {n: f["score"] for n, f in facts.items()})
            chosen = args.design or best
    run = make(chosen)
    if args.profile:
        profile(run, out)
        return
    busy = Busy()
    run.learning_rate, run.stem_at = args.learning_rate, args.stem_at
    start_file = args.init or args.out / "designs" / chosen / f"{chosen}.safetensors"
    if start_file.exists():
        state = {k: v.float() for k, v in load_file(start_file).items()}
        for model in (run.model, run.averaged):
            model.load_state_dict({k: v.to(args.device) for k, v in state.items()})

    run.batch_factor = args.batch_factor
    out.put(domain_shares=run.train.domain_shares, images=len(parts["train"]))

    def end(*_: object) -> None:
        seen = f"{run.step} steps, {run.crops} crops on one GPU, ended early"
        out.weights(run, "ended", seen)
        sys.exit(1)

    signal.signal(signal.SIGTERM, end)
    reserve = 3 if args.small else 22
    say(f"{chosen} goes on for {next(left) - reserve:.0f} s")
    for _ in range(3):
        try:
            train_for(
                run,
                max(1.0, next(left) - reserve),
                out,
                "hrsam-tiny",
                score_every=args.score_every,
                busy=busy,
            )
            break
        except torch.cuda.OutOfMemoryError:
            run.batch_factor /= 2
            torch.cuda.empty_cache()
            say(f"out of memory: half of the crops from now on, factor {run.batch_factor}")
    save_weights(run.model, args.out / "last.safetensors", trained_on="last step, not averaged")
    busy.stop()
    if args.device == "cuda":
        out.put(peak_memory_gb=round(torch.cuda.max_memory_allocated() / 1e9, 2))
    say(f"done, {next(left):.0f} s left")


if __name__ == "__main__":
    main()
