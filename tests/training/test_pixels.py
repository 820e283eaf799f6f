"""Image and mask files of every kind become the same arrays, or are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.errors import DataError
from napari_hrsam.training.pixels import Blob, decode_image, decode_labels, image_shape_yx

SMALL = np.arange(12, dtype=np.uint8).reshape(3, 4)


def save(path: Path, array: NDArray[Any]) -> Blob:
    if path.suffix == ".npy":
        np.save(path, array)
    else:
        Image.fromarray(array).save(path)
    return Blob(path, path.name)


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("m.png", SMALL),
        ("m.png", SMALL.astype(np.uint16) * 5000),
        ("m.tif", SMALL.astype(np.uint16)),
        ("m.tif", SMALL.astype(np.int32) * 1_000_000),
        ("m.png", SMALL > 5),
        ("m.npy", SMALL > 5),
        ("m.npy", SMALL.astype(np.uint32) * 100_000_000),
        ("m.npy", SMALL.astype(">i4")),
    ],
)
def test_masks_of_1_8_16_and_32_bits_keep_their_values(
    name: str, array: NDArray[Any], tmp_path: Path
) -> None:
    labels = decode_labels(save(tmp_path / name, array))
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, array)


def test_an_8_bit_binary_mask_is_one_object_per_value(tmp_path: Path) -> None:
    mask = np.where(SMALL > 5, 255, 0).astype(np.uint8)
    assert set(np.unique(decode_labels(save(tmp_path / "m.png", mask)))) == {0, 255}


def test_the_indices_of_a_palette_mask_count(tmp_path: Path) -> None:
    image = Image.fromarray(SMALL % 3).convert("P")
    image.putdata((SMALL % 3).ravel().tolist())
    image.putpalette([9, 9, 9, 250, 1, 1, 3, 200, 7])
    image.save(tmp_path / "m.png")
    np.testing.assert_array_equal(decode_labels(Blob(tmp_path / "m.png", "m.png")), SMALL % 3)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("m.png", np.zeros((3, 4, 3), np.uint8), "looks like a colour image"),
        ("m.png", np.zeros((3, 4, 4), np.uint8), "looks like a colour image"),
        ("m.tif", np.zeros((3, 4), np.float32), "holds float32 values; expected whole numbers"),
        ("m.npy", np.full((3, 4), -1), "holds values from -1 to -1"),
        (
            "m.npy",
            np.full((3, 4), 2**31, np.uint32),
            "expected object numbers from 0 to 2147483647",
        ),
    ],
)
def test_masks_that_are_no_instance_masks_are_refused(
    name: str, array: NDArray[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        decode_labels(save(tmp_path / name, array))


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (SMALL, SMALL),
        (SMALL > 5, np.where(SMALL > 5, 255, 0)),
        (np.dstack([SMALL] * 3), np.dstack([SMALL] * 3)),
        (np.dstack([SMALL] * 3 + [SMALL + 9]), np.dstack([SMALL] * 3)),
        (SMALL.astype(np.uint16) * 500 + 70, np.rint(SMALL * (255 / 11))),
        (np.full((3, 4), 900, np.uint16), np.zeros((3, 4))),
    ],
)
def test_images_become_8_bit_grey_or_rgb(
    array: NDArray[Any], expected: NDArray[Any], tmp_path: Path
) -> None:
    image = decode_image(save(tmp_path / "i.png", array))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, expected)


@pytest.mark.parametrize("name", ["m.jpg", "m.tif", "renamed.png"])
def test_masks_compressed_with_loss_are_refused(name: str, tmp_path: Path) -> None:
    mask = Image.fromarray(np.eye(64, dtype=np.uint8) * 255)
    if name.endswith("tif"):
        mask.save(tmp_path / name, compression="jpeg")
    else:
        mask.save(tmp_path / name, format="JPEG")
    with pytest.raises(DataError, match=rf"{name} is compressed with loss.*save the mask anew"):
        decode_labels(Blob(tmp_path / name, name))


def test_palette_images_are_read_by_colour(tmp_path: Path) -> None:
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[:2] = (255, 0, 0)
    Image.fromarray(colours).convert("P").save(tmp_path / "i.png")
    blob = Blob(tmp_path / "i.png", "i.png")
    np.testing.assert_array_equal(decode_image(blob), colours)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.full((3, 4), np.nan), "NaN or infinite"),
        (np.zeros((3, 4), complex), "holds complex128 values"),
        (np.zeros((2, 3, 5)), r"must be \(H, W\) grey or \(H, W, 3\) RGB, got shape \(2, 3, 5\)"),
        (np.zeros((0, 4)), "got shape"),
    ],
)
def test_arrays_that_are_no_images_are_refused(
    array: NDArray[Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        decode_image(save(tmp_path / "i.npy", array))


@pytest.mark.parametrize("name", ["i.png", "i.jpg", "i.tif", "i.npy"])
@pytest.mark.parametrize("kept", [0, 0.1, 0.7])
def test_unreadable_files_are_refused(name: str, kept: float, tmp_path: Path) -> None:
    path = tmp_path / name
    save(path, np.random.default_rng(0).integers(0, 255, (64, 64), np.uint8))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(DataError, match=rf"{name} (cannot be read|is not a readable)"):
        decode_image(Blob(path, name))


def test_objects_are_never_unpickled(tmp_path: Path) -> None:
    np.save(tmp_path / "i.npy", np.array([{}]), allow_pickle=True)
    with pytest.raises(DataError, match="not a readable .npy"):
        decode_image(Blob(tmp_path / "i.npy", "i.npy"))


@pytest.mark.parametrize("name", ["i.png", "i.npy"])
def test_the_shape_is_height_then_width(name: str, tmp_path: Path) -> None:
    assert image_shape_yx(save(tmp_path / name, SMALL)) == (3, 4)
