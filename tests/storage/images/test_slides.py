"""Slides: levels, pixel size and colours as scanners write them, read part by part."""

from __future__ import annotations

import gc
import logging
import operator
import os
import sys
import threading
import tracemalloc
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import slide_files
import tifffile
from numpy.typing import NDArray

from napari_hrsam.errors import ImageError, ImageReadError, MissingExtraError
from napari_hrsam.geometry import Tile
from napari_hrsam.storage.images import czi_files
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.images.slides import SlideLevel
from napari_hrsam.storage.images.tile_source import PyramidImage

RGB = slide_files.scene(700, 1000)
WHITE = [255, 255, 255]


def needs_czi() -> None:
    """Skip where pylibCZIrw has no wheel; up to Python 3.13 the tests' extra brings it."""
    if sys.version_info >= (3, 14):
        pytest.skip("pylibCZIrw has no wheel for this Python")


def pixels(image: PyramidImage, level: int = 0) -> NDArray[Any]:
    return np.asarray(image.stored_levels[level].data[...])


def size_um(image: PyramidImage) -> tuple[float, ...]:
    assert image.ome is not None
    y, x = image.ome.axes.index("y"), image.ome.axes.index("x")
    assert image.ome.units[y] == image.ome.units[x] == "micrometer"
    return image.ome.scales[0][y], image.ome.scales[0][x]


def write_svs(path: Path) -> Path:
    slide_files.write_svs(path / "a.svs", slide_files.halves(RGB, 3))
    return path / "a.svs"


def write_dicom(path: Path) -> Path:
    slide_files.write_dicom(path / "dicom", slide_files.halves(RGB, 3), mpp=0.25)
    return path / "dicom"


def write_dicom_file(path: Path) -> Path:
    return write_dicom(path) / "1.dcm"


def write_czi(path: Path) -> Path:
    needs_czi()
    slide_files.write_czi(path / "a.czi", RGB, coarse=RGB[::2, ::2])
    return path / "a.czi"


def write_scn(path: Path) -> Path:
    slide_files.write_scn(path / "a.scn", [RGB[:512, :768], RGB[-512:, -768:]])
    return path / "a.scn"


