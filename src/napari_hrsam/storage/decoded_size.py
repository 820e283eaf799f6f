"""How large a compressed chunk gets, told before it is decoded."""

from __future__ import annotations

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


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
