"""Objects traced and measured region by region are what they are as a whole."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from label_files import blobs, write_labels
from numpy.typing import NDArray
from skimage.measure import label as connected
from skimage.measure import regionprops

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.export.edges import trace_outlines
from napari_hrsam.storage.export.measures import ObjectTable, measure_objects
from napari_hrsam.storage.export.outlines import Outline, Polygon, chained, signed_area
from napari_hrsam.storage.export.simplify import simplified
from napari_hrsam.storage.labels import regions
from napari_hrsam.storage.labels.regions import Neighbourhood, neighbourhoods
from napari_hrsam.storage.labels.stored import StoredLabels

ALPHABETS = {
    "corners": np.array([[1, 0], [0, 1]]),
    "ring of corners": np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]]),
    "island in a hole": np.array(
        [[1, 1, 1, 1, 1], [1, 0, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 0, 0, 1], [1, 1, 1, 1, 1]]
    ),
    "holes that touch": np.array([[1, 1, 1, 1], [1, 0, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]),
    "hole open at a corner": np.array([[1, 1, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1], [1, 1, 1, 0]]),
    "two labels": np.array([[1, 2, 1], [2, 1, 2], [1, 2, 1]]),
    "one pixel": np.array([[7]]),
    "full": np.full((5, 9), 3),
}


def traced(
    path: Path, labels: NDArray[Any], chunk: int = 4, **options: Any
) -> tuple[ObjectTable, dict[int, Outline]]:
    write_labels(path, labels, chunk=chunk)
    stored = StoredLabels(path, "cells")
    table = measure_objects(stored, (), **options)
    outlines = dict(trace_outlines(stored, (), table, **options))
    assert sorted(outlines) == list(range(len(table)))
    assert [outlines[i].label for i in range(len(table))] == table.labels.tolist()
    return table, {outline.label: outline for outline in outlines.values()}


def filled(polygons: tuple[Polygon, ...], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill polygons by the even-odd rule: a pixel is inside if its centre is."""
    inside = np.zeros(shape, bool)
    y = np.arange(shape[0]) + 0.5
    for polygon in polygons:
        for ring in polygon:
            for (y0, x0), (y1, x1) in zip(ring, np.roll(ring, -1, axis=0), strict=True):
                rows = (y > min(y0, y1)) & (y < max(y0, y1))
                cut = x0 + (y[rows] - y0) * (x1 - x0) / (y1 - y0 or 1)
                columns = np.arange(shape[1]) + 0.5 > cut[:, np.newaxis]
                inside[rows] ^= columns
    return inside


def require_valid(polygons: tuple[Polygon, ...]) -> None:
    """Rings are simple and turn the right way, and each hole lies in its part."""
    for exterior, *holes in polygons:
        assert signed_area(exterior) > 0
        for ring in (exterior, *holes):
            assert len(np.unique(ring, axis=0)) == len(ring) >= 4
        for hole in holes:
            assert signed_area(hole) < 0
            assert (hole.min(axis=0) >= exterior.min(axis=0)).all()
            assert (hole.max(axis=0) <= exterior.max(axis=0)).all()


def random_labels(seed: int) -> NDArray[np.uint32]:
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(1, 24, 2))
    labels = rng.integers(1, 4, shape) * (rng.random(shape) < rng.choice([0.2, 0.5, 0.9]))
    return np.kron(labels, np.ones(rng.integers(1, 4, 2), int)).astype(np.uint32)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 10**6), st.integers(2, 9), st.sampled_from([4, 8, 1024]))
def test_tracing_over_chunks_equals_the_labels(
    tmp_path_factory: pytest.TempPathFactory, seed: int, chunk: int, region_px: int
) -> None:
    labels = random_labels(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "REGION_PX", region_px)
        _, outlines = traced(tmp_path_factory.mktemp("labels"), labels, chunk)
    assert sorted(outlines) == np.unique(labels[labels > 0]).tolist()
    for label, outline in outlines.items():
        mask = labels == label
        require_valid(outline.polygons)
        np.testing.assert_array_equal(filled(outline.polygons, labels.shape), mask)
        assert len(outline.polygons) == connected(mask, connectivity=1).max()
        for polygon in outline.polygons:
            # A part is joined by sides: as many pixels as the rings enclose.
            parts = connected(filled((polygon,), labels.shape), connectivity=1)
            assert parts.max() == 1
            assert (parts > 0).sum() == sum(signed_area(ring) for ring in polygon)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 10**6), st.integers(2, 9))
