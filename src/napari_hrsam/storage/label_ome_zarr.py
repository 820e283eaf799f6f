"""Label images on disk: OME-Zarr label groups, made and opened.

A label image lies at ``labels/<name>`` of an OME-Zarr group, with one array per level. Beside an
image it has the image's levels, axes and scales, without the channels; alone it has levels that
halve until one chunk holds the last.
"""

from __future__ import annotations

import copy
import math
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from operator import index
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import level_shape
from napari_hrsam.storage.label_codec import DAMAGE, ChunkCodec, codec_of, damaged
from napari_hrsam.storage.ome_metadata import OmeImage

CHUNK_PX = 512
"""Side of a chunk: small objects rewrite little, large ones touch few files."""

MAX_SIDE_PX = 2**31
"""Longest axis of a label image that is believed; 100 times the largest images there are."""

MAX_CHUNK_BYTES = 2**30
"""Largest chunk (or shard) of another program that is drawn into; it is held in memory whole."""

MAX_LEVELS = 64
"""Most levels that are believed."""

_NAME = re.compile(r"[^\W_]([\w .-]*[\w-])?")
_PLANE_AXES = {
    0: [],
    1: [{"name": "z", "type": "space"}],
    2: [{"name": "t", "type": "time"}, {"name": "z", "type": "space"}],
}


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class LabelLevels:
    """The opened arrays of a label image.

    Attributes
    ----------
    folder : Path
        Where the label group lies.
    arrays : tuple of zarr.Array
        One per level, finest first; the last two axes are y and x, those before are planes.
    """

    folder: Path
    arrays: tuple[zarr.Array[Any], ...]

    @property
    def shapes_yx(self) -> tuple[tuple[int, int], ...]:
        """Height and width of every level."""
        return tuple((array.shape[-2], array.shape[-1]) for array in self.arrays)

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Sizes of the axes before y and x."""
        return tuple(self.arrays[0].shape[:-2])

    @property
    def dtype(self) -> np.dtype[Any]:
        """The integer dtype of all levels."""
        return np.dtype(self.arrays[0].dtype)

    def highest_label(self, level: int = 0) -> int:
        """Find the highest label in one level, chunk by chunk; 0 if there is none.

        Only chunks that are stored are read. Raises `LabelsError` if one cannot be.
        """
        array = self.arrays[level]
        return max((int(part.max()) for part in _stored_parts(self.folder, array)), default=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What a new label group shall be."""

    zarr_format: int
    version: str
    axes: list[dict[str, Any]]
    shapes: list[tuple[int, ...]]
    paths: list[str]
    transforms: list[list[dict[str, Any]]]
    common_transforms: list[dict[str, Any]] | None = None
    is_beside_image: bool = False


def create_label_levels(path: Path, name: str, like: object = None) -> LabelLevels:
    """Make an empty label image; the metadata comes last, so that none is seen half-made.

    Parameters
    ----------
    path : Path
        An OME-Zarr image, or a folder for labels alone: a new one, an empty one, or one made so
        before.
    name : str
        Name of the label image.
    like : image, shape or None
        An image (something with ``shape_yx``), or the shape (..., height, width); not needed
        beside an OME-Zarr image, but checked against it. Labels alone take over the axes, scale
        and units of an opened OME-Zarr image.

    Raises
    ------
    LabelsError
        If the name is taken or none, the folder holds something else or cannot be written to, or
        the shapes differ.
    """
    if not _NAME.fullmatch(name):
        raise LabelsError(
            f"expected a name of letters, digits, spaces and _ . -, got {name!r}; "
            'choose one such as "cells"'
        )
    shape = None if like is None else _full_shape(like)
    if path.exists() and not path.is_dir():
        raise LabelsError(f"expected a folder, got the file {path}; choose another path")
    if shape is not None and max(shape) > MAX_SIDE_PX:
        raise LabelsError(
            f"expected labels of at most {MAX_SIDE_PX} pixels along each axis, got shape {shape}; "
            "check how the shape was computed"
        )
    try:
        root = _open_root(path)
        plan = _plan(path, root, shape, _frame_of(like, shape))
        return _make(path, root, name, plan)
    except OSError as error:
        raise LabelsError(
            f"expected a folder that can be written to, got an error at {path}: {error}; "
            "check its rights and the space on the disk, or choose another path"
        ) from error


