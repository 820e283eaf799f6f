from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import zoom

from napari_hrsam.errors import ImageError, PromptError
from napari_hrsam.geometry import Tile, TileGrid
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.images.tile_source import ArrayImage

FILL = (1, 2, 3)
RNG = np.random.default_rng(0)
RGB = RNG.integers(0, 256, (70, 90, 3), np.uint8)


def whole(image: ArrayImage, size: int = 128, level: int = 0) -> NDArray[np.uint8]:
    return image.read(Tile(level, 0, 0, size), FILL)


def test_uint8_rgb_is_shown_as_it_is_and_filled_outside() -> None:
    pixels = whole(open_image(RGB))
    assert (pixels[:70, :90] == RGB).all()
    assert (pixels[70:] == FILL).all()
    assert (pixels[:, 90:] == FILL).all()


def test_alpha_is_not_shown() -> None:
    rgba = np.concatenate([RGB, RNG.integers(0, 256, (70, 90, 1), np.uint8)], axis=2)
    assert (whole(ArrayImage(rgba)) == whole(ArrayImage(RGB))).all()


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "i1", "<u2", ">u2", "i2", ">i4", "u4", "i8", "f2", "f4", ">f8", "g"]
)
def test_any_bool_integer_or_float_dtype_runs_from_black_to_white(dtype: str) -> None:
    grey = np.linspace(0, 1, 64 * 64).reshape(64, 64)
    array = (grey > 0.5) if dtype == "?" else (grey * 100).astype(dtype)
    pixels = whole(ArrayImage(array), 64)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (64, 64, 3)
    assert (pixels.min(), pixels.max()) == (0, 255)
    assert (pixels[..., 0] == pixels[..., 2]).all()
    expected = 255 * (array.astype(float) if dtype == "?" else grey)
    assert np.abs(pixels[..., 0] - expected).max() < 4


@pytest.mark.parametrize("offset", [0, 2**40])
def test_byte_order_and_large_offsets_make_no_difference(offset: int) -> None:
    array = RNG.integers(0, 1000, (40, 50)) + offset
    native = whole(ArrayImage(array.astype("<i8")), 64)
    assert (native == whole(ArrayImage(array.astype(">i8")), 64)).all()
    assert (native == whole(ArrayImage((array - offset).astype("<u2")), 64)).all()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(1, 3), st.integers(0, 1000))
def test_coarse_levels_are_exact_area_means(height: int, width: int, level: int, seed: int) -> None:
    array = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    image, factor = ArrayImage(array), 2**level
    for tile in TileGrid((height, width), 8, level):
        pixels = image.read(tile, FILL)
        for row in range(8):
            for column in range(8):
                y0, x0 = (tile.y0 + row) * factor, (tile.x0 + column) * factor
                block = array[y0 : y0 + factor, x0 : x0 + factor]
                expected = block.mean(axis=(0, 1)) if block.size else FILL
                assert np.abs(pixels[row, column] - expected).max() <= 0.5 + 1e-4


def test_strips_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    image = ArrayImage(RGB)
    once = whole(image, 32, level=2)
    monkeypatch.setattr("napari_hrsam.storage.images.tile_source.STRIP_PIXELS", 500)
    assert (whole(image, 32, level=2) == once).all()


@pytest.mark.parametrize("level", [-1, -2])
def test_enlarged_levels_are_bilinear_across_tile_borders(level: int) -> None:
    factor = 2**-level
    image = ArrayImage(RGB)
    expected = zoom(RGB.astype(float), (factor, factor, 1), order=1, mode="nearest", grid_mode=True)
    for tile in TileGrid((70, 90), 64, level):
        pixels = image.read(tile, FILL)
        part = expected[tile.y0 : tile.y0 + 64, tile.x0 : tile.x0 + 64]
        assert np.abs(pixels[: part.shape[0], : part.shape[1]] - part).max() <= 0.51
        assert (pixels[part.shape[0] :] == FILL).all()
        assert (pixels[:, part.shape[1] :] == FILL).all()


def test_limits_belong_to_the_image_and_not_to_the_tile() -> None:
    array = np.zeros((64, 128))
    array[:, 64:] = 1000
    array[:, :64] += RNG.random((64, 64))
    left = ArrayImage(array).read(Tile(0, 0, 0, 64))
    assert left.max() == 0


def test_the_sample_for_the_limits_reaches_the_whole_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_hrsam.storage.images.limits.MAX_SAMPLE", 1000)
    ramp = np.linspace(5, 6, 200 * 300).reshape(200, 300)
    assert ArrayImage(ramp).contrast_limits[0] == pytest.approx((5, 6), abs=0.05)


