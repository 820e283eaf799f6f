"""`auto` makes a label image of every object; killed or stopped, it goes on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ome_files import halves, write_ome

from napari_hrsam.cli import main
from napari_hrsam.engine.everything.strokes import learn_classes
from napari_hrsam.storage.label_image import open_labels


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    array = rng.normal(40, 4, (400, 360)).clip(0, 255)
    y, x = np.indices(array.shape)
    for cy in range(40, 400, 60):
        for cx in range(40, 360, 60):
            array[np.hypot(y - cy, x - cx) < rng.uniform(10, 16)] += 120
    write_ome(tmp_path / "slide.ome.zarr", halves(array.astype(np.uint8), 2))
    return tmp_path / "slide.ome.zarr"


@pytest.mark.weights
def test_the_shipped_model_finds_bright_discs(slide: Path, tmp_path: Path) -> None:
    out = tmp_path / "figures.json"
    arguments = ["auto", str(slide), "--level", "-1", "--labels", "discs", "--json", str(out)]
    assert main(arguments) == 0
    figures = json.loads(out.read_text())
    assert figures["name"] == "discs"
    labels = open_labels(slide, "discs", mode="r").read()
    centres = [(cy, cx) for cy in range(40, 400, 60) for cx in range(40, 360, 60)]
    found = {int(labels[centre]) for centre in centres} - {0}
    assert len(found) >= 0.8 * len(centres)
    # Again: it is there.
    assert main(arguments) == 0
    assert json.loads(out.read_text())["num_at_hand"] == figures["num_blocks"]


@pytest.mark.weights
def test_only_the_stroked_class_is_made(slide: Path, tmp_path: Path) -> None:
    strokes = {"ground": [[(10, 10), (10, 300)]], "disc": [[(40, 36), (40, 44)], (100, 100)]}
    file = learn_classes(slide, strokes, level=0).save(tmp_path / "discs.json")
    command = ["auto", str(slide), "--classes", str(file), "--class", "disc", "--apart"]
    assert main([*command, "--labels", "discs"]) == 0
    labels = open_labels(slide, "discs", mode="r").read()
    centres = [(cy, cx) for cy in range(40, 400, 60) for cx in range(40, 360, 60)]
    assert len({int(labels[centre]) for centre in centres} - {0}) >= 0.9 * len(centres)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--class", "disc"], "expected --classes and --class together"),
        (["--classes", "a.json"], "expected --classes and --class together"),
        (["--classes", "none.json", "--class", "disc"], "expected none.json to be a file of pixel"),
    ],
)
def test_classes_that_are_not_told_whole_are_refused(
    slide: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["auto", str(slide), *options]) == 1
    assert message in capsys.readouterr().err


# The command, interrupted as by Ctrl-C before the first tile is encoded.
INTERRUPTED = """
import signal, sys
from napari_hrsam.cli import auto, main

class Progress(auto.Progress):
    def __call__(self, done, total):
        super().__call__(done, total)
        signal.raise_signal(signal.SIGINT)

auto.Progress = Progress
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


@pytest.mark.torch
def test_interrupted_it_says_how_to_go_on(slide: Path, untrained_weights: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, "auto", str(slide), "--model", str(untrained_weights)],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert "stopped after 0 of 1 blocks, which are kept; run the same command again" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (slide / "labels" / "auto-1").exists()


def test_misuse_and_failure_are_told_apart(
    slide: Path, untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["auto", str(slide), "--workers", "0"])
    model = ["--model", str(untrained_weights)]
    assert main(["auto", str(slide), "--level", "40", *model]) == 1
    assert "expected a level from -1 to" in capsys.readouterr().err
    np.save(tmp_path / "plain.npy", np.zeros((70, 80), np.uint8))
    assert main(["auto", str(tmp_path / "plain.npy"), *model]) == 1
    assert "expected a folder for the labels" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "options", "message"),
    [
        ("auto", ["--shard", "3/3"], "expected I/N with I from 0 to N - 1, such as 0/3, got '3/3'"),
        ("embed", ["--shard", "1"], "expected I/N"),
        ("auto", ["--shard", "0/2", "--scheduler", "tcp://127.0.0.1:9"], "not allowed with"),
        ("auto", ["--scheduler", "tcp://127.0.0.1:9", "--workers", "2"], "got both"),
        ("replay", ["cells", "--write", "--workers", "2"], "expected one worker with --write"),
    ],
)
def test_misused_shards_and_clusters_end_with_2(
    command: str, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([command, "not-there.ome.zarr", *options])
    assert message in capsys.readouterr().err


def test_a_file_of_no_cluster_ends_with_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["auto", "not-there.ome.zarr", "--cluster", str(tmp_path / "slurm.yaml")]
    assert main(arguments) == 1
    assert "expected a YAML file with class: SLURMCluster" in capsys.readouterr().err
