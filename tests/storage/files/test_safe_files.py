"""Files that are the old ones or the new ones, and on the disk when that is said."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ome_files import write_ome

from napari_hrsam.storage.files.safe_files import FileBatch
from napari_hrsam.storage.label_image import create_labels


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What the system is asked, in order: (what, name of the file)."""
    said: list[tuple[str, str]] = []

    def watched(name: str) -> Callable[..., Any]:
        original = getattr(os, name)

        def call(first: Any, *more: Any) -> Any:
            at = Path(f"/proc/self/fd/{first}").readlink() if name == "fsync" else first
            said.append((name, Path(at).name))
            return original(first, *more)

        return call

    for name in ("fsync", "replace", "unlink"):
        monkeypatch.setattr(f"os.{name}", watched(name))
    return said


def test_a_file_is_forced_onto_the_disk_before_it_is_renamed_and_its_folders_after(
    tmp_path: Path, calls: list[tuple[str, str]]
) -> None:
    (tmp_path / "gone").write_bytes(b"old")
    files = FileBatch()
    files.write(str(tmp_path / "c" / "0" / "a"), b"first", top=str(tmp_path))
    files.write(str(tmp_path / "c" / "0" / "b"), b"second", top=str(tmp_path))
    files.write(str(tmp_path / "gone"), None, top=str(tmp_path))
    assert not (tmp_path / "c" / "0" / "a").exists()
    assert (tmp_path / "gone").exists()
    files.finish()
    assert sorted(calls[:2]) == [("fsync", ".a.partial"), ("fsync", ".b.partial")]
    assert sorted(calls[2:4]) == [("replace", ".a.partial"), ("replace", ".b.partial")]
    assert calls[4] == ("unlink", "gone")
    assert sorted(calls[5:]) == [("fsync", "0"), ("fsync", "c"), ("fsync", tmp_path.name)]
    assert (tmp_path / "c" / "0" / "a").read_bytes() == b"first"
    files.drop_backups()
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"a", "b"}


def test_what_waits_is_read_as_it_will_be(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    files = FileBatch()
    assert files.read(path) is None
    for data in (b"one", b"two", None, b"three"):
        files.write(path, data, top=str(tmp_path))
        assert files.read(path) == data
    files.finish()
    assert (tmp_path / "a").read_bytes() == b"three"
    files.write(path, b"four", top=str(tmp_path))
    files.write(path, None, top=str(tmp_path))
    files.finish()
    files.drop_backups()
    assert list(tmp_path.iterdir()) == []


def test_what_is_abandoned_leaves_no_trace(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"old")
    files = FileBatch()
    files.write(str(tmp_path / "a"), b"new", top=str(tmp_path))
    files.write(str(tmp_path / "b"), b"new", top=str(tmp_path))
    files.abandon()
    files.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"old"


def test_only_so_many_files_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_hrsam.storage.files.safe_files.MAX_WAITING", 3)
    files = FileBatch()
    for number in range(7):
        files.write(str(tmp_path / str(number)), b"x", top=str(tmp_path))
        assert len(list(tmp_path.glob(".[0-9].partial"))) <= 3
    files.finish()
    assert len(list(tmp_path.iterdir())) == 7


def test_what_a_crash_left_under_the_other_name_is_used_again(tmp_path: Path) -> None:
    (tmp_path / ".a.partial").write_bytes(b"longer than the new one")
    files = FileBatch()
    files.write(str(tmp_path / "a"), b"new", top=str(tmp_path))
    files.finish()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_bytes() == b"new"


def test_no_file_is_renamed_that_could_not_be_forced_onto_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("os.fsync", failing)
    files = FileBatch()
    files.write(str(tmp_path / "a"), b"new", top=str(tmp_path))
    with pytest.raises(OSError, match="Input/output error"):
        files.finish()
    assert not (tmp_path / "a").exists()
    files.abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_names", [True, False])
def test_what_is_abandoned_after_it_took_its_place_is_put_back_without_a_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_names: bool
) -> None:
    """Also where the file system has no second names for a file."""
    if not has_names:

        def refused(*_: object) -> None:
            raise OSError(errno.EPERM, os.strerror(errno.EPERM))

        monkeypatch.setattr("os.link", refused)
    for name in ("a", "b", ".a.before.partial"):
        (tmp_path / name).write_bytes(b"old")
    files = FileBatch()

    def replace_all() -> None:
        for name, data in (("a", b"new"), ("b", None), ("c/new", b"new")):
            files.write(str(tmp_path / name), data, top=str(tmp_path))
            files.finish()
        files.write(str(tmp_path / "a"), b"newer", top=str(tmp_path))
        files.finish()

    replace_all()
    assert sorted(files.replaced) == [str(tmp_path / name) for name in ("a", "b", "c/new")]
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("nothing is written"))
    files.abandon()
    monkeypatch.undo()
    assert {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == {
        "a": b"old",
        "b": b"old",
    }
    replace_all()
    files.drop_backups()
    files.abandon()
    assert {p.name: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == {
        "a": b"newer",
        "new": b"new",
    }


def test_putting_back_goes_on_after_the_disk_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = FileBatch()
    for name in "abcd":
        (tmp_path / name).write_bytes(b"old")
        files.write(str(tmp_path / name), b"new", top=str(tmp_path))
    files.finish()
    replace, left = os.replace, [2, 1, 9]

    def limited(source: str, target: str) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(source, target)

    monkeypatch.setattr("os.replace", limited)
    for _ in range(2):
        with pytest.raises(OSError, match="Input/output error"):
            files.abandon()
        del left[0]
    files.abandon()
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == dict.fromkeys("abcd", b"old")


def test_folders_above_the_top_are_never_made(tmp_path: Path) -> None:
    top = tmp_path / "labels" / "0"
    for place in (top / "c" / "1" / "1", top / "1.1"):
        files = FileBatch()
        with pytest.raises(FileNotFoundError):
            files.write(str(place), b"new", top=str(top))
        files.abandon()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("has_image", [False, True])
def test_a_new_label_image_is_on_the_disk_before_anything_is_drawn(
    tmp_path: Path, calls: list[tuple[str, str]], has_image: bool
) -> None:
    if has_image:
        write_ome(tmp_path / "a", [np.zeros((600, 700), np.uint8)], version="0.4")
    with create_labels(tmp_path / "a", "cells", (600, 700)) as labels:
        forced = {name for what, name in calls if what == "fsync"}
        made = {path.name for path in labels.folder.rglob("*")}
        # What SQLite forces itself, and what is of no use after a power cut.
        made -= {path.name for path in (labels.folder / ".journal").iterdir()}
        assert made | {"labels", "a", tmp_path.name, ".journal"} <= forced
        # Under their first names.
        assert {".cells.partial", "journal.sqlite.partial"} <= forced
