"""Chunks that would fill the memory are refused before they are decoded."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from napari_hrsam.storage.decoded_size import exceeds
from zarr.codecs import BloscCodec, GzipCodec, ZstdCodec

from napari_hrsam.errors import ImageReadError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.opening import open_image

SIZE = 3_000_000
NOISE = np.random.default_rng(0).integers(0, 256, SIZE, np.uint8).tobytes()

PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "zlib": zlib.compress,
    "bz2": bz2.compress,
    "lzma": lzma.compress,
    "zstd": numcodecs.Zstd().encode,
    "blosc": numcodecs.Blosc().encode,
    "lz4": numcodecs.LZ4().encode,
}


@pytest.mark.parametrize("codec", PACKERS)
@pytest.mark.parametrize("content", [NOISE, bytes(SIZE)], ids=["noise", "zeros"])
def test_the_decoded_size_is_told_exactly(codec: str, content: bytes) -> None:
    packed = bytes(PACKERS[codec](content))
    assert not exceeds(codec, packed, SIZE)
    assert exceeds(codec, packed, SIZE - 1)


@pytest.mark.parametrize("codec", ["gzip", "bz2", "lzma"])
def test_what_comes_after_the_first_stream_counts_too(codec: str) -> None:
    packed = PACKERS[codec](NOISE) + PACKERS[codec](bytes(1000))
    assert not exceeds(codec, packed, SIZE + 1000)
    assert exceeds(codec, packed, SIZE + 999)


@pytest.mark.parametrize("codec", [*PACKERS, "crc32c"])
def test_damage_is_left_to_the_decoder(codec: str) -> None:
    for data in (b"", b"\x00", b"\xff" * 3, b"no such thing at all", *_cut(codec)):
        assert not exceeds(codec, data, 2**32)


def _cut(codec: str) -> list[bytes]:
    packed = bytes(PACKERS[codec](NOISE)) if codec in PACKERS else b"x"
    return [packed[: len(packed) // 2], packed[:-3], packed[:100]]


def test_a_bomb_is_found_in_little_memory() -> None:
    bomb = zlib.compress(bytes(400_000_000))
    tracemalloc.start()
    assert exceeds("zlib", bomb, 200_000_000)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("zarr_format", "codec", "pack"),
    [
        (3, GzipCodec(), "gzip"),
        (3, ZstdCodec(), "zstd"),
        (3, BloscCodec(), "blosc"),
        (2, numcodecs.GZip(), "gzip"),
        (2, numcodecs.Zlib(), "zlib"),
        (2, numcodecs.LZ4(), "lz4"),
    ],
)
def test_an_image_with_a_bomb_is_shown_but_for_that_chunk(
    tmp_path: Path, zarr_format: Any, codec: Any, pack: str
) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=(128, 128),
        chunks=(64, 64),
        dtype=np.uint8,
        compressors=codec,
        zarr_format=zarr_format,
    )
    array[:] = np.frombuffer(NOISE[: 128 * 128], np.uint8).reshape(128, 128)
    chunk = tmp_path / "a.zarr" / ("c/0/1" if zarr_format == 3 else "0.1")
    chunk.write_bytes(bytes(PACKERS[pack](bytes(SIZE))))
    image = open_image(tmp_path / "a.zarr", contrast_limits=(0, 255))
    with pytest.raises(ImageReadError, match=r"at most 71680 bytes in the chunk .*0.1, got more"):
        image.read(Tile(0, 0, 0, 128))
    assert (image.read(Tile(0, 64, 64, 64))[..., 0] == np.asarray(array[64:, 64:])).all()


def test_a_bomb_inside_a_shard_is_refused(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr",
        shape=(128, 128),
        shards=(128, 128),
        chunks=(64, 64),
        dtype=np.uint8,
        compressors=GzipCodec(),
    )
    array[:] = np.frombuffer(NOISE[: 128 * 128], np.uint8).reshape(128, 128)
    shard = tmp_path / "a.zarr" / "c" / "0" / "0"
    whole, bomb = shard.read_bytes(), gzip.compress(bytes(SIZE))
    image = open_image(tmp_path / "a.zarr", contrast_limits=(0, 255))
    assert (image.read(Tile(0, 0, 64, 64))[..., 0] == np.asarray(array[:64, 64:])).all()
    # The bomb is shorter than a chunk of noise and takes the place of the second.
    assert len(bomb) < 4096
    index = np.frombuffer(whole[-68:-4], "<u8").reshape(4, 2)
    start = int(index[1, 0])
    shard.write_bytes(whole[:start] + bomb + whole[start + len(bomb) :])
    with pytest.raises(ImageReadError, match="got more when it is decoded"):
        image.read(Tile(0, 0, 64, 64))
