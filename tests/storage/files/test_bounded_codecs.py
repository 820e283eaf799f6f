"""Chunks that would fill the memory are refused before they are decoded."""

from __future__ import annotations

import bz2
import gzip
import lzma
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numcodecs
import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, GzipCodec, ZstdCodec
from zarr.codecs.numcodecs import FixedScaleOffset
from zarr.errors import ZarrUserWarning

from napari_hrsam.errors import ImageReadError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.files.bounded_codecs import bounded, decode_at_most, zstd_at_most
from napari_hrsam.storage.images.opening import open_image

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


CODECS: dict[str, Any] = {
    "gzip": numcodecs.GZip(),
    "zlib": numcodecs.Zlib(),
    "bz2": numcodecs.BZ2(),
    "lzma": numcodecs.LZMA(),
    "zstd": numcodecs.Zstd(),
    "blosc": numcodecs.Blosc(),
    "lz4": numcodecs.LZ4(),
}


@pytest.mark.parametrize("name", PACKERS)
@pytest.mark.parametrize("content", [NOISE, bytes(SIZE)], ids=["noise", "zeros"])
def test_a_chunk_decodes_to_its_size_and_no_further(name: str, content: bytes) -> None:
    packed = bytes(PACKERS[name](content))
    assert bytes(decode_at_most(CODECS[name], packed, SIZE)) == content
    with pytest.raises(ValueError, match=f"at most {SIZE - 1} bytes"):
        decode_at_most(CODECS[name], packed, SIZE - 1)


@pytest.mark.parametrize("name", ["gzip", "bz2", "lzma"])
def test_what_comes_after_the_first_stream_counts_too(name: str) -> None:
    packed = PACKERS[name](NOISE) + PACKERS[name](bytes(1000))
    assert bytes(decode_at_most(CODECS[name], packed, SIZE + 1000)) == NOISE + bytes(1000)
    with pytest.raises(ValueError, match="at most"):
        decode_at_most(CODECS[name], packed, SIZE + 999)


@pytest.mark.parametrize("name", PACKERS)
def test_damage_is_an_error(name: str) -> None:
    packed = bytes(PACKERS[name](NOISE))
    for data in (b"", b"\x00", b"\xff" * 3, b"no such thing at all", packed[:100], packed[:-3]):
        with pytest.raises(Exception, match=r".*"):
            decode_at_most(CODECS[name], data, SIZE)


def without_size(num_blocks: int) -> bytes:
    """A Zstandard frame that does not tell its size: blocks of 128 KiB of one byte."""
    block = struct.pack("<I", 2**17 << 3 | 1 << 1)[:3] + b"\0"
    last = struct.pack("<I", 2**17 << 3 | 1 << 1 | 1)[:3] + b"\0"
    return b"\x28\xb5\x2f\xfd\x00\x58" + block * (num_blocks - 1) + last


@pytest.mark.parametrize("is_exact", [True, False])
def test_frames_one_or_several_are_held_to_the_size_told_or_not(is_exact: bool) -> None:
    frame = without_size(8)
    assert bytes(zstd_at_most(frame, 2**20, is_exact=is_exact)) == bytes(2**20)
    told = numcodecs.Zstd().encode(bytes(2**20))
    more = numcodecs.Zstd().encode(bytes(2**24))
    for bomb in (without_size(8000), frame + frame, frame + more, told + more, told + frame):
        tracemalloc.start()
        with pytest.raises((ValueError, RuntimeError)):
            zstd_at_most(bomb, 2**20, is_exact=is_exact)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
        tracemalloc.stop()


def test_a_bomb_is_found_in_little_memory() -> None:
    bomb = zlib.compress(bytes(400_000_000))
    tracemalloc.start()
    with pytest.raises(ValueError, match="at most"):
        decode_at_most(CODECS["zlib"], bomb, 1_000_000)
    assert tracemalloc.get_traced_memory()[1] < 10_000_000
    tracemalloc.stop()


NESTED: dict[str, dict[str, Any]] = {
    "gzip in zstd": {"compressors": [GzipCodec(), ZstdCodec()]},
    "zstd in zstd": {"compressors": [ZstdCodec(), ZstdCodec()]},
    "filter in zstd": {
        "zarr_format": 2,
        "filters": [numcodecs.Zlib()],
        "compressors": numcodecs.Zstd(),
    },
}


