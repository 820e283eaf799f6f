"""Images with instance masks, from tar shards (WebDataset naming) and from folders.

A shard is an uncompressed `.tar` with, for every sample, `KEY.img.jpg|png`, `KEY.lbl.png`,
optionally `KEY.lbl2.png` (a second, nested or coarser labelling) and `KEY.json`. A folder holds
either `images/` and `masks/` with files of the same stem, or `NAME.png` beside `NAME_mask.png`.

A sample knows only where its bytes lie: pixels are decoded when they are asked for.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from napari_hrsam.errors import DataError
from napari_hrsam.training.pixels import Blob, decode_image, decode_labels, image_shape_yx

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy"})
_MASK_ENDING = "_mask"
_MAX_OBJECTS = 5
_TAR_BLOCK_BYTES = 512


@dataclass(frozen=True, kw_only=True, slots=True)
class Sample:
    """One image with its instance mask; nothing is decoded until it is asked for.

    Attributes
    ----------
    key : str
        Name of the sample inside its shard or folder.
    domain, source, licence, group : str
        From the sample's json; for folders the folder's name, "unknown" and "open".
    instances : int
        Objects that the json counts; 0 where it does not say.
    noc_objects : tuple of int
        Ids listed for an evaluation; empty if none are listed.
    image_blob, labels_blob, second_labels_blob : Blob
        Where image, labels and second labels lie.
    """

    key: str
    domain: str
    source: str
    licence: str = "unknown"
    group: str = "open"
    instances: int = 0
    noc_objects: tuple[int, ...] = ()
    image_blob: Blob
    labels_blob: Blob
    second_labels_blob: Blob | None = None

    def image(self) -> NDArray[np.uint8]:
        """Decode the image.

        Returns
        -------
        (H, W) or (H, W, 3) uint8
            Grey or RGB. Deeper grey images are scaled from their minimum and maximum.

        Raises
        ------
        DataError
            If the file is not a readable image.
        """
        return decode_image(self.image_blob)

    def labels(self) -> NDArray[np.int32]:
        """Decode the instance mask.

        Returns
        -------
        (H, W) int32
            0 = background; every other value is one object (255 too, in an 8-bit binary mask).

        Raises
        ------
        DataError
            If it is not a mask of whole numbers, or not of the image's size.
        """
        return self._labels(self.labels_blob)

    def second_labels(self) -> NDArray[np.int32] | None:
        """Decode the second instance mask, if the sample has one.

        Returns
        -------
        (H, W) int32, or None

        Raises
        ------
        DataError
            If it is not a mask of whole numbers, or not of the image's size.
        """
        blob = self.second_labels_blob
        return None if blob is None else self._labels(blob)

    @property
    def objects(self) -> tuple[int, ...]:
        """Ids of the objects to evaluate.

        The json's `noc_objects`; without them the five largest objects, the largest first (and
        the smaller id first among equals).
        """
        return self.noc_objects or largest_objects(self.labels(), _MAX_OBJECTS)

    def _labels(self, blob: Blob) -> NDArray[np.int32]:
        labels = decode_labels(blob)
        size = image_shape_yx(self.image_blob)
        if labels.shape != size:
            raise DataError(
                f"mask {blob} is {labels.shape[0]} x {labels.shape[1]} px, but its image "
                f"{self.image_blob} is {size[0]} x {size[1]}; give both the same size"
            )
        return labels


def largest_objects(labels: NDArray[np.int32], num: int) -> tuple[int, ...]:
    """Ids of the largest objects of a label image.

    Parameters
    ----------
    labels : (H, W) int32
        0 = background.
    num : int
        How many at most.

    Returns
    -------
    tuple of int
        The largest first; the smaller id first among equals.
    """
    ids, areas = np.unique(labels[labels > 0], return_counts=True)
    order = np.lexsort((ids, -areas))[:num]
    return tuple(int(i) for i in ids[order])


def open_samples(
    paths: Sequence[Path | str], *, exclude_sources: Sequence[str] = ()
) -> list[Sample]:
    """List the samples of any number of shards and folders, without decoding them.

    Parameters
    ----------
    paths : sequence of path
        `.tar` shards and folders, read in this order.
    exclude_sources : sequence of str
        Sources to leave out, e.g. for their licence.

    Returns
    -------
    list of Sample
        Shards in the order of their members, folders sorted by name.

    Raises
    ------
    DataError
        If a path is missing, holds no samples, is truncated, or an image has no mask.
    """
    if not paths:
        raise DataError("no data given; expected at least one .tar shard or folder of images")
    samples: list[Sample] = []
    for path in map(Path, paths):
        samples.extend(_open_one(path))
    kept = [sample for sample in samples if sample.source not in exclude_sources]
    if not kept:
        raise DataError(
            f"all {len(samples)} samples come from the excluded sources "
            f"{sorted(exclude_sources)}; exclude fewer, or give more data"
        )
    return kept


def _open_one(path: Path) -> list[Sample]:
    if not path.exists():
        raise DataError(f"{path} does not exist; expected a .tar shard or a folder of images")
    if path.is_dir():
        return list(_open_folder(path))
    if path.suffix != ".tar":
        raise DataError(
            f"{path} is neither a folder nor an uncompressed .tar shard; unpack it, or give the "
            "folder that holds its images and masks"
        )
    return list(_open_shard(path))


def _open_shard(path: Path) -> Iterator[Sample]:
    parts: dict[str, dict[str, Blob]] = {}
    for blob in _tar_members(path):
        folder, _, base = blob.name.rpartition("/")
        stem, _, ending = base.partition(".")
        key = f"{folder}/{stem}" if folder else stem
        role = ending.split(".", 1)[0]
        if role in parts.setdefault(key, {}):
            raise DataError(f"{path} holds two members for {key}.{role}; keep one of them")
        parts[key][role] = blob
    if not parts:
        raise DataError(f"{path} is empty; expected members KEY.img.png, KEY.lbl.png, KEY.json")
    for key, members in parts.items():
        for role, what in (("img", "image"), ("lbl", "mask")):
            if role not in members:
                raise DataError(
                    f"sample {key} in {path} has no {what} (KEY.{role}.png); it has "
                    f"{sorted(members)}; add it, or take the sample out"
                )
        yield _shard_sample(path, key, members)


def _tar_members(path: Path) -> list[Blob]:
    size_bytes = path.stat().st_size
    try:
        with tarfile.open(path, "r:") as tar:
            members = tar.getmembers()
            end = tar.offset
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(
            f"{path} is not a readable tar shard, or is truncated ({error}); download it again"
        ) from error
    last = max((m.offset_data + m.size for m in members), default=0)
    # A tar ends with blocks of zeros; without them the file was cut between two members.
    if last > size_bytes or end > size_bytes or not _has_end_mark(path, last):
        raise DataError(
            f"{path} is truncated: it ends after {size_bytes} bytes without the end-of-archive "
            "mark; download it again"
        )
    # Hidden members are no samples: the tar of macOS adds ._NAME for every NAME.
    shown = (m for m in members if m.isfile() and not PurePosixPath(m.name).name.startswith("."))
    return [Blob(path, m.name, m.offset_data, m.size) for m in shown]


def _has_end_mark(path: Path, last_byte: int) -> bool:
    start = -(-last_byte // _TAR_BLOCK_BYTES) * _TAR_BLOCK_BYTES
    with path.open("rb") as file:
        file.seek(start)
        return file.read(_TAR_BLOCK_BYTES) == bytes(_TAR_BLOCK_BYTES)


def _shard_sample(path: Path, key: str, members: dict[str, Blob]) -> Sample:
    info = _read_json(members["json"]) if "json" in members else {}
    try:
        noc_objects = tuple(int(entry["id"]) for entry in info.get("noc_objects", ()))
        instances = int(info.get("instances", 0))
    except (TypeError, KeyError, ValueError) as error:
        raise DataError(
            f"{members['json']} must hold noc_objects, a list of {{'id', 'area'}}, and instances, "
            f"a number, got {info.get('noc_objects')!r} and {info.get('instances')!r}"
        ) from error
    return Sample(
        key=key,
        domain=str(info.get("domain", path.stem)),
        source=str(info.get("source", path.stem)),
        licence=str(info.get("licence", "unknown")),
        group=str(info.get("group", "open")),
        instances=instances,
        noc_objects=noc_objects,
        image_blob=members["img"],
        labels_blob=members["lbl"],
        second_labels_blob=members.get("lbl2"),
    )


def _read_json(blob: Blob) -> dict[str, Any]:
    try:
        info = json.loads(blob.read())
    except ValueError as error:
        raise DataError(f"{blob} is not valid JSON ({error}); write it again") from error
    if not isinstance(info, dict):
        raise DataError(f"{blob} must hold one JSON object, got {type(info).__name__}")
    return info


def _open_folder(path: Path) -> Iterator[Sample]:
    pairs = _paired_folders(path) if (path / "images").is_dir() else _paired_names(path)
    if not pairs:
        hint = "images/ and masks/ with equal names, or NAME.png beside NAME_mask.png"
        if any(path.glob("*.tar")):
            hint = f"the shards themselves ({path}/*.tar), or {hint}"
        raise DataError(f"{path} holds no images; expected {hint}")
    for image, mask in pairs:
        yield Sample(
            key=image.stem,
            domain=path.resolve().name,
            source=path.resolve().name,
            image_blob=Blob(image, image.name),
            labels_blob=Blob(mask, mask.name),
        )


def _paired_folders(path: Path) -> list[tuple[Path, Path]]:
    masks = {mask.stem: mask for mask in _image_files(path / "masks")}
    images = {image.stem: image for image in _image_files(path / "images")}
    # masks/NAME_mask.png is as common as masks/NAME.png.
    for stem in list(masks):
        base = stem.removesuffix(_MASK_ENDING)
        if stem not in images and base not in masks:
            masks[base] = masks[stem]
    return [_pair(image, masks) for image in images.values()]


def _paired_names(path: Path) -> list[tuple[Path, Path]]:
    files = _image_files(path)
    masks = {f.stem.removesuffix(_MASK_ENDING): f for f in files if f.stem.endswith(_MASK_ENDING)}
    return [_pair(f, masks) for f in files if not f.stem.endswith(_MASK_ENDING)]


def _pair(image: Path, masks: dict[str, Path]) -> tuple[Path, Path]:
    if image.stem not in masks:
        raise DataError(
            f"image {image} has no mask; expected masks/{image.stem}.png beside images/, or "
            f"{image.stem}{_MASK_ENDING}.png beside it"
        )
    return image, masks[image.stem]


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; expected the masks of {folder.parent}/images")
    # Hidden files are no pictures: macOS leaves ._NAME.png beside NAME.png on other disks.
    return sorted(
        f
        for f in folder.iterdir()
        if f.suffix.lower() in IMAGE_SUFFIXES and not f.name.startswith(".")
    )
