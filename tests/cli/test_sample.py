"""``napari-hrsam sample``."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import zarr

from napari_hrsam.cli import main
from napari_hrsam.sample import open_sample


def test_an_image_is_made_and_its_objects_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "slide.ome.zarr"
    assert main(["sample", str(path), "--size", "3000", "--seed", "4", "--look", "em"]) == 0
    out, err = capsys.readouterr()
    sample = open_sample(path)
    assert (sample.recipe.size_px, sample.recipe.seed, sample.recipe.look) == (3000, 4, "em")
    head, _, *rows = out.splitlines()
    assert head.split() == ["objects", "number", "least", "px", "largest", "px", "labels"]
    assert [row.split()[0] for row in rows] == ["lesion", "lobule", "gland", "nucleus"]
    assert sum(int(row.split()[1]) for row in rows) == len(sample.objects)
    assert rows[-1].endswith(f"..{len(sample.objects)}")
    assert f"wrote {path}: 3 levels, " in err


def test_figures_come_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "slide.ome.zarr"
    assert main(["sample", str(path), "--size", "300", "--json"]) == 0
    figures = json.loads(capsys.readouterr().out)
    assert figures["levels"] == [[300, 300]]
    assert sum(figures["num_objects"].values()) == len(open_sample(path).objects)
    files = (file for file in path.rglob("*") if file.is_file())
    assert figures["num_bytes"] == sum(file.stat().st_size for file in files)


def test_levels_are_filled_on_request(tmp_path: Path) -> None:
    path = tmp_path / "slide.ome.zarr"
    arguments = ["--size", "5000", "--fill", "0,1", "--fill-box", "0,0,600,100"]
    assert main(["sample", str(path), *arguments]) == 0
    assert zarr.open_array(path / "0", mode="r").nchunks_initialized == 2
    assert zarr.open_array(path / "1", mode="r").nchunks_initialized == 1


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(tmp_path), "--size", "300"]) == 1
    assert "expected a new path" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "PATH"),
        (["x", "--size", "0"], "expected a whole number of 1 or more, got '0'"),
        (["x", "--look", "blue"], "invalid choice"),
        (["x", "--fill", "a"], "expected levels such as 0 or 2,3, got 'a'"),
        (["x", "--fill-box", "0,0,5,5"], "expected --fill with --fill-box"),
        (["x", "--fill", "0", "--fill-box", "0,0,5"], "expected whole numbers Y0,X0,Y1,X1"),
        (["x", "--fill", "0", "--fill-box", "9,0,5,5"], "expected whole numbers Y0,X0,Y1,X1"),
    ],
)
def test_misuse_is_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["sample", *arguments])
    assert stop.value.code == 2
    assert told in capsys.readouterr().err


def test_a_size_out_of_range_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sample", str(tmp_path / "x"), "--size", "9"]) == 1
    assert "expected a size of 256" in capsys.readouterr().err
