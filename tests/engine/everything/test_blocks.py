"""The blocks of a run: by several processes, and killed at any moment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import auto_kills
import numpy as np
import pytest
from drawn_field import DrawnPredictor, touching_discs
from small_segmenter import STEM_CONFIG, build

from napari_hrsam.engine.everything.auto import auto
from napari_hrsam.errors import ConfigError
from napari_hrsam.storage.images.tile_source import ArrayImage


def contents(path: Path) -> dict[str, bytes]:
    """All files of the label image but its plan, which tells the size of the blocks."""
    top = path / "labels" / "auto-1"
    files = [file for file in top.rglob("*") if file.is_file() and file.name != "plan.json"]
    return {str(file.relative_to(top)): file.read_bytes() for file in files}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_any_moment_it_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    program = Path(auto_kills.__file__)
    num_killed = 0
    for seed in (1, 2):
        command = [sys.executable, str(program), str(tmp_path / str(seed)), str(seed), "12"]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        num_killed += int(done.stdout)
    assert num_killed > 5
    command = [sys.executable, str(program), str(tmp_path / "whole"), "0", "0"]
    subprocess.run(command, check=True, capture_output=True)
    whole = contents(tmp_path / "whole")
    assert any(name.startswith("0/c/") for name in whole)
    for seed in (1, 2):
        assert contents(tmp_path / str(seed)) == whole
        left = sorted(file.name for file in (tmp_path / str(seed) / "labels").glob(".*"))
        assert left == []


@pytest.mark.slow
def test_several_processes_give_the_same(tmp_path: Path) -> None:
    image = np.random.default_rng(1).integers(0, 256, (400, 380, 3), np.uint8)
    model = build(STEM_CONFIG)
    told: list[tuple[int, int]] = []
    options = {"model": model, "smallest_px": 4, "largest_px": 60, "block_px": 128}
    auto(image, path=tmp_path / "one", **options)
    report = auto(
        image,
        path=tmp_path / "two",
        workers=2,
        progress=lambda done, total: told.append((done, total)),
        **options,
    )
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    assert report.num_tiles > 0
    assert told[-1] == (12, 12)


def test_an_image_that_only_this_process_has_is_refused(tmp_path: Path) -> None:
    class Own(ArrayImage):
        """Cannot be pickled: it is known to this function alone."""

    with pytest.raises(ConfigError, match="expected an image that other processes can read"):
        auto(
            Own(np.zeros((300, 300, 3), np.uint8)),
            path=tmp_path,
            model=build(STEM_CONFIG),
            workers=2,
            block_px=128,
        )


def test_what_stands_in_for_the_model_is_true_to_it() -> None:
    labels = touching_discs((64, 64))
    real, drawn = build(STEM_CONFIG), DrawnPredictor(labels, tile_px=64)
    from napari_hrsam.engine.predictor import Predictor
    from napari_hrsam.geometry import Tile

    pixels, tile = np.zeros((64, 64, 3), np.uint8), Tile(0, 0, 0, 64)
    for one in (Predictor(real), drawn):
        embedding = one.encode(pixels, tile)
        dense = one.dense_maps(embedding)  # type: ignore[attr-defined]
        assert (dense.maps.shape, dense.maps.dtype) == ((3, 32, 32), np.float32)
        assert 0 <= dense.maps.min() <= dense.maps.max() <= 1
        assert (dense.features.shape, dense.features.dtype) == ((32, 16, 16), np.float16)
        assert embedding.arrays["embedding"].shape[2:] == (4, 4)
