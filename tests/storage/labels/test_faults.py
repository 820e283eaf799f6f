"""Label images that are damaged, absurd, or on a disk that is full."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

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
WHOLE = Box.of_shape(SHAPE)


@pytest.fixture
def labels(tmp_path: Path) -> Iterator[LabelWriter]:
    with create_labels(tmp_path / "a", "cells", SHAPE) as made:
        yield made


def ones(box: Box) -> NDArray[np.bool_]:
    return np.ones(box.shape_yx, bool)


# ---------------------------------------------------------------------------------- damage


def test_labels_with_a_chunk_cut_short_open_and_its_undo_is_refused_without_a_trace(
    labels: LabelWriter, tmp_path: Path
) -> None:
    labels.write(PLACE.shifted(-300, 0), ones(PLACE), 1)
    labels.write(PLACE, ones(PLACE), 2)
    labels.close()
    chunk = labels.folder / "0" / "c" / "1" / "0"
    good = chunk.read_bytes()
    chunk.write_bytes(good[: len(good) // 2])
    before = {path: path.read_bytes() for path in labels.folder.rglob("c/*/*")}
    with open_labels(tmp_path / "a", "cells") as again:
        assert again.next_label() == 3
        newest = again.history().done[-1]
        for _ in range(2):
            with pytest.raises(LabelsError, match=rf"a damaged chunk {chunk} \(pixels \[512:1024"):
                again.revert(newest)
        assert {path: path.read_bytes() for path in labels.folder.rglob("c/*/*")} == before
        with pytest.raises(LabelsError, match="bring the file back from a copy, or delete it"):
            again.read(PLACE)
        # Other places can be worked on.
        other = again.write(Box(0, 1000, 20, 1020), np.ones((20, 20), bool), 3)
        again.revert(other)
        chunk.write_bytes(good)
        again.revert(newest)
        assert [edit.label for edit in again.history().done] == [1]
        require_consistent_levels(again)


def test_a_damaged_chunk_of_a_level_between_is_derived_again_with_the_others(
    labels: LabelWriter, caplog: pytest.LogCaptureFixture
) -> None:
    labels.write(Box(0, 0, 1100, 1300), ones(WHOLE), 1)
    (labels.folder / "1" / "c" / "0" / "1").write_bytes(b"garbage")
    # Two corners: the part between them is derived too, from the damaged chunk.
    mask = np.zeros(SHAPE, bool)
    mask[:5, :5] = mask[-5:, -5:] = True
    labels.write(WHOLE, mask, 2, overwrite=True)
    require_consistent_levels(labels)
    assert "deriving a damaged part of level 1" in caplog.text


def test_a_damaged_block_of_the_journal_is_told_and_changes_nothing(
    labels: LabelWriter, tmp_path: Path
) -> None:
    mask = ones(PLACE)
    mask[0, 0] = False
    labels.write(PLACE, mask, 1)
    labels.close()
    database = sqlite3.connect(labels.folder / ".journal" / "journal.sqlite")
    database.execute("UPDATE blocks SET changed = x'28b52ffd00'")
    database.commit()
    database.close()
    with open_labels(tmp_path / "a", "cells") as again:
        with pytest.raises(LabelsError, match="expected an intact journal, got damage at"):
            again.revert(again.history().done[-1])
        assert (again.read(PLACE) == mask).all()
        again.write(PLACE.shifted(200, 200), ones(PLACE), 2)
        again.revert(again.history().done[-1])
        require_consistent_levels(again)


def test_the_journal_of_an_early_version_is_not_opened_and_says_the_way_out(
    labels: LabelWriter, tmp_path: Path
) -> None:
    labels.write(PLACE, ones(PLACE), 4)
    labels.close()
    database = sqlite3.connect(labels.folder / ".journal" / "journal.sqlite")
    database.execute("PRAGMA user_version = 1")
    database.close()
    with pytest.raises(LabelsError, match="made before the first release.*Move the folder"):
        open_labels(tmp_path / "a", "cells")
    shutil.move(labels.folder / ".journal", tmp_path / "away")
    with open_labels(tmp_path / "a", "cells") as again:
        assert again.next_label() == 5
        assert (again.read(PLACE) == 4).all()


# ---------------------------------------------------------------------------- absurd sizes

ABSURD: dict[str, tuple[dict[str, Any], str]] = {
    "shape of exabytes": ({"shape": [2**62] * 2}, "at most 2147483648 pixels along each axis"),
    "one endless axis": ({"shape": [900, 2**33]}, "at most 2147483648 pixels along each axis"),
    "endless chunks": ({"chunks": [2**40] * 2}, r"chunks \(or shards\) of at most 128 MiB"),
    "chunks of nothing": ({"chunks": [0, 512]}, r"chunks of 1 pixel or more, got \[0, 512\]"),
    "negative shape": ({"shape": [-5, 900]}, "metadata that cannot be used"),
    "no shape": ({"shape": "huge"}, "metadata that cannot be used"),
    "fractions": ({"shape": [900, 900.5]}, "metadata that cannot be used"),
    "one axis of chunks": ({"chunks": [512]}, "metadata that cannot be used"),
    "nothing": ({"shape": [0, 900]}, "expected labels of integers with axes y and x"),
}


@pytest.mark.parametrize("case", ABSURD)
def test_absurd_sizes_in_the_metadata_are_refused_at_once(tmp_path: Path, case: str) -> None:
    create_labels(tmp_path, "cells", (900, 900)).close()
    folder = tmp_path / "labels" / "cells"
    # Without a journal, all that is stored is looked at.
    shutil.rmtree(folder / ".journal")
    metadata = json.loads((folder / "0" / "zarr.json").read_text())
    change, message = ABSURD[case]
    if "chunks" in change:
        metadata["chunk_grid"]["configuration"]["chunk_shape"] = change["chunks"]
    else:
        metadata.update(change)
    (folder / "0" / "zarr.json").write_text(json.dumps(metadata))
    with pytest.raises(LabelsError, match=message):
        open_labels(tmp_path, "cells")


def test_absurdly_many_levels_are_refused(tmp_path: Path) -> None:
    create_labels(tmp_path, "cells", (900, 900)).close()
    file = tmp_path / "labels" / "cells" / "zarr.json"
    metadata = json.loads(file.read_text())
    metadata["attributes"]["ome"]["multiscales"][0]["datasets"] *= 50
    file.write_text(json.dumps(metadata))
    with pytest.raises(LabelsError, match="expected 1..64 levels, got 100"):
        open_labels(tmp_path, "cells")


def test_an_absurd_shape_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(LabelsError, match="at most 2147483648 pixels along each axis, got shape"):
        create_labels(tmp_path / "a", "cells", (2**40, 5))
    assert not (tmp_path / "a").exists()


def test_only_what_is_stored_is_looked_at_for_the_highest_id(tmp_path: Path) -> None:
    # 67 million chunks at level 0.
    with create_labels(tmp_path, "cells", (2**22, 2**22)) as labels:
        labels.write(Box(0, 0, 9, 9), np.ones((9, 9), bool), 41)
        labels.write(Box(2**22 - 9, 2**22 - 9, 2**22, 2**22), np.ones((9, 9), bool), 40)
    for path in (tmp_path / "labels" / "cells").rglob("c/0"):
        (path / ".0.partial").write_bytes(b"what a crash left")
        (path / "notes.txt").write_bytes(b"mine")
    (tmp_path / "labels" / "cells" / "0" / "0.0").write_bytes(b"a key of another separator")
    shutil.rmtree(tmp_path / "labels" / "cells" / ".journal")
    with open_labels(tmp_path, "cells") as labels:
        assert labels.next_label() == 42


# ------------------------------------------------------------------------------- full disk

# On a small disk, which is full but for some bytes when the second object is drawn.
FULL = """
import os, resource, sys
from pathlib import Path
import numpy as np
from label_checks import require_consistent_levels
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import create_labels, open_labels
place, left = Path(sys.argv[1]), int(sys.argv[2])
whole = Box(0, 0, 1000, 1000)
rng = np.random.default_rng(0)
labels = create_labels(place / "a", "cells", (1000, 1000))
labels.write(whole, rng.random((1000, 1000)) < 0.5, 1)
before = labels.read(whole)
mask = rng.random((1000, 1000)) < 0.5
size = os.statvfs(place)
is_small = size.f_blocks * size.f_frsize < 10_000_000
with open(place / "filler", "wb") as filler:
    if is_small:
        filler.write(b"x" * (size.f_bavail * size.f_frsize - left))
