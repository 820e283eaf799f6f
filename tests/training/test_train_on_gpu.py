"""The training script for lent GPU machines, in miniature on a CPU."""

from __future__ import annotations

import csv
import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from napari_hrsam.errors import ConfigError
from napari_hrsam.modeling.efficientnet import EfficientNetLite0
from napari_hrsam.training import tile_scores
from napari_hrsam.training.designs import DESIGNS, SAME_QUALITY, choose_design
from napari_hrsam.training.device_crops import UNCHANGED, DeviceCrops
from napari_hrsam.training.gpu_run import COLUMNS, Run, RunConfig, Trial, train_for
from napari_hrsam.training.pack import PackedSample, encode_sample, write_pack
from napari_hrsam.training.run_output import RunOutput
from napari_hrsam.training.tile_scores import objects_to_score, quality

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_on_gpu.py"
SOURCE = SCRIPT.parents[1] / "src"
# A lent machine has none of these.
ABSENT = (
    *("zarr", "numcodecs", "pooch", "requests", "platformdirs", "tifffile", "skimage"),
    *("filelock", "numba", "napari", "qtpy"),
)


def sample(index: int, split: str, pixels: NDArray[np.uint8], labels: NDArray[Any]) -> PackedSample:
    return PackedSample(
        key=f"{split}{index}",
        domain=("cells", "nuclei")[index % 2],
        source="drawn",
        licence="CC0",
        split=split,
        pixels=np.roll(pixels, 7 * index, 1),
        labels=np.roll(labels, 7 * index, 1).astype(np.int16),
        noc_objects=(300,) if split == "val" else (),
    )


@pytest.fixture
def samples(disc_image: NDArray[np.uint8], disc_labels: NDArray[np.uint16]) -> list[PackedSample]:
    return [sample(i, s, disc_image, disc_labels) for s in ("train", "val") for i in range(2)]


@pytest.fixture
def stem() -> dict[str, Tensor]:
    torch.manual_seed(0)
    state = EfficientNetLite0(32).state_dict()
    return {f"image_encoder.stem.net.{name}": x for name, x in state.items()}


@pytest.fixture
def command(
    tmp_path: Path, samples: list[PackedSample], stem: dict[str, Tensor]
) -> Callable[..., list[str]]:
    write_pack(tmp_path / "pack.zip", [encode_sample(s, quality=80) for s in samples])
    save_file(stem, tmp_path / "stem.safetensors")
    blocked = f"import runpy, sys; sys.modules.update(dict.fromkeys({ABSENT!r})); "
    run = f"sys.path.insert(0, {str(SOURCE)!r}); runpy.run_path({str(SCRIPT)!r}, None, '__main__')"
    files = ("--pack", "pack.zip", "--stem", "stem.safetensors", "--out", "out")

    def make(*options: str) -> list[str]:
        given = [*files, "--small", "--device", "cpu", *options]
        return [sys.executable, "-W", "ignore", "-c", blocked + run, *given]

    return make


