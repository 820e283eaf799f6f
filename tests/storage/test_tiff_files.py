"""TIFF files of all kinds: read part by part, and as what their pages say."""

from __future__ import annotations

import gc
import threading
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from napari_hrsam.errors import ImageError, ImageReadError, PromptError
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.storage.opening import open_image
from napari_hrsam.storage.tiff_pages import TiffLevel
from napari_hrsam.storage.tile_source import PyramidImage

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 250, (300, 420), np.uint8)
RGB = RNG.integers(0, 250, (300, 420, 3), np.uint8)
LIMITS = (0, 255)


@pytest.fixture(autouse=True)
def _in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat the small files here as large ones."""
    monkeypatch.setattr("napari_hrsam.storage.tiff_files.MAX_WHOLE_BYTES", 100_000)


def shown(image: PyramidImage, plane: tuple[int, ...] = ()) -> NDArray[np.uint8]:
    height, width = image.shape_yx
    return image.read(Tile(0, 0, 0, 512, plane))[:height, :width]


def is_in_parts(image: PyramidImage) -> bool:
    return all(isinstance(level.data, TiffLevel) for level in image.stored_levels)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", ">u2"])
@pytest.mark.parametrize(
    "layout",
    [
        {"tile": (64, 80)},
        {"tile": (64, 80), "compression": "lzw", "predictor": True},
        {"tile": (64, 80), "compression": "zstd"},
        {"rowsperstrip": 7, "compression": "zlib"},
        {"rowsperstrip": 7},
        {},
    ],
)
def test_any_part_is_as_in_the_whole(tmp_path: Path, layout: dict[str, Any], dtype: str) -> None:
    array = RNG.integers(0, 250, (300, 420)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", array, **layout, byteorder=">" if dtype[0] == ">" else "<")
    image = open_image(tmp_path / "a.tif", contrast_limits=LIMITS)
    assert is_in_parts(image)
    (level,) = image.stored_levels
    for box in (
        Box(0, 0, 300, 420),
        Box(63, 79, 66, 82),
        Box(299, 419, 300, 420),
        Box(5, 0, 20, 9),
    ):
        part = level.read(box, (), (0,))[..., 0]
        assert part.dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(part, array[box.slices])


@pytest.mark.parametrize("planar", ["contig", "separate"])
@pytest.mark.parametrize("layout", [{"tile": (64, 80), "compression": "zlib"}, {}])
def test_colours_of_both_orders_are_shown(
    tmp_path: Path, layout: dict[str, Any], planar: str
) -> None:
    pixels = RGB if planar == "contig" else np.moveaxis(RGB, 2, 0)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="rgb", planarconfig=planar, **layout)
    image = open_image(tmp_path / "a.tif")
    assert is_in_parts(image)
    np.testing.assert_array_equal(shown(image), RGB)


@pytest.mark.parametrize("whole", [True, False])
def test_a_palette_is_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool) -> None:
    if whole:
        monkeypatch.undo()
    table = RNG.integers(0, 256, (256, 3)).astype(np.uint8)
    table16 = table.T.astype(np.uint16) * 257
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="palette", colormap=table16)
    image = open_image(tmp_path / "a.tif")
    assert is_in_parts(image) is not whole
    np.testing.assert_array_equal(shown(image), table[GREY])


def test_inks_are_turned_into_colours(tmp_path: Path) -> None:
    inks = Image.fromarray(RGB).convert("CMYK")
    inks.save(tmp_path / "a.tif")
    np.testing.assert_allclose(
        shown(open_image(tmp_path / "a.tif")).astype(int),
        np.asarray(inks.convert("RGB")).astype(int),
        atol=1,
    )


def test_other_inks_are_refused_but_can_be_named(tmp_path: Path) -> None:
    tags = [(332, 3, 1, 2, True)]
    inks = np.zeros((40, 50, 5), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", inks, photometric="separated", extratags=tags)
    with pytest.raises(ImageError, match=r"four inks.*got 5.*channel_axis"):
        open_image(tmp_path / "a.tif")
    assert open_image(tmp_path / "a.tif", channel_axis=2, channels=[4]).shape_yx == (40, 50)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "uint16", "int16", "float32"])
def test_where_0_is_white_the_picture_is_inverted(tmp_path: Path, dtype: str) -> None:
    array = (GREY > 100).astype(dtype) if dtype == "bool" else GREY.astype(dtype)
    tifffile.imwrite(tmp_path / "white.tif", array, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "black.tif", array, photometric="minisblack")
    white, black = (shown(open_image(tmp_path / f"{name}.tif")) for name in ("white", "black"))
    np.testing.assert_allclose(white.astype(int), 255 - black.astype(int), atol=1)


def test_brightness_and_colour_differences_are_turned_into_colours(tmp_path: Path) -> None:
    smooth = np.asarray(Image.fromarray(RGB[:20, :30]).resize((420, 300)))
    ycc = np.asarray(Image.fromarray(smooth).convert("YCbCr"))
    tags = [(530, 3, 2, (1, 1), True)]
    tifffile.imwrite(
        tmp_path / "a.tif", ycc, photometric="ycbcr", compression="zlib", extratags=tags
    )
    assert np.abs(shown(open_image(tmp_path / "a.tif")).astype(int) - smooth).max() <= 3


def test_lab_colours_are_refused_by_name(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="cielab")
    with pytest.raises(ImageError, match=r"L\*a\*b\*.*save the image as RGB"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize(
    ("dtype", "value"), [("float32", -9999), ("int16", -32768), ("uint8", 255), ("uint8", 0)]
)
def test_no_data_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str, value: int, whole: bool
) -> None:
    if whole:
        monkeypatch.undo()
    array = (GREY % 90 + 5).astype(dtype)
    array[:, :60] = value
    tags = [(42113, 2, 0, f"{value} ", True)]
    tifffile.imwrite(tmp_path / "a.tif", array, extratags=tags, tile=(64, 64))
    image = open_image(tmp_path / "a.tif")
    assert image.contrast_limits[0] == pytest.approx((5, 94), abs=1)
    assert not image.present(Box(0, 0, 300, 60)).any()
    assert image.present(Box(0, 60, 300, 420)).all()
    assert (shown(image)[:, :60] == 0).all()


def test_a_colour_with_one_band_of_no_data_is_there(tmp_path: Path) -> None:
    rgb = np.maximum(RGB, 1)
    rgb[:, :60], rgb[0, 100] = 0, (200, 0, 0)
    tags = [(42113, 2, 0, "0", True)]
    tifffile.imwrite(tmp_path / "a.tif", rgb, extratags=tags, photometric="rgb", tile=(64, 64))
    image = open_image(tmp_path / "a.tif")
    assert image.contrast_limits[0] == LIMITS
    assert image.present(Box(0, 60, 300, 420)).all()
    assert not image.present(Box(0, 0, 300, 60)).any()
    np.testing.assert_array_equal(shown(image), rgb)


def test_no_data_that_no_pixel_can_have_changes_nothing(tmp_path: Path) -> None:
    for text in ("-9999", "nan", "", "none"):
        tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(42113, 2, 0, text, True)])
        image = open_image(tmp_path / "a.tif")
        assert not image.may_lack_pixels
        assert image.stored_levels[0].dtype == np.uint8


def test_transparent_pixels_and_those_of_a_mask_page_are_missing(tmp_path: Path) -> None:
    opaque = np.full((300, 420, 1), 255, np.uint8)
    opaque[:, :60] = 0
    tifffile.imwrite(
        tmp_path / "alpha.tif", np.dstack([RGB, opaque]), photometric="rgb", extrasamples=[2]
    )
    with tifffile.TiffWriter(tmp_path / "mask.tif") as file:
        file.write(RGB, photometric="rgb", tile=(64, 64), metadata=None)
        mask = opaque[..., 0] > 0
        file.write(mask, photometric="mask", subfiletype=4, metadata=None)
    for name in ("alpha", "mask"):
        image = open_image(tmp_path / f"{name}.tif")
        assert not image.present(Box(0, 0, 300, 60)).any(), name
        np.testing.assert_array_equal(shown(image)[:, 60:], RGB[:, 60:])


def test_the_thumbnail_is_not_the_image(tmp_path: Path) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(RGB[::4, ::4].copy(), photometric="rgb", subfiletype=1, metadata=None)
        file.write(RGB, photometric="rgb", metadata=None)
    image = open_image(tmp_path / "a.tif")
    assert image.level_shapes == [(300, 420), (75, 105)]
    np.testing.assert_array_equal(shown(image), RGB)


def test_a_smaller_first_page_is_not_the_image_and_this_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY[:77, :50].copy(), metadata=None)
        file.write(GREY, metadata=None)
    assert open_image(tmp_path / "a.tif").shape_yx == (300, 420)
    assert "holds 2 images; the largest is opened" in caplog.text


def test_a_stack_is_not_given_up_for_a_larger_page(tmp_path: Path) -> None:
    stack = RNG.integers(0, 250, (9, 100, 120), np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(GREY[:150, :200].copy(), metadata=None)
        file.write(stack, metadata=None, photometric="minisblack")
    image = open_image(tmp_path / "a.tif", contrast_limits=LIMITS)
    assert (image.plane_shape, image.shape_yx) == ((9,), (100, 120))
    np.testing.assert_array_equal(shown(image, (7,))[..., 0], stack[7])


@pytest.mark.parametrize("kind", ["ome", "cog"])
def test_a_pyramid_is_read_level_by_level(tmp_path: Path, kind: str) -> None:
    tile = {"tile": (64, 64), "compression": "zlib", "photometric": "rgb"}
    coarse = [RGB[::2, ::2].copy(), RGB[::4, ::4].copy()]
    with tifffile.TiffWriter(tmp_path / "a.tif", ome=kind == "ome") as file:
        if kind == "ome":
            size = {"PhysicalSizeX": 0.25, "PhysicalSizeY": 0.5, "axes": "YXS"}
            file.write(RGB, subifds=2, metadata=size, **tile)
        else:
            file.write(RGB, metadata=None, **tile)
        for level in coarse:
            file.write(level, subfiletype=1, metadata=None, **tile)
    image = open_image(tmp_path / "a.tif")
    assert is_in_parts(image)
    assert image.level_shapes == [(300, 420), (150, 210), (75, 105)]
    np.testing.assert_array_equal(image.read(Tile(1, 0, 0, 256))[:150, :210], coarse[0])
    if kind == "ome":
        assert image.ome is not None
        assert image.ome.scales[0][:2] == (0.5, 0.25)
        assert image.ome.units[:2] == ("micrometer", "micrometer")


def test_a_slide_scanners_file_is_the_baseline_with_its_pixel_size(tmp_path: Path) -> None:
    tile = {"tile": (64, 64), "photometric": "rgb", "metadata": None}
    text = "Aperio Image Library v11\n420x300 |AppMag = 20|MPP = 0.4990"
    with tifffile.TiffWriter(tmp_path / "a.svs") as file:
        file.write(RGB, description=text, **tile)
        file.write(RGB[::6, ::6].copy(), photometric="rgb", metadata=None)
        file.write(RGB[::4, ::4].copy(), description="Aperio", **tile)
        file.write(RGB[:50, :60].copy(), photometric="rgb", subfiletype=1, metadata=None)
    image = open_image(tmp_path / "a.svs")
    assert image.level_shapes == [(300, 420), (75, 105)]
    assert image.ome is not None
    assert image.ome.scales[0][:2] == (0.499, 0.499)


def test_a_stack_has_planes(tmp_path: Path) -> None:
    stack = RNG.integers(0, 250, (3, 5, 90, 120), np.uint8)
    meta = {"axes": "TZYX"}
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata=meta, tile=(64, 64))
    tifffile.imwrite(tmp_path / "b.tif", stack, imagej=True, metadata=meta)
    tifffile.imwrite(tmp_path / "c.tif", stack, photometric="minisblack", compression="zlib")
    for name in ("a.ome.tif", "b.tif", "c.tif"):
        image = open_image(tmp_path / name, contrast_limits=LIMITS)
        assert image.plane_shape == (3, 5)
        np.testing.assert_array_equal(shown(image, (2, 3))[..., 0], stack[2, 3])
        with pytest.raises(PromptError, match="--plane 1,2 on the command line.*--channel-axis"):
            shown(image)


def test_channels_are_known_by_their_axis(tmp_path: Path) -> None:
    stack = RNG.integers(0, 250, (4, 90, 120), np.uint8)
    tifffile.imwrite(tmp_path / "a.ome.tif", stack, metadata={"axes": "CYX"})
    with pytest.raises(ImageError, match="mapping of the 4 channels"):
        open_image(tmp_path / "a.ome.tif")
    image = open_image(tmp_path / "a.ome.tif", channels=[2], contrast_limits=LIMITS)
    np.testing.assert_array_equal(shown(image)[..., 0], stack[2])
    same = open_image(tmp_path / "a.ome.tif", channel_axis=0, channels=[2], contrast_limits=LIMITS)
    np.testing.assert_array_equal(shown(same), shown(image))


@pytest.mark.parametrize("num", [2, 5])
def test_samples_of_no_told_meaning_are_channels(tmp_path: Path, num: int) -> None:
    samples = RNG.integers(0, 250, (90, 120, num), np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", samples, photometric="minisblack", planarconfig="contig")
    if num > 2:
        with pytest.raises(ImageError, match="mapping of the 5 channels"):
            open_image(tmp_path / "a.tif")
    image = open_image(tmp_path / "a.tif", channels=[num - 1], contrast_limits=LIMITS)
    np.testing.assert_array_equal(shown(image)[..., 0], samples[..., -1])


def test_alpha_of_grey_is_not_a_channel(tmp_path: Path) -> None:
    pixels = np.dstack([GREY, np.where(GREY > 9, 255, 0).astype(np.uint8)])
    tifffile.imwrite(
        tmp_path / "a.tif",
        pixels,
        photometric="minisblack",
        extrasamples=[2],
        planarconfig="contig",
    )
    image = open_image(tmp_path / "a.tif", contrast_limits=LIMITS)
    np.testing.assert_array_equal(image.present(Box(0, 0, 300, 420)), GREY > 9)
    assert (shown(image)[..., 0] == np.where(GREY > 9, GREY, 0)).all()


def test_colours_can_be_taken_as_channels(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", RGB, photometric="rgb", tile=(64, 64))
    with pytest.raises(ImageError, match="mapping of the 3 channels"):
        open_image(tmp_path / "a.tif", rgb=False)
    for given in ({}, {"channel_axis": 2}):
        image = open_image(tmp_path / "a.tif", channels=[1], contrast_limits=LIMITS, **given)
        np.testing.assert_array_equal(shown(image)[..., 2], RGB[..., 1])


def test_a_missing_file_of_a_set_is_named(tmp_path: Path) -> None:
    one, two = (f"urn:uuid:{uuid.uuid4()}" for _ in "ab")
    text = (
        '<?xml version="1.0" encoding="UTF-8"?><OME '
        f'xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" UUID="{one}">'
        '<Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" '
        'SizeX="120" SizeY="90" SizeC="2" SizeZ="1" SizeT="1">'
        f'<TiffData FirstC="0" IFD="0" PlaneCount="1"><UUID FileName="s_C0.ome.tif">{one}</UUID>'
        '</TiffData><TiffData FirstC="1" IFD="0" PlaneCount="1">'
        f'<UUID FileName="s_C1.ome.tif">{two}</UUID></TiffData></Pixels></Image></OME>'
    )
    for name, value in (("s_C0", 99), ("s_C1", 11)):
        plane = np.full((90, 120), value, np.uint8)
        description = text if name == "s_C0" else text.replace(f'UUID="{one}"', f'UUID="{two}"', 1)
        tifffile.imwrite(
            tmp_path / f"{name}.ome.tif", plane, description=description, metadata=None
        )
    image = open_image(tmp_path / "s_C0.ome.tif", channels=[1], contrast_limits=LIMITS)
    assert (shown(image) == 11).all()
    (tmp_path / "s_C1.ome.tif").unlink()
    with pytest.raises(ImageError, match=r"1 are missing: there is no s_C1\.ome\.tif"):
        open_image(tmp_path / "s_C0.ome.tif", channels=[0])


@pytest.mark.parametrize("compression", ["tiff_lzw", "jpeg", "group4", "packbits", "tiff_deflate"])
def test_compressions_of_pillow_are_read(tmp_path: Path, compression: str) -> None:
    picture = Image.fromarray(GREY > 100) if compression == "group4" else Image.fromarray(GREY)
    picture.save(tmp_path / "a.tif", compression=compression)
    with Image.open(tmp_path / "a.tif") as file:
        expected = np.asarray(file)
    got = open_image(tmp_path / "a.tif").stored_levels[0].read(Box(0, 0, 300, 420), (), (0,))
    np.testing.assert_array_equal(got[..., 0], expected)


def test_without_imagecodecs_pillow_reads_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ValueError("<COMPRESSION.LZW: 5> requires the 'imagecodecs' package")

    monkeypatch.setattr(TiffLevel, "probe", fail)
    Image.fromarray(GREY).save(tmp_path / "a.tif", compression="tiff_lzw")
    image = open_image(tmp_path / "a.tif", contrast_limits=LIMITS)
    np.testing.assert_array_equal(shown(image)[..., 0], GREY)


def test_orientation_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, extratags=[(274, 3, 1, 8, True)])
    assert open_image(tmp_path / "a.tif").shape_yx == (300, 420)
    assert "rotated by 270 degrees (orientation 8)" in caplog.text


def test_a_strip_as_large_as_the_image_is_read_once(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, compression="zlib", rowsperstrip=300)
    image = open_image(tmp_path / "a.tif")
    assert isinstance(image.stored_levels[0].data, np.ndarray)


def test_a_strip_too_large_to_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.storage.image_files.MAX_PICTURE_BYTES", 110_000)
    tifffile.imwrite(tmp_path / "a.tif", GREY, compression="zlib", rowsperstrip=300)
    with pytest.raises(ImageError, match="only be read as a whole.*tiled TIFF"):
        open_image(tmp_path / "a.tif")


@pytest.mark.parametrize("layout", [{"tile": (64, 64), "compression": "zlib"}, {}])
def test_a_truncated_file_is_told(tmp_path: Path, layout: dict[str, Any]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, **layout)
    whole = (tmp_path / "a.tif").read_bytes()
    (tmp_path / "a.tif").write_bytes(whole[: len(whole) // 2])
    with pytest.raises((ImageError, ImageReadError), match=r"a\.tif.*(truncated|damaged)"):
        shown(open_image(tmp_path / "a.tif", contrast_limits=LIMITS))


def test_threads_read_the_same_file(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, tile=(64, 64), compression="zlib")
    image = open_image(tmp_path / "a.tif", contrast_limits=LIMITS)
    found: list[bool] = []

    def read() -> None:
        found.extend(bool((shown(image)[..., 0] == GREY).all()) for _ in range(5))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 30


def test_a_file_is_closed_with_its_image(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", GREY, tile=(64, 64))
    image = open_image(tmp_path / "a.tif")
    handle = image.stored_levels[0].data._series.parent.filehandle
    assert not handle.closed
    del image
    gc.collect()
    assert handle.closed


def test_a_large_file_is_read_in_little_memory(tmp_path: Path) -> None:
    # A sparse file of 64 Mpx: no tile but one is stored.
    def tiles() -> Any:
        yield np.full((256, 256), 9, np.uint8).tobytes()
        for _ in range(32 * 32 - 1):
            yield b""

    tifffile.imwrite(
        tmp_path / "a.tif", tiles(), shape=(8192, 8192), dtype=np.uint8, tile=(256, 256)
    )
    import tracemalloc

    tracemalloc.start()
    image = open_image(tmp_path / "a.tif")
    image.read(Tile(0, 0, 0, 512))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert image.shape_yx == (8192, 8192)
    assert peak < 60 * 2**20


def with_tags(path: Path, **tags: int) -> None:
    for name, value in tags.items():
        with tifffile.TiffFile(path, mode="r+b") as file:
            file.pages[0].tags[name].overwrite(value)


@pytest.mark.parametrize("side", [2**14, 2**31])
def test_a_strip_that_would_fill_the_memory_is_refused_before_it_is_decoded(
    tmp_path: Path, side: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), compression="zlib", rowsperstrip=64)
    with_tags(path, ImageLength=side, ImageWidth=side, RowsPerStrip=side)
    monkeypatch.setattr(TiffLevel, "_decode", None)
    with pytest.raises(ImageError, match=r"got .* (MiB from|GiB)"):
        open_image(path)


def test_planes_without_number_in_metadata_are_refused(tmp_path: Path) -> None:
    sizes = 'SizeX="64" SizeY="64" SizeC="1" SizeZ="4096" SizeT="4096"'
    pixels = f'<Pixels ID="Pixels:0" DimensionOrder="XYCZT" Type="uint8" {sizes}>'
    path = tmp_path / "a.ome.tif"
    description = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06">'
        f'<Image ID="Image:0">{pixels}<TiffData/></Pixels></Image></OME>'
    )
    tifffile.imwrite(path, np.zeros((64, 64), np.uint8), description=description, metadata=None)
    with pytest.raises(ImageError, match="at most 1048576 planes, got 1 x 4096 x 4096"):
        open_image(path)
