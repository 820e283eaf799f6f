"""Chunks that every zarr reader takes, whatever program made the label image."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from label_checks import require_consistent_levels
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ZstdCodec

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.codec import _ByZarr, _ByZstd, codec_of

LABELS = np.kron(np.random.default_rng(0).integers(0, 4, (10, 9)), np.ones((10, 10), np.int64))

KINDS: dict[str, dict[str, Any]] = {
    "zstd": {"compressors": [ZstdCodec(level=1)]},
    "zstd with checksum": {"compressors": [ZstdCodec(level=3, checksum=True)]},
    "one byte": {"dtype": "u1", "compressors": [ZstdCodec(level=1)]},
    "zarr 2": {"zarr_format": 2},
    "zarr 2, signed": {"zarr_format": 2, "dtype": "i8", "compressors": [numcodecs.Zstd(5)]},
    "no compression": {"compressors": None},
    "gzip": {"compressors": [GzipCodec()]},
    "blosc": {"compressors": [BloscCodec()]},
    "big-endian": {"serializer": BytesCodec(endian="big"), "compressors": [ZstdCodec()]},
    "two codecs": {"compressors": [GzipCodec(), ZstdCodec()]},
    "shards": {"chunks": (16, 16), "shards": (64, 32)},
    "zarr 2, big-endian": {"zarr_format": 2, "dtype": ">u2"},
    "zarr 2, columns first": {"zarr_format": 2, "order": "F"},
    "zarr 2, filter": {"zarr_format": 2, "filters": [numcodecs.Delta("u4")]},
}
FAST = list(KINDS)[:5]


def made(folder: Path, settings: dict[str, Any], shape: tuple[int, ...] = (100, 90)) -> Any:
    chosen = {"dtype": "u4", "chunks": (64, 32), "fill_value": 0, **settings}
    return zarr.create_array(folder / "a", shape=shape, **chosen)


@pytest.mark.parametrize("kind", KINDS)
def test_zarr_reads_what_is_encoded_and_what_zarr_writes_is_decoded(
    tmp_path: Path, kind: str
) -> None:
    array = made(tmp_path, KINDS[kind])
    codec = codec_of(array)
    assert isinstance(codec, _ByZstd if kind in FAST else _ByZarr)
    array[:] = LABELS
    path = tmp_path / "a" / array.metadata.encode_chunk_key((0, 1))
    np.testing.assert_array_equal(codec.decode(path.read_bytes()), LABELS[:64, 32:64])
    changed = (LABELS[:64, 32:64] + 1).astype(array.dtype)
    data = codec.encode(changed)
    assert data is not None
    path.write_bytes(data)
    np.testing.assert_array_equal(array[:64, 32:64], changed)
    assert codec.encode(np.zeros((64, 32), array.dtype)) is None


@pytest.mark.parametrize("kind", KINDS)
def test_label_images_of_any_codec_are_drawn_into(tmp_path: Path, kind: str) -> None:
    group = zarr.open_group(
        tmp_path / "labels" / "old", mode="w", zarr_format=KINDS[kind].get("zarr_format", 3)
    )
    settings = {"dtype": "u4", "chunks": (64, 32), "fill_value": 0, **KINDS[kind]}
    settings.pop("zarr_format", None)
    for level, shape in enumerate([(100, 90), (50, 45)]):
        group.create_array(str(level), shape=shape, **settings)
    datasets = [{"path": "0"}, {"path": "1"}]
    group.attrs["multiscales"] = [{"version": "0.4", "datasets": datasets}]
    with open_labels(tmp_path, "old") as labels:
        edits = [labels.write(Box(0, 0, 100, 90), value == LABELS, value) for value in (1, 2, 3)]
        np.testing.assert_array_equal(labels.read(Box(0, 0, 100, 90)), LABELS)
        require_consistent_levels(labels)
        for edit in reversed(edits):
            labels.revert(edit)
        assert not labels.read(Box(0, 0, 100, 90)).any()


def test_planes_that_share_a_chunk_stay_apart(tmp_path: Path) -> None:
    group = zarr.open_group(tmp_path / "labels" / "old", mode="w", zarr_format=2)
    for level, shape in enumerate([(5, 100, 90), (5, 50, 45)]):
        group.create_array(str(level), shape=shape, dtype="u4", chunks=(2, 64, 64), fill_value=0)
    datasets = [{"path": "0"}, {"path": "1"}]
    group.attrs["multiscales"] = [{"version": "0.4", "datasets": datasets}]
    whole = Box(0, 0, 100, 90)
    with open_labels(tmp_path, "old") as labels:
        for plane in range(5):
            labels.write(whole, plane % 4 == LABELS, plane + 1, plane=(plane,))
        edit = labels.write(whole, np.ones((100, 90), bool), 9, plane=(1,), overwrite=True)
        labels.revert(edit)
        for plane in range(5):
            found = labels.read(whole, plane=(plane,))
            np.testing.assert_array_equal(found, (plane % 4 == LABELS) * (plane + 1))
            require_consistent_levels(labels, (plane,))


@pytest.mark.parametrize("kind", ["zstd", "zarr 2", "gzip", "no compression", "shards"])
def test_a_chunk_of_another_size_is_damage_and_never_pixels(tmp_path: Path, kind: str) -> None:
    settings = dict(KINDS[kind])
    array = made(tmp_path / "good", settings)
    if kind == "shards":
        settings["shards"] = (32, 16)
    else:
        settings["chunks"] = (32, 32)
    other = made(tmp_path / "other", settings)
    other[:] = LABELS
    data = (tmp_path / "other" / "a" / other.metadata.encode_chunk_key((0, 0))).read_bytes()
    codec = codec_of(array)
    if kind == "shards":
        data = data[:100]
    with pytest.raises((ValueError, RuntimeError, OSError)):
        codec.decode(data)


def test_our_own_labels_are_encoded_in_one_call(tmp_path: Path) -> None:
    with create_labels(tmp_path, "cells", (90, 80)) as labels:
        assert isinstance(codec_of(labels.levels[0]), _ByZstd)
        edit = labels.write(Box(0, 0, 90, 80), np.ones((90, 80), bool), 7)
        assert (np.asarray(labels.levels[0][:]) == 7).all()
        assert edit.label == 7


def test_the_highest_id_is_that_of_the_pixels_inside_and_a_damaged_chunk_is_named(
    tmp_path: Path,
) -> None:
    group = zarr.open_group(tmp_path / "labels" / "old", mode="w")
    group.create_array("0", shape=(100, 90), dtype="u4", chunks=(64, 64))[:] = LABELS
    whole = zarr.create_array(tmp_path / "whole", shape=(128, 128), dtype="u4", chunks=(64, 64))
    whole[:] = 99
    whole[:100, :90] = LABELS
    # Another program wrote something beyond the end.
    chunk = tmp_path / "labels" / "old" / "0" / "c" / "1" / "1"
    chunk.write_bytes((tmp_path / "whole" / "c" / "1" / "1").read_bytes())
    group.attrs["multiscales"] = [{"version": "0.4", "datasets": [{"path": "0"}]}]
    with open_labels(tmp_path, "old") as labels:
        assert labels.next_label() == 4
    shutil.rmtree(labels.folder / ".journal")
    chunk.write_bytes(chunk.read_bytes()[:-9])
    with pytest.raises(LabelsError, match=rf"a damaged chunk {chunk} \(of .*or delete it to make"):
        open_labels(tmp_path, "old")
