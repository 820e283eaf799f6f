"""The same image is known again wherever it lies; another content or sight of it is not."""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from numpy.typing import NDArray
from ome_files import halves, sparse_slide, write_ome

from napari_hrsam.errors import ImageReadError
from napari_hrsam.storage.images.fingerprint import ImageIdentity, identify
from napari_hrsam.storage.images.opening import open_image

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 200, (700, 900), np.uint8)
LIMITS = (0, 255)


def digest(source: Any, **given: Any) -> str:
    return identify(open_image(source, **{"contrast_limits": LIMITS, **given})).digest


def mapped(tmp_path: Path, array: NDArray[Any], name: str = "mapped.npy") -> Any:
    np.save(tmp_path / name, array)
    return np.load(tmp_path / name, mmap_mode="r")


def test_an_identity_names_the_image_and_its_grid() -> None:
    stack = RNG.integers(0, 200, (2, 3, 90, 80), np.uint8)
    found = identify(open_image(stack, rgb=False))
    assert found == identify(open_image(stack.copy(), rgb=False))
    assert found == ImageIdentity(found.digest, (90, 80), (2, 3))
    assert len(found.digest) == 24


@pytest.mark.parametrize(
    "other",
    [
        {"contrast_limits": (0, 254)},
        {"contrast_limits": (1, 255)},
        {"contrast_limits": [(0, 255), (0, 255), (0, 200)]},
        {"channels": [0, 1]},
        {"channels": [1, 0, 2]},
        {"channels": [0]},
        {"channels": {"red": 0, "green": 1, "blue": 3}},
    ],
)
def test_channels_and_limits_are_part_of_it(other: dict[str, Any]) -> None:
    image = RNG.integers(0, 200, (4, 90, 80), np.uint8)
    plain = {"channel_axis": 0, "channels": [0, 1, 2]}
    assert digest(image, **plain) != digest(image, **{**plain, **other})


def test_shape_dtype_axes_levels_and_fill_are_part_of_it() -> None:
    zeros = np.zeros((3, 64, 64), np.uint8)
    wide: list[Any] = [
        zeros[0].reshape(32, 128),
        zeros[0],
        zeros[0].astype(np.uint16),
        zeros[0].astype(np.float32),
        zeros[0].astype(np.int8),
        [zeros[0], zeros[0, ::2, ::2]],
        [zeros[0], zeros[0, ::2, ::2], zeros[0, ::4, ::4]],
        zeros.transpose(1, 2, 0),
    ]
    found = {digest(image) for image in wide}
    found.add(digest(zeros, rgb=False))
    found.add(digest(zeros, channel_axis=0, channels=[0, 1]))
    assert len(found) == len(wide) + 2
    image = open_image(zeros[0])
    assert identify(image, (1, 2, 3)) != identify(image, (1, 2, 4))


def kinds() -> list[Callable[[Path, NDArray[Any]], Any]]:
    def plain(_: Path, array: NDArray[Any]) -> Any:
        return array

    def pyramid(_: Path, array: NDArray[Any]) -> Any:
        return halves(array, 3)

    def ome(path: Path, array: NDArray[Any]) -> Any:
        write_ome(path / "a.zarr", halves(array, 3))
        return path / "a.zarr"

    def ome2(path: Path, array: NDArray[Any]) -> Any:
        write_ome(path / "a.zarr", halves(array, 3), version="0.4")
        return path / "a.zarr"

    def sharded(path: Path, array: NDArray[Any]) -> Any:
        made = zarr.create_array(
            path / "b.zarr",
            shape=array.shape,
            dtype=array.dtype,
            chunks=(64, 64),
            shards=(256, 256),
        )
        made[:] = array
        return zarr.open_array(path / "b.zarr", mode="r")

    def in_memory_store(_: Path, array: NDArray[Any]) -> Any:
        made = zarr.create_array({}, shape=array.shape, dtype=array.dtype, chunks=(64, 64))
        made[:] = array
        return made

    def lazy(_: Path, array: NDArray[Any]) -> Any:
        return [da.from_array(level, chunks=128) for level in halves(array, 3)]

    return [plain, mapped, pyramid, ome, ome2, sharded, in_memory_store, lazy]


@pytest.mark.parametrize("kind", kinds())
def test_the_same_content_is_known_again_and_another_is_not(
    tmp_path: Path, kind: Callable[[Path, NDArray[Any]], Any]
) -> None:
    folders = [tmp_path / name for name in ("a", "b", "c")]
    for folder in folders:
        folder.mkdir()
    first, same = (digest(kind(folder, GREY)) for folder in folders[:2])
    assert first == same
    assert digest(kind(folders[2], GREY[::-1].copy())) != first


def test_one_pixel_of_a_small_array_is_noticed() -> None:
    changed = GREY.copy()
    changed[333, 444] += 1
    assert digest(changed) != digest(GREY)


