"""What may happen around open labels: folders that move, forks, threads, and other programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr
from label_checks import require_consistent_levels
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.files import safe_files
from napari_hrsam.storage.label_image import (
    LabelWriter,
    create_labels,
    open_labels,
)
from napari_hrsam.storage.labels import highest_label as highest_label_module
from napari_hrsam.storage.labels.check import verify_labels

SHAPE = (1100, 1300)
PLACE = Box(480, 490, 580, 640)
ELSEWHERE = PLACE.shifted(500, 500)


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[LabelWriter]:
    with create_labels(tmp_path / "a", "cells", SHAPE) as made:
        yield made


def ones(box: Box) -> NDArray[np.bool_]:
    return np.ones(box.shape_yx, bool)


# ---------------------------------------------------------------------------------- folders


def _replace(path: Path) -> None:
    """A copy takes the place, perhaps with the number that the system gave to the first."""
    shutil.copytree(path, path.with_name("copy"), copy_function=shutil.copy)
    shutil.rmtree(path)
    path.with_name("copy").rename(path)


def _move(path: Path) -> None:
    path.rename(path.with_name("moved"))


MOVES: dict[str, Callable[[Path], None]] = {
    "image moved": _move,
    "image deleted": shutil.rmtree,
    "image replaced": _replace,
    "all labels moved": lambda image: _move(image / "labels"),
    "labels replaced": lambda image: _replace(image / "labels/cells"),
    "level moved": lambda image: _move(image / "labels/cells/1"),
    "level replaced": lambda image: _replace(image / "labels/cells/0"),
    "journal deleted": lambda image: shutil.rmtree(image / "labels/cells/.journal"),
    "journal replaced": lambda image: _replace(image / "labels/cells/.journal"),
}


def contents(folder: Path) -> dict[str, bytes]:
    """All files and folders; but for SQLite's shared memory, which is no data."""
    return {
        str(path): path.read_bytes() if path.is_file() else b"folder"
        for path in folder.rglob("*")
        if not path.name.endswith("-shm")
    }


@pytest.mark.parametrize("move", MOVES)
def test_nothing_is_written_after_the_folder_was_moved_deleted_or_replaced(
    labels: LabelWriter, tmp_path: Path, move: str
) -> None:
    first = labels.write(PLACE, ones(PLACE), labels.next_label())
    undone = labels.write(ELSEWHERE, ones(PLACE), labels.next_label())
    labels.revert(undone)
    MOVES[move](tmp_path / "a")
    before = contents(tmp_path)
    for call in (
        lambda: labels.write(ELSEWHERE, ones(PLACE), 3),
        lambda: labels.revert(first),
        lambda: labels.apply(undone),
        labels.next_label,
    ):
        with pytest.raises(LabelsError, match="expected the labels to stay at .*open them where"):
            call()
    assert contents(tmp_path) == before


def test_labels_that_were_moved_and_came_back_go_on(labels: LabelWriter, tmp_path: Path) -> None:
    _move(tmp_path / "a")
    (tmp_path / "moved").rename(tmp_path / "a")
    labels.write(PLACE, ones(PLACE), 1)
    require_consistent_levels(labels)


@pytest.mark.parametrize("function", ["_force_file", "_keep", "_rename"])
def test_a_commit_during_which_the_folder_is_moved_is_refused_and_whole_where_it_is_now(
    labels: LabelWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, function: str
) -> None:
    labels.write(PLACE, ones(PLACE), 1)
    original = getattr(safe_files, function)
    num_calls = 0

    def moving(path: str) -> object:
        nonlocal num_calls
        num_calls += 1
        if num_calls == 3:
            _move(tmp_path / "a")
        return original(path)

    monkeypatch.setattr(safe_files, function, moving)
    monkeypatch.setattr(safe_files, "NUM_THREADS", 1)
    with pytest.raises(LabelsError):
        labels.write(Box(0, 0, 1000, 1000), np.ones((1000, 1000), bool), 2)
    monkeypatch.undo()
    assert not (tmp_path / "a").exists()
    labels.close()
    with open_labels(tmp_path / "moved", "cells") as again:
        assert [edit.label for edit in again.history().done] == [1]
        assert (again.read(PLACE) == 1).all()
        assert (again.read(Box.of_shape(SHAPE)) != 0).sum() == PLACE.area
        require_consistent_levels(again)


