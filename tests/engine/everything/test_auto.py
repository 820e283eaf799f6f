"""Every object of a level into a label image of its own."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawn_field import DrawnPredictor, touching_discs
from numpy.typing import NDArray

from napari_hrsam.engine.everything import auto as auto_module
from napari_hrsam.engine.everything.auto import AutoReport, auto
from napari_hrsam.errors import ConfigError, LabelsError, SessionError
from napari_hrsam.storage.images.tile_source import ArrayImage
from napari_hrsam.storage.label_image import open_labels
from napari_hrsam.storage.labels.check import verify_labels

CELLS = 170, 150
SHAPE = 339, 299


@cache
def predictor() -> DrawnPredictor:
    return DrawnPredictor(touching_discs(CELLS))


@pytest.fixture(autouse=True)
def _drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model is the stand-in."""
    monkeypatch.setattr("napari_hrsam.engine.predictor.Predictor", lambda model: model)
    monkeypatch.setattr(auto_module, "loaded", lambda model: model)


@cache
def image() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (*SHAPE, 3), np.uint8)


def run(path: Path, **options: Any) -> AutoReport:
    return auto(
        image(),
        path=path,
        model=options.pop("model", predictor()),
        largest_px=80,
        **{"block_px": 96, **options},
    )


def levels_of(path: Path, name: str = "auto-1") -> dict[str, bytes]:
    """The bytes of all chunks."""
    top = path / "labels" / name
    found = {str(file.relative_to(top)): file.read_bytes() for file in top.rglob("c/*/*")}
    assert found
    return found


def stop_after(num: int) -> Callable[[], bool]:
    asked = 0

    def should_stop() -> bool:
        nonlocal asked
        asked += 1
        return asked > num

    return should_stop


def test_a_run_makes_a_label_image_that_all_can_read_with_a_table(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    report = run(tmp_path / "a", progress=lambda done, total: told.append((done, total)))
    labels = open_labels(tmp_path / "a", "auto-1", mode="r")
    pixels = labels.read()
    assert pixels.shape == SHAPE
    assert report.num_objects == pixels.max()
    assert report.num_objects > 25
    assert told[0] == (0, report.num_blocks)
    assert told[-1] == (report.num_blocks,) * 2
    assert report.num_tiles > 0
    assert report.num_at_hand == 0
    assert set(report.split) == {"read", "encode", "head", "watershed", "write"}
    assert not verify_labels(tmp_path / "a", "auto-1").problems
    with Path(report.table).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["label"]) for row in rows] == list(range(1, report.num_objects + 1))
    inner = next(row for row in rows if int(row["y0_px"]) > 40 and int(row["y1_px"]) < 300)
    mask = pixels == int(inner["label"])
    assert mask.sum() == int(inner["area_px"])
    assert np.flatnonzero(mask.any(axis=1))[0] == int(inner["y0_px"])
    assert not list((tmp_path / "a" / "labels").glob(".*"))


def test_blocks_of_any_size_give_the_same_label_image_byte_for_byte(tmp_path: Path) -> None:
    for name, side in (("a", 96), ("b", 128), ("c", 4096)):
        run(tmp_path / name, block_px=side)
    assert levels_of(tmp_path / "a") == levels_of(tmp_path / "b") == levels_of(tmp_path / "c")
    tables = {(tmp_path / n / "labels/auto-1/.auto/objects.csv").read_bytes() for n in "abc"}
    assert len(tables) == 1


def test_a_run_that_was_stopped_goes_on_and_gives_the_same(tmp_path: Path) -> None:
    whole = run(tmp_path / "a")
    with pytest.raises(SessionError, match="stopped after 4 of 16 blocks.*run the same again"):
        run(tmp_path / "b", should_stop=stop_after(40))
    assert not (tmp_path / "b" / "labels" / "auto-1").exists()
    # Another size of blocks is not taken up in the middle of a run.
    report = run(tmp_path / "b", block_px=4096)
    assert 0 < report.num_at_hand < report.num_blocks == 16
    assert report.num_objects == whole.num_objects
    assert levels_of(tmp_path / "a") == levels_of(tmp_path / "b")


