"""Reading planes of all kinds, writing masks and labels."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from napari_hrsam.errors import ImageError
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.storage.image_files import (
    read_picture,
    unreadable,
    write_image,
    write_labels,
    write_mask,
)
from napari_hrsam.storage.opening import open_image

RNG = np.random.default_rng(0)


def read_image(path: Path) -> np.ndarray:
    """Pixels of a small picture as they are opened."""
    return np.asarray(open_image(path).stored_levels[0].data)


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


@pytest.mark.parametrize("shape", [(1, 8, 9), (8, 9, 1), (1, 1, 8, 9), (1, 8, 9, 1)])
def test_axes_of_length_one_do_not_count(tmp_path: Path, shape: tuple[int, ...]) -> None:
    array = RNG.integers(0, 255, shape, np.uint8)
    np.save(tmp_path / "one.npy", array)
    image = open_image(tmp_path / "one.npy")
    assert image.shape_yx == (8, 9)
    expected = open_image(array.reshape(8, 9)).read(Tile(0, 0, 0, 16))
    np.testing.assert_array_equal(image.read(Tile(0, 0, 0, 16)), expected)


@pytest.mark.parametrize("suffix", ["png", "tif", "bmp", "npy"])
@pytest.mark.parametrize("shape", [(1, 50, 3), (50, 1, 3)])
def test_one_row_of_colours_is_a_row(tmp_path: Path, shape: tuple[int, ...], suffix: str) -> None:
    rgb = RNG.integers(0, 255, shape, np.uint8)
    path = tmp_path / f"line.{suffix}"
    if suffix == "npy":
        np.save(path, rgb)
    elif suffix == "tif":
        tifffile.imwrite(path, rgb, photometric="rgb")
    else:
        Image.fromarray(rgb).save(path)
    image = open_image(path)
    assert image.shape_yx == shape[:2]
    np.testing.assert_array_equal(image.read(Tile(0, 0, 0, 64))[: shape[0], : shape[1]], rgb)


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


def test_a_picture_above_pillows_limit_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    grey = RNG.integers(0, 255, (64, 64), np.uint8)
    Image.fromarray(grey).save(tmp_path / "mosaic.png")
    np.testing.assert_array_equal(read_picture(tmp_path / "mosaic.png"), grey)
    assert Image.MAX_IMAGE_PIXELS == 1000


def test_a_picture_too_large_to_be_read_whole_is_refused_with_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.storage.image_files.MAX_PICTURE_BYTES", 1000)
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / "mosaic.png")
    with pytest.raises(ImageError, match=r"50 x 40 px.*mosaic\.png.*tiled TIFF.*OME-Zarr"):
        read_picture(tmp_path / "mosaic.png")


def test_exif_orientation_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    exif = Image.Exif()
    exif[0x112] = 6
    Image.fromarray(np.zeros((40, 50), np.uint8)).save(tmp_path / "leaf.jpg", exif=exif)
    # napari's reader shows the stored frame too.
    assert open_image(tmp_path / "leaf.jpg").shape_yx == (40, 50)
    assert "rotated by 90 degrees (EXIF orientation 6)" in caplog.text


def test_a_large_array_file_is_mapped(tmp_path: Path) -> None:
    np.save(tmp_path / "big.npy", np.zeros((40, 50), np.uint8))
    assert isinstance(open_image(tmp_path / "big.npy").stored_levels[0].data, np.memmap)


def test_transparent_pixels_are_missing(tmp_path: Path) -> None:
    rgba = np.full((64, 64, 4), (200, 20, 20, 255), np.uint8)
    rgba[:, :16] = 0
    Image.fromarray(rgba).save(tmp_path / "map.png")
    image = open_image(tmp_path / "map.png")
    assert image.contrast_limits[0] == (0, 255)
    assert not image.present(Box(0, 0, 64, 16)).any()
    assert image.present(Box(0, 16, 64, 64)).all()
    assert image.read(Tile(0, 0, 0, 64))[5, 20].tolist() == [200, 20, 20]


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (NotImplementedError("no such thing"), "cannot be decoded here: save it"),
        (ModuleNotFoundError("No module named 'compression'"), "cannot be decoded here: save it"),
        (PermissionError("denied"), "permissions"),
        (RuntimeError("odd"), "may be damaged"),
        (struct.error("odd"), "may be damaged"),
    ],
)
def test_every_error_of_a_decoder_is_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, advice: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    Image.fromarray(np.zeros((4, 5), np.uint8)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.Image.open", fail)
    with pytest.raises(ImageError, match=rf"a\.png cannot be read.*{advice}"):
        open_image(tmp_path / "a.png")


def test_a_missing_codec_is_told_with_its_package(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    error = ValueError("<COMPRESSION.LERC: 34887> requires the 'imagecodecs' package")
    message = str(unreadable(tmp_path / "a.tif", error))
    assert "pip install imagecodecs" in message
    assert "damaged" not in message


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


def test_a_large_picture_of_hardly_any_bytes_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(np.zeros((900, 900), np.uint8)).save(path)
    assert open_image(path).shape_yx == (900, 900)
    monkeypatch.setattr("napari_hrsam.storage.image_files.AMPLE_BYTES", 100_000)
    with pytest.raises(
        ImageError, match=r"or 200 times the size of the file, got 0 MiB from .*a.png"
    ):
        open_image(path)
    noise = np.random.default_rng(0).integers(0, 256, (900, 900), np.uint8)
    Image.fromarray(noise).save(path)
    assert open_image(path).shape_yx == (900, 900)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_a_file_for_which_there_is_no_memory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    def full(*_: Any, **__: Any) -> Any:
        raise MemoryError

    path = tmp_path / f"a.{suffix}"
    Image.fromarray(np.zeros((90, 90), np.uint8)).save(path)
    monkeypatch.setattr("napari_hrsam.storage.image_files._pixels", full)
    monkeypatch.setattr("napari_hrsam.storage.tiff_files._find", full)
    with pytest.raises(ImageError, match="expected an image that fits into memory"):
        open_image(path)
