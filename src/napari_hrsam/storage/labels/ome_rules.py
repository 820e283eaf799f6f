"""The rules of OME-Zarr 0.4 and 0.5 for label images, checked one by one.

By hand: ome-zarr-models 1.7 cannot be installed beside the pydantic that napari 0.9 comes with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from zarr.core.metadata import ArrayV3Metadata

from napari_hrsam.errors import ImageError, ImageReadError
from napari_hrsam.storage.files.metadata_files import ome_attributes
from napari_hrsam.storage.images.ome_metadata import MAX_LEVELS
from napari_hrsam.storage.images.ome_zarr import array_in, open_group

MAX_TEXT = 500
"""Characters that are told of a broken rule; it quotes what is there."""

_FORMATS = {"0.4": 2, "0.5": 3}
_ORDER = {"time": 0, "channel": 1, "space": 2}


def broken_rules(path: Path, name: str) -> list[str]:
    """List what is wrong with the metadata of a label image.

    Parameters
    ----------
    path : Path
        The OME-Zarr image, or the folder of labels alone.
    name : str
        Name of the label image; its folder exists.

    Returns
    -------
    list of str
        One sentence per broken rule; empty if all is well.
    """
    folder = path / "labels" / name
    try:
        group = open_group(folder)
        rules = [*_group_rules(group, str(folder)), *_listing_rules(path, name)]
    except (ImageError, ImageReadError) as error:
        return [f"the label image is no zarr group that can be read: {error}"]
    # Numbers beyond all bounds, texts in place of numbers, lists inside lists inside lists.
    except Exception as error:  # noqa: BLE001
        told = f"{type(error).__name__}: {str(error)[:MAX_TEXT]}"
        return [f"the metadata cannot be checked ({told})"]
    return [rule if len(rule) <= MAX_TEXT else f"{rule[:MAX_TEXT]} ..." for rule in rules]


def _group_rules(group: zarr.Group, folder: str) -> Iterator[str]:
    attributes = group.attrs.asdict()
    ome: Any = attributes.get("ome", attributes)
    multiscales = ome.get("multiscales") if isinstance(ome, dict) else None
    if not isinstance(multiscales, list) or not multiscales or not isinstance(multiscales[0], dict):
        yield "multiscales must be a list with one entry or more; it is missing or of another form"
        return
    image = multiscales[0]
    version = ome.get("version") if "ome" in attributes else image.get("version")
    zarr_format = group.metadata.zarr_format
    if _FORMATS.get(str(version)) != zarr_format:
        yield (
            f"the version must be 0.4 in zarr v2 or 0.5 in zarr v3; it is {version!r} in zarr "
            f"v{zarr_format}"
        )
    yield from _axes_rules(image.get("axes"))
    axes = image["axes"] if isinstance(image.get("axes"), list) else []
    yield from _dataset_rules(group, image, axes, folder)
    yield from _image_label_rules(ome.get("image-label"))


def _axes_rules(axes: object) -> Iterator[str]:
    if not isinstance(axes, list) or not all(
        isinstance(axis, dict) and isinstance(axis.get("name"), str) for axis in axes
    ):
        yield "axes must be a list of objects with a name; it is missing or of another form"
        return
    names = [axis["name"] for axis in axes]
    if not 2 <= len(axes) <= 5 or len(set(names)) < len(names):
        yield f"there must be 2 to 5 axes, each once; they are {names}"
    types = [axis.get("type") for axis in axes]
    places = [_ORDER.get(str(kind), 1) for kind in types]
    if places != sorted(places):
        yield f"axes must be in the order time, channel, space; they are {types}"
    if not 2 <= types.count("space") <= 3 or types.count("time") > 1:
        yield f"there must be 2 or 3 axes of space and at most 1 of time; they are {types}"


def _dataset_rules(
    group: zarr.Group, image: dict[str, Any], axes: list[Any], folder: str
) -> Iterator[str]:
    datasets = image.get("datasets")
    if not isinstance(datasets, list) or not datasets:
        yield "datasets must be a list with one level or more; it is missing or of another form"
        return
    if len(datasets) > MAX_LEVELS:
        yield f"there must be at most {MAX_LEVELS} levels; there are {len(datasets)}"
        return
    if "coordinateTransformations" in image:
        yield from _transform_rules(
            image["coordinateTransformations"], len(axes), "the multiscale image"
        )
    arrays: list[zarr.Array[Any]] = []
    scales: list[list[float]] = []
    for number, found in enumerate(datasets):
        where = f"level {number}"
        entry = found if isinstance(found, dict) else {}
        transforms: Any = entry.get("coordinateTransformations")
        wrong = list(_transform_rules(transforms, len(axes), where))
        yield from wrong
        array = _array(group, entry.get("path"), folder)
        if array is None:
            yield f"{where} must name an array; there is none at {entry.get('path')!r}"
            continue
        yield from _array_rules(array, axes, where)
        if not wrong and array.ndim == len(axes):
            arrays.append(array)
            scales.append(transforms[0]["scale"])
    yield from _size_rules(arrays, scales)


def _array(group: zarr.Group, path: object, folder: str) -> zarr.Array[Any] | None:
    if not isinstance(path, str) or path.startswith("/") or ".." in path.split("/"):
        return None
    try:
        return array_in(group, path, folder)
    except (ImageError, ImageReadError):
        return None


def _array_rules(array: zarr.Array[Any], axes: list[Any], where: str) -> Iterator[str]:
    if array.ndim != len(axes):
        yield f"{where} must have {len(axes)} axes; its shape is {array.shape}"
    if array.dtype.kind not in "iu":
        yield f"{where} must hold integers; its dtype is {array.dtype}"
    if array.fill_value not in (0, None):
        yield f"{where} must have the fill value 0; it is {array.fill_value}"
    names = [axis.get("name") for axis in axes if isinstance(axis, dict)]
    metadata = array.metadata
    if isinstance(metadata, ArrayV3Metadata) and list(metadata.dimension_names or ()) != names:
        yield f"the dimension names of {where} must be {names}; they are {metadata.dimension_names}"


def _transform_rules(transforms: object, num_axes: int, where: str) -> Iterator[str]:
    steps = transforms if isinstance(transforms, list) else []
    kinds = [step.get("type") if isinstance(step, dict) else None for step in steps]
    if kinds not in (["scale"], ["scale", "translation"]):
        yield (
            f"coordinateTransformations of {where} must be one scale, then at most one "
            f"translation; they are {kinds}"
        )
        return
    for step in steps:
        kind = step["type"]
        numbers = step.get(kind)
        is_fine = (
            isinstance(numbers, list)
            and len(numbers) == num_axes
            and all(_is_finite(n) for n in numbers)
            and (kind != "scale" or min(numbers) > 0)
        )
        if not is_fine:
            yield f"the {kind} of {where} must be {num_axes} usable numbers; it is {numbers!r}"


def _is_finite(number: object) -> bool:
    try:
        return type(number) in (int, float) and math.isfinite(number)  # type: ignore[arg-type]
    # A whole number of more digits than a float takes.
    except OverflowError:
        return False


def _size_rules(arrays: list[zarr.Array[Any]], scales: list[list[float]]) -> Iterator[str]:
    for number, (array, scale) in enumerate(zip(arrays, scales, strict=True)):
        if array.dtype != arrays[0].dtype:
            yield f"all levels must have one dtype; level {number} has {array.dtype}"
        factor = np.array(scale) / scales[0]
        if (np.abs(np.array(arrays[0].shape) / factor - array.shape) > 2).any():
            yield (
                f"the scale of level {number} must fit its size; it is {factor.tolist()} times "
                f"coarser, but has shape {array.shape} of {arrays[0].shape}"
            )
        if number and any(
            a > b for a, b in zip(array.shape, arrays[number - 1].shape, strict=True)
        ):
            yield f"levels must be sorted from fine to coarse; level {number} is larger than before"


def _image_label_rules(found: object) -> Iterator[str]:
    if not isinstance(found, dict):
        yield "image-label must be there, so that it is taken for labels and not for an image"
        return
    for key in ("colors", "properties"):
        entries = found.get(key, [])
        if not isinstance(entries, list) or not all(
            isinstance(entry, dict) and type(entry.get("label-value")) is int for entry in entries
        ):
            yield f"{key} of image-label must be a list of objects with a whole label-value"
            continue
        values = [entry["label-value"] for entry in entries]
        if len(set(values)) < len(values):
            yield f"{key} of image-label must name each label once"
        rgba = [entry["rgba"] for entry in entries if key == "colors" and "rgba" in entry]
        if not all(_is_rgba(colour) for colour in rgba):
            yield "every rgba of image-label must be four whole numbers from 0 to 255"
    source = found.get("source", {})
    if not isinstance(source, dict) or not isinstance(source.get("image", ""), str):
        yield f"source of image-label must name an image; it is {source!r}"


def _is_rgba(colour: object) -> bool:
    return (
        isinstance(colour, list)
        and len(colour) == 4
        and all(type(part) is int and 0 <= part <= 255 for part in colour)
    )


def _listing_rules(path: Path, name: str) -> Iterator[str]:
    """Look at the group of all label images, and at the image beside them."""
    listed = ome_attributes(path / "labels").get("labels")
    if not isinstance(listed, list) or name not in listed:
        yield f"the labels group must list {name!r}, or programs do not find it; it lists {listed}"
    images, own = (
        ome_attributes(folder).get("multiscales") for folder in (path, path / "labels" / name)
    )
    try:
        wanted, got = (len(found[0]["datasets"]) for found in (images, own))  # type: ignore[index]
    except (TypeError, KeyError, IndexError):
        return
    if wanted != got:
        yield f"there must be as many levels as the image has ({wanted}); there are {got}"