def test_a_few_bright_pixels_on_a_flat_ground_are_seen() -> None:
    array = np.zeros((200, 300), np.uint16)
    array[7, 11] = 900
    pixels = ArrayImage(array).read(Tile(0, 0, 0, 16))
    assert pixels[7, 11].tolist() == [255] * 3
    assert pixels.sum() == 3 * 255


def test_given_limits_are_used() -> None:
    array = np.array([[0, 10, 20, 30, 40]], np.uint8)
    pixels = ArrayImage(array, contrast_limits=(10, 30)).read(Tile(0, 0, 0, 8), FILL)
    assert pixels[0, :5, 0].tolist() == [0, 0, 128, 255, 255]


@pytest.mark.parametrize("value", [0, 7, -3.5, 1e30])
def test_a_constant_image_works(value: float) -> None:
    pixels = whole(ArrayImage(np.full((5, 6), value)), 8)
    assert (pixels[:5, :6] == 0).all()


@pytest.mark.parametrize("shape", [(1, 1), (1, 50), (50, 1)])
@pytest.mark.parametrize("level", [-2, -1, 0, 1, 3])
def test_one_pixel_high_or_wide_images_work(shape: tuple[int, int], level: int) -> None:
    pixels = ArrayImage(RNG.random(shape)).read(Tile(level, 0, 0, 64), FILL)
    assert (pixels[0, 0] != FILL).any()
    assert (pixels[-1, -1] == FILL).all()


def test_nan_and_infinity_are_shown_as_the_lower_limit() -> None:
    array = np.linspace(0, 100, 10_000).reshape(100, 100)
    limits = ArrayImage(array).contrast_limits[0]
    array[50] = np.nan
    array[60] = np.inf
    array[70] = -np.inf
    image = ArrayImage(array)
    assert image.contrast_limits[0] == pytest.approx(limits, abs=0.2)
    assert (whole(image)[[50, 60, 70], :100] == 0).all()
    assert whole(image, 64, level=1)[25, 10, 0] == pytest.approx(255 * 0.51 / 2, abs=3)


def test_an_image_without_finite_pixels_is_refused() -> None:
    with pytest.raises(ImageError, match="at least one finite pixel, got only NaN or infinity"):
        ArrayImage(np.full((4, 4), np.nan))


@pytest.mark.parametrize("dtype", ["c8", "O", "U3", "M8[s]"])
def test_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(ImageError, match="expected bool, integer or float pixels, got dtype"):
        ArrayImage(np.zeros((4, 4), dtype))


def test_other_things_than_arrays_are_refused() -> None:
    with pytest.raises(ImageError, match=r"got builtins.list; convert it with numpy.asarray"):
        ArrayImage([[1, 2], [3, 4]])  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0), (0, 5, 3)])
def test_empty_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match="at least 1 x 1 pixels"):
        ArrayImage(np.zeros(shape))


@pytest.mark.parametrize("shape", [(4, 5, 6), (5, 5, 2), (2, 5, 5, 3)])
def test_stacks_are_refused_with_a_way_out(shape: tuple[int, ...]) -> None:
    with pytest.raises(ImageError, match=r"take a 2-D slice of a stack, e.g. image\[t\]"):
        ArrayImage(np.zeros(shape))


def test_a_row_of_numbers_is_refused() -> None:
    with pytest.raises(ImageError, match=r"expected an array of shape \(H, W\).*got \(5,\)"):
        ArrayImage(np.zeros(5))


def test_rgb_may_be_forced_or_forbidden() -> None:
    with pytest.raises(ImageError, match=r"\(..., H, W, 3 or 4\), got \(5, 6\) with rgb=True"):
        ArrayImage(np.zeros((5, 6)), rgb=True)
    with pytest.raises(ImageError, match="name the axis of separate channels"):
        ArrayImage(RGB, rgb=False)
    with pytest.raises(ImageError, match="either rgb=True or channel_axis, got both"):
        ArrayImage(RGB, rgb=True, channel_axis=2)


def stack(num: int) -> NDArray[np.uint16]:
    """(num, 20, 30) with channel c running from 0 to 100 (c + 1) along a direction of its own."""
    y, x = np.mgrid[:20, :30]
    return np.stack([(np.sin(y + c * x) + 1) * 50 * (c + 1) for c in range(num)]).astype(np.uint16)


