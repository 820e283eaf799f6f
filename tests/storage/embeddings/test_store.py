"""Embeddings on disk come back as they were, or not at all, and take no more room than allowed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_hrsam.cache import EMBEDDINGS_VARIABLE, embeddings_folder
from napari_hrsam.errors import EmbeddingsError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.embeddings.layout import pack, unpack
from napari_hrsam.storage.embeddings.store import (
    DEFAULT_MAX_BYTES,
    EmbeddingKey,
    EmbeddingStore,
)
from napari_hrsam.storage.images.fingerprint import ImageIdentity

KEY = EmbeddingKey(ImageIdentity("abc", (1000, 700), ()), "model-1")
STACK = EmbeddingKey(ImageIdentity("def", (1000, 700), (2, 3)), "model-1")
TILE = Tile(1, 32, 64, 64)

Maps = dict[str, np.ndarray[Any, np.dtype[np.float16]]]


def maps_of(seed: int, side: int = 4) -> Maps:
    rng = np.random.default_rng(seed)
    return {
        "embedding": rng.normal(size=(1, 3, side, side)).astype(np.float16),
        "stride4": rng.normal(size=(1, 1, 4 * side, 4 * side)).astype(np.float16),
    }


def require_equal(found: Maps | None, expected: Maps) -> None:
    assert found is not None
    assert list(found) == list(expected)
    for name, array in expected.items():
        assert found[name].dtype == np.float16
        np.testing.assert_array_equal(found[name], array)


def chunks(folder: Path) -> list[Path]:
    return sorted(folder.rglob("c.*"))


shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


@given(st.dictionaries(st.text(max_size=5), shapes, min_size=1, max_size=4), st.integers(0, 9))
def test_what_is_packed_is_unpacked(named: dict[str, tuple[int, ...]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps = {name: rng.normal(size=shape).astype(np.float16) for name, shape in named.items()}
    flat, layout = pack(maps)
    assert flat.ndim == 1
    assert flat.size == sum(array.size for array in maps.values())
    require_equal(unpack(flat, json.loads(json.dumps(layout))), maps)


def test_a_vector_of_the_wrong_length_is_not_unpacked() -> None:
    flat, layout = pack(maps_of(0))
    with pytest.raises(ValueError, match=r"expected 304 numbers, got 305"):
        unpack(np.append(flat, flat[:1]), layout)


def test_a_tile_comes_back_as_it_was_also_in_another_program(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "new" / "place")
    assert store.read(KEY, TILE) is None
    assert not store.holds(KEY, TILE)
    assert not store.folder.exists()
    assert store.write(KEY, TILE, maps_of(1))
    for seen in (store, EmbeddingStore(store.folder), EmbeddingStore(store.folder, read_only=True)):
        assert seen.holds(KEY, TILE)
        require_equal(seen.read(KEY, TILE), maps_of(1))


def test_a_tile_is_one_chunk_of_a_zarr_array_that_says_what_it_holds(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(KEY, TILE, maps_of(1))
    store.write(KEY, Tile(1, 0, 0, 64), maps_of(2))
    assert len(chunks(tmp_path)) == 2
    array = zarr.open_array(tmp_path / "embeddings-v1" / "abc" / "model-1" / "1_64px", mode="r")
    assert (array.shape, array.chunks) == ((15, 10, 304), (1, 1, 304))
    about = array.attrs.asdict()
    assert (about["image"], about["model"], about["level"]) == ("abc", "model-1", 1)
    assert (about["tile_px"], about["stride_px"]) == (64, 32)
    require_equal(unpack(np.asarray(array[1, 2]), about["maps"]), maps_of(1))


def test_tiles_of_other_images_models_levels_sizes_and_places_are_others(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(KEY, TILE, maps_of(1))
    other_image = EmbeddingKey(ImageIdentity("abd", (1000, 700), ()), "model-1")
    for key, tile in [
        (other_image, TILE),
        (EmbeddingKey(KEY.image, "model-2"), TILE),
        (EmbeddingKey(KEY.image, "model-1/../model-1"), TILE),
        (KEY, Tile(0, 32, 64, 64)),
        (KEY, Tile(-1, 32, 64, 64)),
        (KEY, Tile(1, 32, 64, 128)),
        (KEY, Tile(1, 32, 96, 64)),
    ]:
        assert not store.holds(key, tile)
        assert store.read(key, tile) is None


def test_planes_are_kept_apart_and_a_lone_plane_need_not_be_named(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    for seed, plane in enumerate([(0, 0), (0, 2), (1, 2)]):
        assert store.write(STACK, Tile(1, 32, 64, 64, plane), maps_of(seed))
    for seed, plane in enumerate([(0, 0), (0, 2), (1, 2)]):
        require_equal(store.read(STACK, Tile(1, 32, 64, 64, plane)), maps_of(seed))
    for plane in [(), (0,), (0, 1), (2, 0), (-1, 0), (0, 0, 0)]:
        assert store.read(STACK, Tile(1, 32, 64, 64, plane)) is None
    for plane in [(), (0,), (2, 0), (-1, 0), (0, 0, 0)]:
        assert not store.write(STACK, Tile(1, 32, 64, 64, plane), maps_of(1))
    lone = EmbeddingKey(ImageIdentity("123", (1000, 700), (1, 1)), "model-1")
    store.write(lone, TILE, maps_of(7))
    require_equal(store.read(lone, Tile(1, 32, 64, 64, (0, 0))), maps_of(7))
    without = EmbeddingKey(ImageIdentity("123", (1000, 700), ()), "model-1")
    require_equal(store.read(without, TILE), maps_of(7))
    partly = EmbeddingKey(ImageIdentity("456", (1000, 700), (1, 4)), "model-1")
    store.write(partly, Tile(1, 32, 64, 64, (0, 3)), maps_of(8))
    assert store.read(partly, Tile(1, 32, 64, 64, (0, 2))) is None
    require_equal(store.read(partly, Tile(1, 32, 64, 64, (0, 3))), maps_of(8))


@pytest.mark.parametrize(
    "tile",
    [Tile(1, 33, 64, 64), Tile(1, 32, 65, 64), Tile(1, 32 * 15, 0, 64), Tile(1, -32, 0, 64)],
)
def test_a_tile_beside_the_grid_is_never_there(tmp_path: Path, tile: Tile) -> None:
    store = EmbeddingStore(tmp_path)
    assert not store.write(KEY, tile, maps_of(1))
    assert not store.holds(KEY, tile)
    assert store.read(KEY, tile) is None
    assert not chunks(tmp_path)


def test_a_read_only_store_writes_nothing(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path / "a", read_only=True)
    assert not store.write(KEY, TILE, maps_of(1))
    store.tidy()
    assert not (tmp_path / "a").exists()


@settings(deadline=None, max_examples=40)
@given(st.data())
def test_a_damaged_tile_is_told_dropped_and_made_again(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as place:
        store = EmbeddingStore(place)
        store.write(KEY, TILE, maps_of(1))
        (chunk,) = chunks(store.folder)
        good = chunk.read_bytes()
        if data.draw(st.booleans()):
            chunk.write_bytes(good[: data.draw(st.integers(0, len(good) - 1))])
        else:
            at, bit = data.draw(st.integers(0, len(good) - 1)), data.draw(st.integers(0, 7))
            chunk.write_bytes(good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :])
        assert store.read(KEY, TILE) is None
        assert not store.holds(KEY, TILE)
        store.write(KEY, TILE, maps_of(1))
        require_equal(store.read(KEY, TILE), maps_of(1))


def test_damage_is_logged_with_the_file(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(KEY, TILE, maps_of(1))
    (chunk,) = chunks(tmp_path)
    chunk.write_bytes(b"garbage")
    assert EmbeddingStore(tmp_path, read_only=True).read(KEY, TILE) is None
    assert chunk.exists()
    assert store.read(KEY, TILE) is None
    assert f"{chunk} is damaged and will be made again" in caplog.text


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"zarr_format": 3, "node_type": "group"}'])
def test_a_damaged_description_loses_no_tile(tmp_path: Path, damage: str) -> None:
    EmbeddingStore(tmp_path).write(KEY, TILE, maps_of(1))
    (described,) = tmp_path.rglob("zarr.json")
    described.write_text(damage)
    store = EmbeddingStore(tmp_path)
    assert store.read(KEY, TILE) is None
    store.write(KEY, Tile(1, 0, 0, 64), maps_of(2))
    require_equal(store.read(KEY, Tile(1, 0, 0, 64)), maps_of(2))
    require_equal(store.read(KEY, TILE), maps_of(1))


@pytest.mark.parametrize("damage", ["{", "[]"])
def test_a_description_damaged_before_a_write_is_made_anew(tmp_path: Path, damage: str) -> None:
    EmbeddingStore(tmp_path).write(KEY, TILE, maps_of(1))
    (described,) = tmp_path.rglob("zarr.json")
    described.write_text(damage)
    store = EmbeddingStore(tmp_path)
    store.write(KEY, Tile(1, 0, 0, 64), maps_of(2))
    require_equal(store.read(KEY, Tile(1, 0, 0, 64)), maps_of(2))
    require_equal(store.read(KEY, TILE), maps_of(1))


def test_maps_of_another_form_replace_those_before(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(KEY, TILE, maps_of(1))
    store.write(KEY, Tile(1, 0, 0, 64), maps_of(2, side=8))
    assert "embeddings of another form; they are removed" in caplog.text
    assert store.read(KEY, TILE) is None
    require_equal(store.read(KEY, Tile(1, 0, 0, 64)), maps_of(2, side=8))


def test_a_tile_without_its_description_is_found_again_after_the_next_write(
    tmp_path: Path,
) -> None:
    EmbeddingStore(tmp_path).write(KEY, TILE, maps_of(1))
    (described,) = tmp_path.rglob("zarr.json")
    described.unlink()
    store = EmbeddingStore(tmp_path)
    assert store.read(KEY, TILE) is None
    store.write(KEY, Tile(1, 0, 0, 64), maps_of(2))
    require_equal(store.read(KEY, TILE), maps_of(1))


def test_a_description_taken_away_by_another_process_comes_back(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(KEY, TILE, maps_of(1))
    shutil.rmtree(tmp_path / "embeddings-v1")
    assert store.read(KEY, TILE) is None
    store.write(KEY, TILE, maps_of(2))
    require_equal(EmbeddingStore(tmp_path).read(KEY, TILE), maps_of(2))


def test_the_limit_holds_after_every_write_and_the_tile_used_longest_ago_goes(
    tmp_path: Path,
) -> None:
    store = EmbeddingStore(tmp_path)
    tiles = [Tile(1, 32 * row, 0, 64) for row in range(8)]
    store.write(KEY, tiles[0], maps_of(0, side=16))
    size = store.num_bytes
    assert size == chunks(tmp_path)[0].stat().st_size
    store = EmbeddingStore(tmp_path, max_bytes=int(3.5 * size))
    for number, tile in enumerate(tiles[1:6], 1):
        store.write(KEY, tile, maps_of(number, side=16))
        assert store.num_bytes <= store.max_bytes
        assert store.holds(KEY, tile)
        assert store.read(KEY, tiles[0]) is not None
    assert [store.holds(KEY, tile) for tile in tiles[:6]] == [True, *[False] * 3, True, True]
    assert store.holds(KEY, tiles[4], keep=True)
    store.write(KEY, tiles[6], maps_of(6, side=16))
    assert [store.holds(KEY, tile) for tile in tiles[4:]] == [True, False, True, False]


def test_a_folder_keeps_its_limit_for_all_programs(tmp_path: Path) -> None:
    assert EmbeddingStore(tmp_path).max_bytes == DEFAULT_MAX_BYTES == 8 * 10**9
    store = EmbeddingStore(tmp_path, max_bytes=5000)
    assert EmbeddingStore(tmp_path).max_bytes == DEFAULT_MAX_BYTES
    store.write(KEY, TILE, maps_of(1))
    assert EmbeddingStore(tmp_path).max_bytes == 5000
    EmbeddingStore(tmp_path, max_bytes=6000).require_writable()
    assert EmbeddingStore(tmp_path).max_bytes == 6000
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"max_bytes": "x"}', '{"max_bytes": -1}'])
def test_a_damaged_limit_is_the_default(tmp_path: Path, text: str) -> None:
    (tmp_path / "embeddings.json").write_text(text)
    assert EmbeddingStore(tmp_path).max_bytes == DEFAULT_MAX_BYTES


def test_the_default_place_follows_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NAPARI_HRSAM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(EMBEDDINGS_VARIABLE, raising=False)
    assert embeddings_folder() == EmbeddingStore().folder == tmp_path / "cache" / "embeddings"
    monkeypatch.setenv(EMBEDDINGS_VARIABLE, str(tmp_path / "scratch"))
    assert EmbeddingStore().folder == tmp_path / "scratch"
    assert EmbeddingStore(tmp_path).folder == tmp_path


def test_what_is_no_folder_and_no_room_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(EmbeddingsError, match="expected a folder for embeddings, got the file"):
        EmbeddingStore(tmp_path / "file")
    with pytest.raises(EmbeddingsError, match="expected room of 1 byte or more .* got 0"):
        EmbeddingStore(tmp_path, max_bytes=0)


LIMITED = """
import resource, sys, numpy as np
from napari_hrsam.errors import EmbeddingsError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.embeddings.store import EmbeddingKey, EmbeddingStore
from napari_hrsam.storage.images.fingerprint import ImageIdentity
store = EmbeddingStore(sys.argv[1])
key, tile = EmbeddingKey(ImageIdentity("abc", (1000, 700), ()), "model-1"), Tile(1, 32, 64, 64)
maps = {"embedding": np.random.default_rng(0).normal(size=(1, 16, 64, 64)).astype(np.float16)}
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    store.write(key, tile, maps)
except EmbeddingsError as error:
    print("refused:", error)