def test_measures_over_chunks_equal_those_of_scikit_image(
    tmp_path_factory: pytest.TempPathFactory, seed: int, chunk: int
) -> None:
    labels = random_labels(seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "REGION_PX", 8)
        patch.setattr("napari_hrsam.storage.export.measures.MAX_PARTS", 3)
        table, _ = traced(tmp_path_factory.mktemp("labels"), labels, chunk)
    properties = regionprops(labels)
    assert table.labels.tolist() == [p.label for p in properties]
    assert table.area_px.tolist() == [p.area for p in properties]
    if not properties:
        return
    np.testing.assert_array_equal(table.boxes, [p.bbox for p in properties])
    np.testing.assert_allclose(table.centroid_yx, [p.centroid for p in properties])
    np.testing.assert_allclose(table.perimeters(), [p.perimeter_crofton for p in properties])
    major, minor = table.axes()
    np.testing.assert_allclose(major, [p.axis_major_length for p in properties], atol=1e-6)
    np.testing.assert_allclose(minor, [p.axis_minor_length for p in properties], atol=1e-5)


@pytest.mark.parametrize("name", ALPHABETS)
@pytest.mark.parametrize("chunk", [1, 2, 16])
def test_hard_shapes_are_valid_polygons(tmp_path: Path, name: str, chunk: int) -> None:
    labels = ALPHABETS[name].astype(np.uint16)
    _, outlines = traced(tmp_path, labels, chunk)
    for label, outline in outlines.items():
        require_valid(outline.polygons)
        np.testing.assert_array_equal(filled(outline.polygons, labels.shape), labels == label)


def test_parts_and_holes_are_told_apart(tmp_path: Path) -> None:
    counts = {}
    for number, (name, labels) in enumerate(ALPHABETS.items()):
        _, outlines = traced(tmp_path / str(number), labels.astype(np.uint8))
        first = outlines[int(labels.max())]
        counts[name] = len(first.polygons), first.num_holes
    assert counts["corners"] == (2, 0)
    # The corners' inside is background, but no hole of any of the four pixels.
    assert counts["ring of corners"] == (4, 0)
    assert counts["island in a hole"] == (2, 1)
    assert counts["holes that touch"] == (1, 2)
    assert counts["hole open at a corner"] == (1, 1)


def test_an_object_on_four_chunks_and_the_image_border_is_one_polygon(tmp_path: Path) -> None:
    labels = np.zeros((40, 50), np.int32)
    labels[10:40, 12:50] = 70_000
    table, outlines = traced(tmp_path, labels, 16)
    ((exterior,),) = outlines[70_000].polygons
    assert exterior.tolist() == [[10, 12], [10, 50], [40, 50], [40, 12]]
    assert table.box(0) == Box(10, 12, 40, 50)


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "u8", ">u4", "i8"])
def test_labels_of_any_integer_type_are_traced(tmp_path: Path, dtype: str) -> None:
    labels = blobs((60, 70), 5, dtype=np.dtype(dtype))
    if np.dtype(dtype).itemsize == 8:
        labels[labels == 5] = 2**62 + 1
    if dtype == "i4":
        labels[labels == 4] = -4
    _, outlines = traced(tmp_path, labels)
    assert sorted(outlines) == np.unique(labels[labels != 0]).tolist()
    for label, outline in outlines.items():
        np.testing.assert_array_equal(filled(outline.polygons, labels.shape), labels == label)


@settings(deadline=None, max_examples=12)
@given(st.integers(0, 10**6))
def test_a_box_and_a_choice_of_labels_are_looked_at_alone(
    tmp_path_factory: pytest.TempPathFactory, seed: int
) -> None:
    labels = random_labels(seed)
    rng = np.random.default_rng(seed)
    y0, x0 = (int(rng.integers(size)) for size in labels.shape)
    box = Box(y0, x0, int(rng.integers(y0, labels.shape[0])) + 1, labels.shape[1])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "REGION_PX", 8)
        folder = tmp_path_factory.mktemp("labels")
        table, outlines = traced(folder, labels, 4, box=box, only={1, 3, 10**12})
    part = np.zeros_like(labels)
    part[box.slices] = np.where(np.isin(labels, [1, 3]), labels, 0)[box.slices]
    assert sorted(outlines) == np.unique(part[part > 0]).tolist()
    for index, label in enumerate(table.labels.tolist()):
        assert table.area_px[index] == (part == label).sum()
        found = filled(outlines[label].polygons, labels.shape)
        np.testing.assert_array_equal(found, part == label)


