"""What the panel says and does between clicks, on a viewer without a window."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from mouse_events import RIGHT, drag
from napari.components import ViewerModel
from napari.layers import Labels
from numpy.typing import NDArray

from napari_hrsam.errors import LabelsError, PromptError
from napari_hrsam.plugin.canvas.mouse import Drag, DragTool
from napari_hrsam.plugin.overlay.objects import COPY_KEY, bright_colors
from napari_hrsam.plugin.overlay.preview import OBJECT_COLOR
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.plugin.session.messages import shown_message
from napari_hrsam.plugin.session.targets import NewLayer, path_beside
from napari_hrsam.storage.labels.stored import StoredLabels

INSIDE, BESIDE = (30, 30), (5, 5)


def line(controller: SegmentController) -> str:
    controller.wait()
    controller.worker.deliver()
    return shown_message(controller.state)


def test_the_mouse_goes_back_to_clicking(started: SegmentController, viewer: ViewerModel) -> None:
    assert started.overlay is not None
    preview = started.overlay.preview.layer
    for end in (started.commit, started.cancel):
        started.click(INSIDE)
        started.wait()
        viewer.layers.selection.active = preview
        preview.mode = "fill"
        started.state.update(is_subtracting=True)
        assert "fill tool of 'scene [current]' has the mouse" in line(started)
        end()
        assert "has the mouse" not in line(started)
        assert str(preview.mode) == "pan_zoom"
        assert not started.state.is_subtracting


def test_the_line_tells_which_tool_has_the_mouse(
    started: SegmentController, viewer: ViewerModel
) -> None:
    shapes = viewer.add_shapes()
    shapes.mode = "add_polygon"
    assert "add polygon tool of 'Shapes' has the mouse" in line(started)
    assert "Left click adds" not in line(started)
    shapes.mode = "pan_zoom"
    assert "Left click adds" in line(started)


def test_strokes_of_any_label_show_and_count(started: SegmentController) -> None:
    assert started.overlay is not None
    started.click(INSIDE)
    before = line(started)
    preview = started.overlay.preview
    colors = preview.layer.colormap.map(np.array([0, 1, 2, 7], np.uint8))
    assert colors[0, 3] == 0
    assert (colors[1:] == colors[1]).all()
    assert colors[1, 3] == 1
    preview.layer.selected_label = 7
    preview.layer.brush_size = 1
    free = tuple(np.argwhere(preview.pixels == 0)[0])
    preview.layer.paint(free, 7)
    assert line(started) != before
    count = int(np.count_nonzero(preview.pixels))
    assert f"{count:,} pixels" in line(started)
    started.undo()
    assert line(started) == before
    started.redo()
    started.commit()
    started.wait()
    assert int((started.overlay.target.data == 1).sum()) == count
    assert preview.layer.selected_label == 1


def test_undo_brings_a_cancelled_object_back(started: SegmentController) -> None:
    assert started.overlay is not None
    started.click(INSIDE)
    started.click((5, 5), positive=False)
    started.wait()
    prompts, shown = (
        started.overlay.shown_prompts.layer.data.copy(),
        started.overlay.preview.pixels.copy(),
    )
    started.cancel()
    assert "Ctrl+Z" in line(started)
    assert started.state.can_undo
    assert not started.overlay.preview.pixels.any()
    started.undo()
    started.wait()
    np.testing.assert_array_equal(started.overlay.shown_prompts.layer.data, prompts)
    np.testing.assert_array_equal(started.overlay.preview.pixels, shown)
    started.commit()
    started.wait()
    assert started.state.num_committed == 1


def test_taking_away_from_nothing_is_told(started: SegmentController, viewer: ViewerModel) -> None:
    errors: list[BaseException] = []
    started.state.failed.connect(errors.append)
    drag(viewer, INSIDE, button=RIGHT)
    assert "no object yet" in line(started)
    started.commit()
    assert "nothing to commit" in line(started)
    assert not started.state.is_error
    assert errors == []
    drag(viewer, BESIDE)
    assert "pixels" in line(started)


def test_planes_are_named_and_gone_back_to(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    image = viewer.add_image(
        np.stack([pixels] * 4), rgb=True, axis_labels=("z", "y", "x"), scale=(3, 1, 1)
    )
    viewer.scene.camera.zoom = 1.0
    viewer.dims.set_point(0, 3)
    controller.start(image)
    controller.wait()
    controller.click(INSIDE)
    controller.wait()
    viewer.dims.set_point(0, 9)
    assert "The object is on z 1" in line(controller)
    controller.commit()
    assert viewer.dims.point[0] == 3
    assert "on z 1" in line(controller)
    assert controller.state.num_committed == 0, "it was not in view"
    controller.commit()
    assert "Object 1 on z 1 was committed" in line(controller)
    viewer.dims.set_point(0, 9)
    controller.undo()
    assert "Object 1 on z 1 was taken back" in line(controller)


def test_no_point_is_drawn_where_none_is_in_view(started: SegmentController) -> None:
    """napari draws an unseen point of size 0 then, which a smallest size would show."""
    assert started.overlay is not None
    assert started.overlay.shown_prompts.layer.canvas_size_limits[0] == 0


def test_an_image_on_top_is_told(
    started: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    other = viewer.add_image(pixels[..., 0], name="other", blending="additive")
    viewer.layers.selection.active = started.overlay.preview.layer if started.overlay else None
    drag(viewer, INSIDE)
    started.wait()
    assert started.state.covered_by == "", "one sees through it"
    other.blending = "translucent"
    drag(viewer, BESIDE)
    started.wait()
    assert started.state.covered_by == "other"
    started.cancel()
    assert started.state.covered_by == ""


def test_a_click_on_a_committed_object_tells_of_it(
    started: SegmentController, viewer: ViewerModel
) -> None:
    drag(viewer, INSIDE)
    started.commit()
    started.wait()
    drag(viewer, INSIDE)
    assert "object 1" in line(started)
    assert started.state.num_prompts == 0
    drag(viewer, INSIDE)
    assert started.state.num_prompts == 1, "asked for twice"
    started.wait()


def test_commits_are_on_disk_and_taken_up_again(
    controller: SegmentController,
    viewer: ViewerModel,
    pixels: NDArray[np.uint8],
    labels_folder: Path,
    model: Any,
) -> None:
    image = viewer.add_image(pixels, rgb=True, name="scene")
    viewer.scene.camera.zoom = 1.0
    controller.start(image)
    assert str(labels_folder) in line(controller)
    controller.click(INSIDE)
    controller.commit()
    controller.click(BESIDE)
    controller.commit()
    controller.undo()
    controller.wait()
    assert controller.overlay is not None
    committed = np.asarray(controller.overlay.target.data).copy()
    assert set(np.unique(committed)) == {0, 1}
    # As after a crash: the layer is gone, and nothing was saved.
    viewer.layers.clear()
    again = SegmentController(viewer, load_model=lambda *_, **__: model)
    controller.close()
    controller.worker.join()
    again.start(viewer.add_image(pixels, rgb=True, name="scene"))
    again.wait()
    assert again.overlay is not None
    np.testing.assert_array_equal(again.overlay.target.data, committed)
    again.click(BESIDE)
    again.commit()
    again.wait()
    assert set(np.unique(again.overlay.target.data)) == {1, 3}, "a number is used once"
    first = again.overlay.target
    again.start(viewer.layers["scene"], target=NewLayer())
    again.wait()
    assert first.metadata[COPY_KEY] != again.overlay.target.metadata[COPY_KEY]
    assert not again.overlay.target.data.any(), "what a layer shows is not taken up twice"
    again.close()


def test_without_a_place_on_disk_it_is_told(
    controller: SegmentController, viewer: ViewerModel, pixels: Any, labels_folder: Path
) -> None:
    labels_folder.write_text("a file, not a folder")
    controller.start(viewer.add_image(pixels, rgb=True))
    assert "in memory only" in line(controller)
    controller.click(INSIDE)
    controller.commit()
    controller.wait()
    assert controller.state.num_committed == 1


def test_objects_are_saved_beside_the_image(started: SegmentController, tmp_path: Path) -> None:
    assert started.overlay is not None
    assert started.image_layer is not None
    assert path_beside(started.image_layer) is None
    started.click(INSIDE)
    started.commit()
    started.objects.save(tmp_path / "scene-objects.tif")
    assert "scene-objects.tif" in line(started)
    saved = tifffile.imread(tmp_path / "scene-objects.tif")
    np.testing.assert_array_equal(saved, started.overlay.target.data)


def test_the_users_layer_is_left_alone_by_the_copy(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    image = viewer.add_image(pixels, rgb=True, name="scene")
    viewer.scene.camera.zoom = 1.0
    own = np.zeros((64, 64), np.uint32)
    own[0, 0] = 9
    layer: Labels = viewer.add_labels(own, name="mine")
    controller.start(image, target=layer)
    controller.wait()
    controller.click(INSIDE)
    controller.commit()
    controller.wait()
    assert layer.data[0, 0] == 9
    assert layer.data[INSIDE] == 10
    assert COPY_KEY not in layer.metadata


def test_a_click_while_loading_is_answered(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    viewer.add_image(pixels, rgb=True)
    controller.start()
    drag(viewer, INSIDE)
    assert "Still loading" in shown_message(controller.state)
    controller.wait()
    assert controller.state.num_prompts == 0
    drag(viewer, INSIDE)
    assert "pixels" in line(controller)
    controller.stop()
    drag(viewer, INSIDE)
    assert controller.state.num_prompts == 0


def test_a_box_while_loading_is_answered(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    viewer.add_image(pixels, rgb=True)
    controller.start()
    controller.drags.take(
        Drag(tool=DragTool.BOX, path=((20, 18), (42, 46)), is_positive=True, is_done=True)
    )
    assert "Still loading" in shown_message(controller.state)
    assert not controller.state.is_error
    controller.wait()
    assert controller.state.num_prompts == 0


def test_a_click_where_there_is_no_data_is_told_and_changes_nothing(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    image = pixels[..., 0].astype(np.float32)
    image[28:34, 28:34] = np.nan
    viewer.add_image(image, name="scene", contrast_limits=(0, 255))
    viewer.scene.camera.zoom = 1.0
    controller.start()
    controller.wait()
    controller.click((30, 30))
    with pytest.raises(PromptError, match="no data here"):
        controller.wait()
    assert controller.state.num_prompts == 0
    controller.click((25, 25))
    controller.wait()
    assert controller.overlay is not None
    before = controller.overlay.preview.pixels.copy()
    assert before.sum() > 100
    controller.click((30, 30))
    with pytest.raises(PromptError):
        controller.wait()
    assert "No data here" in shown_message(controller.state)
    assert controller.state.num_prompts == 1
    np.testing.assert_array_equal(controller.overlay.preview.pixels, before)


def test_objects_of_a_stack_are_saved_beside_the_image(
    controller: SegmentController,
    viewer: ViewerModel,
    pixels: NDArray[np.uint8],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    viewer.add_image(np.stack([pixels] * 3), rgb=True, name="stack", axis_labels=("time", "y", "x"))
    viewer.scene.camera.zoom = 1.0
    viewer.dims.set_point(0, 1)
    controller.start()
    assert "Objects are kept in" in line(controller)
    assert not controller.state.is_beside_image
    own = Path(controller.state.labels_folder)
    stored = StoredLabels(own.parent.parent, own.name).ome
    assert (stored.axes, stored.types[0]) == (("time", "y", "x"), "time")
    controller.click(INSIDE)
    controller.commit()
    controller.objects.save(tmp_path / "stack-objects.tif")
    assert "stack-objects.tif" in line(controller)
    saved = tifffile.imread(tmp_path / "stack-objects.tif")
    assert saved.shape == (3, 64, 64)
    assert saved[1, 30, 30] == 1
    assert not saved[[0, 2]].any()
    monkeypatch.setattr("napari_hrsam.plugin.session.inference.MAX_SAVED_PX", 100)
    controller.objects.save(tmp_path / "more.tif")
    with pytest.raises(LabelsError, match="labels export"):
        controller.wait()
    assert not (tmp_path / "more.tif").exists()


def test_channels_that_count_as_columns_are_told(
    controller: SegmentController, viewer: ViewerModel
) -> None:
    viewer.add_image(np.random.default_rng(0).random((40, 50, 2)), name="two")
    controller.start()
    assert "last axis of 'two', of 2, counts as columns" in line(controller)


def test_colours_of_labels_are_bright() -> None:
    colors = bright_colors().map(np.arange(1, 60, dtype=np.uint32))
    assert (colors[:, :3].max(axis=1) > 0.99).all()
    assert (colors[:, 3] == 1).all()
    assert bright_colors().map(np.zeros(1, np.uint32))[0, 3] == 0
    unlike = np.abs(colors[:4, :3] - OBJECT_COLOR[:3]).max(axis=1)
    assert (unlike > 0.5).all(), "of the current object"
