"""What the forms do, as functions, on layers of a viewer without a window."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from drawn_field import DrawnPredictor, touching_discs
from label_files import blobs, write_labels
from napari.components import ViewerModel
from napari.layers import Image, Labels

from napari_hrsam.errors import ConfigError, ImageError, LabelsError, SessionError
from napari_hrsam.modeling import checkpoints
from napari_hrsam.plugin.forms.embed import encode_layer, prepare_encode
from napari_hrsam.plugin.forms.everything import prepare_everything, segment_layer
from napari_hrsam.plugin.forms.export import export_layer, prepare_export
from napari_hrsam.plugin.forms.importing import import_into_layer, prepare_import
from napari_hrsam.plugin.forms.replay import prepare_replay, replay_layer
from napari_hrsam.plugin.forms.verify import verify_layer
from napari_hrsam.plugin.session.progress import Cancelled
from napari_hrsam.storage.export.geojson import export_geojson
from napari_hrsam.storage.label_image import create_labels, open_labels
from napari_hrsam.storage.labels.places import FOLDER_KEY


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    """A folder with the labels "cells"."""
    write_labels(tmp_path / "a.zarr", blobs((60, 80), 6), num_levels=2)
    return tmp_path / "a.zarr"


def test_a_layer_of_labels_on_disk_is_exported_as_the_command_line_does(
    stored: Path, tmp_path: Path
) -> None:
    layer = Labels(np.zeros((4, 4), int), metadata={FOLDER_KEY: (str(stored), "cells")})
    done = export_layer(layer, out=tmp_path / "of layer.geojson", simplify_px=1.0)
    export_geojson(stored, "cells", tmp_path / "wanted.geojson", simplify_px=1.0)
    assert done.num_objects == 6
    texts = [(tmp_path / f"{name}.geojson").read_bytes() for name in ("of layer", "wanted")]
    assert texts[0] == texts[1]
    by_folder = export_layer(folder=str(stored), out=str(tmp_path / "by folder.csv"))
    assert by_folder.num_objects == 6


@pytest.mark.parametrize("shape", [(1500, 40), (2, 30, 40)])
def test_a_layer_in_memory_is_exported_as_it_is(tmp_path: Path, shape: tuple[int, ...]) -> None:
    labels = np.zeros(shape, np.int16)
    labels[..., -20:-10, 5:30] = 300
    labels[..., 2, 3] = 5
    plane = "1" if len(shape) == 3 else ""
    done = export_layer(Labels(labels), out=tmp_path / "a.tif", plane=plane)
    assert done.num_objects == 2
    np.testing.assert_array_equal(
        tifffile.imread(tmp_path / "a.tif"), labels.reshape(-1, *shape[-2:])[-1]
    )


def test_labels_that_are_drawn_into_are_exported(tmp_path: Path) -> None:
    with create_labels(tmp_path / "a.zarr", "cells", (40, 50)) as labels:
        labels.write((5, 5, 15, 25), np.ones((10, 20), bool), 1)
        done = export_layer(folder=tmp_path / "a.zarr", name="cells", out=tmp_path / "a.json")
        assert done.num_objects == 1
        with pytest.raises(LabelsError, match="open"):
            verify_layer(folder=tmp_path / "a.zarr", name="cells", repair=True)
        assert verify_layer(folder=tmp_path / "a.zarr", name="cells").is_sound
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["annotations"][0]["bbox"] == [5, 5, 20, 10]


def test_what_belongs_to_another_format_is_left_out(stored: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    assert export_layer(folder=stored, out=out, level=3, simplify_px=2.0).num_objects == 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "expected labels, got none; choose"),
        ({"out": None}, "expected a file to write, got none"),
        ({"out": Path("a.bmp")}, "expected a file that ends in .geojson.*got 'a.bmp'"),
        ({"box": "1,2,3"}, "expected a box y0, x0, y1, x1.*got '1,2,3'"),
        ({"box": "5,5,5,9"}, "expected a box y0, x0, y1, x1.*got"),
        ({"plane": "two"}, "expected the numbers of a plane.*got 'two'"),
        ({"folder": Path("nowhere")}, "expected the name of a label image in nowhere, got none"),
    ],
)
def test_what_is_missing_or_wrong_is_told_before_anything_is_done(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises((LabelsError, ConfigError), match=message):
        prepare_export(**{"out": Path("a.csv"), **options})


def test_negative_values_of_a_layer_are_told_and_no_file_is_left(tmp_path: Path) -> None:
    layer = Labels(np.full((5, 6), -2), name="masks")
    with pytest.raises(LabelsError, match="from 0 to 4294967295 in the layer 'masks', got -2"):
        export_layer(layer, out=tmp_path / "a.csv")
    assert list(tmp_path.iterdir()) == []


def test_an_export_that_is_cancelled_leaves_no_file(stored: Path, tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare_export(folder=stored, out=tmp_path / "a.csv")(stop)
    assert [path.name for path in tmp_path.iterdir()] == ["a.zarr"]


def test_objects_are_imported_into_a_layer_in_memory(stored: Path, tmp_path: Path) -> None:
    wanted = blobs((60, 80), 6)
    file = tmp_path / "a.json"
    export_layer(folder=stored, out=file)
    layer = Labels(np.zeros((60, 80), np.int32))
    done = import_into_layer(layer, file=file, keep_ids=True)
    assert done.num_objects == 6
    np.testing.assert_array_equal(layer.data, wanted)
    stack = Labels(np.zeros((3, 60, 80), np.int32))
    import_into_layer(stack, file=file, keep_ids=True, plane="2")
    np.testing.assert_array_equal(stack.data[2], wanted)
    assert not stack.data[:2].any()
    for plane in ("", "3", "1,2"):
        with pytest.raises(LabelsError, match="expected a plane"):
            prepare_import(stack, file=file, plane=plane)


def test_objects_are_imported_into_labels_on_disk(stored: Path, tmp_path: Path) -> None:
    wanted = blobs((60, 80), 6)
    file = tmp_path / "a.geojson"
    export_layer(folder=stored, out=file)
    # Labels that are not there are made for an image.
    place = tmp_path / "new" / "b.zarr"
    image = Image(np.zeros((70, 90), np.uint8))
    with pytest.raises(LabelsError, match="shape"):
        import_into_layer(folder=place, name="cells", like=image, file=file)
    import_into_layer(folder=place, file=file, keep_ids=True, offset="10,5")
    labels = open_labels(place, "cells", "r")
    np.testing.assert_array_equal(labels.read((10, 5, 70, 85)), wanted)
    layer = Labels(np.zeros((4, 4), int), metadata={FOLDER_KEY: (str(place), "cells")})
    done = import_into_layer(layer, file=file, overwrite=True, offset="0,0")
    assert done.num_overlapping > 0
    with pytest.raises(LabelsError, match="make it with create_labels"):
        import_into_layer(folder=tmp_path / "c.zarr", name="cells", file=file)
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(LabelsError, match="neither"):
        import_into_layer(
            folder=tmp_path / "c.zarr", name="cells", like=image, file=tmp_path / "a.json"
        )
    assert not (tmp_path / "c.zarr").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, LabelsError, "expected a file of objects, got none"),
        ({"file": Path("a.json")}, LabelsError, "expected labels, got none"),
        ({"file": Path("a.json"), "offset": "1"}, ConfigError, "an offset y, x"),
        ({"file": Path("a.json"), "offset": "a,b"}, ConfigError, "an offset y, x"),
    ],
)
def test_what_an_import_misses_is_told(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepare_import(**options)


def test_wrong_levels_are_found_and_repaired(stored: Path) -> None:
    with open_labels(stored, "cells") as labels:
        labels.levels[1][2:8, 2:8] = 99
    assert not verify_layer(folder=stored).is_sound
    report = verify_layer(folder=stored, repair=True)
    assert report.problems
    assert report.is_sound
    assert not verify_layer(folder=stored).problems


def test_a_layer_in_memory_cannot_be_verified() -> None:
    with pytest.raises(LabelsError, match="labels on disk, got the layer 'masks'.*in memory"):
        verify_layer(Labels(np.zeros((5, 6), int), name="masks"))


def test_an_image_is_encoded_as_the_panel_sees_it_and_once(
    viewer: ViewerModel, untrained_weights: Path, tmp_path: Path
) -> None:
    layer = viewer.add_image(np.random.default_rng(0).random((300, 400)), name="scene")
    options: Any = {"model": str(untrained_weights), "folder": tmp_path, "among": viewer.layers}
    first = encode_layer(layer, **options)
    assert first.num_encoded == first.num_tiles > 0
    assert encode_layer(layer, **options).num_at_hand == first.num_tiles
    layer.contrast_limits = (0.2, 0.4)
    assert encode_layer(layer, **options).num_encoded == first.num_tiles, "shown otherwise"


def test_an_image_is_wanted() -> None:
    with pytest.raises(ImageError, match="expected an image layer, got none"):
        prepare_encode()
    with pytest.raises(ConfigError, match="expected a box"):
        prepare_encode(Image(np.zeros((9, 9))), box="a")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that finds known discs."""
    model = DrawnPredictor(touching_discs((130, 120)))
    monkeypatch.setattr("napari_hrsam.engine.predictor.Predictor", lambda model: model)
    monkeypatch.setattr(checkpoints, "load_model", lambda *_, **__: model)


