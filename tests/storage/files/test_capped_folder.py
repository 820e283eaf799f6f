"""The files used last stay; together they take no more than the limit."""

from __future__ import annotations

import os
import tempfile
import time
from collections import OrderedDict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_hrsam.storage.files.capped_folder import STALE_S, CappedFolder

steps = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.integers(0, 7), st.integers(1, 120)),
        st.tuples(st.just("use"), st.integers(0, 7), st.just(0)),
        st.tuples(st.just("restart"), st.just(0), st.just(0)),
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=60)
@given(steps, st.integers(1, 300))
def test_what_stays_is_what_was_used_last(todo: list[tuple[str, int, int]], limit: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        root = Path(place)
        folder = root / "embeddings-v1" / "a"
        folder.mkdir(parents=True)
        capped = CappedFolder(root, "embeddings-v*", limit)
        truth: OrderedDict[int, int] = OrderedDict()
        for what, name, size in todo:
            path = folder / f"c.{name}"
            if what == "restart":
                capped = CappedFolder(root, "embeddings-v*", limit)
            elif what == "write":
                path.write_bytes(bytes(size))
                capped.added(path)
                truth[name] = size
                truth.move_to_end(name)
                while sum(truth.values()) > limit and len(truth) > 1:
                    truth.popitem(last=False)
            elif name in truth:
                capped.used(path)
                truth.move_to_end(name)
            there = {int(path.name[2:]): path.stat().st_size for path in folder.glob("c.*")}
            assert there == truth
        assert capped.num_bytes == sum(truth.values())


def test_what_another_process_used_last_stays(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings-v1"
    folder.mkdir()
    mine, other = (CappedFolder(tmp_path, "embeddings-v*", 25) for _ in range(2))
    for name in ("c.0", "c.1"):
        (folder / name).write_bytes(bytes(10))
        mine.added(folder / name)
    # Until then it looks no more at what others do.
    mine._next_scan = time.monotonic() + 100
    other.used(folder / "c.0")
    (folder / "c.2").write_bytes(bytes(10))
    mine.added(folder / "c.2")
    assert sorted(path.name for path in folder.iterdir()) == ["c.0", "c.2"]


def test_what_another_process_writes_counts(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings-v1"
    folder.mkdir()
    capped = CappedFolder(tmp_path, "embeddings-v*", 100)
    assert capped.num_bytes == 0
    for name, age in (("c.0", 20), ("c.1", 10)):
        (folder / name).write_bytes(bytes(60))
        os.utime(folder / name, (time.time() - age,) * 2)
    assert capped.num_bytes == 120
    capped.tidy()
    assert [path.name for path in folder.iterdir()] == ["c.1"]


def test_a_file_that_vanished_does_not_count(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings-v1"
    folder.mkdir()
    capped = CappedFolder(tmp_path, "embeddings-v*", 100)
    for name in ("c.0", "c.1"):
        (folder / name).write_bytes(bytes(60))
        capped.added(folder / name)
        capped._next_scan = time.monotonic() + 100
    (folder / "c.1").unlink()
    (folder / "c.2").write_bytes(bytes(30))
    capped.added(folder / "c.2")
    assert [path.name for path in folder.iterdir()] == ["c.2"]
    capped.used(folder / "c.7")
    assert capped.num_bytes == 30


def test_unfinished_files_go_when_they_are_old(tmp_path: Path) -> None:
    folder = tmp_path / "embeddings-v1"
    folder.mkdir()
    for name, age_s in (("old.partial", STALE_S + 60), ("new.partial", STALE_S - 60)):
        (folder / name).write_bytes(bytes(7))
        os.utime(folder / name, (time.time() - age_s,) * 2)
    capped = CappedFolder(tmp_path, "embeddings-v*", 100)
    capped.tidy()
    assert [path.name for path in folder.iterdir()] == ["new.partial"]
    assert capped.num_bytes == 7


def test_a_bare_folder_goes_and_a_description_of_others_stays(tmp_path: Path) -> None:
    for name in ("a", "b"):
        folder = tmp_path / "embeddings-v1" / name
        folder.mkdir(parents=True)
        (folder / "zarr.json").write_text("{}")
        for number in range(2):
            (folder / f"c.{number}").write_bytes(bytes(10))
            os.utime(folder / f"c.{number}", (1 + number, 1 + number + (name == "b")))
    capped = CappedFolder(tmp_path, "embeddings-v*", 10)
    capped.tidy()
    left = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file())
    assert left == ["embeddings-v1/b/c.1", "embeddings-v1/b/zarr.json"]
    assert not (tmp_path / "embeddings-v1" / "a").exists()


def test_links_lead_nowhere(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    for path in (outside / "c.0", outside / "deep" / "c.1"):
        path.write_bytes(bytes(50))
        os.utime(path, (1, 1))
    root = tmp_path / "root"
    folder = root / "embeddings-v1"
    folder.mkdir(parents=True)
    (folder / "c.0").symlink_to(outside / "c.0")
    (folder / "deep").symlink_to(outside / "deep")
    (root / "embeddings-v2").symlink_to(outside)
    capped = CappedFolder(root, "embeddings-v*", 10)
    for number in range(1, 4):
        (folder / f"c.{number}").write_bytes(bytes(8))
        capped.added(folder / f"c.{number}")
    assert capped.num_bytes == 8
    assert len(list(outside.rglob("c.*"))) == 2


@pytest.mark.parametrize("num", [0, 1])
def test_nothing_there_is_no_error(tmp_path: Path, num: int) -> None:
    capped = CappedFolder(tmp_path / "none", "embeddings-v*", num)
    capped.tidy()
    assert capped.num_bytes == 0
