"""`verify_labels` finds what is wrong, and repairs what follows from level 0."""

from __future__ import annotations

import re
import shutil
import sqlite3
import stat
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from label_files import blobs, coarser, write_labels
from numpy.typing import NDArray

import napari_hrsam as hrsam
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels import check_levels, regions
from napari_hrsam.storage.labels.check import verify_labels
from napari_hrsam.storage.labels.downsampling import majority
from napari_hrsam.storage.labels.edits import DrawnAs

SHAPE = (150, 200)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "u8"])
def test_right_labels_are_sound(tmp_path: Path, version: str, dtype: str) -> None:
    labels = blobs(SHAPE, 9, dtype=np.dtype(dtype))
    write_labels(tmp_path, labels, version=version, num_levels=4)
    before = files_of(tmp_path)
    seen: list[tuple[int, int]] = []
    report = hrsam.verify_labels(tmp_path, "cells", progress=lambda *n: seen.append(n))
    assert report.problems == ()
    assert report.is_sound
    assert (report.num_levels, report.highest_label) == (4, int(labels.max()))
    assert report.num_objects == len(np.unique(labels)) - 1
    assert seen[-1][0] == seen[-1][1] == len(seen)
    # Nothing is written, not even a lock.
    assert files_of(tmp_path) == before