def test_stopped_while_painting_nothing_is_left_but_what_was_found(tmp_path: Path) -> None:
    encoded = predictor().num_encoded
    with pytest.raises(SessionError, match="stopped after 1 of 1 blocks"):
        run(
            tmp_path,
            block_px=4096,
            should_stop=(tmp_path / "labels/.auto-1.partial").exists,
        )
    assert predictor().num_encoded > encoded
    assert not (tmp_path / "labels/.auto-1.partial").exists()
    encoded = predictor().num_encoded
    assert run(tmp_path, block_px=4096).num_at_hand == 1
    assert predictor().num_encoded == encoded


def test_done_twice_it_is_done_once(tmp_path: Path) -> None:
    first, before = run(tmp_path), predictor().num_encoded
    again = run(tmp_path)
    assert predictor().num_encoded == before
    assert again.num_objects == first.num_objects
    assert again.num_at_hand == again.num_blocks


def test_damaged_files_of_blocks_are_made_again(tmp_path: Path) -> None:
    whole = run(tmp_path / "a")
    with pytest.raises(SessionError):
        run(tmp_path / "b", should_stop=stop_after(40))
    record = next((tmp_path / "b/labels/.auto-1.run.partial/records").iterdir())
    record.write_bytes(record.read_bytes()[:100])
    assert run(tmp_path / "b").num_objects == whole.num_objects


def test_other_runs_and_other_labels_are_not_written_over(tmp_path: Path) -> None:
    with pytest.raises(SessionError):
        run(tmp_path, should_stop=stop_after(3))
    with pytest.raises(SessionError, match="which has another level, another box than"):
        run(tmp_path, level=1)
    other = DrawnPredictor(touching_discs(CELLS))
    other.fingerprint = "drawn-2"  # type: ignore[misc]
    with pytest.raises(SessionError, match="which has another model than"):
        run(tmp_path, model=other)
    with pytest.raises(SessionError, match="which has another image than"):
        auto(255 - image(), path=tmp_path, model=predictor(), largest_px=80)  # type: ignore[arg-type]
    run(tmp_path)
    with pytest.raises(LabelsError, match="expected a new name for the labels of this run"):
        run(tmp_path, smallest_px=500)
    plan = tmp_path / "labels/auto-1/.auto/plan.json"
    plan.write_text(json.dumps({"version": 1}))
    with pytest.raises(SessionError, match="expected the plan of a run"):
        run(tmp_path)


def test_a_box_holds_the_objects_that_begin_in_it(tmp_path: Path) -> None:
    run(tmp_path / "a")
    report = run(tmp_path / "b", box=(100, 60, 220, 240))
    whole = open_labels(tmp_path / "a", "auto-1", mode="r").read()
    part = open_labels(tmp_path / "b", "auto-1", mode="r").read()
    assert 3 < report.num_objects < whole.max()
    for label in range(1, report.num_objects + 1):
        mask = part == label
        assert len(np.unique(whole[mask])) == 1
        assert np.array_equal(whole == whole[mask][0], mask)


def test_what_cannot_be_done_is_told_before_anything_is(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="expected a folder for the labels.*say path="):
        auto(image(), model=predictor())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="expected a level from -1 to 9, got 10"):
        run(tmp_path / "a", level=10)
    with pytest.raises(ConfigError, match="expected one worker or more"):
        run(tmp_path / "a", workers=0)
    with pytest.raises(ConfigError, match="expected a smallest object"):
        run(tmp_path / "a", smallest_px=-3)
    assert not (tmp_path / "a").exists()


def test_a_level_too_coarse_and_an_empty_image_give_empty_labels(tmp_path: Path) -> None:
    assert run(tmp_path / "a", level=6).num_objects == 0
    blank = np.zeros((64, 64, 3), np.uint8)
    report = auto(
        ArrayImage(blank),
        path=tmp_path / "b",
        model=predictor(),
        skip_blank=True,  # type: ignore[arg-type]
    )
    assert (report.num_objects, report.num_blank, report.num_tiles) == (0, 1, 0)
    assert not open_labels(tmp_path / "b", "auto-1", mode="r").read().any()
