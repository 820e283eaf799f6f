"""Stores from elsewhere: links that lead out, metadata and journals of any content."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from label_files import blobs, write_labels
from ome_files import halves, write_ome

from napari_hrsam.errors import HRSAMError, ImageError, LabelsError
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.storage.embeddings.store import EmbeddingKey, EmbeddingStore
from napari_hrsam.storage.export.table import export_csv
from napari_hrsam.storage.images.fingerprint import ImageIdentity
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.check import verify_labels

PRECIOUS = b"precious" * 100
GREY = np.random.default_rng(0).integers(0, 256, (128, 192), np.uint8)
SQUARE = np.ones((20, 20), bool)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Labels with one object, beside a file of the user."""
    (tmp_path / "thesis.txt").write_bytes(PRECIOUS)
    with create_labels(tmp_path / "s.zarr", "cells", like=(600, 600)) as labels:
        labels.write(Box(5, 5, 25, 25), SQUARE, 1)
    return tmp_path / "s.zarr"


def use(path: Path) -> None:
    with open_labels(path, "cells") as labels:
        labels.write(Box(530, 530, 550, 550), SQUARE, labels.next_label())
    verify_labels(path, "cells", repair=True)


@pytest.mark.parametrize(
    "place",
    [
        ".journal/writer.json",
        ".journal/.writer.json.partial",
        ".journal/writer.lock",
        ".journal/journal.sqlite",
        ".journal/journal.sqlite-wal",
        "0/c/1/.1.partial",
        "0/c/1/.1.before.partial",
        "0/c/1/1",
        "1/c/0/0",
    ],
)
@pytest.mark.parametrize("kind", ["symbolic", "hard"])
def test_a_link_inside_labels_never_changes_what_it_leads_to(
    path: Path, place: str, kind: str
) -> None:
    link, victim = path / "labels" / "cells" / place, path.parent / "thesis.txt"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    (os.symlink if kind == "symbolic" else os.link)(victim, link)
    with suppress(HRSAMError):
        use(path)
    assert victim.read_bytes() == PRECIOUS


@pytest.mark.parametrize(
    "place", ["labels", "labels/cells", "labels/cells/1", "labels/cells/.journal"]
)
def test_a_folder_that_leads_out_is_refused(path: Path, place: str) -> None:
    outside = path.parent / "outside"
    (path / place).rename(outside)
    (path / place).symlink_to(outside)
    before = {file: file.stat().st_mtime_ns for file in outside.rglob("*")}
    with pytest.raises(LabelsError, match="link"):
        use(path)
    assert {file: file.stat().st_mtime_ns for file in outside.rglob("*")} == before


def test_a_folder_of_chunks_that_leads_out_is_not_written_to(path: Path) -> None:
    outside = path.parent / "outside"
    outside.mkdir()
    (path / "labels" / "cells" / "0" / "c" / "1").symlink_to(outside)
    with pytest.raises(LabelsError, match="leads out of it"):
        use(path)
    assert not list(outside.iterdir())


METADATA: dict[str, str] = {
    "deep": "[" * 200_000 + "]" * 200_000,
    "long number": '{"zarr_format":3,"node_type":"array","shape":[' + "9" * 5000 + "]}",
    "many values": '{"zarr_format":3,"node_type":"group","attributes":{"x":['
    + "[]," * 2_500_000
    + "1]}}",
    "null": "null",
    "empty": "",
}


def described(**changes: Any) -> str:
    image = {
        "axes": [{"name": "y"}, {"name": "x"}],
        "datasets": [
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [1, 1]}]}
        ],
    }
    ome = {"version": "0.5", "multiscales": [{**image, **changes}]}
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}})


METADATA |= {
    "levels of no kind": described(datasets=[5]),
    "a path of no kind": described(datasets=[{"path": None}]),
    "a path with a zero": described(datasets=[{"path": "a\0b"}]),
    "a long path": described(datasets=[{"path": "a" * 5000}]),
    "a huge scale": described(
        datasets=[
            {"path": "0", "coordinateTransformations": [{"type": "scale", "scale": [10**400, 1]}]}
        ]
    ),
    "too many levels": described(datasets=[{"path": "0"}] * 1000),
    "axes of no kind": described(axes=7),
}