assert store.read(key, tile) is None
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
store.write(key, tile, maps)
assert np.array_equal(store.read(key, tile)["embedding"], maps["embedding"])
"""


@pytest.mark.parametrize("limit", [100, 20_000])
def test_real_write_errors_of_the_system_leave_nothing_half(tmp_path: Path, limit: int) -> None:
    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path), str(limit)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "refused: expected to write embeddings to" in run.stdout
    assert "File too large; check the space on the disk" in run.stdout
    assert not list(tmp_path.rglob("*.partial"))


READ_ONLY = """
import os, sys, numpy as np
from napari_hrsam.errors import EmbeddingsError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.embeddings.store import EmbeddingKey, EmbeddingStore
from napari_hrsam.storage.images.fingerprint import ImageIdentity
key = EmbeddingKey(ImageIdentity("abc", (1000, 700), ()), "model-1")
EmbeddingStore(sys.argv[2]).write(key, Tile(1, 0, 0, 64), {"a": np.ones(4, np.float16)})
if os.getuid() == 0:
    os.setuid(65534)  # To the superuser no folder is read-only.
store = EmbeddingStore(sys.argv[1], max_bytes=int(sys.argv[3]))
assert store.read(key, Tile(1, 32, 64, 64)) is not None
store.tidy()
for call in (store.require_writable,
             lambda: store.write(key, Tile(1, 0, 0, 64), {"a": np.ones(4, np.float16)})):
    try:
        call()
    except EmbeddingsError as error:
        print("refused:", error)
