"""Label images and files of objects, opened and saved through napari."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from label_files import blobs, write_labels
from napari.components import ViewerModel
from napari.layers import Labels
from npe2 import PluginManager, PluginManifest

import napari_hrsam
from napari_hrsam.errors import LabelsError
from napari_hrsam.plugin.contrib import writers
from napari_hrsam.plugin.contrib.readers import labels_reader, objects_reader
from napari_hrsam.storage.export.formats import export_labels
from napari_hrsam.storage.label_image import open_labels
from napari_hrsam.storage.labels.check import verify_labels
from napari_hrsam.storage.labels.places import FOLDER_KEY

PACKAGED = Path(napari_hrsam.__file__).with_name("napari.yaml")
WANTED = blobs((60, 80), 6)


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A folder with the labels "cells"."""
    write_labels(tmp_path / "a.zarr", WANTED, num_levels=2, scale=(0.5, 0.25), unit="micrometer")
    return tmp_path / "a.zarr"


@pytest.fixture
def plugin(npe2pm: PluginManager) -> PluginManager:
    npe2pm.register(PluginManifest.from_file(PACKAGED))
    return npe2pm


@pytest.mark.parametrize("place", ["", "labels/cells"])
def test_label_images_are_opened_as_they_lie_on_disk(
    stored: Path, viewer: ViewerModel, plugin: PluginManager, place: str
) -> None:
    assert plugin is not None
    [layer] = viewer.open(str(stored / place), plugin="napari-hrsam")
    assert isinstance(layer, Labels)
    assert (layer.name, layer.multiscale, tuple(layer.scale)) == ("cells", True, (0.5, 0.25))
    assert str(layer.units[0]) == "micrometer"
    # Forms and panel know where it lies.
    assert layer.metadata[FOLDER_KEY] == (str(stored), "cells")
    assert not layer.editable
    np.testing.assert_array_equal(np.asarray(layer.data[0]), WANTED)
    with open_labels(stored, "cells") as labels:
        labels.write((0, 0, 1, 1), np.ones((1, 1), bool), 99)
    assert layer.data[0][0, 0] == 99


def test_labels_of_one_level_are_opened(tmp_path: Path, viewer: ViewerModel) -> None:
    write_labels(tmp_path, np.ones((2, 10, 12), np.uint8), name="one")
    write_labels(tmp_path, np.ones((10, 12), np.uint8), name="two")
    reader = labels_reader(str(tmp_path))
    assert reader is not None
    layers = [viewer.add_labels(data, **options) for data, options, _ in reader(str(tmp_path))]
    assert [(layer.name, layer.data.shape) for layer in layers] == [
        ("one", (2, 10, 12)),
        ("two", (10, 12)),
    ]


def test_other_folders_are_left_to_other_readers(stored: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    image = stored / "labels" / "cells"
    # An image with labels beside it is the business of readers of images.
    write_labels(image, WANTED, name="inner")
    for path in (tmp_path / "empty", tmp_path / "none", image / "labels", image / "0"):
        assert labels_reader(str(path)) is None
    assert labels_reader([str(stored)]) is None
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "zarr.json").write_text((image / "zarr.json").read_text())
    assert labels_reader(str(tmp_path / "other")) is None


@pytest.mark.parametrize("name", ["a.geojson", "a.json"])
def test_files_of_objects_are_opened_as_labels(
    stored: Path, tmp_path: Path, viewer: ViewerModel, plugin: PluginManager, name: str
) -> None:
    assert plugin is not None
    export_labels(stored, "cells", tmp_path / name)
    [layer] = viewer.open(str(tmp_path / name), plugin="napari-hrsam")
    assert isinstance(layer, Labels)
    assert layer.name == "a"
    np.testing.assert_array_equal(layer.data, WANTED)


def test_qupath_files_are_as_large_as_their_objects(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def feature(*corners: tuple[float, float]) -> dict[str, Any]:
        geometry = {"type": "Polygon", "coordinates": [corners]}
        return {"type": "Feature", "geometry": geometry, "properties": {}}

    path = tmp_path / "a.geojson"
    path.write_text(json.dumps([feature((2, 1), (9.5, 1), (9.5, 6), (2, 6)), feature()]))
    reader = objects_reader(str(path))
    assert reader is not None
    with caplog.at_level(logging.WARNING):
        [(labels, _, kind)] = reader(str(path))
    assert kind == "labels"
    assert labels.shape == (6, 10)
    assert labels.sum() == 7 * 5
    assert "1 were skipped" in caplog.text
    path.write_text(json.dumps([feature((2, 1), (1e9, 1), (9.5, 6e8))]))
    with pytest.raises(LabelsError, match="in memory"):
        reader(str(path))
    path.write_text(json.dumps([feature()]))
    with pytest.raises(LabelsError, match="none that can be drawn"):
        reader(str(path))


@pytest.mark.parametrize("text", ["{}", "[1, 2]", "no json", "", '{"name": "package"}'])
def test_other_json_is_left_to_other_readers(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.json").write_text(text)
    assert objects_reader(str(tmp_path / "a.json")) is None
    assert objects_reader([str(tmp_path / "a.json")]) is None
    assert objects_reader(str(tmp_path / "none.json")) is None


@pytest.mark.parametrize("on_disk", [True, False])
@pytest.mark.parametrize("suffix", [".geojson", ".json", ".csv"])
def test_labels_are_saved_as_the_export_writes_them(
    stored: Path, tmp_path: Path, plugin: PluginManager, suffix: str, on_disk: bool
) -> None:
    assert plugin is not None
    layer = Labels(WANTED, name="cells")
    if on_disk:
        layer = Labels(np.zeros((4, 4), int), metadata={FOLDER_KEY: (str(stored), "cells")})
    out = tmp_path / f"out{suffix}"
    out.write_text("old")
    assert layer.save(str(out), plugin="napari-hrsam") == [str(out)]
    if suffix == ".csv":
        with out.open() as file:
            found = [int(row["label"]) for row in csv.DictReader(file)]
        assert found == np.unique(WANTED)[1:].tolist()
        return
    reader = objects_reader(str(out))
    assert reader is not None
    [(labels, _, _)] = reader(str(out))
    np.testing.assert_array_equal(labels, WANTED)


@pytest.mark.parametrize("as_pyramid", [True, False])
def test_labels_are_saved_with_all_levels(
    tmp_path: Path, plugin: PluginManager, as_pyramid: bool
) -> None:
    assert plugin is not None
    wanted = blobs((700, 600), 9)
    layer = Labels([wanted, wanted[::2, ::2]] if as_pyramid else wanted, name="my cells")
    out = tmp_path / "out.zarr"
    layer.save(str(out), plugin="napari-hrsam")
    labels = open_labels(out, "my-cells", "r")
    np.testing.assert_array_equal(labels.read(), wanted)
    assert len(labels.levels) > 1
    report = verify_labels(out, "my-cells")
    assert report.is_sound, report.problems


def test_a_stack_is_saved_as_ome_zarr_and_refused_elsewhere(tmp_path: Path) -> None:
    stack = np.stack([WANTED, WANTED // 2])
    with pytest.raises(LabelsError, match="plane inside labels"):
        writers.write_geojson(str(tmp_path / "a.geojson"), stack, {"name": "a", "metadata": {}})
    writers.write_ome_zarr(str(tmp_path / "a.zarr"), stack, {"name": "a", "metadata": {}})
    np.testing.assert_array_equal(open_labels(tmp_path / "a.zarr", "a", "r").levels[0][...], stack)
