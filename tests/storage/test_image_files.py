"""Reading planes of all kinds, writing masks and labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_hrsam.errors import ImageError
from napari_hrsam.storage.image_files import read_image, write_image, write_labels, write_mask

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("grey.png", RNG.integers(0, 255, (8, 9), np.uint8)),
        ("deep.png", RNG.integers(0, 65535, (8, 9), np.uint16)),
        ("rgb.png", RNG.integers(0, 255, (8, 9, 3), np.uint8)),
        ("rgba.png", RNG.integers(0, 255, (8, 9, 4), np.uint8)),
        ("deep.tif", RNG.integers(0, 65535, (8, 9, 3), np.uint16)),
        ("float.tiff", RNG.random((8, 9), np.float32)),
        ("signed.npy", RNG.integers(-9, 9, (8, 9), np.int16)),
    ],
)
def test_plane_keeps_its_values_and_dtype(tmp_path: Path, name: str, array: np.ndarray) -> None:
    path = tmp_path / name
    if path.suffix == ".npy":
        np.save(path, array)
    elif path.suffix == ".png":
        Image.fromarray(array).save(path)
    else:
        tifffile.imwrite(path, array)
    read = read_image(path)
    assert read.dtype == array.dtype
    np.testing.assert_array_equal(read, array)


def test_palette_colours_come_as_rgb(tmp_path: Path) -> None:
    rgb = np.zeros((8, 9, 3), np.uint8)
    rgb[:4] = (250, 10, 10)
    Image.fromarray(rgb).convert("P").save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png").shape == (8, 9, 3)


@pytest.mark.parametrize("shape", [(1, 8, 9), (8, 9, 1), (1, 1, 8, 9)])
def test_single_plane_of_a_stack_is_a_plane(tmp_path: Path, shape: tuple[int, ...]) -> None:
    np.save(tmp_path / "one.npy", np.zeros(shape))
    assert read_image(tmp_path / "one.npy").shape == (8, 9)


def test_stack_is_refused_unless_its_channels_are_separate(tmp_path: Path) -> None:
    path = tmp_path / "stack.tif"
    tifffile.imwrite(path, np.zeros((5, 8, 9), np.uint8), photometric="minisblack")
    with pytest.raises(ImageError, match=r"one plane.*\(5, 8, 9\).*axis"):
        read_image(path)
    assert read_image(path, stack=True).shape == (5, 8, 9)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none at .*nothing\.png; check the path"):
        read_image(tmp_path / "nothing.png")


@pytest.mark.parametrize("name", ["text.png", "text.tif", "text.npy"])
def test_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\n no image")
    with pytest.raises(ImageError, match=rf"{name} cannot be read"):
        read_image(tmp_path / name)


def test_truncated_png_is_named(tmp_path: Path) -> None:
    path = tmp_path / "cut.png"
    write_image(path, RNG.integers(0, 255, (64, 64, 3), np.uint8))
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ImageError, match=r"cut\.png cannot be read"):
        read_image(path)


def test_pickled_array_is_not_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(ImageError, match=r"objects\.npy cannot be read"):
        read_image(tmp_path / "objects.npy")


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_mask_is_black_and_white(tmp_path: Path, suffix: str) -> None:
    mask = RNG.random((8, 9)) > 0.5
    write_mask(tmp_path / "new folder" / f"mask.{suffix}", mask)
    read = read_image(tmp_path / "new folder" / f"mask.{suffix}")
    np.testing.assert_array_equal(read, np.where(mask, 255, 0))
    assert read.dtype == np.uint8


@pytest.mark.parametrize(
    ("name", "highest", "dtype"),
    [
        ("few.png", 7, np.uint8),
        ("many.png", 70, np.uint8),
        ("many.png", 700, np.uint16),
        ("most.tif", 70000, np.uint32),
    ],
)
def test_labels_come_back(tmp_path: Path, name: str, highest: int, dtype: type) -> None:
    labels = np.zeros((8, 9), np.uint32)
    labels[2:4] = highest
    write_labels(tmp_path / name, labels)
    read = read_image(tmp_path / name)
    assert read.dtype == dtype
    np.testing.assert_array_equal(read, labels)


def test_too_many_labels_for_a_png_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="65535.*70000.*TIFF"):
        write_labels(tmp_path / "most.png", np.full((2, 2), 70000, np.uint32))
    assert not (tmp_path / "most.png").exists()
