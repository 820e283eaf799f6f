"""Images in levels: lists of arrays, dask, zarr, stacks, and levels that are not stored."""

from __future__ import annotations

import math
import time
import tracemalloc
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import dask.array
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ome_files import halves

from napari_hrsam.errors import ImageError, ImageReadError, PromptError
from napari_hrsam.geometry import Box, Tile
from napari_hrsam.storage.fingerprint import identify
from napari_hrsam.storage.opening import open_image
from napari_hrsam.storage.pyramid import DerivedLevel
from napari_hrsam.storage.stored import AxisOrder, stored_levels
from napari_hrsam.storage.tile_source import ArrayImage, PyramidImage

FILL = (1, 2, 3)
RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (300, 420), np.uint8)
LIMITS = (0, 255)


class Watched:
    """An array that is no NumPy array and keeps what was read of it."""

    def __init__(self, array: NDArray[Any], chunks: tuple[int, ...] | None = None) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.chunks = chunks
        self.boxes: list[tuple[Any, ...]] = []

    def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
        self.boxes.append(index)
        return self.array[index]

    @property
    def num_pixels(self) -> int:
        return sum(
            math.prod(part.stop - part.start for part in index if isinstance(part, slice))
            for index in self.boxes
        )


class Flat:
    """A level of zeros, which are not even stored."""

    shape_yx, factor_yx, chunk_yx = (6_000, 6_000), (1.0, 1.0), (1, 1)
    working_dtype = np.float32

    def read(self, box: Box, _plane: tuple[int, ...], channels: tuple[int, ...]) -> NDArray[Any]:
        return np.broadcast_to(np.float32(0), (*box.shape_yx, len(channels)))


class Slow(OrderedDict[Any, Any]):
    """A dict that pauses after it has looked, so that another thread comes between."""

    def __contains__(self, key: object) -> bool:
        found = super().__contains__(key)
        time.sleep(0.001)
        return found

    def get(self, key: Any, default: Any = None) -> Any:
        found = super().get(key, default)
        time.sleep(0.001)
        return found


