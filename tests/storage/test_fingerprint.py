"""The same image is known again wherever it lies; another content or sight of it is not."""

from __future__ import annotations

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

from napari_hrsam.storage.fingerprint import ImageIdentity, _spread, identify
from napari_hrsam.storage.opening import open_image

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
        zeros[0].astype(">u2"),
        [zeros[0], zeros[0, ::2, ::2]],
        [zeros[0], zeros[0, ::2, ::2], zeros[0, ::4, ::4]],
        zeros.transpose(1, 2, 0),
    ]
    found = {digest(image) for image in wide}
    found.add(digest(zeros, rgb=False))
    found.add(digest(zeros, channel_axis=0, channels=[0, 1, 2]))
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
    assert digest(channels, channel_axis=0, channels=[0]) != before


def test_an_array_of_many_short_axes_is_sampled() -> None:
    image = np.zeros((8,) * 8, np.uint8)
    before = digest(image, rgb=False)
    image[:] = 1
    assert digest(image, rgb=False) != before


def test_an_object_in_a_file_of_chunks_is_noticed_through_sizes(tmp_path: Path) -> None:
    group = write_ome(tmp_path / "a.zarr", halves(np.zeros((256, 256), np.uint8), 3))
    before = digest(tmp_path / "a.zarr")
    group["0"][70:100, 150:180] = RNG.integers(0, 9, (30, 30))
    assert digest(tmp_path / "a.zarr") != before


def test_chunks_of_the_coarsest_level_are_noticed_through_bytes(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", halves(GREY, 3))
    before = digest(tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr" / "2" / "c" / "1" / "2"
    good = chunk.read_bytes()
    middle = len(good) // 2
    chunk.write_bytes(good[:middle] + bytes([good[middle] ^ 1]) + good[middle + 1 :])
    assert digest(tmp_path / "a.zarr") != before


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
    from napari_hrsam.storage.label_pyramid import create_labels

    write_ome(tmp_path / "a.zarr", halves(GREY, 3))
    before = digest(tmp_path / "a.zarr")
    create_labels(tmp_path / "a.zarr", "cells", like=open_image(tmp_path / "a.zarr")).close()
    assert digest(tmp_path / "a.zarr") == before


def test_a_damaged_chunk_is_no_error(tmp_path: Path) -> None:
    write_ome(tmp_path / "a.zarr", halves(GREY, 3))
    for chunk in (tmp_path / "a.zarr" / "2" / "c").rglob("*"):
        if chunk.is_file():
            chunk.write_bytes(b"")
    assert len(digest(tmp_path / "a.zarr")) == 24


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


@pytest.mark.parametrize("num", [1, 2, 24, 25, 1000, 10**12])
def test_numbers_are_spread_over_all_there_are(num: int) -> None:
    found = _spread(num, 24)
    assert len(set(found)) == len(found) <= 24
    assert len(found) >= 0.8 * min(num, 24)
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0, num - 1)
    assert max(b - a for a, b in zip(found, [*found[1:], num], strict=True)) <= max(1, num // 8)