@pytest.mark.parametrize("kind", METADATA)
def test_metadata_of_any_content_is_answered_with_a_message(tmp_path: Path, kind: str) -> None:
    for folder in (tmp_path / "a.zarr", tmp_path / "b.zarr" / "labels" / "cells"):
        folder.mkdir(parents=True)
        (folder / "zarr.json").write_text(METADATA[kind])
    with pytest.raises(HRSAMError):
        open_image(tmp_path / "a.zarr")
    with pytest.raises(LabelsError):
        open_labels(tmp_path / "b.zarr", "cells")
    with pytest.raises(LabelsError):
        create_labels(tmp_path / "a.zarr", "cells")
    assert not verify_labels(tmp_path / "b.zarr", "cells").is_sound


@pytest.mark.parametrize("ome", [[1], "x", None, {"labels": "cells"}, {"labels": {"a": 1}}])
def test_a_list_of_labels_of_any_content_is_never_a_traceback(path: Path, ome: Any) -> None:
    group = {"zarr_format": 3, "node_type": "group", "attributes": {"ome": ome}}
    (path / "labels" / "zarr.json").write_text(json.dumps(group))
    with pytest.raises(LabelsError, match="that lists label images"):
        create_labels(path, "others", like=(600, 600))
    with open_labels(path, "cells") as labels:
        assert labels.next_label() == 2


@pytest.mark.skipif(os.name != "posix", reason="pipes have names on POSIX only")
def test_a_pipe_in_place_of_a_file_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "a.zarr").mkdir()
    os.mkfifo(tmp_path / "a.zarr" / "zarr.json")
    with pytest.raises(HRSAMError, match="a pipe, a device"):
        open_image(tmp_path / "a.zarr")


def blosc_labels(path: Path) -> Path:
    labels = blobs((64, 64), 20)
    labels += np.random.default_rng(0).integers(0, 2**30, labels.shape, np.uint32)
    write_labels(path, labels, version="0.4", chunk=64)
    array = path / "labels" / "cells" / "0"
    told = json.loads((array / ".zarray").read_text())
    told["compressor"] = numcodecs.Blosc().get_config()
    (array / ".zarray").write_text(json.dumps(told))
    chunk = array / "0" / "0"
    chunk.write_bytes(numcodecs.Blosc().encode(labels))
    return chunk


@pytest.mark.parametrize("num_bytes", [0, 5, 20, 3000, 9000])
def test_a_blosc_chunk_of_labels_cut_short_is_damage(tmp_path: Path, num_bytes: int) -> None:
    chunk = blosc_labels(tmp_path)
    chunk.write_bytes(chunk.read_bytes()[:num_bytes])
    with pytest.raises(LabelsError, match="a damaged chunk"):
        open_labels(tmp_path, "cells")
    assert not verify_labels(tmp_path, "cells").is_sound
    with pytest.raises(LabelsError):
        export_csv(tmp_path, "cells", tmp_path / "a.csv")


def take_back(path: Path) -> None:
    with open_labels(path, "cells") as labels:
        labels.next_label()
        labels.revert(labels.history().done[-1])


BOMB = numcodecs.Zstd().encode(np.zeros(300_000_000, np.uint8))
ROWS: dict[str, Callable[[sqlite3.Connection], object]] = {
    sql: lambda db, sql=sql: db.execute(sql)  # type: ignore[misc]
    for sql in (
        "UPDATE facts SET value = 'abc' WHERE name = 'next_label'",
        "UPDATE edits SET label = 'x'",
        "UPDATE edits SET label = 1099511627776",
        "UPDATE edits SET y1 = -1",
        "UPDATE edits SET y0 = NULL",
        "UPDATE edits SET x1 = 9000000000",
        "UPDATE edits SET plane = '[5,6]'",
        "UPDATE edits SET prompts = '[1,2]'",
        "UPDATE edits SET time = 'yesterday'",
        "UPDATE edits SET model = x'ff00'",
        "UPDATE blocks SET y1 = 600, x1 = 600, changed = x'00'",
        "UPDATE blocks SET y1 = 5000000000, x1 = 5000000000",
        "CREATE TRIGGER t AFTER UPDATE ON edits BEGIN DELETE FROM edits; END",
        "CREATE VIEW v AS SELECT 1",
    )
}
ROWS |= {
    "deep": lambda db: db.execute("UPDATE edits SET prompts = ?", ["[" * 100_000]),
    "long": lambda db: db.execute("UPDATE edits SET model = ?", ["x" * 5_000_000]),
    "bomb": lambda db: db.execute("UPDATE blocks SET before = ?", [BOMB]),
    "text": lambda db: db.execute("UPDATE blocks SET changed = 'text'"),
    "many": lambda db: db.executemany(
        "INSERT INTO blocks VALUES (1, 5, 5, 6, 6, NULL, NULL)", [()] * 50
    ),
    "interrupted": lambda db: db.execute(
        "INSERT INTO edits (label, plane, prompts, model, time, is_done, is_pending, y0, x0, y1,"
        " x1) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 1001) SELECT"
        " label, plane, prompts, model, time, 0, 1, y0, x0, y1, x1 FROM edits, n"
    ),
    "endless": lambda db: db.executescript(
        "ALTER TABLE edits RENAME TO e0; CREATE VIEW edits AS WITH RECURSIVE n(i) AS"
        " (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i AS number FROM n"
    ),
}


