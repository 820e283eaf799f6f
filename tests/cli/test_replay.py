"""`replay`: committed objects drawn again by another model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ome_files import halves, write_ome

import napari_hrsam as hrsam
from napari_hrsam.cli import main

pytestmark = pytest.mark.torch


@pytest.fixture
def slide(tmp_path: Path, untrained_weights: Path) -> Path:
    """An OME-Zarr image with labels: an object that was clicked on, and one of no prompts."""
    array = np.zeros((100, 140), np.uint8)
    array[30:60, 40:90] = 200
    path = tmp_path / "slide.zarr"
    write_ome(path, halves(array, 2))
    with hrsam.create_labels(path, "cells", hrsam.open_image(path)) as labels:
        session = hrsam.Session(str(untrained_weights), path, labels)
        session.click((45, 60))
        session.commit(object_class="cell")
        labels.write((80, 100, 90, 120), np.ones((10, 20), bool), 9)
    return path


def test_objects_are_listed_with_their_scores_and_nothing_changes(
    slide: Path, untrained_weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hrsam.open_labels(slide, "cells", mode="r").read()
    arguments = ["replay", str(slide), "cells", "--model", str(untrained_weights)]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "mean IoU 1.000, median 1.000" in out
    first = next(line for line in out.splitlines() if line.startswith("1 "))
    assert first.split()[1] == "cell"
    assert first.split()[-1] == "1.000"
    assert "1 of 2 objects were not drawn: no prompts are known of it" in err
    assert main([*arguments, "--labels", "1", "--write", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["mean_iou"], figures["num_written"]) == (1.0, 1)
    assert [one["label"] for one in figures["objects"]] == [1]
    np.testing.assert_array_equal(hrsam.open_labels(slide, "cells", mode="r").read(), before)


def test_labels_alone_are_drawn_on_the_image_that_is_named(
    slide: Path, untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "alone").mkdir()
    (slide / "labels").rename(tmp_path / "alone" / "labels")
    alone = ["replay", str(tmp_path / "alone"), "cells", "--model", str(untrained_weights)]
    assert main([*alone, "--image", str(slide)]) == 0
    assert "mean IoU 1.000" in capsys.readouterr().out
    assert main(alone) == 1
    assert main([*alone, "--image", str(slide), "--labels", "9"]) == 1, "nothing was drawn"
    assert main([*alone, "--image", str(slide), "--labels", "4"]) == 1
    assert "got [4], which are not there" in capsys.readouterr().err