def test_a_relative_path_means_the_folder_of_the_opening(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    with create_labels("a", "cells", SHAPE) as labels:
        monkeypatch.chdir("sub")
        labels.write(PLACE, ones(PLACE), 1)
    with open_labels("../a", "cells") as labels:
        monkeypatch.chdir(tmp_path)
        assert (labels.read(PLACE) == 1).all()
        labels.write(ELSEWHERE, ones(PLACE), 2)
        require_consistent_levels(labels)
    assert not list((tmp_path / "sub").iterdir())


# ---------------------------------------------------------------------- processes and threads


def test_a_forked_process_is_refused_and_takes_nothing_away(
    labels: LabelWriter, tmp_path: Path
) -> None:
    labels.write(PLACE, ones(PLACE), 1)
    answer, question = os.pipe(), os.pipe()
    number = os.fork()
    if number == 0:
        said = []
        for call in (labels.next_label, lambda: labels.write(ELSEWHERE, ones(PLACE), 2)):
            try:
                call()
            except LabelsError as error:
                said.append(str(error))
        labels.close()
        os.write(answer[1], "\n".join(said).encode())
        os.read(question[0], 1)
        os._exit(0)
    try:
        told = os.read(answer[0], 1000).decode().split("\n")
        assert len(told) == 2
        for text in told:
            assert text.startswith(f"expected the process that opened the labels ({os.getpid()})")
        labels.write(ELSEWHERE, ones(PLACE), labels.next_label())
        with pytest.raises(LabelsError, match="expected to be the only writer"):
            open_labels(tmp_path / "a", "cells")
        labels.close()
        with open_labels(tmp_path / "a", "cells") as again:
            assert [edit.label for edit in again.history().done] == [1, 2]
            require_consistent_levels(again)
    finally:
        os.write(question[1], b"x")
        os.waitpid(number, 0)


def test_threads_get_different_ids_and_write_one_after_the_other(labels: LabelWriter) -> None:
    got: list[int] = []
    start = threading.Barrier(3)

    def draw(column: int) -> None:
        start.wait()
        for row in range(8):
            box = Box(row * 130, column * 400, row * 130 + 60, column * 400 + 130)
            label = labels.next_label()
            assert labels.next_label() == label
            got.append(labels.write(box, ones(box), label, overwrite=True).label)

    threads = [threading.Thread(target=draw, args=(column,)) for column in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(got)) == len(got) == 24
    require_consistent_levels(labels)
    assert len(labels.history().done) == 24


# ------------------------------------------------------------------------- ids of others


def test_ids_that_another_program_drew_at_full_size_alone_are_not_given_again(
    labels: LabelWriter, tmp_path: Path
) -> None:
    labels.write(PLACE, ones(PLACE), 1)
    labels.close()
    array = zarr.open_array(labels.folder / "0", mode="r+")
    array[500:502, 500] = 7
    with open_labels(tmp_path / "a", "cells") as again:
        assert again.next_label() == 8
        # While they are open, and beside a commit in the same chunk.
        array[3, 3] = 20
        again.write(Box(0, 100, 9, 109), np.ones((9, 9), bool), 8)
        array[600, 600] = 30
    with open_labels(tmp_path / "a", "cells") as again:
        assert again.next_label() == 31


def test_only_what_others_changed_is_read_again_on_opening(
    labels: LabelWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    decoded = highest_label_module._decoded

    def watched(codec: object, file: Path, array: object) -> object:
        read.append(str(file.relative_to(labels.folder / "0")))
        return decoded(codec, file, array)  # type: ignore[arg-type]

    monkeypatch.setattr(highest_label_module, "_decoded", watched)
    labels.write(Box.of_shape(SHAPE), ones(Box.of_shape(SHAPE)), 1)
    edit = labels.write(PLACE, ones(PLACE), 2, overwrite=True)
    labels.revert(edit)
    labels.close()
    open_labels(tmp_path / "a", "cells").close()
    assert read == []
    file = labels.folder / "0" / "c" / "1" / "1"
    shutil.copy2(file, tmp_path / "copy")
    (tmp_path / "copy").replace(file)
    open_labels(tmp_path / "a", "cells").close()
    assert read == ["c/1/1"]
    open_labels(tmp_path / "a", "cells").close()
    assert read == ["c/1/1"]


def test_a_journal_that_lost_its_log_gives_no_id_again(labels: LabelWriter, tmp_path: Path) -> None:
    labels.write(Box(8, 8, 14, 16), np.ones((6, 8), bool), 1)
    log = labels.folder / ".journal" / "journal.sqlite-wal"
    early = log.read_bytes()
    # Hidden at every coarser level.
    labels.write(Box(14, 8, 15, 9), np.ones((1, 1), bool), 2)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    folder = tmp_path / "b/labels/cells/.journal"
    (folder / log.name).write_bytes(early)
    (folder / "journal.sqlite-shm").unlink()
    with open_labels(tmp_path / "b", "cells") as again:
        assert [edit.label for edit in again.history().done] == [1]
        assert again.next_label() == 3


@pytest.mark.parametrize("dtype", ["u8", "i8"])
def test_ids_up_to_the_last_of_the_dtype_are_given_and_come_back(
    tmp_path: Path, dtype: str
) -> None:
    last = int(np.iinfo(dtype).max)
    group = zarr.open_group(tmp_path / "labels" / "old", mode="w", zarr_format=2)
    array = group.create_array("0", shape=(60, 80), chunks=(32, 32), dtype=dtype)
    array[5, 5] = last - 2
    group.attrs["multiscales"] = [{"version": "0.4", "datasets": [{"path": "0"}]}]
    box = Box(10, 10, 20, 20)
    with open_labels(tmp_path, "old") as labels:
        for label in (last - 1, last):
            assert labels.next_label() == label
            labels.write(box, ones(box), label, overwrite=True)
    with open_labels(tmp_path, "old") as labels:
        with pytest.raises(LabelsError, match=f"got {last + 1}"):
            labels.next_label()
        labels.revert(labels.history().done[-1])
        assert [edit.label for edit in labels.history().undone] == [last]
        assert (labels.read(box) == last - 1).all()


# ------------------------------------------------------------------------------ damage


@pytest.mark.parametrize("level", [1, 2])
@pytest.mark.parametrize("data", [b"", b"garbage", None])
def test_a_damaged_chunk_of_a_coarser_level_blocks_neither_opening_nor_repair(
    labels: LabelWriter, tmp_path: Path, level: int, data: bytes | None
) -> None:
    labels.write(Box(0, 0, 600, 700), np.ones((600, 700), bool), 1)
    labels.close()
    for chunk in (labels.folder / str(level)).rglob("c/*/*"):
        chunk.write_bytes(chunk.read_bytes()[:-5] if data is None else data)
    with open_labels(tmp_path / "a", "cells") as again:
        assert again.next_label() == 2
    report = verify_labels(tmp_path / "a", "cells", repair=True)
    assert report.problems
    assert report.is_sound
    assert verify_labels(tmp_path / "a", "cells").problems == ()


def test_coarser_levels_are_repaired_beside_a_damaged_journal(
    labels: LabelWriter, tmp_path: Path
) -> None:
    labels.write(PLACE, ones(PLACE), 1)
    labels.close()
    (labels.folder / "2/c/0/0").write_bytes(b"garbage")
    (labels.folder / ".journal/journal.sqlite").write_bytes(b"x" * 5000)
    report = verify_labels(tmp_path / "a", "cells", repair=True)
    assert [(p.kind, p.is_repaired) for p in report.problems] == [
        ("chunk", True),
        ("journal", False),
    ]
    shutil.rmtree(labels.folder / ".journal")
    assert verify_labels(tmp_path / "a", "cells").problems == ()


# ---------------------------------------------------------------------------- creation

# Killed before the n-th change of the file system, each time in a process of its own: for every
# third n, for every n in `make test-slow`.
KILLS = int(os.environ.get("NAPARI_HRSAM_KILLS", "20"))
CREATION = """
import os, sys
from pathlib import Path
import numpy as np
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.labels.check import verify_labels
from napari_hrsam.storage.label_image import create_labels, open_labels
import zarr
base, num_labels, step = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
left = 10**9
def watch(event, arguments):
    global left
    changes = event in ("os.mkdir", "os.rename", "os.remove", "sqlite3.connect") or (
        event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"))
    left -= bool(changes)
    if changes and left < 0:
        os.kill(os.getpid(), 9)
sys.addaudithook(watch)
for number in range(0, 1000, step):
    place = base / str(number)
    for other in range(num_labels):
        create_labels(place, f"other{other}", (700, 900)).close()
    child = os.fork()
    if child == 0:
        left = number
        create_labels(place, "cells", (700, 900)).close()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    try:
        labels = create_labels(place, "cells", (700, 900))
    except LabelsError as error:
        assert "go on with it by open_labels" in str(error), error
        labels = open_labels(place, "cells")
    labels.write(Box(0, 0, 9, 9), np.ones((9, 9), bool), labels.next_label())
    labels.close()
    listed = zarr.open_group(place, mode="r")["labels"].attrs["ome"]["labels"]
    assert sorted(listed) == sorted({*listed}), listed
    assert "cells" in listed, listed
    report = verify_labels(place, "cells", repair=True)
    assert report.problems == (), report
    if status == 0:
        break
print(number)
"""


@pytest.mark.parametrize("num_others", [0, 1])
def test_a_creation_killed_at_any_moment_can_be_made_or_opened_and_is_listed(
    tmp_path: Path, num_others: int
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", CREATION, str(tmp_path), str(num_others), str(max(1, 60 // KILLS))],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) > 8


def test_labels_that_are_not_listed_are_listed_by_opening_or_repair(tmp_path: Path) -> None:
    create_labels(tmp_path, "cells", (40, 30)).close()
    listing = zarr.open_group(tmp_path / "labels", mode="r+")
    for is_repair in (False, True):
        listing.attrs["ome"] = {"version": "0.5", "labels": ["other"]}
        assert not verify_labels(tmp_path, "cells").is_sound
        if is_repair:
            report = verify_labels(tmp_path, "cells", repair=True)
            assert [(p.kind, p.is_repaired) for p in report.problems] == [("metadata", True)]
        else:
            open_labels(tmp_path, "cells").close()
        found = zarr.open_group(tmp_path / "labels", mode="r").attrs["ome"]
        assert found == {"version": "0.5", "labels": ["other", "cells"]}
