"""Embeddings on their way from one machine to another."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.storage.embeddings.layout import Maps, pack

API = "/v1"
"""Where a server answers. A change of what is sent gets another number."""

MEDIA_TYPE = "application/x-hrsam-embedding"

MAX_HEAD_BYTES = 65_536

Shapes = Mapping[str, tuple[int, ...]]


def to_bytes(maps: Maps, fingerprint: str) -> bytes:
    """Write the maps of a tile: a line of JSON, then float16 numbers, lowest byte first.

    Parameters
    ----------
    maps : mapping of str to float16 array
    fingerprint : str
        Of the model that made them.
    """
    flat, layout = pack(maps)
    head = json.dumps({"model": fingerprint, "maps": layout})
    return head.encode() + b"\n" + flat.astype("<f2", copy=False).tobytes()


def from_bytes(body: bytes, fingerprint: str, shapes: Shapes) -> dict[str, NDArray[np.float16]]:
    """Read what `to_bytes` wrote; nothing else passes.

    Parameters
    ----------
    body : bytes
    fingerprint : str
        Of the model that they have to be from.
    shapes : mapping of str to tuple of int
        Of the maps that are expected, in their order.

    Raises
    ------
    ValueError
        If they are of another model, have other shapes, or are not finite.
    """
    line, found, _ = body[: MAX_HEAD_BYTES + 1].partition(b"\n")
    if not found:
        raise ValueError("no embedding")
    head: Any = json.loads(line)
    expected = [[name, list(shape)] for name, shape in shapes.items()]
    if not isinstance(head, dict) or head.get("model") != fingerprint:
        model = head.get("model") if isinstance(head, dict) else None
        raise ValueError(f"an embedding of the model {str(model)[:80]!r}, not {fingerprint!r}")
    if head.get("maps") != expected:
        raise ValueError(f"maps {str(head.get('maps'))[:200]}, not {expected}")
    sizes = {name: int(np.prod(shape)) for name, shape in shapes.items()}
    if len(body) - len(line) - 1 != 2 * sum(sizes.values()):
        raise ValueError(f"{len(body)} bytes, not {len(line) + 1 + 2 * sum(sizes.values())}")
    flat = np.frombuffer(body, "<f2", offset=len(line) + 1).astype(np.float16)
    if not np.isfinite(flat).all():
        raise ValueError("numbers that are not finite")
    maps, start = {}, 0
    for name, shape in shapes.items():
        maps[name] = flat[start : start + sizes[name]].reshape(shape)
        start += sizes[name]
    return maps
