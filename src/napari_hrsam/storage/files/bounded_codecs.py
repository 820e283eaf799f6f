"""Arrays of zarr whose chunks cannot decode to more than a chunk needs.

A file of some kilobytes may announce, or hide, gigabytes. Here every decoder of a chunk is told how
many bytes it may give: it stops there. Nothing is decoded twice to find that out.
"""

from __future__ import annotations

import asyncio
import bz2
import lzma
import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import zarr
from numcodecs.abc import Codec
from numcodecs.blosc import decompress as blosc_decompress
from numcodecs.compat import ensure_contiguous_ndarray
from numcodecs.lz4 import decompress as lz4_decompress
from numcodecs.zstd import decompress as zstd_decompress
from zarr.abc.codec import ArrayBytesCodec, BytesBytesCodec
from zarr.codecs import BloscCodec, GzipCodec, ShardingCodec, TransposeCodec, ZstdCodec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.core.metadata import ArrayV2Metadata

from napari_hrsam.storage.files.bounds import MAX_CHUNK_BYTES

MAX_CHUNKS_PER_SHARD = 2**20
"""Chunks in a shard: its index is held in memory as a whole."""

MAX_DICTIONARY_BYTES = 128 * 2**20
"""Memory that an LZMA stream may ask for; the strongest preset needs half of it."""

MAX_PARTS = 2**20
"""Streams, frames or blocks in a chunk: those that hold nothing could be any number."""

_PIECE = 2**14
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK = 2**17
_CHECKSUMS = ("adler32", "crc32", "crc32c", "fletcher32", "jenkins_lookup3")
_OBJECT_CODECS = ("categorize", "json", "msgpack", "pickle", "vlen")
_DTYPE_SETTINGS = ("dtype", "astype", "encode_dtype", "decode_dtype")


def loose_limit(num_bytes: int) -> int:
    """Return what a compressed chunk may take: no compressor makes it this much larger."""
    return num_bytes * 3 // 2 + 2**16


def decode_at_most(codec: Any, data: Any, limit: int, *, is_exact: bool = True) -> Any:
    """Decode a chunk, or what is left of it after the decoders before.

    Parameters
    ----------
    codec : codec of zarr or numcodecs
        gzip, zlib, bz2, lzma, zstd, blosc, lz4, or one that makes its input no larger (checksums,
        shuffles). Codecs that come with neither zarr nor numcodecs are taken to be of this kind.
    data : buffer
        The chunk as it is stored.
    limit : int
        Bytes that may come out.
    is_exact : bool
        Whether a sound chunk decodes to exactly that many.

    Returns
    -------
    buffer

    Raises
    ------
    ValueError
        If more comes out, or the chunk is cut short.
    Exception
        What the codec raises at a damaged chunk.
    """
    name, inner = codec_name(codec), getattr(codec, "_codec", codec)
    packed = memoryview(ensure_contiguous_ndarray(data)).cast("B")
    if name in ("gzip", "zlib", "bz2", "lzma"):
        return _from_streams(name, inner, packed, limit)
    if name == "zstd":
        return zstd_at_most(packed, limit, is_exact=is_exact)
    if name == "blosc":
        _require_whole_blosc(packed)
        _require_modest(int.from_bytes(packed[4:8], "little"), limit)
        return blosc_decompress(packed)
    if name == "lz4":
        _require_modest(int.from_bytes(packed[:4], "little"), limit)
        return lz4_decompress(packed)
    decoded = inner.decode(data)
    _require_modest(np.asarray(ensure_contiguous_ndarray(decoded)).nbytes, limit)
    return decoded


def zstd_at_most(data: Any, limit: int, *, is_exact: bool = True, out: Any = None) -> Any:
    """Decode Zstandard frames to at most ``limit`` bytes; see `decode_at_most`.

    Parameters
    ----------
    data, limit, is_exact
        As there.
    out : contiguous array, optional
        Of ``limit`` bytes; filled and returned.
    """
    told = zstd_size(data)
    if told is not None:
        _require_modest(told, limit)
        if is_exact and told != limit:
            raise ValueError(f"{limit} bytes were expected when it is decoded, got {told}")
    elif is_exact:
        data = _announced(data, limit)
    # Of all frames: those behind the first are decoded too.
    _require_modest(_zstd_bound(data), limit)
    return zstd_decompress(data, out)


