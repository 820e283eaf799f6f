"""Images and label maps in one small file, for training on a machine without storage libraries.

A pack is an uncompressed zip. `index.json` lists the samples; each has an image (lossy WebP), a
label map and perhaps a second one (lossless WebP: the high and the low byte of an id are red and
green). Everything decodes with Pillow alone, in threads, to arrays that need no further work.
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.atomic_path import atomic_path
from napari_hrsam.errors import DataError

_FORMAT = "napari-hrsam-pack"
_VERSION = 1
_MAX_ID = 65535
_MAX_SIDE_PX = 16383
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
"""Time of every member, so that the same samples give the same file."""

Labels = NDArray[np.int16] | NDArray[np.int32]


@dataclass(frozen=True, kw_only=True, slots=True)
class PackedSample:
    """One decoded image with its label maps.

    Attributes
    ----------
    key : str
        Name of the sample in its shard.
    domain, source, licence : str
        What it shows, where it comes from and under which terms.
    split : str
        "train" or "val".
    pixels : (H, W) or (H, W, 3) uint8
        Grey or RGB, with image-wide brightness limits applied.
    labels : (H, W) int16 or int32
        0 = background; every other value is one object.
    second_labels : (H, W) int16 or int32, or None
        A nested or coarser labelling of the same image.
    noc_objects : tuple of int
        Ids of `labels` that an evaluation clicks on; empty in "train".
    """

    key: str
    domain: str
    source: str
    licence: str
    split: str
    pixels: NDArray[np.uint8]
    labels: Labels
    second_labels: Labels | None = None
    noc_objects: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as it lies in a pack.

    Attributes
    ----------
    info : dict
        Its entry of the index, without the names of its members.
    parts : dict of str to bytes
        "image", "labels" and, where there is one, "second_labels".
    """

    info: Mapping[str, Any]
    parts: Mapping[str, bytes]


def encode_sample(sample: PackedSample, *, quality: int) -> EncodedSample:
    """Compress a sample.

    Parameters
    ----------
    sample : PackedSample
    quality : int, 1..100
        Of the image; label maps are kept exactly.

    Returns
    -------
    EncodedSample

    Raises
    ------
    DataError
        If an id or a side is too large for the format.
    """
    parts = {
        "image": encode_image(sample.pixels, quality=quality),
        "labels": encode_labels(sample.labels),
    }
    if sample.second_labels is not None:
        parts["second_labels"] = encode_labels(sample.second_labels)
    info = {
        "key": sample.key,
        "domain": sample.domain,
        "source": sample.source,
        "licence": sample.licence,
        "split": sample.split,
        "shape": list(sample.pixels.shape),
        "noc_objects": list(sample.noc_objects),
    }
    return EncodedSample(info, parts)


def encode_image(pixels: NDArray[np.uint8], *, quality: int) -> bytes:
    """Compress an image as lossy WebP.

    Parameters
    ----------
    pixels : (H, W) or (H, W, 3) uint8
    quality : int, 1..100

    Returns
    -------
    bytes

    Raises
    ------
    DataError
        If a side is longer than 16383 px.
    """
    _check_sides(pixels.shape)
    buffer = io.BytesIO()
    # Method 4 is a tenth smaller than 0 and decodes as fast.
    Image.fromarray(pixels).save(buffer, "WEBP", quality=quality, method=4)
    return buffer.getvalue()


def encode_labels(labels: NDArray[Any]) -> bytes:
    """Compress a label map without loss.

    Parameters
    ----------
    labels : (H, W) whole numbers, 0..65535

    Returns
    -------
    bytes

    Raises
    ------
    DataError
        If an id does not fit, or a side is longer than 16383 px.
    """
    _check_sides(labels.shape)
    if labels.size and not (int(labels.min()) >= 0 and int(labels.max()) <= _MAX_ID):
        raise DataError(
            f"ids of a label map must be 0 to {_MAX_ID}, got {labels.min()} to {labels.max()}; "
            "renumber the objects"
        )
    wide = labels.astype(np.uint16)
    planes = np.zeros((*labels.shape, 3), np.uint8)
    planes[..., 0], planes[..., 1] = wide >> 8, wide & 255
    buffer = io.BytesIO()
    Image.fromarray(planes).save(buffer, "WEBP", lossless=True, method=4, quality=50)
    return buffer.getvalue()


