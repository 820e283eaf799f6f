"""Hostile input: what every case is answered with, how soon, and at what peak memory.

Bombs are files of some kilobytes that unpack to gigabytes. Every case runs in a process of its own;
``peak_mb`` is what it takes above the process that has only imported what it needs. ``held`` tells
whether it ended in a message (or in pixels, where what is hostile can be passed over) within 10 s
and 512 MB; ``cpu_s`` is what of the time it worked. The exit status tells whether all of them did.
"""

# What a case is, its name says.
# ruff: noqa: D102, D103, S608

from __future__ import annotations

import argparse
import gzip
import importlib
import json
import os
import resource
import select
import signal
import socketserver
import sqlite3
import struct
import subprocess
import sys
import tempfile
import threading
import time
import zlib
from bz2 import compress as bz2
from collections.abc import Callable
from contextlib import closing, suppress
from lzma import compress as xz
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from measure import RESULTS, peak_bytes, print_table, save, timed
from numcodecs import CRC32C
from PIL import Image

import napari_hrsam
from napari_hrsam import create_labels, export_csv, open_image, open_labels, verify_labels
from napari_hrsam.errors import HRSAMError
from napari_hrsam.geometry import Box, Tile

MAX_S, MAX_MB = 10.0, 512.0
KILLED_S = 90.0
MEMORY_LIMIT = 6 * 2**30
BOMB = 2**30
"""Bytes that a bomb unpacks to."""

SIDE = 64
MESSAGE_CHARACTERS = 160

CASES: dict[str, tuple[str, Callable[[Path], Path]]] = {}
"""What is done with a case, and what makes it in a folder."""


# What unpacks to zeros.