@pytest.mark.usefixtures("drawn")
def test_every_object_of_a_layer_goes_into_labels_of_their_own_and_a_cancelled_run_goes_on(
    tmp_path: Path,
) -> None:
    layer = Image(np.random.default_rng(0).integers(0, 255, (259, 239)).astype(np.uint8))
    job = prepare_everything(layer, folder=tmp_path)
    is_cancelled = False

    def cancel(_done: int, _total: int) -> None:
        if is_cancelled:
            raise Cancelled

    def once(done: int, total: int) -> None:
        nonlocal is_cancelled
        cancel(done, total)
        is_cancelled = True

    with pytest.raises(SessionError, match="stopped after"):
        job(once)
    assert not (tmp_path / "labels" / "auto-1").exists()
    report = segment_layer(layer, folder=tmp_path)
    assert report.num_objects > 10
    labels = open_labels(tmp_path, "auto-1", mode="r")
    assert labels.read().max() == report.num_objects
    # Asked again, it is there.
    assert segment_layer(layer, folder=tmp_path).num_at_hand == report.num_blocks
    with pytest.raises(LabelsError, match="choose another name"):
        segment_layer(layer, folder=tmp_path, level=1)
    with pytest.raises(ImageError, match="expected an image layer, got none"):
        prepare_everything()


