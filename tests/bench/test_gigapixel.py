"""The benchmark of large images, on small ones."""

from __future__ import annotations

import re
import subprocess
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from napari_hrsam.bench import clicks, commits, gigapixel, window
from napari_hrsam.bench.commits import _Blob
from napari_hrsam.bench.gigapixel import measure_gigapixel, run_case, summarise
from napari_hrsam.bench.settings import LABELS_NAME, Settings
from napari_hrsam.errors import ConfigError
from napari_hrsam.geometry import Box
from napari_hrsam.sample import Sample, make_sample
from napari_hrsam.storage.label_image import open_labels

SETTINGS = Settings(
    sizes_px=(2048,),
    rounds=2,
    num_warm=6,
    num_objects=3,
    embed_px=512,
    commit_px=(60, 500, 3000),
    reopen_objects=30,
)


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return make_sample(tmp_path / "slide.ome.zarr", 2048)


def test_commits_of_every_size_that_fits_are_timed_and_taken_back(sample: Sample) -> None:
    figures = run_case("commits", sample.path, SETTINGS)
    assert {"commit_60", "undo_60", "commit_500", "undo_500"} < set(figures)
    assert "commit_3000" not in figures
    assert figures["commit_500"]["rounds"] == 2
    assert 0 < figures["commit_60"]["median_s"] < 5
    with open_labels(sample.path, LABELS_NAME) as labels:
        assert all(not np.asarray(level).any() for level in labels.levels)
        assert len(labels.history().undone) == 1


@pytest.mark.parametrize("diameter", [40.0, 700.0])
def test_a_committed_blob_is_what_it_says(diameter: float) -> None:
    blob = _Blob((500.3, 600.8), diameter)
    whole = blob.read(Box(0, 0, 1024, 1200))
    assert whole.sum() == pytest.approx(np.pi / 4 * diameter**2, rel=0.02)
    assert whole[blob.box.slices].sum() == whole.sum()
    kinds = set()
    for y, x in np.ndindex(16, 16):
        part = Box(64 * y, 64 * x, 64 * y + 64, 64 * x + 64)
        known = blob.fills(part)
        kinds.add(known)
        if known is not None:
            assert (whole[part.slices] == known).all()
    assert kinds == ({True, False, None} if diameter > 64 else {False, None})


def test_a_label_image_of_many_objects_is_opened_again(sample: Sample) -> None:
    made = run_case("objects", sample.path, SETTINGS)
    assert made["num_objects"] == 30
    with open_labels(sample.path, LABELS_NAME) as labels:
        assert len(np.unique(labels.read(Box.of_shape(labels.shape_yx)))) == 31
    figures = run_case("reopening", sample.path, SETTINGS)
    assert figures["num_objects"] == 30
    assert figures["num_undoable"] == 30
    assert figures["median_s"] > 0


@pytest.mark.weights
def test_clicks_are_timed_cold_and_warm(sample: Sample) -> None:
    figures = run_case("clicks", sample.path, SETTINGS)
    assert figures["cold"]["rounds"] == 2
    assert figures["num_warm"] == 6
    assert 0 < figures["warm_p50_s"] <= figures["warm_p95_s"]
    assert figures["warm_p50_s"] < figures["cold"]["median_s"]
    assert figures["overview_level"] > 0
    assert figures["peak_bytes"] > 100e6


@pytest.mark.weights
def test_encoding_ahead_is_timed(sample: Sample) -> None:
    figures = run_case("embedding", sample.path, SETTINGS)
    assert figures["embed_px"] == 512
    assert figures["num_tiles"] >= 1
    area = 0.512**2
    assert figures["image_mpx_per_s"] == pytest.approx(area / figures["seconds"])
    assert figures["encoded_mpx_per_s"] >= figures["image_mpx_per_s"]


@pytest.mark.parametrize("size_px", [10_000, 100_000])
def test_objects_of_the_same_diameters_are_drawn_whatever_the_image(
    size_px: int, tmp_path: Path
) -> None:
    sample = make_sample(tmp_path / "slide.ome.zarr", size_px)
    chosen = window.chosen_objects(sample, 9)
    diameters = [found.diameter_px for found in chosen]
    assert len({found.label for found in chosen}) == 9
    np.testing.assert_allclose(diameters, np.geomspace(2000, 20, 9), rtol=0.35)
    for found in chosen:
        shown_px = max(found.box.shape_yx) / 2.0 ** clicks.level_for_object(found)
        assert 70 <= shown_px <= 145