@pytest.mark.slow
def test_whole_script(tmp_path: Path, command: Callable[..., list[str]]) -> None:
    options = ("--seconds", "1", "--designs-seconds", "1", "--designs", "no-trunk", "trunk")
    done = subprocess.run(
        command(*options), cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {
        *("result.json", "train.log", "steps.csv", "hrsam-tiny.safetensors")
    }
    facts = json.loads((out / "result.json").read_text())
    assert facts["images"] == {"train": 2, "val": 2}
    assert facts["kernels"]["torch"] < 1e-4
    assert max(facts["graphs"]["errors"]) < 1e-3
    assert set(facts["qualities"]) == {"no-trunk", "trunk"}
    assert facts["chosen"] == facts["design"] == "trunk"
    # It goes on from what the comparison has trained.
    assert facts["init"].endswith("trunk/trunk.safetensors")
    assert facts["hrsam-tiny"][-1]["step"] >= 2
    rows = list(csv.DictReader((out / "steps.csv").read_text().splitlines()))
    assert {row["name"] for row in rows} == {"no-trunk", "trunk", "hrsam-tiny"}
    assert all(math.isfinite(float(row["loss"])) for row in rows)
    log = (out / "train.log").read_text()
    for name in ("no-trunk", "trunk", "hrsam-tiny"):
        assert f"{name} SCORE" in log
    state = load_file(out / "hrsam-tiny.safetensors")
    assert state["mask_decoder.iou_token.weight"].dtype == torch.float16


@pytest.mark.slow
def test_told_to_end_it_leaves_weights_and_facts(
    tmp_path: Path, command: Callable[..., list[str]]
) -> None:
    given = command("--seconds", "600", "--design", "no-trunk")
    with subprocess.Popen(given, cwd=tmp_path, stdout=subprocess.DEVNULL) as process:
        out, rows = tmp_path / "out", 0
        while rows < 2 and process.poll() is None:
            time.sleep(0.2)
            steps = out / "steps.csv"
            rows = len(steps.read_text().splitlines()) if steps.exists() else 0
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    facts = json.loads((out / "result.json").read_text())
    assert facts["ended_early_at_step"] >= 2
    assert "mask_decoder.iou_token.weight" in load_file(out / "last.safetensors")


@pytest.fixture
def make_run(samples: list[PackedSample], stem: dict[str, Tensor]) -> Callable[..., Run]:
    def make(init: dict[str, Tensor] | None = None, **options: Any) -> Run:
        train = DeviceCrops(samples[:2], "cpu")
        val = DeviceCrops(samples[2:], "cpu", augmentation=UNCHANGED)
        objects = objects_to_score(val, samples[2:], 2)
        config = RunConfig(small=True, **options)
        run = Run(DESIGNS["no-trunk"], stem, train, val, objects, config, init)
        run.model.set_backends("auto", "torch")
        return run

    return make


def test_objects_to_score_are_those_of_the_pack(samples: list[PackedSample]) -> None:
    # The numbers of second labels mean other objects.
    twice = [replace(s, second_labels=s.labels) for s in samples[2:]]
    val = DeviceCrops(twice, "cpu", augmentation=UNCHANGED)
    rows = objects_to_score(val, twice, 5)
    assert val.object_layer[rows].tolist() == [0, 0]
    # 300 is the larger disc, the second object of each image.
    assert val.object_ids[rows].tolist() == [2, 2]
    assert sorted(val.object_sample[rows].tolist()) == [0, 1]
    same = DeviceCrops([replace(s, domain="cells") for s in samples[2:]], "cpu")
    assert len(objects_to_score(same, samples[2:], 1)) == 1


def test_a_run_starts_from_the_stem_and_lets_it_learn_later(
    make_run: Callable[..., Run], stem: dict[str, Tensor]
) -> None:
    run = make_run(stem_at=0.5, batch_factor=0.5)
    name = "image_encoder.stem.net.first.conv.weight"

    def moved() -> bool:
        return not torch.equal(run.model.state_dict()[name], stem[name])

    before = run.model.state_dict()["mask_decoder.iou_token.weight"].clone()
    run.advance(0.4)
    assert not moved()
    assert not torch.equal(run.model.state_dict()["mask_decoder.iou_token.weight"], before)
    run.advance(0.6)
    assert moved()


def test_a_run_starts_from_given_weights(make_run: Callable[..., Run], tmp_path: Path) -> None:
    first = make_run(seed=1)
    first.advance(0.1)
    first.save(tmp_path / "w.safetensors", ", here")
    state = load_file(tmp_path / "w.safetensors")
    second = make_run(seed=2, init=state)
    for model in (second.model, second.averaged):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, first.averaged.state_dict()[name], atol=2e-3, rtol=0)


def test_the_same_seed_gives_the_same_steps(make_run: Callable[..., Run]) -> None:
    reports = []
    for seed in (1, 1, 2):
        run = make_run(seed=seed)
        run.advance(0.1)
        reports.append(run.report())
    assert reports[0]["loss"] == reports[1]["loss"] != reports[2]["loss"]
    assert list(reports[0]) == list(COLUMNS[4:])


def test_report_is_of_the_block_before_the_last(make_run: Callable[..., Run]) -> None:
    run = make_run()
    seen = []
    for block in range(3):
        run._recent = [torch.full((6,), float(block)), torch.full((6,), float(block))]
        seen.append(run.report()["loss"])
    assert seen == [0, 0, 1]


