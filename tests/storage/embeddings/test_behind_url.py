"""Embeddings that a server of files has are read, and nothing else is done with them."""

from __future__ import annotations

import logging
import time
from pathlib import Path

import numpy as np
import pytest
from faulty_server import Server, serving

from napari_hrsam.errors import EmbeddingsError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.embeddings import store as store_module
from napari_hrsam.storage.embeddings.store import EmbeddingKey, EmbeddingStore
from napari_hrsam.storage.files import remote
from napari_hrsam.storage.images.fingerprint import ImageIdentity

KEY = EmbeddingKey(ImageIdentity("abc", (1000, 700), ()), "model-1")
TILE, OTHER = Tile(1, 32, 64, 64), Tile(1, 64, 64, 64)
MAPS = {"embedding": np.arange(48, dtype=np.float16).reshape(1, 3, 4, 4)}


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    EmbeddingStore(tmp_path / "a.zarr").write(KEY, TILE, MAPS)
    return tmp_path


@pytest.fixture(autouse=True)
def _no_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(remote, "ATTEMPTS", 2)


def asked(server: Server) -> int:
    return server.asked.total()


def test_tiles_are_read_and_looked_for_once(filled: Path) -> None:
    with serving(filled) as server:
        store = EmbeddingStore(server.url)
        assert store.is_read_only
        assert store.holds(KEY, TILE, keep=True)
        found = store.read(KEY, TILE)
        assert found is not None
        np.testing.assert_array_equal(found["embedding"], MAPS["embedding"])
        assert not store.holds(KEY, OTHER)
        before = asked(server)
        assert not store.holds(KEY, OTHER)
        assert store.read(KEY, OTHER) is None
        assert asked(server) == before


def test_nothing_is_written(filled: Path) -> None:
    files = sorted(filled.rglob("*"))
    with serving(filled) as server:
        store = EmbeddingStore(server.url)
        assert not store.write(KEY, OTHER, MAPS)
        store.tidy()
        with pytest.raises(EmbeddingsError, match="expected a folder that can be written to"):
            store.require_writable()
    assert sorted(filled.rglob("*")) == files


def test_damaged_tile_is_absent_and_stays(filled: Path, caplog: pytest.LogCaptureFixture) -> None:
    [chunk] = filled.rglob("c.*")
    chunk.write_bytes(chunk.read_bytes()[:-1] + b"x")
    with serving(filled) as server, caplog.at_level(logging.WARNING):
        assert EmbeddingStore(server.url).read(KEY, TILE) is None
    assert "is damaged" in caplog.text
    assert chunk.exists()


def test_server_that_is_gone_is_told_once_and_asked_later(
    filled: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(filled) as server:
        url = server.url
    with caplog.at_level(logging.WARNING):
        store = EmbeddingStore(url)
        assert not store.holds(KEY, TILE)
        assert store.read(KEY, TILE) is None
        assert not store.holds(KEY, OTHER)
    assert caplog.text.count("are not used for 30 s") == 1
    monkeypatch.setattr(store, "_not_before", time.monotonic())
    with caplog.at_level(logging.WARNING):
        assert not store.holds(KEY, OTHER)
    assert caplog.text.count("are not used for 30 s") == 2
    assert store_module.PAUSE_S == 30


def test_what_is_no_server_is_told() -> None:
    with pytest.raises(EmbeddingsError, match="expected a local path or a URL of one of"):
        EmbeddingStore("ftp://example.org/embeddings")