def zstd_size(data: Any) -> int | None:
    """Return the decoded bytes that a Zstandard frame announces, None if it says nothing.

    References
    ----------
    RFC 8878, section 3.1.1.1.
    """
    if bytes(data[:4]) != _ZSTD_MAGIC or len(data) < 5:
        return None
    start, length = _zstd_size_field(data[4])
    if length == 0 or len(data) < start + length:
        return None
    size = int.from_bytes(data[start : start + length], "little")
    return size + 256 if length == 2 else size


def _zstd_size_field(descriptor: int) -> tuple[int, int]:
    """Return where the size stands in a frame, and in how many bytes."""
    is_single = bool(descriptor & 0x20)
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    return 5 + (not is_single) + dictionary, (int(is_single), 2, 4, 8)[descriptor >> 6]


def _announced(data: Any, size: int) -> bytes:
    """Return a frame that tells its size: the decoder then holds it to that."""
    if bytes(data[:4]) != _ZSTD_MAGIC or len(data) < 6:
        raise ValueError("no Zstandard frame")
    start, _ = _zstd_size_field(data[4])
    head = bytes([*data[:4], data[4] | 0xC0, *data[5:start]])
    return head + size.to_bytes(8, "little") + bytes(data[start:])


def _zstd_bound(data: Any) -> int:
    """Return a number of bytes that some frames do not exceed, from the heads of their blocks."""
    total, at, end, num_parts = 0, 0, len(data), 0
    while at + 5 <= end:
        num_parts += 1
        magic = int.from_bytes(data[at : at + 4], "little")
        if magic & 0xFFFFFFF0 == 0x184D2A50:
            at += 8 + int.from_bytes(data[at + 4 : at + 8], "little")
            if num_parts > MAX_PARTS:
                raise ValueError(f"more than {MAX_PARTS} frames in a chunk")
            continue
        if bytes(data[at : at + 4]) != _ZSTD_MAGIC:
            break
        told, descriptor = zstd_size(data[at : at + 18]), data[at + 4]
        at += sum(_zstd_size_field(descriptor))
        size, is_last = 0, False
        while not is_last and at + 3 <= end:
            block = int.from_bytes(data[at : at + 3], "little")
            is_last, kind, length = bool(block & 1), block >> 1 & 3, block >> 3
            size += _ZSTD_BLOCK if kind == 2 else length
            at += 3 + (1 if kind == 1 else length)
            num_parts += 1
            if num_parts > MAX_PARTS:
                raise ValueError(f"more than {MAX_PARTS} blocks in a chunk")
        total += size if told is None else told
        at += 4 if descriptor & 4 else 0
    return total


def _require_modest(size: int, limit: int) -> None:
    if size > limit:
        raise ValueError(
            f"at most {limit} bytes were expected when it is decoded, got more: it is damaged or "
            "meant to fill the memory"
        )


def _require_whole_blosc(data: memoryview) -> None:
    """Refuse a chunk cut short: the decoder would read on in memory, or crash."""
    expected = max(16, int.from_bytes(data[12:16], "little"))
    if len(data) != expected:
        raise ValueError(f"{expected} bytes were expected in the chunk, got {len(data)}")


def _from_streams(name: str, codec: Any, data: memoryview, limit: int) -> bytearray:
    """Unpack one stream after the other until the data ends."""
    found, at = bytearray(), 0
    for number in range(MAX_PARTS):
        stream = _STREAMS[name](codec)
        try:
            while not stream.eof:
                # Piece by piece: each stream copies what is left over behind it.
                piece = data[at : at + _PIECE]
                if not len(piece):
                    raise ValueError("the chunk is empty" if at == 0 else "the chunk is cut short")
                at += len(piece)
                found += stream.decompress(piece, limit + 1 - len(found))
                _require_modest(len(found), limit)
        except (OSError, zlib.error, lzma.LZMAError):
            # What follows the first stream and is none is no part of the chunk.
            if number:
                break
            raise
        at -= len(stream.unused_data)
        if name == "zlib" or at == len(data):
            break
    else:
        raise ValueError(f"more than {MAX_PARTS} streams behind one another in a chunk")
    return found


