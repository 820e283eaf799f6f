"""A tile is taken from memory, else from disk, else encoded; memory is bounded."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from napari_hrsam.engine.predictor import Predictor
from napari_hrsam.engine.tile_cache import TileCache, num_bytes
from napari_hrsam.errors import EmbeddingsError, ImageReadError, SessionError
from napari_hrsam.geometry import Tile, TileGrid
from napari_hrsam.storage.embedding_store import EmbeddingStore
from napari_hrsam.storage.tile_source import ArrayImage

GRID = TileGrid((640, 640), 64)


@pytest.fixture
def image() -> ArrayImage:
    return ArrayImage(np.random.default_rng(0).integers(0, 255, (640, 640, 3), dtype=np.uint8))


@pytest.fixture
def store(tmp_path: Path) -> EmbeddingStore:
    return EmbeddingStore(tmp_path / "kept")


def cache_of(model: Any, image: ArrayImage, **given: Any) -> TileCache:
    return TileCache(image, Predictor(model), **{"max_tiles": 4, **given})


def count_reads(image: ArrayImage, monkeypatch: pytest.MonkeyPatch) -> list[Tile]:
    reads: list[Tile] = []
    read = image.read

    def counted(tile: Tile, fill: tuple[int, int, int]) -> Any:
        reads.append(tile)
        return read(tile, fill)

    monkeypatch.setattr(image, "read", counted)
    return reads


def tiles_in_memory(cache: TileCache) -> list[Tile]:
    return list(cache._seen)


def test_memory_keeps_the_tiles_seen_last(model: Any, image: ArrayImage) -> None:
    cache = cache_of(model, image)
    tiles = [GRID.tile(0, column) for column in range(6)]
    for tile in tiles[:4]:
        assert cache.get(tile).encode_s > 0
    assert cache.get(tiles[0]).encode_s == 0
    cache.get(tiles[4])
    assert tiles_in_memory(cache) == [tiles[2], tiles[3], tiles[0], tiles[4]]
    assert model.num_encoded == 5


def test_memory_is_bounded_in_bytes_too(model: Any, image: ArrayImage) -> None:
    first = cache_of(model, image).get(GRID.tile(0, 0))
    size = num_bytes(first.embedding)
    assert size == 3 * 64 * 64 + 2 * 3 * (4 * 4 + 16 * 16)
    cache = cache_of(model, image, max_bytes=2 * size + 1)
    for column in range(4):
        cache.get(GRID.tile(0, column))
    assert tiles_in_memory(cache) == [GRID.tile(0, 2), GRID.tile(0, 3)]
    small = cache_of(model, image, max_bytes=1)
    small.get(GRID.tile(0, 0))
    assert tiles_in_memory(small) == [GRID.tile(0, 0)]


def test_no_tiles_in_memory_is_refused(model: Any, image: ArrayImage) -> None:
    with pytest.raises(SessionError, match="expected max_embeddings of 1 or more, got 0"):
        cache_of(model, image, max_tiles=0)


def test_a_tile_on_disk_is_taken_without_model_and_image(
    model: Any, image: ArrayImage, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = cache_of(model, image, store=store)
    made = first.get(GRID.tile(1, 2))
    first.clear()
    reads = count_reads(image, monkeypatch)
    again = cache_of(model, image, store=store)
    seen = again.get(GRID.tile(1, 2))
    assert (model.num_encoded, reads, seen.encode_s) == (1, [], 0.0)
    assert seen.embedding.tile == GRID.tile(1, 2)
    assert seen.embedding.fingerprint == "colour-1"
    assert list(seen.embedding.arrays) == list(made.embedding.arrays)
    for name, array in made.embedding.arrays.items():
        np.testing.assert_array_equal(seen.embedding.arrays[name], array)
    np.testing.assert_array_equal(seen.pixels, made.pixels)
    assert again.get(GRID.tile(1, 2)).pixels is seen.pixels
    assert reads == [GRID.tile(1, 2)]


def test_a_tile_pushed_out_of_memory_comes_back_from_disk(
    model: Any, image: ArrayImage, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = store.write

    def slow(*given: Any) -> bool:
        time.sleep(0.1)
        return write(*given)

    monkeypatch.setattr(store, "write", slow)
    cache = cache_of(model, image, store=store, max_tiles=1)
    for _ in range(3):
        cache.get(GRID.tile(0, 0))
        cache.get(GRID.tile(0, 1))
    assert model.num_encoded == 2


@pytest.mark.parametrize("change", ["limits", "channels", "model", "pixels", "fill"])
def test_nothing_made_from_another_sight_is_taken(
    model: Any, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 200, 200), dtype=np.uint8)
    before = ArrayImage(pixels, channel_axis=0, channels=[0, 1, 2], contrast_limits=(0, 255))
    cache = cache_of(model, before, store=store)
    cache.get(GRID.tile(0, 0))
    cache.clear()
    limits, channels = (0, 255), [0, 1, 2]
    if change == "limits":
        limits = (0, 254)
    elif change == "channels":
        channels = [0, 2, 1]
    elif change == "model":
        monkeypatch.setattr(model, "fingerprint", "colour-2", raising=False)
    elif change == "fill":
        monkeypatch.setattr(Predictor, "fill", (1, 2, 3))
    else:
        pixels[0, 3, 5] += 1
    after = ArrayImage(pixels, channel_axis=0, channels=channels, contrast_limits=limits)
    assert cache_of(model, after, store=store).get(GRID.tile(0, 0)).encode_s > 0
    assert model.num_encoded == 2


def test_a_damaged_tile_on_disk_is_encoded_again(
    model: Any, image: ArrayImage, store: EmbeddingStore, caplog: pytest.LogCaptureFixture
) -> None:
    cache = cache_of(model, image, store=store)
    cache.get(GRID.tile(0, 0))
    cache.clear()
    (chunk,) = store.folder.rglob("c.*")
    chunk.write_bytes(chunk.read_bytes()[:100])
    again = cache_of(model, image, store=store)
    assert again.get(GRID.tile(0, 0)).encode_s > 0
    again.clear()
    assert "is damaged and will be made again" in caplog.text
    assert cache_of(model, image, store=store).get(GRID.tile(0, 0)).encode_s == 0


def test_what_the_click_waits_for_is_not_the_disk(
    model: Any, image: ArrayImage, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    may_write = threading.Event()
    write = store.write
    threads: list[threading.Thread] = []

    def slow(*given: Any) -> bool:
        assert may_write.wait(10)
        threads.append(threading.current_thread())
        return write(*given)

    monkeypatch.setattr(store, "write", slow)
    cache = cache_of(model, image, store=store)
    cache.get(GRID.tile(0, 0))
    assert not list(store.folder.rglob("c.*"))
    may_write.set()
    cache.clear()
    assert len(list(store.folder.rglob("c.*"))) == 1
    assert not threads[0].is_alive()
    assert threads[0] is not threading.main_thread()


def test_a_disk_that_fails_is_told_once_and_left_alone(
    model: Any,
    image: ArrayImage,
    store: EmbeddingStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    attempts: list[Any] = []

    def full(*given: Any) -> bool:
        attempts.append(given)
        raise EmbeddingsError("expected to write embeddings, got: No space left on device")

    monkeypatch.setattr(store, "write", full)
    cache = cache_of(model, image, store=store)
    for column in range(4):
        assert cache.get(GRID.tile(0, column)).encode_s > 0
    cache.clear()
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    (warning,) = warnings
    assert "kept in memory only from now on: expected to write embeddings" in warning.getMessage()
    assert len(attempts) == 1


def test_an_error_of_our_own_in_the_writer_is_not_swallowed(
    model: Any, image: ArrayImage, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> bool:
        raise KeyError("mistake")

    monkeypatch.setattr(store, "write", broken)
    cache = cache_of(model, image, store=store)
    cache.get(GRID.tile(0, 0))
    with pytest.raises(KeyError, match="mistake"):
        cache.clear()


def test_an_image_that_cannot_be_fingerprinted_is_worked_on_without_the_disk(
    model: Any,
    image: ArrayImage,
    store: EmbeddingStore,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails(*_: Any) -> Any:
        raise ImageReadError("expected pixels, got a damaged chunk")

    monkeypatch.setattr("napari_hrsam.engine.stored_tiles.identify", fails)
    cache = cache_of(model, image, store=store)
    for column in range(2):
        assert cache.get(GRID.tile(0, column)).encode_s > 0
    cache.clear()
    assert not store.folder.exists()
    assert caplog.text.count("embeddings on disk are not used for this image: expected pixels") == 1


def test_a_tile_with_seams_is_not_kept_on_disk(
    model: Any, image: ArrayImage, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    encode, failures = type(model).encode, [True]

    def short_of_memory(model: Any, pixels: Any) -> Any:
        if failures and pixels.shape[2] == 64:
            failures.pop()
            raise torch.OutOfMemoryError("no memory")
        return encode(model, pixels)

    monkeypatch.setattr(type(model), "encode", short_of_memory)
    monkeypatch.setattr(type(model), "device", torch.device("meta"))
    predictor = Predictor(model)
    monkeypatch.setattr(predictor, "_encoded", _encoded_on_cpu(predictor))
    cache = TileCache(image, predictor, max_tiles=4, store=store)
    assert cache.get(GRID.tile(0, 0)).embedding.has_seams
    assert not cache.get(GRID.tile(0, 1)).embedding.has_seams
    cache.clear()
    (chunk,) = store.folder.rglob("c.*")
    assert chunk.name == "c.0.1.0"


def _encoded_on_cpu(predictor: Predictor) -> Any:
    """As `Predictor._encoded` without moving pixels to the pretended device."""

    def encoded(image: Any) -> Any:
        import torch

        return {
            name: values.to(torch.float16).numpy()
            for name, values in predictor.segmenter.encode(image.float()).items()
            if values is not None
        }

    return encoded


def test_reading_ahead_takes_what_is_missing_in_order_and_then_nothing(
    model: Any, image: ArrayImage
) -> None:
    cache = cache_of(model, image)
    wanted = [GRID.tile(1, column) for column in range(3)]
    cache.get(wanted[1])
    assert cache.see_ahead(wanted)
    assert set(tiles_in_memory(cache)) == {wanted[0], wanted[1]}
    assert cache.see_ahead(wanted)
    assert not cache.see_ahead(wanted)
    assert model.num_encoded == 3


def test_reading_ahead_pushes_out_neither_wanted_nor_needed_tiles(
    model: Any, image: ArrayImage
) -> None:
    cache = cache_of(model, image)
    needed, old = GRID.tile(5, 5), [GRID.tile(9, column) for column in range(3)]
    for tile in (needed, *old):
        cache.get(tile)
    wanted = [GRID.tile(1, column) for column in range(8)]
    while cache.see_ahead(wanted, [needed]):
        assert needed in tiles_in_memory(cache)
    assert set(tiles_in_memory(cache)) == {needed, *wanted[:3]}
    assert model.num_encoded == 4 + 3
    # The most important are those that stay longest.
    cache.get(old[0])
    assert set(tiles_in_memory(cache)) == {needed, *wanted[:2], old[0]}


def test_a_tile_both_needed_and_wanted_takes_one_place(model: Any, image: ArrayImage) -> None:
    cache = cache_of(model, image)
    wanted = [GRID.tile(1, column) for column in range(8)]
    cache.get(wanted[2])
    while cache.see_ahead(wanted, [wanted[2]]):
        pass
    assert set(tiles_in_memory(cache)) == set(wanted[:4])


def test_reading_ahead_respects_the_bytes_of_memory(model: Any, image: ArrayImage) -> None:
    size = num_bytes(cache_of(model, image).get(GRID.tile(0, 0)).embedding)
    cache = cache_of(model, image, max_tiles=64, max_bytes=3 * size)
    wanted = [GRID.tile(1, column) for column in range(8)]
    while cache.see_ahead(wanted):
        pass
    assert set(tiles_in_memory(cache)) == set(wanted[:3])
    assert model.num_encoded == 1 + 3


def test_tiles_on_disk_are_not_read_ahead(
    model: Any, image: ArrayImage, store: EmbeddingStore
) -> None:
    first = cache_of(model, image, store=store)
    wanted = [GRID.tile(1, column) for column in range(3)]
    first.get(wanted[0])
    first.clear()
    cache = cache_of(model, image, store=store)
    assert cache.see_ahead(wanted)
    assert tiles_in_memory(cache) == [wanted[1]]


def test_nothing_is_read_ahead_where_all_memory_is_needed(model: Any, image: ArrayImage) -> None:
    cache = cache_of(model, image, max_tiles=1)
    cache.get(GRID.tile(5, 5))
    assert not cache.see_ahead([GRID.tile(1, 1)], [GRID.tile(5, 5)])
    assert tiles_in_memory(cache) == [GRID.tile(5, 5)]


def test_a_tile_seen_while_the_program_ends_is_used_and_not_kept(
    model: Any, image: ArrayImage, store: EmbeddingStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Ended(ThreadPoolExecutor):
        def submit(self, *_: Any, **__: Any) -> Any:
            raise RuntimeError("cannot schedule new futures after shutdown")

    monkeypatch.setattr("napari_hrsam.engine.stored_tiles.ThreadPoolExecutor", Ended)
    cache = cache_of(model, image, store=store)
    assert cache.get(GRID.tile(0, 0)).encode_s > 0
    assert cache.get(GRID.tile(0, 0)).encode_s == 0
    cache.clear()
    assert not cache.is_at_hand(GRID.tile(0, 0))