def open_label_levels(path: Path, name: str) -> LabelLevels:
    """Open an existing label image, ours or another program's; see `create_label_levels`.

    Raises
    ------
    LabelsError
        If there is none of that name, or it is none that can be drawn into.
    """
    folder = path / "labels" / name
    if not _NAME.fullmatch(name) or not folder.is_dir():
        names = sorted(p.name for p in folder.parent.glob("*") if _NAME.fullmatch(p.name))
        there = f"only {', '.join(names)}" if names else "none"
        raise LabelsError(
            f"expected a label image {name!r} at {folder}, got {there}; "
            "make it with create_labels, or check the path and the name"
        )
    try:
        group = zarr.open_group(folder, mode="r+", use_consolidated=False)
        attributes = dict(group.attrs)
        multiscale = _multiscales(attributes)[0]
        arrays = tuple(_array(group, entry) for entry in multiscale["datasets"])
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise LabelsError(
            f"expected an OME-Zarr label image at {folder}, got metadata that cannot be used "
            f"({type(error).__name__}: {error}); check that the program that wrote it finished"
        ) from error
    levels = LabelLevels(folder=folder, arrays=arrays)
    _check(levels)
    return levels


def _open_root(path: Path) -> zarr.Group | None:
    """Open the group at the path; None if there is nothing yet."""
    if not path.exists() or not any(path.iterdir()):
        return None
    try:
        return zarr.open_group(path, mode="r+", use_consolidated=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, PermissionError):
            raise
        raise LabelsError(
            f"expected an OME-Zarr image, or an empty or new folder for labels, at {path}, got a "
            f"folder of something else ({type(error).__name__}); choose another path"
        ) from error


def _plan(
    path: Path, root: zarr.Group | None, shape: tuple[int, ...] | None, frame: _Frame | None
) -> _Plan:
    if root is not None:
        attributes: dict[str, Any] = dict(root.attrs)
        if "multiscales" in attributes.get("ome", attributes):
            return _plan_beside(path, root, attributes, shape)
        if "labels" not in root:
            raise LabelsError(
                f"expected an OME-Zarr image, or a folder of labels, at {path}, got a zarr group "
                "of something else; give the path of the image inside it, or a new folder"
            )
    if shape is None:
        raise LabelsError(
            f"expected like=image or like=(height, width) for labels alone at {path}, got none; "
            "say how large the label image is"
        )
    zarr_format = 2 if root is not None and root.metadata.zarr_format == 2 else 3
    return _plan_alone(zarr_format, shape, frame or _Frame.plain(len(shape)))


def _plan_beside(
    path: Path, root: zarr.Group, attributes: dict[str, Any], shape: tuple[int, ...] | None
) -> _Plan:
    """Take over the image's levels without its channels."""
    try:
        multiscale = _multiscales(attributes)[0]
        version = dict(attributes.get("ome", {})).get("version") or multiscale.get("version", "0.4")
        axes = [dict(axis) for axis in multiscale["axes"]]
        keep = [i for i, axis in enumerate(axes) if not _is_channel(axis)]
        axes = [axes[i] for i in keep]
        entries = multiscale["datasets"]
        sizes = [_array(root, entry).shape for entry in entries]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise LabelsError(
            f"expected an OME-Zarr image at {path}, got metadata that cannot be used "
            f"({type(error).__name__}: {error}); write the image again, or keep the labels in a "
            "folder of their own"
        ) from error
    if [axis["name"] for axis in axes[-2:]] != ["y", "x"]:
        raise LabelsError(
            f"expected an image whose last axes are y and x, got {[a['name'] for a in axes]} at "
            f"{path}; keep the labels in a folder of their own"
        )
    # Every level has all planes, also where the image's levels are thinned along z or t.
    full = tuple(sizes[0][i] for i in keep)
    shapes = [(*full[:-2], *(size[i] for i in keep[-2:])) for size in sizes]
    if shape is not None and shape not in (full, full[-2:]):
        raise LabelsError(
            f"expected like= of the shape {full} of the image at {path}, got {shape}; "
            "leave it out, or give the image's own path"
        )
    finest = entries[0]["coordinateTransformations"]
    common = multiscale.get("coordinateTransformations")
    return _Plan(
        zarr_format=root.metadata.zarr_format,
        version=str(version),
        axes=axes,
        shapes=shapes,
        paths=[str(level) for level in range(len(shapes))],
        transforms=[
            _thinned(entry["coordinateTransformations"], keep, finest) for entry in entries
        ],
        common_transforms=_thinned(common, keep, common) if common else None,
        is_beside_image=True,
    )