def _lzma_stream(codec: Any) -> lzma.LZMADecompressor:
    if codec.format != lzma.FORMAT_RAW:
        return lzma.LZMADecompressor(codec.format, memlimit=MAX_DICTIONARY_BYTES)
    for step in codec.filters:
        _require_modest(step.get("dict_size", 0), MAX_DICTIONARY_BYTES)
    return lzma.LZMADecompressor(codec.format, filters=codec.filters)


_STREAMS: dict[str, Callable[[Any], Any]] = {
    "gzip": lambda _: zlib.decompressobj(zlib.MAX_WBITS | 16),
    "zlib": lambda _: zlib.decompressobj(zlib.MAX_WBITS),
    "bz2": lambda _: bz2.BZ2Decompressor(),
    "lzma": _lzma_stream,
}


class BoundedNumcodec(Codec):  # type: ignore[misc]
    """A codec of numcodecs that decodes to a limited number of bytes."""

    codec_id = "bounded"

    def __init__(self, codec: Any, limit: int, *, is_exact: bool) -> None:
        self.codec, self.limit, self.is_exact = codec, limit, is_exact

    def encode(self, buf: Any) -> Any:
        """Encode as the codec does."""
        return self.codec.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode a chunk; see `decode_at_most`."""
        # The interface has it; zarr always takes what is returned.
        if out is not None:
            raise NotImplementedError("no decoding into an array")
        return decode_at_most(self.codec, buf, self.limit, is_exact=self.is_exact)

    def get_config(self) -> dict[str, Any]:
        """Return the codec's own settings, which go into the metadata."""
        config: dict[str, Any] = self.codec.get_config()
        return config


