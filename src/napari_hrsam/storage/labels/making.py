"""New label images on disk: OME-Zarr label groups.

Beside an image a label image has the image's levels, axes and scales, without the channels; alone
it has levels that halve until one chunk holds the last.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index
from pathlib import Path
from typing import Any

import zarr
from zarr.codecs import ZstdCodec

from napari_hrsam.atomic_path import patiently
from napari_hrsam.errors import ImageError, ImageReadError, LabelsError
from napari_hrsam.geometry import level_shape
from napari_hrsam.storage.files.metadata_files import keep_indexes, ome_attributes
from napari_hrsam.storage.files.safe_files import discard, force
from napari_hrsam.storage.images.georeference import GEOREFERENCE, Georeference
from napari_hrsam.storage.images.ome_metadata import OmeImage, parse_ome
from napari_hrsam.storage.images.ome_zarr import array_in, image_levels, open_group
from napari_hrsam.storage.labels.names import require_new_name, require_no_way_out
from napari_hrsam.storage.labels.stored import MAX_SIDE_PX

logger = logging.getLogger(__name__)

CHUNK_PX = 512
"""Side of a chunk: small objects rewrite little, large ones touch few files."""

_VERSIONS = {2: "0.4", 3: "0.5"}
_PLANE_AXES = {
    0: [],
    1: [{"name": "z", "type": "space"}],
    2: [{"name": "t", "type": "time"}, {"name": "z", "type": "space"}],
    3: [
        {"name": "t", "type": "time"},
        {"name": "c", "type": "channel"},
        {"name": "z", "type": "space"},
    ],
}

_TYPES = {
    **dict.fromkeys(("t", "time", "frame"), "time"),
    **dict.fromkeys(("c", "ch", "channel"), "channel"),
    **dict.fromkeys(("z", "depth"), "space"),
}
"""Of axes, by their names in small letters; of others nothing is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class _Plan:
    """What a new label group shall be."""

    zarr_format: int
    version: str
    axes: list[dict[str, Any]]
    shapes: list[tuple[int, ...]]
    paths: list[str]
    transforms: list[list[dict[str, Any]]]
    is_beside_image: bool = False
    georeference: Georeference | None = None


Fill = Callable[[Path, list[zarr.Array[Any]]], None]
"""Writes into the levels of a new label image, and its folder, before anybody sees it."""


def make_labels(path: Path, name: str, like: object = None, fill: Fill | None = None) -> None:
    """Make a label image, an empty one by default; it is there as a whole or not at all.

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
        and units of an opened OME-Zarr image, and what a viewer calls the axes of another one.
    fill : callable, optional
        Puts something into it; what it raises ends the work, and nothing is left.

    Raises
    ------
    LabelsError
        If the name is taken or none, the folder holds something else or cannot be written to, or
        the shapes differ.
    """
    require_new_name(name)
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
        told = getattr(like, "georeference", None)
        if isinstance(told, Georeference):
            plan = replace(plan, georeference=told)
        _make(path, root, name, plan, fill)
    except OSError as error:
        raise LabelsError(
            f"expected a folder that can be written to, got an error at {path}: {error}; "
            "check its rights and the space on the disk, or choose another path"
        ) from error


def _open_root(path: Path) -> zarr.Group | None:
    """Open the group at the path; None if there is nothing yet."""
    if not path.exists() or _is_unfinished(path):
        return None
    try:
        return open_group(path, "r+")
    except (ImageError, ImageReadError) as error:
        raise LabelsError(
            f"expected an OME-Zarr image, or an empty or new folder for labels, at {path}, got a "
            f"folder of something else ({error}); choose another path"
        ) from error


def _is_unfinished(path: Path) -> bool:
    """Whether a folder is empty, or what `_make` leaves when it is killed before anything is made.

    That is a group of all label images with none in it, and no group around it yet.
    """
    inside = [entry for entry in path.iterdir() if not _is_partial(entry)]
    if [entry.name for entry in inside] == ["labels"] and inside[0].is_dir():
        inside = [entry for entry in inside[0].iterdir() if not _is_partial(entry)]
        return all(entry.name == "zarr.json" for entry in inside)
    return not inside


