"""How large a compressed chunk gets, told before it is decoded.

A file of some megabytes may announce, or hide, gigabytes. Formats with a header say their size;
those without (gzip, zlib, bzip2, LZMA) are unpacked piece by piece, and what comes is dropped.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from collections.abc import Callable
from typing import Any

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_PIECE = 2**20

_STREAMS: dict[str, Callable[[], Any]] = {
    "gzip": lambda: _Inflate(zlib.MAX_WBITS | 16),
    "zlib": lambda: _Inflate(zlib.MAX_WBITS),
    "bz2": bz2.BZ2Decompressor,
    "lzma": lzma.LZMADecompressor,
}
_BEST_RATIO = 1032
"""No zlib stream unpacks to more times its size; the others here are always tried."""


def exceeds(codec: str, data: bytes, limit: int) -> bool:
    """Whether a chunk decodes to more bytes than a limit.

    Parameters
    ----------
    codec : str
        What it was packed with last: ``gzip``, ``zlib``, ``bz2``, ``lzma``, ``zstd``, ``blosc`` or
        ``lz4``; others are taken for harmless.
    data : bytes
        The chunk as it is stored.
    limit : int
        Bytes.

    Returns
    -------
    bool
        False for a damaged chunk too: the decoder says that better.
    """
    if codec in _STREAMS:
        if codec in ("gzip", "zlib") and len(data) * _BEST_RATIO <= limit:
            return False
        return _streams_more(_STREAMS[codec], data, limit)
    if codec == "zstd":
        return (zstd_size(data) or 0) > limit
    if codec == "blosc":
        return int.from_bytes(data[4:8], "little") > limit
    return codec == "lz4" and int.from_bytes(data[:4], "little") > limit


def zstd_size(data: bytes) -> int | None:
    """Return the decoded bytes that a Zstandard frame announces, None if it says nothing.

    References
    ----------
    RFC 8878, section 3.1.1.1.
    """
    if data[:4] != _ZSTD_MAGIC or len(data) < 5:
        return None
    descriptor = data[4]
    is_single = bool(descriptor & 0x20)
    dictionary = (0, 1, 2, 4)[descriptor & 3]
    length = (int(is_single), 2, 4, 8)[descriptor >> 6]
    start = 5 + (not is_single) + dictionary
    if length == 0 or len(data) < start + length:
        return None
    size = int.from_bytes(data[start : start + length], "little")
    return size + 256 if length == 2 else size


class _Inflate:
    """zlib with the interface of the other decompressors."""

    def __init__(self, wbits: int) -> None:
        self._zlib = zlib.decompressobj(wbits)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    @property
    def needs_input(self) -> bool:
        return not self._zlib.unconsumed_tail

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail or data, max_length)


def _streams_more(start: Callable[[], Any], data: bytes, limit: int) -> bool:
    """Unpack one stream after the other until the limit is passed or the data ends."""
    total = 0
    try:
        while data:
            stream = start()
            total += len(stream.decompress(data, _PIECE))
            while total <= limit and not stream.eof:
                piece = stream.decompress(b"", _PIECE)
                if not piece and stream.needs_input:
                    return False
                total += len(piece)
            if total > limit:
                return True
            data = stream.unused_data
    except (OSError, EOFError, zlib.error, lzma.LZMAError):
        return False
    return False