@dataclass(frozen=True)
class BoundedCodec(BytesBytesCodec):
    """A codec of zarr, bytes to bytes, that decodes to a limited number of bytes."""

    codec: BytesBytesCodec
    limit: int
    is_exact: bool

    @property
    def is_fixed_size(self) -> bool:  # type: ignore[override]
        """Whether the encoded size follows from the other one."""
        return self.codec.is_fixed_size

    def to_dict(self) -> dict[str, Any]:
        """Return the codec's own settings, which go into the metadata."""
        return self.codec.to_dict()

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        """Return what the codec says."""
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)

    def evolve_from_array_spec(self, array_spec: ArraySpec) -> BoundedCodec:
        """Let the codec adapt to the array."""
        return replace(self, codec=self.codec.evolve_from_array_spec(array_spec))

    async def _decode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer:
        if codec_name(self.codec) == "crc32c" or not _is_known(self.codec):
            (decoded,) = await self.codec.decode([(chunk_data, chunk_spec)])
            assert decoded is not None
            return decoded
        return await asyncio.to_thread(self._decoded, chunk_data)

    def _decoded(self, chunk_data: Buffer) -> Buffer:
        decoded = decode_at_most(
            self.codec, chunk_data.as_array_like(), self.limit, is_exact=self.is_exact
        )
        return type(chunk_data).from_bytes(decoded)

    async def _encode_single(self, chunk_data: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        (encoded,) = await self.codec.encode([(chunk_data, chunk_spec)])
        return encoded


def plain(codec: Any) -> Any:
    """Return a codec without its limit."""
    return codec.codec if isinstance(codec, BoundedNumcodec | BoundedCodec) else codec


def bounded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return an array whose chunks are decoded with limits; one that has them as it is.

    Raises
    ------
    ValueError
        If the array has a codec whose output cannot be limited, such as pickle, or its codecs may
        give more than `MAX_CHUNK_BYTES` in all.
    """
    metadata = array.metadata
    num_items, itemsize = math.prod(array.shards or array.chunks), np.dtype(array.dtype).itemsize
    if isinstance(metadata, ArrayV2Metadata):
        compressors = () if metadata.compressor is None else (metadata.compressor,)
        found = _bounded_v2((*(metadata.filters or ()), *compressors), num_items, itemsize)
        filters = found[: len(found) - len(compressors)]
        compressor = found[-1] if compressors else None
        changed: Any = replace(metadata, filters=filters or None, compressor=compressor)
    else:
        changed = replace(metadata, codecs=_bounded_v3(metadata.codecs, num_items, itemsize))
    return zarr.Array(zarr.AsyncArray(changed, array.store_path, array.config))


def _bounded_v2(codecs: tuple[Any, ...], num_items: int, itemsize: int) -> tuple[Any, ...]:
    """Limit every codec; they are in the order of encoding."""
    wide = max([itemsize, *map(_widest, codecs)])
    found: list[Any] = []
    for number, codec in enumerate(codecs):
        is_exact = number == 0
        limit = num_items * itemsize if is_exact else loose_limit(num_items * wide)
        found.append(BoundedNumcodec(plain(codec), limit, is_exact=is_exact))
    _require_room(codecs, [codec.limit for codec in found], num_items * itemsize)
    return tuple(found)


def _bounded_v3(codecs: tuple[Any, ...], num_items: int, itemsize: int) -> tuple[Any, ...]:
    """Limit every codec of bytes, inside shards too; they are in the order of encoding."""
    wide, is_exact = max([itemsize, *map(_widest, codecs)]), True
    found: list[Any] = []
    room: list[int] = []
    for codec in codecs:
        is_view = isinstance(codec, TransposeCodec | ArrayBytesCodec)
        limit = num_items * itemsize if is_exact else loose_limit(num_items * wide)
        room.append(0 if is_view else limit)
        if isinstance(codec, BytesBytesCodec):
            found.append(BoundedCodec(plain(codec), limit, is_exact))
            is_exact = False
        elif isinstance(codec, ShardingCodec):
            found.append(_bounded_shard(codec, num_items, itemsize))
            is_exact = False
        else:
            found.append(codec)
            # Other filters may make numbers of another width.
            is_exact &= is_view
    _require_room(codecs, room, num_items * itemsize)
    return tuple(found)


def _require_room(codecs: tuple[Any, ...], room: list[int], num_bytes: int) -> None:
    """Refuse codecs that may take more memory than there is for a chunk.

    A chunk that is itself too large is refused with its array, which tells its shape.
    """
    total = sum(
        size
        for codec, size in zip(codecs, room, strict=True)
        if codec_name(codec) not in _CHECKSUMS
    )
    spare = loose_limit(0) * len(codecs)
    if num_bytes <= MAX_CHUNK_BYTES < total - spare:
        raise ValueError(
            f"at most {MAX_CHUNK_BYTES >> 20} MiB are there for decoding a chunk, and its codecs "
            f"may take {total >> 20}: store the image in smaller chunks, e.g. 1024 x 1024"
        )


def _bounded_shard(codec: ShardingCodec, num_items: int, itemsize: int) -> ShardingCodec:
    chunk_items = math.prod(codec.chunk_shape)
    if num_items > MAX_CHUNKS_PER_SHARD * chunk_items:
        raise ValueError(
            f"a shard of more than {MAX_CHUNKS_PER_SHARD} chunks of shape {codec.chunk_shape}"
        )
    return replace(codec, codecs=_bounded_v3(codec.codecs, chunk_items, itemsize))


def _widest(codec: Any) -> int:
    """Return the most bytes per number that a codec makes, 0 if it says nothing.

    Raises ValueError for codecs of Python objects.
    """
    name = codec_name(codec)
    if name.startswith(_OBJECT_CODECS):
        raise ValueError(f"the codec {name!r} makes Python objects, not pixels")
    settings = getattr(plain(codec), "codec_config", {})
    named = (settings.get(key, getattr(plain(codec), key, None)) for key in _DTYPE_SETTINGS)
    told = [np.dtype(dtype) for dtype in named if dtype is not None]
    for dtype in told:
        if dtype.kind not in "biufc":
            raise ValueError(f"the codec {name!r} makes {dtype}, not numbers")
    return max((dtype.itemsize for dtype in told), default=0)


def _is_known(codec: Any) -> bool:
    return codec_name(codec) in _STREAMS or codec_name(codec) in ("zstd", "blosc", "lz4")


def codec_name(codec: Any) -> str:
    """Return the name of a codec of zarr or numcodecs, such as ``gzip``."""
    codec = plain(codec)
    names = {BloscCodec: "blosc", GzipCodec: "gzip", ZstdCodec: "zstd"}
    found = names.get(type(codec)) or getattr(codec, "codec_id", None)
    return str(found or getattr(codec, "codec_name", "") or type(codec).__name__).removeprefix(
        "numcodecs."
    )
