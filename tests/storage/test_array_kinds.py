"""Arrays of other libraries, and arrays that lack pixels."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
from napari.layers import Image
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError, ImageReadError
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.storage.layers import take_layers
from napari_hrsam.storage.opening import open_image

GREY = np.random.default_rng(0).integers(5, 90, (64, 80)).astype(np.int16)
MISSING = np.zeros(GREY.shape, bool)
MISSING[:, :20] = True


class OtherDtype:
    """An array with a dtype that NumPy does not know, as of tensorstore; counts what is read."""

    dtype = object()

    def __init__(self, data: NDArray[Any]) -> None:
        self.data = data
        self.shape = data.shape
        self.num_read = 0

    def __getitem__(self, index: Any) -> NDArray[Any]:
        part = self.data[index]
        self.num_read += part.size
        return part


class Layer:
    """A layer of napari with other data than napari itself would take here."""

    def __init__(self, data: Any) -> None:
        self.data = data
        self._shown = Image(GREY, contrast_limits=(0, 255))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._shown, name)


def of_torch() -> Any:
    import torch

    return torch.from_numpy(GREY.copy())


@pytest.mark.parametrize("make", [of_torch, lambda: OtherDtype(GREY)], ids=["torch", "other"])
def test_arrays_of_another_dtype_are_read(make: Any) -> None:
    array = make()
    expected = open_image(GREY).read(Tile(0, 0, 0, 128))
    np.testing.assert_array_equal(open_image(array).read(Tile(0, 0, 0, 128)), expected)
    assert take_layers(Layer(array)).open().shape_yx == (64, 80)


def test_opening_with_limits_reads_one_pixel_for_the_dtype() -> None:
    array = OtherDtype(GREY)
    open_image(array, contrast_limits=(0, 90))
    assert array.num_read == 1


def test_an_array_that_numpy_cannot_take_is_refused_with_what_to_convert() -> None:
    import torch

    with pytest.raises(ImageError, match=r"torch\.Tensor of dtype torch\.bfloat16.*\.numpy\(\)"):
        open_image(torch.zeros((8, 9), dtype=torch.bfloat16))


def test_a_dask_array_of_unknown_shape_is_refused() -> None:
    rows = da.from_array(np.arange(12.0).reshape(4, 3))
    unknown = rows[rows[:, 0] > 3]
    for opened in (lambda: open_image(unknown), lambda: take_layers(Layer(unknown))):
        with pytest.raises(ImageError, match=r"known shape, got \(nan, 3\).*compute_chunk_sizes"):
            opened()


@pytest.mark.parametrize("kind", ["numpy", "dask", "stack"])
def test_masked_pixels_are_missing(kind: str) -> None:
    values = GREY.copy()
    values[MISSING] = -9999
    masked = np.ma.array(values, mask=MISSING)
    array: Any = masked
    if kind == "dask":
        array = da.ma.masked_equal(da.from_array(values, chunks=(30, 30)), -9999)
    if kind == "stack":
        array = np.ma.stack([masked, masked])
    image = open_image(array)
    plane = (1,) if kind == "stack" else ()
    assert image.contrast_limits[0] == pytest.approx((5, 89), abs=1)
    np.testing.assert_array_equal(image.present(Box(0, 0, 64, 80), plane), ~MISSING)
    pixels = image.read(Tile(0, 0, 0, 128, plane))[:64, :80]
    assert (pixels[:, :20] == 0).all()
    expected = open_image(GREY, contrast_limits=image.contrast_limits[0]).read(Tile(0, 0, 0, 128))
    np.testing.assert_array_equal(pixels[:, 20:], expected[:64, 20:80])


def test_masked_colours_are_shown_as_they_are() -> None:
    rgb = np.random.default_rng(0).integers(0, 255, (64, 80, 3), np.uint8)
    masked = np.ma.array(rgb, mask=np.broadcast_to(MISSING[..., None], rgb.shape))
    image = open_image(masked)
    assert image.contrast_limits[0] == (0, 255)
    np.testing.assert_array_equal(image.read(Tile(0, 0, 0, 128))[:64, 20:80], rgb[:, 20:])
    np.testing.assert_array_equal(image.present(Box(0, 0, 64, 80)), ~MISSING)


def test_what_is_present_is_told_at_every_level() -> None:
    values = GREY.astype(np.float32)
    values[MISSING] = np.nan
    values[40, 41] = np.inf
    image = open_image(values)
    for level in (-1, 0, 1, 2):
        _, present = image.read_present(Tile(level, 0, 0, 256))
        assert present is not None
        factor = 2.0**-level
        assert not present[: int(64 * factor), : int(20 * factor)].any()
        assert present[: int(30 * factor), int(20 * factor) :].all()
    assert not image.present(Box(40, 41, 41, 42)).any()
    assert open_image(GREY).read_present(Tile(0, 0, 0, 64))[1] is None


@pytest.mark.parametrize("shape", [(40, 50, 1), (1, 40, 50, 1), (1, 1, 40, 50)])
def test_axes_of_length_one_do_not_count(shape: tuple[int, ...]) -> None:
    grey = np.random.default_rng(0).integers(0, 255, (40, 50)).astype(np.uint8)
    image = open_image(grey.reshape(shape))
    assert image.shape_yx == (40, 50)
    expected = open_image(grey).read(Tile(0, 0, 0, 64))
    np.testing.assert_array_equal(image.read(Tile(0, 0, 0, 64)), expected)


def test_chunks_of_different_lengths_are_taken_under_the_name_that_zarr_has_for_them() -> None:
    class Uneven:
        shape, dtype, ndim = GREY.shape, GREY.dtype, 2
        read_chunk_sizes = ((16, 48), (50, 30))

        @property
        def chunks(self) -> tuple[int, ...]:
            raise NotImplementedError("only defined for arrays using regular chunk grids")

        def __getitem__(self, index: tuple[slice | int, ...]) -> NDArray[Any]:
            return GREY[index]

    image = open_image(Uneven(), contrast_limits=(5, 90))
    assert image.stored_levels[0].chunk_yx == (48, 50)
    expected = open_image(GREY, contrast_limits=(5, 90))
    assert (image.read(Tile(0, 0, 0, 64)) == expected.read(Tile(0, 0, 0, 64))).all()


def test_arrays_that_are_not_what_they_say_are_told() -> None:
    times = np.zeros((64, 80), "M8[s]")
    with pytest.raises(ImageError, match="got dtype datetime64"):
        open_image(times)
    rows = da.zeros((64, 80), chunks=16, dtype="u2")
    short = rows.map_blocks(lambda block: block[:3], dtype="u2")
    with pytest.raises(ImageReadError, match=r"shape \(12, 80\) in place of \(64, 80\)"):
        open_image(short)


def test_a_path_that_no_file_can_have_is_told() -> None:
    with pytest.raises(ImageError, match="check the path"):
        open_image("a" * 5000)
