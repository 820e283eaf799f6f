"""Full, locked and damaged: what was committed stays, and nothing is half there."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from label_checks import require_consistent_levels
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import (
    LabelWriter,
    create_labels,
    open_labels,
)

SHAPE = (1100, 1300)
PLACE = Box(480, 490, 580, 640)


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[LabelWriter]:
    with create_labels(tmp_path / "a", "cells", SHAPE) as made:
        yield made


def ones(box: Box) -> NDArray[np.bool_]:
    return np.ones(box.shape_yx, bool)


# Killed when the journal holds the change, and some of its files have taken their places.
KILLED = """
import os, sys, numpy as np
from napari_hrsam.geometry import Box
from napari_hrsam.masks import ArrayMask
from napari_hrsam.storage.files import safe_files
from napari_hrsam.storage.label_image import open_labels
labels = open_labels(sys.argv[1], "cells")
rename, left = safe_files._rename, int(sys.argv[3])
def killed(path):
    global left
    left -= 1
    if left < 0:
        os.kill(os.getpid(), 9)
    rename(path)
safe_files._rename = killed
if sys.argv[2] == "commit":
    labels.write(Box(0, 0, 1000, 1000), np.ones((1000, 1000), bool), 3, overwrite=True)
elif sys.argv[2] == "replace":
    mask = ArrayMask(Box(0, 0, 1000, 1000), np.ones((1000, 1000), bool))
    labels.replace(1, labels.find(1), mask, overwrite=True)
elif sys.argv[2] == "delete":
    labels.replace(1, labels.find(1), None)
elif sys.argv[2] == "undo":
    labels.revert(labels.history().done[-1])
else:
    labels.apply(labels.history().undone[-1])
"""


@pytest.mark.parametrize("what", ["commit", "replace", "delete", "undo", "redo"])
@pytest.mark.parametrize("num_renamed", [0, 2])
def test_a_change_that_never_returned_is_put_back_on_opening(
    labels: LabelWriter, tmp_path: Path, what: str, num_renamed: int
) -> None:
    labels.write(PLACE, ones(PLACE), 1)
    second = labels.write(PLACE.shifted(-300, -200), ones(PLACE), 2)
    if what == "redo":
        labels.revert(second)
    before = labels.read(Box.of_shape(SHAPE))
    history = labels.history()
    labels.close()
    command = [sys.executable, "-c", KILLED, str(tmp_path / "a"), what, str(num_renamed)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    for _ in range(2):
        with open_labels(tmp_path / "a", "cells") as again:
            np.testing.assert_array_equal(again.read(Box.of_shape(SHAPE)), before)
            require_consistent_levels(again)
            assert [e.label for e in again.history().done] == [e.label for e in history.done]
            assert [e.label for e in again.history().undone] == [e.label for e in history.undone]
            assert again.next_label() == (4 if what == "commit" else 3)
    assert not list(again.folder.rglob("*.before.partial"))


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_an_interrupted_commit_leaves_no_stray_files_and_is_taken_back(
    labels: LabelWriter, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels.write(PLACE, ones(PLACE), 1)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            labels.write(PLACE, ones(PLACE), 2, overwrite=True)
    assert not list(labels.folder.rglob("*.partial"))
    assert [edit.label for edit in labels.history().done] == [1]
    assert (labels.read(PLACE) == 1).all()
    require_consistent_levels(labels)


class Disk:
    """A disk that is full from the n-th write of a chunk on, until it is emptied."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = 10**9
        replace = os.replace

        def limited(source: str, target: str) -> None:
            self.left -= 1
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            replace(source, target)

        monkeypatch.setattr("os.replace", limited)