@pytest.mark.slow
@pytest.mark.weights
def test_every_case_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    told: list[str] = []
    rows = measure_gigapixel(SETTINGS, folder=tmp_path / "work", say=told.append)
    assert [row["case"] for row in rows] == [
        "clicks",
        "embedding",
        "commits",
        "shown",
        "annotated",
        "objects",
        "reopening",
    ]
    assert not [row["error"] for row in rows if "error" in row]
    assert told[0] == "2048 px: clicks"
    assert list((tmp_path / "work").iterdir()) == []
    [figures] = summarise(rows)
    assert rows[4]["num_committed"] == 3
    assert figures["above_mb"] == pytest.approx(
        (rows[4]["peak_bytes"] - rows[3]["peak_bytes"]) / 1e6
    )
    assert figures["above_mb"] > 50
    assert figures["growth"] == 0


def test_a_case_that_fails_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gigapixel, "_CASES", ("clicks", "commits"))
    settings = replace(SETTINGS, model="no-such-model", commit_px=(60,), reopen_objects=0)
    first, second = measure_gigapixel(settings, folder=tmp_path)
    assert "no-such-model" in first["error"]
    assert re.search(r" \(\w+\.py, line \d+\)$", first["error"])
    assert "commit_60" in second
    [figures] = summarise([first, second])
    assert "cold_s" not in figures
    assert figures["commit_60_ms"] > 0


def test_an_error_tells_no_path_of_the_machine(sample: Sample) -> None:
    run_case("objects", sample.path, SETTINGS)
    row = gigapixel._in_process("commits", sample.path, SETTINGS)
    assert f"slide.ome.zarr/labels/{LABELS_NAME}" in row["error"]
    assert str(sample.path.parent) not in row["error"]


def test_a_process_that_dies_is_an_error_whatever_it_printed(
    sample: Sample, monkeypatch: pytest.MonkeyPatch
) -> None:
    died = subprocess.CompletedProcess([], returncode=-6, stdout='{"a": 1}\n', stderr="")
    monkeypatch.setattr(gigapixel.subprocess, "run", lambda *_, **__: died)
    row = gigapixel._in_process("commits", sample.path, SETTINGS)
    assert row == {"size_px": 2048, "case": "commits", "error": "ended with status -6"}


def test_a_case_without_a_display_is_told(sample: Sample, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gigapixel, "missing_display", lambda: "there is none")
    monkeypatch.setattr(gigapixel.shutil, "which", lambda _name: None)
    row = gigapixel._in_process("shown", sample.path, SETTINGS)
    assert row == {
        "size_px": 2048,
        "case": "shown",
        "error": "no window can be opened: there is none",
    }


def test_rows_are_gathered_by_size() -> None:
    def case(size_px: int, name: str, **figures: object) -> dict[str, object]:
        return {"size_px": size_px, "case": name, **figures}

    clicked = {
        "first_click_s": 2.0,
        "cold": {"median_s": 1.0},
        "overview": {"median_s": 1.5},
        "warm_p50_s": 0.05,
        "warm_p95_s": 0.1,
    }
    rows = [
        case(10, "clicks", **clicked),
        case(10, "shown", peak_bytes=400_000_000),
        case(10, "annotated", peak_bytes=1_000_000_000),
        case(20, "shown", peak_bytes=400_000_000),
        case(20, "annotated", peak_bytes=1_050_000_000),
        case(20, "embedding", error="no"),
    ]
    first, second = summarise(rows)
    assert first == {
        "size_px": 10,
        "first_s": 2.0,
        "cold_s": 1.0,
        "overview_s": 1.5,
        "warm_p50_ms": 50.0,
        "warm_p95_ms": 100.0,
        "peak_mb": 1000.0,
        "above_mb": 600.0,
        "growth": 0.0,
    }
    assert second["growth"] == pytest.approx(0.05)
    assert "embed_mpx_s" not in second


@pytest.mark.parametrize(
    ("wishes", "told"),
    [
        ({"sizes_px": ()}, "expected sizes of 1024 px or more"),
        ({"sizes_px": (10_000, 500)}, "expected sizes of 1024 px or more, got .*500.*choose"),
        ({"rounds": 0}, "expected counts of 1 or more, got .*only reopen_objects may be 0"),
        ({"reopen_objects": -1}, "expected counts of 1 or more"),
    ],
)
def test_settings_out_of_range_are_refused(wishes: dict[str, object], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(SETTINGS, **wishes)


def test_settings_survive_the_way_to_another_process() -> None:
    assert Settings(**asdict(SETTINGS)) == SETTINGS
    assert commits.SMALL_PX > 0