if not is_small:
    resource.setrlimit(resource.RLIMIT_FSIZE, (left // 10, resource.RLIM_INFINITY))
for attempt in range(2):
    try:
        labels.write(whole, mask, 2, overwrite=True)
        print("written")
    except LabelsError as error:
        print("refused:", error)
assert (labels.read(whole) == before).all(), "changed while the disk is full"
if sys.argv[3] == "reopened":
    labels.close()
(place / "filler").unlink()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
if sys.argv[3] == "reopened":
    labels = open_labels(place / "a", "cells")
    assert [edit.label for edit in labels.history().done] == [1], "a refused commit came back"
assert (labels.read(whole) == before).all(), "changed"
labels.write(whole, mask, 3, overwrite=True)
require_consistent_levels(labels)
assert [edit.label for edit in labels.history().done] == [1, 3]
labels.close()
with open_labels(place / "a", "cells") as labels:
    labels.revert(labels.history().done[-1])
    assert (labels.read(whole) == before).all()
    require_consistent_levels(labels)
assert not list(place.rglob("*.partial"))
print("whole")
"""


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The start of a command that runs another one where a folder is a disk of 3 MB; the folder.

    Where no disk may be mounted it is a plain folder, and a limit on file sizes stands for it.
    """
    folder = tmp_path_factory.mktemp("disk")
    mount = f"mount -t tmpfs -o size=3m none {folder} && "
    for command in (["unshare", "-m"], ["unshare", "-rm"]):
        start = [*command, "sh", "-c", mount + 'exec "$@"', "sh"]
        if shutil.which("unshare") and not subprocess.run([*start, "true"], check=False).returncode:
            return [*start, str(folder)]
    return [str(folder)]


@pytest.mark.parametrize("then", ["goes on", "reopened"])
@pytest.mark.parametrize("left", [0, 300_000, 500_000, 600_000])
def test_a_full_disk_refuses_the_commit_and_keeps_all_others(
    small_disk: list[str], left: int, then: str
) -> None:
    *start, folder = small_disk
    paths = [str(Path(__file__).parents[2] / "support"), *sys.path]
    run = subprocess.run(
        [*start, sys.executable, "-c", FULL, folder, str(left), then],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("refused: expected") == 2, run.stdout
    assert run.stdout.endswith("whole\n")
