"""`fine-tune`: a model of one's own from the command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import napari_hrsam as hrsam
from napari_hrsam.cli import main
from napari_hrsam.cli.fine_tune import Countdown
from napari_hrsam.training.fine_tuned import from_figures

QUICK = ["--steps", "1", "--minutes", "0", "--num-scored", "1", "--num-clicks", "1"]


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    """A folder of labels with 8 squares, beside the image that they are on."""
    image = np.full((128, 256), 50, np.uint8)
    with hrsam.create_labels(tmp_path / "cells.zarr", "cells", image.shape) as labels:
        for n in range(8):
            y, x = n // 4 * 64 + 10, n % 4 * 64 + 8
            image[y : y + 30, x : x + 32] = 200
            labels.write((y, x, y + 30, x + 32), np.ones((30, 32), bool), n + 1)
    Image.fromarray(image).save(tmp_path / "image.png")
    return tmp_path


@pytest.mark.torch
def test_a_model_is_taught_and_used_by_its_name(
    slide: Path,
    untrained_weights: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    image = slide / "image.png"
    arguments = ["fine-tune", str(slide / "cells.zarr"), "cells", "--image", str(image)]
    arguments += ["--model", str(untrained_weights), "--device", "cpu", *QUICK]
    assert main([*arguments, "--save-as", "mine", "--json", "--out", str(slide / "out")]) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)
    assert (figures["name"], figures["num_objects"], figures["num_held_out"]) == ("mine", 6, 1)
    assert from_figures(figures).before.noc85 == figures["before"]["noc85"]
    said = err.splitlines()
    assert "before: 1/1" in said
    assert "training: 1000/1000" in said
    assert main(["models"]) == 0
    row = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("mine "))
    assert "yours" in row
    assert main([*arguments, "--save-as", "mine"]) == 1
    assert "a model 'mine' already" in capsys.readouterr().err
    assert main([*arguments, "--save-as", "sam-b"]) == 1
    assert "that of a known model" in capsys.readouterr().err


def test_what_to_learn_from_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["a.zarr"], ["a.zarr", "cells", "--samples", "b"]):
        with pytest.raises(SystemExit) as exit_info:
            main(["fine-tune", *arguments, "--save-as", "mine"])
        assert exit_info.value.code == 2
        assert "PATH and NAME of a label image, or --samples" in capsys.readouterr().err


def test_the_time_that_is_left_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("napari_hrsam.cli.fine_tune.time.monotonic", lambda: now[0])
    told = Countdown()
    for seconds, done in ((0, 0), (0.5, 1), (10, 250), (30, 1000)):
        now[0] = 100.0 + seconds
        told("training", done, 1000)
    told("after", 0, 4)
    assert capsys.readouterr().err.splitlines() == [
        "training: 0/1000",
        "training: 250/1000, 30 s left",
        "training: 1000/1000",
        "after: 0/4",
    ]