@pytest.mark.parametrize("kind", NESTED)
def test_a_bomb_inside_another_codec_is_refused(tmp_path: Path, kind: str) -> None:
    settings = NESTED[kind]
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(64, 64), chunks=(64, 64), dtype=np.uint8, **settings
    )
    inner = {"gzip in zstd": gzip.compress, "filter in zstd": zlib.compress}.get(kind)
    content = bytes(SIZE)
    bomb = numcodecs.Zstd().encode(content) if inner is None else inner(content)
    chunk = tmp_path / "a.zarr" / array.metadata.encode_chunk_key((0, 0))
    chunk.parent.mkdir(parents=True, exist_ok=True)
    chunk.write_bytes(bytes(numcodecs.Zstd().encode(bomb)))
    image = open_image(tmp_path / "a.zarr", contrast_limits=(0, 255))
    with pytest.raises(ImageReadError, match="at most 4096 bytes were expected"):
        image.read(Tile(0, 0, 0, 64))


def test_codecs_of_objects_are_refused_when_an_image_is_opened(tmp_path: Path) -> None:
    zarr.create_array(
        tmp_path / "a.zarr",
        shape=(64, 64),
        chunks=(64, 64),
        dtype=np.uint8,
        zarr_format=2,
        filters=[numcodecs.Zlib()],
    )
    # What zarr itself refuses to write.
    place = tmp_path / "a.zarr" / ".zarray"
    place.write_text(place.read_text().replace('"id": "zlib"', '"id": "pickle"'))
    with pytest.raises(ImageReadError, match="pickle"):
        open_image(tmp_path / "a.zarr")


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
    with pytest.raises(
        ImageReadError, match="at most 4096 bytes were expected .*, got more.*chunk 0/1 of"
    ):
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
    with pytest.raises(ImageReadError, match="when it is decoded, got more"):
        image.read(Tile(0, 0, 64, 64))


def test_streams_behind_one_another_are_read_and_empty_ones_have_an_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    parts = [bytes([i]) * 20_000 for i in range(9)]
    for name in ("gzip", "bz2", "lzma"):
        codec, pack = CODECS[name], PACKERS[name]
        packed = b"".join(map(pack, [*parts, b""]))
        assert bytes(decode_at_most(codec, packed, 180_000)) == b"".join(parts)
        with pytest.raises(ValueError, match="cut short"):
            decode_at_most(codec, pack(bytes(range(256)) * 999)[:-9], 2**20)
        with monkeypatch.context() as few:
            few.setattr("napari_hrsam.storage.files.bounded_codecs.MAX_PARTS", 100)
            with pytest.raises(ValueError, match="more than 100 streams"):
                decode_at_most(codec, pack(b"") * 200, 100)


def test_frames_and_blocks_that_hold_nothing_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_hrsam.storage.files.bounded_codecs.MAX_PARTS", 100)
    head = b"\x28\xb5\x2f\xfd\x00\x58"
    skipped = bytes.fromhex("502a4d1800000000")
    for data in (head + b"\0\0\0" * 200 + b"\1\0\0", skipped * 200 + head + b"\1\0\0"):
        with pytest.raises(ValueError, match="more than 100 (blocks|frames)"):
            zstd_at_most(data, 0, is_exact=False)


WIDE = {"scale": 1, "offset": 0, "dtype": "|u1", "astype": "<f8"}


@pytest.mark.parametrize(
    ("zarr_format", "named"),
    [
        (2, {"filters": [numcodecs.FixedScaleOffset(**WIDE)], "compressors": numcodecs.GZip()}),
        (2, {"filters": [numcodecs.GZip()], "compressors": numcodecs.GZip()}),
        (3, {"filters": "wide", "compressors": [ZstdCodec()]}),
        (3, {"compressors": [ZstdCodec(), GzipCodec()]}),
    ],
)
def test_codecs_that_may_take_more_than_the_chunk_are_refused(zarr_format: Any, named: Any) -> None:
    """A byte per pixel may be eight on the way to it."""
    if named.get("filters") == "wide":
        with warnings.catch_warnings():
            # Older versions of zarr tell that the specification does not name this codec.
            warnings.simplefilter("ignore", ZarrUserWarning)
            filters = [FixedScaleOffset(**WIDE)]
        named = {**named, "filters": filters, "serializer": BytesCodec(endian="little")}
    for side, is_refused in ((4096, False), (20_000, True)):
        array = zarr.create_array(
            {},
            shape=(side, side),
            chunks=(side, side),
            dtype="u1",
            zarr_format=zarr_format,
            **named,
        )
        if is_refused:
            with pytest.raises(ValueError, match="448 MiB are there for decoding a chunk"):
                bounded(array)
        else:
            bounded(array)
