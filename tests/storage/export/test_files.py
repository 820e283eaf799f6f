"""GeoJSON, COCO, TIFF and CSV hold the objects as they are."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from label_files import blobs, coarser, write_labels
from numpy.typing import NDArray
from skimage.draw import polygon2mask
from skimage.measure import regionprops

import napari_hrsam as hrsam
from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.prompts import Prompts
from napari_hrsam.storage.export.coco import compressed, export_coco, run_lengths
from napari_hrsam.storage.export.geojson import export_geojson
from napari_hrsam.storage.export.outlines import Outline
from napari_hrsam.storage.export.source import part_of
from napari_hrsam.storage.export.table import export_csv
from napari_hrsam.storage.export.tiff import export_tiff
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.edits import DrawnAs
from napari_hrsam.storage.labels.stored import StoredLabels

SHAPE = (90, 120)
EXPORTS = {
    "a.geojson": export_geojson,
    "a.json": export_coco,
    "a.tif": export_tiff,
    "a.csv": export_csv,
}


@pytest.fixture
def labels() -> NDArray[np.uint32]:
    return blobs(SHAPE, 12, seed=3)


def mask_of(geometry: dict[str, Any], shape: tuple[int, int]) -> NDArray[np.bool_]:
    """Fill a Polygon or MultiPolygon by scikit-image, whose pixel centres are whole numbers."""
    polygons = geometry["coordinates"]
    if geometry["type"] == "Polygon":
        polygons = [polygons]
    inside = np.zeros(shape, bool)
    for polygon in polygons:
        for ring in polygon:
            assert ring[0] == ring[-1]
            inside ^= polygon2mask(shape, np.array(ring)[:, ::-1] - 0.5)
    return inside


def decoded(segmentation: dict[str, Any]) -> NDArray[np.bool_]:
    """Decode run lengths, text or plain, as COCO describes them."""
    counts = segmentation["counts"]
    if isinstance(counts, str):
        numbers: list[int] = []
        value = shift = 0
        for letter in counts:
            bits = ord(letter) - 48
            value |= (bits & 31) << shift
            shift += 5
            if not bits & 32:
                value -= (1 << shift) if bits & 16 else 0
                numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
                value = shift = 0
        counts = numbers
    assert all(count > 0 for count in counts[1:])
    height, width = segmentation["size"]
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape(width, height).T


def features(path: Path) -> dict[int, dict[str, Any]]:
    found = json.loads(path.read_text(encoding="utf-8"))
    assert found["type"] == "FeatureCollection"
    return {feature["properties"]["label"]: feature for feature in found["features"]}


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_geojson_polygons_filled_are_the_objects(
    tmp_path: Path, labels: NDArray[np.uint32], version: str
) -> None:
    write_labels(tmp_path / "a.zarr", labels, version=version)
    done = hrsam.export_geojson(tmp_path / "a.zarr", "cells", tmp_path / "a.geojson")
    found = features(tmp_path / "a.geojson")
    assert sorted(found) == np.unique(labels[labels > 0]).tolist()
    assert (done.num_objects, done.num_bytes) == (len(found), Path(done.path).stat().st_size)
    for label, feature in found.items():
        np.testing.assert_array_equal(mask_of(feature["geometry"], SHAPE), labels == label)
    assert any(feature["geometry"]["type"] == "MultiPolygon" for feature in found.values())
    assert any(f["properties"]["measurements"]["holes"] for f in found.values())


def test_geojson_features_have_what_qupath_reads(tmp_path: Path) -> None:
    labels = np.zeros((20, 30), np.uint16)
    labels[4:9, 10:20] = 3
    write_labels(tmp_path / "a.zarr", labels, scale=(0.5, 0.25), unit="micrometer")
    export_geojson(tmp_path / "a.zarr", "cells", tmp_path / "a.geojson", object_type="detection")
    text = (tmp_path / "a.geojson").read_text(encoding="utf-8")
    assert text.startswith('{"type": "FeatureCollection"')
    assert json.loads(text)["napari_hrsam"] == {
        "version": hrsam.__version__,
        "labels": "cells",
        "image_shape_yx": [20, 30],
        "plane": [],
        "box": [0, 0, 20, 30],
        "units": "pixel",
        "unit": "pixel",
        "pixel_size_yx": [0.5, 0.25],
        "pixel_size_unit": "micrometer",
        "translation_yx": [0.0, 0.0],
        "simplify_px": 0.0,
        "coordinates": "x, y in level-0 pixels; pixel (0, 0) is the square from 0 to 1",
    }
    feature = features(tmp_path / "a.geojson")[3]
    corners = [[10, 4], [20, 4], [20, 9], [10, 9], [10, 4]]
    assert feature["geometry"] == {"type": "Polygon", "coordinates": [corners]}
    properties = feature["properties"]
    assert properties["objectType"] == "detection"
    assert (properties["name"], properties["classification"]) == ("3", {"name": "cells"})
    measured = properties["measurements"]
    assert (measured["area_px"], measured["area"], measured["parts"]) == (50, 6.25, 1)
    assert "model" not in properties


def test_physical_coordinates_follow_scale_and_translation(tmp_path: Path) -> None:
    labels = np.zeros((20, 30), np.uint16)
    labels[4:9, 10:20] = 3
    write_labels(
        tmp_path / "a.zarr", labels, scale=(0.5, 0.25), translation=(100, 7), unit="micrometer"
    )
    out = tmp_path / "a.geojson"
    export_geojson(tmp_path / "a.zarr", "cells", out, units="physical")
    # The centre of the first pixel lies at the translation, its corner half a pixel before.
    x0, y0, x1, y1 = 7 + 9.5 * 0.25, 100 + 3.5 * 0.5, 7 + 19.5 * 0.25, 100 + 8.5 * 0.5
    corners = [[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]
    assert features(out)[3]["geometry"]["coordinates"] == [corners]
    head = json.loads(out.read_text())["napari_hrsam"]
    assert (head["units"], head["unit"]) == ("physical", "micrometer")
    assert "translation_yx" in head["coordinates"]


def test_simplified_geojson_keeps_the_objects(tmp_path: Path) -> None:
    y, x = np.ogrid[:400, :400]
    labels = (np.hypot(y - 200, x - 190) < 150).astype(np.uint8)
    labels[np.hypot(y - 200, x - 190) < 60] = 0
    write_labels(tmp_path / "a.zarr", labels, chunk=64)
    sizes = {}
    for tolerance_px in (0.0, 1.0):
        out = tmp_path / f"{tolerance_px}.geojson"
        sizes[tolerance_px] = export_geojson(
            tmp_path / "a.zarr", "cells", out, simplify_px=tolerance_px
        ).num_bytes
        mask = mask_of(features(out)[1]["geometry"], labels.shape)
        overlap = (mask & (labels > 0)).sum() / (mask | (labels > 0)).sum()
        assert overlap == 1 if tolerance_px == 0 else overlap > 0.98
    assert sizes[1.0] < sizes[0.0] / 3


@pytest.mark.parametrize("segmentation", ["rle", "counts"])
def test_coco_run_lengths_are_the_objects(
    tmp_path: Path, labels: NDArray[np.uint32], segmentation: Any
) -> None:
    write_labels(tmp_path / "a.zarr", labels)
    out = tmp_path / "a.json"
    hrsam.export_coco(tmp_path / "a.zarr", "cells", out, segmentation=segmentation)
    coco = json.loads(out.read_text())
    assert coco["images"] == [{"id": 1, "file_name": "a.zarr", "width": 120, "height": 90}]
    assert coco["categories"] == [{"id": 1, "name": "cells", "supercategory": ""}]
    boxes = {p.label: p.bbox for p in regionprops(labels)}
    assert sorted(a["id"] for a in coco["annotations"]) == sorted(boxes)
    for annotation in coco["annotations"]:
        mask = labels == annotation["id"]
        np.testing.assert_array_equal(decoded(annotation["segmentation"]), mask)
        y0, x0, y1, x1 = boxes[annotation["id"]]
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert (annotation["area"], annotation["iscrowd"]) == (mask.sum(), 0)
        assert (annotation["image_id"], annotation["category_id"]) == (1, 1)


def test_coco_polygons_fall_back_to_run_lengths_at_holes(tmp_path: Path) -> None:
    labels = np.zeros((30, 40), np.uint8)
    labels[2:12, 3:23] = 1
    labels[20:28, 5:13] = 2
    labels[22:25, 7:9] = 0
    labels[0, 39] = labels[29, 39] = 3
    write_labels(tmp_path / "a.zarr", labels)
    out = tmp_path / "a.json"
    export_coco(tmp_path / "a.zarr", "cells", out, segmentation="polygons")
    found = {a["id"]: a["segmentation"] for a in json.loads(out.read_text())["annotations"]}
    assert found[1] == [[3, 2, 23, 2, 23, 12, 3, 12]]
    np.testing.assert_array_equal(decoded(found[2]), labels == 2)
    assert found[3] == [[39, 0, 40, 0, 40, 1, 39, 1], [39, 29, 40, 29, 40, 30, 39, 30]]


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 10**10), min_size=1, max_size=30))
def test_any_run_lengths_survive_the_text(counts: list[int]) -> None:
    text = compressed(np.array(counts))
    assert set(map(ord, text)) <= set(range(48, 112))
    numbers: list[int] = []
    value = shift = 0
    for letter in text:
        bits = ord(letter) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) if bits & 16 else 0
            numbers.append(value + (numbers[-2] if len(numbers) > 2 else 0))
            value = shift = 0
    assert numbers == counts


def test_runs_that_go_on_in_the_next_column_are_one() -> None:
    square = np.array([[0, 0], [0, 3], [4, 3], [4, 0]])
    assert run_lengths(Outline(1, ((square,),)), Box(0, 0, 4, 3)).tolist() == [0, 12]
    assert run_lengths(Outline(1, ((square,),)), Box(0, 0, 4, 5)).tolist() == [0, 12, 8]
    assert run_lengths(Outline(1, ((square,),)), Box(0, 0, 5, 3)).tolist() == [0, 4, 1, 4, 1, 4, 1]


@pytest.mark.parametrize("dtype", ["u1", "u2", "i4", "u4", ">u2", "u8"])
def test_tiff_is_the_label_image(tmp_path: Path, dtype: str) -> None:
    labels = blobs((700, 1100), 9, dtype=np.dtype(dtype))
    if dtype == "u8":
        labels[labels == 9] = 70_000
    write_labels(
        tmp_path / "a.zarr", labels, chunk=256, scale=(0.5, 0.25), unit="micrometer", num_levels=2
    )
    out = tmp_path / "a.ome.tif"
    done = hrsam.export_tiff(tmp_path / "a.zarr", "cells", out)
    assert done.num_objects == len(np.unique(labels)) - 1
    with tifffile.TiffFile(out) as file:
        (page,) = file.pages
        assert page.is_tiled
        assert page.compression.name in {"ADOBE_DEFLATE", "DEFLATE"}
        # X and Y: pixels per centimetre.
        resolution = [np.divide(*page.tags[name].value) for name in ("XResolution", "YResolution")]
        np.testing.assert_allclose(resolution, [40_000, 20_000])
        assert file.is_ome
        assert 'PhysicalSizeX="0.25" PhysicalSizeXUnit="µm"' in file.ome_metadata
        np.testing.assert_array_equal(page.asarray(), labels)
    coarse = tmp_path / "coarse.tif"
    export_tiff(tmp_path / "a.zarr", "cells", coarse, level=1, box=(101, 202, 399, 901))
    np.testing.assert_array_equal(tifffile.imread(coarse), coarser(labels)[50:200, 101:451])
    export_tiff(tmp_path / "a.zarr", "cells", coarse, labels=[3, 4], overwrite=True)
    chosen = np.where(np.isin(labels, [3, 4]), labels, 0)
    np.testing.assert_array_equal(tifffile.imread(coarse), chosen)


def test_a_label_too_high_for_a_tiff_is_told_before_anything_is_written(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.zarr", np.array([[0, 2**32]], np.uint64))
    with pytest.raises(LabelsError, match="labels from 0 to 4294967295.*got 4294967296"):
        export_tiff(tmp_path / "a.zarr", "cells", tmp_path / "a.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]
    with pytest.raises(LabelsError, match="expected a level from 0 to 0, got 1"):
        export_tiff(tmp_path / "a.zarr", "cells", tmp_path / "a.tif", level=1)


def test_a_huge_sparse_tiff_takes_no_space_and_time(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a.zarr", "cells", (60_000, 60_000)) as labels:
        labels.write(Box(40_000, 50_000, 40_010, 50_010), np.ones((10, 10), bool), 1)
    start = time.process_time()
    done = export_tiff(tmp_path / "a.zarr", "cells", tmp_path / "a.tif")
    assert done.num_bytes < 20 * 2**20
    # Of the processor's time; 3.6 thousand million pixels one by one take minutes.
    assert time.process_time() - start < 60
    with tifffile.TiffFile(tmp_path / "a.tif") as file:
        assert file.is_bigtiff
        assert file.pages[0].shape == (60_000, 60_000)
        page = file.pages[0]
        index = 40_000 // 512 * -(-60_000 // 512) + 50_000 // 512
        file.filehandle.seek(page.dataoffsets[index])
        tile, *_ = page.decode(file.filehandle.read(page.databytecounts[index]), index)
        assert (tile == 1).sum() == 100


def test_csv_equals_scikit_image(tmp_path: Path, labels: NDArray[np.uint32]) -> None:
    write_labels(tmp_path / "a.zarr", labels, scale=(0.5, 0.5), translation=(3, 4), unit="meter")
    done = hrsam.export_csv(tmp_path / "a.zarr", "cells", tmp_path / "a.csv")
    table = rows(tmp_path / "a.csv")
    properties = regionprops(labels)
    assert [int(row["label"]) for row in table] == [p.label for p in properties]
    assert done.num_objects == len(table)
    for row, known in zip(table, properties, strict=True):
        assert int(row["area_px"]) == known.area
        box = [int(row[f"{end}_px"]) for end in ("y0", "x0", "y1", "x1")]
        assert box == list(known.bbox)
        expected = {
            "centroid_y_px": known.centroid[0],
            "centroid_x_px": known.centroid[1],
            "perimeter_px": known.perimeter_crofton,
            "equivalent_diameter_px": known.equivalent_diameter_area,
            "major_axis_px": known.axis_major_length,
            "minor_axis_px": known.axis_minor_length,
            "eccentricity": known.eccentricity,
            "area": known.area / 4,
            "centroid_y": known.centroid[0] / 2 + 3,
            "centroid_x": known.centroid[1] / 2 + 4,
            "perimeter": known.perimeter_crofton / 2,
            "equivalent_diameter": known.equivalent_diameter_area / 2,
            "major_axis": known.axis_major_length / 2,
            "minor_axis": known.axis_minor_length / 2,
        }
        for column, value in expected.items():
            assert float(row[column]) == pytest.approx(value, rel=1e-8, abs=1e-6), column
        # Four-connected: parts less holes is the Euler number where no corners touch.
        assert int(row["parts"]) >= 1
        assert row["unit"] == "meter"
        assert (row["model"], row["committed"], row["prompts"]) == ("", "", "")


def test_oblong_pixels_give_true_lengths(tmp_path: Path) -> None:
    """A disc of 60 um in pixels of 0.5 x 1.5 um; 0.1 um in 188 is the error of four directions."""
    y, x = np.mgrid[:160, :60]
    labels = (np.hypot((y - 80) * 0.5, (x - 30) * 1.5) < 30).astype(np.uint8)
    write_labels(tmp_path / "a.zarr", labels, scale=(0.5, 1.5), unit="micrometer")
    export_csv(tmp_path / "a.zarr", "cells", tmp_path / "a.csv")
    (row,) = rows(tmp_path / "a.csv")
    assert float(row["perimeter"]) == pytest.approx(60 * np.pi, rel=0.03)
    assert float(row["equivalent_diameter"]) == pytest.approx(60, rel=0.01)
    assert float(row["major_axis"]) == pytest.approx(60, rel=0.02)
    assert float(row["minor_axis"]) == pytest.approx(60, rel=0.02)
    assert float(row["eccentricity"]) < 0.2
    assert float(row["area"]) == pytest.approx(np.pi * 900, rel=0.01)


def test_the_journal_tells_of_each_object(tmp_path: Path) -> None:
    prompts = Prompts().with_click((5, 5), True).with_click((30, 30), False)
    with create_labels(tmp_path / "a.zarr", "cells", (64, 64)) as labels:
        labels.write(
            Box(2, 2, 9, 9), np.ones((7, 7), bool), 1, drawn=DrawnAs(prompts=prompts, model="tiny")
        )
        undone = labels.write(Box(20, 2, 29, 9), np.ones((9, 7), bool), 2, drawn=DrawnAs(model="b"))
        labels.revert(undone)
        # While they are open elsewhere, and after.
        for name in ("open", "closed"):
            done = export_csv(tmp_path / "a.zarr", "cells", tmp_path / f"{name}.csv")
            labels.close()
            (row,) = rows(Path(done.path))
            assert (row["label"], row["model"], row["prompts"]) == ("1", "tiny", "2")
            assert row["committed"].startswith("20")
            assert row["committed"].endswith("+00:00")
    export_geojson(tmp_path / "a.zarr", "cells", tmp_path / "a.geojson")
    assert features(tmp_path / "a.geojson")[1]["properties"]["model"] == "tiny"
    before = sorted((tmp_path / "a.zarr/labels/cells/.journal").iterdir())
    open_labels(tmp_path / "a.zarr", "cells", mode="r").read()
    assert sorted((tmp_path / "a.zarr/labels/cells/.journal").iterdir()) == before


def test_a_damaged_journal_costs_its_columns_only(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with create_labels(tmp_path / "a.zarr", "cells", (64, 64)) as labels:
        labels.write(Box(2, 2, 9, 9), np.ones((7, 7), bool), 1, drawn=DrawnAs(model="tiny"))
    (tmp_path / "a.zarr/labels/cells/.journal/journal.sqlite").write_bytes(b"no database" * 99)
    export_csv(tmp_path / "a.zarr", "cells", tmp_path / "a.csv")
    (row,) = rows(tmp_path / "a.csv")
    assert (row["area_px"], row["model"]) == ("49", "")
    assert "expected an intact journal, got DatabaseError" in caplog.text


def test_planes_boxes_and_choices_of_objects(tmp_path: Path) -> None:
    stack = np.stack([[blobs((40, 50), 4, seed=t * 2 + z) for z in range(2)] for t in range(3)])
    write_labels(tmp_path / "a.zarr", stack)
    export_csv(tmp_path / "a.zarr", "cells", tmp_path / "a.csv", plane=(2, 1))
    areas = {int(row["label"]): int(row["area_px"]) for row in rows(tmp_path / "a.csv")}
    assert areas == {p.label: p.area for p in regionprops(stack[2, 1])}
    box = Box(5, 7, 33, 41)
    chosen = sorted(np.unique(stack[2, 1][box.slices])[1:3].tolist())
    options: dict[str, Any] = {"box": box, "labels": chosen, "plane": (2, 1)}
    part = np.zeros_like(stack[2, 1])
    part[box.slices] = np.where(np.isin(stack[2, 1], chosen), stack[2, 1], 0)[box.slices]
    export_geojson(tmp_path / "a.zarr", "cells", tmp_path / "a.geojson", **options)
    for label, feature in features(tmp_path / "a.geojson").items():
        np.testing.assert_array_equal(mask_of(feature["geometry"], (40, 50)), part == label)
    export_tiff(tmp_path / "a.zarr", "cells", tmp_path / "a.tif", **options)
    np.testing.assert_array_equal(tifffile.imread(tmp_path / "a.tif"), part[box.slices])
    export_coco(tmp_path / "a.zarr", "cells", tmp_path / "a.json", **options)
    for annotation in json.loads((tmp_path / "a.json").read_text())["annotations"]:
        np.testing.assert_array_equal(
            decoded(annotation["segmentation"]), part[box.slices] == annotation["id"]
        )
    with pytest.raises(LabelsError, match=r"planes of shape \(3, 2\), got \(3, 0\)"):
        export_csv(tmp_path / "a.zarr", "cells", tmp_path / "b.csv", plane=(3, 0))


@pytest.mark.parametrize("name", EXPORTS)
def test_labels_without_objects_give_a_whole_file(tmp_path: Path, name: str) -> None:
    write_labels(tmp_path / "a.zarr", np.zeros((20, 30), np.uint16))
    assert EXPORTS[name](tmp_path / "a.zarr", "cells", tmp_path / name).num_objects == 0
    if name.endswith("json"):
        json.loads((tmp_path / name).read_text())


@pytest.mark.parametrize("name", EXPORTS)
def test_existing_files_are_kept_unless_told(tmp_path: Path, name: str) -> None:
    write_labels(tmp_path / "a.zarr", blobs((20, 30), 3))
    (tmp_path / name).write_text("precious")
    with pytest.raises(LabelsError, match="expected a new file, but .* exists already"):
        EXPORTS[name](tmp_path / "a.zarr", "cells", tmp_path / name)
    assert (tmp_path / name).read_text() == "precious"
    EXPORTS[name](tmp_path / "a.zarr", "cells", tmp_path / name, overwrite=True)
    assert (tmp_path / name).read_bytes()[:8] != b"precious"


@pytest.mark.parametrize("name", EXPORTS)
def test_a_stopped_export_leaves_no_file(tmp_path: Path, name: str) -> None:
    def stop(done: int, total: int) -> None:
        assert 0 < done <= total
        if done == total:
            raise KeyboardInterrupt

    write_labels(tmp_path / "a.zarr", blobs((20, 30), 3))
    with pytest.raises(KeyboardInterrupt):
        EXPORTS[name](tmp_path / "a.zarr", "cells", tmp_path / name, progress=stop)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


def test_wrong_wishes_are_told(tmp_path: Path) -> None:
    write_labels(tmp_path / "a.zarr", blobs((20, 30), 3))
    out = tmp_path / "a.csv"
    with pytest.raises(LabelsError, match="expected a label image 'nuclei'.*got only cells"):
        export_csv(tmp_path / "a.zarr", "nuclei", out)
    with pytest.raises(LabelsError, match="expected a label image.*got none"):
        export_csv(tmp_path / "b.zarr", "cells", out)
    # A name leads nowhere else, also where there is something.
    for name in ("../labels/cells", "cells/../cells", "..", ".", ""):
        with pytest.raises(LabelsError, match="expected a label image '"):
            export_csv(tmp_path / "a.zarr", name, out)
    with pytest.raises(LabelsError, match="got none with the label 77, 78; leave them out"):
        export_csv(tmp_path / "a.zarr", "cells", out, labels=[1, 78, 77])
    for box in (Box(0, 0, 21, 30), Box(5, 5, 5, 9)):
        with pytest.raises(LabelsError, match=r"inside the labels of shape \(20, 30\), got Box"):
            export_csv(tmp_path / "a.zarr", "cells", out, box=box)
    with pytest.raises(LabelsError, match="expected simplify_px of 0 or more"):
        export_geojson(tmp_path / "a.zarr", "cells", out, simplify_px=-1)
    with pytest.raises(LabelsError, match="a folder on this computer for labels, got https"):
        export_csv("https://x.org/a.zarr", "cells", out)
    (tmp_path / "file").write_text("")
    with pytest.raises(LabelsError, match="expected to write .*file/a.csv, got"):
        export_csv(tmp_path / "a.zarr", "cells", tmp_path / "file" / "a.csv")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.zarr", "file"]


def test_labels_that_are_none_are_told(tmp_path: Path) -> None:
    group = write_labels(tmp_path / "a.zarr", np.ones((4, 6, 8), np.uint8), chunk=4)
    ome = dict(group.attrs["ome"])
    image = ome["multiscales"][0]
    image["axes"] = [{"name": n} for n in ("y", "x", "z")]
    group.attrs["ome"] = ome
    with pytest.raises(LabelsError, match=r"last axes are y and x, got \('y', 'x', 'z'\)"):
        part_of(tmp_path / "a.zarr", "cells")
    write_labels(tmp_path / "b.zarr", np.ones((6, 8), np.float32), chunk=4)
    with pytest.raises(LabelsError, match="labels of integers.*dtype float32; convert"):
        StoredLabels(tmp_path / "b.zarr", "cells")
    (tmp_path / "b.zarr/labels/cells/zarr.json").write_text("{")
    with pytest.raises(LabelsError, match="got metadata that cannot be used"):
        StoredLabels(tmp_path / "b.zarr", "cells")


def test_labels_drawn_by_us_are_exported_at_any_chunk(tmp_path: Path) -> None:
    """From masks to polygons and back, over the corner of four chunks."""
    mask = blobs((300, 300), 1, seed=8) > 0
    with create_labels(tmp_path / "a.zarr", "cells", (1100, 1100)) as labels:
        labels.write(Box(400, 380, 700, 680), mask, 1)
    with open_labels(tmp_path / "a.zarr", "cells"):
        export_geojson(tmp_path / "a.zarr", "cells", tmp_path / "a.geojson")
    found = mask_of(features(tmp_path / "a.geojson")[1]["geometry"], (1100, 1100))
    assert found.sum() == mask.sum()
    np.testing.assert_array_equal(found[400:700, 380:680], mask)


IN_ZARR = {
    "chunk": "labels/cells/0/c/0/0",
    "chunk that is not stored": "labels/cells/0/c/7/7",
    "metadata": "labels/cells/zarr.json",
    "journal": "labels/cells/.journal/journal.sqlite",
    "log of the journal": "labels/cells/.journal/journal.sqlite-wal",
    "chunk of other labels": "labels/others/0/0.0",
    "chunk of the image": "0/c/0/0",
    "by a link": "../link/0",
}


@pytest.mark.parametrize("place", IN_ZARR)
@pytest.mark.parametrize("name", EXPORTS)
def test_an_export_never_replaces_a_part_of_zarr_data(
    tmp_path: Path, name: str, place: str
) -> None:
    root = tmp_path / "a.zarr"
    with create_labels(root, "cells", SHAPE) as store:
        store.write(Box(2, 2, 9, 9), np.ones((7, 7), bool), 1)
    write_labels(root, np.zeros(SHAPE, np.uint8), name="others")
    zarr.create_array(root / "0", shape=SHAPE, chunks=(64, 64), dtype="u1")[...] = 1
    zarr.create_array(
        root / "labels/others/0", shape=SHAPE, dtype="u1", zarr_format=2, overwrite=True
    )[...] = 1
    (tmp_path / "link").symlink_to(root / "labels/cells/0/c/0")
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    with pytest.raises(LabelsError, match="a file of its own, got .* choose a name outside of it"):
        EXPORTS[name](root, "cells", root / IN_ZARR[place], overwrite=True)
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before
    # Beside the arrays there is room.
    (root / "tables").mkdir()
    EXPORTS[name](root, "cells", root / "tables" / name)


@pytest.mark.parametrize("export", [export_csv, export_geojson, export_coco])
def test_an_id_below_zero_is_no_object(tmp_path: Path, export: Any) -> None:
    labels = np.zeros((40, 40), np.int32)
    labels[:5, :5], labels[10:20, 10:20] = -1, 3
    write_labels(tmp_path, labels)
    with pytest.raises(LabelsError, match="numbered from 1 in 'cells', got -1"):
        export(tmp_path, "cells", tmp_path / "a.json")
    assert export(tmp_path, "cells", tmp_path / "a.json", labels=[3]).num_objects == 1


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_every_export_tells_the_class(
    tmp_path: Path, labels: NDArray[np.uint32], version: str
) -> None:
    write_labels(tmp_path / "a.zarr", labels, version=version)
    first, second, *_ = ids = np.unique(labels[labels > 0]).tolist()
    with hrsam.open_labels(tmp_path / "a.zarr", "cells") as opened:
        opened.add_class("debris", (1, 2, 3))
        opened.set_class([first], "nucleus")
        opened.set_class([second], "debris")
        nucleus = opened.classes[1].color
        assert hrsam.verify_labels(tmp_path / "a.zarr", "cells").is_sound
    for suffix in ("geojson", "json", "csv"):
        opened.export(tmp_path / f"a.{suffix}")
    found = features(tmp_path / "a.geojson")
    told = [found[label]["properties"]["classification"] for label in ids]
    assert told[:2] == [
        {"name": "nucleus", "color": list(nucleus)},
        {"name": "debris", "color": [1, 2, 3]},
    ]
    assert told[2:] == [{"name": "cells"}] * (len(ids) - 2)
    coco = json.loads((tmp_path / "a.json").read_text())
    names = {one["id"]: one["name"] for one in coco["categories"]}
    assert list(names.values()) == ["cells", "debris", "nucleus"]
    categories = {one["id"]: names[one["category_id"]] for one in coco["annotations"]}
    table = {int(row["label"]): row["class"] for row in rows(tmp_path / "a.csv")}
    for label in ids:
        own = {first: "nucleus", second: "debris"}.get(label, "")
        assert categories[label] == (own or "cells")
        assert table[label] == own