def shrunk(array: NDArray[Any], factor: int) -> NDArray[Any]:
    """Area means over whole blocks; the rest is cut off, as many writers do."""
    h, w = (length // factor for length in array.shape)
    cut = array[: h * factor, : w * factor]
    return cut.reshape(h, factor, w, factor).mean(axis=(1, 3)).astype(array.dtype)


@pytest.mark.parametrize("kind", ["numpy", "dask", "zarr", "levels"])
@pytest.mark.parametrize("level", [-1, 0, 1, 3])
def test_every_kind_of_array_shows_the_same_tile(kind: str, level: int) -> None:
    sources = {
        "numpy": GREY,
        "dask": dask.array.from_array(GREY, chunks=(64, 100)),
        "zarr": zarr.array(GREY, chunks=(64, 100)),
        "levels": [GREY],
    }
    tile = Tile(level, 16, 24, 64)
    image = open_image(sources[kind], contrast_limits=LIMITS)
    expected = ArrayImage(GREY, contrast_limits=LIMITS).read(tile, FILL)
    assert image.shape_yx == (300, 420)
    assert np.abs(image.read(tile, FILL).astype(int) - expected).max() <= 1


def test_limits_found_in_a_small_lazy_array_are_those_of_the_array() -> None:
    array = RNG.normal(1000, 50, (300, 420)).astype(np.float32)
    lazy = open_image(dask.array.from_array(array, chunks=100))
    np.testing.assert_allclose(lazy.contrast_limits, ArrayImage(array).contrast_limits)


def test_a_tile_reads_only_its_part_of_the_best_level() -> None:
    levels = [Watched(np.zeros((1024 >> k, 2048 >> k), np.uint8)) for k in range(4)]
    image = open_image(levels, contrast_limits=LIMITS)
    for tile_level, stored in ((0, 0), (1, 1), (2, 2), (3, 3), (4, 3)):
        for level in levels:
            level.boxes.clear()
        image.read(Tile(tile_level, 0, 0, 32))
        assert [bool(level.boxes) for level in levels] == [k == stored for k in range(4)]
        assert levels[stored].num_pixels == (32 << (tile_level - stored)) ** 2


def test_a_level_between_stored_ones_averages_the_finer_one() -> None:
    array = RNG.integers(0, 256, (256, 512), np.uint8)
    image = open_image([array, shrunk(array, 4)], contrast_limits=LIMITS)
    pixels = image.read(Tile(1, 0, 0, 64), FILL)
    expected = shrunk(array[:128, :128].astype(float), 2)
    assert np.abs(pixels[..., 0] - expected).max() <= 0.51


@settings(deadline=None, max_examples=40)
@given(
    shape=st.tuples(st.integers(55, 110), st.integers(55, 110)),
    factor=st.sampled_from([2, 3, 5]),
    level=st.integers(2, 4),
    seed=st.integers(0, 99),
)
def test_levels_of_any_factor_give_area_means(
    shape: tuple[int, int], factor: int, level: int, seed: int
) -> None:
    fine = np.random.default_rng(seed).random(shape)
    coarse = np.random.default_rng(seed + 1).random([length // factor for length in shape])
    image = open_image([fine, coarse], contrast_limits=(0, 1))
    side = 2**level
    pixels = image.read(Tile(level, 0, 0, 64), FILL)
    # The coarse level was cut short: its last pixels stand for the rest.
    rest = [(0, length - length // factor * factor) for length in shape]
    wide = np.pad(coarse.repeat(factor, 0).repeat(factor, 1), rest, mode="edge")
    assumed = wide if factor <= side else fine
    for row in range(math.ceil(shape[0] / side)):
        for column in range(math.ceil(shape[1] / side)):
            ys = slice(row * side, (row + 1) * side)
            expected = assumed[ys, column * side : (column + 1) * side].mean()
            # Near the cut, areas are cut too.
            is_inner = max(ys.stop, (column + 1) * side) <= min(shape) - factor
            tolerance = 0.003 if is_inner else 0.5
            assert abs(pixels[row, column, 0] / 255 - expected) <= tolerance


@pytest.mark.parametrize("rounding", [math.floor, math.ceil])
def test_rounded_sizes_do_not_move_anything(rounding: Any) -> None:
    # A bright pixel of level 0 must be found under its own pixel of a coarse level, far out too.
    shapes = [(rounding(5003 / 3**k), rounding(4001 / 3**k)) for k in range(6)]
    stored = [np.zeros(shape, np.uint8) for shape in shapes]
    image = open_image(stored, contrast_limits=LIMITS)
    assert [round(level.factor_yx[0]) for level in image._stored] == [3**k for k in range(6)]
    assert [round(level.factor_yx[1]) for level in image._stored] == [3**k for k in range(6)]


def test_a_level_cut_short_is_continued_by_its_last_pixel() -> None:
    image = open_image(
        [np.full((9, 9), 8, np.uint8), np.full((4, 4), 200, np.uint8)], contrast_limits=LIMITS
    )
    pixels = image.read(Tile(1, 0, 0, 8), FILL)
    assert (pixels[:5, :5] == 200).all()
    assert (pixels[5:] == FILL).all()


def test_limits_come_from_the_coarsest_stored_level() -> None:
    fine = Watched(np.zeros((4096, 4096), np.uint16))
    coarse = np.linspace(100, 900, 128 * 128).reshape(128, 128).astype(np.uint16)
    image = open_image([fine, coarse])
    assert image.contrast_limits[0] == pytest.approx((100, 900), abs=2)
    assert not fine.boxes


def test_limits_come_from_no_level_of_a_few_pixels() -> None:
    rng = np.random.default_rng(0)
    fine = rng.integers(0, 100, (512, 512)).astype(np.uint16)
    fine[200:230, 200:230] = 1000
    levels = halves(fine, 10)
    image = open_image(levels)
    assert image.level_shapes[-1] == (1, 1)
    assert image.contrast_limits[0][0] < 40
    assert image.contrast_limits[0][1] > 950
    # Nor is a fingerprint taken from one.
    other = [*halves(fine[::-1].copy(), 10)[:-1], levels[-1]]
    one, another = (
        open_image([Watched(level) for level in stored], contrast_limits=LIMITS)
        for stored in (levels, other)
    )
    assert identify(one) != identify(another)


def test_limits_are_found_where_nearly_all_pixels_are_missing() -> None:
    array = np.full((5000, 5000), np.nan, np.float32)
    array[4321:4324, 33:60] = np.linspace(5, 9, 27)
    assert open_image(Watched(array)).contrast_limits[0] == pytest.approx((5, 9))


def test_a_coarse_level_of_strips_is_made_in_little_memory() -> None:
    strips = Watched(np.zeros((4000, 20_000), np.uint8), chunks=(8, 20_000))
    made = DerivedLevel(open_image(strips, contrast_limits=LIMITS).stored_levels[0])
    made.read(Box(0, 0, 30, 500), (), (0,))
    assert [(rows.start, rows.stop) for rows, _ in strips.boxes] == [(0, 208), (208, 416)]
    assert all(columns == slice(0, 20_000) for _, columns in strips.boxes)


def test_limits_of_a_large_single_level_come_from_windows_over_the_whole_image() -> None:
    ramp = np.linspace(0, 1000, 3000)[:, None] + np.zeros(3000)
    watched = Watched(ramp.astype(np.float32))
    image = open_image(watched)
    assert image.contrast_limits[0] == pytest.approx((30, 970), abs=35)
    assert watched.num_pixels < 3000 * 3000 / 4


def test_sparse_objects_between_the_first_windows_are_found_at_the_second_try() -> None:
    array = np.zeros((3000, 3000), np.uint16)
    array[::50, ::50] = 700
    array[:64] = array[-64:] = 0
    firsts = [int((i + 0.5) * 3000 / 8 - 64) for i in range(8)]
    for y in firsts:
        array[y : y + 128] = 0
    assert open_image(Watched(array)).contrast_limits[0] == (0, 700)


def test_missing_coarse_levels_are_averages_and_are_kept() -> None:
    array = RNG.integers(0, 256, (2100, 2500), np.uint8)
    watched = Watched(array, chunks=(512, 512))
    image = open_image(watched, contrast_limits=LIMITS)
    watched.boxes.clear()
    tile = Tile(5, 0, 0, 128)
    expected = ArrayImage(array, contrast_limits=LIMITS).read(tile, FILL).astype(int)
    difference = np.abs(image.read(tile, FILL) - expected)
    assert difference[:65, :78].max() <= 1
    # At the border, blocks that are cut count as whole ones.
    assert difference.max() <= 4
    assert watched.num_pixels == array.size
    image.read(Tile(5, 32, 32, 64), FILL)
    image.read(Tile(4, 0, 0, 128), FILL)
    image.read(Tile(3, 100, 100, 128), FILL)
    assert watched.num_pixels == array.size


def test_made_levels_leave_out_pixels_that_are_not_finite() -> None:
    array = np.full((2100, 2100), 5.0)
    array[:16, :16] = np.nan
    array[32:40, 32:36] = np.inf
    image = open_image(Watched(array), contrast_limits=(0, 10))
    pixels = image.read(Tile(3, 0, 0, 8), FILL)
    assert (pixels[:2, :2] == 0).all()
    assert (pixels[2:, 2:] == 128).all()


def test_memory_for_made_levels_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("napari_hrsam.storage.pyramid.MAX_DERIVED_BYTES", 2**20)
    array = dask.array.zeros((10_000, 10_000), chunks=1000, dtype=np.uint8)
    image = open_image(array, contrast_limits=LIMITS)
    tracemalloc.start()
    image.read(Tile(6, 0, 0, 128))
    image.read(Tile(4, 0, 0, 512))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # The whole image would take 95 MiB.
    assert peak < 70 * 2**20


def test_chunks_are_read_once_for_a_coarse_tile() -> None:
    watched = Watched(np.zeros((4096, 4096), np.uint8), chunks=(512, 512))
    image = open_image([watched], contrast_limits=LIMITS)
    image.read(Tile(2, 64, 64, 512))
    assert len(watched.boxes) > 1
    touched: list[tuple[int, int]] = []
    for rows, columns in watched.boxes:
        touched += [
            (i, j)
            for i in range(rows.start // 512, (rows.stop - 1) // 512 + 1)
            for j in range(columns.start // 512, (columns.stop - 1) // 512 + 1)
        ]
    assert len(touched) == len(set(touched)) == 25


def test_a_stack_has_planes() -> None:
    stack = RNG.integers(0, 256, (2, 3, 40, 50), np.uint8)
    for source in (stack, dask.array.from_array(stack, chunks=(1, 1, 20, 50))):
        image = open_image(source, contrast_limits=LIMITS)
        assert image.plane_shape == (2, 3)
        assert image.shape_yx == (40, 50)
        pixels = image.read(Tile(0, 0, 0, 64, (1, 2)), FILL)
        assert (pixels[:40, :50, 0] == stack[1, 2]).all()


@pytest.mark.parametrize("plane", [(), (1,), (2, 0), (0, 3), (-1, 0), (0, 0, 0)])
def test_a_plane_that_is_none_is_refused_with_a_way_out(plane: tuple[int, ...]) -> None:
    image = open_image(np.zeros((2, 3, 40, 50)), contrast_limits=LIMITS)
    with pytest.raises(PromptError, match=r"one index per axis of lengths \(2, 3\), got .*channel"):
        image.read(Tile(0, 0, 0, 64, plane))


def test_a_stack_of_one_plane_needs_no_index() -> None:
    stack = RNG.integers(0, 256, (1, 1, 40, 50), np.uint8)
    image = open_image(stack, contrast_limits=LIMITS)
    pixels = image.read(Tile(0, 0, 0, 64), FILL)
    assert (pixels == image.read(Tile(0, 0, 0, 64, (0, 0)), FILL)).all()
    assert (pixels[:40, :50, 0] == stack[0, 0]).all()


def test_coarse_levels_may_have_fewer_planes() -> None:
    fine = np.zeros((8, 64, 64), np.uint8)
    coarse = np.arange(4, dtype=np.uint8)[:, None, None] * np.ones((1, 32, 32), np.uint8)
    image = open_image([fine, coarse], contrast_limits=LIMITS)
    shown = [int(image.read(Tile(1, 0, 0, 32, (z,)))[0, 0, 0]) for z in range(8)]
    assert shown == [0, 0, 1, 1, 2, 2, 3, 3]


def test_planes_share_their_limits() -> None:
    stack = np.linspace(0, 100, 10)[:, None, None] + RNG.random((10, 64, 64))
    image = open_image(stack)
    first = image.read(Tile(0, 0, 0, 64, (0,)))
    last = image.read(Tile(0, 0, 0, 64, (9,)))
    assert first.max() < 10
    assert last.min() > 240


def test_channels_of_a_stack_are_named_by_their_axis() -> None:
    stack = RNG.integers(0, 256, (3, 5, 40, 50), np.uint8)
    image = open_image(
        dask.array.from_array(stack), channel_axis=1, channels=[4, 0], contrast_limits=LIMITS
    )
    pixels = image.read(Tile(0, 0, 0, 64, (2,)), FILL)[:40, :50]
    assert image.plane_shape == (3,)
    assert (pixels[..., 0] == stack[2, 4]).all()
    assert (pixels[..., 1] == stack[2, 0]).all()
    assert (pixels[..., 2] == 0).all()


def test_channels_that_are_not_shown_are_not_read() -> None:
    watched = Watched(np.zeros((6, 40, 50), np.uint8))
    image = open_image(watched, channel_axis=0, channels=[5, 0], contrast_limits=LIMITS)
    image.read(Tile(0, 0, 0, 64))
    assert sorted((index[0].start, index[0].stop) for index in watched.boxes) == [(0, 1), (5, 6)]


def test_colours_in_the_last_axis_are_seen_in_lazy_arrays_and_stacks() -> None:
    rgb = RNG.integers(0, 256, (2, 40, 50, 3), np.uint8)
    image = open_image(dask.array.from_array(rgb))
    assert image.plane_shape == (2,)
    assert (image.read(Tile(0, 0, 0, 64, (1,)), FILL)[:40, :50] == rgb[1]).all()
    assert open_image(rgb, rgb=False, contrast_limits=LIMITS).plane_shape == (2, 40)


def test_an_open_image_is_returned_as_it_is() -> None:
    image = open_image(GREY)
    assert open_image(image) is image
    with pytest.raises(ImageError, match=r"no further arguments.*got \['channel_axis'\]"):
        open_image(image, channel_axis=0)


def test_levels_that_are_none_are_refused() -> None:
    with pytest.raises(ImageError, match=r"after \(20, 20\); sort them by size"):
        open_image([np.zeros((20, 20)), np.zeros((30, 10))])
    with pytest.raises(ImageError, match=r"axes and channels of the first.*level 1"):
        open_image([np.zeros((20, 20)), np.zeros((5, 10, 10))])
    with pytest.raises(ImageError, match=r"axes and channels of the first.*level 1"):
        open_image([np.zeros((20, 20, 3)), np.zeros((10, 10, 4))])


@pytest.mark.parametrize("source", [[], [[1, 2], [3, 4]], 7, None, {"a": 1}])
def test_what_is_no_image_is_refused(source: Any) -> None:
    with pytest.raises(ImageError, match=r"expected an array, or a list of arrays.*got builtins"):
        open_image(source)


@pytest.mark.parametrize("dtype", ["c8", "U3", "M8[s]"])
def test_levels_of_other_dtypes_are_refused(dtype: str) -> None:
    with pytest.raises(ImageError, match="expected bool, integer or float pixels, got dtype"):
        open_image([np.zeros((4, 4), np.uint8), np.zeros((2, 2), dtype)])


def absurd(shape: tuple[int, ...], chunks: tuple[int, ...]) -> Watched:
    watched = Watched(np.zeros(1, np.uint8), chunks)
    watched.shape = shape
    return watched


def test_absurd_shapes_and_chunks_are_refused_without_reading() -> None:
    huge, chunky = absurd((2**62, 2**62), (1024, 1024)), absurd((2**20, 2**20), (2**20, 2**20))
    with pytest.raises(ImageError, match=r"at most 2147483648 pixels along an axis.*damaged"):
        open_image(huge)
    with pytest.raises(ImageError, match=r"at most 448 MiB, got \(1048576, 1048576\) of uint8"):
        open_image(chunky)
    with pytest.raises(ImageError, match=r"chunks of 1 pixel or more.*got \(0, 5\)"):
        open_image(absurd((100, 100), (0, 5)))
    assert not huge.boxes + chunky.boxes


def test_a_failing_read_says_where() -> None:
    class Broken(Watched):
        def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
            raise RuntimeError("the disk is on fire")

    image = open_image(Broken(GREY), contrast_limits=LIMITS)
    with pytest.raises(
        ImageReadError, match=r"the image at \[0:16, 32:48\], got RuntimeError: the disk is on fire"
    ):
        image.read(Tile(0, 0, 32, 16))


def test_running_out_of_memory_is_not_taken_for_damage() -> None:
    class Full(Watched):
        def __getitem__(self, index: tuple[Any, ...]) -> NDArray[Any]:
            raise MemoryError

    with pytest.raises(MemoryError):
        open_image(Full(GREY), contrast_limits=LIMITS).read(Tile(0, 0, 0, 16))


def test_every_image_tells_its_levels_and_planes() -> None:
    plain = open_image(GREY)
    levels = open_image([GREY, GREY[::2, ::2]])
    assert isinstance(plain, PyramidImage)
    assert (plain.plane_shape, plain.level_shapes, plain.ome) == ((), [(300, 420)], None)
    assert levels.level_shapes == [(300, 420), (150, 210)]


def test_several_threads_may_read_a_made_level(monkeypatch: pytest.MonkeyPatch) -> None:
    made = DerivedLevel(Flat())
    # Room for one block: every read throws out what another thread has just found.
    monkeypatch.setattr("napari_hrsam.storage.pyramid.MAX_DERIVED_BYTES", 1)
    monkeypatch.setattr(
        "napari_hrsam.storage.pyramid.finite_block_mean", lambda block, step: block[::step, ::step]
    )
    monkeypatch.setattr(made, "_blocks", Slow())
    side = made.chunk_yx[0]
    boxes = [Box(0, 0, 1, 1).shifted(side * row, 0) for row in (0, 1)]
    with ThreadPoolExecutor(4) as threads:
        read = threads.map(lambda box: made.read(box, (), (0,)), boxes * 100)
        assert not any(block.any() for block in read)


def test_large_chunks_are_read_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    class Chunked:
        def __init__(self, values: NDArray[Any]) -> None:
            self.values, self.shape, self.dtype = values, values.shape, values.dtype
            self.chunks = (1, 16, 24)
            self.asked: list[Any] = []

        def __getitem__(self, index: Any) -> Any:
            self.asked.append(index)
            return self.values[index]

    values = np.arange(3 * 50 * 70, dtype=np.uint16).reshape(3, 50, 70)
    for num_bytes, num in ((10**6, 1), (1000, 9)):
        monkeypatch.setattr("napari_hrsam.storage.stored.MAX_AT_ONCE_BYTES", num_bytes)
        array = Chunked(values)
        (level,) = stored_levels([array], AxisOrder(y=1, x=2, planes=(0,)))
        found = level.read(Box(10, 20, 41, 70), (2,), (0,))
        np.testing.assert_array_equal(found[..., 0], values[2, 10:41, 20:70])
        assert len(array.asked) == num
