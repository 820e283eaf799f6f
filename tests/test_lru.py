"""Values seen lately, in bounded memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from napari_hrsam.lru import LRU


def test_what_was_not_used_for_the_longest_time_goes_first() -> None:
    kept: LRU[str, bytes] = LRU(10, len)
    kept["a"], kept["b"] = b"1234", b"12345"
    assert kept["a"] == b"1234"
    kept["c"] = b"12"
    assert ("a" in kept, "b" in kept, "c" in kept) == (True, False, True)
    assert kept.num_bytes == 6
    assert kept.get("b") is None


def test_the_newest_stays_however_large() -> None:
    kept: LRU[str, bytes] = LRU(3, len)
    kept["a"] = b"1234"
    assert kept["a"] == b"1234"
    kept["b"] = b"12345"
    assert len(kept) == 1
    assert kept["b"] == b"12345"


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 9))), st.integers(1, 4))
def test_the_count_of_bytes_is_right_whatever_is_done(
    steps: list[tuple[int, int]], max_items: int
) -> None:
    kept: LRU[int, bytes] = LRU(12, len, max_items)
    for key, size in steps:
        if size == 9:
            kept.drop(key)
        else:
            kept[key] = bytes(size)
        there = [k for k in range(6) if k in kept]
        assert kept.num_bytes == sum(len(kept[k]) for k in there)
        assert len(kept) == len(there) <= max_items
        assert kept.num_bytes <= 12 or len(kept) == 1
    kept.clear()
    assert (kept.num_bytes, len(kept)) == (0, 0)