def _is_channel(axis: dict[str, Any]) -> bool:
    return axis.get("type") == "channel" or axis["name"] == "c"


def _thinned(
    transforms: list[dict[str, Any]], keep: list[int], finest: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Leave out the channels; take the planes' numbers from the finest level."""
    kept = copy.deepcopy(transforms)
    for transform, first in zip(kept, finest, strict=False):
        for key in ("scale", "translation"):
            if isinstance(transform.get(key), list) and isinstance(first.get(key), list):
                both = [first[key][i] for i in keep[:-2]], [transform[key][i] for i in keep[-2:]]
                transform[key] = both[0] + both[1]
    return kept


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where labels alone lie: the axes of level 0, the size of a pixel, the place of the first."""

    axes: list[dict[str, Any]]
    scale: tuple[float, ...]
    translation: tuple[float, ...]

    @classmethod
    def plain(cls, num_axes: int) -> _Frame:
        """Pixels of size 1, without a unit."""
        planes = _PLANE_AXES.get(num_axes - 2, [])
        space = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
        return cls([*planes, *space], (1.0,) * num_axes, (0.0,) * num_axes)


def _frame_of(like: object, shape: tuple[int, ...] | None) -> _Frame | None:
    """Take over axes, scale and units of an OME-Zarr image; None if it is another one."""
    ome = getattr(like, "ome", None)
    if not isinstance(ome, OmeImage) or shape is None:
        return None
    left_out = {ome.channel_axis, ome.axes.index("y"), ome.axes.index("x")}
    planes = [axis for axis in range(len(ome.axes)) if axis not in left_out]
    order = [*planes, ome.axes.index("y"), ome.axes.index("x")]
    axes = []
    for axis in order:
        told = {"name": ome.axes[axis], "type": ome.types[axis], "unit": ome.units[axis]}
        axes.append({key: value for key, value in told.items() if value})
    return _Frame(
        axes,
        tuple(ome.scales[0][axis] for axis in order),
        tuple(ome.translations[0][axis] for axis in order),
    )


def _plan_alone(zarr_format: int, shape: tuple[int, ...], frame: _Frame) -> _Plan:
    planes, full = shape[:-2], (shape[-2], shape[-1])
    if len(planes) not in _PLANE_AXES:
        raise LabelsError(
            f"expected at most two axes before y and x (t and z), got shape {shape}; "
            "make one label image for each index of the others"
        )
    num_levels = 1 + max(0, math.ceil(math.log2(max(full) / CHUNK_PX)))
    transforms: list[list[dict[str, Any]]] = []
    for level in range(num_levels):
        factors = [1.0] * len(planes) + [2.0**level] * 2
        scale = [side * factor for side, factor in zip(frame.scale, factors, strict=True)]
        # The centre of a coarse pixel lies between the centres of its fine ones.
        moved = [
            first + side * (factor - 1) / 2
            for first, side, factor in zip(frame.translation, frame.scale, factors, strict=True)
        ]
        transforms.append([{"type": "scale", "scale": scale}])
        if any(moved):
            transforms[-1].append({"type": "translation", "translation": moved})
    return _Plan(
        zarr_format=zarr_format,
        version="0.4" if zarr_format == 2 else "0.5",
        axes=frame.axes,
        shapes=[(*planes, *level_shape(full, level)) for level in range(num_levels)],
        paths=[str(level) for level in range(num_levels)],
        transforms=transforms,
    )


def _make(path: Path, root: zarr.Group | None, name: str, plan: _Plan) -> LabelLevels:
    folder = path / "labels" / name
    if folder.exists():
        raise LabelsError(
            f"expected a new name, but there is a label image {name!r} at {folder}; "
            "go on with it by open_labels, or choose another name"
        )
    if root is None:
        root = zarr.open_group(path, mode="a", zarr_format=plan.zarr_format)  # type: ignore[arg-type]
    if "labels" not in root:
        root.create_group("labels")
    partial = folder.with_name(f".{name}.partial")
    # What an earlier try left behind when it was killed; nothing was ever written into it.
    shutil.rmtree(partial, ignore_errors=True)
    group = zarr.open_group(partial, mode="w-", zarr_format=plan.zarr_format)  # type: ignore[arg-type]
    for place, shape in zip(plan.paths, plan.shapes, strict=True):
        _create_array(group, place, shape, plan)
    group.attrs.update(_attributes(name, plan))
    partial.rename(folder)
    _list_name(path, name, plan)
    return open_label_levels(path, name)


def _create_array(group: zarr.Group, place: str, shape: tuple[int, ...], plan: _Plan) -> None:
    chunks = (1,) * (len(shape) - 2) + tuple(min(CHUNK_PX, size) for size in shape[-2:])
    common: dict[str, Any] = {"shape": shape, "chunks": chunks, "dtype": "uint32", "fill_value": 0}
    if plan.zarr_format == 2:
        separator: Any = {"name": "v2", "separator": "/"}
        group.create_array(place, chunk_key_encoding=separator, **common)
    else:
        names = [axis["name"] for axis in plan.axes]
        group.create_array(place, dimension_names=names, compressors=[ZstdCodec(level=1)], **common)


def _attributes(name: str, plan: _Plan) -> dict[str, Any]:
    datasets = [
        {"path": place, "coordinateTransformations": transforms}
        for place, transforms in zip(plan.paths, plan.transforms, strict=True)
    ]
    multiscale: dict[str, Any] = {"name": name, "axes": plan.axes, "datasets": datasets}
    if plan.common_transforms:
        multiscale["coordinateTransformations"] = plan.common_transforms
    label: dict[str, Any] = {"source": {"image": "../../"}} if plan.is_beside_image else {}
    if plan.zarr_format == 3:
        return {"ome": {"version": plan.version, "multiscales": [multiscale], "image-label": label}}
    multiscale["version"] = label["version"] = plan.version
    return {"multiscales": [multiscale], "image-label": label}


def _list_name(path: Path, name: str, plan: _Plan) -> None:
    """Add the name to the group of all label images."""
    group = zarr.open_group(path / "labels", mode="r+", use_consolidated=False)
    attributes: dict[str, Any] = dict(group.attrs)
    listed = attributes.get("ome", {}) if plan.zarr_format == 3 else attributes
    names = [*listed.get("labels", []), name]
    if plan.zarr_format == 3:
        group.attrs["ome"] = {"version": plan.version, **listed, "labels": names}
    else:
        group.attrs["labels"] = names


def _multiscales(attributes: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = attributes.get("ome", attributes)["multiscales"]
    return found


def _array(group: zarr.Group, entry: dict[str, Any]) -> zarr.Array[Any]:
    place = str(entry["path"])
    if place.startswith("/") or ".." in place.split("/"):
        raise ValueError(f"the path {place!r} of a level leads out of the folder")
    array = group[place]
    if not isinstance(array, zarr.Array):
        raise TypeError(f"level {place!r} is no array")
    return array


def _check(levels: LabelLevels) -> None:
    first = levels.arrays[0]
    if len(levels.arrays) > MAX_LEVELS:
        raise LabelsError(
            f"expected at most {MAX_LEVELS} levels at {levels.folder}, got {len(levels.arrays)}; "
            "check the program that wrote them"
        )
    for array in levels.arrays:
        _check_sizes(levels.folder, array)
        if array.ndim < 2 or 0 in array.shape or array.dtype.kind not in "iu":
            raise LabelsError(
                f"expected labels of integers with axes y and x at {levels.folder}, got shape "
                f"{array.shape} and dtype {array.dtype}; convert them to uint32"
            )
        if array.dtype != first.dtype or array.shape[:-2] != first.shape[:-2]:
            raise LabelsError(
                f"expected one dtype and all planes in every level of {levels.folder}, got "
                f"{array.dtype} {array.shape} beside {first.dtype} {first.shape}; copy the labels "
                "into new ones made with create_labels"
            )
        if array.fill_value not in (0, None):
            raise LabelsError(
                f"expected labels whose missing chunks are background (fill value 0) at "
                f"{levels.folder}, got {array.fill_value}; write the label image again"
            )


def _check_sizes(folder: Path, array: zarr.Array[Any]) -> None:
    """Refuse sizes that no image has, before anything is made of that size."""
    step = array.shards or array.chunks
    if max(array.shape, default=0) > MAX_SIDE_PX or min(step, default=1) < 1:
        raise LabelsError(
            f"expected labels of at most {MAX_SIDE_PX} pixels along each axis in chunks of 1 or "
            f"more at {folder}, got shape {array.shape} in chunks of {step}; the metadata of level "
            f"{array.path} is damaged: bring it back from a copy"
        )
    num_bytes = math.prod(step) * np.dtype(array.dtype).itemsize
    if num_bytes > MAX_CHUNK_BYTES:
        raise LabelsError(
            f"expected chunks (or shards) of at most {MAX_CHUNK_BYTES >> 20} MiB at {folder}, got "
            f"{step} with {num_bytes >> 20} MiB in level {array.path}; each commit would rewrite "
            "one: copy the labels into new ones made with create_labels"
        )


def _stored_parts(folder: Path, array: zarr.Array[Any]) -> Iterator[NDArray[Any]]:
    """Read what is stored of an array, chunk by chunk (shard by shard where there are shards).

    The files are looked for, not the chunks of the shape, of which there may be any number.
    """
    step, place = array.shards or array.chunks, folder / array.path
    counts = [math.ceil(size / part) for size, part in zip(array.shape, step, strict=True)]
    codec = codec_of(place, array)
    for file in sorted(place.rglob("*")):
        key = file.relative_to(place).as_posix()
        numbers = re.split("[/.]", key.removeprefix("c/").removeprefix("c."))
        if len(numbers) != array.ndim or not all(number.isdecimal() for number in numbers):
            continue
        part = tuple(map(int, numbers))
        if array.metadata.encode_chunk_key(part) != key or not file.is_file():
            continue
        if all(i < count for i, count in zip(part, counts, strict=True)):
            yield _inside(_decoded(codec, file, array), part, array)


def _decoded(codec: ChunkCodec, file: Path, array: zarr.Array[Any]) -> NDArray[Any]:
    try:
        return codec.decode(file.read_bytes())
    except DAMAGE as error:
        raise damaged(str(file), f"of {array.store_path}", error) from error


def _inside(chunk: NDArray[Any], place: tuple[int, ...], array: zarr.Array[Any]) -> NDArray[Any]:
    """Cut off what lies beyond the end of the level: it is no label, whatever is written there."""
    ends = (n - i * side for n, i, side in zip(array.shape, place, chunk.shape, strict=True))
    return chunk[tuple(slice(end) for end in ends)]


def read_labels(array: zarr.Array[Any], where: tuple[slice | int, ...]) -> NDArray[Any]:
    """Read a part of one level.

    Raises
    ------
    LabelsError
        If a chunk cannot be read; it names the array and the place.
    """
    try:
        return np.asarray(array[where])
    except DAMAGE as error:
        raise damaged(f"in {array.store_path}", f"at {_text(where)}", error) from error


def _text(where: tuple[slice | int, ...]) -> str:
    parts = (f"{p.start}:{p.stop}" if isinstance(p, slice) else str(p) for p in where)
    return "[" + ", ".join(parts) + "]"


def _full_shape(like: object) -> tuple[int, ...]:
    """Return (..., height, width) of an image or a shape."""
    if hasattr(like, "shape_yx"):
        return (*getattr(like, "plane_shape", ()), *like.shape_yx)
    try:
        shape = tuple(index(size) for size in like)  # type: ignore[attr-defined]
    except TypeError:
        shape = ()
    if len(shape) < 2 or min(shape) < 1:
        raise LabelsError(
            "expected like= as an image from open_image or a shape (height, width), got "
            f"{type(like).__name__}; give image.shape[:2] for an array"
        )
    return shape