def run_folder(path: Path, name: str) -> Path:
    """Return where a run keeps what it has found, before it makes the label image."""
    return path / "labels" / f".{name}{_RUN}"


_RUN = ".run.partial"


def _is_partial(entry: Path) -> bool:
    return entry.name.endswith(_RUN) or (entry.name.endswith(".partial") and entry.is_file())


def _plan(
    path: Path, root: zarr.Group | None, shape: tuple[int, ...] | None, frame: _Frame | None
) -> _Plan:
    if root is not None:
        if "multiscales" in ome_attributes(path):
            return _plan_beside(path, root, shape)
        if not (path / "labels").is_dir():
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
    return _plan_alone(zarr_format, shape, frame or _Frame.plain(len(shape), ()))


def _plan_beside(path: Path, root: zarr.Group, shape: tuple[int, ...] | None) -> _Plan:
    """Take over the image's levels without its channels."""
    try:
        ome = parse_ome(root.attrs.asdict(), str(path))
        arrays = [array_in(root, dataset, str(path)) for dataset in ome.datasets]
        levels = image_levels(ome, arrays)
    except (ImageError, ImageReadError) as error:
        raise LabelsError(
            f"expected an OME-Zarr image at {path}, got metadata that cannot be used ({error}); "
            "write the image again, or keep the labels in a folder of their own"
        ) from error
    keep = [axis for axis in range(len(ome.axes)) if axis != ome.channel_axis]
    if [ome.axes[axis] for axis in keep[-2:]] != ["y", "x"]:
        raise LabelsError(
            f"expected an image whose last axes are y and x, got {[ome.axes[i] for i in keep]} at "
            f"{path}; keep the labels in a folder of their own"
        )
    # Every level has all planes, also where the image's levels are thinned along z or t.
    planes = levels[0].plane_shape
    shapes = [(*planes, *level.shape_yx) for level in levels]
    if shape is not None and shape not in (shapes[0], shapes[0][-2:]):
        raise LabelsError(
            f"expected like= of the shape {shapes[0]} of the image at {path}, got {shape}; "
            "leave it out, or give the image's own path"
        )
    zarr_format = root.metadata.zarr_format
    return _Plan(
        zarr_format=zarr_format,
        version=_VERSIONS[zarr_format],
        axes=_axes(ome, keep),
        shapes=shapes,
        paths=[str(level) for level in range(len(shapes))],
        transforms=[
            _transforms(_thinned(ome.scales, level, keep), _thinned(ome.translations, level, keep))
            for level in range(len(shapes))
        ],
        is_beside_image=True,
    )


def _thinned(told: tuple[tuple[float, ...], ...], level: int, keep: list[int]) -> list[float]:
    """Return the numbers of a level without the channel's; the planes' are those of level 0."""
    return [told[0][axis] for axis in keep[:-2]] + [told[level][axis] for axis in keep[-2:]]


def _transforms(scale: list[float], translation: list[float]) -> list[dict[str, Any]]:
    steps: list[dict[str, Any]] = [{"type": "scale", "scale": scale}]
    if any(translation):
        steps.append({"type": "translation", "translation": translation})
    return steps


def _axes(ome: OmeImage, order: list[int]) -> list[dict[str, Any]]:
    told = ({"name": ome.axes[i], "type": ome.types[i], "unit": ome.units[i]} for i in order)
    return [{key: value for key, value in axis.items() if value} for axis in told]


@dataclass(frozen=True, slots=True)
class _Frame:
    """Where labels alone lie: the axes of level 0, the size of a pixel, the place of the first."""

    axes: list[dict[str, Any]]
    scale: tuple[float, ...]
    translation: tuple[float, ...]

    @classmethod
    def plain(cls, num_axes: int, plane_names: Sequence[str]) -> _Frame:
        """Pixels of size 1, without a unit."""
        planes = _plane_axes(num_axes - 2, plane_names)
        space = [{"name": "y", "type": "space"}, {"name": "x", "type": "space"}]
        return cls([*planes, *space], (1.0,) * num_axes, (0.0,) * num_axes)

    def sized(self, metres_yx: tuple[float, float] | None) -> _Frame:
        """Return it with the size of a pixel of a map; as it is where that is not in metres."""
        if metres_yx is None:
            return self
        *planes, y, x = self.axes
        axes = [*planes, {**y, "unit": "meter"}, {**x, "unit": "meter"}]
        return replace(self, axes=axes, scale=(*self.scale[:-2], *metres_yx))