def test_an_object_in_a_large_array_is_noticed() -> None:
    image = np.zeros((6000, 6000), np.uint8)
    before = digest(image)
    image[1234:1264, 4321:4351] = 1
    assert digest(image) != before
    channels = np.zeros((4, 3000, 3000), np.uint8)
    before = digest(channels, channel_axis=0, channels=[0])
    channels[3, 100:130, 200:230] = 1
    assert digest(channels, channel_axis=0, channels=[0]) == before
    channels[0, 100:130, 200:230] = 1
    assert digest(channels, channel_axis=0, channels=[0]) != before


def test_an_array_of_many_short_axes_is_sampled() -> None:
    image = np.zeros((8,) * 8, np.uint8)
    before = digest(image, rgb=False)
    image[:] = 1
    assert digest(image, rgb=False) != before


def test_an_object_that_reaches_the_coarsest_level_is_noticed(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", halves(GREY, 3))
    before = digest(tmp_path / "a.zarr")
    changed = GREY.copy()
    changed[400:408, 600:608] = 250
    write_ome(tmp_path / "b.zarr", halves(changed, 3))
    assert digest(tmp_path / "b.zarr") != before


def test_another_plane_is_noticed() -> None:
    stack = RNG.integers(0, 200, (3, 2, 90, 80), np.uint8)
    for wrap in (np.asarray, lambda array: da.from_array(array, chunks=64)):
        before = digest(wrap(stack), rgb=False)
        changed = stack.copy()
        changed[2, 1] += 1
        assert digest(wrap(changed), rgb=False) != before


def test_windows_of_a_large_level_lie_in_all_its_parts() -> None:
    image = np.zeros((3000, 2600), np.uint8)
    before = digest(da.from_array(image, chunks=512))
    noticed = 0
    for row, column in itertools.product(range(4), range(4)):
        changed = image.copy()
        changed[750 * row : 750 * (row + 1), 650 * column : 650 * (column + 1)] = 1
        noticed += digest(da.from_array(changed, chunks=512)) != before
    assert noticed == 8


def test_the_ways_to_open_an_image_agree(tmp_path: Path) -> None:
    levels = halves(RNG.integers(0, 200, (3, 700, 900), np.uint8), 3)
    colours = [{"color": c, "active": True} for c in ("FF0000", "00FF00", "0000FF")]
    write_ome(tmp_path / "a.zarr", levels, "cyx", omero=colours)
    path = digest(tmp_path / "a.zarr")
    arrays = [zarr.open_array(tmp_path / "a.zarr" / str(n), mode="r") for n in range(3)]
    assert digest(arrays, channel_axis=0, channels=[0, 1, 2]) == path
    lazy = [da.moveaxis(da.from_zarr(array), 0, -1) for array in arrays]
    assert digest(lazy) == path
    big = [level.astype(">u2") for level in levels]
    little = [level.astype("<u2") for level in levels]
    given = {"channel_axis": 0, "channels": [0, 1, 2]}
    assert digest(big, **given) == digest(little, **given)


def test_axes_of_length_one_and_hidden_channels_count_for_nothing() -> None:
    image = RNG.integers(0, 200, (4, 90, 80), np.uint8)
    assert digest(image[:1], rgb=False) == digest(image[0])
    some = digest(image, channel_axis=0, channels=[2, 0])
    three = digest(image, channel_axis=0, channels=[3, 0, 1])
    assert digest(image[[3, 0, 1]], channel_axis=0, channels=[0, 1, 2]) == three
    assert digest(image[[2, 0]], channel_axis=0, channels=[0, 1]) == some
    assert digest(image, channel_axis=0, channels={"green": 0, "red": 2}) == some


def test_place_and_times_are_no_part_of_it(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", halves(GREY, 3))
    before = digest(tmp_path / "a.zarr")
    (tmp_path / "else").mkdir()
    shutil.copytree(
        tmp_path / "a.zarr", tmp_path / "else" / "b.zarr", copy_function=shutil.copyfile
    )
    shutil.rmtree(tmp_path / "a.zarr")
    assert digest(tmp_path / "else" / "b.zarr") == before


def test_labels_in_the_image_are_no_part_of_it(tmp_path: Path) -> None:
    from napari_hrsam.storage.label_image import create_labels

    write_ome(tmp_path / "a.zarr", halves(GREY, 3))
    before = digest(tmp_path / "a.zarr")
    create_labels(tmp_path / "a.zarr", "cells", like=open_image(tmp_path / "a.zarr")).close()
    assert digest(tmp_path / "a.zarr") == before


def test_a_damaged_chunk_is_told(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", halves(GREY, 3))
    for chunk in (tmp_path / "a.zarr" / "2" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"")
    with pytest.raises(ImageReadError, match="is damaged or cannot be read"):
        digest(tmp_path / "a.zarr")


def test_a_gigapixel_image_takes_no_longer(tmp_path: Path) -> None:
    sparse_slide(tmp_path / "slide.zarr", 200_000, [(77_000, 52_000, 100)])
    image = open_image(tmp_path / "slide.zarr")
    identify(image)
    seconds = []
    for _ in range(5):
        started = time.process_time()
        identify(image)
        seconds.append(time.process_time() - started)
    assert min(seconds) < 0.05