def deflated(num: int = BOMB) -> bytes:
    """Return a raw deflate stream, one piece of it over and over."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    piece = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    return piece * (num >> 24) + b"\3\0"


def zlib_bomb(num: int = BOMB) -> bytes:
    return b"\x78\x9c" + deflated(num) + bytes(4)


def gzip_bomb(num: int = BOMB) -> bytes:
    return b"\x1f\x8b\x08" + bytes(7) + deflated(num) + bytes(8)


def zstd_bomb(num: int = BOMB, *, is_told: bool) -> bytes:
    """One frame of blocks that repeat a byte."""
    head = b"\xc0\x58" + struct.pack("<Q", num) if is_told else b"\0\x58"
    blocks = [(2**17 << 3) | 2] * (num >> 17)
    blocks[-1] |= 1
    return b"\x28\xb5\x2f\xfd" + head + b"".join(struct.pack("<I", b)[:3] + b"\0" for b in blocks)


def zstd(data: bytes) -> bytes:
    """Pack without compressing."""
    parts = [data[i : i + 2**16] for i in range(0, len(data), 2**16)]
    blocks = [
        struct.pack("<I", (len(part) << 3) | (part is parts[-1]))[:3] + part for part in parts
    ]
    return b"\x28\xb5\x2f\xfd\xc0\x58" + struct.pack("<Q", len(data)) + b"".join(blocks)


def summed(data: bytes) -> bytes:
    return bytes(CRC32C(location="end").encode(np.frombuffer(data, np.uint8)))


# Zarr arrays of 64 x 64 px.


def v2(
    folder: Path, chunk: bytes, compressor: Any = None, filters: Any = None, **said: Any
) -> Path:
    """Write an array of zarr 2 with one chunk."""
    told = {
        "zarr_format": 2,
        "shape": [SIDE, SIDE],
        "chunks": [SIDE, SIDE],
        "dtype": "|u1",
        "compressor": compressor and {"id": compressor},
        "filters": filters,
        "fill_value": 0,
        "order": "C",
    }
    path = folder / "a.zarr"
    path.mkdir(parents=True)
    (path / ".zarray").write_text(json.dumps({**told, **said}))
    (path / "0.0").write_bytes(chunk)
    return path


def v3(folder: Path, chunk: bytes, *codecs: Any, side: int = SIDE, dtype: str = "uint8") -> Path:
    """Write an array of zarr 3 with one chunk, or shard."""
    path = folder / "a.zarr"
    (path / "c" / "0").mkdir(parents=True)
    (path / "zarr.json").write_text(json.dumps(v3_metadata(*codecs, side=side, dtype=dtype)))
    (path / "c" / "0" / "0").write_bytes(chunk)
    return path


def v3_metadata(*codecs: Any, side: int = SIDE, dtype: str = "uint8") -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": [side, side],
        "data_type": dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [side, side]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": 0,
        "codecs": codecs or [{"name": "bytes"}],
        "attributes": {},
    }


def codec(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


BYTES = {"name": "bytes"}
GZIP, ZSTD = codec("gzip", level=1), codec("zstd", level=1, checksum=False)
BZ2, LZMA, ZLIB = codec("numcodecs.bz2", level=1), codec("numcodecs.lzma"), codec("numcodecs.zlib")
FLOATS = {"id": "fixedscaleoffset", "scale": 1, "offset": 0, "dtype": "|u1", "astype": "<f8"}


def sharding(side: int, *codecs: Any) -> dict[str, Any]:
    index = [codec("bytes", endian="little"), {"name": "crc32c"}]
    return codec("sharding_indexed", chunk_shape=[side, side], codecs=codecs, index_codecs=index)


def shard(*chunks: bytes) -> bytes:
    """Put chunks behind one another, and their index at the end."""
    ends = np.cumsum([0, *map(len, chunks)])
    index = [(start, len(chunk)) for start, chunk in zip(ends, chunks, strict=False)]
    return b"".join(chunks) + summed(np.array(index, "<u8").tobytes())


def many(data: bytes) -> bytes:
    """Put streams of 64 MiB behind one another."""
    return data * (BOMB >> 26)


def add(act: str, **cases: Callable[[Path], Path]) -> None:
    CASES.update({name.replace("_", " "): (act, make) for name, make in cases.items()})


BLOSC_HEAD = bytes([2, 1, 0x21, 1]) + struct.pack("<III", 0x7FFFFFF0, 2**20, 100) + bytes(84)
LZ4_HEAD = struct.pack("<I", 0x7FFFFFFF) + bytes(1000)
LARGE = 20_480
"""Side of a chunk that a sound file might have, of 400 MiB with one byte per pixel."""

add(
    "image",
    zarr_2_zlib=lambda f: v2(f, zlib_bomb(), "zlib"),
    zarr_2_gzip=lambda f: v2(f, gzip_bomb(), "gzip"),
    zarr_2_bz2=lambda f: v2(f, many(bz2(bytes(2**26))), "bz2"),
    zarr_2_lzma=lambda f: v2(f, many(xz(bytes(2**26), preset=0)), "lzma"),
    zarr_2_zstd=lambda f: v2(f, zstd_bomb(is_told=True), "zstd"),
    zarr_2_zstd_of_no_told_size=lambda f: v2(f, zstd_bomb(is_told=False), "zstd"),
    zarr_2_zstd_behind_a_sound_frame=lambda f: v2(
        f, zstd(bytes(SIDE**2)) + zstd_bomb(is_told=False), "zstd"
    ),
    zarr_2_blosc=lambda f: v2(f, BLOSC_HEAD, "blosc"),
    zarr_2_lz4=lambda f: v2(f, LZ4_HEAD, "lz4"),
    zarr_2_zlib_in_zstd=lambda f: v2(f, zstd(zlib_bomb()), "zstd", [{"id": "zlib"}]),
    zarr_2_bz2_in_zlib=lambda f: v2(
        f, zlib.compress(many(bz2(bytes(2**26)))), "zlib", [{"id": "bz2"}]
    ),
    zarr_2_zstd_in_zstd=lambda f: v2(f, zstd(zstd_bomb(is_told=False)), "zstd", [{"id": "zstd"}]),
    zarr_2_filter_of_wide_numbers=lambda f: v2(
        f,
        zstd_bomb(8 * 20_480**2, is_told=True),
        "zstd",
        [FLOATS],
        shape=[20_480] * 2,
        chunks=[20_480] * 2,
    ),
    zarr_2_pickle=lambda f: v2(f, b"cos\nabort\n(tR.", None, [{"id": "pickle"}]),
    zarr_3_gzip=lambda f: v3(f, gzip_bomb(), BYTES, GZIP),
    zarr_3_zstd=lambda f: v3(f, zstd_bomb(is_told=False), BYTES, ZSTD),
    zarr_3_bz2=lambda f: v3(f, many(bz2(bytes(2**26))), BYTES, BZ2),
    zarr_3_lzma=lambda f: v3(f, many(xz(bytes(2**26), preset=0)), BYTES, LZMA),
    zarr_3_zlib=lambda f: v3(f, zlib_bomb(), BYTES, ZLIB),
    zarr_3_gzip_in_zstd=lambda f: v3(f, zstd(gzip_bomb()), BYTES, GZIP, ZSTD),
    zarr_3_bomb_below_a_checksum=lambda f: v3(
        f, summed(zstd_bomb(is_told=True)), BYTES, ZSTD, {"name": "crc32c"}
    ),
    zarr_3_bomb_in_a_shard=lambda f: v3(
        f, shard(zstd_bomb(is_told=False)), sharding(SIDE, BYTES, ZSTD)
    ),
    zarr_3_bomb_in_a_shard_in_a_shard=lambda f: v3(
        f, shard(shard(gzip_bomb())), sharding(SIDE, sharding(SIDE, BYTES, GZIP))
    ),
    zarr_3_shard_of_too_many_chunks=lambda f: v3(f, b"", sharding(1, BYTES), side=2**16),
    zarr_3_shard_packed_as_a_whole=lambda f: v3(f, gzip_bomb(), sharding(SIDE, BYTES, ZSTD), GZIP),
    zarr_3_large_chunk=lambda f: v3(f, zstd_bomb(LARGE**2, is_told=False), BYTES, ZSTD, side=LARGE),
    zarr_3_large_chunk_transposed=lambda f: v3(
        f, gzip_bomb(LARGE**2), codec("transpose", order=[1, 0]), BYTES, GZIP, side=LARGE
    ),
    zarr_3_large_chunk_of_wide_numbers=lambda f: v3(
        f,
        zstd_bomb(8 * 7168**2, is_told=False),
        codec("bytes", endian="big"),
        ZSTD,
        side=7168,
        dtype="float64",
    ),
)


# Metadata.


def group(text: str | bytes) -> Callable[[Path], Path]:
    """Give what writes metadata for an image and for labels."""

    def make(folder: Path) -> Path:
        path = folder / "a.zarr"
        inside = path / "labels" / "cells"
        inside.mkdir(parents=True)
        for place in (path, inside):
            (place / "zarr.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return make


def described(levels: int = 1, **more: Any) -> str:
    axes = [{"name": "y"}, {"name": "x"}]
    ome = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": [{"path": "0"}] * levels}]}
    attributes = {"ome": {**ome, **more}}
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes})


def special(kind: str) -> Callable[[Path], Path]:
    """Give what makes metadata that is no file."""

    def make(folder: Path) -> Path:
        path = folder / "a.zarr"
        path.mkdir()
        if kind == "fifo":
            os.mkfifo(path / "zarr.json")
        else:
            (path / "zarr.json").symlink_to(kind)
        return path

    return make


METADATA: dict[str, Callable[[Path], Path]] = {
    "deep_metadata": group("[" * 200_000 + "]" * 200_000),
    "metadata_of_many_values": group('{"zarr_format":3,"attributes":{"x":[' + "[]," * 5_000_000),
    "metadata_of_many_texts": group(
        '{"zarr_format":3,"node_type":"group","attributes":{"x":[' + '"ab",' * 1_900_000 + "1]}}"
    ),
    "metadata_with_a_long_text": group(
        '{"zarr_format":3,"node_type":"group","attributes":{"x":"' + "\\u0041" * 2_700_000 + '"}}'
    ),
    "metadata_of_many_levels": group(described(100_000)),
    "metadata_of_many_channels": group(described(omero={"channels": [{}] * 200_000})),
}
add("image", metadata_without_an_end=special("/dev/zero"), metadata_in_a_pipe=special("fifo"))
add("image", **METADATA)
add("labels", **{f"labels_{name}": make for name, make in METADATA.items()})


# TIFFs and pictures.


def tiff(folder: Path, segment: bytes, compression: str, **changes: int) -> Path:
    """Write a TIFF of one segment, then put other numbers into it."""
    path = folder / "a.tif"
    with tifffile.TiffWriter(path) as file:
        file.write(
            iter([segment]),
            shape=(SIDE, SIDE),
            dtype=np.uint8,
            compression=compression,
            rowsperstrip=SIDE,
            metadata=None,
        )
    for name, value in changes.items():
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags[name].overwrite(value)
    return path


def tiff_loop(folder: Path) -> Path:
    """Name the first page as the page behind itself."""
    path = folder / "a.tif"
    tifffile.imwrite(path, np.zeros((SIDE, SIDE), np.uint8), metadata=None)
    data = bytearray(path.read_bytes())
    at = struct.unpack("<I", data[4:8])[0]
    num = struct.unpack("<H", data[at : at + 2])[0]
    data[at + 2 + 12 * num : at + 6 + 12 * num] = struct.pack("<I", at)
    path.write_bytes(data)
    return path


def tiff_xml(description: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "a.ome.tif"
        pixels = np.zeros((SIDE, SIDE), np.uint8)
        tifffile.imwrite(path, pixels, description=description, metadata=None)
        return path

    return make


def ome_xml(head: str = "", **sizes: int) -> str:
    told = {"SizeX": SIDE, "SizeY": SIDE, "SizeC": 1, "SizeZ": 1, "SizeT": 1, **sizes}
    attributes = " ".join(f'{name}="{size}"' for name, size in told.items())
    return (
        f'<?xml version="1.0"?>{head}<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        f"{attributes}>"
        "<TiffData/></Pixels></Image></OME>"
    )


LAUGHS = "<!DOCTYPE l [<!ENTITY a0 'ha'>" + "".join(
    f"<!ENTITY a{i} '{f'&a{i - 1};' * 10}'>" for i in range(1, 10)
)


def png(folder: Path, side: int, kind: bytes = b"", chunk: bytes = b"") -> Path:
    """Write a PNG of no lightness, with one chunk more."""

    def block(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    path = folder / "a.png"
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    pixels = b"\x78\x9c" + deflated(min(BOMB, max(2**24, side * (side + 1) >> 24 << 24))) + bytes(4)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + block(b"IHDR", head)
        + (block(kind, chunk) if kind else b"")
        + block(b"IDAT", pixels)
        + block(b"IEND", b"")
    )
    return path


def gif(folder: Path) -> Path:
    path = folder / "a.gif"
    Image.fromarray(np.zeros((SIDE, SIDE), np.uint8)).save(path)
    data = bytearray(path.read_bytes())
    data[6:10] = struct.pack("<HH", 65535, 65535)
    path.write_bytes(data)
    return path


def npy(header: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "a.npy"
        path.write_bytes(b"\x93NUMPY\2\0" + struct.pack("<I", len(header)) + header)
        return path

    return make


HUGE = 30_000
"""Side of a picture of 0.9 GB that a scanner might write."""

add(
    "image",
    tiff_deflate=lambda f: tiff(f, zlib_bomb(), "zlib"),
    tiff_zstd=lambda f: tiff(f, zstd_bomb(is_told=False), "zstd"),
    tiff_zstd_of_told_size=lambda f: tiff(f, zstd_bomb(is_told=True), "zstd"),
    tiff_lzma=lambda f: tiff(f, xz(bytes(BOMB), preset=0), "lzma"),
    tiff_packbits=lambda f: tiff(f, b"\x81\0" * 2**22, "packbits"),
    tiff_one_large_strip=lambda f: tiff(
        f, zlib_bomb(), "zlib", ImageLength=HUGE, ImageWidth=HUGE, RowsPerStrip=HUGE
    ),
    tiff_one_huge_strip=lambda f: tiff(
        f, zlib_bomb(), "zlib", ImageLength=2**31, ImageWidth=2**31, RowsPerStrip=2**31
    ),
    tiff_pages_in_a_loop=tiff_loop,
    tiff_entities_of_entities=tiff_xml(
        ome_xml(head=LAUGHS + "]>").replace("<TiffData/>", "<TiffData/><A>&a9;</A>")
    ),
    tiff_many_planes=tiff_xml(ome_xml(SizeT=2**30)),
    png_one_large_picture=lambda f: png(f, HUGE),
    png_one_huge_picture=lambda f: png(f, 2**31 - 1),
    png_bomb_of_text=lambda f: png(f, SIDE, b"zTXt", b"a\0\0" + zlib_bomb()),
    png_bomb_of_a_colour_profile=lambda f: png(f, SIDE, b"iCCP", b"a\0\0" + zlib_bomb()),
    gif_large_screen=gif,
    npy_long_header=npy(b"{" + b" " * 2**27 + b"}"),
    npy_deep_header=npy(b"(" * 9000 + b")" * 9000 + b"\n"),
    npy_huge_shape=npy(b"{'descr':'|u1','fortran_order':False,'shape':(2**40,2**40)}\n"),
)


# Labels and their journals.


def journal(*statements: str | tuple[str, list[Any]]) -> Callable[[Path], Path]:
    """Give what makes labels whose journal somebody changed."""

    def make(folder: Path) -> Path:
        path = folder / "s.zarr"
        with create_labels(path, "cells", like=(1500, 1500)) as labels:
            labels.write(Box(10, 10, 110, 110), np.ones((100, 100), np.bool_), 1)
        place = path / "labels" / "cells" / ".journal" / "journal.sqlite"
        with closing(sqlite3.connect(place)) as database, database:
            for statement in statements:
                text, values = (statement, []) if isinstance(statement, str) else statement
                database.execute(text, values)
        return path

    return make


PENDING = (
    "INSERT INTO edits (label, plane, prompts, model, time, is_done, is_pending, y0, x0, y1, x1)"
    """ VALUES (9, '[]', '{"points_yx":[],"labels":[],"box":null}', '', 0, 1, 1, 0, 0, %d, %d)"""
)
BLOCK = "INSERT INTO blocks VALUES (2, 0, 0, ?, ?, ?, ?)"
ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT "


def label_bomb(folder: Path) -> Path:
    """Labels beside an image, of which one chunk is a bomb."""
    path = folder / "s.zarr"
    with create_labels(path, "cells", like=(600, 600)) as labels:
        labels.write(Box(10, 10, 110, 110), np.ones((100, 100), np.bool_), 1)
    for chunk in (path / "labels" / "cells").rglob("c/*/*"):
        chunk.write_bytes(zstd_bomb(is_told=False))
    return path


JOURNALS: dict[str, Callable[[Path], Path]] = {
    "bomb_of_changes": journal(
        PENDING % (100, 100), (BLOCK, [100, 100, zstd_bomb(is_told=False), None])
    ),
    "bomb_of_pixels": journal(
        PENDING % (100, 100), (BLOCK, [100, 100, None, zstd_bomb(is_told=True)])
    ),
    "huge_box": journal(PENDING % (2**31, 2**31), (BLOCK, [2**31, 2**31, None, None])),
    "long_text": journal("UPDATE edits SET prompts = hex(zeroblob(200000000))"),
    "deep_text": journal(f"UPDATE edits SET prompts = '{'[' * 100_000}'"),
    "endless_view": journal(
        "DROP TABLE facts", f"CREATE VIEW facts AS {ENDLESS} 'next' AS name, i AS value FROM n"
    ),
    "endless_trigger": journal(
        "CREATE TRIGGER t AFTER UPDATE ON edits BEGIN INSERT INTO facts SELECT 'x' || i, 1 FROM"
        f" ({ENDLESS} i FROM n); END"
    ),
    "many_edits": journal(
        "INSERT INTO edits (label, plane, prompts, model, time, is_done, is_pending, y0, x0, y1,"
        " x1) WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n LIMIT 300000) SELECT"
        """ 1, '[]', '{"points_yx":[],"labels":[],"box":null}', '', 0, 1, 1, 0, 0, 9, 9 FROM n"""
    ),
}
for name, make in {**JOURNALS, "bombs_of_chunks": label_bomb}.items():
    add("labels", **{f"labels_{name}": make})
    add("verify", **{f"verify_{name}": make})
add("csv", export_bombs_of_chunks=label_bomb, export_long_text=JOURNALS["long_text"])


# Servers.

META = json.dumps(v3_metadata()).encode()
PACKED = b"Content-Encoding: gzip\r\n"


class Handler(socketserver.StreamRequestHandler):
    """Answers one request as the first part of its path says."""

    def handle(self) -> None:
        path = self.rfile.readline().split()[1].decode()
        while self.rfile.readline().strip():
            pass
        _, fault, key = path.split("/", 2)
        with suppress(OSError):
            getattr(self, fault)(key)

    def say(self, body: bytes, head: bytes = b"", status: bytes = b"200 OK") -> None:
        length = b"" if b"-Length" in head else f"Content-Length: {len(body)}\r\n".encode()
        self.wfile.write(b"HTTP/1.1 " + status + b"\r\n" + length + head)
        self.wfile.write(b"Connection: close\r\n\r\n" + body)

    def pour(self, piece: bytes, pause_s: float = 0.0) -> None:
        """Send a piece over and over."""
        self.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            self.wfile.write(piece)
            time.sleep(pause_s)

    def endless_metadata(self, _: str) -> None:
        self.pour(b" " * 2**20)

    def endless_chunk(self, key: str) -> None:
        self.say(META) if key.endswith("json") else self.pour(bytes(2**20))

    def packed_metadata(self, _: str) -> None:
        self.say(gzip_bomb(), PACKED)

    def packed_chunk(self, key: str) -> None:
        self.say(META) if key.endswith("json") else self.say(gzip_bomb(), PACKED)

    def endless_tail(self, key: str) -> None:
        if key.endswith("json"):
            self.say(META)
            return
        head = b"Content-Length: 9999999999999\r\n"
        self.say(gzip.compress(bytes(SIDE**2)), PACKED + head)
        while True:
            self.wfile.write(bytes(2**20))

    def silent(self, _: str) -> None:
        time.sleep(KILLED_S)

    def silent_chunk(self, key: str) -> None:
        self.say(META) if key.endswith("json") else time.sleep(KILLED_S)

    def silent_after_its_head(self, _: str) -> None:
        self.say(b"", b"Content-Length: 1000\r\n")
        time.sleep(KILLED_S)

    def silent_amid_a_body(self, _: str) -> None:
        self.say(META[:100], f"Content-Length: {len(META)}\r\n".encode())
        time.sleep(KILLED_S)

    def drips(self, _: str) -> None:
        self.pour(b" ", 0.5)

    def drips_its_head(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"A: b\r\n")
            time.sleep(0.5)

    def goes_on_and_on(self, _: str) -> None:
        while True:
            self.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def long_head(self, _: str) -> None:
        self.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            self.wfile.write(b"A: " + b"b" * 8000 + b"\r\n")

    def redirects_to_itself(self, key: str) -> None:
        self.say(b"", f"Location: /redirects_to_itself/{key}\r\n".encode(), b"302 Found")

    def redirects_on_and_on(self, key: str) -> None:
        time.sleep(2)
        self.say(b"", f"Location: /redirects_on_and_on/{key}x\r\n".encode(), b"302 Found")

    def redirects_to_a_file(self, key: str) -> None:
        self.say(b"", f"Location: file:///etc/{key}\r\n".encode(), b"302 Found")

    def fails(self, _: str) -> None:
        self.say(b"", status=b"503 Service Unavailable")

    def asks_to_wait(self, _: str) -> None:
        self.say(b"", b"Retry-After: 99999999\r\n", b"429 Too Many Requests")

    def hangs_up(self, _: str) -> None:
        """Say nothing, and end."""

    def slow_but_alive(self, key: str) -> None:
        """Send the first byte of pixels after 4 s, which is no attack."""
        time.sleep(4 if key == "c/0/0" else 0)
        status = b"200 OK" if key in {"zarr.json", "c/0/0"} else b"404 Not Found"
        self.say(META if key == "zarr.json" else bytes(SIDE**2), status=status)


SERVERS = [
    name
    for name in vars(Handler)
    if not name.startswith("_") and name not in {"handle", "say", "pour"}
]


class Server(socketserver.ThreadingTCPServer):
    """Answers every connection in a thread of its own."""

    daemon_threads = True
    allow_reuse_address = True


def act(kind: str, place: str) -> str:
    """Use what lies at a place; return what came of it."""
    try:
        if kind == "image":
            pixels = open_image(place).read(Tile(0, 0, 0, SIDE))
            return f"pixels, of mean {pixels.mean():.0f}"
        if kind == "labels":
            with open_labels(place, "cells") as labels:
                labels.read(Box(0, 0, 200, 200))
                return f"labels, {len(labels.history().done)} edits, next {labels.next_label()}"
        if kind == "csv":
            return f"{export_csv(place, 'cells', f'{place}.csv').num_objects} objects"
        found = verify_labels(place, "cells")
        return f"sound: {found.is_sound}, {len(found.problems)} problems"
    except HRSAMError as error:
        return f"{type(error).__name__}: {error}"
    # What is no message is a fault, whatever it is.
    except BaseException as error:  # noqa: BLE001
        return f"!{type(error).__name__}: {error}"


def measured(kind: str, place: str) -> dict[str, Any]:
    """Use what lies at a place in this process, and tell what it takes."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    before = peak_bytes()
    told: list[str] = []
    wall_s, cpu_s = timed(lambda: told.append(act(kind, place)))
    peak_mb = (peak_bytes() - before) / 2**20
    held = not told[0].startswith("!") and wall_s <= MAX_S and peak_mb <= MAX_MB
    return {"told": told[0], "s": wall_s, "cpu_s": cpu_s, "peak_mb": peak_mb, "held": held}