def _plane_axes(num: int, names: Sequence[str]) -> list[dict[str, Any]]:
    """Describe the axes before y and x as their names say; those without one are t, c and z."""
    plain = _PLANE_AXES.get(num, [])
    told: list[dict[str, Any] | None] = [_described(name) for name in names]
    known = [axis["name"] for axis in told if axis is not None]
    if len(told) != len(plain) or len(set(known)) < len(known):
        return plain
    left = [axis for axis in plain if axis["name"] not in known]
    axes = [axis or left.pop() for axis in reversed(told)][::-1]
    kinds = [axis.get("type", "") for axis in axes]
    # OME-Zarr knows each type once, in this order; axes without a type may be of any order.
    if kinds == sorted(set(kinds), key=["time", "channel", "", "space"].index):
        return axes
    return [{"name": axis["name"]} for axis in axes]


def _described(name: str) -> dict[str, Any] | None:
    """Describe an axis by its name; None if a viewer made that up, such as "axis -3"."""
    if not name.isprintable() or re.fullmatch(r"(axis )?-?\d*|[yx]", name):
        return None
    kind = _TYPES.get(name.lower())
    return {"name": name, "type": kind} if kind else {"name": name}


def _frame_of(like: object, shape: tuple[int, ...] | None) -> _Frame | None:
    """Take over axes, scale and units of an OME-Zarr image; of another one the axes' names."""
    if shape is None:
        return None
    ome = getattr(like, "ome", None)
    if not isinstance(ome, OmeImage):
        plain = _Frame.plain(len(shape), getattr(like, "plane_names", ()))
        told = getattr(like, "georeference", None)
        return plain.sized(told.pixel_size_m) if isinstance(told, Georeference) else plain
    left_out = {ome.channel_axis, ome.axes.index("y"), ome.axes.index("x")}
    planes = [axis for axis in range(len(ome.axes)) if axis not in left_out]
    order = [*planes, ome.axes.index("y"), ome.axes.index("x")]
    return _Frame(
        _axes(ome, order),
        tuple(ome.scales[0][axis] for axis in order),
        tuple(ome.translations[0][axis] for axis in order),
    )


