"""Files of objects drawn into label images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from label_files import blobs, write_labels

from napari_hrsam.errors import LabelsError
from napari_hrsam.geometry import Box
from napari_hrsam.storage.export.formats import export_labels
from napari_hrsam.storage.importing import json_items, objects
from napari_hrsam.storage.importing.coco import import_coco
from napari_hrsam.storage.importing.formats import import_format, import_objects
from napari_hrsam.storage.importing.geojson import import_geojson
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.array_labels import ArrayLabels
from napari_hrsam.storage.labels.check import verify_labels

SHAPE = (30, 40)
FORMATS: list[dict[str, Any]] = [
    {"file_format": "geojson"},
    {"file_format": "geojson", "units": "physical"},
    {"file_format": "coco"},
    {"file_format": "coco", "segmentation": "counts"},
    {"file_format": "coco", "segmentation": "polygons"},
]


def square(y: float, x: float, side: float = 5) -> dict[str, Any]:
    corners = [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]
    return {"type": "Polygon", "coordinates": [corners]}


def feature(geometry: Any, **properties: Any) -> dict[str, Any]:
    return {"type": "Feature", "geometry": geometry, "properties": properties}


@pytest.fixture
def labels() -> ArrayLabels:
    return ArrayLabels(SHAPE)


@pytest.fixture
def put(tmp_path: Path) -> Any:
    def write(content: Any, name: str = "a.json") -> Path:
        text = content if isinstance(content, str) else json.dumps(content)
        (tmp_path / name).write_text(text, encoding="utf-8")
        return tmp_path / name

    return write


def coco(*annotations: dict[str, Any], **more: Any) -> dict[str, Any]:
    filled = [{"id": n, "image_id": 1, "category_id": 1} | a for n, a in enumerate(annotations, 1)]
    height, width = SHAPE
    image = {"id": 1, "file_name": "a.png", "width": width, "height": height}
    return {"annotations": filled, "images": [image], "categories": []} | more


@settings(deadline=None, max_examples=25)
@given(
    pixels=arrays.arrays(np.uint8, (9, 11), elements=st.integers(0, 4)),
    options=st.sampled_from(FORMATS),
)
def test_an_export_comes_back_pixel_by_pixel(
    tmp_path_factory: pytest.TempPathFactory, pixels: np.ndarray, options: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("trip")
    write_labels(
        folder / "a.zarr",
        pixels.astype(np.uint32),
        scale=(0.37, 1.9),
        translation=(-71.3, 1e4),
        unit="micrometer",
    )
    export_labels(folder / "a.zarr", "cells", folder / "a.json", **options)
    drawn = ArrayLabels(pixels.shape)
    if pixels.any() or options["file_format"] == "coco":
        done = import_objects(folder / "a.json", drawn, keep_ids=True)
        assert set(done.labels) == set(np.unique(pixels[pixels > 0]).tolist())
        assert (done.num_skipped, done.num_overlapping, done.num_crossing) == (0, 0, 0)
    np.testing.assert_array_equal(drawn.array, pixels)


@pytest.mark.parametrize("options", FORMATS)
def test_objects_become_commits_of_labels_on_disk(tmp_path: Path, options: dict[str, Any]) -> None:
    wanted = blobs((700, 900), 12)
    write_labels(tmp_path / "a.zarr", wanted, chunk=256)
    export_labels(tmp_path / "a.zarr", "cells", tmp_path / "a.x", **options)
    told: list[tuple[int, int]] = []
    with create_labels(tmp_path / "b.zarr", "cells", (700, 900)) as labels:
        done = labels.import_objects(
            tmp_path / "a.x", keep_ids=True, progress=lambda *step: told.append(step)
        )
        np.testing.assert_array_equal(labels.read(), wanted)
        edits = labels.history().done
        assert tuple(edit.label for edit in edits) == done.labels
        labels.revert(edits[-1])
        assert not (labels.read() == done.labels[-1]).any()
        assert (labels.read() == done.labels[0]).any()
    assert told[-1] == (done.num_objects, done.num_objects)
    assert verify_labels(tmp_path / "b.zarr", "cells").is_sound


@pytest.mark.parametrize("box", [(8, 10, 25, 33), (0, 0, 25, 33)])
def test_an_export_of_a_part_goes_where_it_was(
    tmp_path: Path, box: tuple[int, int, int, int]
) -> None:
    whole = blobs(SHAPE, 6)
    write_labels(tmp_path / "a.zarr", whole)
    wanted, part = np.zeros_like(whole), Box(*box).slices
    wanted[part] = whole[part]
    for options in FORMATS:
        out = tmp_path / "a.json"
        export_labels(tmp_path / "a.zarr", "cells", out, box=box, overwrite=True, **options)
        labels = ArrayLabels(SHAPE)
        # A part at the beginning may as well be all of a smaller image.
        told = {} if any(box[:2]) or options["file_format"] == "geojson" else {"offset_yx": (0, 0)}
        import_objects(out, labels, keep_ids=True, **told)
        np.testing.assert_array_equal(labels.array, wanted, err_msg=str(options))


def test_qupath_features_are_drawn(put: Any, labels: ArrayLabels) -> None:
    pair = {
        "type": "GeometryCollection",
        "geometries": [
            square(20, 2),
            {"type": "MultiPolygon", "coordinates": [square(20, 20)["coordinates"]]},
            {"type": "Point", "coordinates": [1, 1]},
        ],
    }
    found = [
        feature(square(1, 2), name="a", classification={"name": "Tumor", "color": [1, 2, 3]}),
        feature(pair, classification="Stroma"),
        feature(square(10, 10.6) | {"plane": {"c": -1, "z": 0, "t": 0}}),
    ]
    classes = []
    labels.set_class = lambda ids, name: classes.append((ids, name))  # type: ignore[attr-defined]
    done = import_geojson(put(found), labels)
    assert done.labels == (1, 2, 3)
    wanted = np.zeros(SHAPE, int)
    wanted[1:6, 2:7] = 1
    wanted[20:25, 2:7] = wanted[20:25, 20:25] = 2
    wanted[10:15, 11:16] = 3
    np.testing.assert_array_equal(labels.array, wanted)
    assert classes == [([1], "Tumor"), ([2], "Stroma")]
    single = import_geojson(put(found[0]), ArrayLabels(SHAPE))
    assert single.num_objects == 1


def test_ids_are_kept_where_they_are_free(put: Any, labels: ArrayLabels) -> None:
    labels.write((0, 0, 2, 2), np.ones((2, 2), bool), 3)
    found = [
        feature(square(5 * n, 5), label=label)
        for n, label in enumerate([3, 2, 9, 9, 2**32 - 1, -4], 0)
    ]
    done = import_geojson(put(found), labels, keep_ids=True)
    assert done.labels == (4, 2, 9, 10, 11, 12)
    assert done.num_renumbered == 4
    assert (labels.array[0:2, 0:2] == 3).all()
    again = import_geojson(put(found[1:2]), ArrayLabels(SHAPE))
    assert again.labels == (1,)
    assert again.num_renumbered == 0


@pytest.mark.parametrize("blocks", [0, 64])
def test_ids_of_labels_on_disk_are_kept_where_they_are_free(
    put: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blocks: int
) -> None:
    monkeypatch.setattr(objects, "LOOK_UP_BLOCKS", blocks)
    write_labels(tmp_path / "a.zarr", np.pad(np.full((4, 4), 7, np.uint32), ((0, 26), (0, 36))))
    with open_labels(tmp_path / "a.zarr", "cells") as labels:
        found = [feature(square(10, 5 * n), label=label) for n, label in enumerate([7, 3, 20])]
        assert labels.import_objects(put(found), keep_ids=True).labels == (8, 3, 20)
        done = labels.import_objects(put([feature(square(1, 1))]))
        assert done.num_overlapping == 1
        assert (labels.read((1, 1, 4, 4)) == 7).all()


def test_what_was_there_first_stays_unless_overwritten(put: Any) -> None:
    file = put(
        coco(
            {"segmentation": [[0, 0, 10, 0, 10, 10, 0, 10]]},
            {"segmentation": [[5, 5, 15, 5, 15, 15, 5, 15]]},
            {"segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]},
        )
    )
    first = ArrayLabels(SHAPE)
    done = import_coco(file, first)
    assert (done.num_objects, done.num_overlapping, done.num_skipped) == (2, 1, 1)
    assert "all of its 9 pixels belong to other objects" in done.skipped[0].reason
    assert np.unique(first.array[:10, :10]).tolist() == [1]
    last = ArrayLabels(SHAPE)
    done = import_coco(file, last, overwrite=True)
    assert (done.num_objects, done.num_overlapping) == (3, 2)
    assert (last.array[5:15, 5:15] == 2).all()
    assert (last.array[1:4, 1:4] == 3).all()


def test_an_image_of_several_is_named(put: Any, labels: ArrayLabels) -> None:
    images = [{"id": n, "file_name": f"{n}.png", "width": 40, "height": 30} for n in (1, 2)]
    outline = [[0, 0, 10, 0, 10, 10, 0, 10]]
    file = put(
        coco(
            {"segmentation": outline},
            {"segmentation": outline, "image_id": 2, "category_id": 5},
            images=images,
            categories=[{"id": 5, "name": "nucleus"}],
        )
    )
    with pytest.raises(LabelsError, match=r"expected one image in .*2 that fit.*1.png, 2.png"):
        import_coco(file, labels)
    with pytest.raises(LabelsError, match="0 that fit"):
        import_coco(file, labels, image="3.png")
    classes = []
    labels.set_class = lambda ids, name: classes.append((ids, name))  # type: ignore[attr-defined]
    assert import_coco(file, labels, image="2.png").num_objects == 1
    assert classes == [([1], "nucleus")]
    assert import_coco(file, ArrayLabels(SHAPE), image=1).num_objects == 1
    # A list of results has no images.
    result = {"image_id": 7, "category_id": 1, "segmentation": outline, "score": 0.5}
    assert import_objects(put([result]), ArrayLabels(SHAPE)).num_objects == 1


def test_bad_objects_are_told_and_the_others_drawn(put: Any, labels: ArrayLabels) -> None:
    bad: list[tuple[Any, str]] = [
        (feature(None), "a geometry without pixels: None"),
        (feature({"type": "Point", "coordinates": [1, 2]}), "without pixels: Point"),
        (feature({"type": "Polygon", "coordinates": []}), "without corners"),
        (feature({"type": "Polygon", "coordinates": [[]]}), "no pairs"),
        (feature({"type": "Polygon", "coordinates": [[[1, 1], [2, 2]]]}), "of 2 corners"),
        (feature({"type": "Polygon", "coordinates": [[[1, 1], [2, None], [3, 1]]]}), "no finite"),
        (feature({"type": "Polygon", "coordinates": [[[1, 1], [2], [3, 1]]]}), "no pairs"),
        (feature({"type": "Polygon", "coordinates": [[["a", "b"]] * 3]}), "no pairs"),
        (feature({"type": "Polygon", "coordinates": {"a": 1}}), "a list of coordinates"),
        (feature({"type": "Polygon", "coordinates": [[[1, 1], [1e300, 1], [3, 9]]]}), "1e+300"),
        (feature({"type": "Polygon", "coordinates": [[[1, 1], [float("nan"), 1], [3, 9]]]}), "fin"),
        (feature({"type": "GeometryCollection", "geometries": []}), "no polygon in it"),
        (feature(square(20.1, 20.1, 0.2), name="dot"), "no centre of a pixel"),
        (feature(square(20, 20) | {"plane": {"z": 3}}), "plane z = 3"),
        ("text", "no GeoJSON feature"),
    ]
    found = [one for one, _ in bad]
    nested: Any = square(1, 1)
    for _ in range(20):
        nested = {"type": "GeometryCollection", "geometries": [nested]}
    done = import_geojson(
        put([feature(square(0, 0)), *found, feature(nested), feature(square(10, 10))]), labels
    )
    assert done.labels == (1, 2)
    assert (labels.array[10:15, 10:15] == 2).all()
    assert done.num_skipped == len(bad) + 1
    for (_, reason), skipped in zip(bad, done.skipped, strict=False):
        assert reason in skipped.reason
    assert done.skipped[12].name == "dot"
    assert "object 14 (dot): no centre" in "\n".join(done.lines())


def test_bad_annotations_are_told_and_the_others_drawn(put: Any, labels: ArrayLabels) -> None:
    bad: list[tuple[Any, str]] = [
        ([], "without outlines"),
        ([[1, 2, 3]], "no list of x, y"),
        ([[1, 2, 3, 4]], "of 2 corners"),
        (["ab"], "no list of x, y"),
        ({"size": [3, 3], "counts": [0, 9]}, "not of the image"),
        ({"size": [30, 40], "counts": "~"}, "run lengths"),
        (None, "without outlines"),
    ]
    good = {"segmentation": {"size": [30, 40], "counts": [0, 3]}}
    file = put(coco(*({"segmentation": one} for one, _ in bad), good))
    done = import_coco(file, labels)
    assert done.num_objects == 1
    for (_, reason), skipped in zip(bad, done.skipped, strict=True):
        assert reason in skipped.reason


def test_what_crosses_itself_is_filled_by_the_even_odd_rule(put: Any, labels: ArrayLabels) -> None:
    bow = [[0, 0], [10, 10], [10, 0], [0, 10]]
    done = import_geojson(put([feature({"type": "Polygon", "coordinates": [bow]})]), labels)
    assert (done.num_objects, done.num_crossing) == (1, 1)
    assert labels.array[5, 1] == labels.array[5, 8] == 1
    assert labels.array[1, 5] == 0
    assert "outlines that cross" in "\n".join(done.lines())


def test_objects_of_another_image_are_refused_unless_allowed(put: Any, labels: ArrayLabels) -> None:
    inside, partly, outside = (feature(square(*at)) for at in ((1, 1), (27, 10), (33, 10)))
    file = put([inside, partly, outside])
    with pytest.raises(LabelsError, match=r"shape \(30, 40\), got 2 of 3 .*\n?.*2 would lie ins"):
        import_geojson(file, labels)
    assert not labels.array.any()
    done = import_geojson(file, labels, allow_outside=True)
    assert (done.num_objects, done.num_cut) == (2, 1)
    assert done.skipped[0].reason == "it lies outside of the image"
    assert (labels.array[27:30, 10:15] == 2).all()
    moved = import_geojson(put([outside]), ArrayLabels(SHAPE), offset_yx=(-20, 3))
    assert moved.num_objects == 1


@pytest.mark.parametrize("options", FORMATS)
def test_a_file_of_an_image_of_another_size_is_refused(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    write_labels(tmp_path / "a.zarr", blobs((20, 20), 3))
    export_labels(tmp_path / "a.zarr", "cells", tmp_path / "a.x", **options)
    with pytest.raises(LabelsError, match=r"shape \(30, 40\), .* of one of shape \(20, 20\)"):
        import_objects(tmp_path / "a.x", ArrayLabels(SHAPE))
    assert import_objects(tmp_path / "a.x", ArrayLabels(SHAPE), allow_outside=True).num_objects
    assert import_objects(tmp_path / "a.x", ArrayLabels(SHAPE), offset_yx=(10, 20)).num_objects
    with pytest.raises(LabelsError, match="shape"):
        import_objects(tmp_path / "a.x", ArrayLabels(SHAPE), offset_yx=(11, 20))


def test_planes_are_told_by_the_file_or_the_caller(put: Any, tmp_path: Path) -> None:
    stack = np.zeros((3, *SHAPE), np.uint32)
    stack[1, 5:9, 5:9] = 4
    write_labels(tmp_path / "a.zarr", stack)
    export_labels(tmp_path / "a.zarr", "cells", tmp_path / "a.geojson", plane=(1,))
    with create_labels(tmp_path / "b.zarr", "cells", stack.shape) as labels:
        labels.import_objects(tmp_path / "a.geojson", keep_ids=True)
        np.testing.assert_array_equal(labels.levels[0][...], stack)
        found = [feature(square(20, 20) | {"plane": {"z": 2, "t": 0}})]
        labels.import_objects(put(found))
        assert (labels.levels[0][2, 20:25, 20:25] == 5).all()
        labels.import_objects(put(found), plane=(0,))
        assert (labels.levels[0][0, 20:25, 20:25] == 6).all()
        with pytest.raises(LabelsError, match="plane inside labels"):
            labels.import_objects(put(found), plane=(3,))
    # One plane of a stack goes to labels of one plane.
    flat = ArrayLabels(SHAPE)
    import_geojson(tmp_path / "a.geojson", flat, keep_ids=True)
    np.testing.assert_array_equal(flat.array, stack[1])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected JSON at .* '{' expected, got 'its end'"),
        ("no json", "expected JSON"),
        ('{"type": "FeatureCollection", "features": [', "expected JSON"),
        ('{"type": "FeatureCollection", "features": [{"a": 1},', "expected JSON"),
        ('{"type": "FeatureCollection"} x', "more text after its end"),
        ('{1: "FeatureCollection"}', "the name of a member"),
        ("[" * 100_000, "too deep"),
        ('{"a": ' + "9" * 5000 + "}", "expected JSON"),
        ("{}", "neither"),
        ('{"a": 1, "features": []}', "neither"),
        ("[1, 2, 3]", "neither"),
        ('{"images": [1], "annotations": [{}]}', "neither"),
    ],
)
def test_what_is_no_file_of_objects_is_refused(
    put: Any, labels: ArrayLabels, text: str, message: str
) -> None:
    with pytest.raises(LabelsError, match=message):
        import_objects(put(text), labels)
    for read in (import_geojson, import_coco):
        with pytest.raises(LabelsError, match="expected (JSON|GeoJSON|COCO)"):
            read(put(text), labels)
    assert not labels.array.any()


def test_files_that_cannot_be_read_are_refused(tmp_path: Path, labels: ArrayLabels) -> None:
    (tmp_path / "a.json").write_bytes(b'{"a": "\xff\xfe"}')
    with pytest.raises(LabelsError, match="UTF-8"):
        import_objects(tmp_path / "a.json", labels)
    for path in (tmp_path, tmp_path / "none.json"):
        with pytest.raises(LabelsError, match="which is none"):
            import_objects(path, labels)


def test_a_damaged_file_changes_nothing(put: Any, labels: ArrayLabels) -> None:
    text = json.dumps([feature(square(n, n)) for n in range(20)])
    with pytest.raises(LabelsError, match="expected JSON"):
        import_geojson(put(text[:-30]), labels)
    assert not labels.array.any()


def test_large_files_are_read_in_parts_and_larger_ones_refused(
    put: Any, labels: ArrayLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(json_items, "_CHUNK_CHARS", 16)
    monkeypatch.setattr(json_items, "MAX_VALUE_CHARS", 400)
    found = [feature(square(n, 2 * n, 1), name="é" * n) for n in range(18)]
    file = put({"features": found, "type": "FeatureCollection", "n": 12.5e3})
    assert import_geojson(file, labels).num_objects == 18
    assert list(json_items.items(file))[-1] == ("n", 12500.0)
    with pytest.raises(LabelsError, match="no end of a value after 400 characters"):
        import_geojson(put([feature(square(1, 1), name="a" * 2000)]), labels)
    monkeypatch.setattr(json_items, "MAX_FILE_BYTES", 1000)
    with pytest.raises(LabelsError, match="at most 1,000 bytes, got"):
        import_geojson(file, labels)


def test_numbers_are_read_whole_wherever_a_part_ends(
    put: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put('{"a": 123456789012, "b": [1234567, 7654321, 1.25e+3], "c": true}')
    for chunk in range(1, 40):
        monkeypatch.setattr(json_items, "_CHUNK_CHARS", chunk)
        found = list(json_items.items(file))
        assert found == [
            ("a", 123456789012),
            ("b", 1234567),
            ("b", 7654321),
            ("b", 1250.0),
            ("c", True),
        ]


def test_a_failing_write_costs_its_object_alone(
    put: Any, labels: ArrayLabels, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = labels.write

    def fail(box: Any, mask: Any, label: int, **options: Any) -> Any:
        if box.y0 == 10:
            raise LabelsError("the disk is full")
        return write(box, mask, label, **options)

    monkeypatch.setattr(labels, "write", fail)
    monkeypatch.setattr(objects, "MAX_TOLD", 1)
    found = [feature(square(y, x)) for y in (0, 10, 20) for x in (0, 10)]
    done = import_geojson(put(found), labels)
    assert (done.num_objects, done.num_skipped, len(done.skipped)) == (4, 2, 1)
    assert done.skipped[0].reason == "the disk is full"
    assert done.lines()[-1] == "and 1 more"


def test_what_was_drawn_before_it_was_given_up_stays(put: Any, labels: ArrayLabels) -> None:
    def stop(done: int, _total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    classes = []
    labels.set_class = lambda ids, name: classes.append((ids, name))  # type: ignore[attr-defined]
    found = [feature(square(5 * n, 5), classification={"name": "a"}) for n in range(4)]
    with pytest.raises(KeyboardInterrupt):
        import_geojson(put(found), labels, progress=stop)
    assert np.unique(labels.array).tolist() == [0, 1, 2]
    assert classes == [([1, 2], "a")]


def test_formats_are_told_by_what_is_inside(put: Any) -> None:
    assert import_format(put([feature(square(1, 1))])) == "geojson"
    assert import_format(put({"type": "FeatureCollection", "features": []})) == "geojson"
    assert import_format(put(coco())) == "coco"
    assert import_format(put({"x": [1]})) is None
    with pytest.raises(LabelsError, match="image is for COCO"):
        import_objects(put([feature(square(1, 1))]), ArrayLabels(SHAPE), image="a.png")