def test_three_channels_need_a_mapping() -> None:
    with pytest.raises(
        ImageError, match=r'mapping of the 3 channels.*channels=\{"red": 0'
    ) as caught:
        ArrayImage(stack(3), channel_axis=0)
    assert "channels=[0] for one" in str(caught.value)


@pytest.mark.parametrize(
    ("channels", "shown"),
    [
        ({"red": 3, "green": 0, "blue": 1}, (3, 0, 1)),
        ({"green": 2}, (None, 2, None)),
        ([2, None, 0], (2, None, 0)),
        ([1, 0], (1, 0, None)),
        ([2], (2, 2, 2)),
    ],
)
def test_channels_are_shown_as_asked_each_with_its_own_limits(
    channels: Any, shown: tuple[int | None, ...]
) -> None:
    array = stack(4)
    pixels = whole(ArrayImage(array, channel_axis=0, channels=channels), 32)
    for colour, channel in enumerate(shown):
        if channel is None:
            assert (pixels[:20, :30, colour] == 0).all()
        else:
            alone = whole(ArrayImage(array[channel]), 32)
            assert (pixels[..., colour] == alone[..., 0])[:20, :30].all()


def test_one_channel_is_grey_and_two_are_red_and_green() -> None:
    array = np.moveaxis(stack(2), 0, -1)
    assert (whole(ArrayImage(array[..., :1], channel_axis=-1))[..., 2] > 3).any()
    both = whole(ArrayImage(array, channel_axis=-1), 32)[:20, :30]
    assert both[..., 0].max() == both[..., 1].max() == 255
    assert (both[..., 2] == 0).all()


def test_each_channel_may_have_given_limits() -> None:
    image = ArrayImage(
        stack(3), channel_axis=0, channels=[2, None, 0], contrast_limits=[(0, 300), (0, 50)]
    )
    assert image.contrast_limits == ((0, 300), (0, 1), (0, 50))


@pytest.mark.parametrize("channels", [{"cyan": 0}, {"red": 4}, [], [None], [0, 1, 2, 3], [-1]])
def test_wrong_mappings_are_refused(channels: Any) -> None:
    with pytest.raises(ImageError, match=r"up to three of 0..3 for red, green and blue, got"):
        ArrayImage(stack(4), channel_axis=0, channels=channels)


def test_a_wrong_channel_axis_is_refused() -> None:
    with pytest.raises(ImageError, match=r"channel_axis in -3..2, got shape \(5, 6\)"):
        ArrayImage(np.zeros((5, 6)), channel_axis=0)
    with pytest.raises(ImageError, match="channel_axis=3; name the axis"):
        ArrayImage(stack(3), channel_axis=3)
    with pytest.raises(ImageError, match="say which axis holds the channels"):
        ArrayImage(stack(3), channels=[0])


@pytest.mark.parametrize("limits", [(5, 5), (9, 2), (0, np.nan), (1, 2, 3), "ab", [(0, 1), (0, 1)]])
def test_wrong_limits_are_refused(limits: Any) -> None:
    with pytest.raises(ImageError, match=r"contrast_limits as \(low, high\) with low < high"):
        ArrayImage(np.zeros((5, 6)), contrast_limits=limits)


def test_the_array_is_never_changed() -> None:
    array = RNG.random((50, 60))
    array[3, 4] = np.nan
    before = array.copy()
    array.flags.writeable = False
    image = ArrayImage(array)
    for level in (-1, 0, 2):
        whole(image, 64, level)
    np.testing.assert_array_equal(array, before)


def test_a_file_of_any_size_is_read_in_little_memory(tmp_path: Path) -> None:
    array = np.memmap(tmp_path / "big.raw", np.uint16, "w+", shape=(8192, 8192))
    tracemalloc.start()
    image = ArrayImage(array)
    image.read(Tile(0, 4096, 4096, 512))
    image.read(Tile(4, 0, 0, 512))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80 * 2**20 < array.nbytes


def test_a_plane_is_refused() -> None:
    with pytest.raises(PromptError, match=r"expected plane=\(\) for a 2-D image, got \(3,\)"):
        ArrayImage(RGB).read(Tile(0, 0, 0, 64, (3,)))


def test_levels_go_down_to_one_pixel() -> None:
    assert ArrayImage(np.zeros((1, 1))).num_levels == 1
    assert ArrayImage(np.zeros((3, 1024))).num_levels == 11
    assert ArrayImage(np.zeros((3, 1025))).num_levels == 12
