"""`segment` on images that are no pictures: pyramids, stacks and gigapixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ome_files import halves, sparse_slide, write_ome

from napari_hrsam.cli import main
from napari_hrsam.storage.image_files import read_picture


def run(source: Any, weights: Path, out: Path, *more: str) -> dict[str, Any]:
    arguments = ["segment", str(source), "--model", str(weights), "--out", str(out), *more]
    assert main([*arguments, "--json", str(out / "scores.json")]) == 0
    (result,) = json.loads((out / "scores.json").read_text())["images"]
    assert isinstance(result, dict)
    return result


def test_a_small_pyramid_gets_a_whole_mask(untrained_weights: Path, tmp_path: Path) -> None:
    array = np.zeros((100, 140), np.uint8)
    array[30:60, 40:90] = 200
    write_ome(tmp_path / "cells.ome.zarr", halves(array, 2))
    result = run(tmp_path / "cells.ome.zarr", untrained_weights, tmp_path, "--point", "45,60")
    mask = read_picture(tmp_path / "cells.ome_mask.png")
    assert (mask.shape, mask[45, 60]) == ((100, 140), 255)
    assert result["mask_box"] == [0, 0, 100, 140]
    assert read_picture(tmp_path / "cells.ome_overlay.png").shape == (100, 140, 3)


def test_a_plane_of_a_stack_is_chosen(
    untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = np.zeros((2, 3, 96, 96), np.uint8)
    stack[1, 2, 20:50, 20:50] = 255
    write_ome(tmp_path / "stack.zarr", [stack], "tzyx")
    chosen = ["--point", "30,30", "--plane", "1,2"]
    run(tmp_path / "stack.zarr", untrained_weights, tmp_path, *chosen)
    overlay = read_picture(tmp_path / "stack_overlay.png")
    assert overlay[80, 80].max() < 150
    assert overlay[25, 48].max() > 100
    arguments = ["segment", str(tmp_path / "stack.zarr"), "--model", str(untrained_weights)]
    assert main([*arguments, "--point", "30,30", "--out", str(tmp_path)]) == 1
    assert "one index per axis of lengths (2, 3), got ()" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        main([*arguments, "--point", "30,30", "--plane", "one"])


def test_a_gigapixel_slide_gets_the_mask_of_the_part_that_was_looked_at(
    untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sparse_slide(tmp_path / "slide.zarr", 100_000, [(77_000, 52_000, 100)])
    click = ["--point", "77000,52000", "--point", "77000,52150,0"]
    result = run(tmp_path / "slide.zarr", untrained_weights, tmp_path, *click)
    y0, x0, y1, x1 = result["mask_box"]
    assert y0 <= 77_000 < y1
    assert x0 <= 52_000 < x1
    mask = read_picture(tmp_path / "slide_mask.png")
    assert mask.shape == (y1 - y0, x1 - x0)
    assert mask[77_000 - y0, 52_000 - x0] == 255
    assert mask[77_000 - y0, 52_150 - x0] == 0
    overlay = read_picture(tmp_path / "slide_overlay.png")
    # The green disc of the click.
    assert overlay[77_000 - y0, 52_000 - x0].tolist() == [40, 220, 60]
    assert f"rows {y0} to {y1}, columns {x0} to {x1} of (100000, 100000)" in capsys.readouterr().err


def test_the_overlay_of_a_large_part_is_shrunk(
    untrained_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.cli.segment.MAX_OVERLAY_PX", 600)
    monkeypatch.setattr("napari_hrsam.engine.object_predictor.MAX_LOOKS", 1)
    sparse_slide(tmp_path / "slide.zarr", 20_000, [(10_000, 10_000, 200)])
    click = ["--point", "10000,10000", "--level", "2"]
    result = run(tmp_path / "slide.zarr", untrained_weights, tmp_path, *click)
    y0, x0, y1, x1 = result["mask_box"]
    overlay = read_picture(tmp_path / "slide_overlay.png")
    step = (y1 - y0) // overlay.shape[0]
    assert step > 1
    assert overlay.shape == ((y1 - y0) // step, (x1 - x0) // step, 3)
    assert max(overlay.shape) <= 600
    assert overlay[(10_000 - y0) // step, (10_000 - x0) // step].tolist() == [40, 220, 60]
