"""Where the objects of an image are kept."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from napari.layers import Image
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.storage.images.layers import take_layers
from napari_hrsam.storage.label_image import create_labels, open_or_create_labels
from napari_hrsam.storage.labels.names import label_names
from napari_hrsam.storage.labels.places import (
    LABELS_VARIABLE,
    LabelFile,
    OwnPlace,
    labels_in,
    ome_zarr_of,
)


def write_image(path: Path, shape: tuple[int, ...], axes: str, version: str = "0.5") -> list[Any]:
    """Write an OME-Zarr image of zeros with two levels; returns its arrays."""
    group = zarr.open_group(path, mode="w", zarr_format=3 if version == "0.5" else 2)
    datasets = []
    for k in range(2):
        small = (*shape[:-2], shape[-2] // 2**k, shape[-1] // 2**k)
        group.create_array(str(k), shape=small, dtype="uint8", chunks=(*small[:-2], 64, 64))
        scale = {"type": "scale", "scale": [1.0] * (len(shape) - 2) + [2.0**k] * 2}
        datasets.append({"path": str(k), "coordinateTransformations": [scale]})
    kinds = {"c": "channel", "t": "time"}
    entry = {
        "axes": [{"name": name, "type": kinds.get(name, "space")} for name in axes],
        "datasets": datasets,
    }
    if version == "0.5":
        group.attrs["ome"] = {"version": version, "multiscales": [entry]}
    else:
        group.attrs["multiscales"] = [{**entry, "version": version}]
    return [group[str(k)] for k in range(2)]


def layer(data: Any, **options: Any) -> Image:
    return Image(data, multiscale=True, contrast_limits=(0, 1), **options)


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_the_image_behind_zarr_arrays_is_found(version: str, tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    assert ome_zarr_of(layer(write_image(path, (128, 192), "yx", version))) == path


def test_the_image_behind_a_path_is_found_whatever_the_layer_holds(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    arrays = write_image(path, (2, 3, 128, 192), "czyx")
    one_channel = [da.from_array(array)[1] for array in arrays]
    shown = layer(one_channel)
    assert ome_zarr_of(shown) is None, "nobody said where it is from"
    opened = SimpleNamespace(
        data=shown.data, multiscale=True, ndim=3, source=SimpleNamespace(path=str(path))
    )
    assert ome_zarr_of(opened) == path
    opened.source.path = "https://somewhere.example/a.zarr"
    assert ome_zarr_of(opened) is None


def test_an_image_of_other_pixels_is_not_taken_for_it(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    arrays = write_image(path, (4, 128, 192), "zyx")
    assert ome_zarr_of(layer(arrays)) == path
    assert ome_zarr_of(layer([array[0] for array in arrays])) is None
    part = SimpleNamespace(
        data=[np.zeros((4, 128, 100))], multiscale=True, ndim=3, source=SimpleNamespace(path=path)
    )
    assert ome_zarr_of(part) is None
    one_plane = SimpleNamespace(
        data=[np.zeros((128, 192))], multiscale=True, ndim=2, source=SimpleNamespace(path=path)
    )
    assert ome_zarr_of(one_plane) is None, "its labels would have all planes"


def test_axes_of_length_one_make_no_difference(tmp_path: Path) -> None:
    path = tmp_path / "a.zarr"
    arrays = write_image(path, (1, 1, 128, 192), "tzyx")
    flat = SimpleNamespace(
        data=[array[0, 0] for array in arrays],
        multiscale=True,
        ndim=2,
        source=SimpleNamespace(path=path),
    )
    assert ome_zarr_of(flat) == path


def test_pictures_and_plain_arrays_have_none(tmp_path: Path) -> None:
    plain = zarr.create_array(
        tmp_path / "plain.zarr", shape=(64, 64), dtype="uint8", chunks=(32, 32)
    )
    assert ome_zarr_of(Image(plain, contrast_limits=(0, 1))) is None
    assert ome_zarr_of(Image(np.zeros((8, 8)))) is None


def test_a_label_image_is_made_once_and_then_gone_on_with(tmp_path: Path) -> None:
    file = LabelFile(tmp_path / "new" / "deeper" / "a.zarr", "cells")
    with open_or_create_labels(file.path, file.name, (100, 200)) as labels:
        assert labels.shape_yx == (100, 200)
        assert labels.folder == file.folder
    with open_or_create_labels(file.path, file.name, (100, 200)) as labels:
        assert labels.next_label() == 1
    assert label_names(file.path) == ("cells",)
    assert label_names(tmp_path / "nothing") == ()


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(LabelsError, match="choose another folder"):
        open_or_create_labels(tmp_path / "file" / "a.zarr", "cells", (8, 8))


def test_a_chosen_folder_is_used_as_what_it_is(tmp_path: Path) -> None:
    empty, image, labels, mine = (tmp_path / name for name in ("empty", "image", "labels", "mine"))
    empty.mkdir()
    mine.mkdir()
    (mine / "thesis.txt").write_text("important")
    write_image(image, (128, 192), "yx")
    create_labels(labels, "nuclei", like=(8, 8)).close()
    assert labels_in(empty, "a slide") == LabelFile(empty, "objects")
    assert labels_in(image, "a slide") == LabelFile(image, "objects")
    assert labels_in(labels, "a slide") == LabelFile(labels, "nuclei")
    assert labels_in(mine, "a slide/1") == LabelFile(mine / "a-slide-1-objects.zarr", "objects")


def content(value: int) -> NDArray[np.uint8]:
    pixels = np.zeros((128, 128), np.uint8)
    pixels[30:40, 30:40] = value
    return pixels


def test_an_own_place_is_the_same_for_the_same_image_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LABELS_VARIABLE, str(tmp_path))

    def place(value: int, name: str = "a slide: 1", **options: Any) -> LabelFile:
        return OwnPlace(name).of(take_layers(Image(content(value), **options)))

    first = place(5)
    assert first.path.parent == tmp_path
    assert first.path.name.startswith("a-slide-1-")
    assert place(5, contrast_limits=(0, 77)) == first
    assert place(6, contrast_limits=(0, 77)) != first
    assert place(5, name="b") != first
