"""napari's Image layers as images."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest
import zarr
from napari.layers import Image, Labels
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.images.fingerprint import identify
from napari_hrsam.storage.images.layers import is_image_layer, share_grid, take_layers, take_shown
from napari_hrsam.storage.images.opening import open_image

RNG = np.random.default_rng(0)


def ramp(dtype: Any = np.uint16) -> NDArray[Any]:
    """(96, 128): values 0..255 along x, twice as bright in the lower half."""
    rows = np.where(np.arange(96) < 48, 1, 2)[:, None]
    return (rows * np.arange(128)[None]).astype(dtype)


def seen(image: Any, level: int = 0, plane: tuple[int, ...] = ()) -> NDArray[np.uint8]:
    pixels: NDArray[np.uint8] = image.read(Tile(level, 0, 0, 64, plane))
    return pixels


def test_only_image_layers_are_taken_for_image_layers() -> None:
    assert is_image_layer(Image(np.zeros((8, 8))))
    for other in (Labels(np.zeros((8, 8), int)), np.zeros((8, 8)), [np.zeros((8, 8))], "path"):
        assert not is_image_layer(other)


@pytest.mark.parametrize(
    "dtype", [bool, np.uint8, np.int16, np.uint16, np.uint32, np.float32, ">f8"]
)
def test_a_layer_is_shown_between_its_own_limits(dtype: Any) -> None:
    data = ramp().astype(dtype)
    limits = (0, 1) if dtype is bool else (10, 90)
    image = open_image(Image(data, contrast_limits=limits))
    low, high = limits
    expected = np.clip((data[:64, :64].astype(float) - low) / (high - low), 0, 1) * 255
    np.testing.assert_allclose(seen(image)[..., 0], expected, atol=1)


def test_limits_are_those_at_the_moment_it_is_opened() -> None:
    layer = Image(ramp(), contrast_limits=(0, 100))
    image = open_image(layer)
    before = seen(image)
    layer.contrast_limits = (0, 10)
    np.testing.assert_array_equal(seen(image), before)
    assert image.contrast_limits[0] == (0.0, 100.0)


def test_own_limits_can_be_given() -> None:
    image = open_image(Image(ramp(), contrast_limits=(0, 100)), contrast_limits=(5, 6))
    assert image.contrast_limits[0] == (5.0, 6.0)


@pytest.mark.parametrize("kind", ["numpy", "zarr", "dask"])
def test_levels_of_a_multiscale_layer_are_used(kind: str, tmp_path: Any) -> None:
    levels: list[Any] = [ramp(), ramp()[::2, ::2] + 1000]
    if kind == "zarr":
        levels = [
            zarr.create_array(tmp_path / str(k), data=level, chunks=(32, 32))
            for k, level in enumerate(levels)
        ]
    elif kind == "dask":
        levels = [da.from_array(level, chunks=32) for level in levels]
    image = open_image(Image(levels, multiscale=True, contrast_limits=(0, 2000)))
    assert image.level_shapes == [(96, 128), (48, 64)]
    assert seen(image, 1)[0, 0, 0] == pytest.approx(255 / 2, abs=1), "the stored level is read"


def test_rgb_and_its_level_1_of_a_stack() -> None:
    data = RNG.integers(0, 255, (5, 96, 128, 3), np.uint8)
    layer = Image(data, rgb=True)
    assert layer.ndim == 3
    image = open_image(layer)
    assert image.plane_shape == (5,)
    np.testing.assert_array_equal(seen(image, plane=(3,)), data[3, :64, :64])


def test_an_rgb_layer_is_shown_between_its_limits_and_with_its_gamma() -> None:
    data = RNG.integers(20, 90, (96, 128, 3), np.uint8)
    layer = Image(data, rgb=True)
    np.testing.assert_array_equal(seen(open_image(layer)), data[:64, :64])
    layer.contrast_limits, layer.gamma = (30, 60), 0.5
    expected = np.clip((data[:64, :64] - 30.0) / 30, 0, 1) ** 0.5 * 255
    np.testing.assert_allclose(seen(open_image(layer)), expected, atol=1)


def test_the_last_axis_of_a_layer_without_colours_holds_none() -> None:
    image = open_image(Image(np.zeros((7, 64, 3)), rgb=False, contrast_limits=(0, 1)))
    assert image.plane_shape == (7,)
    assert image.shape_yx == (64, 3)


def test_layers_are_channels_in_the_order_given() -> None:
    one, two, three = (Image(ramp() * k, contrast_limits=(0, 600)) for k in (1, 2, 3))
    image = open_image([one, two])
    pixels = seen(image)
    np.testing.assert_allclose(pixels[..., 1], 2.0 * pixels[..., 0], atol=1.5)
    assert not pixels[..., 2].any()
    mapped = seen(open_image([one, two, three], channels={"blue": 0, "red": 2}))
    np.testing.assert_array_equal(mapped[..., 2], pixels[..., 0])
    assert not mapped[..., 1].any()
    assert mapped[60, 60, 0] == pytest.approx(3 * int(mapped[60, 60, 2]), abs=2)


def test_colormaps_tell_the_colours() -> None:
    layers = [
        Image(ramp(), contrast_limits=(0, 255), colormap=name) for name in ("blue", "red", "green")
    ]
    layers[0].contrast_limits = (0, 2000)
    pixels = seen(open_image(layers))
    assert pixels[60, 60, 2] < pixels[60, 60, 0] == pixels[60, 60, 1]


def test_each_layer_keeps_its_limits_and_its_planes() -> None:
    stack = np.stack([ramp() * 0, ramp(), ramp() * 0])
    layers = [
        Image([stack * k, stack[:, ::2, ::2] * k], multiscale=True, contrast_limits=(0, 255 * k))
        for k in (1, 3)
    ]
    image = open_image(layers)
    assert image.plane_shape == (3,)
    pixels = seen(image, plane=(1,))
    np.testing.assert_allclose(pixels[..., 0], pixels[..., 1], atol=1)
    assert pixels.any()
    assert not seen(image, plane=(2,)).any()


def test_a_single_layer_may_hold_channels_in_an_axis() -> None:
    data = np.stack([ramp(), ramp() * 2, ramp() * 3])
    layer = Image(data, contrast_limits=(0, 600))
    image = open_image(layer, channel_axis=0, channels=[2, None, 0])
    assert image.plane_shape == ()
    pixels = seen(image)
    np.testing.assert_allclose(pixels[..., 0], 3.0 * pixels[..., 2], atol=2)


def test_layers_apart_are_told() -> None:
    first = Image(np.ones((32, 32)), name="first")
    others = {
        "shape": Image(np.ones((32, 33)), name="second"),
        "place": Image(np.ones((32, 32)), name="second", translate=(1, 0)),
        "scale": Image(np.ones((32, 32)), name="second", scale=(1, 2)),
        "units": Image(np.ones((32, 32)), name="second", units=("um", "um")),
    }
    for other in others.values():
        assert not share_grid(first, other)
        with pytest.raises(ImageError, match=r"one pixel grid.*'first'.*'second'"):
            open_image([first, other])
    rgb = Image(np.ones((32, 32, 3)), rgb=True, name="colours")
    with pytest.raises(ImageError, match="got the RGB layer 'colours'"):
        open_image([first, rgb])


def test_arguments_that_contradict_the_layer_are_told() -> None:
    grey = Image(np.ones((32, 32)), name="grey")
    with pytest.raises(ImageError, match="rgb=False as the layer 'grey' says"):
        open_image(grey, rgb=True)
    with pytest.raises(ImageError, match="every layer is one channel"):
        open_image([grey, Image(np.ones((32, 32)))], channel_axis=0)
    with pytest.raises(ImageError, match="four|mapping of the 3 channels"):
        open_image([Image(np.ones((32, 32)), colormap="gray") for _ in range(3)])


def test_taking_down_a_layer_reads_no_pixel() -> None:
    class Untouchable:
        shape, dtype, ndim, size = (64, 64), np.dtype(np.uint8), 2, 64 * 64

        def __init__(self) -> None:
            self.is_shut = False

        def __getitem__(self, index: Any) -> NDArray[np.uint8]:
            assert not self.is_shut
            return np.zeros(self.shape, np.uint8)[index]

        def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[np.uint8]:
            return np.asarray(self[:], dtype)

    data = Untouchable()
    layers = [Image(data, contrast_limits=(0, 1), name=name) for name in "ab"]
    data.is_shut = True
    for what in (layers[0], layers):
        held = take_layers(what)
        assert held.shape_yx == (64, 64)
        assert held.plane_shape == ()
        assert not held.is_in_memory


def test_an_image_of_nan_is_told_also_where_the_layer_has_limits() -> None:
    layer = Image(np.full((64, 64), np.nan), contrast_limits=(0, 1))
    with pytest.raises(ImageError, match="finite pixel"):
        open_image(layer)


def test_the_plain_image_does_not_depend_on_what_is_shown() -> None:
    def plain(limits: tuple[float, float], *more: Image) -> NDArray[np.uint8]:
        layer = Image(ramp(np.float32) / 255, contrast_limits=limits)
        return seen(take_layers([layer, *more]).plain())

    np.testing.assert_array_equal(plain((0, 1)), plain((0, 100)))
    np.testing.assert_array_equal(plain((0, 1)), plain((0, 5), Image(ramp(np.float32))))
    assert plain((0, 1)).any()


def additive(data: NDArray[Any], colormap: str, **options: Any) -> Image:
    return Image(data, contrast_limits=(0, 255), colormap=colormap, blending="additive", **options)


def shown(layer: Image, layers: list[Any]) -> NDArray[np.float64]:
    """What the model sees, 0..1."""
    return seen(take_shown(layer, layers).open()) / 255.0


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_gamma_counts(dtype: Any) -> None:
    layer = Image(ramp().astype(dtype), contrast_limits=(10, 200), gamma=0.5)
    expected = np.clip((ramp()[:64, :64] - 10.0) / 190, 0, 1) ** 0.5 * 255
    np.testing.assert_allclose(seen(open_image(layer))[..., 2], expected, atol=1)
    data = np.stack([ramp(), ramp() * 0]).astype(dtype)
    both = open_image(
        Image(data, contrast_limits=(10, 200), gamma=0.5), channel_axis=0, channels=[1, 0]
    )
    np.testing.assert_allclose(seen(both)[..., 1], expected, atol=1)
    assert not seen(both)[..., 0].any()


@pytest.mark.parametrize("name", ["magenta", "viridis", "gray_r", "red"])
def test_a_colormap_counts(name: str) -> None:
    layer = Image(ramp(), contrast_limits=(0, 255), colormap=name)
    expected = layer.colormap.map(ramp()[:64, :64] / 255.0)[..., :3]
    for image in (open_image(layer), take_shown(layer, [layer]).open()):
        np.testing.assert_allclose(seen(image) / 255, expected, atol=1.5 / 255)


def test_additive_channels_are_seen_together() -> None:
    one, two = ramp(), ramp()[::-1, ::-1].copy()
    magenta, green = additive(one, "magenta"), additive(two, "green")
    expected = np.stack([one, two, one], axis=-1)[:64, :64] / 255.0
    for layer in (magenta, green):
        np.testing.assert_allclose(shown(layer, [magenta, green]), expected, atol=1 / 255)
    np.testing.assert_allclose(seen(open_image([magenta, green])) / 255, expected, atol=1 / 255)
    green.visible = False
    np.testing.assert_allclose(shown(magenta, [magenta, green]), expected * (1, 0, 1), atol=1 / 255)
    np.testing.assert_allclose(
        seen(open_image([magenta, green])) / 255, expected * (1, 0, 1), atol=1 / 255
    )
    green.visible, magenta.visible = True, False
    np.testing.assert_allclose(shown(magenta, [magenta, green]), expected * (0, 1, 0), atol=1 / 255)


def test_blending_and_opacity_are_napari_s() -> None:
    low = additive(np.full((64, 64), 100, np.uint8), "red", opacity=0.5)
    top = additive(np.full((64, 64), 51, np.uint8), "gray")
    red, grey = 100 / 255 * 0.5, 0.2
    for blending, opacity, expected in (
        ("additive", 1.0, (red + grey, grey, grey)),
        ("translucent", 0.25, (0.75 * red + 0.25 * grey, 0.25 * grey, 0.25 * grey)),
        ("minimum", 1.0, (min(red, grey), 0, 0)),
        ("multiplicative", 1.0, (red * grey, 0, 0)),
        ("translucent_no_depth", 1.0, (red, 0, 0)),  # another image over this one
        ("opaque", 1.0, (red, 0, 0)),
    ):
        top.blending, top.opacity = blending, opacity
        np.testing.assert_allclose(shown(low, [low, top])[5, 5], expected, atol=1 / 255)
    np.testing.assert_allclose(shown(top, [low, top])[5, 5], (grey,) * 3, atol=1 / 255)


def test_only_layers_on_its_grid_are_seen_with_a_layer() -> None:
    layer = additive(ramp(), "gray")
    alone = shown(layer, [layer])
    others = [
        additive(ramp(), "gray", translate=(1, 0)),
        additive(ramp()[:64], "gray"),
        Image(np.full((96, 128, 3), 9, np.uint8), rgb=True, blending="additive"),
        Labels(np.ones((96, 128), int)),
        additive(ramp(), "gray", visible=False),
        additive(ramp(), "gray", opacity=0),
    ]
    np.testing.assert_array_equal(shown(layer, [*others[:3], layer, *others[3:]]), alone)


def test_what_is_kept_is_found_by_what_the_model_is_shown() -> None:
    one, two = additive(ramp(), "gray"), additive(ramp(), "green")

    def key(*layers: Image) -> str:
        return identify(take_shown(one, layers).open()).digest

    keys = [key(one), key(one, two)]
    assert keys[0] == identify(open_image(ramp(), contrast_limits=(0, 255))).digest
    one.colormap = "red"
    keys += [key(one), key(one, two)]
    both = open_image(np.stack([ramp(), ramp()]), channel_axis=0, contrast_limits=(0, 255))
    assert keys[-1] == identify(both).digest, "red and green, as a file is opened"
    one.gamma = 0.5
    keys += [key(one), key(one, two)]
    one.colormap = "magenta"
    keys += [key(one), key(one, two), key(two, one)]
    two.opacity = 0.5
    keys.append(key(one, two))
    assert len(set(keys)) == len(keys)


def test_a_picture_is_the_same_until_it_is_shown_otherwise() -> None:
    one, two = additive(ramp(), "gray"), additive(ramp(), "green")
    before = take_shown(one, [one, two])
    assert before.is_same_picture(take_shown(one, [one, two]))
    assert before.plain().read(Tile(0, 0, 0, 64)).any()
    for change in ({"gamma": 0.5}, {"visible": False}, {"colormap": "red"}, {"data": ramp() + 1}):
        for name, value in change.items():
            kept = getattr(two, name)
            setattr(two, name, value)
            now = take_shown(one, [one, two])
            assert not before.is_same_picture(now), change
            assert identify(now.plain()) == identify(before.plain())
            setattr(two, name, kept)
    two.contrast_limits = (0, 99)
    assert not before.is_same_picture(take_shown(one, [one, two]))