"""


def test_a_read_only_folder_is_read_and_stays_as_it_is() -> None:
    # Not in pytest's own folder, which only its owner may enter.
    place = Path(tempfile.mkdtemp())
    folder = place / "kept"
    EmbeddingStore(folder).write(KEY, TILE, maps_of(1))
    EmbeddingStore(folder).write(KEY, Tile(1, 0, 0, 64), maps_of(2))
    try:
        place.chmod(0o755)
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        files = sorted(folder.rglob("*"))
        run = subprocess.run(
            [sys.executable, "-c", READ_ONLY, str(folder), str(place / "warm"), "10"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert run.returncode == 0, run.stderr
        assert run.stdout.count("refused: expected to write embeddings to") == 2, run
        assert "Permission denied" in run.stdout
        assert sorted(folder.rglob("*")) == files
    finally:
        for path in [folder, *folder.rglob("*")]:
            path.chmod(0o755)
        shutil.rmtree(place)


WRITER = """
import sys, numpy as np
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.embeddings.store import EmbeddingKey, EmbeddingStore
from napari_hrsam.storage.images.fingerprint import ImageIdentity
store, seed = EmbeddingStore(sys.argv[1]), int(sys.argv[2])
key = EmbeddingKey(ImageIdentity("abc", (10_000, 10_000), ()), "model-1")
rng = np.random.default_rng(seed)
for _ in range(150):
    number = int(rng.integers(0, 60))
    tile = Tile(1, 32 * (number // 10), 32 * (number % 10), 64)
    maps = store.read(key, tile)
    if maps is None:
        value = np.full((1, 4, 8, 8), number, np.float16)
        noise = np.random.default_rng(number).normal(size=(1, 4, 32, 32)).astype(np.float16)
        store.write(key, tile, {"embedding": value, "stride4": noise})
    else:
        assert (maps["embedding"] == number).all(), number
store.tidy()
"""


def test_two_processes_share_a_folder_and_its_limit(tmp_path: Path) -> None:
    EmbeddingStore(tmp_path, max_bytes=200_000).require_writable()
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path), str(seed)], stderr=subprocess.PIPE
        )
        for seed in (1, 2)
    ]
    for run in runs:
        _, errors = run.communicate(timeout=60)
        assert run.returncode == 0, errors.decode()
        assert b"damaged" not in errors
    assert 150_000 < EmbeddingStore(tmp_path).num_bytes <= 200_000
    assert not list(tmp_path.rglob("*.partial"))


def test_folders_of_other_versions_are_not_read_and_go_first(tmp_path: Path) -> None:
    store = EmbeddingStore(tmp_path, max_bytes=10_000)
    store.write(KEY, TILE, maps_of(1))
    old = tmp_path / "embeddings-v0" / "abc" / "model" / "1_64px" / "c.1.2.0"
    old.parent.mkdir(parents=True)
    old.write_bytes(bytes(9900))
    os.utime(old, ns=(1, 1))
    (old.parent / "zarr.json").write_text("{}")
    assert store.num_bytes > 9900
    store.write(KEY, Tile(1, 0, 0, 64), maps_of(2))
    assert not old.parent.exists()
    assert store.holds(KEY, TILE)
    assert store.holds(KEY, Tile(1, 0, 0, 64))


def test_files_of_others_in_the_folder_are_never_touched(tmp_path: Path) -> None:
    for name in ("thesis.tex", "slide.zarr/c.0.0", "embeddings/c.0.0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(5000))
        os.utime(tmp_path / name, ns=(1, 1))
    store = EmbeddingStore(tmp_path, max_bytes=1500)
    for row in range(4):
        store.write(KEY, Tile(1, 32 * row, 0, 64), maps_of(row))
    assert store.num_bytes <= 1500
    for name in ("thesis.tex", "slide.zarr/c.0.0", "embeddings/c.0.0"):
        assert (tmp_path / name).read_bytes() == bytes(5000)


def test_a_tile_that_vanishes_while_it_is_read_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store = EmbeddingStore(tmp_path)
    store.write(KEY, TILE, maps_of(1))
    (chunk,) = chunks(tmp_path)
    chunk.unlink()
    monkeypatch.setattr(Path, "is_file", lambda _: True)
    assert store.read(KEY, TILE) is None
    assert not caplog.records


def test_a_copied_folder_serves_another_machine(tmp_path: Path) -> None:
    EmbeddingStore(tmp_path / "here").write(KEY, TILE, maps_of(1))
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    shutil.rmtree(tmp_path / "here")
    require_equal(EmbeddingStore(tmp_path / "there").read(KEY, TILE), maps_of(1))