def lost(told: str) -> dict[str, Any]:
    return {"told": told, "s": 0.0, "cpu_s": 0.0, "peak_mb": 0.0, "held": False}


def fork_cases() -> None:
    """Run the cases named on the standard input, each in a fork of this process.

    It has imported what they need, and done nothing: no thread is lost by the fork.
    """
    for module in ("ome_zarr", "http_files", "tiff_files", "label_check", "label_pyramid"):
        importlib.import_module(f"napari_hrsam.storage.{module}")
    for name in ("open_image", "open_labels", "verify_labels", "export_csv"):
        getattr(napari_hrsam, name)
    for line in sys.stdin:
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            row = measured(*json.loads(line))
            os.write(write, json.dumps(row).encode())
            # Threads of a server's connection may still wait.
            os._exit(0)
        os.close(write)
        if select.select([read], [], [], KILLED_S)[0]:
            with os.fdopen(read) as answer:
                text = answer.read()
        else:
            text = json.dumps(lost(f"killed after {KILLED_S:.0f} s"))
            os.kill(child, signal.SIGKILL)
            os.close(read)
        _, status = os.waitpid(child, 0)
        print(text or json.dumps(lost(f"ended by signal {status}")), flush=True)


def main() -> None:
    """Run every case and save what came of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="+", help="parts of names of cases")
    parser.add_argument("--fork-cases", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, default=RESULTS / "hostile.json")
    args = parser.parse_args()
    if args.fork_cases:
        fork_cases()
        return
    rows: list[dict[str, Any]] = []
    command = [sys.executable, "-W", "ignore", __file__, "--fork-cases"]
    with (
        Server(("127.0.0.1", 0), Handler) as server,
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as forks,
    ):

        def run(kind: str, place: str) -> dict[str, Any]:
            assert forks.stdin is not None
            assert forks.stdout is not None
            forks.stdin.write(json.dumps([kind, place]) + "\n")
            forks.stdin.flush()
            found: dict[str, Any] = json.loads(forks.stdout.readline())
            return found

        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}"
        jobs: dict[str, Any] = {**CASES, **{f"server {s.replace('_', ' ')}": s for s in SERVERS}}
        for number, (name, job) in enumerate(jobs.items()):
            if args.only and not any(part in name for part in args.only):
                continue
            if isinstance(job, str):
                row = run("image", f"{url}/{job}")
            else:
                kind, make = job
                place = Path(folder, str(number))
                place.mkdir()
                row = run(kind, str(make(place)))
            hidden = row["told"].replace(folder, "").replace(url, "http://server")
            rows.append({"case": name, **row, "told": hidden[:MESSAGE_CHARACTERS]})
            print(
                f"{name}: {row['s']:.1f} s, {row['peak_mb']:.0f} MB, {rows[-1]['told']}", flush=True
            )
        server.shutdown()
        forks.communicate()
    save(args.out, rows)
    bad = [row for row in rows if not row["held"]]
    print_table(bad, ["case", "s", "cpu_s", "peak_mb", "told"])
    most = {key: max(row[key] for row in rows) for key in ("s", "peak_mb")}
    print(
        f"{len(rows)} cases, {len(bad)} not held; most: {most['s']:.1f} s, {most['peak_mb']:.0f} MB"
    )
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