@pytest.mark.parametrize("num_writes", [0, 1, 2, 3])
def test_a_commit_on_a_full_disk_fails_as_a_whole_and_succeeds_later(
    labels: LabelWriter, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    first = labels.write(PLACE, ones(PLACE), 1)
    before = labels.read(Box.of_shape(SHAPE))
    disk = Disk(monkeypatch)
    disk.left = num_writes
    with pytest.raises(LabelsError, match="to write the labels at .*No space left.*check the sp"):
        labels.write(Box(0, 0, 1000, 1000), np.ones((1000, 1000), bool), 2)
    disk.left = 10**9
    labels.revert(first)
    labels.apply(first)
    np.testing.assert_array_equal(labels.read(Box.of_shape(SHAPE)), before)
    require_consistent_levels(labels)
    assert [edit.label for edit in labels.history().done] == [1]
    labels.write(Box(0, 0, 1000, 1000), np.ones((1000, 1000), bool), 2)
    require_consistent_levels(labels)


@pytest.mark.parametrize("num_writes", [0, 1, 2])
def test_an_undo_on_a_full_disk_fails_as_a_whole_and_succeeds_later(
    labels: LabelWriter, monkeypatch: pytest.MonkeyPatch, num_writes: int
) -> None:
    first = labels.write(PLACE.shifted(100, 100), ones(PLACE), 1)
    edit = labels.write(PLACE, ones(PLACE), 2, overwrite=True)
    disk = Disk(monkeypatch)
    disk.left = num_writes
    with pytest.raises(LabelsError, match="No space left"):
        labels.revert(edit)
    disk.left = 10**9
    assert len(labels.history().done) == 2
    labels.revert(edit)
    labels.revert(first)
    assert not labels.read(Box.of_shape(SHAPE)).any()
    require_consistent_levels(labels)


# The first objects make a chunk that compresses badly: it is larger than the journal's log then.
LIMITED = """
import resource, sys, numpy as np
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import open_labels
labels = open_labels(sys.argv[1], "cells")
rng = np.random.default_rng(0)
for label in range(1, 26):
    labels.write(Box(0, 0, 400, 400), rng.random((400, 400)) < 0.2, label, overwrite=True)
labels.close()
labels = open_labels(sys.argv[1], "cells")
side = int(sys.argv[3])
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    labels.write(Box(0, 0, side, side), rng.random((side, side)) < 0.5, 26, overwrite=True)
except LabelsError as error:
    print("refused:", error)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
labels.write(Box(1000, 0, 1010, 10), np.ones((10, 10), bool), labels.next_label())
"""


@pytest.mark.parametrize(
    ("limit", "side", "told"),
    [(2_000, 1000, "a journal that"), (60_000, 1000, "a journal that"), (60_000, 20, "to write")],
)
def test_real_write_errors_of_the_system_leave_nothing_half(
    tmp_path: Path, limit: int, side: int, told: str
) -> None:
    create_labels(tmp_path / "a", "cells", SHAPE).close()
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "a"), str(limit), str(side)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert f"refused: expected {told}" in run.stdout
    with open_labels(tmp_path / "a", "cells") as labels:
        image = labels.read(Box.of_shape(SHAPE))
        last = image[1000, 0]
        assert set(np.unique(image)) == {*range(26), last}
        assert (image == last).sum() == (image[1000:1010, :10] == last).sum() == 100
        require_consistent_levels(labels)
        assert len(labels.history().done) == 26
    assert not list((tmp_path / "a").rglob("*.partial"))