@pytest.mark.parametrize("write", [write_svs, write_dicom, write_dicom_file, write_czi])
def test_every_level_and_the_pixel_size_are_those_of_the_file(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    image = open_image(write(tmp_path))
    assert size_um(image) == (0.25, 0.25)
    assert len(image.stored_levels) >= 2
    for level, stored in enumerate(image.stored_levels):
        assert stored.factor_yx == (2**level, 2**level)
        np.testing.assert_array_equal(pixels(image, level), RGB[:: 2**level, :: 2**level])
    np.testing.assert_array_equal(image.read(Tile(0, 128, 128, 256)), RGB[128:384, 128:384])


def test_regions_lie_where_they_were_scanned_on_the_background(tmp_path: Path) -> None:
    image = open_image(write_scn(tmp_path))
    assert image.shape_yx == (1500, 2000)
    assert size_um(image) == (0.5, 0.5)
    for level in (0, 1):
        expected = np.full((1500 >> level, 2000 >> level, 3), 255, np.uint8)
        for region, (x, y) in zip(
            (RGB[:512, :768], RGB[-512:, -768:]), slide_files.REGIONS_XY, strict=True
        ):
            coarse = region[:: 2**level, :: 2**level]
            at = (
                slice(y >> level, (y >> level) + coarse.shape[0]),
                slice(x >> level, (x >> level) + coarse.shape[1]),
            )
            expected[at] = coarse
        np.testing.assert_array_equal(pixels(image, level), expected)


def test_tiles_that_overlap_are_put_together(tmp_path: Path) -> None:
    """As pages of a TIFF they are 768 pixels wide, and show every seam twice."""
    pixels_ = RGB[:496, :736]
    slide_files.write_bif(tmp_path / "a.bif", pixels_)
    image = open_image(tmp_path / "a.bif")
    assert size_um(image) == (0.5, 0.5)
    assert [level.shape_yx for level in image.stored_levels] == [(496, 736), (248, 368)]
    np.testing.assert_array_equal(pixels(image), pixels_)
    np.testing.assert_array_equal(pixels(image, 1), pixels_[::2, ::2])


def test_a_slide_whose_size_cannot_be_known_is_refused(tmp_path: Path) -> None:
    slide_files.write_bif(tmp_path / "a.bif", RGB[:496, :736])
    written = (tmp_path / "a.bif").read_bytes()
    (tmp_path / "a.bif").write_bytes(written.replace(b'"UP"', b'"NO"'))
    with pytest.raises(ImageError, match=r"damaged|cannot be read"):
        open_image(tmp_path / "a.bif")


def test_half_transparent_pixels_are_laid_on_the_background_colour(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    level = open_image(write_scn(tmp_path)).stored_levels[0].data
    assert isinstance(level, SlideLevel)
    rgba = np.zeros((256, 256, 4), np.uint8)
    rgba[:, :128] = (200, 100, 0, 51)  # a fifth
    monkeypatch.setattr(level._slide, "read", lambda *_: rgba)
    level._background = np.array((10, 20, 250), np.uint16)
    read = level[:256, :256]
    np.testing.assert_array_equal(read[0, 0], [48, 36, 200])
    np.testing.assert_array_equal(read[0, 200], [10, 20, 250])


def test_a_level_of_a_rounded_size_lies_within_a_pixel(tmp_path: Path) -> None:
    """OpenSlide takes 2051 / 256 for the factor of a level whose factor is 8."""
    from napari_hrsam.storage.images.slides import open_slide

    x = np.mgrid[:701, :2051][1]
    ramp = np.repeat((np.minimum(x, 2040) // 8)[..., None], 3, axis=2).astype(np.uint8)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        for number, one in enumerate(slide_files.halves(ramp, 4)):
            file.write(one, tile=(64, 64), photometric="rgb", subfiletype=int(number > 0))
    level = np.asarray(open_slide(tmp_path / "a.tif").levels[3])
    # A step of 1 from pixel to pixel; the last one mixes with what lies beyond.
    difference = np.abs(level.astype(int) - slide_files.halves(ramp, 4)[3])[:, :-1]
    assert difference.mean() < 0.5
    # And a pixel is the same, whatever is read with it.
    again = open_slide(tmp_path / "a.tif").levels[3]
    np.testing.assert_array_equal(again[3:40, 5:77], level[3:40, 5:77])


def test_channels_and_planes_of_czi(tmp_path: Path) -> None:
    needs_czi()
    stack = np.random.default_rng(1).integers(0, 60000, (3, 2, 80, 100), np.uint16)
    slide_files.write_czi_stack(tmp_path / "a.czi", stack, ["DAPI", "FITC", "Cy3"])
    with pytest.raises(ImageError, match="mapping of the 3 channels"):
        open_image(tmp_path / "a.czi")
    image = open_image(tmp_path / "a.czi", channels={"green": 1, "blue": 0})
    assert image.plane_shape == (2,)
    [level] = image.stored_levels
    np.testing.assert_array_equal(level.data[...], stack.transpose(1, 0, 2, 3))
    np.testing.assert_array_equal(level.data[1, 2, 10:3:-2, -1], stack[2, 1, 10:3:-2, -1])
    assert image.ome is not None
    assert image.ome.scales == ((2.0, 1.0, 1.0, 1.0),)
    assert [channel.name for channel in image.ome.channels] == ["DAPI", "FITC", "Cy3"]
    assert image.ome.channels[0].colour.lower() == "0000ff"


def test_a_large_czi_without_levels_gets_coarse_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs_czi()
    monkeypatch.setattr(czi_files, "OVERVIEW_PX", 300)
    slide_files.write_czi(tmp_path / "a.czi", RGB)
    image = open_image(tmp_path / "a.czi")
    assert [level.factor_yx for level in image.stored_levels] == [(1, 1), (4, 4)]
    np.testing.assert_array_equal(pixels(image, 1), RGB[::4, ::4])


@pytest.mark.parametrize(
    ("write", "module"),
    [(write_scn, "openslide"), (write_dicom, "openslide"), (write_czi, "pylibCZIrw.czi")],
)
def test_without_the_extra_its_name_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    write: Callable[[Path], Path],
    module: str,
) -> None:
    path = write(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtraError, match=r'pip install "napari-hrsam\[slides\]"'):
        open_image(path)


def test_mrxs_without_its_folder_is_told_apart_from_damage(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.mrxs", RGB[:50, :50])
    with pytest.raises(ImageError, match="the folder 'a' beside .*a.mrxs"):
        open_image(tmp_path / "a.mrxs")
    (tmp_path / "a").mkdir()
    with pytest.raises(ImageError, match="does not know; it may be damaged"):
        open_image(tmp_path / "a.mrxs")


@pytest.mark.parametrize("write", [write_scn, write_dicom_file, write_czi])
def test_a_truncated_slide_is_refused(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    path = write(tmp_path)
    content = path.read_bytes()
    for name in path.parent.glob("*.dcm"):
        name.unlink()
    path.write_bytes(content[: len(content) // 3])
    with pytest.raises((ImageError, ImageReadError), match=r"cannot be read|damaged|truncated"):
        pixels(open_image(path))


def test_damage_in_one_place_leaves_the_rest(tmp_path: Path) -> None:
    """Also proof that no more is decoded than what lies under a box."""
    path = write_scn(tmp_path)
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        place = page.dataoffsets[0]
    with path.open("r+b") as raw:
        raw.seek(place)
        raw.write(b"\xff" * 500)
    level = open_image(path).stored_levels[0]
    first, other = slide_files.REGIONS_XY
    with pytest.raises(ImageReadError, match="this part of the file is damaged"):
        level.data[first[1] : first[1] + 9, first[0] : first[0] + 9]
    # OpenSlide itself repeats an error for ever.
    np.testing.assert_array_equal(
        level.data[other[1] : other[1] + 200, other[0] : other[0] + 300], RGB[-512:-312, -768:-468]
    )


def test_a_part_of_a_large_slide_takes_little_memory(tmp_path: Path) -> None:
    slide_files.write_dicom(tmp_path, [np.zeros((4096, 4096, 3), np.uint8)])
    level = open_image(tmp_path).stored_levels[0].data
    tracemalloc.start()
    read = level[1000:1200, 3000:3300]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert read.shape == (200, 300, 3)
    assert peak < 4 * 2**20  # of 48 MiB


@pytest.mark.parametrize("write", [write_scn, write_czi])
def test_threads_read_at_a_time(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    level = open_image(write(tmp_path)).stored_levels[0].data
    whole, wrong = np.asarray(level), []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(20):
            y, x = rng.integers(0, 500), rng.integers(0, 700)
            part = slice(y, y + rng.integers(1, 200)), slice(x, x + rng.integers(1, 300))
            if not np.array_equal(level[part], whole[part]):
                wrong.append(part)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("write", [write_scn, write_czi])
def test_a_forked_process_reads_too(tmp_path: Path, write: Callable[[Path], Path]) -> None:
    level = open_image(write(tmp_path)).stored_levels[0].data
    part = slice(300, 400), slice(200, 300)
    expected = level[part].copy()
    child = os.fork()
    if child == 0:
        os._exit(0 if np.array_equal(level[part], expected) else 1)
    assert os.waitpid(child, 0)[1] == 0
    np.testing.assert_array_equal(level[part], expected)


@pytest.mark.parametrize(
    ("write", "handle"), [(write_scn, "_slide._handle"), (write_czi, "_file._reader")]
)
def test_the_file_is_open_as_long_as_a_level_is_in_use(
    tmp_path: Path, write: Callable[[Path], Path], handle: str
) -> None:
    level = open_image(write(tmp_path)).stored_levels[1].data
    gc.collect()
    opened = weakref.ref(operator.attrgetter(handle)(level))
    assert opened() is not None
    assert level[:10, :10].shape == (10, 10, 3)
    del level
    gc.collect()
    assert opened() is None


def test_further_axes_of_czi_are_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    needs_czi()
    stack = np.arange(2 * 20 * 30, dtype=np.uint16).reshape(1, 2, 20, 30)
    slide_files.write_czi_stack(tmp_path / "a.czi", stack, ["DAPI"])
    written = (tmp_path / "a.czi").read_bytes()
    # The writer knows no phases: what it wrote as planes becomes phases.
    (tmp_path / "a.czi").write_bytes(written.replace(b"Z\0\0\0", b"H\0\0\0"))
    with caplog.at_level(logging.WARNING):
        image = open_image(tmp_path / "a.czi")
    assert "several images along H (2); the first one is opened" in caplog.text
    np.testing.assert_array_equal(pixels(image), stack[0, 0])


def test_channels_of_several_kinds_are_refused(tmp_path: Path) -> None:
    needs_czi()
    from pylibCZIrw import czi

    with czi.create_czi(str(tmp_path / "a.czi")) as file:
        file.write(RGB[:20, :30, :1], plane={"C": 0})
        file.write(RGB[:20, :30, :1].astype(np.uint16), plane={"C": 1})
    with pytest.raises(ImageError, match="channels of one kind of pixels"):
        open_image(tmp_path / "a.czi")
