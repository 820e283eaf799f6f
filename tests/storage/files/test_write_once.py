"""Files that several write at once."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from napari_hrsam.storage.files.safe_files import discard, write_once


def test_files_written_at_once_are_whole_and_one_of_them_counts(tmp_path: Path) -> None:
    together = threading.Barrier(8)
    ours: list[bool] = []

    def write(number: int) -> None:
        together.wait()
        ours.append(write_once(tmp_path / "file", bytes([number]) * 2_000_000))

    threads = [threading.Thread(target=write, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(ours) == [False] * 7 + [True]
    data = (tmp_path / "file").read_bytes()
    assert data == data[:1] * 2_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["file"]


def test_where_a_disk_knows_no_second_names_files_are_written_once_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EPERM, "no links")

    monkeypatch.setattr(os, "link", refuse)
    assert write_once(tmp_path / "file", b"one")
    assert not write_once(tmp_path / "file", b"two")
    assert (tmp_path / "file").read_bytes() == b"one"


def test_a_disk_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="full"):
        write_once(tmp_path / "file", b"one")
    assert not list(tmp_path.iterdir())


def test_several_may_remove_a_folder_at_once(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / "run" / str(number)).mkdir(parents=True)
    together, errors = threading.Barrier(4), []

    def remove() -> None:
        together.wait()
        try:
            discard(tmp_path / "run")
        except OSError as error:
            errors.append(error)

    threads = [threading.Thread(target=remove) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert not (tmp_path / "run").exists()