@pytest.mark.parametrize("kind", ROWS)
def test_a_journal_of_any_content_is_answered_with_a_message(path: Path, kind: str) -> None:
    database = sqlite3.connect(path / "labels" / "cells" / ".journal" / "journal.sqlite")
    ROWS[kind](database)
    database.commit()
    database.close()
    verify_labels(path, "cells")
    with pytest.raises(LabelsError, match="expected an intact journal"):
        take_back(path)


def test_display_hints_of_any_content_are_ignored(tmp_path: Path) -> None:
    for number, omero in enumerate(
        [
            "x",
            [1],
            {"channels": None},
            {"channels": [None]},
            {"channels": [{"window": {"start": None, "end": {}}, "color": 7, "label": [1]}]},
            {"channels": [{"window": "wide", "active": "yes"}]},
            {"channels": [{"window": {"start": 10**400, "end": "b"}}]},
        ]
    ):
        group = write_ome(tmp_path / f"{number}.zarr", [GREY])
        group.attrs["ome"] = {**group.attrs["ome"], "omero": omero}  # type: ignore[dict-item]
        assert open_image(tmp_path / f"{number}.zarr").shape_yx == (128, 192)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_labels_are_made_beside_whatever_is_opened(tmp_path: Path, version: str) -> None:
    group = write_ome(tmp_path / "a.zarr", halves(GREY, 2), version=version)
    attributes = group.attrs.asdict()
    (image,) = attributes.get("ome", attributes)["multiscales"]
    for entry in image["datasets"]:
        del entry["coordinateTransformations"]
    image["axes"] = [{"name": "y", "type": None}, {"name": "x", "unit": None}]
    image["coordinateTransformations"] = None
    group.attrs.update(attributes)
    open_image(tmp_path / "a.zarr")
    with create_labels(tmp_path / "a.zarr", "cells") as labels:
        labels.write(Box(5, 5, 25, 25), SQUARE, 1)
    assert open_image(tmp_path / "a.zarr" / "labels" / "cells").shape_yx == (128, 192)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
@pytest.mark.parametrize("inside", ["", "images/one"])
def test_labels_are_brought_into_indexes_of_the_metadata(
    tmp_path: Path, version: str, inside: str
) -> None:
    zarr_format: Any = 2 if version == "0.4" else 3
    root = tmp_path / "a.zarr"
    zarr.open_group(root, mode="w", zarr_format=zarr_format)
    if inside:
        zarr.open_group(root / "images", mode="w", zarr_format=zarr_format)
        write_ome(root / inside, halves(GREY, 2), version=version)
    else:
        root = tmp_path / "b.zarr"
        write_ome(root, halves(GREY, 2), version=version)
    zarr.consolidate_metadata(root, zarr_format=zarr_format)
    for name in ("cells", "nuclei +"):
        with create_labels(root / inside, name) as labels:
            labels.write(Box(0, 0, 20, 20), SQUARE, 7)
    group = zarr.open_group(root, mode="r")
    assert group.metadata.consolidated_metadata is not None
    for name in ("cells", "nuclei +"):
        place = f"{inside}/labels/{name}".lstrip("/")
        assert np.asarray(group[f"{place}/0"][:]).max() == 7  # type: ignore[index]
        assert group[f"{inside}/labels".lstrip("/")].attrs.asdict() != {}
    assert np.asarray(group[f"{inside}/0".lstrip("/")][:]).shape == (128, 192)  # type: ignore[index]


