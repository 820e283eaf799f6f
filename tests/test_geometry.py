from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from napari_hrsam.errors import ShapeError
from napari_hrsam.geometry import (
    Box,
    Grid,
    Tile,
    TileGrid,
    coarsest_level,
    downsample,
    filling_level,
    level_shape,
    pixel_of,
)

# Deadlines measure the machine; what is drawn stays small instead.
quick = settings(deadline=None, max_examples=50)
sides = st.integers(1, 70)
shapes = st.tuples(sides, sides)
tile_sides = st.sampled_from([8, 16, 24])
levels = st.integers(-2, 4)
ends = st.integers(-20, 20)


@st.composite
def boxes(draw: st.DrawFn) -> Box:
    y0, x0 = draw(ends), draw(ends)
    return Box(y0, x0, y0 + draw(st.integers(0, 12)), x0 + draw(st.integers(0, 12)))


def pixels(box: Box) -> set[tuple[int, int]]:
    return {(y, x) for y in range(box.y0, box.y1) for x in range(box.x0, box.x1)}


@quick
@given(boxes(), boxes())
def test_intersection_holds_exactly_the_common_pixels(a: Box, b: Box) -> None:
    assert pixels(a.intersection(b)) == pixels(a) & pixels(b)


@quick
@given(boxes(), boxes())
def test_union_is_the_smallest_box_that_holds_both(a: Box, b: Box) -> None:
    union, both = a.union(b), pixels(a) | pixels(b)
    assert both <= pixels(union)
    if both:
        rows, columns = zip(*both, strict=True)
        assert union == Box(min(rows), min(columns), max(rows) + 1, max(columns) + 1)


@quick
@given(boxes(), shapes)
def test_clip_keeps_exactly_the_pixels_of_the_image(box: Box, shape: tuple[int, int]) -> None:
    clipped = box.clip(shape)
    assert pixels(clipped) == {
        p for p in pixels(box) if 0 <= p[0] < shape[0] and 0 <= p[1] < shape[1]
    }
    assert np.zeros(shape)[clipped.slices].shape == clipped.shape_yx


@quick
@given(boxes(), st.tuples(st.floats(-25, 35), st.floats(-25, 35)))
def test_a_box_contains_the_points_on_its_pixels(box: Box, point: tuple[float, float]) -> None:
    assert box.contains(point) == (pixel_of(point) in pixels(box))


@quick
@given(st.lists(st.tuples(st.integers(0, 19), st.integers(0, 29)), max_size=5))
def test_around_is_the_smallest_box_of_a_mask(places: list[tuple[int, int]]) -> None:
    mask = np.zeros((20, 30), bool)
    for place in places:
        mask[place] = True
    box = Box.around(mask)
    assert mask[box.slices].sum() == mask.sum()
    if places:
        edges = mask[box.y0], mask[box.y1 - 1], mask[:, box.x0], mask[:, box.x1 - 1]
        assert all(edge.any() for edge in edges)
    else:
        assert box.area == 0


def test_an_inverted_box_is_refused() -> None:
    with pytest.raises(ShapeError, match="give the upper left corner first"):
        Box(5, 0, 4, 10)


def test_a_box_takes_whole_numbers_only() -> None:
    assert Box(np.int64(1), 2, 3, 4) == Box(1, 2, 3, 4)
    with pytest.raises(TypeError):
        Box(0.5, 0, 1, 1)  # type: ignore[arg-type]


def test_pixel_centres_of_an_enlarged_and_a_reduced_tile() -> None:
    assert Tile(-1, 8, 0, 16).to_tile((4.0, 0.0)).tolist() == [0.5, 0.5]
    assert Tile(2, 4, 0, 16).to_tile((17.5, 1.5)).tolist() == [0.0, 0.0]
    assert Tile(2, 4, 0, 16).box0 == Box(16, 0, 80, 64)
    assert Tile(-2, 4, 8, 16).box0 == Box(1, 2, 5, 6)


def test_a_tile_must_cover_whole_level0_pixels() -> None:
    with pytest.raises(ShapeError, match="use multiples of 4"):
        Tile(-2, 2, 0, 16)
    with pytest.raises(ShapeError, match="a level of -2 or more, got -3"):
        Tile(-3, 0, 0, 16)