def test_every_pair_of_pixels_is_seen_once(tmp_path: Path) -> None:
    """Also where whole rows of regions are missing between others."""
    labels = np.zeros((64, 64), np.uint16)
    labels[0:8, 0:8], labels[56:, 56:], labels[20, 20] = 1, 2, 3
    write_labels(tmp_path, labels, chunk=8)
    stored = StoredLabels(tmp_path, "cells")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(regions, "REGION_PX", 8)
        seen = [n for n in neighbourhoods(stored, ()) if isinstance(n, Neighbourhood)]
    windows = np.zeros((66, 66), int)
    for found in seen:
        height, width = found.values.shape
        windows[found.y0 : found.y0 + height - 1, found.x0 : found.x0 + width - 1] += 1
        # What lies around the image is background, so it is padded by one.
        padded = np.pad(labels, ((1, 1), (1, 1)))
        part = padded[found.y0 : found.y0 + height, found.x0 : found.x0 + width]
        np.testing.assert_array_equal(found.values, part)
    assert windows.max() == 1
    # Every corner at an object is among them; most of the empty image is not.
    assert (windows > 0).sum() < 1000
    assert windows[0:9, 0:9].all()
    assert windows[56:65, 56:65].all()


def test_a_thin_line_across_many_regions_is_one_ring(tmp_path: Path) -> None:
    labels = np.zeros((7, 5000), np.uint8)
    labels[3, 2:4998] = 9
    _, outlines = traced(tmp_path, labels, 64)
    ((ring,),) = outlines[9].polygons
    assert ring.tolist() == [[3, 2], [3, 4998], [4, 4998], [4, 2]]


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 10**6), st.sampled_from([0.5, 1.0, 3.0, 20.0]))
def test_simplified_outlines_stay_valid_and_near(
    tmp_path_factory: pytest.TempPathFactory, seed: int, tolerance_px: float
) -> None:
    labels = random_labels(seed) if seed % 2 else blobs((60, 80), 6, seed)
    _, outlines = traced(tmp_path_factory.mktemp("labels"), labels, 16)
    for outline in outlines.values():
        short = simplified(outline.polygons, tolerance_px)
        assert [len(polygon) for polygon in short] == [len(p) for p in outline.polygons]
        rings = [ring for polygon in short for ring in polygon]
        exact = [ring for polygon in outline.polygons for ring in polygon]
        for ring, was in zip(rings, exact, strict=True):
            assert set(map(tuple, ring)) <= set(map(tuple, was))
            assert signed_area(ring) * signed_area(was) > 0
            for corner in was:
                assert _distance(corner, ring) <= tolerance_px + 1e-9
        _require_no_crossing(rings)


def _distance(point: NDArray[np.int64], ring: NDArray[np.int64]) -> float:
    along = np.roll(ring, -1, axis=0) - ring
    place = ((point - ring) * along).sum(axis=1) / (along**2).sum(axis=1)
    nearest = ring + np.clip(place, 0, 1)[:, np.newaxis] * along
    return float(np.hypot(*(point - nearest).T).min())


def _require_no_crossing(rings: list[NDArray[np.int64]]) -> None:
    """No two sides cross or lie on each other; they touch at their ends at most."""
    sides = [
        (number, tuple(a), tuple(b))
        for number, ring in enumerate(rings)
        for a, b in zip(ring.tolist(), np.roll(ring, -1, axis=0).tolist(), strict=True)
    ]
    for i, (_, a, b) in enumerate(sides):
        for _, c, d in sides[i + 1 :]:
            shared = {a, b} & {c, d}
            turns = [_turn(a, b, c), _turn(a, b, d), _turn(c, d, a), _turn(c, d, b)]
            meets = turns[0] * turns[1] <= 0 and turns[2] * turns[3] <= 0
            boxes = all(
                max(min(a[k], b[k]), min(c[k], d[k])) <= min(max(a[k], b[k]), max(c[k], d[k]))
                for k in (0, 1)
            )
            if meets and boxes:
                assert len(shared) == 1


def _turn(a: tuple[int, ...], b: tuple[int, ...], c: tuple[int, ...]) -> int:
    return int(np.sign((b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])))


def test_a_hole_in_a_bump_stays_inside(tmp_path: Path) -> None:
    """Without its bump, the outline would pass beside the hole and touch nothing."""
    labels = np.zeros((50, 60), np.uint8)
    labels[10:40, 10:50], labels[20:27, 50:53] = 1, 1
    labels[23, 51] = 0
    _, outlines = traced(tmp_path, labels, 16)
    ((exterior, hole),) = simplified(outlines[1].polygons, 4.0)
    assert filled(((exterior,),), labels.shape)[23, 51]
    np.testing.assert_array_equal(np.argwhere(filled(((hole,),), labels.shape)), [[23, 51]])
    labels[23, 51] = 1
    _, outlines = traced(tmp_path / "b", labels, 16)
    ((exterior,),) = simplified(outlines[1].polygons, 4.0)
    assert len(exterior) == 4