def test_a_damaged_chunk_is_named_and_the_commit_leaves_no_trace(labels: LabelWriter) -> None:
    labels.write(Box(0, 0, 9, 9), np.ones((9, 9), bool), 1)
    chunk = labels.folder / "0" / "c" / "0" / "0"
    good = chunk.read_bytes()
    message = rf"a damaged chunk {chunk} \(pixels \[0:512, 0:512\] of .*cells/0; .* or delete it"
    for damage in (good[: len(good) // 2], b"garbage", b""):
        chunk.write_bytes(damage)
        with pytest.raises(LabelsError, match=message):
            labels.write(Box(500, 500, 530, 530), np.ones((30, 30), bool), 2)
        assert chunk.read_bytes() == damage
        assert labels.next_label() == 2
    chunk.write_bytes(good)
    labels.write(Box(500, 500, 530, 530), np.ones((30, 30), bool), 2)
    require_consistent_levels(labels)


def test_a_damaged_chunk_of_a_coarser_level_is_derived_again(
    labels: LabelWriter, caplog: pytest.LogCaptureFixture
) -> None:
    labels.write(Box(0, 0, 9, 9), np.ones((9, 9), bool), 1)
    (labels.folder / "1" / "c" / "0" / "0").write_bytes(b"garbage")
    labels.write(Box(100, 100, 130, 130), np.ones((30, 30), bool), 2)
    require_consistent_levels(labels)
    assert "deriving a damaged part of level 1" in caplog.text


def test_a_second_writer_is_told_who_the_first_is(labels: LabelWriter, tmp_path: Path) -> None:
    code = "import sys; from napari_hrsam import open_labels; open_labels(sys.argv[1], 'cells')"
    run = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "a")],
        capture_output=True,
        text=True,
        check=False,
    )
    message = f"but they are open in process {os.getpid()} on {os.uname().nodename} since"
    assert message in run.stderr
    assert "close them there first" in run.stderr
    with pytest.raises(LabelsError, match="expected to be the only writer"):
        open_labels(tmp_path / "a", "cells")
    labels.write(PLACE, ones(PLACE), 1)
    (labels.folder / ".journal" / "writer.json").write_text("{")
    with pytest.raises(LabelsError, match="they are open in another process; close"):
        open_labels(tmp_path / "a", "cells")
    labels.close()
    open_labels(tmp_path / "a", "cells").close()


def test_the_lock_of_a_dead_process_holds_nobody_up(labels: LabelWriter, tmp_path: Path) -> None:
    labels.close()
    code = (
        "import os, signal, sys; from napari_hrsam import open_labels;"
        "labels = open_labels(sys.argv[1], 'cells'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    run = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], check=False)
    assert run.returncode == -signal.SIGKILL
    folder = labels.folder / ".journal"
    assert (folder / "writer.lock").exists()
    assert json.loads((folder / "writer.json").read_text())["pid"] != os.getpid()
    open_labels(tmp_path / "a", "cells").close()


def test_labels_with_a_damaged_journal_are_not_opened_until_it_is_moved_away(
    labels: LabelWriter, tmp_path: Path
) -> None:
    labels.write(PLACE, ones(PLACE), 4)
    labels.close()
    journal = labels.folder / ".journal" / "journal.sqlite"
    journal.write_bytes(os.urandom(journal.stat().st_size))
    for _ in range(2):
        with pytest.raises(LabelsError, match="got damage at .*Move the folder .*.journal away"):
            open_labels(tmp_path / "a", "cells")
    shutil.move(journal.parent, tmp_path / "away")
    with open_labels(tmp_path / "a", "cells") as again:
        assert again.next_label() == 5
        assert (again.read(PLACE) == 4).all()


READ_ONLY = """
import os, sys
from napari_hrsam import HRSAMError, create_labels, open_labels
create_labels(sys.argv[2], "warm", (4, 4)).close()
if os.getuid() == 0:
    os.setuid(65534)  # To the superuser no folder is read-only.
for call in (lambda: open_labels(sys.argv[1], "cells"),
             lambda: create_labels(sys.argv[1], "more", (4, 4)),
             lambda: create_labels(sys.argv[1] + "/labels/new", "more", (4, 4))):
    try:
        call()
    except HRSAMError as error:
        print("refused:", error)
"""


def test_a_folder_that_is_read_only_is_refused_and_unchanged() -> None:
    # Not in pytest's own folder, which only its owner may enter.
    place = Path(tempfile.mkdtemp())
    image = place / "a.zarr"
    create_labels(image, "cells", SHAPE).close()
    shutil.rmtree(image / "labels" / "cells" / ".journal")
    try:
        for path in [place, *place.rglob("*")]:
            path.chmod(0o755)
        for path in [image, *image.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        files = sorted(image.rglob("*"))
        run = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(image), str(place / "warm")],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.stdout.count("refused: expected a folder that can be written to") == 3, run
        assert sorted(image.rglob("*")) == files
    finally:
        for path in [image, *image.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(place)
