"""`labels`: verify, compact, export and import from the command line."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tifffile
from label_files import blobs, write_labels

from napari_hrsam.cli import main
from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.label_image import create_labels, open_labels


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    path = tmp_path / "slide.zarr"
    write_labels(path, blobs((150, 200), 9), num_levels=3, scale=(0.5, 0.5), unit="micrometer")
    return path


def run(*arguments: object) -> int:
    return main(["labels", *map(str, arguments)])


@pytest.mark.parametrize("verb", ["verify", "compact", "export", "import"])
def test_help_of_every_verb_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run(verb, "--help")
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert f"example:\n  napari-hrsam labels {verb}" in shown
    assert "--json" in shown


def test_sound_labels_exit_with_0(slide: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("verify", slide, "cells") == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "3 levels" in err
    assert "8 objects, highest label 9: sound" in err
    assert run("verify", slide, "cells", "--json") == 0
    figures = json.loads(capsys.readouterr().out)
    assert (figures["is_sound"], figures["problems"], figures["highest_label"]) == (True, [], 9)


def test_problems_exit_with_1_until_they_are_repaired(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    chunk = slide / "labels/cells/1/c/2/3"
    chunk.write_bytes(b"damage")
    assert run("verify", slide, "cells") == 1
    out, err = capsys.readouterr()
    assert "chunk" in out
    assert "32,48,48,64" in out
    assert ": 1 problem\n" in err
    report = tmp_path / "report.json"
    assert run("verify", slide, "cells", "--json", report) == 1
    (problem,) = json.loads(report.read_text())["problems"]
    assert (problem["kind"], problem["level"], problem["box"]) == ("chunk", 1, [32, 48, 48, 64])
    assert run("verify", slide, "cells", "--repair") == 0
    out, err = capsys.readouterr()
    assert "(repaired)" in out
    assert "sound, 1 repaired" in err
    assert run("verify", slide, "cells") == 0


def test_many_problems_are_listed_in_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("napari_hrsam.storage.labels.regions.REGION_PX", 16)
    stack = np.stack([blobs((150, 200), 9), np.zeros((150, 200), np.uint32)])
    group = write_labels(tmp_path, stack, num_levels=2)
    group["1"][...] = 7
    assert run("verify", tmp_path, "cells") == 1
    out = capsys.readouterr().out
    assert len(out.splitlines()) == 2 + 50 + 1
    assert "and 20 more; --json lists all" in out
    assert " of plane 0" in out


def test_a_copy_in_shards_is_told(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("compact", slide, "cells", "--out", tmp_path / "b.zarr") == 0
    out, err = capsys.readouterr()
    assert "OME-Zarr version" in out
    assert "every pixel of every level is equal" in err
    write_labels(tmp_path / "v2.zarr", blobs((40, 50), 3), version="0.4")
    copy = tmp_path / "c.zarr"
    assert run("compact", tmp_path / "v2.zarr", "cells", "--out", copy, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["source_version"] == "0.4"
    assert "zarr v2 has no shards: the copy is OME-Zarr 0.5" in err
    assert run("compact", slide, "cells", "--out", copy) == 1
    assert "expected a new or an empty folder" in capsys.readouterr().err


def test_the_suffix_tells_the_format(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, kind in (("a.geojson", "geojson"), ("a.json", "coco"), ("a.TIF", "tiff")):
        assert run("export", slide, "cells", "--out", tmp_path / name, "--json") == 0
        out, err = capsys.readouterr()
        done = json.loads(out)
        assert (done["format"], done["num_objects"]) == (kind, 8)
        assert f"wrote {tmp_path / name}" in err
    assert len(json.loads((tmp_path / "a.geojson").read_text())["features"]) == 8
    assert len(json.loads((tmp_path / "a.json").read_text())["annotations"]) == 8
    out_file = tmp_path / "table.txt"
    assert run("export", slide, "cells", "--out", out_file, "--format", "csv") == 0
    assert "csv" in capsys.readouterr().out
    with out_file.open(newline="") as file:
        assert [row["unit"] for row in csv.DictReader(file)] == ["micrometer"] * 8


def test_options_reach_the_export(slide: Path, tmp_path: Path) -> None:
    labels = blobs((150, 200), 9)
    out = tmp_path / "a.tif"
    box = ("--box", "20,30,120,180")
    assert run("export", slide, "cells", "--out", out, *box, "--labels", "2-4,7") == 0
    expected = np.where(np.isin(labels, [2, 3, 4, 7]), labels, 0)[20:120, 30:180]
    np.testing.assert_array_equal(tifffile.imread(out), expected)
    assert run("export", slide, "cells", "--out", out, "--level", "2") == 1  # exists
    assert run("export", slide, "cells", "--out", out, "--level", "2", "--force") == 0
    assert tifffile.imread(out).shape == (38, 50)
    out = tmp_path / "a.geojson"
    more = ("--units", "physical", "--simplify", "2", "--object-type", "detection")
    assert run("export", slide, "cells", "--out", out, *more) == 0
    found = json.loads(out.read_text())
    assert (found["napari_hrsam"]["unit"], found["napari_hrsam"]["simplify_px"]) == (
        "micrometer",
        2,
    )
    assert found["features"][0]["properties"]["objectType"] == "detection"
    out = tmp_path / "a.json"
    assert run("export", slide, "cells", "--out", out, "--segmentation", "counts") == 0
    counts = json.loads(out.read_text())["annotations"][0]["segmentation"]["counts"]
    assert sum(counts) == 150 * 200


def test_a_plane_is_chosen(tmp_path: Path) -> None:
    stack = np.stack([blobs((40, 50), 3, seed) for seed in range(3)])
    write_labels(tmp_path / "a.zarr", stack)
    out = tmp_path / "a.tif"
    assert run("export", tmp_path / "a.zarr", "cells", "--out", out, "--plane", "2") == 0
    np.testing.assert_array_equal(tifffile.imread(out), stack[2])
    assert run("export", tmp_path / "a.zarr", "cells", "--out", out, "--force") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--out", "a.xyz"],
        ["--out", "a.csv", "--box", "1,2,3"],
        ["--out", "a.csv", "--box", "5,0,5,9"],
        ["--out", "a.csv", "--box", "a,b,c,d"],
        ["--out", "a.csv", "--labels", "x"],
        ["--out", "a.csv", "--plane", "z"],
        ["--out", "a.csv", "--units", "physical"],
        ["--out", "a.csv", "--level", "1"],
        ["--out", "a.tif", "--level", "-1"],
        ["--out", "a.geojson", "--simplify", "-1"],
        ["--out", "a.geojson", "--simplify", "far"],
        ["--out", "a.geojson", "--segmentation", "rle"],
        [],
    ],
)
def test_misuse_exits_with_2(slide: Path, options: list[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run("export", slide, "cells", *options)
    assert stop.value.code == 2


def test_what_fails_exits_with_1_and_one_line(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "a.csv"
    for arguments in (
        ("verify", slide, "nuclei"),
        ("compact", slide, "nuclei", "--out", out),
        ("export", slide, "nuclei", "--out", out),
        ("export", slide, "cells", "--out", out, "--labels", "99"),
        ("export", slide, "cells", "--out", out, "--box", "0,0,999,999"),
    ):
        assert run(*arguments) == 1
        (line,) = capsys.readouterr().err.strip().splitlines()[-1:]
        assert line.startswith("napari-hrsam: expected")
    assert not out.exists()


@pytest.mark.parametrize("arguments", [["--debug", "verify"], ["verify", "--debug"]])
def test_debug_shows_the_traceback_wherever_it_stands(
    slide: Path, arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **_: None)
    with pytest.raises(LabelsError, match="expected a label image 'nuclei'"):
        run(*arguments, slide, "nuclei")


def test_labels_open_elsewhere_are_not_repaired(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with create_labels(tmp_path, "cells", (64, 64)):
        assert run("verify", tmp_path, "cells") == 0
        assert run("verify", tmp_path, "cells", "--repair") == 1
    assert "only writer" in capsys.readouterr().err


def test_objects_are_imported_into_labels_that_are_made_for_an_image(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, made = tmp_path / "cells.geojson", tmp_path / "made.zarr"
    run("export", slide, "cells", "--out", file)
    image = tmp_path / "a.npy"
    np.save(image, np.zeros((150, 200), np.uint8))
    capsys.readouterr()
    arguments = "import", made, "cells", file, "--keep-ids"
    assert run(*arguments) == 1
    assert "like" in capsys.readouterr().err
    assert run(*arguments, "--like", image) == 0
    assert "8 objects of" in capsys.readouterr().err
    np.testing.assert_array_equal(
        open_labels(made, "cells", "r").read(), open_labels(slide, "cells", "r").read()
    )
    # All pixels are taken now.
    assert run(*arguments, "--json") == 1
    figures = json.loads(capsys.readouterr().out)
    assert (figures["num_objects"], figures["num_skipped"]) == (0, 8)
    assert "belong to other objects" in figures["skipped"][0]["reason"]
    assert run(*arguments, "--offset", "10,0", "--overwrite", "--allow-outside") == 0
    assert "cut" in capsys.readouterr().err


def test_no_labels_are_made_for_a_file_without_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.json").write_text("{}")
    np.save(tmp_path / "a.npy", np.zeros((15, 20), np.uint8))
    made = tmp_path / "made.zarr"
    assert run("import", made, "cells", tmp_path / "a.json", "--like", tmp_path / "a.npy") == 1
    assert "neither" in capsys.readouterr().err
    assert not made.exists()


def test_the_command_loads_neither_torch_nor_napari(slide: Path, tmp_path: Path) -> None:
    script = (
        "import sys; from napari_hrsam.cli import main; "
        f"status = main(['labels', 'export', {str(slide)!r}, 'cells', '--out', "
        f"{str(tmp_path / 'a.geojson')!r}]); "
        "assert not {'torch', 'napari', 'qtpy'} & set(sys.modules); sys.exit(status)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
