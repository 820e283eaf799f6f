"""`segment`: files in, masks and figures out."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import tifffile

from napari_hrsam.cli import main
from napari_hrsam.storage.images.pictures import read_picture


def test_clicks_are_obeyed_in_the_mask_that_is_written(
    disc_png: Path, untrained_weights: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = ["segment", str(disc_png), "--model", str(untrained_weights), "--device", "cpu"]
    clicks = ["--point", "50,60", "--point", "10,10,0"]
    assert main([*arguments, *clicks, "--out", str(out), "--json", str(out / "scores.json")]) == 0
    mask = read_picture(out / "disc_mask.png")
    assert mask.shape == (96, 128)
    assert mask[50, 60] == 255
    assert mask[10, 10] == 0
    overlay = read_picture(out / "disc_overlay.png")
    assert overlay.shape == (96, 128, 3)
    figures = json.loads((out / "scores.json").read_text())
    (result,) = figures["images"]
    assert result["area_px"] == np.count_nonzero(mask)
    assert result["mask"] == str(out / "disc_mask.png")
    assert result["encode_s"] > 0
    assert result["decode_s"] > 0


def test_table_is_on_stdout_and_progress_on_stderr(
    disc_png: Path,
    untrained_weights: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = ["segment", str(disc_png), "--box", "28,38,72,82", "--no-overlay"]
    assert main([*arguments, "--format", "tif", "--model", str(untrained_weights)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[0].startswith("image")
    assert "disc_mask.tif" in out
    assert err == "wrote disc_mask.tif\n"
    assert set(np.unique(tifffile.imread("disc_mask.tif"))) <= {0, 255}
    assert not Path("disc_overlay.png").exists()


def test_separate_channels_are_shown_as_asked(untrained_weights: Path, tmp_path: Path) -> None:
    stack = np.zeros((5, 64, 64), np.uint16)
    stack[3, 20:40, 20:40] = 4000
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    arguments = ["segment", str(tmp_path / "stack.tif"), "--model", str(untrained_weights)]
    channels = ["--channel-axis", "0", "--channels", "3", "--point", "30,30"]
    assert main([*arguments, *channels, "--out", str(tmp_path)]) == 0
    overlay = read_picture(tmp_path / "stack_overlay.png")
    assert overlay.shape == (64, 64, 3)


def test_a_plane_of_a_tiff_stack_is_chosen(
    untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stack = np.zeros((5, 64, 64), np.uint16)
    stack[3, 20:40, 20:40] = 4000
    tifffile.imwrite(tmp_path / "stack.tif", stack, photometric="minisblack")
    arguments = ["segment", str(tmp_path / "stack.tif"), "--model", str(untrained_weights)]
    arguments += ["--point", "30,30", "--out", str(tmp_path)]
    assert main(arguments) == 1
    assert "--plane 2 on the command line" in capsys.readouterr().err
    assert main([*arguments, "--plane", "3"]) == 0
    overlay = read_picture(tmp_path / "stack_overlay.png")
    assert overlay[25, 25].max() > overlay[5, 5].max()


def test_no_data_is_in_no_mask(
    untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    field = np.random.default_rng(0).random((96, 128)).astype(np.float32)
    field[:, :40] = -9999
    tags = [(42113, 2, 0, "-9999", True)]
    tifffile.imwrite(tmp_path / "field.tif", field, extratags=tags)
    arguments = ["segment", str(tmp_path / "field.tif"), "--model", str(untrained_weights)]
    box = ["--box", "0,0,96,128", "--point", "50,80", "--no-overlay", "--out", str(tmp_path)]
    assert main([*arguments, *box, "--point", "50,20"]) == 1
    assert "no data here" in capsys.readouterr().err
    assert main([*arguments, *box]) == 0
    mask = read_picture(tmp_path / "field_mask.png")
    assert not mask[:, :40].any()
    assert mask[50, 80]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--point", "500,60"], "inside the image"),
        (["--point", "50,60", "--device", "warp"], "device"),
        (["--point", "50,60", "--channel-axis", "0"], "channel_axis"),
        (["--box", "70,70,20,20"], "box"),
    ],
)
def test_impossible_wish_fails_with_its_reason(
    arguments: list[str],
    message: str,
    disc_png: Path,
    untrained_weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = ["segment", str(disc_png), "--model", str(untrained_weights), "--out", str(tmp_path)]
    assert main([*start, *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "disc_mask.png").exists()


def test_file_that_is_no_weight_file_is_refused(
    disc_png: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    wrong = tmp_path / "wrong.safetensors"
    wrong.write_bytes(b"not weights")
    assert main(["segment", str(disc_png), "--point", "1,1", "--model", str(wrong)]) == 1
    assert "wrong.safetensors" in capsys.readouterr().err


def test_folder_that_cannot_be_written_fails_with_its_name(
    disc_png: Path, untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = ["segment", str(disc_png), "--point", "1,1", "--model", str(untrained_weights)]
    assert main([*arguments, "--out", str(tmp_path / "file")]) == 1
    assert str(tmp_path / "file") in capsys.readouterr().err
