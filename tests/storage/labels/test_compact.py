"""`compact_labels` writes an equal copy in few files."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zarr
from label_files import blobs, write_labels

import napari_hrsam as hrsam
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import create_labels
from napari_hrsam.storage.labels import compact as label_compact
from napari_hrsam.storage.labels.check import verify_labels
from napari_hrsam.storage.labels.compact import compact_labels
from napari_hrsam.storage.labels.journal_facts import JOURNAL_FILE
from napari_hrsam.storage.labels.stored import StoredLabels

SHAPE = (150, 200)


@pytest.fixture
def _small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_compact, "CHUNK_PX", 16)
    monkeypatch.setattr(label_compact, "MAX_SHARD_PX", 64)


@pytest.mark.usefixtures("_small_shards")
@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("dtype", ["u1", "i4", "u8"])
def test_a_copy_is_equal_at_every_level_and_in_shards(
    tmp_path: Path, version: str, dtype: str
) -> None:
    group = write_labels(
        tmp_path / "a",
        blobs(SHAPE, 9, dtype=np.dtype(dtype)),
        version=version,
        num_levels=3,
        scale=(0.5, 0.25),
        translation=(3, 4),
        unit="micrometer",
    )
    colours = [{"label-value": 1, "rgba": [255, 0, 0, 255]}]
    if version == "0.5":
        ome = dict(group.attrs["ome"])
        ome["image-label"] = {"colors": colours, "source": {"image": "../../"}}
        group.attrs["ome"] = ome
    seen: list[tuple[int, int]] = []
    done = hrsam.compact_labels(
        tmp_path / "a", "cells", tmp_path / "b", progress=lambda *n: seen.append(n)
    )
    assert (done.source_version, done.version) == (version, "0.5")
    original, copied = (StoredLabels(tmp_path / name, "cells") for name in "ab")
    for first, second in zip(original.levels, copied.levels, strict=True):
        assert second.shards is not None
        assert second.dtype == first.dtype
        np.testing.assert_array_equal(first[...], second[...])
    for fact in ("axes", "units", "types", "scales", "translations"):
        assert getattr(original.ome, fact) == getattr(copied.ome, fact)
    if version == "0.5":
        label = zarr.open_group(tmp_path / "b/labels/cells").attrs["ome"]["image-label"]
        assert label == {"colors": colours}
    assert verify_labels(tmp_path / "b", "cells").problems == ()
    assert done.num_files < done.source_num_files / 4
    files = [p for p in (tmp_path / "b/labels/cells").rglob("*") if p.is_file()]
    assert done.num_files == len(files) - 1
    assert seen[-1][0] == seen[-1][1] == len(seen)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


@pytest.mark.usefixtures("_small_shards")
def test_shards_without_labels_are_not_written(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.uint16)
    labels[100, 150] = 5
    write_labels(tmp_path / "a", labels)
    done = compact_labels(tmp_path / "a", "cells", tmp_path / "b")
    assert done.num_files == 2
    assert (tmp_path / "b/labels/cells/0/c/1/2").is_file()


@pytest.mark.usefixtures("_small_shards")
def test_stacks_are_copied(tmp_path: Path) -> None:
    stack = np.stack([[blobs((70, 90), 4, seed=t * 2 + z) for z in range(2)] for t in range(3)])
    write_labels(tmp_path / "a", stack, num_levels=2)
    compact_labels(tmp_path / "a", "cells", tmp_path / "b")
    np.testing.assert_array_equal(zarr.open_array(tmp_path / "b/labels/cells/0")[...], stack)
    assert verify_labels(tmp_path / "b", "cells").problems == ()


def test_our_own_labels_shrink_to_a_file_per_level(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a", "cells", (3000, 3000)) as labels:
        for label in range(1, 6):
            box = Box(500 * label, 400 * label, 500 * label + 300, 400 * label + 300)
            labels.write(box, np.ones((300, 300), bool), label)
    (tmp_path / "b").mkdir()
    done = compact_labels(tmp_path / "a", "cells", tmp_path / "b")
    # One shard and one file of metadata for each of four levels.
    assert done.num_files == 8
    assert not (tmp_path / "b/labels/cells/.journal").exists()


def test_what_is_there_is_kept(tmp_path: Path) -> None:
    write_labels(tmp_path / "a", blobs(SHAPE, 9))
    for target in (tmp_path / "a", tmp_path / "file"):
        (tmp_path / "file").write_text("precious")
        with pytest.raises(LabelsError, match="expected a new or an empty folder for the copy"):
            compact_labels(tmp_path / "a", "cells", target)
    assert (tmp_path / "file").read_text() == "precious"
    with pytest.raises(LabelsError, match="expected to write the copy .*file/b, got"):
        compact_labels(tmp_path / "a", "cells", tmp_path / "file" / "b")


def test_a_damaged_or_stopped_copy_leaves_nothing(tmp_path: Path) -> None:
    write_labels(tmp_path / "a", blobs(SHAPE, 9))
    with pytest.raises(KeyboardInterrupt):
        compact_labels(tmp_path / "a", "cells", tmp_path / "b", progress=_interrupted)
    (tmp_path / "a/labels/cells/0/c/0/1").write_bytes(b"damage")
    with pytest.raises(LabelsError, match="damaged chunk"):
        compact_labels(tmp_path / "a", "cells", tmp_path / "b")
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


@pytest.mark.parametrize("place", [(3, 3), (140, 190)])
def test_labels_changed_meanwhile_are_told(tmp_path: Path, place: tuple[int, int]) -> None:
    """In a shard that was copied, and in one that was not there yet."""
    labels = np.zeros(SHAPE, np.uint16)
    labels[:20, :20] = 1
    group = write_labels(tmp_path / "a", labels)

    def draw(done: int, total: int) -> None:
        if done == total // 2:
            group["0"][place] = 9

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_compact, "CHUNK_PX", 16)
        patch.setattr(label_compact, "MAX_SHARD_PX", 64)
        with pytest.raises(LabelsError, match="expected a copy equal to the labels.*changed"):
            compact_labels(tmp_path / "a", "cells", tmp_path / "b", progress=draw)
    assert [p.name for p in tmp_path.iterdir()] == ["a"]


def test_half_done_labels_are_not_copied(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a", "cells", (64, 64)) as labels:
        labels.write(Box(2, 2, 9, 9), np.ones((7, 7), bool), 1)
    journal = tmp_path / "a" / "labels" / "cells" / JOURNAL_FILE
    with closing(sqlite3.connect(journal)) as database, database:
        database.execute("UPDATE edits SET is_pending = 1")
    with pytest.raises(LabelsError, match="nothing half done, got 1 interrupted changes"):
        compact_labels(tmp_path / "a", "cells", tmp_path / "b")


def _interrupted(*_: object, **__: object) -> None:
    raise KeyboardInterrupt
