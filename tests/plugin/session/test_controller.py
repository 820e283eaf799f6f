"""Clicks, commits and undo through the controller, without Qt."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
from napari.components import ViewerModel
from numpy.typing import NDArray

from napari_hrsam.errors import PromptError, SessionError
from napari_hrsam.plugin.overlay.preview import PreviewLayer
from napari_hrsam.plugin.session.controller import SegmentController
from napari_hrsam.plugin.session.inference_thread import THREAD_NAME
from napari_hrsam.plugin.session.state import Phase

INSIDE, BESIDE = (30, 30), (5, 5)


def agree(mask: NDArray[np.bool_], other: NDArray[np.bool_]) -> bool:
    """Whether masks are the same but for the corners, which interpolation rounds."""
    return bool(mask.any()) and int((mask != other).sum()) <= 2 * 4


def shown(controller: SegmentController) -> NDArray[np.bool_]:
    """The preview as a mask of the whole (64, 64) image."""
    assert controller.overlay is not None
    preview = controller.overlay.preview
    mask = np.zeros((64, 64), bool)
    if preview.box is not None:
        mask[preview.box.slices] = preview.layer.data != 0
    return mask


def target(controller: SegmentController) -> NDArray[np.uint32]:
    assert controller.overlay is not None
    return np.asarray(controller.overlay.target.data)


def test_a_click_shows_the_object_and_the_click(
    started: SegmentController, square: NDArray[np.bool_]
) -> None:
    started.click(INSIDE)
    started.click(BESIDE, positive=False)
    started.wait()
    assert started.overlay is not None
    points = started.overlay.shown_prompts.layer
    assert agree(shown(started), square)
    assert started.overlay.preview.layer.data.dtype == np.uint8
    np.testing.assert_array_equal(points.data, [INSIDE, BESIDE])
    assert list(points.features["label"]) == [1, 0]
    assert [str(symbol) for symbol in points.symbol] == ["disc", "x"]
    assert not np.allclose(points.border_color[0], points.border_color[1])
    assert started.state.level == 0
    assert started.state.decode_ms is not None


def test_commit_writes_a_new_label_and_begins_the_next_object(
    started: SegmentController, square: NDArray[np.bool_]
) -> None:
    started.click(INSIDE)
    started.commit()
    started.wait()
    assert target(started).dtype == np.uint32
    assert agree(target(started) == 1, square)
    assert not shown(started).any()
    assert started.state.num_prompts == 0
    assert started.state.num_committed == 1
    started.click(BESIDE)
    started.commit()
    started.wait()
    assert agree(target(started) == 2, ~square)


def test_undo_and_redo_go_through_prompts_and_commits(
    started: SegmentController, square: NDArray[np.bool_]
) -> None:
    started.click(INSIDE)
    started.click(BESIDE)
    started.wait()
    assert shown(started).all()
    started.undo()
    started.wait()
    assert agree(shown(started), square)
    started.redo()
    started.wait()
    assert shown(started).all()
    started.undo()
    started.commit()
    started.undo()
    started.wait()
    assert not target(started).any()
    assert started.state.num_committed == 0
    assert "taken back" in started.state.message
    started.redo()
    started.wait()
    assert agree(target(started) == 1, square)
    assert started.state.num_committed == 1


def test_box_prompt(started: SegmentController) -> None:
    started.box((8, 8, 40, 24))
    started.wait()
    assert started.overlay is not None
    mask = np.zeros((64, 64), bool)
    mask[8:40, 8:24] = True
    assert agree(shown(started), mask)
    dots = started.overlay.shown_prompts.layer.data
    np.testing.assert_allclose(dots.min(axis=0), [7.5, 7.5])
    np.testing.assert_allclose(dots.max(axis=0), [39.5, 23.5])


def test_cancel_gives_up_the_object_and_keeps_commits(
    started: SegmentController, square: NDArray[np.bool_]
) -> None:
    started.click(INSIDE)
    started.commit()
    started.click(BESIDE)
    started.wait()
    started.cancel()
    started.wait()
    assert not shown(started).any()
    assert started.overlay is not None
    assert len(started.overlay.shown_prompts.layer.data) == 0
    assert agree(target(started) == 1, square)


def test_no_quick_click_is_dropped_and_only_the_newest_answer_is_shown(
    started: SegmentController, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[int] = []
    show = PreviewLayer.show

    def count(self: PreviewLayer, mask: Any, *place: Any) -> None:
        drawn.append(int(mask.sum()))
        show(self, mask, *place)

    monkeypatch.setattr(PreviewLayer, "show", count)
    model.gate.clear()
    clicks = [INSIDE, BESIDE, (50, 50), (31, 31)]
    for click in clicks:
        started.click(click)
    assert started.overlay is not None
    assert len(started.overlay.shown_prompts.layer.data) == 4, "clicks are shown before the answer"
    model.gate.set()
    started.wait()
    assert model.num_decoded == 4
    assert drawn == [64 * 64]
    np.testing.assert_array_equal(started.overlay.shown_prompts.layer.data, clicks)


def test_cancel_returns_at_once_and_skips_waiting_clicks(
    started: SegmentController, model: Any
) -> None:
    model.gate.clear()
    for click in (INSIDE, BESIDE, (50, 50)):
        started.click(click)
    assert model.waiting.wait(120)
    begin = time.perf_counter()
    started.cancel()
    # The encoder would wait for 20 s.
    assert time.perf_counter() - begin < 10
    assert started.state.num_prompts == 0
    model.gate.set()
    started.wait()
    assert model.num_decoded <= 1
    assert not shown(started).any()
    assert started.state.num_prompts == 0


def test_cancel_does_not_touch_a_commit_that_waits(
    started: SegmentController, model: Any, square: NDArray[np.bool_]
) -> None:
    model.gate.clear()
    started.click(INSIDE)
    started.commit()
    started.click(BESIDE)
    started.cancel()
    model.gate.set()
    started.wait()
    assert agree(target(started) == 1, square)
    assert started.state.num_prompts == 0


def test_stop_does_not_lose_a_commit_that_waits(
    started: SegmentController, model: Any, viewer: ViewerModel, square: NDArray[np.bool_]
) -> None:
    labels = target(started)
    model.gate.clear()
    started.click(INSIDE)
    started.commit()
    started.stop()
    model.gate.set()
    started.wait()
    assert agree(labels == 1, square)
    assert [layer.name for layer in viewer.layers] == ["scene", "scene [objects]"]


def test_the_model_runs_on_the_inference_thread_only(
    started: SegmentController, model: Any
) -> None:
    started.click(INSIDE)
    started.wait()
    started.stop()
    started.start()
    started.wait()
    started.click(INSIDE)
    started.wait()
    assert model.threads == {f"{THREAD_NAME}_0"}


def test_starting_again_loads_no_model_twice(viewer: ViewerModel, model: Any, pixels: Any) -> None:
    loaded: list[tuple[str, str]] = []

    def load(name: str, device: str, **_: Any) -> Any:
        loaded.append((name, device))
        return model

    controller = SegmentController(viewer, load_model=load)
    viewer.add_image(pixels, rgb=True)
    for device in ("auto", "auto", "cpu"):
        controller.start(device=device)
        controller.wait()
    controller.close()
    assert loaded == [("hrsam-tiny", "auto"), ("hrsam-tiny", "cpu")]


def test_layers_are_added_in_a_turn_each(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    """napari takes long for a layer: the window is to react between them."""
    viewer.add_image(pixels, rgb=True)
    controller.start()
    nums = [1]
    while controller.state.phase is Phase.LOADING:
        controller.worker.deliver()
        nums.append(len(viewer.layers))
    assert np.diff(nums).max() == 1
    assert nums[-1] == 4


def test_stopping_between_layers_takes_them_away(
    controller: SegmentController, viewer: ViewerModel, pixels: NDArray[np.uint8]
) -> None:
    image = viewer.add_image(pixels, rgb=True)
    for num_layers in (2, 3, 4):
        controller.start()
        while len(viewer.layers) < num_layers:
            controller.worker.deliver()
        controller.stop()
        controller.wait()
        assert list(viewer.layers) == [image]
        assert controller.state.phase is Phase.STOPPED
    controller.start()
    while len(viewer.layers) < 3:
        controller.worker.deliver()
    viewer.layers.remove(viewer.layers[-1])
    with pytest.raises(SessionError, match="was removed"):
        controller.wait()
    assert list(viewer.layers) == [image]


def test_stop_takes_its_layers_away_and_an_unused_target_too(
    started: SegmentController, viewer: ViewerModel
) -> None:
    assert len(viewer.layers) == 4
    started.stop()
    started.wait()
    assert [layer.name for layer in viewer.layers] == ["scene"]
    assert started.state.phase is Phase.STOPPED


def test_stop_takes_its_layers_away_at_once(
    started: SegmentController, viewer: ViewerModel
) -> None:
    """Between two of them the window would draw, and a script meet half a session."""
    nums = [len(viewer.layers)]
    started.stop()
    while started.worker.is_busy:
        started.worker.deliver()
        nums.append(len(viewer.layers))
    assert sorted(set(nums)) == [1, 4]


def test_loading_can_be_cancelled(viewer: ViewerModel, model: Any, pixels: Any) -> None:
    release = threading.Event()

    def load(*_: str, **__: Any) -> Any:
        assert release.wait(20)
        return model

    controller = SegmentController(viewer, load_model=load)
    viewer.add_image(pixels, rgb=True)
    controller.start()
    assert controller.state.phase is Phase.LOADING
    assert controller.state.is_busy
    controller.cancel()
    assert controller.state.phase is Phase.STOPPED
    assert "cancelled" in controller.state.message
    release.set()
    controller.wait()
    assert len(viewer.layers) == 1
    controller.close()


def test_close_ends_the_thread_while_it_is_busy(started: SegmentController, model: Any) -> None:
    model.gate.clear()
    started.click(INSIDE)
    started.click(BESIDE)
    assert model.waiting.wait(120)
    # Returns although the encoder still waits.
    started.close()
    assert any(t.name.startswith(THREAD_NAME) and t.is_alive() for t in threading.enumerate())
    model.gate.set()
    assert started.worker.join(120)
    assert model.num_decoded <= 1
    started.close()


def test_prompts_need_a_session(controller: SegmentController) -> None:
    with pytest.raises(SessionError, match="press Start"):
        controller.click(INSIDE)


def test_a_click_outside_the_image_is_told_and_harms_nothing(
    started: SegmentController, square: NDArray[np.bool_]
) -> None:
    with pytest.raises(PromptError, match="outside the image 'scene'"):
        started.click_world((-5, 5))
    with pytest.raises(PromptError, match="inside the image"):
        started.click((64, 5))
    with pytest.raises(PromptError, match="inside the image"):
        started.box((70, 70, 80, 80))
    started.click(INSIDE)
    started.wait()
    assert agree(shown(started), square)


def test_commit_without_an_object_says_so(started: SegmentController) -> None:
    started.commit()
    assert "nothing to commit" in started.state.message
    assert not started.state.is_error


def test_commit_onto_another_object_is_an_error_and_keeps_the_object(
    started: SegmentController, square: NDArray[np.bool_]
) -> None:
    started.click(INSIDE)
    started.commit()
    started.click(INSIDE)
    started.commit()
    with pytest.raises(ValueError, match="belong to objects already"):
        started.wait()
    assert started.state.is_error
    assert started.state.num_prompts == 1
    assert agree(shown(started), square)


def test_an_error_is_reported_once_and_the_session_goes_on(
    started: SegmentController, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[BaseException] = []
    started.state.failed.connect(errors.append)

    def fail(*_: Any, **__: Any) -> None:
        raise ZeroDivisionError("boom")

    with monkeypatch.context() as patch:
        patch.setattr(model, "decode", fail)
        started.click(INSIDE)
        with pytest.raises((ZeroDivisionError, SessionError)):
            started.wait()
    assert len(errors) == 1
    assert started.state.is_error
    assert started.state.num_prompts == 0, "what is shown is what the session has"
    started.click(INSIDE)
    started.wait()
    assert shown(started).any()
    assert not started.state.is_error


@pytest.mark.parametrize(
    ("zoom", "level"), [(0.05, 2), (0.3, 1), (0.5, 1), (1.0, 0), (2.0, -1), (4.0, -1), (40.0, -1)]
)
def test_the_zoom_gives_the_level(
    controller: SegmentController, viewer: ViewerModel, zoom: float, level: int
) -> None:
    image = np.zeros((256, 256), np.uint8)
    image[124:132, 124:132] = 255  # small enough to stay inside the tile
    viewer.add_image(image)
    controller.start()
    controller.wait()
    viewer.scene.camera.zoom = zoom
    assert controller.overlay is not None
    assert controller.overlay.next_level(None) == level
    assert controller.state.level == level
    controller.click((128, 128))
    controller.wait()
    viewer.scene.camera.zoom = 1.0
    assert controller.state.level == level, "the object keeps its level"


@pytest.mark.parametrize("size", [(800, 600), (1600, 1000), (3000, 2000)])
def test_the_size_of_the_window_makes_no_mask_coarser(
    controller: SegmentController, viewer: ViewerModel, size: tuple[int, int]
) -> None:
    image = np.zeros((1024, 1024), np.uint8)
    image[500:520, 500:520] = 255
    viewer.add_image(image)
    viewer.canvas.size = size
    controller.start()
    controller.wait()
    assert controller.overlay is not None
    levels = []
    for zoom in (0.3, 1.0, 4.0):
        viewer.scene.camera.zoom = zoom
        levels.append(controller.overlay.next_level(None))
    assert levels == [1, 0, -1]


def test_an_object_beyond_what_was_looked_at_is_said_to_go_on(
    controller: SegmentController, viewer: ViewerModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("napari_hrsam.engine.object_predictor.MAX_LOOKS", 3)
    viewer.add_image(np.zeros((4096, 4096), np.uint8))
    controller.start()
    controller.wait()
    viewer.scene.camera.zoom = 1.0
    controller.click((2000, 2000))
    controller.wait()
    assert controller.state.message.startswith("The object goes on beyond this mask")
    controller.click((1000, 1000))
    controller.wait()
    assert "C commits" in controller.state.message, "the next click shows all of it"


def test_the_level_counts_scale_and_units(
    controller: SegmentController, viewer: ViewerModel
) -> None:
    image = np.zeros((256, 256), np.uint8)
    viewer.add_image(image, scale=(0.5, 0.5), units=("um", "um"), name="scene")
    viewer.add_image(image, scale=(500, 500), units=("nm", "nm"))
    controller.start(viewer.layers["scene"])
    controller.wait()
    viewer.scene.camera.zoom = 2 / 1000  # screen pixels per nm: the finer unit rules the world
    assert controller.overlay is not None
    assert controller.overlay.next_level(None) == 0


def test_3d_view_turns_the_tools_off(started: SegmentController, viewer: ViewerModel) -> None:
    callbacks = list(viewer.mouse_drag_callbacks)
    viewer.dims.ndisplay = 3
    assert "3-D" in started.state.message
    assert len(viewer.mouse_drag_callbacks) == len(callbacks) - 1
    viewer.dims.ndisplay = 2
    assert list(viewer.mouse_drag_callbacks) == callbacks
    assert "3-D" not in started.state.message