def write_pack(path: Path, samples: Iterable[EncodedSample]) -> int:
    """Write a pack; the file appears only when it is complete.

    Parameters
    ----------
    path : Path
    samples : iterable of EncodedSample

    Returns
    -------
    int
        Size of the file in bytes.
    """
    index = []
    with atomic_path(path) as partial, zipfile.ZipFile(partial, "w", zipfile.ZIP_STORED) as file:
        for number, sample in enumerate(samples):
            members = {part: f"{number:05d}.{part}.webp" for part in sample.parts}
            for part, name in members.items():
                file.writestr(zipfile.ZipInfo(name, _FIXED_TIME), sample.parts[part])
            index.append({**sample.info, "members": members})
        document = {"format": _FORMAT, "version": _VERSION, "samples": index}
        text = json.dumps(document, separators=(",", ":"))
        file.writestr(zipfile.ZipInfo("index.json", _FIXED_TIME), text, zipfile.ZIP_DEFLATED)
    return path.stat().st_size


def read_pack(
    path: Path | str, workers: int = 8, *, split: str | None = None
) -> list[PackedSample]:
    """Decode a pack.

    Parameters
    ----------
    path : path
    workers : int
        Threads that decode.
    split : str, optional
        "train" or "val": decode this part only.

    Returns
    -------
    list of PackedSample
        In the order of the index.

    Raises
    ------
    DataError
        If the file is missing, truncated, damaged, or no pack.
    """
    path = Path(path)
    entries, parts = _read_members(path, split)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        return list(pool.map(_decode_sample, repeat(path), entries, parts))


def _read_members(
    path: Path, split: str | None
) -> tuple[list[dict[str, Any]], list[dict[str, bytes]]]:
    """Read the compressed bytes; a pack is small, and one thread reads it in no time."""
    try:
        with zipfile.ZipFile(path) as file:
            document = json.loads(file.read("index.json"))
            version = (document.get("format"), document.get("version"))
            entries = [
                e for e in document.get("samples", ()) if split is None or e["split"] == split
            ]
            parts = [{p: file.read(n) for p, n in e["members"].items()} for e in entries]
    except FileNotFoundError as error:
        raise DataError(
            f"{path} does not exist; make it with scripts/pack_for_gpu.py and copy it here"
        ) from error
    # A damaged zip answers with any of these, depending on where it was cut.
    except (zipfile.BadZipFile, OSError, EOFError, KeyError, ValueError, AttributeError) as error:
        raise DataError(
            f"{path} is truncated or damaged, or is no pack ({type(error).__name__}: {error}); "
            "copy it again and compare the sizes"
        ) from error
    if version != (_FORMAT, _VERSION):
        raise DataError(
            f"{path} must be a {_FORMAT} of version {_VERSION}, got {version}; make it with this "
            "version's scripts/pack_for_gpu.py"
        )
    return entries, parts


def _decode_sample(path: Path, entry: dict[str, Any], parts: dict[str, bytes]) -> PackedSample:
    try:
        shape = tuple(entry["shape"])
        pixels = _decode(parts["image"])
        labels = _decode_labels(parts["labels"])
        second = parts.get("second_labels")
        sample = PackedSample(
            key=entry["key"],
            domain=entry["domain"],
            source=entry["source"],
            licence=entry["licence"],
            split=entry["split"],
            # WebP has no grey images: all three channels are the same.
            pixels=np.ascontiguousarray(pixels[..., 0]) if len(shape) == 2 else pixels,
            labels=labels,
            second_labels=None if second is None else _decode_labels(second),
            noc_objects=tuple(entry["noc_objects"]),
        )
    except (KeyError, TypeError, OSError, ValueError, SyntaxError, EOFError) as error:
        raise DataError(
            f"sample {entry.get('key')} of {path} cannot be decoded "
            f"({type(error).__name__}: {error}); copy the pack again"
        ) from error
    maps = (sample.labels, sample.second_labels)
    if sample.pixels.shape != shape or any(m is not None and m.shape != shape[:2] for m in maps):
        raise DataError(
            f"sample {sample.key} of {path} must be {shape}, got an image of "
            f"{sample.pixels.shape} and labels of {sample.labels.shape}; make the pack again"
        )
    return sample


def _decode(data: bytes) -> NDArray[np.uint8]:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


def _decode_labels(data: bytes) -> Labels:
    planes = _decode(data)
    ids = (planes[..., 0].astype(np.int32) << 8) | planes[..., 1]
    return ids if ids.size and int(ids.max()) > np.iinfo(np.int16).max else ids.astype(np.int16)


def _check_sides(shape: tuple[int, ...]) -> None:
    if max(shape[:2]) > _MAX_SIDE_PX:
        raise DataError(
            f"an image of a pack may have sides up to {_MAX_SIDE_PX} px, got {shape[:2]}; "
            "cut it into tiles"
        )
