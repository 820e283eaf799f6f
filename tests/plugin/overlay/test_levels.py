"""Lazy levels of committed objects, and the blocks that they keep."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from napari.components import ViewerModel
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.overlay.block_cache import BlockCache
from napari_hrsam.plugin.overlay.levels import MAX_COARSEST_PX, LabelView, LevelView
from napari_hrsam.storage.label_image import create_labels

SHAPE = (3, 70, 90)


class Counted:
    """An array that counts the pixels read, and can be stopped in the middle of reading."""

    def __init__(self, array: NDArray[Any], chunks: tuple[int, ...] = (1, 16, 16)) -> None:
        self.array, self.chunks = array, chunks[-array.ndim :]
        self.shape, self.dtype, self.ndim = array.shape, array.dtype, array.ndim
        self.num_read = 0
        self.store_path = "memory"
        self.reading, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()

    def __getitem__(self, index: Any) -> NDArray[Any]:
        part = self.array[index].copy()
        self.num_read += part.size
        self.reading.set()
        assert self.go_on.wait(10)
        return part


def numbers(shape: tuple[int, ...] = SHAPE) -> NDArray[np.uint32]:
    return np.arange(1, np.prod(shape) + 1, dtype=np.uint32).reshape(shape)


def unheard(error: LabelsError) -> None:
    raise error


def pyramid(shape: tuple[int, int] = (2048, 3000), num: int = 3) -> list[Any]:
    return [
        Counted(np.zeros((-(-shape[0] // 2**k), -(-shape[1] // 2**k)), np.uint32), (512, 512))
        for k in range(num)
    ]


indices = st.one_of(
    st.integers(-3, 2),
    st.slices(3),
    st.tuples(st.integers(-3, 2), st.slices(70)),
    st.tuples(st.slices(3), st.slices(70), st.slices(90)),
    st.tuples(st.integers(0, 2), st.integers(-70, 69), st.integers(0, 89)),
    st.just(np.s_[..., 3]),
    st.just(np.s_[1:, [1, 2, 5]]),
)


@settings(max_examples=60, deadline=None)
@given(indices, st.data())
def test_a_view_is_indexed_like_the_array(index: Any, data: st.DataObject) -> None:
    array = numbers()
    view = LevelView(BlockCache([Counted(array)], unheard), 0)
    expected = array[index]
    part = view[index]
    assert np.shape(part) == expected.shape
    np.testing.assert_array_equal(np.asarray(part), expected)
    if isinstance(part, LevelView) and part.size:
        again = tuple(data.draw(st.slices(length)) for length in part.shape)
        np.testing.assert_array_equal(np.asarray(part[again]), expected[again])


def test_a_view_has_what_napari_asks_for() -> None:
    view = LevelView(BlockCache([Counted(numbers())], unheard), 0)
    assert (view.shape, view.ndim, view.size, len(view)) == (SHAPE, 3, 3 * 70 * 90, 3)
    assert view.dtype == np.uint32
    assert view.chunks == (1, 512, 512), "chunks of 16 px are read by the dozen"
    assert view[1].chunks == (512, 512)
    assert np.asarray(view[0, :2, :2], np.float32).dtype == np.float32
    with pytest.raises(IndexError, match="within 3"):
        view[3]


def test_one_plane_of_a_stack_is_read_without_the_others() -> None:
    array = Counted(numbers())
    view = LevelView(BlockCache([array], unheard), 0)
    tile = view[:, 0:20, 0:20]
    assert array.num_read == 0
    np.testing.assert_array_equal(np.asarray(tile[1]), array.array[1, :20, :20])
    assert array.num_read == 70 * 90


def test_other_byte_orders_are_turned() -> None:
    array = Counted(numbers().astype(">u4"))
    view = LevelView(BlockCache([array], unheard), 0)
    assert view.dtype.isnative
    np.testing.assert_array_equal(np.asarray(view), array.array)


def test_blocks_are_read_once_and_memory_is_bounded() -> None:
    array = Counted(numbers((2048, 2048)), (512, 512))
    cache = BlockCache([array], unheard, max_bytes=4 * 512 * 512 * 4)
    cache.read(0, (), Box(0, 0, 600, 600))
    cache.read(0, (), Box(100, 100, 1000, 1000))
    assert array.num_read == 4 * 512 * 512
    cache.read(0, (), Box(0, 0, 2048, 2048))
    assert cache.num_bytes <= 4 * 512 * 512 * 4


def test_empty_blocks_take_no_memory_and_are_remembered() -> None:
    array = Counted(np.zeros((2048, 2048), np.uint32), (512, 512))
    cache = BlockCache([array], unheard, max_bytes=1)
    for _ in range(2):
        assert not cache.read(0, (), Box(0, 0, 2048, 2048)).any()
    assert array.num_read == 2048 * 2048
    assert cache.num_bytes == 0


def test_only_blocks_under_an_edit_are_read_again_at_every_level() -> None:
    levels = pyramid()
    view = LabelView(levels, unheard)
    for level in view.levels:
        np.asarray(level[:, :])
    before = [level.num_read for level in levels]
    for k, level in enumerate(levels):
        level.array[600 >> k : 700 >> k, 600 >> k : 700 >> k] = 7
    view.edited(Box(600, 600, 700, 700))
    for k, level in enumerate(view.levels):
        np.testing.assert_array_equal(np.asarray(level[:, :]), levels[k].array)
    read = [level.num_read - num for level, num in zip(levels, before, strict=True)]
    assert read == [512 * 512] * 3
    assert not view.is_empty


def test_the_coarsest_level_stays_one_live_array() -> None:
    levels = pyramid()
    view = LabelView(levels, unheard)
    coarsest = view.levels[-1]
    assert isinstance(coarsest, np.ndarray)
    assert view.is_empty
    levels[2].array[100:200, 100:200] = 3
    view.edited(Box(400, 400, 800, 800))
    assert view.levels[-1] is coarsest
    np.testing.assert_array_equal(coarsest, levels[2].array)


def test_sizes_that_do_not_divide_lose_no_pixel_of_an_edit() -> None:
    shape = (2047, 3001)
    levels = pyramid(shape)
    view = LabelView(levels, unheard)
    for level in view.levels:
        np.asarray(level[:, :])
    for k, level in enumerate(levels):
        level.array[-1, -1] = 5 + k
        level.array[level.shape[0] // 2, level.shape[1] // 2] = 9
    view.edited(Box(shape[0] - 1, shape[1] - 1, *shape))
    view.edited(Box(shape[0] // 2, shape[1] // 2, shape[0] // 2 + 4, shape[1] // 2 + 4))
    for k, level in enumerate(view.levels):
        np.testing.assert_array_equal(np.asarray(level[:, :]), levels[k].array)


def test_it_shows_what_the_label_image_writes_also_where_levels_were_rounded_down(
    tmp_path: Path,
) -> None:
    group = zarr.open_group(tmp_path / "a.zarr", mode="w")
    datasets = []
    for k in range(4):
        shape = (1001 >> k, 1507 >> k)
        group.create_array(str(k), shape=shape, dtype="uint8", chunks=(256, 256))
        scale = {"type": "scale", "scale": [1001 / shape[0], 1507 / shape[1]]}
        datasets.append({"path": str(k), "coordinateTransformations": [scale]})
    axes = [{"name": name, "type": "space"} for name in "yx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    rng = np.random.default_rng(0)
    with create_labels(tmp_path / "a.zarr", "objects") as labels:
        view = LabelView(labels.levels, unheard)
        for label in range(1, 60):
            y, x = int(rng.integers(0, 1000)), int(rng.integers(0, 1500))
            box = Box(y, x, y + 1, x + 1 + label % 3)
            view.edited(labels.write(box, np.ones(box.shape_yx, bool), label, overwrite=True).box)
        for level, stored in zip(view.levels, labels.levels, strict=True):
            np.testing.assert_array_equal(np.asarray(level[:, :]), stored[:])


def test_a_block_that_was_being_read_while_it_was_written_is_not_kept() -> None:
    array = Counted(np.ones((512, 512), np.uint32), (512, 512))
    cache = BlockCache([array], unheard)
    array.go_on.clear()
    whole = Box(0, 0, 512, 512)
    reader = threading.Thread(target=cache.read, args=(0, (), whole))
    reader.start()
    assert array.reading.wait(10)
    array.array[:] = 2
    cache.forget(0, (), whole)
    array.go_on.set()
    reader.join(10)
    assert (cache.read(0, (), whole) == 2).all()


def test_many_threads_read_the_same() -> None:
    array = Counted(numbers((1024, 1024)), (512, 512))
    cache = BlockCache([array], unheard, max_bytes=512 * 512 * 4)
    wrong: list[Box] = []

    def read(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(30):
            y, x = rng.integers(0, 900, 2).tolist()
            box = Box(y, x, y + 120, x + 120)
            if not np.array_equal(cache.read(0, (), box), array.array[box.slices]):
                wrong.append(box)
            cache.forget(0, (), box)

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert wrong == []


def test_a_damaged_chunk_is_background_and_told_once(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a.zarr", shape=(1024, 1024), chunks=(512, 512), dtype="uint32", fill_value=0
    )
    array[:] = 3
    chunk = next(path for path in (tmp_path / "a.zarr").rglob("c/0/1"))
    chunk.write_bytes(chunk.read_bytes()[:20])
    told: list[LabelsError] = []
    cache = BlockCache([array], told.append)
    for _ in range(2):
        pixels = cache.read(0, (), Box(0, 0, 1024, 1024))
        cache.forget(0, (), Box(0, 0, 1024, 1024))
    assert (pixels == 3).sum() == 3 * 512 * 512
    assert not pixels[:512, 512:].any()
    assert len(told) == 1
    assert "damaged chunk" in str(told[0])


def test_a_pyramid_that_stops_too_early_is_told() -> None:
    class Wide(Counted):
        def __init__(self) -> None:
            self.shape, self.chunks, self.ndim = (MAX_COARSEST_PX + 1, 16), (16, 16), 2
            self.dtype = np.dtype(np.uint32)

    with pytest.raises(LabelsError, match="a folder of their own"):
        LabelView([Wide()], unheard)


def test_axes_of_length_one_can_be_left_out() -> None:
    array = Counted(numbers((1, 1, 70, 90)), (1, 1, 16, 16))
    view = LabelView([array], unheard, 0)
    assert view.levels[-1].shape == (70, 90)
    array.array[0, 0, 5, 5] = 0
    view.edited(Box(5, 5, 6, 6), (0, 0))
    assert view.levels[-1][5, 5] == 0


@pytest.mark.parametrize("num_planes", [0, 4])
def test_napari_draws_what_was_written_at_every_level(num_planes: int) -> None:
    planes = (num_planes,) if num_planes else ()
    levels: list[Any] = [
        Counted(np.zeros((*planes, 4096 >> k, 4096 >> k), np.uint32), (1, 512, 512))
        for k in range(4)
    ]
    view = LabelView(levels, unheard)
    viewer = ViewerModel()
    viewer.canvas.size = (400, 400)
    layer = viewer.add_labels(view.levels, multiscale=True)
    plane = (2,) if num_planes else ()
    if num_planes:
        viewer.dims.set_point(0, 2)
    for k, level in enumerate(levels):
        level.array[(*plane, slice(1000 >> k, 3000 >> k), slice(1000 >> k, 3000 >> k))] = 9
    view.edited(Box(1000, 1000, 3000, 3000), plane)
    layer.refresh(extent=False, thumbnail=False, highlight=False)
    for data_level in range(4):
        layer.locked_data_level = data_level
        assert layer.get_value((*plane, 2000, 2000)) == (data_level, 9)
        assert layer.get_value((*plane, 200, 200)) == (data_level, 0)
