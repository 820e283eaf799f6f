"""Embeddings as bytes; what a server may send instead is in ``test_remote_encoder``."""

from __future__ import annotations

import numpy as np
import pytest

from napari_hrsam.storage.embeddings.wire import MAX_HEAD_BYTES, from_bytes, to_bytes

MAPS = {
    "embedding": np.arange(24, dtype=np.float16).reshape(1, 6, 2, 2),
    "stride8": -np.arange(16, dtype=np.float16).reshape(1, 1, 4, 4),
}
SHAPES = {name: maps.shape for name, maps in MAPS.items()}


def test_maps_are_the_same_on_the_other_side() -> None:
    found = from_bytes(to_bytes(MAPS, "abc"), "abc", SHAPES)
    assert list(found) == list(MAPS)
    for name, values in MAPS.items():
        np.testing.assert_array_equal(found[name], values)
        assert found[name].dtype == np.float16


def test_order_of_the_bytes_does_not_depend_on_the_machine() -> None:
    assert to_bytes({"a": np.array([1.0], np.float16)}, "m").endswith(b"\n\x00\x3c")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"x" * (MAX_HEAD_BYTES + 10), "no embedding"),
        (b"[1]\n", "of the model 'None'"),
        (to_bytes(MAPS, "abc") + b"\0", "bytes, not"),
        (to_bytes({**MAPS, "stride8": MAPS["stride8"] * np.float16(np.nan)}, "abc"), "not finite"),
    ],
)
def test_anything_else_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_bytes(body, "abc", SHAPES)