@pytest.mark.parametrize(
    "name", ["orphaned/0", "a+b", "two words", "细胞", "клетки", "x (1)", "_x"]
)
def test_names_of_other_programs_are_found(tmp_path: Path, name: str) -> None:
    write_labels(tmp_path, blobs((64, 64), 5), name=name)
    listing = zarr.open_group(tmp_path / "labels", mode="r+")
    listing.attrs["ome"] = {"version": "0.5", "labels": [name]}
    with open_labels(tmp_path, name) as labels:
        labels.write(Box(0, 0, 20, 20), SQUARE, labels.next_label(), overwrite=True)
    assert verify_labels(tmp_path, name).is_sound
    assert export_csv(tmp_path, name, tmp_path / "a.csv").num_objects > 1
    with pytest.raises(LabelsError, match=rf"got only {re.escape(name)};"):
        open_labels(tmp_path, "other")


@pytest.mark.parametrize(
    "name", ["..", ".", "", "../labels/x", "a/../b", "a\0b", "a" * 400, "a/", "\\"]
)
def test_names_that_lead_elsewhere_are_refused(path: Path, name: str) -> None:
    for use_name in (open_labels, create_labels, verify_labels):
        with pytest.raises(LabelsError, match="expected a"):
            use_name(path, name)


def test_the_cache_removes_only_what_it_wrote(tmp_path: Path) -> None:
    figures = tmp_path / "embeddings-v1-paper" / "figs"
    for folder in (figures, tmp_path / "embeddings-v1" / "abc" / "m" / "0_512px"):
        folder.mkdir(parents=True)
        for number in range(3):
            (folder / f"figure{number}.png").write_bytes(bytes(300_000))
    key = EmbeddingKey(ImageIdentity("abc", (20000, 20000), ()), "m")
    store = EmbeddingStore(tmp_path, max_bytes=100_000)
    maps = {"a": np.random.default_rng(0).normal(size=(64, 32, 32)).astype(np.float16)}
    for number in range(3):
        assert store.write(key, Tile(0, 0, number * 256, 512), maps)
    assert len(list(tmp_path.rglob("*.png"))) == 6
    assert len(list(tmp_path.rglob("c.*"))) == 1


@pytest.mark.parametrize(
    "layout", [5, [["a"]], [["a", [-1, 65536]]], [["a", [2**40]]], [["a", "x"]], [[1, [65536]]]]
)
def test_a_description_of_embeddings_of_any_content_is_damage(tmp_path: Path, layout: Any) -> None:
    key = EmbeddingKey(ImageIdentity("abc", (20000, 20000), ()), "m")
    tile, maps = Tile(0, 0, 0, 512), {"a": np.ones((64, 32, 32), np.float16)}
    assert EmbeddingStore(tmp_path).write(key, tile, maps)
    (file,) = tmp_path.rglob("zarr.json")
    told = json.loads(file.read_text())
    told["attributes"]["maps"] = layout
    file.write_text(json.dumps(told))
    assert EmbeddingStore(tmp_path).read(key, tile) is None


@pytest.mark.parametrize(
    "url",
    [
        "://",
        "http://",
        "http://[::bad/x",
        "gopher://x/y",
        "memory://x",
        "reference://",
        "python://os",
        "simplecache::http://127.0.0.1:1/x",
        "zip::file:///x",
        "data://x",
    ],
)
def test_urls_of_unknown_kinds_are_refused(url: str) -> None:
    with pytest.raises(ImageError, match="expected"):
        open_image(url)


def test_a_codec_that_cannot_write_is_told_and_nothing_is_changed(tmp_path: Path) -> None:
    labels = np.zeros((64, 64), np.uint32)
    labels[:5, :5] = 1
    write_labels(tmp_path, labels, version="0.4")
    place = tmp_path / "labels" / "cells" / "0" / ".zarray"
    said = json.loads(place.read_text())
    place.write_text(json.dumps({**said, "compressor": {"id": "zlib", "level": "strong"}}))
    for file in place.parent.rglob("*"):
        if file.is_file() and file != place:
            file.unlink()
    with open_labels(tmp_path, "cells") as opened:
        with pytest.raises(LabelsError, match="expected labels that can be written at .* of their"):
            opened.write(Box(20, 20, 40, 40), SQUARE, 2)
        assert not opened.history().done
        assert not opened.read(Box(0, 0, 64, 64)).any()