def test_a_pixel_and_a_hole_of_one_stay_squares(tmp_path: Path) -> None:
    labels = np.ones((9, 9), np.uint8)
    labels[4, 4] = 2
    _, outlines = traced(tmp_path, labels, 16)
    ((exterior, hole),) = simplified(outlines[1].polygons, 2.0)
    ((pixel,),) = simplified(outlines[2].polygons, 2.0)
    assert len(exterior) == len(hole) == len(pixel) == 4


def test_a_round_outline_is_simplified_to_few_corners(tmp_path: Path) -> None:
    y, x = np.ogrid[:300, :300]
    labels = (np.hypot(y - 150, x - 150) < 120).astype(np.uint8)
    _, outlines = traced(tmp_path, labels, 64)
    (exact,) = outlines[1].polygons[0]
    ((short,),) = simplified(outlines[1].polygons, 1.0)
    assert len(short) < len(exact) / 5
    mask = filled(((short,),), labels.shape)
    assert (mask & (labels > 0)).sum() / (mask | (labels > 0)).sum() > 0.98


def test_edges_that_do_not_close_are_no_outline() -> None:
    square = np.array([[0, 0, 0, 1], [1, 1, 0, 1], [2, 1, 0, 1], [3, 0, 0, 1]])
    polygons = chained(square)
    assert polygons is not None
    assert chained(square[:3]) is None
    assert chained(np.array([[0, 0, 0, 1], [1, 2, 0, 1], [2, 1, 0, 1], [3, 0, 0, 1]])) is None


def test_labels_drawn_into_while_they_are_traced_are_told(tmp_path: Path) -> None:
    labels = blobs((40, 40), 3)
    group = write_labels(tmp_path, labels)
    stored = StoredLabels(tmp_path, "cells")
    table = measure_objects(stored, ())
    group["0"][0:3, 0:3] = 99
    with pytest.raises(LabelsError, match="stay as they are.*changed; close them"):
        list(trace_outlines(stored, (), table))
    group["0"][...] = labels
    group["0"][38:, 0:30] = labels.max()
    with pytest.raises(LabelsError, match="stay as they are.*changed; close them"):
        list(trace_outlines(stored, (), table))


def test_a_damaged_chunk_is_named(tmp_path: Path) -> None:
    write_labels(tmp_path, blobs((40, 40), 3))
    (tmp_path / "labels/cells/0/c/0/1").write_bytes(b"damage")
    with pytest.raises(LabelsError, match="damaged chunk"):
        measure_objects(StoredLabels(tmp_path, "cells"), ())


_LARGE = """
import resource, sys, time
import numpy as np
from napari_hrsam.storage.export.edges import trace_outlines
from napari_hrsam.storage.export.measures import measure_objects
from napari_hrsam.storage.labels.stored import StoredLabels
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
stored = StoredLabels(sys.argv[1], "cells")
table = measure_objects(stored, ())
(outline,) = (outline for _, outline in trace_outlines(stored, (), table))
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024
print(int(table.area_px[0]), len(outline.polygons), outline.num_holes, grown)
print(int(time.process_time()))
"""


def test_an_object_of_20000_pixels_is_traced_in_little_memory(tmp_path: Path) -> None:
    """A frame of 20,000 x 20,000 pixels and 100 thick in a 100,000 x 100,000 image."""
    labels = np.zeros((8, 8), np.uint32)
    group = write_labels(tmp_path, labels)
    del group["0"]
    array = group.create_array(
        "0",
        shape=(100_000, 100_000),
        chunks=(512, 512),
        dtype="u4",
        fill_value=0,
        dimension_names=["y", "x"],
    )
    first, last = 30_000, 50_000
    for strip in (
        np.s_[first : first + 100, first:last],
        np.s_[last - 100 : last, first:last],
        np.s_[first:last, first : first + 100],
        np.s_[first:last, last - 100 : last],
    ):
        array[strip] = 5
    done = subprocess.run(
        [sys.executable, "-c", _LARGE, str(tmp_path)], capture_output=True, text=True, check=True
    )
    area, parts, holes, grown_mib, cpu_s = map(int, done.stdout.split())
    assert (area, parts, holes) == (20_000**2 - 19_800**2, 1, 1)
    # Dense it would take 1.5 GiB.
    assert grown_mib < 100
    # Of the processor's time, whatever else runs.
    assert cpu_s < 60
