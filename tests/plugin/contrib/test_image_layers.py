"""Slides and maps in napari: layers that are read as they are drawn, and the panel on them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import slide_files
import tifffile
from map_files import ROTATED, SHAPE_YX, write_map
from napari.components import ViewerModel
from napari.layers import Image, Layer
from npe2 import PluginManager, PluginManifest
from PIL import Image as Picture

import napari_hrsam
from napari_hrsam.errors import ImageError
from napari_hrsam.plugin.contrib.image_layers import image_layers
from napari_hrsam.plugin.contrib.readers import slides_reader
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.plugin.session.image_input import read_image_layers
from napari_hrsam.storage.images.fingerprint import identify
from napari_hrsam.storage.images.opening import open_image
from napari_hrsam.storage.label_image import open_labels
from napari_hrsam.storage.labels.places import LabelFile

PACKAGED = Path(napari_hrsam.__file__).with_name("napari.yaml")
RGB = slide_files.scene(700, 1000)


def added(viewer: ViewerModel, path: Path) -> list[Image]:
    layers = [Layer.create(*data) for data in image_layers(path)]
    assert all(isinstance(layer, Image) for layer in layers)
    for layer in layers:
        viewer.add_layer(layer)
    return layers  # type: ignore[return-value]


def test_napari_opens_a_slide_as_it_is_drawn(
    tmp_path: Path, viewer: ViewerModel, npe2pm: PluginManager
) -> None:
    npe2pm.register(PluginManifest.from_file(PACKAGED))
    slide_files.write_svs(tmp_path / "a.svs", slide_files.halves(RGB, 3))
    [layer] = viewer.open(str(tmp_path / "a.svs"), plugin="napari-hrsam")
    assert isinstance(layer, Image)
    assert (layer.name, layer.multiscale, layer.rgb) == ("a", True, True)
    assert tuple(layer.scale) == (0.25, 0.25)
    assert [str(unit) for unit in layer.units] == ["micrometer"] * 2
    assert [level.shape for level in layer.data] == [(700, 1000, 3), (350, 500, 3), (175, 250, 3)]
    np.testing.assert_array_equal(layer.data[1][5, 7:9], RGB[10, 14:17:2])
    # What was encoded for the file is found again for the layer.
    taken = read_image_layers(layer).image.open()
    assert identify(taken).digest == identify(open_image(tmp_path / "a.svs")).digest


def test_channels_become_layers_of_their_colours(tmp_path: Path, viewer: ViewerModel) -> None:
    pytest.importorskip("pylibCZIrw")
    stack = np.random.default_rng(1).integers(0, 60000, (4, 2, 80, 100), np.uint16)
    slide_files.write_czi_stack(tmp_path / "a.czi", stack, ["DAPI", "FITC", "Cy3", "Cy5"])
    layers = added(viewer, tmp_path / "a.czi")
    assert [layer.name for layer in layers] == ["a DAPI", "a FITC", "a Cy3", "a Cy5"]
    assert [layer.visible for layer in layers] == [True, True, True, False]
    assert tuple(layers[0].scale) == (2, 1, 1)
    np.testing.assert_allclose(layers[0].colormap.colors[-1], (0, 0, 1, 1), atol=0.01)
    for layer, channel in zip(layers, stack, strict=True):
        np.testing.assert_array_equal(np.asarray(layer.data), channel)
        low, high = layer.contrast_limits
        assert 0 <= low < 100
        assert 59_000 < high < 60_000


def test_other_files_are_left_to_other_readers(tmp_path: Path) -> None:
    Picture.fromarray(RGB).save(tmp_path / "a.png")
    (tmp_path / "folder").mkdir()
    for path in ("a.png", "folder", "none.svs"):
        assert slides_reader(str(tmp_path / path)) is None
    assert slides_reader([str(tmp_path / "a.png")]) is None
    assert slides_reader("https://example.org/a.svs") is None
    with pytest.raises(ImageError, match="expected a slide or a TIFF"):
        image_layers(tmp_path / "a.png")
    with pytest.raises(ImageError, match="there is none at"):
        image_layers(tmp_path / "none.svs")


def test_a_plain_stack_of_planar_colours_keeps_its_channels(
    tmp_path: Path, viewer: ViewerModel
) -> None:
    planar = np.ascontiguousarray(RGB.transpose(2, 0, 1))
    tifffile.imwrite(tmp_path / "a.tif", planar, photometric="rgb", planarconfig="separate")
    layers = added(viewer, tmp_path / "a.tif")
    assert [layer.name for layer in layers] == ["a S0", "a S1", "a S2"]
    np.testing.assert_array_equal(np.asarray(layers[2].data), RGB[..., 2])


def test_the_panel_works_on_the_levels_of_a_slide(
    tmp_path: Path, viewer: ViewerModel, controller: SegmentController
) -> None:
    pixels = np.full((1024, 1024, 3), 30, np.uint8)
    pixels[400:480, 600:720, 0] = 220
    slide_files.write_dicom(tmp_path / "dicom", slide_files.halves(pixels, 3))
    [layer] = added(viewer, tmp_path / "dicom")
    viewer.scene.camera.zoom = 2
    controller.start(layer, target=LabelFile(tmp_path / "labels.zarr", "cells"))
    controller.wait()
    controller.click((440, 660))
    controller.wait()
    controller.commit()
    controller.wait()
    controller.stop()
    [row] = open_labels(tmp_path / "labels.zarr", "cells", mode="r").objects()
    box = row.box
    assert np.abs(np.array([box.y0, box.x0, box.y1, box.x1]) - (400, 600, 480, 720)).max() <= 8


def test_objects_of_a_map_are_drawn_exported_and_measured_in_metres(
    tmp_path: Path, viewer: ViewerModel, controller: SegmentController
) -> None:
    bands = np.full((3, *SHAPE_YX), 30, np.uint8)
    bands[0, 100:140, 200:260] = 220
    [layer] = added(viewer, write_map(tmp_path / "map.tif", bands, affine=ROTATED))
    assert [str(unit) for unit in layer.units] == ["meter"] * 2
    assert tuple(layer.scale) == pytest.approx((0.5, 0.5))
    controller.start(layer, target=LabelFile(tmp_path / "labels.zarr", "fields"))
    controller.wait()
    controller.click((120, 230))
    controller.wait()
    controller.commit()
    controller.wait()
    controller.stop()
    labels = open_labels(tmp_path / "labels.zarr", "fields", mode="r")
    [row] = labels.objects()
    assert row.unit == "meter"
    assert row.area == pytest.approx(row.area_px * 0.25)
    assert labels.georeference == open_image(tmp_path / "map.tif").georeference
    labels.export(tmp_path / "fields.gpkg")