def _plan_alone(zarr_format: int, shape: tuple[int, ...], frame: _Frame) -> _Plan:
    planes, full = shape[:-2], (shape[-2], shape[-1])
    if len(planes) not in _PLANE_AXES:
        raise LabelsError(
            f"expected at most three axes before y and x (t, c and z), got shape {shape}; "
            "OME-Zarr has no more; make one label image for each index of the others"
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
        transforms.append(_transforms(scale, moved))
    return _Plan(
        zarr_format=zarr_format,
        version=_VERSIONS[zarr_format],
        axes=frame.axes,
        shapes=[(*planes, *level_shape(full, level)) for level in range(num_levels)],
        paths=[str(level) for level in range(num_levels)],
        transforms=transforms,
    )


def _make(path: Path, root: zarr.Group | None, name: str, plan: _Plan, fill: Fill | None) -> None:
    folder = path / "labels" / name
    if folder.exists() or folder.is_symlink():
        raise LabelsError(
            f"expected a new name, but there is a label image {name!r} at {folder}; "
            "go on with it by open_labels, or choose another name"
        )
    if root is None:
        # The outer group comes last: without it, a killed creation is told from another's group.
        zarr.open_group(path / "labels", mode="a", zarr_format=plan.zarr_format)  # type: ignore[arg-type]
        root = zarr.open_group(path, mode="a", zarr_format=plan.zarr_format)  # type: ignore[arg-type]
    if not _has_metadata(folder.parent):
        root.create_group("labels")
    require_no_way_out(path, folder.parent)
    _listing(path)
    partial = folder.with_name(f".{name}.partial")
    # What an earlier try left behind when it was killed; nobody ever saw it.
    discard(partial)
    group = zarr.open_group(partial, mode="w-", zarr_format=plan.zarr_format)  # type: ignore[arg-type]
    arrays = [
        _create_array(group, place, shape, plan)
        for place, shape in zip(plan.paths, plan.shapes, strict=True)
    ]
    group.attrs.update(_attributes(name, plan))
    if fill is not None:
        try:
            fill(partial, arrays)
        except BaseException:
            discard(partial)
            raise
    # All of it is on the disk before the first commit can be: that one survives a power cut.
    force([partial, *partial.rglob("*")])
    patiently(lambda: partial.rename(folder))
    _list_name(path, name, plan.version)
    above = [path, folder.parent]
    force(
        [
            *above,
            path.parent,
            *(file for one in above for file in one.iterdir() if _is_metadata(file)),
        ]
    )


def _is_metadata(file: Path) -> bool:
    return file.name in ("zarr.json", ".zgroup", ".zattrs", ".zmetadata")


def _has_metadata(folder: Path) -> bool:
    return folder.is_dir() and any(map(_is_metadata, folder.iterdir()))


def _create_array(
    group: zarr.Group, place: str, shape: tuple[int, ...], plan: _Plan
) -> zarr.Array[Any]:
    chunks = (1,) * (len(shape) - 2) + tuple(min(CHUNK_PX, size) for size in shape[-2:])
    common: dict[str, Any] = {"shape": shape, "chunks": chunks, "dtype": "uint32", "fill_value": 0}
    if plan.zarr_format == 2:
        separator: Any = {"name": "v2", "separator": "/"}
        return group.create_array(place, chunk_key_encoding=separator, **common)
    names = [axis["name"] for axis in plan.axes]
    compressors = [ZstdCodec(level=1)]
    return group.create_array(place, dimension_names=names, compressors=compressors, **common)


def _attributes(name: str, plan: _Plan) -> dict[str, Any]:
    datasets = [
        {"path": place, "coordinateTransformations": transforms}
        for place, transforms in zip(plan.paths, plan.transforms, strict=True)
    ]
    multiscale: dict[str, Any] = {"name": name, "axes": plan.axes, "datasets": datasets}
    label: dict[str, Any] = {"source": {"image": "../../"}} if plan.is_beside_image else {}
    own: dict[str, Any] = {}
    if plan.georeference is not None:
        own[GEOREFERENCE] = plan.georeference.as_json()
    if plan.zarr_format == 3:
        ome = {"version": plan.version, "multiscales": [multiscale], "image-label": label}
        return {"ome": ome, **own}
    multiscale["version"] = label["version"] = plan.version
    return {"multiscales": [multiscale], "image-label": label, **own}


def require_listed(path: Path, name: str) -> None:
    """List a label image that is not: its creation was killed, or its program did not.

    Where that cannot be done the label image is of use all the same, and a warning is logged.
    """
    try:
        _list_name(path, name)
    except (OSError, LabelsError) as error:
        logger.warning("could not list %r in %s: %s", name, path / "labels", error)


def _list_name(path: Path, name: str, version: str = "0.5") -> None:
    """Add the name to the group of all label images, and to indexes of what there is."""
    group, listed = _listing(path)
    names = list(listed.get("labels", []))
    if name in names:
        return
    names.append(name)
    if group.metadata.zarr_format == 3:
        group.attrs["ome"] = {"version": version, **listed, "labels": names}
    else:
        group.attrs["labels"] = names
    own = f"labels/{name}"
    levels = [entry.name for entry in (path / own).iterdir() if _has_metadata(entry)]
    keep_indexes(path, ["labels", own, *(f"{own}/{level}" for level in sorted(levels))])


def _listing(path: Path) -> tuple[zarr.Group, dict[str, Any]]:
    """Open the group of all label images, and return what it says.

    Raises `LabelsError` if a name cannot be added to it.
    """
    try:
        group = open_group(path / "labels", "r+")
    except (ImageError, ImageReadError) as error:
        raise LabelsError(
            f"expected a group of labels at {path / 'labels'}, got something else ({error}); "
            "bring it back from a copy"
        ) from error
    said: dict[str, Any] = group.attrs.asdict()
    listed: Any = said.get("ome", {}) if group.metadata.zarr_format == 3 else said
    if not isinstance(listed, dict) or not isinstance(listed.get("labels", []), list):
        raise LabelsError(
            f"expected a group at {path / 'labels'} that lists label images, got something else; "
            "bring it back from a copy"
        )
    return group, listed


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