@pytest.mark.usefixtures("drawn")
def test_without_a_folder_they_lie_where_the_panel_keeps_objects(labels_folder: Path) -> None:
    image = np.random.default_rng(0).integers(0, 255, (259, 239)).astype(np.uint8)
    report = segment_layer(Image(image, name="plate 7"), labels=" mine ")
    assert report.name == "mine"
    assert Path(report.path).parent == labels_folder
    assert Path(report.path).name.startswith("plate-7-")


@pytest.mark.torch
def test_objects_are_drawn_again_by_another_model_and_replaced_when_asked(
    tmp_path: Path, untrained_weights: Path
) -> None:
    import napari_hrsam as hrsam

    image = np.zeros((60, 80), np.uint8)
    image[20:40, 30:60] = 200
    with create_labels(tmp_path / "a.zarr", "cells", image.shape) as labels:
        session = hrsam.Session(str(untrained_weights), image, labels)
        session.click((30, 40))
        session.commit()
        before = labels.read()
    layer = Labels(before, metadata={FOLDER_KEY: (str(tmp_path / "a.zarr"), "cells")})
    options: dict[str, Any] = {"labels": layer, "model": str(untrained_weights), "device": "cpu"}
    same = replay_layer(Image(image), **options)
    assert (same.mean_iou, same.num_written) == (1.0, 0)
    # Seen otherwise, the model draws something else.
    replayed = replay_layer(Image(255 - image), write=True, **options)
    assert replayed.num_written == 1
    after = open_labels(tmp_path / "a.zarr", "cells", mode="r").read()
    assert (after != before).any() == (replayed.mean_iou < 1)
    with pytest.raises(LabelsError, match="which keep the prompts"):
        prepare_replay(Image(image), Labels(before))
    with pytest.raises(ImageError, match="image layer"):
        prepare_replay(labels=layer)
