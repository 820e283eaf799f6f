"""`embed` encodes ahead of time; what it made is found by `segment` and by the next `embed`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from ome_files import halves, write_ome

from napari_hrsam.cache import EMBEDDINGS_VARIABLE
from napari_hrsam.cli import main
from napari_hrsam.geometry import TileGrid
from napari_hrsam.storage.embeddings.store import EmbeddingStore
from napari_hrsam.storage.images.opening import open_image


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    array = np.random.default_rng(0).integers(0, 255, (800, 700), np.uint8)
    write_ome(tmp_path / "slide.ome.zarr", halves(array, 2))
    return tmp_path / "slide.ome.zarr"


def embed(slide: Path, weights: Path, *more: str) -> dict[str, Any]:
    out = slide.parent / "figures.json"
    arguments = ["embed", str(slide), "--model", str(weights), *more]
    assert main([*arguments, "--json", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert isinstance(figures, dict)
    return figures


def test_what_was_embedded_is_at_hand_for_the_next_command(
    slide: Path, untrained_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.engine.object_predictor.MAX_LOOKS", 1)
    monkeypatch.setenv(EMBEDDINGS_VARIABLE, str(tmp_path / "kept"))
    figures = embed(slide, untrained_weights, "--box", "200,200,450,450", "--max-gb", "0.5")
    assert (figures["num_tiles"], figures["num_encoded"], figures["num_at_hand"]) == (4, 4, 0)
    assert (figures["level"], figures["num_blank"]) == (0, 0)
    assert figures["mpx_per_s"] == pytest.approx(4 * 0.512**2 / figures["seconds"])
    assert figures["cache"] == str(tmp_path / "kept")
    assert 0 < figures["cache_bytes"] < figures["cache_max_bytes"] == 500_000_000
    again = embed(slide, untrained_weights, "--box", "200,200,450,450")
    assert (again["num_encoded"], again["num_at_hand"]) == (0, 4)
    assert again["cache_max_bytes"] == 500_000_000
    segment = ["segment", str(slide), "--model", str(untrained_weights), "--out", str(tmp_path)]
    click = ["--point", "200,200", "--level", "0", "--json", str(tmp_path / "scores.json")]
    assert main([*segment, *click]) == 0
    (result,) = json.loads((tmp_path / "scores.json").read_text())["images"]
    assert result["encode_s"] == 0
    assert main([*segment, *click, "--cache", str(tmp_path / "empty")]) == 0
    (result,) = json.loads((tmp_path / "scores.json").read_text())["images"]
    assert result["encode_s"] > 0
    assert not (tmp_path / "empty").exists()


def test_a_level_is_told_in_a_table_with_progress(
    slide: Path, untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["embed", str(slide), "--level", "1", "--model", str(untrained_weights)]
    assert main([*arguments, "--cache", str(tmp_path / "kept")]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0].split()[:5] == ["image", "tiles", "encoded", "at", "hand"]
    assert said.out.splitlines()[2].split()[1:5] == ["1", "1", "0", "0"]
    assert said.err.splitlines() == ["0/1 tiles", "1/1 tiles"]


def test_a_blank_image_may_be_left_out(
    untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save(tmp_path / "blank.npy", np.full((600, 600), 9, np.uint8))
    arguments = ["embed", str(tmp_path / "blank.npy"), "--model", str(untrained_weights)]
    assert main([*arguments, "--cache", str(tmp_path / "kept"), "--skip-blank"]) == 0
    assert capsys.readouterr().out.splitlines()[2].split()[1:5] == ["4", "0", "0", "4"]


def test_no_room_is_told_with_the_way_out(
    slide: Path, untrained_weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["embed", str(slide), "--model", str(untrained_weights), "--max-gb", "0.002"]
    assert main([*arguments, "--cache", str(tmp_path / "kept")]) == 1
    told = capsys.readouterr().err
    assert "expected room for 6 tiles (0.0 GB), got room for 1; allow the store more" in told
    assert "--max-gb 0.1)" in told


def test_limits_of_napari_make_embeddings_that_its_sessions_find(
    slide: Path, untrained_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.engine.object_predictor.MAX_LOOKS", 1)
    kept = ["--cache", str(tmp_path / "kept")]
    embed(slide, untrained_weights, *kept, "--level", "1", "--limits", "10,180")
    from napari_hrsam import Session, load_model

    levels = [zarr.open_array(slide / str(level), mode="r") for level in range(2)]
    for limits, is_found in (((10, 180), True), ((10, 181), False)):
        image = open_image(levels, contrast_limits=limits)
        store = EmbeddingStore(tmp_path / "kept")
        with Session(load_model(untrained_weights), image, embeddings=store) as session:
            assert session._tiles.is_at_hand(TileGrid((800, 700), 512, 1).tile(0, 0)) is is_found
    segment = ["segment", str(slide), "--model", str(untrained_weights), "--out", str(tmp_path)]
    click = ["--point", "300,300", "--level", "1", "--json", str(tmp_path / "scores.json")]
    assert main([*segment, *click, *kept, "--limits", "10,180"]) == 0
    (result,) = json.loads((tmp_path / "scores.json").read_text())["images"]
    assert result["encode_s"] == 0


@pytest.mark.parametrize("limits", ["1", "2,1", "1,1", "a,b", "1,2,3", "nan,1"])
def test_limits_out_of_order_are_misuse(
    slide: Path, limits: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["embed", str(slide), f"--limits={limits}"])
    assert "expected LOW,HIGH" in capsys.readouterr().err


@pytest.mark.parametrize("size", ["0", "-1", "nan", "inf", "much"])
def test_an_impossible_size_is_misuse(
    slide: Path, size: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["embed", str(slide), f"--max-gb={size}"])
    assert f"expected a number of gigabytes above 0, got '{size}'" in capsys.readouterr().err


def test_a_folder_that_cannot_be_is_told_before_the_model_is_loaded(
    slide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("x")
    no_model = ["--model", str(tmp_path / "none.safetensors")]
    assert main(["embed", str(slide), *no_model, "--cache", str(tmp_path / "file" / "kept")]) == 1
    assert "expected to write embeddings to" in capsys.readouterr().err


# The command, interrupted as by Ctrl-C when its second tile is done, whatever the machine's speed.
INTERRUPTED = """
import signal, sys
from napari_hrsam.cli import embed, main

class Progress(embed.Progress):
    def __call__(self, done, total):
        super().__call__(done, total)
        if done == 2:
            signal.raise_signal(signal.SIGINT)

embed.Progress = Progress
# A process that was started in the background may have inherited that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.exit(main())
"""


def test_an_interrupted_embed_says_how_to_go_on_and_goes_on(
    slide: Path, untrained_weights: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept"
    arguments = ["embed", str(slide), "--model", str(untrained_weights), "--cache", str(kept)]
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED, *arguments],
        check=False,
        stderr=subprocess.PIPE,
        text=True,
    )
    told = done.stderr
    assert done.returncode == 1, told
    assert f"stopped after 2 of 6 tiles, which are kept in {kept}" in told
    assert "run the same command again to go on from there" in told
    assert "Traceback" not in told
    again = embed(slide, untrained_weights, "--cache", str(kept))
    assert (again["num_at_hand"], again["num_encoded"]) == (2, 4)


def test_the_store_can_be_opened_from_python(tmp_path: Path) -> None:
    import napari_hrsam

    assert napari_hrsam.EmbeddingStore is EmbeddingStore
    assert napari_hrsam.EmbeddingStore(tmp_path).num_bytes == 0
    assert not list(tmp_path.iterdir())