def runs_out(run: Run, times: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let memory run out in the first steps; the numbers of crops that were tried."""
    step, tried = run.graphed.step, []

    def fails(batch: Any, *rest: Any) -> Any:
        tried.append(len(batch.images))
        if len(tried) <= times:
            raise torch.OutOfMemoryError
        return step(batch, *rest)

    monkeypatch.setattr(run.graphed, "step", fails)
    return tried


def quick(monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """Score without looking."""
    monkeypatch.setattr(run, "score", lambda _=("none",): scored(0.5))


def scored(value: float) -> dict[str, Any]:
    return {"none": {"iou1": value, "iou5": value, "spans": {}}}


def test_out_of_memory_halves_the_batch(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = make_run(batch_factor=2.0), RunOutput(tmp_path)
    tried = runs_out(run, 1, monkeypatch)
    quick(monkeypatch, run)
    train_for(run, Trial(name="x", seconds=0.5), out)
    assert tried[:2] == [4, 2]
    assert "out of memory" in (tmp_path / "train.log").read_text()
    assert out.facts["x"][-1]["batch_factor"] == 1.0


def test_memory_that_never_suffices_ends_the_run(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run()
    runs_out(run, 1000, monkeypatch)
    with pytest.raises(torch.OutOfMemoryError):
        train_for(run, Trial(name="x", seconds=5), RunOutput(tmp_path))


def test_the_best_weights_are_kept(
    make_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, out = make_run(), RunOutput(tmp_path)
    scores = iter([0.3, 0.6, 0.4, 0.4, 0.4, 0.4, 0.4, 0.4])
    monkeypatch.setattr(run, "score", lambda _: scored(next(scores)))
    now = [0.0]
    monkeypatch.setattr("napari_hrsam.training.gpu_run.time.monotonic", lambda: now[0])
    monkeypatch.setattr(run, "advance", lambda _: steps(run, now))
    saved = []
    monkeypatch.setattr(run, "save", lambda path: saved.append((path.name, run.step)))
    best = train_for(run, Trial(name="x", seconds=0.6, score_every=0.15), out)
    assert best == 0.6
    entries = out.facts["x"]
    assert [s for _, s in saved] == [entry["step"] for entry in entries[:2]]
    assert {name for name, _ in saved} == {"x.safetensors"}


def steps(run: Run, now: list[float]) -> None:
    """One step that takes a while, by the clock it is given, and computes nothing."""
    now[0] += 0.05
    run.step += 1
    run._recent.append(torch.zeros(6))


def test_score_of_a_run(make_run: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run, seen = make_run(), []

    def scores(model: Any, *_: Any, span: Any, ablation: str, **__: Any) -> Any:
        assert model is run.averaged
        seen.append((ablation, span))
        ious = torch.full((len(run.objects), 5), 0.5 + 0.1 * len(seen))
        return ious, torch.full((len(run.objects),), len(seen) != 2)

    monkeypatch.setattr(tile_scores, "tile_scores", scores)
    found = run.score(("none", "fine"))
    assert [a for a, _ in seen] == ["none"] * 4 + ["fine"] * 4
    # The second size shows no object and does not count.
    assert found["none"]["iou1"] == pytest.approx((0.6 + 0.8 + 0.9) / 3, abs=1e-3)
    assert list(found["none"]["spans"]) == ["0.06-0.125", "0.125-0.25", "0.3-0.5", "0.5-0.9"]
    assert quality(found["none"]) == pytest.approx(found["none"]["iou1"], abs=1e-4)


def test_output_is_whole_and_joined(tmp_path: Path) -> None:
    parts = []
    for name in ("a", "b"):
        part = RunOutput(tmp_path / name)
        part.say(f"{name} speaks")
        part.row(name, 1)
        part.put(value=name)
        parts.append(tmp_path / name)
    out = RunOutput(tmp_path / "out")
    out.say("begin")
    facts = out.join([*parts, tmp_path / "absent"])
    assert {name: f["value"] for name, f in facts.items()} == {"a": "a", "b": "b"}
    log = (tmp_path / "out" / "train.log").read_text()
    assert [line.split("s  ")[1] for line in log.splitlines()] == ["begin", "a speaks", "b speaks"]
    assert (tmp_path / "out" / "steps.csv").read_text().split() == ["a,1", "b,1"]
    out.put(more=1)
    assert json.loads((tmp_path / "out" / "result.json").read_text()) == {"more": 1}
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_choice_of_the_design() -> None:
    assert choose_design({"trunk": 0.5, "trunk-taught": 0.6, "no-trunk": 0.9}) == "trunk-taught"
    # Equal: the stem of one ends earlier, which is cheaper.
    near = 0.6 + 0.9 * SAME_QUALITY
    assert choose_design({"wide-stem": near, "trunk": 0.6}) == "trunk"
    assert choose_design({"wide-stem": 0.6 + 2 * SAME_QUALITY, "trunk": 0.6}) == "wide-stem"
    assert choose_design({"trunk-taught": 0.61, "trunk": 0.609}) == "trunk-taught"
    with pytest.raises(ConfigError, match="trunk"):
        choose_design({"no-trunk": 0.9})


def test_designs_fit_their_names() -> None:
    for name, design in DESIGNS.items():
        assert design.has_trunk == ("no-trunk" not in name)
        assert design.config.image_encoder.stem_stride == (32 if "wide" in name else 16)
    assert replace(DESIGNS["trunk"], stem_weight=0.5) == DESIGNS["trunk-taught"]