@quick
@given(shapes, tile_sides, levels)
def test_the_tiles_cover_the_image_on_a_half_overlapping_grid(
    shape: tuple[int, int], tile_px: int, level: int
) -> None:
    grid = TileGrid(shape, tile_px, level)
    tiles = list(grid)
    assert len(tiles) == len(grid) == len(set(tiles))
    assert all(t.y0 % (tile_px // 2) == 0 and t.x0 % (tile_px // 2) == 0 for t in tiles)
    height, width = level_shape(shape, level)
    count = np.zeros((height, width), int)
    for tile in tiles:
        count[tile.y0 : tile.y0 + tile_px, tile.x0 : tile.x0 + tile_px] += 1
    assert count.min() >= 1
    if max(height, width) <= tile_px:
        assert tiles == [Tile(level, 0, 0, tile_px)]


@quick
@given(shapes, tile_sides, levels, st.floats(0, 1), st.floats(0, 1))
def test_the_nearest_tile_holds_the_point_and_has_the_nearest_centre(
    shape: tuple[int, int], tile_px: int, level: int, y_share: float, x_share: float
) -> None:
    point = y_share * (shape[0] - 1), x_share * (shape[1] - 1)
    grid = TileGrid(shape, tile_px, level)
    nearest = grid.nearest(point)
    centre = (tile_px - 1) / 2

    assert nearest in list(grid)
    assert nearest.box0.contains(point)
    assert grid.holding([point]) is not None
    per_axis = np.abs(nearest.to_tile(point) - centre)
    best = np.min([np.abs(tile.to_tile(point) - centre) for tile in grid], axis=0)
    assert per_axis == pytest.approx(best)


@quick
@given(shapes, tile_sides, levels, st.data())
def test_the_smallest_tile_holds_all_points_and_no_finer_one_does(
    shape: tuple[int, int], tile_px: int, level: int, data: st.DataObject
) -> None:
    place = st.tuples(st.integers(0, shape[0] - 1), st.integers(0, shape[1] - 1))
    points = data.draw(st.lists(place, min_size=1, max_size=4))
    tile = TileGrid(shape, tile_px, level).smallest_holding(points)
    assert tile in list(TileGrid(shape, tile_px, tile.level))
    assert all(tile.box0.contains(point) for point in points)
    for finer in range(level, tile.level):
        for other in TileGrid(shape, tile_px, finer):
            assert not all(other.box0.contains(point) for point in points)


def test_no_tile_holds_a_point_outside_the_image() -> None:
    with pytest.raises(ShapeError, match=r"expected points inside the image of shape \(10, 10\)"):
        TileGrid((10, 10), 16).smallest_holding([(0, 400)])


def test_a_grid_needs_an_image_and_a_tile_side_in_eighths() -> None:
    with pytest.raises(ShapeError, match="at least 1 x 1 pixels"):
        TileGrid((0, 5), 16)
    with pytest.raises(ShapeError, match="a positive multiple of 8, got 20"):
        TileGrid((5, 5), 20)


def test_levels_of_large_and_small_images() -> None:
    assert [downsample(level) for level in (-2, -1, 0, 3)] == [0.25, 0.5, 1.0, 8.0]
    assert level_shape((9, 8), 1) == (5, 4)
    assert level_shape((9, 8), -2) == (36, 32)
    assert coarsest_level((512, 100), 512) == 0
    assert coarsest_level((513, 100), 512) == 1
    assert coarsest_level((100_000, 10), 512) == 8
    assert [filling_level((10, side), 512) for side in (1, 128, 129, 256, 257, 9000)] == [
        -2, -2, -1, -1, 0, 0,
    ]  # fmt: skip


@given(
    st.tuples(st.integers(1, 9), st.integers(1, 9)),
    st.tuples(st.integers(0, 30), st.integers(0, 30), st.integers(0, 20), st.integers(0, 20)),
)
def test_a_grid_cuts_a_box_into_parts_that_lie_in_one_block_each(
    side_yx: tuple[int, int], place: tuple[int, int, int, int]
) -> None:
    y0, x0, height, width = place
    box, grid = Box(y0, x0, y0 + height, x0 + width), Grid(side_yx)
    count = np.zeros((60, 60), int)
    for part, block in zip(grid.parts(box), map(grid.box, grid.places(box)), strict=True):
        assert part.area
        assert part.intersection(block) == part
        assert block.shape_yx == side_yx
        assert (block.y0 % side_yx[0], block.x0 % side_yx[1]) == (0, 0)
        count[part.slices] += 1
    assert (count[box.slices] == 1).all()
    assert count.sum() == box.area
    assert grid.cover(box).area == len(list(grid.places(box)))
