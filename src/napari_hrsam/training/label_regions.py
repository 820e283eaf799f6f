"""Committed objects as samples to learn from: regions of the image, written as pictures and masks.

Every object is shown in a region at the level that shows it well. One part of the regions is held
out, to score a model on objects that it did not learn. An object belongs to one region, and the
masks of the others do not tell it to the training. Needs no torch.
"""

from __future__ import annotations

import errno
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.errors import DataError, LabelsError
from napari_hrsam.geometry import Box, Tile, level_shape
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.images.tile_source import PyramidImage
from napari_hrsam.storage.label_image import LabelImage
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.objects import ObjectRow
from napari_hrsam.training.datasets import Sample, open_samples

Labels: TypeAlias = LabelImage | ArrayLabels
Progress: TypeAlias = Callable[[int, int], None]

LEARN, HELD_OUT = "learn", "held-out"
OBJECTS_FILE = "objects.json"
REGION_PX = 1024
SMALLEST_REGION_PX = 256
LARGEST_SHARE = 1 / 3
"""An object's longer side is at most this share of a region of `REGION_PX`, and more than half of
it where the level can be chosen."""
SIDES_AROUND = 5
"""A smaller region has so many times the side of its object."""
MIN_OBJECTS = 4
HELD_OUT_EVERY = 4
BALANCED = 1 / 8, 3 / 8
"""Share of the objects that may lie in held-out regions; else objects are held out, not regions."""
MIN_AREA_PX = 16
_STRIP_PX = 2**24
_ROOM_PER_PX = 5
"""Bytes on disk: a picture, and a mask, hardly compressed."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Region:
    """A part of an image at one level.

    Attributes
    ----------
    level : int
    box : Box
        In pixels of the level, inside the image.
    plane : tuple of int
        Of the label image.
    objects : tuple of int
        Ids of the objects that it is for; they lie in it whole.
    """

    level: int
    box: Box
    plane: tuple[int, ...] = ()
    objects: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class RegionSamples:
    """What was written.

    Attributes
    ----------
    folder : Path
        With `LEARN` and `HELD_OUT`, each a folder for `open_samples`.
    num_regions, num_objects : int
        To learn from.
    num_held_out : int
        Objects to score on.
    """

    folder: Path
    num_regions: int
    num_objects: int
    num_held_out: int

    @property
    def learn(self) -> Path:
        """The folder to learn from."""
        return self.folder / LEARN

    def held_out(self) -> list[Sample]:
        """Return the samples to score on, each with the objects that were not learned."""
        return _held_out(self.folder)


def write_regions(
    labels: Labels | Sequence[Labels],
    image: Any,
    folder: Path,
    *,
    seed: int = 0,
    progress: Progress | None = None,
) -> RegionSamples:
    """Write the objects of label images as samples.

    Parameters
    ----------
    labels : LabelImage, ArrayLabels, or a sequence of them
    image : PyramidImage, or anything that `open_image` takes
        What the objects were drawn on; one for each of several label images, in a sequence.
    folder : Path
        Made; it must not hold samples yet.
    seed : int
        Of the choice of what is held out.
    progress : callable (done, total), optional
        Counts regions. What it raises ends the work.

    Returns
    -------
    RegionSamples

    Raises
    ------
    LabelsError
        If the labels cannot be read or are of another shape than the image, or hold fewer than
        `MIN_OBJECTS` objects of at least `MIN_AREA_PX` pixels.
    DataError
        If the folder cannot be written to or has too little room, or holds samples.
    ImageError, ImageReadError
        If the image cannot be opened or read.
    """
    pairs = _pairs(labels, image)
    chosen = [
        (place, row)
        for place, (one, _) in enumerate(pairs)
        for row in one.objects()
        if row.area_px is None or row.area_px >= MIN_AREA_PX
    ]
    if len(chosen) < MIN_OBJECTS:
        raise LabelsError(
            f"expected at least {MIN_OBJECTS} objects of {MIN_AREA_PX} pixels or more to learn "
            f"from, got {len(chosen)}; commit more objects, 20 or 30 are a good start"
        )
    shapes = [picture.shape_yx for _, picture in pairs]
    learn, held_out = _split(chosen, shapes, seed)
    _require_room(folder, [region for _, region in (*learn, *held_out)])
    try:
        return _write(pairs, learn, held_out, folder, progress)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
            raise
        raise DataError(
            f"expected a folder with room for the samples, got an error at {folder}: {error}; "
            "free some space, or name a folder on another disk (out=, --out)"
        ) from error


def read_regions(folder: Path) -> RegionSamples:
    """Take up what `write_regions` wrote.

    Raises
    ------
    DataError
        If the folder holds no such samples.
    """
    counts = {part: sum(map(len, _objects(folder, part).values())) for part in (LEARN, HELD_OUT)}
    if not all(counts.values()):
        raise DataError(f"expected samples to learn from and to score on in {folder}, got {counts}")
    return RegionSamples(
        folder=folder,
        num_regions=len(_objects(folder, LEARN)),
        num_objects=counts[LEARN],
        num_held_out=counts[HELD_OUT],
    )


def cover(rows: Sequence[ObjectRow], shape_yx: tuple[int, int]) -> list[Region]:
    """Choose regions around objects of one image; one for several where they lie together.

    Parameters
    ----------
    rows : sequence of ObjectRow
    shape_yx : tuple of int
        Of the image, in level-0 pixels.

    Returns
    -------
    list of Region
        Every object belongs to one of them, in which it lies whole.
    """
    regions: list[Region] = []
    # The regions of larger objects hold smaller ones, not the other way round.
    for row in sorted(rows, key=lambda row: (-max(row.box.shape_yx), row.plane, row.label)):
        own = _around(row, shape_yx)
        for place, region in enumerate(regions):
            if _shows(region, own, row, shape_yx):
                objects = (*region.objects, row.label)
                regions[place] = replace(region, objects=objects)
                break
        else:
            regions.append(own)
    return regions


def _around(row: ObjectRow, shape_yx: tuple[int, int]) -> Region:
    longer = max(row.box.shape_yx)
    level = max(0, math.ceil(math.log2(max(longer, 1) / (LARGEST_SHARE * REGION_PX))))
    side = SIDES_AROUND * math.ceil(longer / 2**level)
    side = min(max(side, SMALLEST_REGION_PX), REGION_PX)
    whole = level_shape(shape_yx, level)
    inner = _at_level(row.box, level)
    starts = [
        min(max((first + last - side) // 2, 0), max(length - side, 0))
        for first, last, length in zip(
            (inner.y0, inner.x0), (inner.y1, inner.x1), whole, strict=True
        )
    ]
    box = Box(starts[0], starts[1], starts[0] + side, starts[1] + side).clip(whole)
    return Region(level=level, box=box, plane=row.plane, objects=(row.label,))


def _shows(region: Region, own: Region, row: ObjectRow, shape_yx: tuple[int, int]) -> bool:
    """Whether a region shows an object about as well as its own would."""
    if (region.plane, region.level) != (own.plane, own.level):
        return False
    if max(region.box.shape_yx) > 2 * max(own.box.shape_yx):
        return False
    inner = _at_level(row.box, own.level)
    wanted = inner.expand(max(inner.shape_yx) // 2).clip(level_shape(shape_yx, own.level))
    return wanted.intersection(region.box) == wanted


def _at_level(box: Box, level: int) -> Box:
    scale = 2**level
    return Box(box.y0 // scale, box.x0 // scale, -(-box.y1 // scale), -(-box.x1 // scale))


def _pairs(labels: Labels | Sequence[Labels], image: Any) -> list[tuple[Labels, PyramidImage]]:
    several = list(labels) if isinstance(labels, Sequence) else [labels]
    images = list(image) if isinstance(labels, Sequence) else [image]
    if len(several) != len(images):
        raise LabelsError(
            f"expected one image for each label image, got {len(several)} label images and "
            f"{len(images)} images"
        )
    pairs = []
    for one, its_image in zip(several, images, strict=True):
        opened = its_image if isinstance(its_image, PyramidImage) else open_image(its_image)
        if one.shape_yx != opened.shape_yx:
            raise LabelsError(
                f"expected labels of the image's shape (y, x) = {opened.shape_yx}, got "
                f"{one.shape_yx}; name the image that the objects were drawn on"
            )
        pairs.append((one, opened))
    return pairs


_Placed: TypeAlias = tuple[int, Region]
"""Number of the label image, and a region of it."""


def _split(
    chosen: Sequence[tuple[int, ObjectRow]], shapes: Sequence[tuple[int, int]], seed: int
) -> tuple[list[_Placed], list[_Placed]]:
    """Divide what is learned from what is held out: by regions, or objects where these are few."""
    regions = _covered(chosen, shapes)
    if len(regions) >= HELD_OUT_EVERY:
        held = set(_every(len(regions), [_centre(one) for one in regions], seed))
        apart = [one for place, one in enumerate(regions) if place in held]
        share = sum(len(region.objects) for _, region in apart) / len(chosen)
        if BALANCED[0] <= share <= BALANCED[1]:
            return [one for place, one in enumerate(regions) if place not in held], apart
    places = [
        (number, *row.plane, row.box.y0 + row.box.y1, row.box.x0 + row.box.x1)
        for number, row in chosen
    ]
    held = set(_every(len(chosen), places, seed))
    return (
        _covered([one for place, one in enumerate(chosen) if place not in held], shapes),
        _covered([one for place, one in enumerate(chosen) if place in held], shapes),
    )


def _covered(
    chosen: Sequence[tuple[int, ObjectRow]], shapes: Sequence[tuple[int, int]]
) -> list[_Placed]:
    return [
        (number, region)
        for number, shape in enumerate(shapes)
        for region in cover([row for place, row in chosen if place == number], shape)
    ]


def _centre(placed: _Placed) -> tuple[int, ...]:
    number, region = placed
    box, scale = region.box, 2**region.level
    return (number, *region.plane, (box.y0 + box.y1) * scale, (box.x0 + box.x1) * scale)


def _every(num: int, places: Sequence[tuple[int, ...]], seed: int) -> list[int]:
    """Choose one in `HELD_OUT_EVERY`, spread over the image: along a curve through all places."""
    order = sorted(range(num), key=lambda one: (*places[one][:-2], _along_curve(*places[one][-2:])))
    first = int(np.random.default_rng(seed).integers(HELD_OUT_EVERY))
    return order[first::HELD_OUT_EVERY]


def _along_curve(y: int, x: int) -> int:
    """Interleave the bits of two numbers: near places mostly get near numbers."""
    return sum(
        ((y >> bit & 1) << (2 * bit + 1)) | ((x >> bit & 1) << (2 * bit)) for bit in range(32)
    )


def _require_room(folder: Path, regions: Sequence[Region]) -> None:
    needed = _ROOM_PER_PX * sum(region.box.area for region in regions)
    existing = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise DataError(
            f"expected about {needed / 1e6:.0f} MB of room for the samples in {folder}, got "
            f"{free / 1e6:.0f} MB; free some space, or name a folder on another disk (out=, --out)"
        )


def _write(
    pairs: Sequence[tuple[Labels, PyramidImage]],
    learn: Sequence[_Placed],
    held_out: Sequence[_Placed],
    folder: Path,
    progress: Progress | None,
) -> RegionSamples:
    if any((folder / part).exists() for part in (LEARN, HELD_OUT)):
        raise DataError(
            f"{folder} holds samples already; choose another folder, or learn "
            "from these (fine_tune_on, --samples)"
        )
    hidden = {(number, r.plane, label) for number, r in held_out for label in r.objects}
    done, total = 0, len(learn) + len(held_out)
    for part, placed in ((LEARN, learn), (HELD_OUT, held_out)):
        objects: dict[str, list[int]] = {}
        for name in ("images", "masks"):
            (folder / part / name).mkdir(parents=True)
        for number, region in placed:
            if progress is not None:
                progress(done, total)
            done += 1
            labels, image = pairs[number]
            found = read_labels_at(labels, region.level, region.box, region.plane)
            if part == LEARN:
                taken = [
                    label for n, plane, label in hidden if (n, plane) == (number, region.plane)
                ]
                found[np.isin(found, taken)] = 0
            ids, renumbered = np.unique(found, return_inverse=True)
            # Background is 0 also where all is covered by objects.
            first = int(ids[0] != 0)
            mask = (renumbered.reshape(found.shape) + first).astype(np.uint16)
            own = np.searchsorted(ids, region.objects) + first
            key = f"{len(objects):05d}"
            objects[key] = [
                int(value)
                for value, label in zip(own, region.objects, strict=True)
                if label in ids and np.count_nonzero(mask == value) >= MIN_AREA_PX
            ]
            Image.fromarray(_pixels(image, region)).save(folder / part / "images" / f"{key}.png")
            Image.fromarray(mask).save(folder / part / "masks" / f"{key}.png")
        text = json.dumps(objects, indent=1)
        (folder / part / OBJECTS_FILE).write_text(text, encoding="utf-8")
    return read_regions(folder)


def _pixels(image: PyramidImage, region: Region) -> NDArray[np.uint8]:
    box = region.box
    plane = region.plane if len(region.plane) == len(image.plane_shape) else ()
    plane = plane or (0,) * len(image.plane_shape)
    tile = Tile(region.level, box.y0, box.x0, max(box.shape_yx), plane)
    return image.read(tile)[: box.height, : box.width]


def read_labels_at(
    labels: Labels, level: int, box: Box, plane: tuple[int, ...] = ()
) -> NDArray[Any]:
    """Read labels at any level; where none is stored, one pixel stands for a block.

    Parameters
    ----------
    labels : LabelImage or ArrayLabels
    level : int
        0 or more.
    box : Box
        In pixels of the level, inside the image.
    plane : tuple of int

    Returns
    -------
    (box.height, box.width) int64
    """
    stored = 0
    if isinstance(labels, LabelImage):
        coarsest = min(level, len(labels.levels) - 1)
        stored = max(one for one in range(coarsest + 1) if _is_halved(labels, one))
    shape = labels.level_shape(stored) if isinstance(labels, LabelImage) else labels.shape_yx
    step = 2 ** (level - stored)
    found = np.zeros(box.shape_yx, np.int64)
    rows = max(1, _STRIP_PX // (step * step * max(box.width, 1)))
    for y in range(box.y0, box.y1, rows):
        part = Box(y * step, box.x0 * step, min(y + rows, box.y1) * step, box.x1 * step).clip(shape)
        middles = labels.read(part, stored, plane)[step // 2 :: step, step // 2 :: step]
        height, width = middles.shape
        found[y - box.y0 : y - box.y0 + height, :width] = middles
    return found


def _is_halved(labels: LabelImage, level: int) -> bool:
    """Whether a stored level is that of the grid of levels; other programs' may not be."""
    wanted = level_shape(labels.shape_yx, level)
    return all(
        0 <= length - stored <= 1
        for length, stored in zip(wanted, labels.level_shape(level), strict=True)
    )


def _held_out(folder: Path) -> list[Sample]:
    objects = _objects(folder, HELD_OUT)
    return [
        replace(sample, noc_objects=tuple(objects[sample.key]))
        for sample in open_samples([folder / HELD_OUT])
        if objects.get(sample.key)
    ]


def _objects(folder: Path, part: str) -> dict[str, list[int]]:
    path = folder / part / OBJECTS_FILE
    try:
        return {str(k): list(map(int, v)) for k, v in json.loads(path.read_text("utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"expected samples of `napari-hrsam fine-tune --out` in {folder}, but {path} cannot "
            f"be read: {error}; make them anew"
        ) from error
