"""The panel's work on images far larger than memory, without Qt."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from napari.layers import Image, Labels
from numpy.typing import NDArray
from stored_images import write_ome_zarr

from napari_hrsam.engine.outline_network import OutlineNetwork
from napari_hrsam.errors import LabelsError, PromptError, SessionError
from napari_hrsam.geometry import Box
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.plugin.session.image_input import read_image_layers
from napari_hrsam.plugin.session.inference_thread import REST_S
from napari_hrsam.plugin.session.state import Phase
from napari_hrsam.plugin.session.targets import NewLayer, Target, default_target
from napari_hrsam.storage.label_image import (
    LabelWriter,
    create_labels,
    open_labels,
)
from napari_hrsam.storage.labels.places import LabelFile, OwnPlace

SMALL, MIDDLE, LARGE = (4992, 6016), (20_480, 9216), (16_384, 24_576)
SCREEN_PX = 64


@pytest.fixture
def slide(viewer: ViewerModel, discs: list[Any]) -> Image:
    """The picture of discs as a layer."""
    return viewer.add_image(discs, rgb=True, multiscale=True, name="slide", scale=(0.5, 0.5))


@pytest.fixture
def running(controller: SegmentController, slide: Image) -> SegmentController:
    controller.start(slide)
    controller.wait()
    return controller


def zoom_to(viewer: ViewerModel, level: int) -> None:
    """Show a model tile of a level on the whole screen."""
    viewer.scene.camera.zoom = 1 / (0.5 * 2**level)


def committed(controller: SegmentController, label: int) -> list[float]:
    """Area of an object, in level-0 pixels, at every level of the shown pyramid."""
    assert controller.overlay is not None
    levels = list(controller.overlay.target.data)
    return [
        float((np.asarray(level[:, :]) == label).sum()) * 4.0**k
        for k, level in enumerate(levels)
        if k >= 3
    ]


def test_a_gigapixel_pyramid_is_never_read_as_a_whole(
    running: SegmentController, viewer: ViewerModel, discs: list[Any]
) -> None:
    zoom_to(viewer, 0)
    before = [level.num_read for level in discs]
    running.click(SMALL)
    running.wait()
    assert running.state.level == 0
    read = sum(level.num_read for level in discs) - sum(before)
    assert read <= 64 * 512 * 512 * 3


@pytest.mark.parametrize(("level", "place", "radius"), [(5, MIDDLE, 600), (7, LARGE, 2500)])
def test_a_commit_shows_at_every_zoom(
    level: int, place: tuple[int, int], radius: int, running: SegmentController, viewer: ViewerModel
) -> None:
    zoom_to(viewer, level)
    assert running.state.level == level
    running.click(place)
    running.wait()
    assert running.overlay is not None
    preview = running.overlay.preview
    assert preview.step == 2**level
    assert preview.layer.data.shape[0] <= 64
    running.commit()
    running.wait()
    expected = np.pi * radius**2
    for area in committed(running, 1):
        assert area == pytest.approx(expected, rel=0.25)
    running.undo()
    running.wait()
    assert committed(running, 1) == [0.0] * 4


def test_the_preview_lies_on_its_object_at_a_coarse_level(
    running: SegmentController, viewer: ViewerModel
) -> None:
    zoom_to(viewer, 5)
    running.click(MIDDLE)
    running.wait()
    assert running.overlay is not None
    preview, image = running.overlay.preview, running.image_layer
    assert image is not None
    assert preview.box is not None
    first = np.array([preview.box.y0, preview.box.x0]) + (2**5 - 1) / 2
    np.testing.assert_allclose(
        preview.layer.data_to_world((0, 0)), image.data_to_world(first), err_msg="half a pixel off"
    )
    centre = np.argwhere(preview.pixels).mean(axis=0)
    world = preview.layer.data_to_world(centre)
    np.testing.assert_allclose(image.world_to_data(world), MIDDLE, atol=16)


# ------------------------------------------------------------------ frames, planes, channels

FRAMES: dict[str, dict[str, Any]] = {
    "affine": {"affine": [[1.0, 0.3, 5.0], [0.1, 0.8, -7.0], [0.0, 0.0, 1.0]], "scale": (2, 2)},
    "rotated, in micrometres": {"rotate": 30, "scale": (0.5, 0.25), "units": ("um", "um")},
    "sheared": {"shear": [0.4], "translate": (100, -40)},
}


@pytest.mark.parametrize("frame", FRAMES)
def test_all_layers_lie_on_a_pyramid_in_any_frame(
    frame: str, controller: SegmentController, viewer: ViewerModel, discs: list[Any]
) -> None:
    image = viewer.add_image(discs, rgb=True, multiscale=True, **FRAMES[frame])
    controller.start(image)
    controller.wait()
    controller.settings.pin_level(5)
    controller.click_world(image.data_to_world(MIDDLE))
    controller.wait()
    layers = controller.overlay
    assert layers is not None
    for layer in (layers.target, layers.shown_prompts.layer):
        np.testing.assert_allclose(layer.data_to_world((300, 40)), image.data_to_world((300, 40)))
        assert layer.units == image.units
    box, half = layers.preview.box, (32 - 1) / 2
    assert box is not None
    np.testing.assert_allclose(
        layers.preview.layer.data_to_world((3, 4)),
        image.data_to_world((box.y0 + 3 * 32 + half, box.x0 + 4 * 32 + half)),
    )
    image.scale = (7, 3)
    np.testing.assert_allclose(
        layers.preview.layer.data_to_world((0, 0)),
        image.data_to_world((box.y0 + half, box.x0 + half)),
    )
    controller.commit()
    controller.wait()
    value = layers.target.get_value(image.data_to_world(MIDDLE), world=True)
    assert value is not None
    assert value[1] == 1


def test_the_plane_that_is_shown_is_worked_on(
    controller: SegmentController,
    viewer: ViewerModel,
    pixels: NDArray[np.uint8],
    square: NDArray[np.bool_],
) -> None:
    stack = np.zeros((4, 64, 64, 3), np.uint8)
    stack[2] = pixels
    image = viewer.add_image(stack, rgb=True, name="stack", scale=(3, 1, 1))
    viewer.dims.set_point(0, 2 * 3)
    controller.start(image)
    controller.wait()
    controller.settings.pin_level(0)
    controller.click_world((6, 30, 30))
    controller.wait()
    layers = controller.overlay
    assert layers is not None
    np.testing.assert_array_equal(layers.shown_prompts.layer.data, [[2, 30, 30]])
    np.testing.assert_allclose(layers.preview.layer.data_to_world((0, 0, 0)), (6, 0, 0))
    assert int((layers.preview.pixels.astype(bool) != square).sum()) <= 8
    viewer.dims.set_point(0, 3 * 3)
    with pytest.raises(PromptError, match="on plane 2, and this is plane 3"):
        controller.click((5, 5))
    viewer.dims.set_point(0, 2 * 3)
    controller.commit()
    controller.wait()
    levels = layers.target.data
    shown = np.asarray(levels if layers.target.multiscale is False else levels[0])
    assert int(((shown[2] == 1) != square).sum()) <= 8
    assert not shown[[0, 1, 3]].any()


def test_a_view_of_other_axes_is_told(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    viewer.add_image(np.stack([pixels[..., 0]] * 4), name="stack")
    controller.start()
    controller.wait()
    viewer.dims.order = (1, 0, 2)
    with pytest.raises(PromptError, match="roll the axes back"):
        controller.click((30, 30))
    viewer.dims.order = (0, 1, 2)
    viewer.dims.set_point(0, 2)
    controller.click((30, 30))
    controller.wait()
    assert controller.state.num_prompts == 1


def test_layers_can_be_the_colours_that_the_model_sees(
    controller: SegmentController, viewer: ViewerModel, square: NDArray[np.bool_]
) -> None:
    # Alone, neither layer tells the square from the stripe that crosses it.
    stripe = np.zeros((64, 64), np.uint16)
    stripe[24:40] = 4000
    column = np.zeros((64, 64), np.float32)
    column[:, 20:44] = 0.5
    one = viewer.add_image(stripe, name="one", contrast_limits=(0, 4000))
    two = viewer.add_image(column, name="two", contrast_limits=(0, 0.5))
    controller.start(one, channels={"red": one, "blue": two})
    controller.wait()
    controller.settings.pin_level(0)
    controller.click((30, 30))
    controller.commit()
    controller.wait()
    assert controller.overlay is not None
    assert int(((controller.overlay.target.data == 1) != square).sum()) <= 8
    viewer.layers.remove("two")
    with pytest.raises(SessionError, match="'two' was removed"):
        controller.wait()


# ------------------------------------------------------------------ levels


def test_the_level_follows_the_zoom_unless_it_is_pinned(
    running: SegmentController, viewer: ViewerModel
) -> None:
    zoom_to(viewer, 2)
    assert (running.state.level, running.state.is_level_pinned) == (2, False)
    running.settings.pin_level(5)
    zoom_to(viewer, 7)
    assert (running.state.level, running.state.is_level_pinned) == (5, True)
    running.click(MIDDLE)
    running.wait()
    assert running.state.level == 5
    running.settings.pin_level(99)
    running.cancel()
    running.wait()
    assert running.state.level == running.state.levels[1] == 9
    running.settings.pin_level(None)
    assert running.state.level == 7


def test_the_current_object_keeps_its_tile_while_the_view_zooms(
    running: SegmentController, viewer: ViewerModel
) -> None:
    zoom_to(viewer, 5)
    running.click(MIDDLE)
    running.wait()
    assert running.overlay is not None
    box = running.overlay.preview.box
    zoom_to(viewer, 1)
    assert running.state.level == 5
    running.click((MIDDLE[0] + 50, MIDDLE[1]))
    running.wait()
    assert running.state.level == 5
    assert running.overlay.preview.box == box
    running.commit()
    running.wait()
    assert running.state.level == 1


def test_strokes_at_a_coarse_level_are_committed(
    running: SegmentController, viewer: ViewerModel
) -> None:
    zoom_to(viewer, 5)
    running.click(MIDDLE)
    running.wait()
    assert running.overlay is not None
    preview = running.overlay.preview
    preview.layer.brush_size = 1
    preview.layer.paint((3, 5), 1)
    box, step = preview.box, preview.step
    assert box is not None
    running.commit()
    running.wait()
    painted = Box(0, 0, step, step).shifted(box.y0 + 3 * step, box.x0 + 5 * step)
    level0 = running.overlay.target.data[0]
    assert (np.asarray(level0[painted.slices]) == 1).all()
    ring = np.asarray(level0[painted.expand(1).slices])
    assert (ring == 1).sum() == step**2, "no more than was painted"


# ------------------------------------------------------------------ labels on disk


def folder(controller: SegmentController) -> Path:
    return Path(controller.state.labels_folder)


def commit_at(controller: SegmentController, place: tuple[int, int], level: int = 0) -> None:
    controller.settings.pin_level(level)
    controller.click(place)
    controller.commit()
    controller.wait()


def test_objects_of_a_large_image_go_to_the_user_folder_and_are_told_where(
    running: SegmentController, labels_folder: Path
) -> None:
    assert folder(running).is_relative_to(labels_folder)
    assert str(folder(running)) in running.state.message
    assert "slide" in str(folder(running))


def test_the_next_session_goes_on_with_the_same_labels(
    running: SegmentController, slide: Image, viewer: ViewerModel
) -> None:
    commit_at(running, SMALL)
    first = folder(running)
    running.stop()
    running.wait()
    assert [layer.name for layer in viewer.layers] == ["slide", "slide [objects]"]
    slide.contrast_limits = (0, 77)
    running.start(slide)
    running.wait()
    assert folder(running) == first
    assert sum("[objects]" in layer.name for layer in viewer.layers) == 1
    assert running.state.can_undo
    commit_at(running, MIDDLE, 5)
    assert committed(running, 2)[0] > 0
    running.undo()
    running.undo()
    running.wait()
    assert running.overlay is not None
    assert not np.any(running.overlay.target.data[-1])


def test_another_image_of_the_same_name_and_size_has_labels_of_its_own(
    running: SegmentController, viewer: ViewerModel, discs: list[Any]
) -> None:
    first = folder(running)
    for level in discs:
        level.discs = ((16_000, 16_000, 9000),)
    other = viewer.add_image(discs, rgb=True, multiscale=True, name="slide")
    running.start(other)
    running.wait()
    assert folder(running) != first


def test_an_empty_label_layer_goes_with_the_session(
    running: SegmentController, viewer: ViewerModel
) -> None:
    running.stop()
    running.wait()
    assert [layer.name for layer in viewer.layers] == ["slide"]


@pytest.fixture
def ome_slide(viewer: ViewerModel, tmp_path: Path) -> tuple[Image, Path]:
    pixels = np.zeros((1000, 1500), np.uint8)
    pixels[402:430, 690:718] = 200
    path = tmp_path / "slide.ome.zarr"
    arrays = write_ome_zarr(path, pixels)
    return viewer.add_image(arrays, multiscale=True, name="ome", contrast_limits=(0, 200)), path


def test_objects_go_beside_a_local_ome_zarr(
    ome_slide: tuple[Image, Path], controller: SegmentController
) -> None:
    image, path = ome_slide
    controller.start(image)
    controller.wait()
    assert folder(controller) == path / "labels" / "objects"
    commit_at(controller, (416, 704), 0)
    controller.stop()
    controller.wait()
    with open_labels(path, "objects") as labels:
        assert len(labels.levels) == 3
        assert labels.read(Box(410, 700, 420, 710)).all()


def test_existing_labels_are_gone_on_with_by_name(
    ome_slide: tuple[Image, Path], controller: SegmentController
) -> None:
    image, path = ome_slide
    with create_labels(path, "cells") as labels:
        labels.write(Box(0, 0, 5, 5), np.ones((5, 5), bool), 41)
    controller.start(image, target=LabelFile(path, "cells"))
    controller.wait()
    commit_at(controller, (416, 704), 0)
    assert controller.overlay is not None
    level0 = np.asarray(controller.overlay.target.data[0][:, :])
    assert np.unique(level0).tolist() == [0, 41, 42]


def test_the_view_of_labels_on_disk_can_be_chosen_as_the_target(
    ome_slide: tuple[Image, Path], controller: SegmentController
) -> None:
    image, path = ome_slide
    controller.start(image, target=LabelFile(path, "cells"))
    controller.wait()
    commit_at(controller, (416, 704), 0)
    assert controller.overlay is not None
    view = controller.overlay.target
    controller.stop()
    controller.wait()
    controller.start(image, target=view)
    controller.wait()
    assert folder(controller) == path / "labels" / "cells"
    assert controller.target_in_use == LabelFile(path, "cells")


def test_labels_that_are_open_elsewhere_are_told_and_can_be_taken_later(
    ome_slide: tuple[Image, Path],
    controller: SegmentController,
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    image, _ = ome_slide
    closed: list[LabelWriter] = []
    close = LabelWriter.close

    def count(self: LabelWriter) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(LabelWriter, "close", count)
    other = SegmentController(ViewerModel(), load_model=lambda *_, **__: model)
    try:
        controller.start(image)
        controller.wait()
        other.start(Image(image.data, multiscale=True, contrast_limits=(0, 200)))
        with pytest.raises(LabelsError, match="only writer"):
            other.wait()
        assert other.state.phase is Phase.STOPPED
        assert other.state.is_error
        assert closed == []
        controller.stop()
        controller.wait()
        assert len(closed) == 1, "closed, not left to be collected some time"
        other.start(Image(image.data, multiscale=True, contrast_limits=(0, 200)))
        other.wait()
        assert other.state.phase is Phase.READY
    finally:
        other.close()


def test_a_model_that_cannot_be_loaded_leaves_the_labels_free(
    ome_slide: tuple[Image, Path], viewer: ViewerModel
) -> None:
    image, path = ome_slide

    def load(*_: Any, **__: Any) -> Any:
        raise SessionError("expected a model, got none")

    controller = SegmentController(viewer, load_model=load)
    controller.start(image)
    with pytest.raises(SessionError):
        controller.wait()
    open_labels(path, "objects").close()
    controller.close()


def test_a_damaged_chunk_is_told_once_and_the_rest_is_shown(
    running: SegmentController, viewer: ViewerModel
) -> None:
    commit_at(running, SMALL)
    commit_at(running, MIDDLE, 5)
    store = folder(running)
    running.stop()
    running.wait()
    chunk = store / "0" / "c" / str(SMALL[0] // 512) / str(SMALL[1] // 512)
    chunk.write_bytes(chunk.read_bytes()[:10])
    viewer.layers.remove("slide [objects]")
    running.start(viewer.layers["slide"])
    running.wait()
    errors: list[BaseException] = []
    running.state.failed.connect(errors.append)
    assert running.overlay is not None
    level0 = running.overlay.target.data[0]
    for _ in range(2):
        at_damage = Box(*SMALL, SMALL[0] + 1, SMALL[1] + 1).expand(5)
        assert not np.asarray(level0[at_damage.slices]).any()
    running.worker.deliver()
    assert len(errors) == 1
    assert "damaged chunk" in running.state.message
    assert running.state.is_error
    assert np.asarray(level0[MIDDLE[0] : MIDDLE[0] + 9, MIDDLE[1] : MIDDLE[1] + 9]).all()


def test_closing_makes_the_commits_that_wait_and_frees_the_labels(
    ome_slide: tuple[Image, Path],
    controller: SegmentController,
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("napari_hrsam.engine.object_predictor.MAX_LOOKS", 1)
    image, path = ome_slide
    controller.start(image)
    controller.wait()
    controller.settings.pin_level(0)
    controller.settings.set_reads_ahead(False)
    model.gate.clear()
    controller.click((416, 704))
    controller.commit()
    controller.click((10, 10))
    # Returns although the encoder still waits.
    controller.close()
    assert not controller.worker.join(0.1)
    model.gate.set()
    assert controller.worker.join(20)
    assert model.num_decoded == 1, "the object that was not committed is not drawn"
    with open_labels(path, "objects") as labels:
        assert labels.read(Box(410, 700, 420, 710)).all()


def test_a_commit_made_after_stop_is_shown(
    running: SegmentController, viewer: ViewerModel, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.settings.set_reads_ahead(False)
    running.settings.pin_level(5)
    model.gate.clear()
    running.click(MIDDLE)
    running.commit()
    running.stop()
    model.gate.set()
    refreshed: list[bool] = []
    monkeypatch.setattr(Labels, "refresh", lambda *_, **__: refreshed.append(True))
    running.wait()
    objects = viewer.layers["slide [objects]"]
    assert np.any(objects.data[-1])
    assert np.asarray(objects.data[3][MIDDLE[0] >> 3, MIDDLE[1] >> 3]) == 1
    assert refreshed


def test_removing_the_objects_layer_ends_the_session_and_frees_the_labels(
    running: SegmentController, viewer: ViewerModel
) -> None:
    commit_at(running, SMALL)
    store = folder(running)
    viewer.layers.remove("slide [objects]")
    with pytest.raises(SessionError, match="was removed"):
        running.wait()
    with open_labels(store.parent.parent, store.name) as labels:
        assert labels.next_label() == 2


# ------------------------------------------------------------------ which target


class Stub:
    """Looks like an array that is not in memory."""

    def __init__(self, *shape: int) -> None:
        self.shape, self.ndim, self.dtype = shape, len(shape), np.dtype(np.uint8)
        self.size = int(np.prod(shape))

    def __getitem__(self, index: Any) -> NDArray[np.uint8]:
        return np.broadcast_to(np.uint8(0), self.shape)[index]

    def __array__(self, dtype: Any = None, copy: Any = None) -> NDArray[np.uint8]:
        return np.asarray(self[:], dtype)


@pytest.mark.parametrize(
    ("data", "is_in_memory"),
    [
        (np.zeros((64, 64), np.uint8), True),
        (np.broadcast_to(np.uint8(0), (2, 8192)), True),
        (np.broadcast_to(np.uint8(0), (2, 8193)), False),
        (np.zeros((3, 64, 64), np.uint8), False),
        (Stub(64, 64), False),
    ],
)
def test_small_flat_images_in_memory_keep_their_objects_there(
    data: Any, is_in_memory: bool
) -> None:
    image = read_image_layers(Image(data, contrast_limits=(0, 1), name="a"))
    expected = NewLayer() if is_in_memory else OwnPlace("a")
    assert default_target(image.layer, image.image) == expected


@pytest.mark.parametrize("target", [NewLayer(), Labels(np.zeros((64, 64), int))])
def test_a_stack_cannot_have_its_objects_in_memory(
    target: Target, controller: SegmentController, viewer: ViewerModel
) -> None:
    viewer.add_image(np.zeros((4, 64, 64)))
    with pytest.raises(LabelsError, match="keep them on disk"):
        controller.start(target=target)
    assert controller.state.phase is Phase.STOPPED


# ------------------------------------------------------------------ long work


@pytest.fixture
def outlining(
    running: SegmentController, model: Any, monkeypatch: pytest.MonkeyPatch
) -> SegmentController:
    """A commit of an object whose outline is being drawn at full resolution, slowly."""
    encode = model.encode

    def slow(image: Any) -> Any:
        time.sleep(0.03)
        return encode(image)

    monkeypatch.setattr(model, "encode", slow)
    running.settings.set_outlines_fully(True)
    running.settings.set_reads_ahead(False)
    running.settings.pin_level(5)
    running.click(MIDDLE)
    running.wait()
    assert running.overlay is not None
    running.overlay.preview.layer.brush_size = 1
    running.overlay.preview.layer.paint((3, 5), 1)
    running.commit()
    end = time.monotonic() + 20
    while running.state.progress is None and time.monotonic() < end:
        running.worker.deliver()
        time.sleep(0.005)
    return running


def test_an_outline_that_takes_long_shows_its_progress_and_can_be_given_up(
    outlining: SegmentController,
) -> None:
    assert outlining.state.progress is not None
    assert "outline" in outlining.state.message
    done, total = outlining.state.progress
    assert 0 <= done < total
    outlining.cancel()
    outlining.wait()
    assert "given up" in outlining.state.message
    assert outlining.state.progress is None
    assert outlining.state.num_prompts == 1
    assert outlining.overlay is not None
    assert outlining.overlay.preview.pixels.sum() > 500
    assert outlining.overlay.preview.pixels[3, 5] == 1, "what was painted"
    assert outlining.overlay.preview.strokes() is not None
    assert not np.any(outlining.overlay.target.data[-1])
    outlining.settings.set_outlines_fully(False)
    outlining.commit()
    outlining.wait()
    assert outlining.state.num_committed == 1
    assert np.any(outlining.overlay.target.data[-1])


def test_closing_does_not_wait_for_the_outline_but_keeps_the_commit(
    outlining: SegmentController, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = folder(outlining)
    looks: list[int] = []
    look = OutlineNetwork.__call__

    def count(self: OutlineNetwork, *arguments: Any) -> Any:
        looks.append(1)
        return look(self, *arguments)

    outlining.close()
    monkeypatch.setattr(OutlineNetwork, "__call__", count)
    assert outlining.worker.join(20)
    assert len(looks) <= 1, "the part under way when it was closed"
    with open_labels(store.parent.parent, store.name) as labels:
        y, x = MIDDLE
        assert labels.read(Box(y, x, y + 1, x + 1)).item() == 1


def test_closing_leaves_an_object_that_nobody_committed_at_the_next_look(
    running: SegmentController, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.settings.set_reads_ahead(False)
    running.wait()
    encode, seen = model.encode, []

    def count(image: Any) -> Any:
        seen.append(1)
        return encode(image)

    monkeypatch.setattr(model, "encode", count)
    running.settings.pin_level(0)
    model.gate.clear()
    model.waiting.clear()
    # So large that it is looked at several times.
    running.click(MIDDLE)
    assert model.waiting.wait(120)
    running.close()
    model.gate.set()
    assert running.worker.join(20)
    assert len(seen) == 1


def test_escape_ends_the_search_for_an_object_at_the_next_look(
    running: SegmentController, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.settings.set_reads_ahead(False)
    running.wait()
    encode, seen = model.encode, []

    def count(image: Any) -> Any:
        seen.append(1)
        return encode(image)

    monkeypatch.setattr(model, "encode", count)
    running.settings.pin_level(0)
    model.gate.clear()
    model.waiting.clear()
    running.click(MIDDLE)
    assert model.waiting.wait(120)
    running.cancel()
    model.gate.set()
    running.wait()
    assert len(seen) == 1
    assert running.state.num_prompts == 0
    assert not running.state.is_error
    running.click(MIDDLE)
    running.wait()
    assert running.state.num_prompts == 1
    assert len(seen) > 2


def test_an_escape_too_many_gives_up_no_commit_that_nobody_waits_for(
    running: SegmentController, model: Any
) -> None:
    running.settings.set_reads_ahead(False)
    running.settings.set_outlines_fully(True)
    running.settings.pin_level(2)
    running.wait()
    model.gate.clear()
    running.click(SMALL)
    running.commit()
    running.cancel()
    model.gate.set()
    running.wait()
    assert running.state.num_committed == 1


def test_what_is_on_screen_is_prepared_while_idle(
    running: SegmentController, viewer: ViewerModel, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The tile of the first look; which one a second look takes depends on the object.
    monkeypatch.setattr("napari_hrsam.engine.object_predictor.MAX_LOOKS", 1)
    encoded: list[str] = []
    encode = model.encode
    is_ready = threading.Event()

    def count(image: Any) -> Any:
        encoded.append(threading.current_thread().name)
        is_ready.set()
        return encode(image)

    monkeypatch.setattr(model, "encode", count)
    viewer.scene.camera.center = running.image_layer.data_to_world(SMALL)
    zoom_to(viewer, 0)
    assert is_ready.wait(20)
    time.sleep(REST_S)
    running.click(SMALL)
    running.wait()
    assert running.state.encode_ms == 0
    assert not running.state.is_busy


def test_preparing_can_be_switched_off(
    running: SegmentController, viewer: ViewerModel, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running.settings.set_reads_ahead(False)
    running.wait()
    encoded: list[Any] = []
    monkeypatch.setattr(model, "encode", encoded.append)
    zoom_to(viewer, 0)
    viewer.scene.camera.center = running.image_layer.data_to_world(MIDDLE)
    time.sleep(3 * REST_S)
    assert encoded == []
    assert not running.state.reads_ahead


@pytest.mark.parametrize("in_memory", [False, True])
def test_what_was_not_committed_is_drawn_again_next_time(
    controller: SegmentController,
    viewer: ViewerModel,
    pixels: NDArray[np.uint8],
    tmp_path: Path,
    in_memory: bool,
) -> None:
    """As after a crash or the end of napari: nobody presses Stop."""
    target = NewLayer() if in_memory else LabelFile(tmp_path / "labels.zarr")

    def start(controller: SegmentController, viewer: ViewerModel) -> None:
        viewer.add_image(pixels, rgb=True, name="scene")
        viewer.canvas.size = (64, 64)
        viewer.scene.camera.zoom = 1.0
        controller.start(target=target)
        controller.wait()

    start(controller, viewer)
    for point, positive in (((30, 30), True), ((5, 5), False)):
        controller.click(point, positive)
    controller.wait()
    assert controller.overlay is not None
    num_pixels = controller.overlay.preview.num_pixels
    assert num_pixels > 0
    controller.close()
    assert controller.worker.join()

    again_viewer = ViewerModel()
    again = SegmentController(again_viewer, load_model=controller.worker._load_model)
    start(again, again_viewer)
    assert again.overlay is not None
    assert again.overlay.prompts.points_yx == ((30.0, 30.0), (5.0, 5.0))
    assert again.overlay.preview.num_pixels == num_pixels
    assert "drawn again from its 2 prompts" in again.state.message
    again.undo()
    again.wait()
    assert len(again.overlay.prompts) == 1
    again.redo()
    again.commit()
    again.wait()
    again.close()
    assert again.worker.join()

    last_viewer = ViewerModel()
    last = SegmentController(last_viewer, load_model=controller.worker._load_model)
    start(last, last_viewer)
    assert last.overlay is not None
    assert not last.overlay.has_object
    assert last.state.can_undo
    last.undo()
    last.wait()
    assert not np.asarray(last.overlay.target.data).any()
    last.redo()
    last.wait()
    assert np.count_nonzero(np.asarray(last.overlay.target.data)) == num_pixels
    last.close()


def test_an_object_that_was_given_up_or_is_gone_is_not_drawn_again(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8], tmp_path: Path
) -> None:
    viewer.add_image(pixels, rgb=True, name="scene")
    viewer.scene.camera.zoom = 1.0
    target = LabelFile(tmp_path / "labels.zarr")
    controller.start(target=target)
    controller.wait()
    controller.click((30, 30))
    controller.wait()
    controller.stop()
    controller.start(target=target)
    controller.wait()
    assert controller.overlay is not None
    assert not controller.overlay.has_object

    controller.click((30, 30))
    controller.commit()
    controller.objects.edit(1)
    controller.click((5, 5), positive=False)
    controller.wait()
    # As if the layer were lost.
    controller._end("lost", error=SessionError("lost"))
    controller.worker.wait(60)
    with open_labels(target.path, target.name) as labels:
        assert labels.unfinished is not None
        assert labels.unfinished.label == 1
        kept = labels.unfinished
        labels.revert(labels.newest_done())
        labels.keep_unfinished(kept)
    controller.start(target=target)
    with pytest.raises(SessionError, match="lost"):
        controller.wait()
    controller.wait()
    assert controller.overlay is not None
    assert not controller.overlay.has_object
    assert "cannot be drawn again" in controller.state.message