def test_our_own_labels_are_sound_while_open_and_after(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a.zarr", "cells", (1500, 1301)) as labels:
        for label in range(1, 9):
            box = Box(150 * label, 100 * label, 150 * label + 200, 100 * label + 90)
            labels.write(box, blobs((200, 90), 2, label) > 0, label, overwrite=True)
        assert verify_labels(tmp_path / "a.zarr", "cells").problems == ()
    report = verify_labels(tmp_path / "a.zarr", "cells")
    assert report.problems == ()
    assert (report.num_objects, report.highest_label) == (8, 8)


def test_another_image_size_and_stacks_are_sound(tmp_path: Path) -> None:
    stack = np.stack([blobs((41, 67), 5, seed) for seed in range(3)])
    stack[1] = 0
    write_labels(tmp_path, stack, num_levels=3)
    report = verify_labels(tmp_path, "cells")
    assert report.problems == ()
    assert report.num_objects == len(np.unique(stack)) - 1


@pytest.mark.parametrize("region_px", [16, 1024])
def test_a_level_that_differs_is_named_with_its_box(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, region_px: int
) -> None:
    monkeypatch.setattr(regions, "REGION_PX", region_px)
    group = write_labels(tmp_path, blobs(SHAPE, 9), num_levels=3)
    right = np.asarray(group["2"])
    group["2"][20:22, 33] = 9999
    (problem,) = verify_labels(tmp_path, "cells").problems
    assert (problem.kind, problem.level, problem.box) == ("level", 2, Box(20, 33, 22, 34))
    assert "2 pixels differ from the majority of level 1" in problem.text
    report = verify_labels(tmp_path, "cells", repair=True)
    assert report.is_sound
    assert [p.is_repaired for p in report.problems] == [True]
    np.testing.assert_array_equal(group["2"], right)
    assert verify_labels(tmp_path, "cells").problems == ()


def test_an_object_missing_from_coarser_levels_is_found_and_repaired(tmp_path: Path) -> None:
    """Another program drew at level 0 only; a whole region is missing above it."""
    group = write_labels(tmp_path, np.zeros(SHAPE, np.uint16), num_levels=4)
    drawn = blobs(SHAPE, 7, dtype=np.uint16)
    group["0"][...] = drawn
    report = verify_labels(tmp_path, "cells")
    assert {p.level for p in report.problems} == {1}
    assert not report.is_sound
    report = verify_labels(tmp_path, "cells", repair=True)
    assert report.is_sound
    assert {p.level for p in report.problems} == {1, 2, 3}
    expected = drawn
    for level in ("1", "2", "3"):
        expected = coarser(expected)
        np.testing.assert_array_equal(group[level], expected)
    np.testing.assert_array_equal(group["0"], drawn)


def _picked(labels: NDArray[Any], rule: str, num_levels: int) -> list[NDArray[Any]]:
    """Coarser levels as other programs make them."""
    levels = [labels]
    for level in range(1, num_levels):
        step = 2**level
        shape = [-(-side // 2) for side in levels[-1].shape]
        if rule == "first":
            levels.append(labels[::step, ::step])
        elif rule == "middle of full size":
            places = [
                np.minimum(np.arange(n) * step + step // 2, m - 1)
                for n, m in zip(shape, labels.shape, strict=True)
            ]
            levels.append(labels[np.ix_(*places)])
        else:
            # Rounded places, and sizes that are rounded down.
            shape = [side // 2 for side in levels[-1].shape]
            places = [
                np.rint((np.arange(n) + 0.5) * m / n - 0.5).astype(int)
                for n, m in zip(shape, levels[-1].shape, strict=True)
            ]
            levels.append(levels[-1][np.ix_(*places)])
    return levels


def _write_levels(group: zarr.Group, levels: list[NDArray[Any]]) -> None:
    ome = dict(group.attrs["ome"])
    ome["multiscales"][0]["datasets"] = []
    for level, array in enumerate(levels):
        if level:
            made = group.create_array(
                str(level),
                shape=array.shape,
                chunks=(16, 16),
                dtype=array.dtype,
                dimension_names=["y", "x"],
            )
            made[...] = array
        steps = [{"type": "scale", "scale": [2.0**level] * 2}]
        ome["multiscales"][0]["datasets"].append(
            {"path": str(level), "coordinateTransformations": steps}
        )
    group.attrs["ome"] = ome


@pytest.mark.parametrize("rule", ["first", "middle of full size", "rounded"])
@pytest.mark.parametrize("region_px", [32, 1024])
def test_levels_made_by_another_rule_are_sound_and_left_alone_by_repair(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rule: str, region_px: int
) -> None:
    monkeypatch.setattr("napari_hrsam.storage.labels.regions.REGION_PX", region_px)
    group = write_labels(tmp_path, blobs((151, 203), 30))
    levels = _picked(np.asarray(group["0"]), rule, 4)
    _write_levels(group, levels)
    before = files_of(tmp_path / "labels/cells/1")
    for repair in (False, True):
        report = verify_labels(tmp_path, "cells", repair=repair)
        assert report.problems == ()
        assert "level 1 is made by another rule than the majority" in report.notes[0]
    assert files_of(tmp_path / "labels/cells/1") == before
    # A damaged chunk is made anew, and nothing beside it; no label may come from nowhere.
    chunk = tmp_path / "labels/cells/1/c/1/1"
    chunk.write_bytes(b"damage")
    assert verify_labels(tmp_path, "cells", repair=True).is_sound
    after = files_of(tmp_path / "labels/cells/1")
    assert {name for name in after if after[name] != before[name]} == {
        name for name in after if name.endswith("c/1/1")
    }
    group["2"][3, 4] = 99  # type: ignore[index]
    (problem,) = verify_labels(tmp_path, "cells").problems
    assert problem.level == 2
    assert verify_labels(tmp_path, "cells", repair=True).is_sound
    assert 99 not in np.asarray(group["2"])


def test_where_all_objects_are_ours_only_the_majority_is_right(tmp_path: Path) -> None:
    with create_labels(tmp_path, "cells", (1500, 600)) as labels:
        labels.write(Box(700, 300, 720, 301), np.ones((20, 1), bool), 1)
    array = zarr.open_array(tmp_path / "labels/cells/1", mode="r+")
    array[355, 150] = 0
    (problem,) = verify_labels(tmp_path, "cells").problems
    assert (problem.kind, problem.level, problem.box) == ("level", 1, Box(355, 150, 356, 151))
    assert verify_labels(tmp_path, "cells", repair=True).is_sound
    assert array[355, 150] == 1


def test_labels_left_in_coarser_levels_only_are_found_and_removed(tmp_path: Path) -> None:
    group = write_labels(tmp_path, np.zeros(SHAPE, np.uint16), num_levels=2)
    group["1"][3, 4] = 5
    (problem,) = verify_labels(tmp_path, "cells").problems
    assert (problem.level, problem.box) == (1, Box(3, 4, 4, 5))
    assert verify_labels(tmp_path, "cells", repair=True).is_sound
    assert not np.asarray(group["1"]).any()


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize(
    "damage", [lambda p: p.write_bytes(b"\x01" * 40), lambda p: p.write_bytes(p.read_bytes()[:-3])]
)
def test_a_damaged_chunk_is_named_and_level_0_is_left_alone(
    tmp_path: Path, version: str, damage: Callable[[Path], Any]
) -> None:
    group = write_labels(tmp_path, blobs(SHAPE, 30), version=version, num_levels=3)
    right = np.asarray(group["1"])
    prefix = "c/" if version == "0.5" else ""
    folder = tmp_path / "labels/cells"
    damage(folder / f"1/{prefix}2/1")
    problems = verify_labels(tmp_path, "cells").problems
    assert [(p.kind, p.level, p.box) for p in problems] == [("chunk", 1, Box(32, 16, 48, 32))]
    assert "made anew" in problems[0].text
    report = verify_labels(tmp_path, "cells", repair=True)
    assert report.is_sound
    np.testing.assert_array_equal(group["1"], right)
    damage(folder / f"0/{prefix}3/2")
    before = files_of(folder / "0")
    for repair in (False, True):
        report = verify_labels(tmp_path, "cells", repair=repair)
        assert [(p.kind, p.level, p.box) for p in report.problems] == [
            ("chunk", 0, Box(48, 32, 64, 48))
        ]
        assert not report.is_sound
        assert "bring the file back from a copy" in report.problems[0].text
    assert files_of(folder / "0") == before


def test_a_chunk_above_a_damaged_one_cannot_be_repaired(tmp_path: Path) -> None:
    write_labels(tmp_path, blobs(SHAPE, 30), num_levels=3)
    for chunk in ("0/c/2/2", "1/c/1/1"):
        (tmp_path / "labels/cells" / chunk).write_bytes(b"damage")
    report = verify_labels(tmp_path, "cells", repair=True)
    assert not report.is_sound
    assert {(p.level, p.is_repaired) for p in report.problems if p.kind == "chunk"} == {
        (0, False),
        (1, False),
    }


@pytest.mark.parametrize("region_px", [8, 64])
def test_a_level_many_times_coarser_is_compared_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, region_px: int
) -> None:
    monkeypatch.setattr(check_levels, "REGION_PX", region_px)
    labels = blobs((144, 208), 9)
    group = write_labels(tmp_path, labels, num_levels=1)
    coarse = majority(labels, np.arange(0, 145, 8), np.arange(0, 209, 8))
    array = group.create_array(
        "1", shape=coarse.shape, chunks=(16, 16), dtype="u4", dimension_names=["y", "x"]
    )
    array[...] = coarse
    ome = dict(group.attrs["ome"])
    steps = [{"type": "scale", "scale": [8.0, 8.0]}]
    ome["multiscales"][0]["datasets"].append({"path": "1", "coordinateTransformations": steps})
    group.attrs["ome"] = ome
    assert verify_labels(tmp_path, "cells").problems == ()
    array[17, 25] = 99
    (problem,) = verify_labels(tmp_path, "cells", repair=True).problems
    assert (problem.box, problem.is_repaired) == (Box(17, 25, 18, 26), True)
    np.testing.assert_array_equal(array, coarse)


def test_a_damaged_chunk_of_several_planes_is_made_anew(tmp_path: Path) -> None:
    stack = np.stack([blobs((40, 60), 5, seed, np.uint8) for seed in range(3)])
    group = write_labels(tmp_path, stack, num_levels=2)
    right = np.asarray(group["1"])
    del group["1"]
    array = group.create_array(
        "1", shape=right.shape, chunks=(3, 16, 16), dtype="u1", dimension_names=list("zyx")
    )
    array[...] = right
    (tmp_path / "labels/cells/1/c/0/0/1").write_bytes(b"damage")
    problems = verify_labels(tmp_path, "cells").problems
    assert {(p.kind, p.plane) for p in problems} == {("chunk", (z,)) for z in range(3)}
    assert verify_labels(tmp_path, "cells", repair=True).is_sound
    np.testing.assert_array_equal(group["1"], right)


def test_sharded_labels_are_checked_too(tmp_path: Path) -> None:
    group = write_labels(tmp_path, blobs(SHAPE, 9), num_levels=2, shard=64)
    assert verify_labels(tmp_path, "cells").problems == ()
    group["1"][5, 6] = 77
    (problem,) = verify_labels(tmp_path, "cells").problems
    assert problem.box == Box(5, 6, 6, 7)
    assert verify_labels(tmp_path, "cells", repair=True).is_sound
    assert verify_labels(tmp_path, "cells").problems == ()


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(ome: dict[str, Any]) -> None:
        *keys, last = path.split(".")
        place: Any = ome
        for key in keys:
            place = place[int(key)] if key.isdecimal() else place[key]
        if value is None:
            del place[last]
        else:
            place[last] = value

    return change


IMAGE = "multiscales.0"
TRANSFORMS = f"{IMAGE}.datasets.1.coordinateTransformations"
BROKEN = {
    "version": (_set("version", "0.3"), "version must be 0.4 in zarr v2 or 0.5 in zarr v3"),
    "multiscales": (_set("multiscales", []), "multiscales must be a list"),
    "axes": (_set(f"{IMAGE}.axes", "yx"), "axes must be a list of objects"),
    "twice": (_set(f"{IMAGE}.axes.0.name", "x"), "2 to 5 axes, each once"),
    "type": (_set(f"{IMAGE}.axes.0.type", "time"), "2 or 3 axes of space"),
    "order": (_set(f"{IMAGE}.axes.1.type", "channel"), "in the order time, channel, space"),
    "path": (_set(f"{IMAGE}.datasets.1.path", "7"), "level 1 must name an array; there is none"),
    "out": (_set(f"{IMAGE}.datasets.1.path", "../x"), "level 1 must name an array"),
    "no scale": (_set(TRANSFORMS, []), "of level 1 must be one scale"),
    "short": (_set(f"{TRANSFORMS}.0.scale", [2.0]), "scale of level 1 must be 2 usable numbers"),
    "wrong scale": (_set(f"{TRANSFORMS}.0.scale", [4.0, 4.0]), "scale of level 1 must fit"),
    "image-label": (_set("image-label", None), "image-label must be there"),
    "colors": (_set("image-label.colors", [{"rgba": [0] * 4}]), "colors of image-label must be"),
    "colour twice": (_set("image-label.colors", [{"label-value": 1}] * 2), "name each label once"),
    "rgba": (
        _set("image-label.colors", [{"label-value": 1, "rgba": [0, 0, 300, 0]}]),
        "every rgba of image-label",
    ),
    "source": (_set("image-label.source", {"image": 3}), "source of image-label"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_metadata_is_told(tmp_path: Path, name: str) -> None:
    change, problem = BROKEN[name]
    group = write_labels(tmp_path, blobs((40, 60), 4), num_levels=2)
    ome = dict(group.attrs["ome"])
    change(ome)
    group.attrs["ome"] = ome
    report = verify_labels(tmp_path, "cells")
    assert not report.is_sound
    assert any(p.kind == "metadata" and problem in p.text for p in report.problems)


def test_labels_that_are_not_listed_or_lack_levels_are_told(tmp_path: Path) -> None:
    group = write_labels(tmp_path, blobs((40, 60), 4), num_levels=2)
    listing = zarr.open_group(tmp_path / "labels", mode="r+")
    listing.attrs["ome"] = {"version": "0.5", "labels": ["other"]}
    root = zarr.open_group(tmp_path, mode="r+")
    root.attrs["ome"] = {"multiscales": [{"datasets": [{}] * 3}]}
    texts = [p.text for p in verify_labels(tmp_path, "cells").problems]
    assert any("must list 'cells'" in text for text in texts)
    assert any("as many levels as the image has (3); there are 2" in text for text in texts)
    del group
    shutil.rmtree(tmp_path / "labels/cells/1")
    (problem, *_) = verify_labels(tmp_path, "cells").problems
    assert "level 1 must name an array" in problem.text


def test_wrong_arrays_are_told(tmp_path: Path) -> None:
    write_labels(tmp_path, np.ones((20, 30), np.float32))
    texts = [p.text for p in verify_labels(tmp_path, "cells").problems]
    assert any("level 0 must hold integers; its dtype is float32" in text for text in texts)
    group = write_labels(tmp_path, np.ones((20, 30), np.uint8), name="others")
    del group["0"]
    group.create_array("0", shape=(20, 30), chunks=(8, 8), dtype="u1", fill_value=3)
    texts = [p.text for p in verify_labels(tmp_path, "others").problems]
    assert any("must have the fill value 0; it is 3" in text for text in texts)
    assert any("dimension names of level 0 must be ['y', 'x']" in text for text in texts)


def test_half_done_changes_are_told_and_completed_by_repair(tmp_path: Path) -> None:
    with create_labels(tmp_path, "cells", (64, 64)) as labels:
        labels.write(Box(2, 2, 9, 9), np.ones((7, 7), bool), 1)
    journal = tmp_path / "labels/cells/.journal/journal.sqlite"
    database = sqlite3.connect(journal)
    database.execute("UPDATE edits SET is_pending = 1")
    database.commit()
    database.close()
    shutil.rmtree(tmp_path / "labels/cells/0/c")
    report = verify_labels(tmp_path, "cells")
    assert [p.kind for p in report.problems] == ["journal", "journal"]
    assert "a change of object 1 is half done" in report.problems[0].text
    assert report.problems[0].box == Box(2, 2, 9, 9)
    assert verify_labels(tmp_path, "cells", repair=True).is_sound
    report = verify_labels(tmp_path, "cells")
    assert report.problems == ()
    assert report.num_objects == 1


def test_an_object_of_the_journal_that_is_gone_is_told(tmp_path: Path) -> None:
    ones = np.ones((7, 7), bool)
    with create_labels(tmp_path, "cells", (1500, 64)) as labels:
        labels.write(Box(2, 2, 9, 9), ones, 1)
        # Covered by a later one: that is no fault.
        labels.write(Box(30, 2, 37, 9), ones, 2)
        labels.write(Box(30, 2, 37, 9), ones, 3, overwrite=True)
        labels.write(Box(1200, 2, 1207, 9), ones, 4)
        labels.revert(labels.write(Box(1300, 2, 1307, 9), ones, 5))
    assert verify_labels(tmp_path, "cells").is_sound
    for level, row in (("0", 2), ("1", 1), ("2", 0)):
        path = tmp_path / f"labels/cells/{level}/c/{row}/0"
        if level == "2":
            continue
        path.unlink()
    array = zarr.open_array(tmp_path / "labels/cells/2", mode="r+")
    array[250:] = 0
    (problem,) = verify_labels(tmp_path, "cells").problems
    assert (problem.kind, problem.box) == ("journal", Box(1200, 2, 1207, 9))
    assert "object 4 was committed here, but no pixel of it is there" in problem.text


def test_ids_that_would_be_given_twice_are_told(tmp_path: Path) -> None:
    with create_labels(tmp_path, "cells", (64, 64)) as labels:
        labels.write(Box(2, 2, 9, 9), np.ones((7, 7), bool), 1)
    array = zarr.open_array(tmp_path / "labels/cells/0", mode="r+")
    array[20, 20] = 8
    (problem,) = verify_labels(tmp_path, "cells").problems
    assert "would get the id 2, but there are ids up to 8" in problem.text
    assert verify_labels(tmp_path, "cells", repair=True).is_sound
    with open_labels(tmp_path, "cells") as labels:
        assert labels.next_label() == 9
    assert verify_labels(tmp_path, "cells").problems == ()


def test_another_programs_ids_above_ours_are_noticed_by_repair(tmp_path: Path) -> None:
    """It drew at level 0 only, so that opening the labels does not show them."""
    create_labels(tmp_path, "cells", (1500, 600)).close()
    zarr.open_array(tmp_path / "labels/cells/0", mode="r+")[700:720, 300] = 8
    assert not verify_labels(tmp_path, "cells").is_sound
    assert verify_labels(tmp_path, "cells", repair=True).is_sound
    assert verify_labels(tmp_path, "cells").problems == ()


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ("PRAGMA user_version = 99", "journal of version 2 .* got 99; update napari-hrsam"),
        ("PRAGMA user_version = -1", "journal of version 2 .* got -1, .* Move the folder"),
        ("UPDATE facts SET value = 4294967297 WHERE name = 'next_label'", "ids up to 4294967295"),
    ],
)
def test_a_journal_that_cannot_be_drawn_with_is_told(
    tmp_path: Path, change: str, text: str
) -> None:
    create_labels(tmp_path, "cells", (1500, 1500)).close()
    with closing(sqlite3.connect(tmp_path / "labels/cells/.journal/journal.sqlite")) as database:
        database.execute(change)
        database.commit()
    (problem,) = verify_labels(tmp_path, "cells").problems
    assert problem.kind == "journal"
    assert re.search(text, problem.text)


def test_a_journal_that_has_given_out_the_last_id_is_sound(tmp_path: Path) -> None:
    with create_labels(tmp_path, "cells", (1500, 1500)) as labels:
        labels.write(Box(0, 0, 9, 9), np.ones((9, 9), np.bool_), 2**32 - 1)
    assert verify_labels(tmp_path, "cells").is_sound


def test_a_journal_that_is_damaged_is_told(tmp_path: Path) -> None:
    create_labels(tmp_path, "cells", (64, 64)).close()
    (tmp_path / "labels/cells/.journal/journal.sqlite").write_bytes(b"x" * 5000)
    (problem,) = verify_labels(tmp_path, "cells").problems
    assert problem.kind == "journal"
    assert "expected an intact journal" in problem.text


def test_files_that_are_no_chunks_are_noted(tmp_path: Path) -> None:
    write_labels(tmp_path, blobs((40, 60), 4))
    (tmp_path / "labels/cells/0/c/0/0.123.partial").write_bytes(b"left")
    (tmp_path / "labels/cells/0/Thumbs.db").write_bytes(b"x")
    report = verify_labels(tmp_path, "cells")
    assert report.is_sound
    assert report.notes == (
        "level 0 has 2 files that are no chunks, such as Thumbs.db; they do no harm",
    )
    # What a killed program left is cleared away, what a person put there is not.
    report = verify_labels(tmp_path, "cells", repair=True)
    assert "level 0 has 1 files that are no chunks, such as Thumbs.db" in report.notes[0]
    assert not list(tmp_path.rglob("*.partial"))


def test_repair_needs_to_be_the_only_writer(tmp_path: Path) -> None:
    with (
        create_labels(tmp_path, "cells", (64, 64)),
        pytest.raises(LabelsError, match="expected to be the only writer"),
    ):
        verify_labels(tmp_path, "cells", repair=True)
    write_labels(tmp_path / "b", blobs((40, 60), 4))
    assert verify_labels(tmp_path / "b", "cells", repair=True).is_sound
    # The lock is let go of.
    open_labels(tmp_path / "b", "cells").close()


def test_a_read_only_folder_is_verified_and_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with create_labels(tmp_path / "a", "cells", (64, 64)) as labels:
        labels.write(Box(2, 2, 9, 9), np.ones((7, 7), bool), 1, drawn=DrawnAs(model="tiny"))
    for path in [tmp_path / "a", *(tmp_path / "a").rglob("*")]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    # The rights mean nothing to an administrator: opening for writing is refused here as well.
    opened = open

    def refuse(file: Any, mode: str = "r", *rest: Any, **more: Any) -> Any:
        if set(mode) & set("wax+") and str(file).startswith(str(tmp_path / "a")):
            raise PermissionError(13, "Permission denied", str(file))
        return opened(file, mode, *rest, **more)

    monkeypatch.setattr("builtins.open", refuse)
    before = files_of(tmp_path / "a")
    assert verify_labels(tmp_path / "a", "cells").problems == ()
    hrsam.export_csv(tmp_path / "a", "cells", tmp_path / "a.csv")
    assert "tiny" in (tmp_path / "a.csv").read_text()
    assert files_of(tmp_path / "a") == before
    for path in [tmp_path / "a", *(tmp_path / "a").rglob("*")]:
        path.chmod(path.stat().st_mode | stat.S_IWUSR)


def test_labels_that_are_not_there_are_told(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="expected a label image 'cells'.*got none"):
        verify_labels(tmp_path, "cells")
